"""KID with Inception, as it is published: torch-fidelity's network, with random weights here, against its own program."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from customdiff_core import images, tables
from customdiff_core.artifacts import Store
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.measure import Work
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.config import Runtime
from customdiff_core.errors import WeightsError
from customdiff_core.evaluation.evaluate import evaluate
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.kid import kid
from customdiff_core.pipeline import Pipeline
from customdiff_core.profiles import InceptionSource, Profile, get

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch-fidelity publishes it, of random numbers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        model = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=path)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # or nothing would be left of the pictures at the end
    torch.save(model.state_dict(), path)
    return path


def pictures(count: int, brightness: int) -> list[bytes]:
    pixels = np.random.default_rng(brightness).integers(0, brightness, (count, 24, 24, 3), dtype=np.uint8)
    return [images.encode(Image.fromarray(one)) for one in pixels]


def judge(weights: Path, store: Store) -> Judge:
    return Judge(get("openmoji", inception=weights), store, Runtime(device="cpu"))


def test_kid_is_torch_fidelitys_own_on_the_same_files(weights: Path, store: Store, tmp_path: Path) -> None:
    from torch_fidelity import calculate_metrics

    sets = {"dark": pictures(8, 60), "light": pictures(8, 256)}
    for name, data in sets.items():
        (tmp_path / name).mkdir()
        for number, one in enumerate(data):
            (tmp_path / name / f"{number}.png").write_bytes(one)
    features = [judge(weights, store).kid_features(data) for data in sets.values()]
    theirs = calculate_metrics(
        input1=str(tmp_path / "dark"),
        input2=str(tmp_path / "light"),
        kid=True,
        kid_subset_size=8,
        kid_subsets=1,
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(weights),
        cache=False,
        save_cpu_ram=True,
    )
    ours = kid(*features, 8, 1)
    assert features[0].shape == (8, 2048)
    assert ours > 1
    assert ours == pytest.approx(
        1e3 * theirs["kernel_inception_distance_mean"], rel=1e-5
    )  # they sum in another order, in float32


def test_pictures_of_several_sizes_have_their_own_features(weights: Path, store: Store) -> None:
    data = [images.encode(Image.new("RGB", size, "teal")) for size in ((24, 24), (32, 24), (24, 24))]
    together = judge(weights, store).inception.images([images.open_trusted(one) for one in data])
    alone = judge(weights, store).inception.images([images.open_trusted(data[1])])
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-4)


def test_its_name_stands_beside_kid_and_the_judges_beside_the_rest(weights: Path, store: Store) -> None:
    one = judge(weights, store)
    assert (one.extractor("kid"), one.extractor("text_alignment")) == ("inception-v3", "openmoji-judge")
    without = Judge(get("openmoji"), store, Runtime(device="cpu"))
    assert without.extractor("kid") == "openmoji-judge"
    np.testing.assert_array_equal(without.kid_features(pictures(2, 99)), without.images(pictures(2, 99)))


def test_figures_of_other_extractors_are_other_artifacts(weights: Path, chain) -> None:
    from customdiff_core import stages

    plain: Profile = chain.profile
    other = get("openmoji", inception=weights).model_copy(update={"evaluate": plain.evaluate})
    recipes = [stages.evaluate(chain.concept, chain.delta, one, one.evaluate) for one in (plain, other)]
    assert recipes[0].key != recipes[1].key


class Brightness:
    """In Inception's place: features that are easily told from CLIP's."""

    def images(self, pictures: Iterable[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(one, np.float32).mean((0, 1)) / 50 for one in pictures])


def test_what_is_published_as_inceptions_is_of_its_features(
    weights: Path, chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "inception", Brightness())
    config = chain.profile.evaluate.model_copy(
        update={"seeds": (0,), "kid_images": 12, "kid_subset_size": 6, "kid_subsets": 20}
    )
    profile = chain.profile.model_copy(update={"evaluate": config, "inception": InceptionSource(path=weights)})
    metrics = evaluate(chain.concept, chain.delta, profile, config, store=chain.store)
    found = tables.read(chain.store, metrics, "metrics").set_index(["metric", "subject"])
    made = {row["name"]: row for row in tables.records(tables.read(chain.store, metrics, "sources"))}
    features = [
        Brightness().images(
            images.open_trusted(one)
            for one in pd.read_parquet(
                chain.store.root / made[name]["kind"] / made[name]["key"] / f"{made[name]['kind']}.parquet"
            )["image"]
        )
        for name in ("kid_customized", "validation")
    ]
    assert found.loc[("kid", "customized"), "value"] == pytest.approx(kid(*features, 6, 20), rel=1e-9)
    assert set(found.loc["kid", "extractor"]) == {"inception-v3"}
    assert set(found.loc["text_alignment", "extractor"]) == {"openmoji-judge"}
    work = Work(
        Cell(row="base", concepts=("cat",), seed=0),
        Protocol(name="x", concepts=("cat",), seeds=1, kid_images=12, kid_subset_size=6),
        profile,
        Pipeline(profile, chain.store, Runtime(device="cpu")),
    )
    assert work._kid_features(work.draw(None))[0].shape == (12, 3)


class Trap:
    """What a hostile file would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", ["trap", b"no weights", b""])
def test_a_file_that_is_no_weights_is_refused_and_runs_nothing(
    tmp_path: Path, store: Store, content: bytes | str
) -> None:
    path, ran = tmp_path / "weights.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Trap(ran)) if isinstance(content, str) else content)
    with pytest.raises(
        WeightsError, match=r"found a file that is not Inception's weights \(\w+\), need torch-fidelity's"
    ):
        judge(path, store).kid_features(pictures(1, 99))
    assert not ran.exists()


def test_other_weights_are_refused(tmp_path: Path, store: Store) -> None:
    torch.save({"x": torch.zeros(1)}, path := tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="not Inception's weights"):
        judge(path, store).kid_features(pictures(1, 99))
    with pytest.raises(WeightsError, match="found no file"):
        judge(tmp_path / "none.pth", store).kid_features(pictures(1, 99))
