"""CLIP: a contrastive model of pictures and captions. One conditions the generator and retrieves, another one judges."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime
from customdiff_core.errors import TrainingError
from customdiff_core.pretraining import corpus, stages
from customdiff_core.pretraining import tokenizer as tokenizers
from customdiff_core.pretraining.config import ClipConfig
from customdiff_core.pretraining.corpus import FAMILY, Corpus
from customdiff_core.pretraining.loop import pretrain
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng, torch_generator

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
Pictures = NDArray[np.uint8]
PARTS = ("main", "second")  # of a drawing, each in a paint
BENDS = 8  # points a side by which lines are bent
IDENTITY_SCALE = 8.0  # of cosines of two pictures: low, so that they must lie far apart
LIKENESS_ODDS = 10.0  # how much more one of the same category in other paint counts than any other
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def clip(
    scenes: Artifact,
    words: Artifact,
    config: ClipConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
    start: Artifact | None = None,
) -> Artifact:
    """Train a CLIP from nothing, or further.

    Args:
        scenes: what it sees; whole families in a batch, so that it must look at what tells relatives apart.
        words: the tokenizer.
        config: the model's shape and its training.
        store: where the artifact and the checkpoints go.
        runtime: the device.
        progress: told after every step.
        start: a `clip` artifact of the same shape to go on from.

    Returns:
        A `clip` artifact: open_clip's configuration and weights, and history.parquet (step, loss, seconds).

    Raises:
        TrainingError: if identities are wanted of scenes without twins.
    """
    recipe = stages.clip(scenes, words, config, start)

    def produce(folder: Path) -> int:
        seen, tokenizer = corpus.load(store, scenes, "training"), tokenizers.load(store, words)
        if config.identity and seen.family == FAMILY:
            raise TrainingError(
                f"scenes {scenes.key}: found no twins, need them for an identity of {config.identity:g}; draw scenes with twins"
            )
        shape = model_config(config, tokenizer, seen.pictures.shape[1])
        torch.manual_seed(config.seed)
        model = build(shape)
        if start:
            model.load_state_dict(load_file(store.path(start) / WEIGHTS))
        ids = caption_ids(tokenizer, seen)
        loss = Contrast(model, seen, ids, config)
        scratch = store.scratch(recipe.kind, recipe.key)
        made, history = pretrain(loss, loss.of_step, config, scratch=scratch, device=runtime.device, progress=progress)
        save_file({name: tensor.contiguous() for name, tensor in made.model.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(shape, indent=1))
        tables.write(folder / "history.parquet", history)
        return config.steps

    return store.make(recipe, produce, volatile=("history.parquet",))


class Contrast(nn.Module):
    """The contrastive loss of a CLIP on scenes, and what its pictures show, asked of two linear heads.

    Equal captions are not held against each other. The heads, which are dropped in the end, name categories and colours: with
    towers that both know nothing, contrast alone finds settings and colours and is slow to find what things are. Asked for
    colours alone, a teal and pink cat is a pink and teal one to it; with `naming_parts` they are asked where each is.

    Captions tell surroundings too, so that two pictures of one thing are no nearer to each other than to its look-alikes before the
    same wall. With `identity` pictures are held against pictures as well (`of_identity`).

    Args:
        model: open_clip's CLIP.
        seen: the scenes; with twins where `config.identity` is not 0.
        ids: (4, N, L) of `caption_ids`; each family of a batch is told by one of them.
        config: batch size, share of families told without colours, noise and seed.
    """

    def __init__(self, model: Any, seen: Corpus, ids: Tensor, config: ClipConfig) -> None:
        super().__init__()
        self.model, self.seen, self.ids, self.config = model, seen, ids, config
        self.shown = [shares(seen.categories), shares(parts(seen) if config.naming_parts else seen.colours)]
        self.held = [numbered(seen.identities), numbered(seen.categories)] if config.identity else []
        self.heads = nn.ModuleList(nn.Linear(config.embed_dim, one.shape[1]) for one in self.shown)

    def of_step(self, step: int) -> Tensor:
        """The loss of a step's own batch."""
        rng = numpy_rng("clip batch", self.config.seed, step)
        size = self.seen.family
        families = rng.choice(self.ids.shape[1] // size, self.config.batch_size // size, replace=False)
        rows = (size * np.sort(families)[:, None] + np.arange(size)).ravel()
        told = len(rows) // FAMILY
        short, uncoloured = rng.integers(2, size=told), rng.random(told) < self.config.uncoloured
        said = np.repeat(short + 2 * uncoloured, FAMILY)
        device = self.model.logit_scale.device
        pictures = as_tensor(self.seen.pictures[rows])
        if self.config.wobble:
            pictures = bent(pictures, self.config.wobble, torch_generator("clip wobble", self.config.seed, step))
        if self.config.noise:
            pictures = _spoiled(pictures, self.config, step)
        places = torch.from_numpy(rows)
        ids = self.ids[torch.from_numpy(said), places]
        shown, held = ([one[places].to(device) for one in of_all] for of_all in (self.shown, self.held))
        return self(normalized(pictures).to(device), ids.to(device), shown, held)

    def forward(self, pictures: Tensor, ids: Tensor, shown: Sequence[Tensor], held: Sequence[Tensor] = ()) -> Tensor:
        """Cross-entropy both ways over (B, 3, h, w) pictures and (B, L) tokens, of the heads, and of identities; nats."""
        seen = self.model.encode_image(pictures).float()
        named = sum(
            -(target * F.log_softmax(head(seen).float(), dim=-1)).sum(1).mean()
            for head, target in zip(self.heads, shown, strict=True)
        )
        images = F.normalize(seen, dim=-1)
        texts = F.normalize(text_features(self.model, ids).float(), dim=-1)
        logits = self.model.logit_scale.exp().clamp(max=self.config.largest_scale) * images @ texts.T
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        contrast = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        identity = of_identity(images, *held) if self.config.identity else 0.0
        return contrast + self.config.naming * named + self.config.identity * identity


def of_identity(images: Tensor, things: Tensor, kinds: Tensor) -> Tensor:
    """Pictures of the same things are near each other wherever they are, like ones in another paint far (arXiv:2004.11362, L_out).

    Pictures that share one thing of two are held neither for nor against each other.

    Args:
        images: (B, D) unit vectors; each has a twin among them.
        things: (B, 2) of `numbered` identities.
        kinds: (B, 2) of `numbered` categories.

    Returns:
        The loss, nats.
    """
    itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
    same = (things[:, None] == things[None]).all(-1) & ~itself
    sharing = _in_common(things)
    alike = _in_common(kinds) & ~sharing
    logits = IDENTITY_SCALE * images @ images.T + math.log(LIKENESS_ODDS) * alike
    logits = logits.masked_fill(sharing & ~same, -1e4)
    target = same.float()
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True))


