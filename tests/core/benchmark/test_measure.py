"""One cell, really: on the embedded model, in a few steps."""

from datetime import date

import numpy as np
import pytest
from PIL import Image

from customdiff_core import concepts, images, profiles, stages, tables
from customdiff_core import delta as deltas
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.costs import costs, involved, unet_numbers
from customdiff_core.benchmark.measure import measure, training
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.concepts import Concept
from customdiff_core.config import AugmentConfig, RetrieveConfig, Runtime, SampleConfig
from customdiff_core.errors import ConceptError, ConfigError, EvaluationError, MergeError
from customdiff_core.evaluation.dino import Dino
from customdiff_core.evaluation.identity import RATES
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.components import load_components
from customdiff_core.merging.join import join
from customdiff_core.profiles import Profile
from customdiff_core.retrieval.encoder import Encoder

PROTOCOL = Protocol(
    name="tiny",
    concepts=("cat",),
    share=0.004,
    prompts=2,
    prompts_together=2,
    seeds=2,
    kid_images=8,
    kid_subset_size=6,
    sample=SampleConfig(steps=2, guidance_scale=4),
)
RUNTIME = Runtime(device="cpu")
NIGHT = date(2026, 3, 1)


@pytest.fixture(scope="module")
def profile(chain) -> Profile:
    """The embedded one, with few views and regularization images."""
    return chain.profile.model_copy(
        update={"retrieve": RetrieveConfig(count=12, candidates=40), "augment": AugmentConfig(resolution=64, views=8)}
    )


