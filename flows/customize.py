"""Flow `customize`: teach the base model a concept, or several together, and show what it learnt.

prefect deployment run customize/cat
"""

from typing import Literal

from prefect import flow

from customdiff_core import concepts, stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import Runtime
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile
from flows.augment import augmented
from flows.evaluate import evaluated
from flows.finetune import finetuned
from flows.options import AugmentOptions, ConceptName, EvaluateOptions, ModelOptions, RetrieveOptions, TrainOptions
from flows.report import reported
from flows.retrieve import retrieved
from flows.together import shown_together
from tasks.stores import store


def prepared(
    concept: Concept,
    profile: Profile,
    method: str,
    retrieve: RetrieveOptions,
    augment: AugmentOptions,
    runtime: Runtime,
) -> Artifact:
    """A concept's training set for a method."""
    regularization = retrieved(concept, profile, retrieve.resolve(profile, method), runtime)
    return augmented(concept, regularization, profile, augment.resolve(profile, method), runtime)


def regularized(train: TrainOptions, retrieve: RetrieveOptions, profile: Profile) -> RetrieveOptions:
    """The options of retrieval, without images where their loss has no weight."""
    if train.resolve(profile).prior_weight == 0:
        return retrieve.model_copy(update={"regularization": "none"})
    return retrieve


def taught(
    wanted: tuple[Concept, ...],
    profile: Profile,
    way: Literal["joint", "sequential"],
    train: TrainOptions,
    retrieve: RetrieveOptions,
    augment: AugmentOptions,
    runtime: Runtime,
) -> Artifact:
    """The delta of one concept, or of several trained together or one after the other."""
    config, retrieve = train.resolve(profile), regularized(train, retrieve, profile)
    if retrieve.resolve(profile, train.method).regularization == "none":
        config = config.model_copy(update={"prior_weight": 0.0})
    sets = tuple(prepared(one, profile, train.method, retrieve, augment, runtime) for one in wanted)
    if way == "joint":
        return finetuned(wanted, sets, profile, config, runtime)
    delta: Artifact | None = None
    for concept, training_set in zip(wanted, sets, strict=True):
        delta = finetuned((concept,), (training_set,), profile, config, runtime, delta)
    assert delta is not None
    return delta


@flow(name="customize", flow_run_name="customize-{concept}")
def customize(
    concept: ConceptName = "cat",
    also: list[ConceptName] = [],  # noqa: B006 - the run form shows it
    way: Literal["joint", "sequential"] = "joint",
    train: TrainOptions = TrainOptions(),
    evaluate: EvaluateOptions = EvaluateOptions(),
    retrieve: RetrieveOptions = RetrieveOptions(),
    augment: AugmentOptions = AugmentOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Retrieve, augment, fine-tune, evaluate, report.

    Args:
        concept: a folder of data/concepts.
        also: more concepts, taught to the same model.
        way: all in one training, each equally often (joint), or one after the other (sequential).
        train: the method and its settings.
        evaluate: what is drawn and measured.
        retrieve: the regularization images.
        augment: the views of the pictures.
        model: the base model.
    """
    named = model.named()
    images = regularized(train, retrieve, named).resolve(named, train.method).regularization
    profile, runtime = model.resolve(search=images == "retrieved", judge=True, measure=not also), model.runtime
    method = methods.get(train.method)
    names = (concept, *also)
    together = evaluate.together(len(names)) if also else ()
    wanted = method.words_of(concepts.load(name, None if also else evaluate.prompts) for name in names)
    config = evaluate.resolve(profile)
    if not also:
        stages.validation(wanted[0], profile, config.kid_images)  # what it is held against: if there is none, said now

    delta = taught(wanted, profile, way, train, retrieve, augment, runtime)
    if also:
        return shown_together(wanted, {way: delta}, together, profile, config, runtime)
    metrics = evaluated(wanted[0], delta, profile, config, runtime)
    return reported(wanted[0], store().lineage(metrics), profile)
