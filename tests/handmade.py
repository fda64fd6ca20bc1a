"""A run whose every artifact is written by hand: small, quick and known, with captions that try to be markup."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import save_file

from customdiff_core import images, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.lineage import FILE, Lineage, Taught, to_metadata
from customdiff_core.recipes import Recipe

EVIL = '<script>alert("x")</script> | [link](javascript:1) ![a](http://evil.example/a.png) `code` *b*'
LINK = 'https://a.example/x y(1)"|`<b>.jpg'
SEEDS = (0, 1)
METRICS: dict[
    str, tuple[float, float, tuple[float, float, float]]
] = {  # base, customized, and the difference's interval
    "text_alignment": (1.94, 1.48, (-0.62, -0.46, -0.31)),
    "image_alignment_held_out": (0.03, 0.40, (0.25, 0.37, 0.50)),
    "image_alignment_training": (-0.05, 0.35, (0.27, 0.40, 0.52)),
    "nearest_training": (0.07, 0.47, (0.27, 0.40, 0.53)),
    "kid": (-0.39, 0.54, (0.71, 0.93, 1.15)),
}


def png(number: int, side: int = 64) -> bytes:
    """Noise, which no codec makes small: the worst a page has to hold."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return images.encode(Image.fromarray(pixels))


def metrics_table(confidence_half: float = 0.1) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for metric, (base, customized, difference) in METRICS.items():
        cells = {
            name: (x - confidence_half, x, x + confidence_half)
            for name, x in (("base", base), ("customized", customized))
        }
        cells["difference"] = difference
        rows += [
            {
                "subject": name,
                "metric": metric,
                "extractor": "judge",
                "value": x,
                "ci_low": low,
                "ci_high": high,
                "n": 8,
            }
            for name, (low, x, high) in cells.items()
        ]
    return pd.DataFrame(rows)


def history(steps: int = 40) -> pd.DataFrame:
    losses = np.random.default_rng(0).random((steps, 2))
    return pd.DataFrame(
        {"step": range(1, steps + 1), "instance_loss": losses[:, 0], "prior_loss": losses[:, 1], "seconds": 0.2}
    )


def index(store: Store) -> Artifact:
    def produce(folder: Path) -> int:
        (folder / "metadata").mkdir()
        (folder / "images").mkdir()
        for number in range(5):
            (folder / "images" / f"{number}.png").write_bytes(png(number))
        rows = [{"image_path": f"images/{number}.png", "caption": EVIL} for number in range(5)]
        return tables.write(folder / "metadata" / "metadata_0000.parquet", rows)

    return _make(store, "index", {"scenes": 5, "seed": 0}, produce, {"profile": "openmoji"})


def regularization(store: Store, count: int = 30, *, drawn: bool = False) -> Artifact:
    rows = [
        {
            "url": LINK if number else "javascript:1",
            "caption": EVIL,
            "similarity": 1 - number / 100,
            "image": png(number),
        }
        for number in range(count)
    ]
    if drawn:
        return table(store, "regularization", {"regularization": "generated", "count": count}, regularization=rows)
    tables = {"regularization": rows, "candidates": candidates(count), "attempts": attempts(count)}
    return table(store, "regularization", {"count": count, "min_similarity": 0.8}, **tables)


def candidates(count: int) -> pd.DataFrame:
    """`count` that are kept, and ten for each way not to be."""
    reasons = [
        "",
        "link dead",
        "link not_image",
        "same address as a better hit",
        "same image as a better hit",
        "not needed",
    ]
    rows = [reason for reason in reasons for _ in range(10 if reason else count)]
    return pd.DataFrame({"cand_id": range(len(rows)), "drop_reason": rows})


def attempts(count: int) -> pd.DataFrame:
    """A try of each candidate that was worth one; the first was busy before it answered."""
    tried = [(number, "ok") for number in range(count)]
    tried += [(count + number, "dead") for number in range(10)] + [
        (count + 10 + number, "not_image") for number in range(10)
    ]
    tried += [(count + 30 + number, "ok") for number in range(10)]
    rows = [{"cand_id": 0, "status": "dead", "host": "a.example"}]
    rows += [{"cand_id": one, "status": status, "host": "b|b" if one % 3 else "a.example"} for one, status in tried]
    return pd.DataFrame(rows).assign(url=LINK, error="", seconds=0.1, round=0, attempt=0)