@pytest.fixture(scope="module", autouse=True)
def small_index(chain):
    """The chain's small index stands for the large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("customdiff_core.pipeline.Pipeline.index", lambda self: chain.index)
        yield


def run(chain, profile: Profile, row: str, *concepts: str, seed: int = 1) -> Artifact:
    cell = Cell(row=row, concepts=concepts, seed=seed)
    return measure(cell, PROTOCOL, chain.index, profile, store=chain.store, runtime=RUNTIME)


def source(chain, cell: Artifact, name: str) -> Artifact:
    found = {one.pop("name"): one for one in tables.records(tables.read(chain.store, cell, "sources"))}
    return Artifact.model_validate(found[name])


def test_a_cell_has_its_scores_figures_and_costs(chain, profile: Profile) -> None:
    one = run(chain, profile, "custom-diffusion", "cat")
    measures = tables.read(chain.store, one, "measures").set_index("metric")
    assert {"text_alignment", "image_alignment_training", "image_alignment_held_out", "kid"} <= set(measures.index)
    scores = tables.read(chain.store, one, "scores")
    text = scores[scores["metric"] == "text_alignment"]
    assert measures.loc["text_alignment", "value"] == pytest.approx(text["value"].mean())
    assert len(text) == 4
    trained = chain.store.manifest(source(chain, one, "delta")).recipe
    assert trained.labels["concept"] == "cat (benchmark)"  # so that "cat" never means it
    assert (scores["metric"] == "kid").sum() == 8
    assert set(scores.loc[scores["metric"].isin(RATES), "value"]) <= {0.0, 1.0}
    for rate in RATES:  # whether an image is taken for the concept, or for a look-alike
        shares = scores.loc[scores["metric"] == rate, "value"]
        assert len(shares) == 4
        assert measures.loc[rate, "value"] == shares.mean()
        assert 0 <= measures.loc[rate, "ci_low"] <= shares.mean() <= measures.loc[rate, "ci_high"] <= 1
    spent = tables.read(chain.store, one, "costs").iloc[0]
    assert 0 < spent["trained_share"] < 0.06
    assert spent["memory"] > 1e8
    assert spent["bytes"] == (chain.store.path(source(chain, one, "delta")) / deltas.FILE).stat().st_size


def test_rows_draw_the_same_prompts_from_the_same_noise_and_share_what_they_can(chain, profile: Profile) -> None:
    first, second = (run(chain, profile, row, "cat") for row in ("custom-diffusion", "textual-inversion"))
    asked = [
        tables.read(chain.store, source(chain, one, "samples"), "samples")[["prompt", "seed"]]
        for one in (first, second)
    ]
    assert asked[0].equals(asked[1])
    assert source(chain, first, "validation") == source(chain, second, "validation")
    # Captions without V*: a method that trains no weights draws them as the base model does.
    plain = run(chain, profile, "base", "cat")
    assert source(chain, plain, "kid_samples") == source(chain, second, "kid_samples")
    assert source(chain, plain, "kid_samples") != source(chain, first, "kid_samples")
    kept = chain.store.scratch("delta", chain.store.manifest(source(chain, first, "delta")).recipe.base_key)
    assert not list(kept.rglob("*.safetensors"))  # nobody goes on from a night's seed


def test_other_seeds_are_other_trainings_of_equal_settings_and_the_base_model_has_none(chain, profile: Profile) -> None:
    keys = [
        [
            stages.cell(Cell(row=row, concepts=("cat",), seed=seed), PROTOCOL, chain.index, profile).key
            for seed in (1, 2)
        ]
        for row in ("custom-diffusion", "base")
    ]
    assert keys[0][0] != keys[0][1]
    assert keys[1][0] == keys[1][1]


def test_a_whole_training_is_no_point_of_a_curve_that_ends_at_as_many_steps(chain, profile: Profile) -> None:
    """Their trainings are equal, but KID is measured of one alone."""
    short, long = (PROTOCOL.model_copy(update={"share": share}) for share in (0.25, 0.5))
    whole, point = (
        Cell(row="custom-diffusion", concepts=("cat",), seed=1),
        Cell(row="custom-diffusion", concepts=("cat",), seed=1, share=0.5),
    )
    keys = [stages.cell(cell, one, chain.index, profile).key for cell, one in ((whole, short), (point, long))]
    assert keys[0] != keys[1]


def test_where_no_kid_is_measured_nothing_is_asked_of_the_category(
    chain, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    mug = chain.concept.model_copy(update={"category": "mug"})
    monkeypatch.setattr(stages, "load_concept", lambda name: mug)
    stages.cell(Cell(row="custom-diffusion", concepts=("cat",), seed=1, share=0.5), PROTOCOL, chain.index, profile)
    with pytest.raises(EvaluationError, match="found the category 'mug'"):
        stages.cell(Cell(row="custom-diffusion", concepts=("cat",), seed=1), PROTOCOL, chain.index, profile)


@pytest.mark.parametrize("name", [name for name, row in rows.ROWS.items() if row.way != "base"])
def test_every_row_of_the_table_that_learns_knows_its_words(chain, profile: Profile, name: str) -> None:
    row = rows.get(name)
    taught = ("cat", "dog") if row.together else ("cat",)
    one = run(chain, profile, name, *taught)
    made = source(chain, one, "delta")
    delta = deltas.load(chain.store.path(made) / deltas.FILE)
    tokens = {"cat": "<teal-cat>", "dog": "<purple-dog>"}
    new = row.method != "dreambooth"  # which uses a word that is there
    assert set(delta.tokens) == ({tokens[concept] for concept in taught} if new else set())
    assert bool(delta.names) == (row.method != "textual-inversion")
    assert ("image_alignment_2" in set(tables.read(chain.store, one, "scores")["metric"])) == row.together
    trained = [made, *(part for part in involved(made, chain.store) if part != made)]
    sets = [
        tables.read(chain.store, part, "examples")
        for kept in trained
        for part in chain.store.lineage(kept).values()
        if part.kind == "training_set"
    ]
    without = row.method == "textual-inversion" or not row.regularized
    assert all(("regularization" in set(examples["role"])) != without for examples in sets)


def pictures(concept: Concept, folder: str) -> list[Image.Image]:
    group = concept.images if folder == "images" else concept.held_out
    return [images.decode(concept.read(one, folder), one.name) for one in group]


def test_scores_are_of_the_plain_words_and_of_each_concepts_own_pictures(chain, profile: Profile) -> None:
    """V* is left out of the prompt; the first concept's pictures are the first figure's."""
    judge, dino = Encoder(profile.judge, RUNTIME.device), Dino(profile.dino, RUNTIME.device)
    for name, taught in (("custom-diffusion", ("cat",)), ("joint", ("cat", "dog"))):
        one = run(chain, profile, name, *taught)
        drawn = tables.read(chain.store, source(chain, one, "samples"), "samples")
        seen = judge.images([images.decode(data, "drawn") for data in drawn["image"]])
        plain = ["cat", "dog"][: len(taught)]
        asked = concepts.load("cat").prompts if len(taught) == 1 else concepts.prompts_together(2)
        words = [asked[number].replace("{}", "{0}").format(*plain) for number in drawn["prompt_id"]]
        scores = tables.read(chain.store, one, "scores")
        found = {metric: part["value"].to_numpy() for metric, part in scores.groupby("metric")}
        said = judge.texts(words)
        np.testing.assert_allclose(found["text_alignment"], 2.5 * np.clip((seen * said).sum(1), 0, None), atol=1e-5)
        cosines = {
            (encoder, folder): [
                by.images([images.decode(data, "drawn") for data in drawn["image"]]) @ by.images(part).T
                for part in (pictures(concepts.load(concept), folder) for concept in taught)
            ]
            for encoder, by in (("judge", judge), ("dino", dino))
            for folder in ("images", "held_out")
        }
        for place, cosine in enumerate(cosines["judge", "images"] if len(taught) > 1 else (), 1):
            np.testing.assert_allclose(found[f"image_alignment_{place}"], cosine.mean(1), atol=1e-5)
        wanted = {  # of several concepts the mean of what each would have
            "image_alignment_training": [one.mean(1) for one in cosines["judge", "images"]],
            "nearest_training": [one.max(1) for one in cosines["judge", "images"]],
            "image_alignment_held_out": [one.mean(1) for one in cosines["judge", "held_out"]],
            "dino_alignment_training": [one.mean(1) for one in cosines["dino", "images"]],
        }
        for metric, parts in wanted.items():
            np.testing.assert_allclose(found[metric], np.mean(parts, axis=0), atol=1e-4)


def test_the_ablation_changes_nothing_but_the_regularization(profile: Profile) -> None:
    plain, without = (
        training(Cell(row=row, concepts=("cat",), seed=3), PROTOCOL, profile, "cat")
        for row in ("custom-diffusion", "unregularized")
    )
    changed = {name for name, value in plain if getattr(without, name) != value}
    assert changed == {"prior_weight"}
    assert without.prior_weight == 0
    assert plain.steps == round(profile.finetune.steps * PROTOCOL.share)


def test_the_ablation_keeps_the_rates_that_a_rule_would_halve_without_regularization() -> None:
    """Where the profile states none: the paper's rule doubles them with regularization images."""
    sd14 = profiles.get("sd14")
    assert sd14.finetune.learning_rate is None
    plain, without = (
        methods.get(found.method).rates(found, regularized=found.prior_weight > 0)
        for found in (
            training(Cell(row=row, concepts=("cat",), seed=3), PROTOCOL, sd14, "cat")
            for row in ("custom-diffusion", "unregularized")
        )
    )
    assert without == plain == (4e-5, 4e-5)


