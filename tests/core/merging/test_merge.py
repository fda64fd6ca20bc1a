import dataclasses
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from customdiff_core import delta as deltas
from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import MergeConfig, Runtime, SampleConfig
from customdiff_core.delta import Delta
from customdiff_core.errors import ConfigError, DeltaError, MergeError
from customdiff_core.evaluation.report_together import merge_rows
from customdiff_core.finetuning.components import load_encoders, load_unet_weights
from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION, KEYS_AND_VALUES
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.merging import captions as captions_module
from customdiff_core.merging.account import remarks, renamed, tokens_now
from customdiff_core.merging.captions import factorization, read_captions
from customdiff_core.merging.closed_form import Factorization
from customdiff_core.merging.merge import check_mergeable, merge, merge_targets
from customdiff_core.merging.text_features import (
    Targets,
    concept_targets,
    regularization_features,
    token_features,
)
from customdiff_core.merging.tokens import union_of_tokens
from customdiff_core.recipes import Recipe
from customdiff_core.sampling import draw_images, load_model

CONFIG = MergeConfig(captions=300)
TOKENS = {"<teal-cat>", "<purple-dog>"}


@pytest.fixture(scope="module")
def base(chain) -> dict[str, torch.Tensor]:
    return load_unet_weights(chain.profile.model, CROSS_ATTENTION)


@pytest.fixture(scope="module")
def factors(chain) -> Factorization:
    return factorization(chain.index, chain.profile, CONFIG.captions, store=chain.store)[1]


@pytest.fixture(scope="module")
def merged(chain, dog_delta) -> Artifact:
    return run(chain, (chain.delta, dog_delta))


def run(chain, parts: tuple[Artifact, ...], strengths: tuple[float, ...] | None = None, **update) -> Artifact:
    config = CONFIG.model_copy(update=update)
    return merge(parts, strengths or (1.0,) * len(parts), chain.index, chain.profile, config, store=chain.store)


def loaded(chain, artifact: Artifact) -> Delta:
    return deltas.load(chain.store.path(artifact) / deltas.FILE)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def assert_own_rows(chain, made: Delta, parents: dict[str, tuple[Artifact, str]]) -> None:
    """Each token has the row of its own parent, given with the name that it has there."""
    assert made.tokens.keys() == parents.keys()
    for token, (parent, name) in parents.items():
        own = loaded(chain, parent).tokens[name]["text_encoder"]
        assert torch.equal(made.tokens[token]["text_encoder"], own)


def test_every_constraint_is_met_in_float64_and_after_the_cast(chain, merged: Artifact):
    report = tables.read(chain.store, merged, "merge")
    assert len(report) == merged.rows == 2 * len(loaded(chain, merged).weights)
    assert (report["constraint_error"] < 1e-8).all()
    assert (report["constraint_error_cast"] < 1e-5).all()
    assert (report["condition_regularization"] > 1).all()
    assert (report["regularization_rms"] > 0).all()
    assert set(report["concept"]) == {"cat", "dog"}


def test_each_concepts_words_read_as_in_its_own_model(chain, dog_delta, merged: Artifact, base):
    """Recomputed from the files alone: the merged layer's outputs on the words that no other concept shares."""
    together = loaded(chain, merged)
    for part in (chain.delta, dog_delta):
        alone = loaded(chain, part)
        (target,) = concept_targets(chain.profile.model, alone, 1.0, ("{}",))
        for name, weight in together.weights.items():
            ours, theirs = target.features @ weight.double().T, target.features @ alone.weights[name].double().T
            plain = target.features @ base[name].double().T
            assert relative(ours, theirs) < 1e-5
            assert relative(plain, theirs) > 1e-3


def test_words_that_both_share_are_no_constraints_and_it_is_said(chain, merged: Artifact):
    rows = tables.read(chain.store, merged, "rows")
    assert set(rows.loc[rows["state"] == "shared", "token"]) == {"photo", "of", "a"}
    assert rows.loc[rows["token"].isin(["cat", "dog", "<|endoftext|>"]), "state"].eq("constraint").all()
    assert len(rows) == 2 * 9
    assert not rows["token"].eq("<|startoftext|>").any()


