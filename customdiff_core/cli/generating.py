"""`customdiff generate`: one's own prompts with what was trained."""

from pathlib import Path
from typing import Annotated

import typer

from customdiff_core import concepts as concept_files
from customdiff_core.cli.bars import bars, console
from customdiff_core.cli.machine import (
    CategoryOption,
    DeltaArgument,
    DeviceOption,
    ProfileOption,
    TokenOption,
    WeightsOption,
    machine,
    say_places,
    stated_as,
    told,
)
from customdiff_core.config import SampleConfig


def generate(
    name: DeltaArgument,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; {} stands for the concept, {0}, {1}, ... for those of a merge.")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images a prompt, from seed 0 on.")] = 4,
    seed: Annotated[list[int] | None, typer.Option(help="The seeds themselves instead.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    guidance: Annotated[float | None, typer.Option(min=1, help="Classifier-free guidance.")] = None,
    sampler: Annotated[str | None, typer.Option(help="dpm-solver++ or ddim.")] = None,
    sample_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images denoised together.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or, on a GPU, fp16.")] = None,
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
        stated |= {"precision": precision}
        kept = {key: value for key, value in stated.items() if value is not None}
        config = SampleConfig.model_validate(
            here.profile.evaluate.sample.model_dump() | kept | {"negative_prompt": negative_prompt}
        )
        wanted = list(prompts or [])
        if prompts_file:
            wanted += concept_files.read_prompts(prompts_file.parent, prompts_file.name)
        with bars() as tell:
            delta = Pipeline(here.profile, here.store, here.runtime, tell).delta(
                name, stated=stated_as(token, category)
            )
            say_places(here, delta)
            texts = texts_for(delta, wanted or ["photo of a {}"], here.store)
            seeds = tuple(seed) if seed else tuple(range(images))
            files = draw(texts, seeds, delta, here.profile, config, here.store, here.runtime, tell("generate"), out)
        for file in files:
            console.print(str(file), markup=False)
