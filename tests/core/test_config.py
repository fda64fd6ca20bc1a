import pytest
from pydantic import ValidationError

from customdiff_core import config
from customdiff_core.config import AugmentConfig, EvaluateConfig, FinetuneConfig, RetrieveConfig, SampleConfig

FINETUNE = {"steps": 10, "learning_rate": 1e-3, "modifier_learning_rate": 1e-3}


def test_a_misspelt_field_is_an_error():
    with pytest.raises(ValidationError, match="learning_rte"):
        FinetuneConfig(**FINETUNE, learning_rte=1)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        FinetuneConfig(**FINETUNE).steps = 20  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RetrieveConfig, {"count": 0}),
        (AugmentConfig, {"resolution": 8}),
        (AugmentConfig, {"resolution": 64, "flip_probability": 1.5}),
        (SampleConfig, {"sampler": "euler"}),
        (SampleConfig, {"eta": 2}),
        (FinetuneConfig, FINETUNE | {"precision": "int8"}),
        (FinetuneConfig, FINETUNE | {"learning_rate": 0}),
        (EvaluateConfig, {"seeds": ()}),
        (EvaluateConfig, {"confidence": 1}),
    ],
)
def test_a_value_out_of_range_is_named(kind: type[config.Frozen], wrong: dict):
    with pytest.raises(
        ValidationError, match=list(wrong)[-1] if kind is not FinetuneConfig else "precision|learning_rate"
    ):
        kind(**wrong)


def test_the_defaults_are_the_papers():
    assert RetrieveConfig().count == 200
    assert AugmentConfig(resolution=512).resize_probability == pytest.approx(2 / 3)
    trained = FinetuneConfig(**FINETUNE)
    assert (trained.instance_weight, trained.prior_weight) == (4, 1)
    assert (trained.weight_decay, trained.gradient_clip, trained.detach_bos) == (1e-2, 1.0, True)


def test_what_a_machine_decides_is_in_no_stage_config():
    stages = (RetrieveConfig, AugmentConfig, SampleConfig, FinetuneConfig, EvaluateConfig, config.IndexConfig)
    for kind in stages:
        assert not set(kind.model_fields) & set(config.Runtime.model_fields)
