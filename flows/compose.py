"""Flow `compose`: one model that draws several concepts together; trains what is missing, merges in closed form.

prefect deployment run compose/cat-dog
"""

from collections.abc import Collection

from prefect import flow

from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.errors import ConfigError
from customdiff_core.finetuning import methods
from customdiff_core.stages import require_captions
from flows.customize import taught
from flows.inputs import called_in, known_to, taken_in
from flows.merge import merged
from flows.options import (
    AugmentOptions,
    EvaluateOptions,
    ImportOptions,
    MergeOptions,
    ModelOptions,
    RetrieveOptions,
    TrainOptions,
)
from flows.together import left_out, shown_together
from tasks.stores import store


@flow(name="compose", validate_parameters=True)
def compose(
    compose: list[str] = ["cat", "dog"],  # noqa: B006 - the run form shows it
    beside_joint: bool = False,
    train: TrainOptions = TrainOptions(),
    merge: MergeOptions = MergeOptions(),
    evaluate: EvaluateOptions = EvaluateOptions(),
    imported: ImportOptions = ImportOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Train what is missing, merge, evaluate, report.

    Args:
        compose: concepts of data/concepts, keys of deltas, merged ones too, and files of other programs.
        beside_joint: also train the concepts jointly, and show both.
        train: how a concept is trained that is not in the store yet with these settings.
        merge: strengths, and how the weights are held.
        evaluate: prompts with {0}, {1}, ... for the concepts; empty takes data/prompts/together-<number>.txt, or,
            where there is none, eight of the same kind.
        imported: what the files do not say of themselves.
        model: the base model.
    """
    profile, runtime = model.resolve(search=True, judge=True), model.runtime
    merging, strengths = merge.resolve(profile, len(compose))
    require_captions(profile, store())
    there = taken_in(compose, profile, imported.stated())
    wanted = {name: (concepts.load(name),) for name in compose if name not in there}
    check(train, wanted, there, beside_joint=beside_joint)
    known = tuple(wanted.get(name) or known_to(there[name]) for name in compose)
    shown = tuple(one for part in known for one in part if one.category)
    prompts = evaluate.together(len(shown)) if len(shown) > 1 else ()
    config, plans = evaluate.resolve(profile), (RetrieveOptions(), AugmentOptions(), runtime)

    parts = tuple(
        there[name] if name in there else taught(wanted[name], profile, "joint", train, *plans) for name in compose
    )
    delta = merged(parts, strengths, profile, merging, runtime, left_out(known, shown))
    if not prompts:
        return delta
    came = [(part, one) for part, taught in zip(parts, known, strict=True) for one in taught if one.category]
    words, subjects = {"merged": called_in(delta, came)}, {"merged": delta}
    if beside_joint:
        subjects["joint"] = taught(shown, profile, "joint", train, *plans)
    return shown_together(shown, subjects, prompts, profile, config, runtime, words)


def check(train: TrainOptions, wanted: Collection[str], there: Collection[str], *, beside_joint: bool) -> None:
    """Check, before the first training, that what will be trained can be merged, and trained jointly where that is asked.

    Raises:
        MergeError: for a method whose trainings cannot be merged; ConfigError for a joint training without pictures.
    """
    if wanted:
        methods.check_merges(train.method)
    if beside_joint and there:
        raise ConfigError(
            f"beside_joint: found {', '.join(there)}, which cannot be trained on here, need concepts of data/concepts alone; "
            "leave beside_joint off"
        )
