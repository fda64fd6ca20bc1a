from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from customdiff_core import delta as deltas
from customdiff_core import profiles, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.augmentation import augment
from customdiff_core.config import AugmentConfig, FinetuneConfig, Runtime
from customdiff_core.errors import ConfigError, ModifierTokenError
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.cross_attention import QUERIES_AND_OUTPUTS
from customdiff_core.finetuning.finetune import finetune, make_trainer, taught
from customdiff_core.finetuning.trained_parameters import matching_parameters
from customdiff_core.finetuning.weight_change import layer_kind, weight_changes
from customdiff_core.lineage import Lineage

STABLE_DIFFUSION_1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
CPU = Runtime(device="cpu")


def in_words_of(chain, concept) -> Artifact:
    """The chain's training set, in the words of a method; that of a new token is the chain's own."""
    return augment(concept, chain.regularization, chain.profile, chain.augment_config, store=chain.store)


@pytest.fixture
def trainer(chain):
    """Two steps of a method on the chain's pictures."""

    def make(method: str, **update):
        concept = methods.get(method).words(chain.concept)
        config = chain.finetune_config.model_copy(update={"method": method, "steps": 2} | update)
        return make_trainer((concept,), (in_words_of(chain, concept),), chain.profile, config, chain.store, CPU)

    return make


@pytest.mark.parametrize(
    ("method", "tensors", "numbers"),
    [
        ("custom-diffusion", 32, 19_169_280),
        ("custom-diffusion-crossattn", 80, 43_962_560),
        ("custom-diffusion-all", 686, 859_520_964),
        ("dreambooth", 686, 859_520_964),
        ("textual-inversion", 0, 0),
    ],
)
def test_how_much_each_method_trains_of_stable_diffusion_1(method: str, tensors: int, numbers: int):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_1)
    trained = matching_parameters(unet, methods.get(method).trains)
    assert (len(trained), sum(one.numel() for one in trained.values())) == (tensors, numbers)


