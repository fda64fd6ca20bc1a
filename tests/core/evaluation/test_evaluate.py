import numpy as np
import pandas as pd
import pytest

from customdiff_core import images, tables
from customdiff_core.artifacts import Artifact
from customdiff_core.config import EvaluateConfig, Runtime, SampleConfig
from customdiff_core.evaluation.dino import Dino
from customdiff_core.evaluation.evaluate import evaluate
from customdiff_core.evaluation.intervals import crossed_interval
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.kid import jackknife, kid, kid_interval
from customdiff_core.evaluation.validation import validation
from customdiff_core.retrieval.encoder import Encoder

PROMPTS = ("a crying {}", "a {} on a red background", "a {} and a rocket")
CONFIG = EvaluateConfig(
    seeds=(0, 1),
    sample=SampleConfig(steps=2, guidance_scale=4),
    kid_images=12,
    kid_subset_size=6,
    kid_subsets=20,
    confidence=0.9,
)
RUNTIME = Runtime(device="cpu")
VERDICTS = {"recognised", "recognised_by_colour"}  # 0 or 1 an image
ALIGNMENT = VERDICTS | {
    "dino_alignment_training",
    "text_alignment",
    "image_alignment_training",
    "image_alignment_held_out",
    "nearest_training",
}


def run(chain, prompts: tuple[str, ...] = PROMPTS, **options) -> Artifact:
    concept = chain.concept.model_copy(update={"prompts": prompts})
    return evaluate(concept, chain.delta, chain.profile, CONFIG, store=chain.store, runtime=RUNTIME, **options)


@pytest.fixture(scope="module")
def evaluated(chain) -> Artifact:
    return run(chain)


@pytest.fixture(scope="module")
def metrics(chain, evaluated: Artifact) -> pd.DataFrame:
    return tables.read(chain.store, evaluated, "metrics")


def sources(chain, made: Artifact) -> dict[str, Artifact]:
    rows = tables.read(chain.store, made, "sources").to_dict("records")
    return {row.pop("name"): Artifact(**row) for row in rows}


def vectors(chain, artifact: Artifact) -> np.ndarray:
    data = tables.read(chain.store, artifact, artifact.kind)["image"]
    return Encoder(chain.profile.judge, "cpu").images([images.open_trusted(one) for one in data])


def test_every_metric_has_a_row_for_both_models_and_their_difference(metrics: pd.DataFrame):
    found = {(row.metric, row.subject) for row in metrics.itertuples()}
    assert found >= {(metric, subject) for metric in ALIGNMENT for subject in ("base", "customized", "difference")}
    assert found >= {("kid", "base"), ("kid", "customized"), ("kid", "difference")}
    assert not metrics.duplicated(["metric", "subject"]).any()
    assert set(metrics["metric"]) == ALIGNMENT | {"kid"}


def test_method_and_seed_are_those_of_the_training_that_was_evaluated(chain, metrics: pd.DataFrame):
    assert set(metrics["method"]) == {chain.finetune_config.method}
    assert set(metrics["seed"]) == {chain.finetune_config.seed}


def test_every_value_lies_in_its_interval(metrics: pd.DataFrame):
    assert metrics[["value", "ci_low", "ci_high"]].notna().all(axis=None)
    assert (metrics["ci_low"] <= metrics["value"]).all()
    assert (metrics["value"] <= metrics["ci_high"]).all()
    assert (metrics["ci_low"] < metrics["ci_high"]).all()
    rates = metrics[metrics["metric"].isin(VERDICTS) & (metrics["subject"] != "difference")]
    assert ((rates["ci_low"] >= 0) & (rates["ci_high"] <= 1)).all()


def test_rows_say_how_many_images_and_whose_eyes(metrics: pd.DataFrame):
    assert set(metrics.loc[metrics["metric"] != "kid", "n"]) == {6}
    assert set(metrics.loc[metrics["metric"] == "kid", "n"]) == {12}
    by_dino = metrics["metric"].str.startswith("dino")
    assert set(metrics.loc[by_dino, "extractor"]) == {"openmoji-dino"}
    by_colour = metrics["metric"] == "recognised_by_colour"
    assert set(metrics.loc[by_colour, "extractor"]) == {"colours"}
    assert set(metrics.loc[~by_dino & ~by_colour, "extractor"]) == {"openmoji-judge"}