def test_the_order_of_the_concepts_changes_no_bit(chain, dog_delta, merged: Artifact, store: Store, base, factors):
    assert run(chain, (dog_delta, chain.delta)) == merged
    one, other = (
        [t for part in order for t in concept_targets(chain.profile.model, loaded(chain, part), 1.0, CONFIG.prompts)]
        for order in ((chain.delta, dog_delta), (dog_delta, chain.delta))
    )
    first, second = (merge_targets(targets, base, factors, CONFIG)[0] for targets in (one, other))
    assert all(torch.equal(second.weights[name], tensor) for name, tensor in first.weights.items())
    assert first.lineage == second.lineage


def test_the_result_is_a_delta_that_loads_and_draws_both(chain, dog_delta, merged: Artifact):
    delta = loaded(chain, merged)
    assert set(delta.tokens) == TOKENS
    assert delta.lineage.method == "merge"
    assert {one.name for one in delta.lineage.concepts} == {"cat", "dog"}
    assert all(name.endswith(KEYS_AND_VALUES) for name in delta.weights)
    assert_own_rows(
        chain, delta, {"<teal-cat>": (chain.delta, "<teal-cat>"), "<purple-dog>": (dog_delta, "<purple-dog>")}
    )
    components, vae = load_model(chain.profile, merged, chain.store, Runtime(device="cpu"))
    drawn = draw_images(components, vae, ["a <teal-cat> cat and a <purple-dog> dog"], (0,), SampleConfig(steps=2))
    assert drawn[0].size == (64, 64)


def test_thin_factors_are_the_same_model_in_less(chain, dog_delta, merged: Artifact, base):
    thin = run(chain, (chain.delta, dog_delta), factored=True)
    delta, whole = loaded(chain, thin), loaded(chain, merged)
    assert not delta.weights
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(delta.whole(name, base[name]), tensor, atol=1e-4, rtol=1e-4)
    assert {left.shape[1] for left, _ in delta.factors.values()} == {12}
    assert (tables.read(chain.store, thin, "merge")["constraint_error_cast"] < 1e-5).all()
    sizes = [(chain.store.path(one) / deltas.FILE).stat().st_size for one in (thin, merged)]
    assert sizes[0] < sizes[1] / 3


