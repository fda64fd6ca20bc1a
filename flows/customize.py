"""Flow `customize`: teach the base model one concept, and show what it learnt.

prefect deployment run customize/cat
"""

from prefect import flow

from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from flows.augment import augmented
from flows.evaluate import evaluated
from flows.finetune import finetuned
from flows.options import ConceptName, EvaluateOptions, ModelOptions, RetrieveOptions, TrainOptions
from flows.report import reported
from flows.retrieve import retrieved
from tasks.stores import store


@flow(name="customize", flow_run_name="customize-{concept}")
def customize(
    concept: ConceptName = "cat",
    train: TrainOptions = TrainOptions(),
    evaluate: EvaluateOptions = EvaluateOptions(),
    retrieve: RetrieveOptions = RetrieveOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Retrieve, augment, fine-tune, evaluate, report.

    Args:
        concept: a folder of data/concepts.
        train: the method's settings.
        evaluate: what is drawn and measured.
        retrieve: the regularization images.
        model: the base model.
    """
    profile, runtime = model.resolve(), model.runtime
    wanted = concepts.load(concept, evaluate.prompts)

    regularization = retrieved(wanted, profile, retrieve.resolve(profile), runtime)
    training_set = augmented(wanted, regularization, profile, profile.augment, runtime)
    delta = finetuned(wanted, training_set, profile, train.resolve(profile), runtime)
    metrics = evaluated(wanted, delta, profile, evaluate.resolve(profile), runtime)
    return reported(wanted, store().lineage(metrics), profile)