def _in_common(numbers: Tensor) -> Tensor:
    """(B, B) whether two rows of (B, K) have a number in common; -1 is none."""
    equal = (numbers[:, None, :, None] == numbers[None, :, None, :]) & (numbers >= 0)[:, None, :, None]
    return equal.flatten(2).any(-1)


def numbered(named: Sequence[tuple[str, ...]]) -> Tensor:
    """(N, K) numbers of the names of N pictures, ascending; -1 where a picture has fewer than K."""
    numbers = {name: number for number, name in enumerate(sorted({name for one in named for name in one}))}
    most = max(map(len, named))
    rows = [sorted(numbers[name] for name in one) for one in named]
    return torch.tensor([[-1] * (most - len(row)) + row for row in rows])


def text_features(model: Any, ids: Tensor) -> Tensor:
    """The same as `encode_text`, without the padding behind the longest text: half of the time."""
    longest = int((ids != 0).sum(1).max())
    hidden = model.token_embedding(ids[:, :longest]) + model.positional_embedding[:longest]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:longest, :longest]))
    return hidden[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection


def parts(seen: Corpus) -> list[tuple[str, ...]]:
    """Each picture's colours, told by the part that has them where one thing stands alone: "main teal", "second pink"."""
    told = zip(seen.categories, seen.colours, strict=True)
    return [
        tuple(f"{part} {colour}" for part, colour in zip(PARTS, colours, strict=False)) if len(things) == 1 else colours
        for things, colours in told
    ]


def shares(shown: Sequence[tuple[str, ...]]) -> Tensor:
    """(N, K) the share of each of K names in each of N pictures; zeros where a picture has none."""
    names = sorted({name for one in shown for name in one})
    made = torch.zeros(len(shown), len(names))
    for row, one in enumerate(shown):
        for name in one:
            made[row, names.index(name)] += 1 / len(one)
    return made


def bent(pictures: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Pictures of bent lines, as a small generator draws them: what a person still names, a judge shall.

    Args:
        pictures: (B, 3, h, w) of 0..1.
        most: largest standard deviation of a pixel's displacement, in pixels; each picture has its own, from 0.
        generator: of the displacements, smooth over about an eighth of a side.
    """
    count, _, height, width = pictures.shape
    coarse = torch.randn(count, 2, BENDS, BENDS, generator=generator)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    moved = most * share * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([columns, rows], dim=-1) + moved.permute(0, 2, 3, 1)
    grid = (2 * places + 1) / torch.tensor([width, height]) - 1
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _spoiled(pictures: Tensor, config: ClipConfig, step: int) -> Tensor:
    """Noise on all and blur on half of the pictures: a judge must not stumble over a generator's faults."""
    generator = torch_generator("clip noise", config.seed, step)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    share = torch.rand(len(pictures), 1, 1, 1, generator=generator)
    pictures = torch.where(share < 0.5, pictures, pictures + (2 * share - 1) * (blurred - pictures))
    level = config.noise * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return (pictures + level * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def as_tensor(pictures: Pictures) -> Tensor:
    """(B, h, w, 3) bytes to (B, 3, h, w) of 0..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def normalized(pictures: Tensor) -> Tensor:
    """CLIP's input: mean and deviation of its own pictures."""
    return (pictures - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def caption_ids(tokenizer: Any, seen: Corpus) -> Tensor:
    """(4, N, L) tokens: captions and short captions, and both without their things' colours."""
    said = (seen.captions, seen.short_captions, seen.uncoloured_captions, seen.shortest_captions)
    return torch.stack([token_ids(tokenizer, one) for one in said])


def token_ids(tokenizer: Any, captions: list[str]) -> Tensor:
    """(N, L) tokens, padded with zeros as open_clip does, so that the end is the largest of a row."""
    rows = tokenizer(captions, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    ids = torch.zeros(len(rows), tokenizer.model_max_length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return ids


def model_config(config: ClipConfig, tokenizer: Any, size: int) -> dict[str, Any]:
    """open_clip's own description of the model."""
    if config.vision == "resnet":
        vision = {"layers": [config.vision_layers] * 4, "width": config.vision_width}
    else:
        vision = {"timm_model_name": config.vision, "timm_pool": "avg", "timm_proj": "linear"}
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {"image_size": size, **vision},
        "text_cfg": {
            "context_length": tokenizer.model_max_length,
            "vocab_size": len(tokenizer),
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        },
    }


def build(shape: dict[str, Any]) -> Any:
    """An open_clip model of this shape, with random weights."""
    from open_clip.model import CLIP

    return CLIP(**shape)


def load(store: Store, artifact: Artifact) -> Any:
    """Open a trained CLIP."""
    folder = store.path(artifact)
    model = build(json.loads((folder / CONFIG).read_text()))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def text_encoder(model: Any, tokenizer: Any) -> Any:
    """The text half as transformers' CLIPTextModel: what conditions the generator. Equal features, another layout."""
    width, layers = model.token_embedding.weight.shape[1], len(model.transformer.resblocks)
    made: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=model.transformer.resblocks[0].attn.num_heads,
            hidden_act="gelu",
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=model.text_projection.shape[1],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    state = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        "final_layer_norm.weight": model.ln_final.weight,
        "final_layer_norm.bias": model.ln_final.bias,
    }
    for index, block in enumerate(model.transformer.resblocks):
        state |= {f"encoder.layers.{index}.{name}": tensor for name, tensor in _layer(block).items()}
    missing, unexpected = made.load_state_dict(
        {f"text_model.{name}": tensor for name, tensor in state.items()}, strict=False
    )
    assert not unexpected, unexpected
    assert all(name.endswith("position_ids") for name in missing), missing
    return made.eval()


def _layer(block: Any) -> dict[str, Tensor]:
    """One transformer layer under transformers' names."""
    named = {
        "layer_norm1": block.ln_1,
        "layer_norm2": block.ln_2,
        "mlp.fc1": block.mlp.c_fc,
        "mlp.fc2": block.mlp.c_proj,
    }
    named["self_attn.out_proj"] = block.attn.out_proj
    layer = {f"{name}.{kind}": getattr(part, kind) for name, part in named.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        parts = getattr(block.attn, f"in_proj_{kind}").chunk(3)
        layer |= {f"self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    return layer