def test_a_merge_of_thin_factors_is_that_of_whole_weights(chain, dog_delta, base, factors):
    """The factors are never multiplied out: their product is taken on text features."""
    whole = [loaded(chain, part) for part in (chain.delta, dog_delta)]
    thin: list[Delta] = []
    for one in whole:
        changed: dict[str, deltas.Factors] = {}
        for name, tensor in one.weights.items():
            u, s, v = torch.linalg.svd(tensor.double() - base[name].double(), full_matrices=False)
            changed[name] = ((u * s).float(), v.float())
        thin.append(dataclasses.replace(one, weights={}, factors=changed))
    results: list[Delta] = []
    for parts in (whole, thin):
        targets = [t for one in parts for t in concept_targets(chain.profile.model, one, 1.0, CONFIG.prompts)]
        results.append(merge_targets(targets, base, factors, CONFIG)[0])
    for name, tensor in results[0].weights.items():
        torch.testing.assert_close(results[1].weights[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_strength_moves_a_concepts_target_and_no_others(chain, dog_delta, base, strength: float):
    delta = loaded(chain, run(chain, (chain.delta, dog_delta), (strength, 1.0)))
    for part, factor in ((chain.delta, strength), (dog_delta, 1.0)):
        alone = loaded(chain, part)
        (target,) = concept_targets(chain.profile.model, alone, 1.0, ("{}",))
        for name, weight in delta.weights.items():
            plain = target.features @ base[name].double().T
            wanted = plain + factor * (target.features @ alone.weights[name].double().T - plain)
            assert relative(target.features @ weight.double().T, wanted) < 1e-5


def test_a_ridge_holds_the_weights_where_the_captions_say_little(chain, dog_delta, base, factors):
    """Ridge s² ||W - W0||² beside the captions' objective, s² the mean square of their singular values: the paper's formula."""
    parts = [loaded(chain, part) for part in (chain.delta, dog_delta)]
    targets = [t for one in parts for t in concept_targets(chain.profile.model, one, 1.0, ("{}",))]
    plain, held = (
        merge_targets(targets, base, factors, CONFIG.model_copy(update={"ridge": ridge}))[0] for ridge in (0.0, 0.5)
    )
    c, gram = torch.cat([one.features for one in targets]), factors.r.T @ factors.r
    gram = gram + 0.5 * torch.linalg.svdvals(factors.r).square().mean() * torch.eye(len(gram), dtype=gram.dtype)
    d = torch.linalg.solve(gram, c.T).T
    for name, weight in held.weights.items():
        w0 = base[name].double()
        v = torch.cat([one.features @ one.delta.weights[name].double().T for one in targets])
        wanted = torch.linalg.solve(d @ c.T, v - c @ w0.T).T @ d
        assert relative(weight.double() - w0, wanted) < 1e-3
        assert (weight - base[name]).norm() < 0.9 * (plain.weights[name] - base[name]).norm()


def test_words_that_are_said_twice_constrain_once(chain, dog_delta, base, factors):
    parts = [loaded(chain, part) for part in (chain.delta, dog_delta)]
    made: dict[int, Delta] = {}
    for times in (1, 2):
        prompts = ("{}",) * times
        targets = [t for one in parts for t in concept_targets(chain.profile.model, one, 1.0, prompts)]
        made[times], _, rows = merge_targets(targets, base, factors, CONFIG)
        states = pd.DataFrame(rows).groupby(["concept", "token"])["state"].apply(sorted)
        assert len(states) == 2 * 3
        assert all(found == ["constraint", "dependent"][:times] for found in states)
    for name, weight in made[1].weights.items():
        torch.testing.assert_close(made[2].weights[name], weight, atol=1e-5, rtol=1e-4)


def test_a_merge_says_whether_the_base_model_of_a_part_is_only_stated(chain, dog_delta, merged: Artifact):
    dog = loaded(chain, dog_delta)
    stated = _stored(chain, dataclasses.replace(dog, lineage=dog.lineage.model_copy(update={"base_stated": True})))
    assert not loaded(chain, merged).lineage.base_stated
    assert loaded(chain, run(chain, (chain.delta, stated))).lineage.base_stated


def test_a_merge_is_merged_again(chain, dog_delta, merged: Artifact):
    """cat+dog with a third: what the merged model says of both is kept, but for what the third, a dog too, shares with it."""
    other = _renamed(chain, dog_delta, "<third>", scale=1.3)
    again = run(chain, (merged, other))
    delta = loaded(chain, again)
    assert set(delta.tokens) == TOKENS | {"<third>"}
    together, rows = loaded(chain, merged), tables.read(chain.store, again, "rows")
    targets = concept_targets(chain.profile.model, together, 1.0, ("{}",))
    assert {one.concept.modifier_token for one in targets} == TOKENS
    # Targets come in an order that follows from the weights, which another processor trains a little differently.
    for target in targets:
        own = rows[rows["prompt"] == f"{target.concept.modifier_token} {target.concept.category}"]
        kept = target.features[(own["state"] == "constraint").to_numpy()]
        assert own.iloc[0]["state"] == "constraint"  # V* itself; a twin dog may share the words after it
        for name, weight in delta.weights.items():
            assert relative(kept @ weight.double().T, kept @ together.weights[name].double().T) < 1e-5


def test_two_concepts_with_one_token_are_renamed_and_it_is_said(chain, dog_delta, caplog: pytest.LogCaptureFixture):
    clash = _renamed(chain, dog_delta, "<teal-cat>", scale=1.0)
    with caplog.at_level(logging.WARNING):
        made = run(chain, (chain.delta, clash))
    delta, words = loaded(chain, made), tables.read(chain.store, made, "rows")
    assert tokens_now(words) == {
        (chain.delta.sha256, "<teal-cat>"): "<teal-cat>",  # trained here: it keeps its name
        (clash.sha256, "<teal-cat>"): "<teal-cat-2>",
    }
    assert merge_rows({"merged": made}, chain.store)[0]["remarks"] == renamed(words)
    assert renamed(words) == ["<teal-cat> of teal-cat is <teal-cat-2> now: another concept is <teal-cat>"]
    assert set(delta.tokens) == {"<teal-cat>", "<teal-cat-2>"}
    assert {one.modifier_token for one in delta.lineage.concepts} == {"<teal-cat>", "<teal-cat-2>"}
    assert (
        "modifier token: found <teal-cat> in two of the merged concepts, need one each; that of teal-cat is"
        in caplog.text
    )
    assert_own_rows(
        chain, delta, {"<teal-cat>": (chain.delta, "<teal-cat>"), "<teal-cat-2>": (dog_delta, "<purple-dog>")}
    )


def test_what_was_trained_here_keeps_its_token_and_a_new_one_is_nobody_elses():
    def target(name: str, token: str, row: int, initializer: str = "") -> Targets:
        taught = Taught(name=name, modifier_token=token, initializer_token=initializer)
        own = Delta({}, {token: {"text_encoder": torch.tensor([row])}}, Lineage())
        return Targets(taught, own, 1.0, torch.zeros(1, 1), ())

    clash = [target("a", "<x>", 0), target("b", "<x-2>", 1), target("cat", "<x>", 2, "ktn"), target("c", "<x>", 3)]
    tokens, concepts = union_of_tokens(clash)
    assert [one.modifier_token for one in concepts] == ["<x-3>", "<x-2>", "<x>", "<x-4>"]
    assert list(tokens) == ["<x-3>", "<x-2>", "<x>", "<x-4>"]
    assert [rows["text_encoder"].item() for rows in tokens.values()] == [0, 1, 2, 3]


def test_near_copies_leave_the_constraints_and_it_is_said(chain, dog_delta):
    """A token almost like another's: its own word is shared, and no weight has to be torn between two answers."""
    near = _renamed(chain, chain.delta, "<near-cat>", scale=1 + 1e-6)
    with pytest.raises(MergeError) as error:
        run(chain, (chain.delta, near))
    assert "found no word that the other concepts do not read alike, need concepts that differ; merge each once" in str(
        error.value
    )


def test_queries_and_outputs_are_averaged_where_all_have_them(chain, dog_delta, base, factors):
    parts = [loaded(chain, part) for part in (chain.delta, dog_delta)]
    names = [name for name in base if name.endswith("attn2.to_q.weight")]
    moved = [
        dataclasses.replace(part, weights={**part.weights, **{name: base[name] + amount for name in some}})
        for part, amount, some in zip(parts, (0.2, 0.4), (names, names[1:]), strict=True)
    ]
    targets = [t for part in moved for t in concept_targets(chain.profile.model, part, 1.0, CONFIG.prompts)]
    made = merge_targets(targets, base, factors, CONFIG)[0]
    assert {name for name in made.weights if name.endswith("to_q.weight")} == set(names[1:])
    for name in names[1:]:
        torch.testing.assert_close(made.weights[name], base[name] + 0.3, atol=1e-5, rtol=1e-5)


def test_changes_that_not_all_have_are_dropped_and_it_is_said(chain, dog_delta, base, caplog: pytest.LogCaptureFixture):
    whole, names = loaded(chain, chain.delta), [name for name in base if name.endswith("attn2.to_q.weight")][:3]
    faces = dataclasses.replace(whole, weights={**whole.weights, **{name: base[name] + 0.2 for name in names}})
    with caplog.at_level(logging.WARNING):
        made = run(chain, (_stored(chain, faces), dog_delta))
    lost = tables.read(chain.store, made, "dropped")
    assert (lost["layer"].tolist(), set(lost["concept"])) == (sorted(names), {"cat"})
    said = "3 changes of queries and outputs by cat are dropped: not every concept has changes there to average with"
    assert remarks(made, chain.store) == [said]
    assert f"merge: {said}" in caplog.text
    assert not loaded(chain, made).names & set(names)


def test_a_token_alone_is_a_concept_whose_answers_are_the_base_models(chain, dog_delta, base, factors):
    inversion = dataclasses.replace(loaded(chain, chain.delta), weights={})
    parts = (inversion, loaded(chain, dog_delta))
    targets = [t for one in parts for t in concept_targets(chain.profile.model, one, 1.0, ("{}",))]
    made = merge_targets(targets, base, factors, CONFIG)[0]
    (target,) = concept_targets(chain.profile.model, inversion, 1.0, ("{}",))
    for name, weight in made.weights.items():
        assert relative(target.features @ weight.double().T, target.features @ base[name].double().T) < 1e-5


# What cannot be merged


def test_deltas_of_two_base_models_are_refused_with_both_digests(chain, dog_delta):
    other = _stored(chain, dataclasses.replace(loaded(chain, dog_delta), lineage=Lineage(base_digest="0" * 64)))
    with pytest.raises(DeltaError) as error:
        run(chain, (chain.delta, other))
    digest = loaded(chain, chain.delta).lineage.base_digest
    assert str(error.value) == (
        f"delta: found one trained on base model {'0' * 12}, need {digest[:12]}; load it on its own base"
    )


def test_a_layer_too_few_and_one_too_many_are_named(chain, base):
    delta = loaded(chain, chain.delta)
    name = sorted(delta.weights)[3]
    fewer = dataclasses.replace(delta, weights={key: value for key, value in delta.weights.items() if key != name})
    with pytest.raises(MergeError) as error:
        check_mergeable(fewer, base)
    assert str(error.value) == (
        f"cat: found {len(fewer.weights)} of {len(delta.weights)} key and value layers ({name} is missing), need all of them; "
        "export it again"
    )
    more = dataclasses.replace(delta, weights={**delta.weights, "conv_in.weight": torch.zeros(1)})
    with pytest.raises(MergeError, match=r"cat: found a change of conv_in.weight \(method custom-diffusion\), need"):
        check_mergeable(more, base)
    wrong = dataclasses.replace(delta, weights={**delta.weights, name: torch.zeros(2, 768)})
    with pytest.raises(DeltaError, match=r"\(2, 768\), which does not fit the base model's UNet, need \(\d+, 192\)"):
        check_mergeable(wrong, base)


def test_a_target_prompt_must_have_a_place_for_the_concept(chain, dog_delta):
    with pytest.raises(ConfigError, match=r"merge.prompts: found 0 placeholders in 'a cat', need exactly one \{\}"):
        run(chain, (chain.delta, dog_delta), prompts=("{}", "a cat"))


def test_more_target_prompts_are_more_constraints(chain, dog_delta, merged: Artifact):
    more = run(chain, (chain.delta, dog_delta), prompts=("{}", "photo of a {}", "a {} on a blue background"))
    count = {
        name: int(tables.read(chain.store, one, "merge")["constraints"].max())
        for name, one in (("a", merged), ("b", more))
    }
    assert count["b"] > count["a"]
    assert (tables.read(chain.store, more, "merge")["constraint_error"] < 1e-8).all()


def test_one_concept_is_no_merge(chain):
    with pytest.raises(MergeError, match="merge: found 1 concept, need at least 2; name another"):
        run(chain, (chain.delta,))


def test_a_delta_that_names_no_concept_is_refused(chain):
    nameless = dataclasses.replace(loaded(chain, chain.delta), lineage=Lineage())
    with pytest.raises(MergeError) as caught:
        concept_targets(chain.profile.model, nameless, 1.0, ("{}",))
    assert str(caught.value) == (
        "delta: found no concept named in it, need its token, or the rare word it was trained with, and its category; state both "
        "when importing (--token, --category)"
    )


# Captions


def test_features_start_after_the_first_position_and_end_with_the_text(chain):
    encoders = load_encoders(chain.profile.model)
    features, places = token_features(encoders, ["a cat", "photo of a dog on a red background"])
    assert [token for prompt, token in places if prompt == "a cat"] == ["a", "cat", "<|endoftext|>"]
    assert features.shape == (3 + 9, 192)
    assert features.dtype == torch.float64
    alone = token_features(encoders, ["a cat"])[0]
    torch.testing.assert_close(features[:3], alone, atol=1e-5, rtol=1e-5)


def test_the_captions_are_encoded_and_factorized_once_for_a_base_model(chain, monkeypatch: pytest.MonkeyPatch):
    artifact, found = factorization(chain.index, chain.profile, 300, store=chain.store)
    monkeypatch.setattr(captions_module, "factorize", lambda c_reg: pytest.fail("factorized again"))
    again, same = factorization(chain.index, chain.profile, 300, store=chain.store)
    assert again == artifact
    assert torch.equal(found.r, same.r)
    assert found.rows == artifact.rows > 1000


def test_captions_are_different_and_spread_over_the_index(chain, tmp_path: Path):
    found = read_captions(chain.store.path(chain.index), 300)
    assert len(found) == len(set(found)) == 300
    parts = sorted((chain.store.path(chain.index) / "metadata").glob("*.parquet"))
    first_of: dict[str, int] = {}
    for place, caption in enumerate(pd.concat(map(pd.read_parquet, parts))["caption"]):
        first_of.setdefault(caption, place)
    places = [first_of[caption] for caption in found]
    assert places == sorted(places)
    assert np.histogram(places, bins=4, range=(0, 1200))[0].min() > 40  # of 75 each, less those that came before
    (tmp_path / "metadata").mkdir()
    empty = pd.DataFrame(
        {"TEXT": ["", "  ", None], "url": ["https://a.example/1.jpg"] * 3}
    )  # as LAION calls its captions
    empty.to_parquet(tmp_path / "metadata" / "metadata_0000.parquet")
    with pytest.raises(
        MergeError, match=r"regularization captions: found none in .*, need about 300; take another index"
    ):
        read_captions(tmp_path, 300)


def test_captions_without_a_word_are_refused(chain):
    with pytest.raises(MergeError, match="regularization captions: found 2, none with a word in it"):
        regularization_features(load_encoders(chain.profile.model), ["", " "])


def test_too_few_captions_are_refused(chain):
    with pytest.raises(MergeError, match=r"found rank \d+ from \d+ token features, need 192; raise merge.captions"):
        factorization(chain.index, chain.profile, 3, store=chain.store)


def _renamed(chain, part: Artifact, token: str, scale: float) -> Artifact:
    """Another delta: the same weights, with its token under another name and a little longer."""
    delta = loaded(chain, part)
    (rows,) = delta.tokens.values()
    taught = Taught(name=token.strip("<>"), category=delta.lineage.concepts[0].category, modifier_token=token)
    lineage = delta.lineage.model_copy(update={"concepts": (taught,)})
    tokens = {token: {name: row * scale for name, row in rows.items()}}
    return _stored(chain, dataclasses.replace(delta, tokens=tokens, lineage=lineage))


def _stored(chain, delta: Delta) -> Artifact:
    def produce(folder: Path) -> int:
        deltas.save(folder / deltas.FILE, delta)
        return 1

    names = "+".join(one.name for one in delta.lineage.concepts)
    digest = {name: str(float(row.sum())) for token in delta.tokens.values() for name, row in token.items()}
    recipe = Recipe(
        kind="delta",
        inputs=digest | {"base": delta.lineage.base_digest, "name": names},
        config={},
        code="0",
        versions={},
        labels={"concept": names},
    )
    return chain.store.make(recipe, produce)
