"""The commands of `customdiff`.

customdiff train cat dog --joint          customdiff compose cat dog teddybear.bin --token "<teddy>" --category "teddy bear"
customdiff generate cat "a crying {}"     customdiff convert cat delta.bin --to authors
customdiff inspect delta.bin              customdiff compress cat --megabytes 1
customdiff evaluate cat
"""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler
from rich.table import Table

from customdiff_core import concepts as concept_files
from customdiff_core import profiles
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import bars, console, notes
from customdiff_core.config import CompressConfig, FinetuneConfig, Runtime, SampleConfig, Stated
from customdiff_core.errors import CustomDiffusionError
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile

if TYPE_CHECKING:  # loading it brings torch along, which --help does without
    from customdiff_core.pipeline import Pipeline

app = typer.Typer(help="Teach a text-to-image model concepts, merge them, draw them.", no_args_is_help=True)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help=f"One of {', '.join(profiles.BUILDERS)}.")]
WeightsOption = Annotated[Path | None, typer.Option(help="A diffusers folder instead of the profile's own weights.")]
IndexOption = Annotated[Path | None, typer.Option(help="A clip-retrieval folder instead of the profile's own.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
MethodOption = Annotated[str, typer.Option(help=f"One of {', '.join(methods.METHODS)}.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Optimizer steps; by default the profile's.")]
SeedOption = Annotated[int, typer.Option(help="Training seed.")]
TokenOption = Annotated[list[str] | None, typer.Option("--token", help="An imported file's token, in its order.")]
CategoryOption = Annotated[list[str] | None, typer.Option("--category", help="That token's category, such as cat.")]


@dataclass(frozen=True)
class Machine:
    """A profile on this machine, with the store."""

    profile: Profile
    runtime: Runtime
    store: Store

    def training(self, method: str, steps: int | None, seed: int) -> FinetuneConfig:
        """The profile's settings for a method, with what the command line states."""
        stated = {"seed": seed} | ({"steps": steps} if steps else {})
        return self.profile.training(method).model_copy(update=stated)


def machine(profile: str, weights: Path | None, index: Path | None, device: str) -> Machine:
    """Build what all commands need."""
    found = profiles.get(profile, model=weights, index=index)
    return Machine(found, Runtime.model_validate({"device": device}), Store(producer="customdiff"))


@contextmanager
def told() -> Generator[None]:
    """Say this project's own errors in a line instead of a traceback, and what the core logs above the bars."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=notes, show_path=False)]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about themselves
            yield
    except CustomDiffusionError as error:
        notes.print(f"[red]{type(error).__name__}[/red]", end=" ")
        notes.print(str(error), markup=False)
        raise typer.Exit(1) from error


@app.command()
def train(
    names: Annotated[list[str], typer.Argument(help="Concepts: folders of data/concepts.")],
    joint: Annotated[bool, typer.Option(help="Several in one training, each equally often.")] = False,
    sequential: Annotated[bool, typer.Option(help="Several, one after the other.")] = False,
    method: MethodOption = "custom-diffusion",
    steps: StepsOption = None,
    seed: SeedOption = 0,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    index: IndexOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Teach the model concepts, each alone unless --joint or --sequential."""
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, index, device)
        config = here.training(method, steps, seed)
        groups = [names] if joint or sequential else [[name] for name in names]
        with bars() as tell:
            pipeline = Pipeline(here.profile, here.store, here.runtime, tell)
            made = [pipeline.train(group, config, sequential=sequential) for group in groups]
        for one in made:
            _say(here, one)


@app.command()
def compose(
    names: Annotated[list[str], typer.Argument(help="Concepts, keys of deltas, or files of other programs.")],
    strength: Annotated[list[float] | None, typer.Option(help="Of each, in their order; by default 1.")] = None,
    ridge: Annotated[float, typer.Option(min=0, help="Holds the weights where captions say nothing.")] = 0.0,
    factored: Annotated[bool, typer.Option(help="Keep thin factors: the same model, far smaller.")] = False,
    token: TokenOption = None,
    category: CategoryOption = None,
    steps: StepsOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    index: IndexOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train or import what is missing, and merge it in closed form."""
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, index, device)
        config = here.profile.merge.model_copy(update={"ridge": ridge, "factored": factored})
        strengths = strength or [1.0] * len(names)
        if len(strengths) != len(names):
            raise typer.BadParameter(f"found {len(strengths)} strengths, need {len(names)}")
        with bars() as tell:
            pipeline = Pipeline(here.profile, here.store, here.runtime, tell)
            training = here.training("custom-diffusion", steps, 0)
            made = pipeline.compose(names, strengths, training, config, _stated(token, category))
        _say(here, made)
        _say_merge(here, made)


@app.command()
def generate(
    name: Annotated[str, typer.Argument(help="A concept, the key of a delta, or a file.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; {} stands for the concept.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images a prompt, from seed 0 on.")] = 4,
    seed: Annotated[list[int] | None, typer.Option(help="The seeds themselves instead.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    guidance: Annotated[float | None, typer.Option(min=1, help="Classifier-free guidance.")] = None,
    sampler: Annotated[str | None, typer.Option(help="dpm-solver++ or ddim.")] = None,
    sample_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images denoised together.")] = None,
    out: Annotated[Path, typer.Option(help="Where the PNGs go; each holds its recipe.")] = Path("out"),
    token: TokenOption = None,
    category: CategoryOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw prompts with what was trained."""
    from customdiff_core.cli.drawing import draw, texts_for
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, None, device)
        stated = {"sampler": sampler, "steps": sample_steps, "guidance_scale": guidance, "batch_size": batch}
        kept = {key: value for key, value in stated.items() if value is not None}
        config = SampleConfig.model_validate(
            here.profile.evaluate.sample.model_dump() | kept | {"negative_prompt": negative_prompt}
        )
        wanted = list(prompts or [])
        if prompts_file:
            wanted += concept_files.read_prompts(prompts_file.parent, prompts_file.name)
        with bars() as tell:
            delta = _delta(Pipeline(here.profile, here.store, here.runtime, tell), name, _stated(token, category))
            texts = texts_for(delta, wanted or ["photo of a {}"], here.store)
            seeds = tuple(seed) if seed else tuple(range(images))
            files = draw(texts, seeds, delta, here.profile, config, here.store, here.runtime, tell("generate"), out)
        for file in files:
            console.print(str(file), markup=False)


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="A concept, the key of a delta, or a file.")],
    out: Annotated[Path, typer.Argument(help="The file, or for diffusers and embedding the folder, that is written.")],
    to: Annotated[
        str, typer.Option(help="customdiff, diffusers, diffusers-bin, authors, compvis, embedding, webui, kohya, peft.")
    ],
    rank: Annotated[int, typer.Option(min=1, help="Of a LoRA.")] = 64,
    token: TokenOption = None,
    category: CategoryOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Write a delta for another program."""
    from customdiff_core import delta as deltas
    from customdiff_core.interop.content import Base
    from customdiff_core.interop.formats import write
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, None, "auto")
        made = _delta(Pipeline(here.profile, here.store, here.runtime), name, _stated(token, category))
        loaded = deltas.load(here.store.path(made) / deltas.FILE)
        for path in write(out, loaded, Base(here.profile.model), to, rank):
            console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", markup=False)


@app.command()
def compress(
    name: Annotated[str, typer.Argument(help="A concept, the key of a delta, or a file.")],
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Fraction of the singular values' sum.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Singular values of every layer.")] = None,
    megabytes: Annotated[float | None, typer.Option(min=0, help="Size of the file.")] = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Keep a delta as thin factors; 0.6 of the energy, as the released code does, unless stated."""
    from customdiff_core import tables
    from customdiff_core.compression import compress as run
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, None, "auto")
        config = CompressConfig(
            energy=0.6 if energy is rank is megabytes is None else energy, rank=rank, megabytes=megabytes
        )
        with bars() as tell:
            whole = _delta(Pipeline(here.profile, here.store, here.runtime, tell), name, Stated())
            made = run(whole, here.profile, config, store=here.store, progress=tell("compress"))
        report = tables.read(here.store, made, "compression")
        _say(here, made)
        console.print(
            f"{_size(here, whole):.2f} MB -> {_size(here, made):.2f} MB, rank {report['rank'].min()} to {report['rank'].max()}, "
            f"relative error {report['relative_error'].mean():.3f} (worst {report['relative_error'].max():.3f})"
        )


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of any readable format.")],
    token: TokenOption = None,
    category: CategoryOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Say what is in a file, and whether it fits this model."""
    from customdiff_core.interop.importing import inspect as run

    with told():
        found = run(path, machine(profile, weights, None, "auto").profile, _stated(token, category))
        lineage = found.delta.lineage
        table = Table("", f"{path}", show_header=True)
        base = f"{lineage.base_digest[:12]}{' (stated, not in the file)' if lineage.base_stated else ''}"
        table.add_row("format", found.format)
        table.add_row("method", lineage.method)
        table.add_row("base model", base)
        table.add_row("concepts", ", ".join(f"{one.modifier_token} {one.category}".strip() for one in lineage.concepts))
        table.add_row("weights", f"{len(found.delta.weights)} whole, {len(found.delta.factors)} factored")
        tokens = [f"{name} {[len(row) for row in rows.values()]}" for name, rows in found.delta.tokens.items()]
        table.add_row("tokens", ", ".join(tokens).replace("[", "(").replace("]", ")") or "none")
        if found.changes:
            table.add_row("relative change", f"{min(found.changes.values()):.4f} to {max(found.changes.values()):.4f}")
        table.add_row("fits this model", f"no: {found.problem}" if found.problem else "yes")
        console.print(table)
        if found.problem:
            raise typer.Exit(1)


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A concept of data/concepts.")],
    delta: Annotated[
        str | None, typer.Option(help="The key of a delta; by default the concept's, trained if need be.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Images a prompt.")] = None,
    kid_images: Annotated[int | None, typer.Option(min=3, help="Held-out captions for KID.")] = None,
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

    with told():
        here = machine(profile, weights, index, device)
        config = here.profile.evaluate
        if seeds:
            config = config.model_copy(update={"seeds": tuple(range(seeds))})
        if kid_images:
            subset = min(config.kid_subset_size, kid_images)
            config = config.model_copy(update={"kid_images": kid_images, "kid_subset_size": subset})
        with bars() as tell:
            made = _delta(Pipeline(here.profile, here.store, here.runtime, tell), delta or name, Stated())
            method = str(here.store.manifest(made).recipe.config.get("method"))
            concept = concept_files.load(name)
            wanted = methods.get(method).words(concept) if method in methods.METHODS else concept
            metrics = run(
                wanted, made, here.profile, config, store=here.store, runtime=here.runtime, progress=tell("evaluate")
            )
        table = Table("", "base model", "customized", title=f"{name}, {method}")
        for one in compare(tables.read(here.store, metrics, "metrics")):
            cells = (f"{number(cell.value)} ({interval(cell)})" for cell in (one.base, one.customized))
            table.add_row(one.title, *cells)
        console.print(table)


def _delta(pipeline: "Pipeline", name: str, stated: Stated) -> Artifact:
    """The newest delta of a concept, or else train it; a key's; a file's."""
    trained = pipeline.profile.training("custom-diffusion")
    if name in concept_files.names():
        try:
            return pipeline.store.newest("delta", concept=name, profile=pipeline.profile.name)
        except CustomDiffusionError:
            notes.print(f"{name}: not trained yet; training it now")
    return pipeline.delta(name, trained, stated)


def _stated(tokens: list[str] | None, categories: list[str] | None) -> Stated:
    return Stated(tokens=tuple(tokens or ()), categories=tuple(categories or ()))


def _say(here: Machine, made: Artifact) -> None:
    labels = here.store.manifest(made).recipe.labels
    said = f"{labels.get('concept', '')} ({labels.get('method', '')}, {labels.get('way', '')})"
    console.print(f"delta {made.key}  {said}  {_size(here, made):.2f} MB", markup=False)


def _say_merge(here: Machine, made: Artifact) -> None:
    """A line a concept: how well it is kept; and the words that are no constraints."""
    from customdiff_core import tables

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


def _size(here: Machine, delta: Artifact) -> float:
    from customdiff_core.delta import FILE

    return (here.store.path(delta) / FILE).stat().st_size / 1e6


if __name__ == "__main__":
    app()
