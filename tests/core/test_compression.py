import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from customdiff_core import delta as deltas
from customdiff_core import tables
from customdiff_core.compression import Decomposition, compress, compressed, decompose
from customdiff_core.config import CompressConfig
from customdiff_core.delta import Delta
from customdiff_core.errors import ConfigError, DeltaError
from customdiff_core.finetuning.methods import METHODS
from customdiff_core.finetuning.trained_parameters import matching_parameters
from customdiff_core.lineage import Lineage

from ..small_models import STABLE_DIFFUSION_1, at_full_size

NAMES = ("a.attn2.to_k.weight", "a.attn2.to_v.weight")


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {NAMES[0]: torch.randn(40, 24), NAMES[1]: torch.randn(16, 24), "a.attn2.to_out.0.bias": torch.randn(16)}


@pytest.fixture
def delta(base) -> Delta:
    """Changes whose singular values fall slowly, so that every rank is another figure."""
    torch.manual_seed(1)
    weights = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
    return Delta(weights, {"<x>": {"text_encoder": torch.randn(24)}}, Lineage(base_digest="abc"))


def error(made: Delta, delta: Delta, base, name: str) -> float:
    wanted = delta.weights[name] - base[name]
    return float((made.whole(name, base[name]) - delta.weights[name]).norm() / wanted.norm())


@pytest.mark.parametrize("energy", [0.1, 0.6, 0.95])
def test_energy_is_a_fraction_of_the_sum_of_singular_values(delta: Delta, base, energy: float):
    made, report = compressed(delta, base, CompressConfig(energy=energy))
    for row in report:
        values = torch.linalg.svdvals((delta.weights[row["layer"]] - base[row["layer"]]).double())
        shares = values.cumsum(0) / values.sum()
        assert shares[row["rank"] - 1] >= energy - 1e-9
        assert row["rank"] == 1 or shares[row["rank"] - 2] < energy
        assert row["energy"] == pytest.approx(float(shares[row["rank"] - 1]))
        assert row["relative_error"] == pytest.approx(error(made, delta, base, row["layer"]), abs=1e-5)


def test_a_rank_is_the_best_approximation_of_that_rank(delta: Delta, base):
    made, report = compressed(delta, base, CompressConfig(rank=3))
    assert [row["rank"] for row in report] == [3, 3]
    left, right = made.factors[NAMES[0]]
    assert (left.shape, right.shape) == ((40, 3), (3, 24))
    values = torch.linalg.svdvals((delta.weights[NAMES[0]] - base[NAMES[0]]).double())
    assert error(made, delta, base, NAMES[0]) == pytest.approx(float(values[3:].norm() / values.norm()), abs=1e-5)


def test_all_of_it_is_the_change_itself(delta: Delta, base):
    made, report = compressed(delta, base, CompressConfig(energy=1.0))
    assert all(row["relative_error"] < 1e-6 for row in report)
    assert all(error(made, delta, base, name) < 1e-5 for name in NAMES)


def test_what_is_no_matrix_and_the_tokens_stay_whole(delta: Delta, base):
    made, _ = compressed(delta, base, CompressConfig(rank=1))
    assert set(made.weights) == {"a.attn2.to_out.0.bias"}
    assert torch.equal(made.weights["a.attn2.to_out.0.bias"], delta.weights["a.attn2.to_out.0.bias"])
    assert made.tokens is delta.tokens


@pytest.mark.parametrize("megabytes", [0.004, 0.006, 0.02])
def test_a_file_is_no_larger_than_asked_and_nearly_as_large(delta: Delta, base, tmp_path, megabytes: float):
    made, report = compressed(delta, base, CompressConfig(megabytes=megabytes))
    deltas.save(tmp_path / "x", made)
    size = (tmp_path / "x").stat().st_size
    assert size <= megabytes * 1e6
    least = min(row["energy"] for row in report)
    if least < 1:  # a little more energy is a value more, and too much
        deltas.save(tmp_path / "y", compressed(delta, base, CompressConfig(energy=least + 2e-4))[0])
        assert (tmp_path / "y").stat().st_size > megabytes * 1e6 - 100  # offsets that may be shorter


def test_a_long_header_is_part_of_the_size(delta: Delta, base, tmp_path):
    """Long names, tokens of several encoders, a lineage with settings: all are in the file."""
    name = f"{'block.' * 40}attn2.to_k.weight"
    rows = {f"text_encoder_{number}": torch.randn(2) for number in range(20)}
    lineage = Lineage(settings={f"setting {number}": "ü" * 20 for number in range(100)})
    long = Delta({**delta.weights, name: delta.weights[NAMES[0]]}, {"<x>": rows}, lineage)
    bases = {**base, name: base[NAMES[0]]}
    deltas.save(tmp_path / "one", compressed(long, bases, CompressConfig(rank=1))[0])
    asked = (tmp_path / "one").stat().st_size / 1e6 + 0.002
    deltas.save(tmp_path / "two", compressed(long, bases, CompressConfig(megabytes=asked))[0])
    assert (tmp_path / "two").stat().st_size <= asked * 1e6


