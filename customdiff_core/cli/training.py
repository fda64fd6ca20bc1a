"""`customdiff train`, `compose` and `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from customdiff_core import concepts as concept_files
from customdiff_core.artifacts import Artifact
from customdiff_core.cli.bars import bars, console
from customdiff_core.cli.changes import changed, read_changes
from customdiff_core.cli.machine import (
    CategoryOption,
    DeviceOption,
    IndexOption,
    Machine,
    MethodOption,
    ProfileOption,
    SeedOption,
    StepsOption,
    TokenOption,
    WeightsOption,
    machine,
    say,
    say_places,
    stated_as,
    told,
)
from customdiff_core.errors import ConfigError
from customdiff_core.finetuning import methods
from customdiff_core.lineage import lineage_of


def train(
    names: Annotated[list[str], typer.Argument(help="Concepts: folders of data/concepts.")],
    joint: Annotated[bool, typer.Option(help="Several in one training, each equally often.")] = False,
    sequential: Annotated[bool, typer.Option(help="Several, one after the other.")] = False,
    method: MethodOption = "custom-diffusion",
    steps: StepsOption = None,
    seed: SeedOption = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting of the training (prior_weight=0), its views (augment.random_resize=false) or its regularization "
            "images (retrieve.regularization=generated); wins over the options above.",
        ),
    ] = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    index: IndexOption = None,
    device: DeviceOption = "auto",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory for more time, equal results.")] = False,
) -> None:
    """Teach the model concepts, each alone unless --joint or --sequential."""
    from customdiff_core.pipeline import Pipeline

    with told():
        if joint and sequential:
            raise ConfigError("train: found --joint and --sequential, need one of them; leave the other out")
        here = machine(profile, weights, index, device)
        changes = read_changes(settings or ())
        training = changed(here.training(str(changes[""].get("method", method)), steps, seed), changes[""])
        concept_files.check_prompts(training.preview_prompts, "preview_prompts")
        retrieval = changed(here.profile.retrieval(training.method), changes["retrieve."])
        views = changed(here.profile.views(training.method), changes["augment."])
        groups = [names] if joint or sequential else [[name] for name in names]
        with bars() as tell:
            runtime = here.runtime.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
            pipeline = Pipeline(here.profile, here.store, runtime, tell)
            made = [
                pipeline.train(group, training, sequential=sequential, retrieval=retrieval, views=views)
                for group in groups
            ]
        for one in made:
            say(here, one)


def compose(
    names: Annotated[list[str], typer.Argument(help="Concepts, keys of deltas, or files of other programs.")],
    strength: Annotated[
        list[float] | None, typer.Option(help="Of each, in their order; by default the profile's.")
    ] = None,
    ridge: Annotated[float, typer.Option(min=0, help="Holds the weights where captions say nothing.")] = 0.0,
    target: Annotated[
        list[str] | None, typer.Option(help="Target prompts with {}; by default the paper's two.")
    ] = None,
    factored: Annotated[bool, typer.Option(help="Keep thin factors: the same model, far smaller.")] = False,
    token: TokenOption = None,
    category: CategoryOption = None,
    method: MethodOption = "custom-diffusion",
    steps: StepsOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    index: IndexOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train or import what is missing, and merge it in closed form.

    A concept is its longest training with the profile's settings, unless --steps or --method.
    """
    from customdiff_core.pipeline import Pipeline

    with told():
        methods.check_merges(method)
        here = machine(profile, weights, index, device)
        prompts = tuple(target or here.profile.merge.prompts)
        config = here.profile.merge.model_copy(update={"ridge": ridge, "factored": factored, "prompts": prompts})
        strengths = strength or [here.profile.strength] * len(names)
        if len(strengths) != len(names):
            raise typer.BadParameter(f"found {len(strengths)} strengths, need {len(names)}")
        with bars() as tell:
            pipeline = Pipeline(here.profile, here.store, here.runtime, tell)
            stated = steps is not None or method != here.profile.finetune.method
            training = here.training(method, steps, 0) if stated else None
            made = pipeline.compose(names, strengths, training, config, stated_as(token, category))
        say(here, made)
        say_merge(here, made)
        say_places(here, made)


def evaluate(
    name: Annotated[str, typer.Argument(help="A concept of data/concepts.")],
    delta: Annotated[
        str | None, typer.Option(help="The key of a delta; by default the concept's, trained if need be.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Images a prompt.")] = None,
    kid_images: Annotated[int | None, typer.Option(min=3, help="Held-out captions for KID.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="A Parquet of held-out images of the category, with captions, for KID.")
    ] = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    index: IndexOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a customized model beside its base: alignment and KID."""
    from customdiff_core import tables
    from customdiff_core.evaluation.evaluate import evaluate as run
    from customdiff_core.evaluation.results import compare, interval, number
    from customdiff_core.pipeline import Pipeline
    from customdiff_core.weights import require

    with told():
        here = machine(profile, weights, index, device, validation)
        require(here.profile, search=False)
        config = here.profile.evaluate
        if seeds:
            config = config.model_copy(update={"seeds": tuple(range(seeds))})
        if kid_images:
            subset = min(config.kid_subset_size, kid_images)
            config = config.model_copy(update={"kid_images": kid_images, "kid_subset_size": subset})
        with bars() as tell:
            made = Pipeline(here.profile, here.store, here.runtime, tell).delta(delta or name)
            method = str(here.store.manifest(made).recipe.config.get("method"))
            wanted = concept_files.as_taught(concept_files.load(name), lineage_of(made, here.store))
            metrics = run(
                wanted, made, here.profile, config, store=here.store, runtime=here.runtime, progress=tell("evaluate")
            )
        table = Table("", "base model", "customized", title=f"{name}, {method}")
        for one in compare(tables.read(here.store, metrics, "metrics")):
            cells = (f"{number(cell.value)} ({interval(cell)})" for cell in (one.base, one.customized))
            table.add_row(one.title, *cells)
        console.print(table)


def say_merge(here: Machine, made: Artifact) -> None:
    """A line a concept: how well it is kept; the words that are no constraints; and remarks."""
    from customdiff_core import tables
    from customdiff_core.merging.account import remarks

    report, rows = (tables.read(here.store, made, name) for name in ("merge", "rows"))
    table = Table("concept", "strength", "constraints", "worst error", "as saved")
    for name, part in report.groupby("concept"):
        table.add_row(
            str(name),
            f"{part['strength'].iloc[0]:g}",
            str(part["constraints"].iloc[0]),
            f"{part['constraint_error'].max():.1e}",
            f"{part['constraint_error_cast'].max():.1e}",
        )
    console.print(table)
    for state, words in rows[rows["state"] != "constraint"].groupby("state")["token"].unique().items():
        console.print(f"no constraints, {state}: {', '.join(words)}", markup=False)
    for line in remarks(made, here.store):
        console.print(line, markup=False)