def training_set(store: Store, concept: Concept) -> Artifact:
    def produce(folder: Path) -> int:
        masks = np.ones((5, 1, 8, 8), np.float32)
        masks[1] = 0
        masks[1, 0, 2:4, 3:6] = 1
        save_file({"mask.64x64": masks}, folder / "latents.safetensors")
        prefixes = ["", "very small ", "zoomed in ", ""]
        rows = [
            {
                "role": "concept",
                "prompt": concept.with_concept(prefix + concept.instance_prompt),
                "prefix": prefix,
                "width": 64,
                "height": 64,
                "latent_row": row,
            }
            | {"image": png(row)}
            for row, prefix in enumerate(prefixes)
        ]
        return tables.write(
            folder / "examples.parquet",
            [
                *rows,
                {
                    "role": "regularization",
                    "prompt": EVIL,
                    "prefix": "",
                    "width": 64,
                    "height": 64,
                    "latent_row": 4,
                    "image": None,
                },
            ],
        )

    return _make(store, "training_set", {"resolution": 64, "views": 4}, produce)


def delta(store: Store) -> Artifact:
    strip = Image.fromarray(np.zeros((64, 128, 3), np.uint8))
    previews = [{"step": step, "image": images.encode(strip)} for step in (20, 40)]
    config = {
        "method": "custom-diffusion",
        "steps": 40,
        "learning_rate": 5e-4,
        "sample": {"sampler": "ddim", "steps": 25},
    }
    moved = [
        {"layer": f"{kind}.weight", "kind": kind, "change": 0.01 * number}
        for number, kind in enumerate(("cross-attention", "self-attention", "other"), 1)
    ]
    return table(store, "delta", config, history=history(), previews=previews, weight_change=moved)


def say(folder: Path, *taught: Taught) -> None:
    """Write a delta's file with nothing in it but what it was taught."""
    save_file({"a": np.ones(1, np.float32)}, folder / FILE, metadata=to_metadata(Lineage(concepts=taught)))


def knowing(store: Store, *taught: Taught, **labels: str) -> Artifact:
    """A delta of which nothing is there but what it says of itself."""

    def produce(folder: Path) -> int:
        say(folder, *taught)
        return 1

    config = {"taught": [one.model_dump() for one in taught]}
    return _make(store, "delta", config, produce, {"concept": "+".join(one.name for one in taught)} | labels)


def samples(store: Store, prompts: tuple[str, ...], name: str) -> Artifact:
    rows = [
        {"prompt": prompt, "prompt_id": number, "seed": seed, "image": png(100 * number + seed)}
        for number, prompt in enumerate(prompts)
        for seed in reversed(SEEDS)
    ]
    return table(store, "samples", {"name": name, "prompts": list(prompts)}, samples=rows)


def metrics(store: Store, concept: Concept, prompts: tuple[str, ...] = ("a crying {}", EVIL + " {}")) -> Artifact:
    sets = {
        "base": samples(store, tuple(concept.with_category(prompt) for prompt in prompts), "base"),
        "customized": samples(store, tuple(concept.with_concept(prompt) for prompt in prompts), "customized"),
    }
    scores = [
        {
            "prompt_id": number,
            "seed": seed,
            "subject": subject,
            "nearest_training": 0.9 if (number, seed) == (1, 1) else 0.5,
        }
        for subject in sets
        for number in range(len(prompts))
        for seed in SEEDS
    ]
    sources = [{"name": name, **one.model_dump()} for name, one in sets.items()]
    config = {"seeds": list(SEEDS), "confidence": 0.95, "kid_images": 8, "prompts": list(prompts)}
    return table(store, "metrics", config, metrics=metrics_table(), scores=scores, sources=sources)


def run(store: Store, concept: Concept) -> dict[str, Artifact]:
    """Every artifact from the index to the metrics, by kind."""
    return {
        "index": index(store),
        "regularization": regularization(store),
        "training_set": training_set(store, concept),
        "delta": delta(store),
        "metrics": metrics(store, concept),
    }


def table(store: Store, kind: str, config: dict[str, Any], **content: Any) -> Artifact:
    def produce(folder: Path) -> int:
        for name, rows in content.items():
            tables.write(folder / f"{name}.parquet", rows)
        return 1

    return _make(store, kind, config, produce)


def _make(
    store: Store, kind: str, config: dict[str, Any], produce: Any, labels: dict[str, str] | None = None
) -> Artifact:
    recipe = Recipe(
        kind=kind, inputs={"by": "hand"}, config=config, code="0" * 64, versions={"x": "1"}, labels=labels or {}
    )
    return store.make(recipe, produce)