def test_a_size_that_nothing_fits_is_refused(delta: Delta, base):
    with pytest.raises(
        DeltaError, match=r"compression: found 0\.00 MB with one singular value a layer, need at most 0.001"
    ):
        compressed(delta, base, CompressConfig(megabytes=0.001))


@pytest.mark.parametrize(("config", "found"), [({}, "none"), ({"rank": 1, "energy": 0.5}, "energy, rank")])
def test_exactly_one_way_must_be_stated(delta: Delta, base, config, found: str):
    with pytest.raises(ConfigError) as caught:
        compressed(delta, base, CompressConfig(**config))
    assert (
        str(caught.value)
        == f"compression: found {found} stated, need one of energy, rank, megabytes; leave the others out"
    )


def test_factors_are_compressed_again_without_the_whole_matrix(delta: Delta, base):
    thin, _ = compressed(delta, base, CompressConfig(rank=8))
    again, _ = compressed(thin, base, CompressConfig(rank=3))
    direct, _ = compressed(delta, base, CompressConfig(rank=3))
    for name in NAMES:
        torch.testing.assert_close(again.whole(name, base[name]), direct.whole(name, base[name]), atol=1e-4, rtol=1e-4)
    found = decompose(thin, NAMES[0], torch.empty(0, 0))  # the base weight is not looked at
    assert len(found.values) == 8


def test_nothing_changed_is_nothing_to_divide_by(base):
    made, report = compressed(Delta(dict(base), {}, Lineage()), base, CompressConfig(energy=0.6))
    assert all((row["rank"], row["relative_error"]) == (1, 0.0) for row in report)
    assert torch.equal(made.whole(NAMES[0], base[NAMES[0]]), base[NAMES[0]])


def test_stable_diffusion_1_fits_15_megabytes_with_75_values_a_layer():
    """Its real shapes: 32 matrices of 320, 640 and 1280 x 768, factored at two ranks without their values."""
    unet = at_full_size(STABLE_DIFFUSION_1)
    weights = matching_parameters(unet, METHODS["custom-diffusion"].trains)
    assert sum(weight.numel() for weight in weights.values()) == 19_169_280

    def size(rank: int) -> int:
        factors = {
            name: Decomposition(torch.empty(len(weight), 768), torch.empty(768), torch.empty(768, 768)).shapes(rank)
            for name, weight in weights.items()
        }
        return deltas.size(Delta({}, {}, Lineage(), factors))

    assert size(75) < 15e6 < size(76)


def test_the_stage_keeps_the_lineage_and_tells_the_errors(chain):
    made = compress(chain.delta, chain.profile, CompressConfig(energy=0.6), store=chain.store)
    small, whole = (deltas.load(chain.store.path(one) / deltas.FILE) for one in (made, chain.delta))
    assert small.lineage == whole.lineage.model_copy(update={"inputs": {"delta": chain.delta.sha256}})
    assert set(small.factors) == set(whole.weights)
    report = tables.read(chain.store, made, "compression")
    assert len(report) == made.rows == len(whole.weights)
    assert (report["relative_error"] < 1).all()
    recipe = chain.store.manifest(made).recipe
    assert recipe.labels["concept"] == "cat (compressed)"  # "the newest of cat" is the training
    assert recipe.config["method"] == "custom-diffusion"  # evaluation reads it there
    from customdiff_core.config import Runtime
    from customdiff_core.sampling import load_model

    components, _ = load_model(chain.profile, made, chain.store, Runtime(device="cpu"))
    name = sorted(small.factors)[0]
    found = components.unet.state_dict()[name]
    before = load_model(chain.profile, None, chain.store, Runtime(device="cpu"))[0].unet.state_dict()[name]
    torch.testing.assert_close(found, small.whole(name, before), atol=1e-6, rtol=1e-6)


def test_what_is_of_another_base_model_or_changes_no_matrix_is_refused(chain, monkeypatch: pytest.MonkeyPatch):
    config = CompressConfig(rank=3)
    with monkeypatch.context() as patch:
        patch.setattr("customdiff_core.compression.model_digest", lambda source: "f" * 64)
        with pytest.raises(DeltaError, match=r"found one trained on base model .*, need ffff"):
            compress(chain.delta, chain.profile, config, store=chain.store)
    whole = deltas.load(chain.store.path(chain.delta) / deltas.FILE)

    def tokens_alone(folder: Path) -> int:
        deltas.save(folder / deltas.FILE, replace(whole, weights={}))
        return 1

    recipe = chain.store.manifest(chain.delta).recipe.model_copy(update={"inputs": {"tokens": "alone"}})
    with pytest.raises(DeltaError, match=r"found no changed matrix \(custom-diffusion\), need one"):
        compress(chain.store.make(recipe, tokens_alone), chain.profile, config, store=chain.store)


def test_two_equal_layers_are_two_equal_rows(delta: Delta, base):
    twin = dataclasses.replace(delta, weights={**delta.weights, "b.attn2.to_k.weight": delta.weights[NAMES[0]]})
    report = compressed(twin, {**base, "b.attn2.to_k.weight": base[NAMES[0]]}, CompressConfig(energy=0.5))[1]
    ranks = {row["layer"]: row["rank"] for row in report}
    assert ranks["b.attn2.to_k.weight"] == ranks[NAMES[0]]
