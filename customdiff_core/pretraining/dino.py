"""DINO: an image encoder that no caption has told anything (arXiv:2104.14294); a second opinion on image alignment.

Student and teacher see different crops of one picture; the student learns to say what the teacher, its own average, says.
Crops keep their colours: in this world a colour is what tells one thing from another.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime
from customdiff_core.pretraining import corpus, stages
from customdiff_core.pretraining.clip import as_tensor
from customdiff_core.pretraining.config import DinoConfig
from customdiff_core.pretraining.corpus import Corpus
from customdiff_core.pretraining.loop import pretrain
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng, torch_generator

GLOBAL_SCALE, LOCAL_SCALE = (0.5, 1.0), (0.15, 0.45)  # of the picture's area
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, CENTRE_MOMENTUM = 0.04, 0.1, 0.9


def dino(
    scenes: Artifact,
    config: DinoConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Train the encoder from nothing.

    Returns:
        A `dino` artifact: a transformers ViTModel's folder and history.parquet.
    """
    recipe = stages.dino(scenes, config)

    def produce(folder: Path) -> int:
        seen = corpus.load(store, scenes, "training")
        torch.manual_seed(config.seed)
        loss = SelfDistillation(build(config, seen.pictures.shape[1]), seen, config)
        scratch = store.scratch(recipe.kind, recipe.key)
        made, history = pretrain(loss, loss.of_step, config, scratch=scratch, device=runtime.device, progress=progress)
        made.teacher.save_pretrained(folder)
        tables.write(folder / "history.parquet", history)
        return config.steps

    return store.make(recipe, produce, volatile=("history.parquet",))


class SelfDistillation(nn.Module):
    """Cross-entropy of the student's view of one crop against the teacher's view of another."""

    centre: Tensor
    teacher: Any
    student: Any
    head: Any
    teacher_head: Any

    def __init__(self, student: Any, seen: Corpus, config: DinoConfig) -> None:
        super().__init__()
        self.seen, self.config = seen, config
        self.student, self.head = student, _head(config)
        self.teacher = build(config, seen.pictures.shape[1]).requires_grad_(False)
        self.teacher_head = _head(config).requires_grad_(False)
        self.teacher.load_state_dict(student.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.register_buffer("centre", torch.zeros(config.prototypes))

    def of_step(self, step: int) -> Tensor:
        """The loss of a step's own crops; moves the teacher first."""
        self._follow()
        rng = numpy_rng("dino batch", self.config.seed, step)
        rows = np.sort(rng.choice(len(self.seen.pictures), self.config.batch_size, replace=False))
        pictures = 2 * as_tensor(self.seen.pictures[rows]) - 1
        size, generator = pictures.shape[-1], torch_generator("dino crops", self.config.seed, step)
        wide = [_crops(pictures, GLOBAL_SCALE, size, generator) for _ in range(2)]
        narrow = [_crops(pictures, LOCAL_SCALE, size // 2, generator) for _ in range(self.config.local_crops)]
        return self([crop.to(self.student.device) for crop in wide], [crop.to(self.student.device) for crop in narrow])

    def forward(self, wide: list[Tensor], narrow: list[Tensor]) -> Tensor:
        """Mean over all pairs of a wide crop of the teacher's and another crop of the student's."""
        with torch.no_grad():
            seen = self.teacher_head(self.teacher(torch.cat(wide)).last_hidden_state[:, 0]).float()
            targets = ((seen - self.centre) / TEACHER_TEMPERATURE).softmax(-1).chunk(len(wide))
            self.centre.lerp_(seen.mean(0), 1 - CENTRE_MOMENTUM)
        said = [self.head(self.student(torch.cat(wide)).last_hidden_state[:, 0])]
        if narrow:
            said.append(
                self.head(self.student(torch.cat(narrow), interpolate_pos_encoding=True).last_hidden_state[:, 0])
            )
        views = [
            (one.float() / STUDENT_TEMPERATURE).log_softmax(-1) for part in said for one in part.split(len(wide[0]))
        ]
        pairs = [(target, view) for i, target in enumerate(targets) for j, view in enumerate(views) if i != j]
        return torch.stack([-(target * view).sum(-1).mean() for target, view in pairs]).mean()

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in ((self.teacher, self.student), (self.teacher_head, self.head)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - self.config.teacher_momentum)


def _crops(pictures: Tensor, scale: tuple[float, float], size: int, generator: torch.Generator) -> Tensor:
    """A random crop of each (B, 3, H, W) picture, resized to `size`; every second one mirrored, a little brighter or darker."""
    count = len(pictures)
    share = torch.empty(count).uniform_(*scale, generator=generator).sqrt()
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - share)[:, None]
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    frame = torch.zeros(count, 2, 3)
    frame[:, 0, 0], frame[:, 1, 1] = share * mirror, share
    frame[:, :, 2] = shift
    crops = F.grid_sample(
        pictures,
        F.affine_grid(frame, [count, 3, size, size], align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    light = 1 + 0.2 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    return (crops * light).clamp(-1, 1)


def _head(config: DinoConfig) -> nn.Module:
    """Width to prototypes, through a bottleneck of unit length."""
    return nn.Sequential(
        nn.Linear(config.width, 2 * config.width),
        nn.GELU(),
        nn.Linear(2 * config.width, config.width),
        _Unit(),
        nn.Linear(config.width, config.prototypes, bias=False),
    )


class _Unit(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


def build(config: DinoConfig, size: int) -> Any:
    """A ViT of this shape, with random weights."""
    shape = ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        image_size=size,
        patch_size=config.patch,
    )
    return ViTModel(shape, add_pooling_layer=False)
