"""Every method on one concept: a grid of pictures and a table of figures, for the README.

python -m deployments.showcase_methods --concept cat              # writes docs/methods.webp; trains what the store lacks
python -m deployments.showcase_methods --page docs/methods.md     # and renews the table there
python -m deployments.showcase_methods --steps 4 --seeds 1        # a quick look at whether it runs

Beside the figures, each row says how many numbers were trained, how large the file is, and whether everything else of the
network is bit for bit the base model's. The last row is Custom Diffusion compressed to a fifth of its size.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from customdiff_core import concepts, figures, profiles, tables
from customdiff_core import delta as deltas
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import bars
from customdiff_core.compression import compress
from customdiff_core.concepts import Concept
from customdiff_core.config import CompressConfig
from customdiff_core.evaluation.evaluate import evaluate
from customdiff_core.evaluation.results import compare, interval, number, picture, side_by_side
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.components import load_components
from customdiff_core.pipeline import Pipeline
from customdiff_core.settings import REPOSITORY
from deployments.pages import show

METRICS = ("image_alignment_held_out", "text_alignment", "kid")
HEADS = ("trained numbers", "file", "all else of the network", *(figures.METRICS[name] for name in METRICS))
SIDE, PROMPTS, SEEDS, LINE = 64, 4, 2, 16
COMPRESSED = "custom-diffusion, compressed to a fifth"


def main(
    concept: Annotated[str, typer.Option(help="A folder of data/concepts.")] = "cat",
    steps: Annotated[int | None, typer.Option(help="Training steps; by default the profile's for each method.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Images a prompt.")] = None,
    kid_images: Annotated[int | None, typer.Option(help="Held-out captions for KID.")] = None,
    out: Annotated[Path, typer.Option(help="Where the grid goes.")] = REPOSITORY / "docs" / "methods.webp",
    page: Annotated[Path | None, typer.Option(help="A page whose table of methods is renewed.")] = None,
) -> None:
    """Train, evaluate and print."""
    profile, store = profiles.get("openmoji"), Store()
    config = profile.evaluate
    config = config.model_copy(update={"seeds": tuple(range(seeds))} if seeds else {})
    if kid_images:
        config = config.model_copy(update={"kid_images": kid_images, "kid_subset_size": min(100, kid_images)})
    made: dict[str, tuple[Concept, Artifact]] = {}
    with bars() as tell:
        pipeline = Pipeline(profile, store, tell=tell)
        for name, method in methods.METHODS.items():
            training = profile.training(name)
            training = training.model_copy(update={"steps": steps} if steps else {})
            made[name] = (method.words(concepts.load(concept)), pipeline.train([concept], training))
        wanted, whole = made["custom-diffusion"]
        fifth = (store.path(whole) / deltas.FILE).stat().st_size / 5e6
        small = compress(whole, profile, CompressConfig(megabytes=fifth), store=store, progress=tell("compress"))
        made[COMPRESSED] = (wanted, small)
        metrics = {
            name: evaluate(one, delta, profile, config, store=store, progress=tell(f"evaluate {name}"))
            for name, (one, delta) in made.items()
        }
    grid(concepts.load(concept), metrics, store).save(out, quality=90, method=6)
    show({"methods": list(table(made, metrics, pipeline))}, page)


def table(made: dict[str, tuple[Concept, Artifact]], metrics: dict[str, Artifact], pipeline: Pipeline) -> Iterator[str]:
    """The figures as a Markdown table."""
    store = pipeline.store
    base = state_of(pipeline, None)
    yield f"| method | {' | '.join(HEADS)} |"
    yield "|---" * (len(HEADS) + 1) + "|"
    for name, (_, delta) in made.items():
        loaded = deltas.load(store.path(delta) / deltas.FILE)
        rows = sum(row.numel() for token in loaded.tokens.values() for row in token.values())
        trained = sum(base[one].numel() for one in loaded.names) + rows
        same = untouched(base, loaded.names) == untouched(state_of(pipeline, delta), loaded.names)
        size = (store.path(delta) / deltas.FILE).stat().st_size / 1e6
        found = {one.metric: one for one in compare(tables.read(store, metrics[name], "metrics"))}
        cells = [
            f"{number(found[one].customized.value)} ({interval(found[one].customized)})" if one in found else "–"
            for one in METRICS
        ]
        yield f"| {name} | {trained:,} | {size:.2f} MB | {'as it was' if same else 'CHANGED'} | {' | '.join(cells)} |"


def state_of(pipeline: Pipeline, delta: Artifact | None) -> dict[str, torch.Tensor]:
    """The UNet's weights, with a delta put in."""
    components = load_components(pipeline.profile.model)
    if delta is not None:
        deltas.apply(components, deltas.load(pipeline.store.path(delta) / deltas.FILE))
    return components.unet.state_dict()


def untouched(state: dict[str, torch.Tensor], trained: set[str]) -> str:
    """SHA-256 over the weights that were not trained."""
    total = hashlib.sha256()
    for name in sorted(set(state) - trained):
        total.update(state[name].numpy().tobytes())
    return total.hexdigest()


def grid(concept: Concept, metrics: dict[str, Artifact], store: Store) -> Image.Image:
    """The concept's pictures, then a row a method: the first prompts and seeds, base model above the others."""
    rows = {name: side_by_side(one, store, SEEDS)[:PROMPTS] for name, one in metrics.items()}
    first = next(iter(rows.values()))
    strips = {
        f"taught with ({concept.title})": [picture(concept, one, "images") for one in concept.images][: PROMPTS * SEEDS]
    }
    strips |= {"base model": [png for row in first for png in row.base]}
    strips |= {name: [png for row in shown for png in row.customized] for name, shown in rows.items()}
    apart = (SIDE + 2) * SEEDS
    sheet = Image.new("RGB", (apart * PROMPTS - 2, (SIDE + LINE + 4) * len(strips) + LINE), "white")
    for place, (name, pngs) in enumerate(strips.items()):
        top = place * (SIDE + LINE + 4) + (LINE if place else 0)
        figures.write(sheet, (0, top), name, sheet.width, 11)
        strip = figures.montage(pngs, len(pngs), SIDE)
        sheet.paste(strip, (0, top + LINE), strip)
    for place, row in enumerate(first):
        figures.write(sheet, (place * apart, SIDE + LINE + 4), row.base_prompt, apart - 4)
    return sheet


if __name__ == "__main__":
    typer.run(main)