def test_the_difference_is_that_of_the_means(metrics: pd.DataFrame):
    values = metrics.pivot(index="metric", columns="subject", values="value").loc[sorted(ALIGNMENT)]
    np.testing.assert_allclose(values["difference"], values["customized"] - values["base"], atol=1e-12)


def test_an_alignments_interval_is_the_images_own_and_that_of_the_difference_is_paired(
    chain, metrics, evaluated: Artifact
):
    """Both models drew from the same noise: the interval is that of the differences image by image, at the confidence asked."""
    found = metrics.set_index(["metric", "subject"])[["ci_low", "ci_high"]]
    scores = tables.read(chain.store, evaluated, "scores")
    for metric in ALIGNMENT - VERDICTS:
        grids = {
            subject: part.pivot(index="prompt_id", columns="seed", values=metric).to_numpy()
            for subject, part in scores.groupby("subject")
        }
        grids["difference"] = grids["customized"] - grids["base"]
        for subject, grid in grids.items():
            assert found.loc[(metric, subject)].tolist() == pytest.approx(crossed_interval(grid[None], 0.9), abs=1e-9)


def test_kids_difference_is_what_customizing_costs_and_its_interval_is_paired(chain, metrics, evaluated: Artifact):
    sets, table = sources(chain, evaluated), metrics.set_index(["metric", "subject"])
    real = vectors(chain, sets["validation"])
    base, customized = (vectors(chain, sets[f"kid_{subject}"]) for subject in ("base", "customized"))
    values = {"base": kid(base, real, 6, 20), "customized": kid(customized, real, 6, 20)}
    values["difference"] = values["customized"] - values["base"]
    assert abs(values["difference"]) > 1e-3
    scores = {"base": jackknife(base, real), "customized": jackknife(customized, real)}
    scores["difference"] = scores["customized"] - scores["base"]
    for subject, value in values.items():
        row = table.loc[("kid", subject)]
        ends = kid_interval(value, scores[subject], 0.9)
        assert [row["value"], row["ci_low"], row["ci_high"]] == pytest.approx([value, *ends], rel=1e-3, abs=1e-6)


def test_dinos_alignment_is_by_dino_and_with_the_training_pictures(chain, metrics, evaluated: Artifact):
    dino, table = Dino(chain.profile.dino, "cpu"), metrics.set_index(["metric", "subject"])["value"]
    seen = dino.images([images.decode(chain.concept.read(one), one.name) for one in chain.concept.images])
    for subject in ("base", "customized"):
        samples = sources(chain, evaluated)[subject]
        drawn = dino.images([images.open_trusted(one) for one in tables.read(chain.store, samples, "samples")["image"]])
        assert table["dino_alignment_training", subject] == pytest.approx((drawn @ seen.T).mean(), abs=1e-4)


def test_alignment_agrees_with_a_few_lines_of_numpy(chain, evaluated: Artifact, metrics: pd.DataFrame):
    table = metrics.set_index(["metric", "subject"])["value"]
    encoder = Encoder(chain.profile.judge, "cpu")
    words = encoder.texts([prompt.replace("{}", "cat") for prompt in PROMPTS])  # V* removed for both
    groups = {
        "image_alignment_training": (chain.concept.images, "images"),
        "image_alignment_held_out": (chain.concept.held_out, "held_out"),
    }
    for subject in ("base", "customized"):
        drawn = vectors(chain, sources(chain, evaluated)[subject])
        cosine = (drawn * np.repeat(words, 2, axis=0)).sum(axis=1)
        assert table["text_alignment", subject] == pytest.approx(np.mean(2.5 * np.maximum(cosine, 0)), abs=1e-4)
        for metric, (pictures, folder) in groups.items():
            seen = encoder.images([images.decode(chain.concept.read(one, folder), one.name) for one in pictures])
            assert table[metric, subject] == pytest.approx((drawn @ seen.T).mean(), abs=1e-4)
            if folder == "images":
                assert table["nearest_training", subject] == pytest.approx(
                    (drawn @ seen.T).max(axis=1).mean(), abs=1e-4
                )