def test_custom_diffusion_stores_the_papers_75_megabytes():
    """The file of a delta of Stable Diffusion 1, sized by its tensors' shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_1)
    weights = dict(matching_parameters(unet, methods.get("custom-diffusion").trains))
    made = deltas.Delta(weights, {"<x>": {"text_encoder": torch.zeros(768)}}, Lineage())
    assert deltas.size(made) / 1e6 == pytest.approx(76.7, abs=0.05)


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_a_method_trains_moves_and_everything_else_stays_bit_for_bit(trainer, tmp_path: Path, method: str):
    one = trainer(method)
    networks = {"unet": one.components.unet, "text": one.components.text_encoder}
    before = {
        f"{net}.{name}": value.clone()
        for net, module in networks.items()
        for name, value in module.state_dict().items()
    }
    one.run(tmp_path, 100)
    moved = {
        f"{net}.{name}"
        for net, module in networks.items()
        for name, value in module.state_dict().items()
        if not torch.equal(value, before[f"{net}.{name}"])
    }
    token = {"text.text_model.embeddings.token_embedding.rows"} if method != "dreambooth" else set[str]()
    unet = {f"unet.{name}" for name in one.weights}
    assert {
        name for name in moved if name.startswith("text")
    } == token  # no row of the table itself, and V* if it is new
    assert {name for name in moved if name.startswith("unet")} <= unet
    assert len(unet - moved) <= 0.02 * len(unet)  # a bias before a normalization has no gradient
    endings = methods.get(method).trains
    assert {name for name in before if name.startswith("unet") and name.endswith(endings)} == unet


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_runs_as_a_stage_and_loads_back(chain, store: Store, method: str):
    concept = methods.get(method).words(chain.concept)
    examples = in_words_of(chain, concept)
    folder = store.root / "training_set" / examples.key
    folder.parent.mkdir(parents=True)
    folder.symlink_to(chain.store.path(examples))
    config = chain.finetune_config.model_copy(update={"method": method, "steps": 1})
    made = finetune((concept,), (examples,), chain.profile, config, store=store, runtime=CPU)
    delta = deltas.load(store.path(made) / deltas.FILE)
    assert delta.lineage.method == method
    assert delta.lineage.concepts[0].modifier_token == ("ktn" if method == "dreambooth" else "<teal-cat>")
    assert bool(delta.tokens) == (method != "dreambooth")
    assert bool(delta.weights) == (method != "textual-inversion")
    from customdiff_core.sampling import load_model

    components, _ = load_model(chain.profile, made, store, CPU)
    found = components.unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in delta.weights.items())
    changes = tables.read(store, made, "weight_change")
    if method == "custom-diffusion-all":
        assert set(changes["kind"]) == {"cross-attention", "self-attention", "other"}
        assert (changes["change"] > 0).mean() > 0.95  # a bias before a normalization has no gradient


def test_the_learning_rate_rule_is_the_papers():
    """1e-5 x batch x accumulation, x 2 with prior preservation (appendix); DreamBooth's and fine-tune all's are fixed."""
    config = FinetuneConfig(steps=1, batch_size=2, gradient_accumulation=3)
    alone = config.model_copy(update={"prior_weight": 0.0})
    assert methods.get("custom-diffusion").learning_rate(config) == pytest.approx(1e-5 * 12)
    assert methods.get("custom-diffusion").learning_rate(alone) == pytest.approx(1e-5 * 6)
    assert methods.get("textual-inversion").learning_rate(alone) == pytest.approx(5e-4 * 6)
    assert methods.get("dreambooth").learning_rate(config) == methods.get("custom-diffusion-all").rate == 5e-6
    stated = config.model_copy(update={"learning_rate": 1e-3})
    assert methods.get("custom-diffusion").rates(stated) == (1e-3, 1e-3)
    assert methods.get("custom-diffusion").rates(stated.model_copy(update={"modifier_learning_rate": 2e-3})) == (
        1e-3,
        2e-3,
    )


def test_a_profile_gives_each_method_its_own_settings_and_the_rest_by_rule():
    paper = profiles.get("sd14")
    assert paper.training("custom-diffusion") == paper.finetune
    dreambooth = paper.training("dreambooth")
    assert (dreambooth.steps, dreambooth.learning_rate, dreambooth.batch_size) == (800, None, 2)
    inversion = paper.training("textual-inversion")
    assert (inversion.steps, inversion.prior_weight) == (3000, 0.0)
    assert methods.get("textual-inversion").rates(inversion)[1] == pytest.approx(1e-3)
    small = profiles.get("openmoji")
    assert (
        small.training("textual-inversion").modifier_learning_rate
        == small.methods["textual-inversion"].modifier_learning_rate
    )
    assert not methods.get("custom-diffusion-crossattn").random_resize


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        methods.get("dreamboth")
    assert str(error.value) == (
        "method: found 'dreamboth', need one of custom-diffusion, custom-diffusion-crossattn, custom-diffusion-all, "
        "dreambooth, textual-inversion; did you mean 'dreambooth'?"
    )


def test_dreambooth_says_the_rare_word_itself(cat):
    named = methods.get("dreambooth").words(cat)
    assert named.with_concept("a crying {}") == "a crying ktn cat"
    assert named.digest != cat.digest
    assert methods.get("custom-diffusion").words(cat) is cat


# Several concepts


def test_two_concepts_of_one_rare_word_are_refused(cat, chain):
    from customdiff_core import concepts

    cat_and_car, dreambooth = (cat, concepts.load("car")), methods.get("dreambooth")
    said = (
        "rare word: found ktn in concepts 'cat' and 'car', need one a concept; change initializer_token in the concept.yaml "
        "of one to another rare word, such as ktn, pll, ucd or sks"
    )
    with pytest.raises(ModifierTokenError) as error:
        dreambooth.words_of(cat_and_car)
    assert str(error.value) == said
    assert methods.get("custom-diffusion").words_of(cat_and_car) == cat_and_car  # the start of two rows of their own
    worded = dreambooth.words(cat_and_car[1])
    before = deltas.Delta({}, {}, Lineage(concepts=(taught(dreambooth.words(cat)),)))
    config = chain.finetune_config.model_copy(update={"method": "dreambooth"})
    with pytest.raises(ModifierTokenError) as error:  # nor one after the other
        make_trainer((worded,), (chain.training_set,), chain.profile, config, chain.store, CPU, before)
    assert str(error.value) == said


@pytest.fixture(scope="module")
def pair(chain, tmp_path_factory):
    """Training sets of two concepts, of different sizes; the second without regularization images."""
    from customdiff_core import concepts

    dog = concepts.load("dog")
    config = AugmentConfig(resolution=64, views=5)
    return (chain.concept, dog), (chain.training_set, augment(dog, None, chain.profile, config, store=chain.store))


def test_joint_training_sees_each_concept_equally_often(chain, pair):
    config = chain.finetune_config.model_copy(update={"batch_size": 4})
    one = make_trainer(*pair, chain.profile, config, chain.store, CPU)
    seen: list[int] = []
    for number in range(15):
        views, priors = one.batch(number)
        assert sum(row < 12 for row in views.tolist()) == 2
        assert all(17 <= row < 17 + 24 for row in priors.tolist())
        seen += views.tolist()
    assert all("<teal-cat>" in one.examples.prompts[row] for row in range(12))
    assert all("dog" in one.examples.prompts[row] for row in range(12, 17))
    assert set(seen) == set(range(17))
    counts = [seen.count(row) for row in range(17)]
    assert max(counts[:12]) - min(counts[:12]) <= 1
    assert counts[12:] == [6] * 5


def test_without_regularization_images_the_rate_is_not_doubled(chain, pair):
    """However much their loss would weigh: it is their pictures that make a batch twice as large."""
    (cat, dog), (cats, dogs) = pair
    config = chain.finetune_config.model_copy(update={"learning_rate": None, "modifier_learning_rate": None})
    alone = config.model_copy(update={"prior_weight": 0.0})
    rates = [
        make_trainer(concepts, sets, chain.profile, one, chain.store, CPU).rates[0]
        for concepts, sets, one in (((dog,), (dogs,), alone), ((cat,), (cats,), config), (*pair, config))
    ]
    assert rates == [pytest.approx(1e-5 * config.batch_size * factor) for factor in (1, 2, 2)]


def test_joint_training_moves_every_token_and_starts_none_alike(chain, pair, tmp_path: Path):
    """The fault of the public script: only one of several tokens was trained."""
    config = chain.finetune_config.model_copy(update={"steps": 2})
    one = make_trainer(*pair, chain.profile, config, chain.store, CPU)
    before = one.rows["text_encoder"].detach().clone()
    one.run(tmp_path, 100)
    moved = (one.rows["text_encoder"].detach() - before).abs().amax(dim=1)
    assert (moved > 1e-3).all()
    assert len(moved) == 2


def test_joint_training_is_an_artifact_of_both(chain, pair):
    config = chain.finetune_config.model_copy(update={"steps": 1})
    made = finetune(*pair, chain.profile, config, store=chain.store, runtime=CPU)
    assert chain.store.manifest(made).recipe.labels["concept"] == "cat+dog"
    assert chain.store.manifest(made).recipe.labels["way"] == "joint"
    delta = deltas.load(chain.store.path(made) / deltas.FILE)
    assert set(delta.tokens) == {concept.modifier_token for concept in pair[0]}
    assert [one.name for one in delta.lineage.concepts] == ["cat", "dog"]
    assert len(tables.read(chain.store, made, "history")) == 2  # one step for each


def test_each_token_of_a_joint_delta_has_the_row_that_was_trained_for_it(chain, pair, tmp_path: Path):
    """Not the other's, whichever is named first."""
    config = chain.finetune_config.model_copy(update={"steps": 1})
    for concepts, sets in (pair, tuple(part[::-1] for part in pair)):
        made = finetune(concepts, sets, chain.profile, config, store=chain.store, runtime=CPU)
        delta = deltas.load(chain.store.path(made) / deltas.FILE)
        one = make_trainer(concepts, sets, chain.profile, config, chain.store, CPU)
        with torch.no_grad():
            words = [one.components.tokenizer.convert_tokens_to_ids(concept.modifier_token) for concept in concepts]
        folder = tmp_path / concepts[0].name
        folder.mkdir()
        one.run(folder, 100)
        with one.averaged(), torch.no_grad():
            read = one.components.text_encoder.get_input_embeddings()(torch.tensor(words))
        assert not torch.equal(read[0], read[1])
        for concept, row in zip(concepts, read, strict=True):
            assert torch.equal(delta.tokens[concept.modifier_token]["text_encoder"], row)


