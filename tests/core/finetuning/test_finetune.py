import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from customdiff_core import delta as deltas
from customdiff_core import images, tables
from customdiff_core.artifacts import Store
from customdiff_core.augmentation import augment
from customdiff_core.config import Runtime
from customdiff_core.errors import DeviceMemoryError, TrainingError
from customdiff_core.finetuning import finetune as stage
from customdiff_core.finetuning.finetune import finetune, make_trainer
from customdiff_core.lineage import Taught
from customdiff_core.weights import model_digest


@pytest.fixture
def linked(chain, store) -> Store:
    """A store of one's own that has the chain's training set."""
    folder = store.root / "training_set" / chain.training_set.key
    folder.parent.mkdir(parents=True)
    folder.symlink_to(chain.store.path(chain.training_set))
    return store


def run(chain, store: Store, runtime: Runtime = Runtime(device="cpu"), **update):
    config = chain.finetune_config.model_copy(update=update)
    return finetune((chain.concept,), (chain.training_set,), chain.profile, config, store=store, runtime=runtime)


def preview_steps(store: Store, made) -> list[int]:
    return tables.read(store, made, "previews")["step"].tolist()


def test_the_delta_holds_what_was_trained_and_where_it_comes_from(chain):
    delta = deltas.load(chain.store.path(chain.delta) / "delta.safetensors")
    assert chain.delta.rows == 6
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in delta.weights)
    assert {token: {name: tuple(row.shape) for name, row in rows.items()} for token, rows in delta.tokens.items()} == {
        "<teal-cat>": {"text_encoder": (192,)}
    }
    lineage = delta.lineage
    assert lineage.base_digest == model_digest(chain.profile.model)
    assert lineage.inputs["training_set"] == chain.training_set.sha256
    assert lineage.method == "custom-diffusion"
    assert lineage.concepts == (
        Taught(name="cat", category="cat", modifier_token="<teal-cat>", initializer_token="ktn"),
    )
    assert lineage.settings["steps"] == 6


def test_the_history_has_a_row_a_step(chain):
    history = tables.read(chain.store, chain.delta, "history")
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (history["loss"] > 0).all()
    assert (history["learning_rate"] == chain.finetune_config.learning_rate).all()
    assert (history["seconds"] > 0).all()


def test_a_machines_settings_make_no_other_delta(chain):
    def progress(done: int, total: int, note: str = "") -> None:
        raise AssertionError("trained again")

    config, runtime = chain.finetune_config, Runtime(device="cpu", checkpoint_every=1)
    again = finetune(
        (chain.concept,),
        (chain.training_set,),
        chain.profile,
        config,
        store=chain.store,
        runtime=runtime,
        progress=progress,
    )
    assert again == chain.delta


def test_made_in_another_store_it_is_bit_for_bit_the_same(chain, linked: Store):
    assert run(chain, linked) == chain.delta


def test_previews_come_every_so_often_and_at_the_end(chain, linked: Store):
    made = run(chain, linked, preview_every=4, preview_prompts=("photo of a {}", "a {} and a dog"))
    table = tables.read(linked, made, "previews")
    assert table["step"].tolist() == [4, 6]
    assert images.open_trusted(table["image"][0]).size == (128, 64)
    assert table["image"][0] != table["image"][1]
    volatile = {file.name for file in linked.manifest(made).files if file.volatile}
    assert volatile == {"history.parquet", "previews.parquet"}  # a picture's last bit is no reason to evaluate again


def test_a_run_that_went_on_makes_the_same_artifact_as_a_long_one(chain, linked: Store, tmp_path):
    first = run(chain, linked, steps=3, preview_every=2)
    longer = run(chain, linked, steps=5, preview_every=2)
    assert preview_steps(linked, first) == [2, 3]
    assert preview_steps(linked, longer) == [2, 4, 5]
    fresh = Store(tmp_path / "fresh")
    (fresh.root / "training_set").mkdir(parents=True)
    (fresh.root / "training_set" / chain.training_set.key).symlink_to(chain.store.path(chain.training_set))
    assert run(chain, fresh, steps=5, preview_every=2) == longer


def test_a_run_killed_between_preview_and_checkpoint_loses_neither(
    chain, linked: Store, monkeypatch: pytest.MonkeyPatch
):
    whole = run(chain, linked, steps=4, preview_every=2)

    class KilledError(Exception):
        pass

    drawn: list[int] = []
    plain = stage._preview  # pyright: ignore[reportPrivateUsage]

    def dying(scratch, trainer, *rest) -> None:
        drawn.append(trainer.step)
        if drawn == [2]:
            raise KilledError
        plain(scratch, trainer, *rest)

    other = Store(linked.root.parent / "other")
    (other.root / "training_set").mkdir(parents=True)
    (other.root / "training_set" / chain.training_set.key).symlink_to(chain.store.path(chain.training_set))
    monkeypatch.setattr(stage, "_preview", dying)
    runtime = Runtime(device="cpu", checkpoint_every=1)
    with pytest.raises(KilledError):
        run(chain, other, runtime, steps=4, preview_every=2)
    assert run(chain, other, runtime, steps=4, preview_every=2) == whole


def test_the_delta_is_the_moving_average_and_not_the_last_step(chain, tmp_path):
    delta = deltas.load(chain.store.path(chain.delta) / "delta.safetensors")
    config = chain.finetune_config
    trainer = make_trainer(
        (chain.concept,), (chain.training_set,), chain.profile, config, chain.store, Runtime(device="cpu")
    )
    trainer.run(tmp_path, 100)
    assert torch.equal(delta.tokens["<teal-cat>"]["text_encoder"], trainer.average["modifier_rows.text_encoder"][0])
    assert not torch.equal(delta.tokens["<teal-cat>"]["text_encoder"], trainer.rows["text_encoder"][0])
    assert all(torch.equal(tensor, trainer.average[name]) for name, tensor in delta.weights.items())


