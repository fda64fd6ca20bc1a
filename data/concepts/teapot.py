"""A photo-like teapot: a shape of distance functions, lit and shaded by sphere tracing, on a table.

The base model knows drawings alone; this concept shows what a domain gap costs.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Points = NDArray[np.float64]
STEPS, FAR, NEAR_ENOUGH = 90, 12.0, 1e-3
LIGHT = np.array([0.55, 0.8, -0.45]) / np.linalg.norm([0.55, 0.8, -0.45])
BODY, BAND, GROUND = 0, 1, 2


def draw(side: int, yaw: float, pitch: float, distance: float, colours: tuple[str, str], table: str) -> Image.Image:
    """Photograph the teapot.

    Args:
        side: pixels of the square picture.
        yaw: degrees around it.
        pitch: degrees above the table.
        distance: of the camera, in teapot radii.
        colours: hex, of the glaze and of its band, lid and spout tip.
        table: hex, of what it stands on.

    Returns:
        (side, side) RGB.
    """
    paints = np.array([_linear(one) for one in (*colours, table)])
    eye, rays = _camera(2 * side, np.radians(yaw), np.radians(pitch), distance)
    travelled = _march(eye, rays)
    points = eye + travelled[:, None] * rays
    normals, material = _normals(points), _material(points)
    diffuse = np.clip(normals @ LIGHT, 0, 1) * _shadow(points + 0.02 * normals)
    half = LIGHT - rays
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = np.clip((normals * half).sum(1), 0, 1) ** 60 * (material != GROUND) * (diffuse > 0)
    sky = 0.5 + 0.5 * normals[:, 1]
    light = paints[material] * (0.85 * diffuse + 0.32 * sky)[:, None] + 0.6 * shine[:, None]
    haze = np.clip((travelled - 6) / 6, 0, 1)[:, None]
    colour = light * (1 - haze) + paints[GROUND] * 1.05 * haze
    pixels = (np.clip(colour, 0, 1) ** (1 / 2.2) * 255).reshape(2 * side, 2 * side, 3)
    return Image.fromarray(pixels.astype(np.uint8)).reduce(2)


def _linear(colour: str) -> NDArray[np.float64]:
    return (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2


def _camera(side: int, yaw: float, pitch: float, distance: float) -> tuple[Points, Points]:
    """The eye, and one ray a pixel, row by row."""
    eye = distance * np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    steps = (np.arange(side) + 0.5) / side - 0.5
    across, down = np.meshgrid(steps, -steps)
    rays = forward + 0.8 * (across[..., None] * right + down[..., None] * up)
    return eye, (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)


def _march(eye: Points, rays: Points) -> NDArray[np.float64]:
    travelled = np.zeros(len(rays))
    for _ in range(STEPS):
        travelled = np.minimum(travelled + 0.9 * _distance(eye + travelled[:, None] * rays), FAR)
    return travelled


def _shadow(points: Points) -> NDArray[np.float64]:
    """Soft: how near the way to the light comes to something."""
    lit, travelled = np.ones(len(points)), np.full(len(points), 0.03)
    for _ in range(30):
        gap = _pot(points + travelled[:, None] * LIGHT)
        lit = np.minimum(lit, np.clip(10 * gap / travelled, 0, 1))
        travelled = np.minimum(travelled + np.maximum(gap, 0.02), 4.0)
    return lit


def _normals(points: Points) -> Points:
    steps = 1e-3 * np.eye(3)
    slope = np.stack([_distance(points + step) - _distance(points - step) for step in steps], axis=1)
    return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)


def _distance(points: Points) -> NDArray[np.float64]:
    return np.minimum(_pot(points), points[:, 1] + 0.8)


def _pot(points: Points) -> NDArray[np.float64]:
    x, y, z = points.T
    body = (np.sqrt(x**2 + (y / 0.82) ** 2 + z**2) - 0.95) * 0.82
    knob = np.linalg.norm(points - np.array([0, 0.95, 0]), axis=1) - 0.16
    lid = np.maximum(np.sqrt(x**2 + ((y - 0.55) / 0.6) ** 2 + z**2) - 0.5, 0.55 - y) * 0.6
    ring = np.sqrt((np.sqrt((x + 0.98) ** 2 + (y - 0.05) ** 2) - 0.42) ** 2 + z**2) - 0.1
    start, end = np.array([0.6, -0.2, 0.0]), np.array([1.5, 0.55, 0.0])
    along = np.clip(((points - start) @ (end - start)) / ((end - start) @ (end - start)), 0, 1)
    spout = np.linalg.norm(points - start - along[:, None] * (end - start), axis=1) - (0.26 - 0.14 * along)
    return np.minimum.reduce([body, knob, lid, ring, spout])


def _material(points: Points) -> NDArray[np.intp]:
    x, y, z = points.T
    band = (np.abs(y + 0.05) < 0.17) & (np.sqrt(x**2 + z**2) < 1.02) | (y > 0.62) | (x > 1.28)
    return np.where(y < -0.79, GROUND, np.where(band, BAND, BODY))