def test_sequential_training_goes_on_from_the_first_and_keeps_its_token(chain, pair):
    (_, dog), (_, dogs) = pair
    config = chain.finetune_config.model_copy(update={"steps": 2, "prior_weight": 0.0})
    made = finetune((dog,), (dogs,), chain.profile, config, parent=chain.delta, store=chain.store, runtime=CPU)
    first, second = (deltas.load(chain.store.path(one) / deltas.FILE) for one in (chain.delta, made))
    assert torch.equal(first.tokens["<teal-cat>"]["text_encoder"], second.tokens["<teal-cat>"]["text_encoder"])
    assert [one.name for one in second.lineage.concepts] == ["cat", "dog"]
    assert second.lineage.inputs["parent"] == chain.delta.sha256
    base = make_trainer((dog,), (dogs,), chain.profile, config, chain.store, CPU)
    for name, tensor in second.weights.items():
        step = (tensor - first.weights[name]).norm()
        assert 0 < step < (tensor - base.weights[name].detach()).norm()
    labels = chain.store.manifest(made).recipe.labels
    assert (labels["concept"], labels["way"]) == ("dog (sequential)", "sequential")


def test_what_only_the_first_method_trained_comes_through_the_second_whole(chain, pair):
    """In bf16 too, where the network's frozen matrices are held in it: queries that the first one changed are not rounded."""
    (cat, dog), (cats, dogs) = pair
    config = chain.finetune_config.model_copy(update={"steps": 1, "precision": "bf16"})
    wide = config.model_copy(update={"method": "custom-diffusion-crossattn"})
    first = finetune((cat,), (cats,), chain.profile, wide, store=chain.store, runtime=CPU)
    alone = config.model_copy(update={"prior_weight": 0.0})
    made = finetune((dog,), (dogs,), chain.profile, alone, parent=first, store=chain.store, runtime=CPU)
    before, after = (deltas.load(chain.store.path(one) / deltas.FILE) for one in (first, made))
    queries = {name for name in before.weights if name.endswith(QUERIES_AND_OUTPUTS)}
    assert queries
    assert all(torch.equal(after.weights[name], before.weights[name]) for name in queries)


