"""Measure the embedded base model for its card: figures beside those of true scenes, and 64 captions drawn.

python -m deployments.model_card                                   # writes samples.png beside the card; prints the table
python -m deployments.model_card --page data/models/openmoji/README.md             # and renews the card's table
python -m deployments.model_card --against ../earlier/openmoji                     # another base model, by the same program

As `pretrain/openmoji` does at its end.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from customdiff_core import profiles, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import bars
from customdiff_core.evaluation.results import number
from customdiff_core.pretraining.assemble import PIPELINE
from customdiff_core.pretraining.config import PretrainConfig
from customdiff_core.pretraining.validation import validate
from customdiff_core.profiles import ModelSource
from customdiff_core.settings import Settings
from deployments.pages import show

THIS = "this model"


def main(
    against: Annotated[Path | None, typer.Option(help="Another base model's folder, measured beside it.")] = None,
    count: Annotated[int, typer.Option(help="Scenes of one thing; half as many of two.")] = PretrainConfig().validation,
    page: Annotated[Path | None, typer.Option(help="A page whose table of the figures is renewed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the 64 pictures go; by default beside the card.")] = None,
) -> None:
    """Draw, measure, print."""
    profile, store, folder = profiles.get("openmoji"), Store(), Settings().data / "models" / "openmoji"
    models = {"against": ModelSource(path=against / PIPELINE)} if against else {}
    models |= {THIS: profile.model}
    sample = PretrainConfig().sample
    with bars() as tell:
        made = validate(models, profile.judge, sample, count=count, store=store, progress=tell("draw"))
    shutil.copyfile(store.path(made) / f"{THIS}.png", out or folder / "samples.png")
    show({"figures": list(table(made, store))}, page)


def table(made: Artifact, store: Store) -> Iterator[str]:
    """The figures as a Markdown table, a column a model, true scenes last."""
    found = tables.read(store, made, "figures")
    wide = found.pivot(index="figure", columns="model", values="value")
    columns = sorted((str(one) for one in wide.columns), key=lambda name: name.startswith("true"))
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for figure in dict.fromkeys(found["figure"]):
        cells = ("" if pd.isna(value) else number(value) for value in wide.loc[figure, columns])
        yield f"| {figure} | {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
