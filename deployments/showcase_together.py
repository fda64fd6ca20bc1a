"""Several concepts in one picture: merged beside jointly trained, and three merged; tables and grids for the README.

python -m deployments.showcase_together                           # writes docs/together-2.webp and docs/together-3.webp
python -m deployments.showcase_together --page docs/methods.md    # and renews the tables there
python -m deployments.showcase_together --steps 4 --seeds 1       # a quick look at whether it runs

Eight prompts x eight seeds. The question of the pair is whether both are there as often as the base model draws "a cat and a
dog": its answer is a program's (`evaluation/presence.py`), printed with how often that program is right on known pictures.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from customdiff_core import concepts, figures, profiles, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import bars
from customdiff_core.evaluation.report_together import metric_rows
from customdiff_core.evaluation.results import interval, number, sources
from customdiff_core.evaluation.together import BASE, PRESENCE, evaluate_together
from customdiff_core.pipeline import Pipeline
from customdiff_core.settings import REPOSITORY
from deployments.pages import show

SIDE, LINE, SEEDS = 64, 16, 4
GOAL = 0.8  # of the base model's rate of pictures with all of them


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Concepts; by default cat, dog and teddybear.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; by default the profile's.")] = None,
    seeds: Annotated[int, typer.Option(help="Images a prompt.")] = 8,
    ridge: Annotated[float | None, typer.Option(help="Holds the merged weights; by default the profile's.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Target prompts of the merge; by default the profile's.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Of each concept; by default the profile's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the grids.")] = REPOSITORY / "docs",
    page: Annotated[Path | None, typer.Option(help="A page whose tables of pairs and threes are renewed.")] = None,
) -> None:
    """Train what is missing, merge, train jointly, evaluate, print."""
    chosen = names or ["cat", "dog", "teddybear"]
    profile, store = profiles.get("openmoji"), Store()
    training = profile.finetune.model_copy(update={"steps": steps} if steps else {})
    stated = {"ridge": ridge, "prompts": tuple(target) if target else None}
    merging = profile.merge.model_copy(update={name: value for name, value in stated.items() if value is not None})
    config = profile.evaluate.model_copy(update={"seeds": tuple(range(seeds))})
    for count in (2, 3)[: len(chosen) - 1]:
        group = chosen[:count]
        with bars() as tell:
            pipeline = Pipeline(profile, store, tell=tell)
            subjects = {
                "merged": pipeline.compose(
                    group, [profile.strength if strength is None else strength] * count, training, merging
                )
            }
            if count == 2:
                subjects["joint"] = pipeline.train(group, training)
            made = evaluate_together(
                tuple(concepts.load(name) for name in group),
                subjects,
                concepts.prompts_together(count),
                profile,
                config,
                store=store,
                progress=tell("evaluate"),
            )
        grid(made, store).save(out / f"together-{count}.webp", quality=90, method=6)
        show({f"together-{count}": table(made, store)}, page)
        typer.echo("\n".join(presence(made, store)))


def table(together: Artifact, store: Store) -> list[str]:
    """The figures as a Markdown table."""
    found = tables.read(store, together, "metrics")
    rows = metric_rows(found)
    heads = list(rows[0][1])
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for title, cells in rows:
        texts = [f"{number(cells[head].value)} ({interval(cells[head])})" for head in heads]
        lines.append(f"| {title} | {' | '.join(texts)} |")
    return lines


def presence(together: Artifact, store: Store) -> Iterator[str]:
    """Whether the goal is met, and how often the program that says so is right on known pictures."""
    found = tables.read(store, together, "metrics")
    present = {row["subject"]: float(row["value"]) for row in tables.records(found[found["metric"] == PRESENCE])}
    for name, rate in present.items():
        if name != BASE and " - " not in name:
            ratio = rate / max(present[BASE], 1e-9)
            yield f"{name}: all present in {ratio:.2f} of the base model's rate, goal {GOAL}"
    for row in tables.records(found[found["subject"] == "judge"]):
        yield f"judge: {row['metric']}: {row['value']:.2f} of {row['n']}"


def grid(together: Artifact, store: Store) -> Image.Image:
    """Every prompt a row of strips, one a model: the first seeds, none chosen."""
    sets = {name: tables.read(store, one, "samples") for name, one in sources(together, store).items()}
    prompts = sorted(set(sets[BASE]["prompt_id"]))
    strips: list[tuple[str, Image.Image]] = []
    for prompt in prompts:
        for name, samples in sets.items():
            part = sorted(tables.records(samples[samples["prompt_id"] == prompt]), key=lambda row: row["seed"])
            pngs = [row["image"] for row in part[:SEEDS]]
            strips.append((f"{name}: {part[0]['prompt']}", figures.montage(pngs, len(pngs), SIDE)))
    width = max(strip.width for _, strip in strips)
    columns, height = len(sets), SIDE + LINE + 4
    sheet = Image.new("RGB", (columns * (width + 16), height * len(prompts)), "white")
    for place, (words, strip) in enumerate(strips):
        left, top = place % columns * (width + 16), place // columns * height
        figures.write(sheet, (left, top), words, width)
        sheet.paste(strip, (left, top + LINE), strip)
    return sheet


if __name__ == "__main__":
    typer.run(main)