def test_the_same_concept_twice_in_a_row_is_refused(chain):
    config = chain.finetune_config.model_copy(update={"steps": 1})
    with pytest.raises(ModifierTokenError, match="modifier token: found '<teal-cat>' in the tokenizer already"):
        finetune(
            (chain.concept,),
            (chain.training_set,),
            chain.profile,
            config,
            parent=chain.delta,
            store=chain.store,
            runtime=CPU,
        )


# Figure 3


def test_weight_changes_are_relative_and_sorted_by_kind():
    base = {
        "a.attn2.to_k.weight": torch.tensor([3.0, 4]),
        "a.attn1.to_k.weight": torch.ones(4),
        "conv_in.bias": torch.zeros(2),
    }
    weights = {
        "a.attn2.to_k.weight": torch.tensor([3.0, 9]),
        "a.attn1.to_k.weight": torch.ones(4),
        "conv_in.bias": torch.ones(2),
    }
    rows = {
        row["layer"]: (row["kind"], row["change"]) for row in weight_changes(deltas.Delta(weights, {}, Lineage()), base)
    }
    assert rows == {"a.attn2.to_k.weight": ("cross-attention", 1.0), "a.attn1.to_k.weight": ("self-attention", 0.0)}
    assert layer_kind("down_blocks.0.resnets.0.conv1.weight") == "other"