def test_a_training_that_failed_leaves_no_delta(chain, linked: Store):
    with pytest.raises(TrainingError, match=r"need a finite one; lower learning_rate"):
        run(chain, linked, learning_rate=1e30)
    assert list(linked.manifests("delta")) == []


def test_a_gpu_without_room_says_which_settings_need_less(chain, linked: Store, monkeypatch: pytest.MonkeyPatch):
    def full(self: stage.Trainer) -> list[float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(stage.Trainer, "train_step", full)
    with pytest.raises(
        DeviceMemoryError, match=r"^training: found no GPU memory left .*; set model\.gradient_checkpointing,"
    ):
        run(chain, linked)


def test_regularization_captions_are_encoded_once_as_the_frozen_encoder_reads_them(chain):
    from customdiff_core import text
    from customdiff_core.finetuning.components import load_components

    trainer = make_trainer(
        (chain.concept,),
        (chain.training_set,),
        chain.profile,
        chain.finetune_config,
        chain.store,
        Runtime(device="cpu"),
    )
    captions = tables.read(chain.store, chain.training_set, "examples")["prompt"][12:].tolist()
    assert trainer.examples.prior.features.shape == (24, 28, 192)
    assert not trainer.examples.prior.features.requires_grad
    with torch.no_grad():
        expected = text.encode(load_components(chain.profile.model), captions)
    torch.testing.assert_close(trainer.examples.prior.features, expected.features, atol=1e-5, rtol=1e-5)
    counts: list[int] = []
    trainer.components.text_encoder.register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    trainer.train_step()
    assert len(counts) == 1
    assert counts[0] <= chain.finetune_config.batch_size  # concept prompts alone go through the encoder in a step


def test_a_weight_of_regularization_images_without_any_is_refused(chain):
    """A set of an ablation must not be trained on as if it were a whole one."""
    bare = augment(chain.concept, None, chain.profile, chain.augment_config, store=chain.store)
    with pytest.raises(
        TrainingError, match="found no regularization images, need some for prior_weight 1; make the set"
    ):
        finetune((chain.concept,), (bare,), chain.profile, chain.finetune_config, store=chain.store)


def test_what_was_trained_on_a_gpu_is_a_delta_on_the_cpu(chain, tmp_path):
    """Where the base model's weights are, which it is compared with; a GPU that is none has shapes and a device."""
    config = chain.finetune_config.model_copy(update={"steps": 1})
    runtime = Runtime(device="cpu")
    trainer = make_trainer((chain.concept,), (chain.training_set,), chain.profile, config, chain.store, runtime)
    base = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    with FakeTensorMode(allow_non_fake_inputs=True):

        def on_gpu(parameter: torch.Tensor) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(parameter.shape, device="cuda"))

        for name, parameter in list(trainer.components.unet.named_parameters()):
            owner, _, last = name.rpartition(".")
            setattr(trainer.components.unet.get_submodule(owner), last, on_gpu(parameter))
        trainer.rows = {encoder: on_gpu(rows) for encoder, rows in trainer.rows.items()}
        made = stage._delta(trainer, (chain.concept,), None, {})
        assert made.weights.keys() == base.keys()
        assert {weight.device.type for weight in made.weights.values()} == {"cpu"}
        assert {row.device.type for rows in made.tokens.values() for row in rows.values()} == {"cpu"}


@pytest.mark.parametrize(
    "change", [{"modifier_token": "ktn"}, {"name": "dog", "category": "dog", "modifier_token": "<dog>"}]
)
def test_a_training_set_in_other_words_is_refused(chain, linked: Store, change):
    """V* would be in no prompt: nothing would be learnt of it, and nothing say so."""
    other = chain.concept.model_copy(update=change)
    method = "custom-diffusion" if "name" in change else "dreambooth"
    config = chain.finetune_config.model_copy(update={"method": method})
    with pytest.raises(
        TrainingError, match=r"found views such as '.*<teal-cat> cat.*', need '(ktn cat|<dog> dog)' in each"
    ):
        finetune((other,), (chain.training_set,), chain.profile, config, store=linked)


def test_latents_of_another_base_model_are_refused(chain, linked: Store, monkeypatch):
    monkeypatch.setattr("customdiff_core.finetuning.finetune.model_digest", lambda source: "of another VAE")
    words = "found latents of another base model, need those of openmoji as it is now; augment again"
    with pytest.raises(TrainingError, match=words):
        finetune((chain.concept,), (chain.training_set,), chain.profile, chain.finetune_config, store=linked)


def test_the_history_says_the_rate_that_was_trained_with(chain, linked: Store):
    """Of textual inversion, that of V*: no weight of the UNet is trained."""
    made = run(
        chain, linked, method="textual-inversion", prior_weight=0.0, learning_rate=1e-4, modifier_learning_rate=7e-3
    )
    assert set(tables.read(linked, made, "history")["learning_rate"]) == {7e-3}


def test_settings_reach_the_optimizer_and_the_keys(chain):
    def made(**update):
        config = chain.finetune_config.model_copy(update=update)
        return make_trainer(
            (chain.concept,), (chain.training_set,), chain.profile, config, chain.store, Runtime(device="cpu")
        )

    plain = made(weight_decay=0.125)
    assert {group["weight_decay"] for group in plain.optimizer.param_groups} == {0.125}

    def hooks(trainer) -> int:
        return sum(len(module._forward_hooks) for module in trainer.components.unet.modules())

    assert hooks(made(detach_bos=True)) > hooks(made(detach_bos=False)) == 0