def test_trainings_of_different_concepts_share_no_draw_and_parts_of_a_merge_are_trained_alone(profile: Profile) -> None:
    alone, merged = (Cell(row=row, concepts=("cat",), seed=3) for row in ("custom-diffusion", "merged"))
    seeds = {name: training(alone, PROTOCOL, profile, name).seed for name in ("cat", "dog")}
    assert seeds["cat"] != seeds["dog"]
    assert training(merged, PROTOCOL, profile, "dog") == training(alone, PROTOCOL, profile, "dog")
    assert training(alone.model_copy(update={"seed": 4}), PROTOCOL, profile, "cat").seed != seeds["cat"]


def test_costs_are_counted_with_everything_that_a_model_was_made_from(chain, profile: Profile) -> None:
    merged = source(chain, run(chain, profile, "merged", "cat", "dog"), "delta")
    parts = involved(merged, chain.store)
    assert len(parts) == 3
    seconds = sum(float(tables.read(chain.store, one, "history")["seconds"].sum()) for one in parts if one != merged)
    found = costs(merged, profile, chain.store, 2)
    assert found["seconds"] == pytest.approx(seconds + chain.store.manifest(merged).seconds)
    unet = load_components(profile.model).unet
    assert unet_numbers(profile) == sum(one.numel() for one in unet.parameters())
    trained = deltas.load(chain.store.path(merged) / deltas.FILE).weights
    assert found["trained_share"] == sum(one.numel() for one in trained.values()) / unet_numbers(profile)


def test_only_tokens_can_be_joined(chain, profile: Profile, store: Store) -> None:
    with pytest.raises(
        MergeError, match=r"join: found \d+ changed weights, need tokens of different names alone; merge"
    ):
        join((chain.delta,), profile, store=chain.store)
    one = source(chain, run(chain, profile, "textual-inversion", "cat"), "delta")
    with pytest.raises(MergeError, match="join: found <teal-cat> twice"):
        join((one, one), profile, store=chain.store)


def test_what_cannot_be_measured_says_why(chain, profile: Profile) -> None:
    with pytest.raises(ConceptError, match="concept: found 'catt'"):
        run(chain, profile, "custom-diffusion", "catt")
    wide = PROTOCOL.model_copy(update={"prompts": 99})
    with pytest.raises(ConfigError, match="prompts of cat: found 20, need the 99 of protocol tiny"):
        measure(
            Cell(row="base", concepts=("cat",), seed=1), wide, chain.index, profile, store=chain.store, runtime=RUNTIME
        )


def test_every_row_is_one_that_can_be_measured() -> None:
    assert {row.way for row in rows.ROWS.values()} == {"base", "alone", "apart", "joint", "sequential", "merge"}
    assert np.isfinite(
        [one for row in rows.ROWS.values() for found in row.published.values() for one in found.values()]
    ).all()