def test_kid_is_of_the_categorys_captions_without_the_token(chain, evaluated: Artifact, metrics: pd.DataFrame):
    sets = sources(chain, evaluated)
    captions = tables.read(chain.store, sets["validation"], "validation")["caption"].tolist()
    real = vectors(chain, sets["validation"])
    for subject in ("base", "customized"):
        samples = sets[f"kid_{subject}"]
        prompts = tables.read(chain.store, samples, "samples")["prompt"].tolist()
        assert prompts == captions
        assert not any(chain.concept.modifier_token in prompt for prompt in prompts)
        value = metrics.set_index(["metric", "subject"])["value"]["kid", subject]
        assert value == pytest.approx(kid(vectors(chain, samples), real, 6, 20), rel=1e-3)
    assert sets["validation"] == validation(chain.concept, chain.profile, 12, store=chain.store)


def test_both_models_are_asked_alike_but_for_the_token(chain, evaluated: Artifact):
    sets = sources(chain, evaluated)
    asked = {name: tables.read(chain.store, sets[name], "samples") for name in ("base", "customized")}
    assert asked["base"]["prompt"].unique().tolist() == [prompt.replace("{}", "cat") for prompt in PROMPTS]
    assert asked["customized"]["prompt"].unique().tolist() == [
        prompt.replace("{}", "<teal-cat> cat") for prompt in PROMPTS
    ]
    assert asked["base"]["seed"].tolist() == asked["customized"]["seed"].tolist()


def test_scores_have_a_row_an_image(chain, evaluated: Artifact, metrics: pd.DataFrame):
    scores = tables.read(chain.store, evaluated, "scores")
    assert len(scores) == 2 * 6
    assert set(scores.columns) == {"prompt_id", "seed", "subject"} | ALIGNMENT
    mean = scores[scores["subject"] == "customized"]["text_alignment"].mean()
    assert metrics.set_index(["metric", "subject"])["value"]["text_alignment", "customized"] == pytest.approx(mean)


def test_a_changed_prompt_draws_its_own_images_again_and_nothing_else(chain, evaluated: Artifact):
    def made(kind: str) -> dict[str, object]:
        return {one.artifact.key: one.created for one in chain.store.manifests(kind)}

    before = {kind: made(kind) for kind in ("samples", "validation", "delta", "training_set")}
    sets = sources(chain, evaluated)
    other = run(chain, (*PROMPTS[:2], "a sleeping {}"))
    assert other.key != evaluated.key
    after = sources(chain, other)
    for name in ("kid_base", "kid_customized", "validation"):
        assert after[name] == sets[name]
    assert after["customized"] != sets["customized"]
    new = {kind: made(kind) for kind in before}
    assert all(new[kind][key] == created for kind in before for key, created in before[kind].items())
    assert len(new["samples"]) == len(before["samples"]) + 2
    assert {kind: len(keys) for kind, keys in new.items() if kind != "samples"} == {
        kind: len(keys) for kind, keys in before.items() if kind != "samples"
    }


def test_asked_again_nothing_is_drawn(chain, evaluated: Artifact):
    def progress(done: int, total: int, note: str = "") -> None:
        raise AssertionError("drawn again")

    assert run(chain, progress=progress) == evaluated


def test_progress_counts_all_four_sets(chain):
    said: list[tuple[int, int]] = []
    run(chain, ("a happy {}",), progress=lambda done, total, note="": said.append((done, total)))
    assert {total for _, total in said} == {2 + 2 + 12 + 12}
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1] == (28, 28)


def test_a_concept_without_held_out_pictures_has_no_such_metric(chain):
    concept = chain.concept.model_copy(update={"held_out": (), "prompts": PROMPTS})
    made = evaluate(concept, chain.delta, chain.profile, CONFIG, store=chain.store, runtime=RUNTIME)
    assert set(tables.read(chain.store, made, "metrics")["metric"]) == ALIGNMENT - {"image_alignment_held_out"} | {
        "kid"
    }


def test_the_judge_looks_at_a_set_once(chain, monkeypatch: pytest.MonkeyPatch):
    data = [chain.concept.read(picture) for picture in chain.concept.images]
    first = Judge(chain.profile, chain.store, RUNTIME).images(data)

    def fail(*args: object) -> None:
        raise AssertionError("the encoder was loaded again")

    monkeypatch.setattr("customdiff_core.evaluation.judge.Encoder", fail)
    again = Judge(chain.profile, chain.store, RUNTIME).images(data)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
