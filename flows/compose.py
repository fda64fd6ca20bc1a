"""Flow `compose`: one model that draws several concepts together; trains what is missing, merges in closed form.

prefect deployment run compose/cat-dog
"""

from prefect import flow

from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from flows.customize import taught
from flows.inputs import taken_in
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
from flows.together import shown_together


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
        compose: concepts of data/concepts, and files of other programs.
        beside_joint: also train the concepts jointly, and show both.
        train: how a concept is trained that is not in the store yet with these settings.
        merge: strengths, and how the weights are held.
        evaluate: prompts with {0}, {1}, ... for the concepts; empty takes data/prompts/together-<number>.txt.
        imported: what the files do not say of themselves.
        model: the base model.
    """
    profile, runtime = model.resolve(), model.runtime
    files = taken_in(compose, profile, imported.stated())
    loaded = {name: concepts.load(name) for name in compose if name not in files}
    wanted = tuple(loaded.values())
    plans = (RetrieveOptions(), AugmentOptions(), runtime)

    parts = tuple(
        taught((loaded[name],), profile, "joint", train, *plans) if name in loaded else files[name] for name in compose
    )
    delta = merged(parts, merge, profile, runtime)
    if len(wanted) < 2:  # nothing to compare an imported concept's pictures with
        return delta
    subjects = {"merged": delta}
    if beside_joint:
        subjects["joint"] = taught(wanted, profile, "joint", train, *plans)
    return shown_together(wanted, subjects, profile, evaluate, runtime)
