"""The measures, computed a second time by other means; and on pictures of which the answer is known."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customdiff_core import images, tables
from customdiff_core.config import Runtime
from customdiff_core.evaluation.alignment import image_alignment, text_alignment
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.kid import SCALE, jackknife, kid, kid_interval
from customdiff_core.evaluation.validation import validation

COUNT = 24


@pytest.fixture(scope="module")
def judge(chain) -> Judge:
    return Judge(chain.profile, chain.store, Runtime(device="cpu"))


@pytest.fixture(scope="module")
def real(chain) -> list[bytes]:
    made = validation(chain.concept, chain.profile, 2 * COUNT, store=chain.store)
    return tables.read(chain.store, made, "validation")["image"].tolist()


@pytest.fixture(scope="module")
def captions(chain) -> list[str]:
    made = validation(chain.concept, chain.profile, 2 * COUNT, store=chain.store)
    return tables.read(chain.store, made, "validation")["caption"].tolist()


def noise(count: int) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [images.encode(Image.fromarray(one)) for one in pixels]


def test_kid_is_a_numpy_ones_on_the_same_features(judge: Judge, real: list[bytes]) -> None:
    x, y = (judge.images(part).astype(np.float64) for part in (real[:COUNT], real[COUNT:]))
    kernel = {name: (a @ b.T / x.shape[1] + 1) ** 3 for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}
    within = sum(kernel[name].sum() - np.trace(kernel[name]) for name in ("xx", "yy")) / (COUNT * (COUNT - 1))
    expected = within - 2 * kernel["xy"].mean()
    assert kid(x, y, COUNT, 1) / SCALE == pytest.approx(expected, abs=1e-9)


def test_kid_is_torch_fidelitys_on_the_same_files(judge: Judge, real: list[bytes], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_fidelity
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase

        class OpenmojiClip(FeatureExtractorBase):
            """The judge, as torch-fidelity calls extractors: uint8 (N, 3, H, W) in, features out."""

            def __init__(self, name: str, features_list: list[str], **options: object) -> None:
                super().__init__(name, features_list)

            def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor]:
                opened = [Image.fromarray(one) for one in batch.permute(0, 2, 3, 1).cpu().numpy()]
                return (torch.from_numpy(judge.encoder.images(opened)),)

            @staticmethod
            def get_provided_features_list() -> tuple[str]:
                return ("vector",)

            @staticmethod
            def get_default_feature_layer_for_metric(metric: str) -> str:
                return "vector"

            @staticmethod
            def can_be_compiled() -> bool:
                return False

            @staticmethod
            def get_dummy_input_for_compile() -> torch.Tensor:
                return torch.zeros((1, 3, 64, 64), dtype=torch.uint8)

        torch_fidelity.register_feature_extractor("openmoji-clip", OpenmojiClip)
        folders = [tmp_path / name for name in ("generated", "real")]
        for folder, part in zip(folders, (real[:COUNT], real[COUNT:]), strict=True):
            folder.mkdir()
            for number, data in enumerate(part):
                (folder / f"{number:03d}.png").write_bytes(data)
        theirs = torch_fidelity.calculate_metrics(
            input1=str(folders[0]),
            input2=str(folders[1]),
            kid=True,
            kid_subset_size=10,
            kid_subsets=20,
            feature_extractor="openmoji-clip",
            feature_layer_kid="vector",
            cuda=False,
            cache=False,
            verbose=False,
            save_cpu_ram=True,
            rng_seed=0,
        )
    ours = kid(judge.images(real[:COUNT]), judge.images(real[COUNT:]), 10, 20) / SCALE
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)


def test_clip_scores_are_those_of_ten_lines(chain, judge: Judge, real: list[bytes], captions: list[str]) -> None:
    encoder = judge.encoder
    model, preprocess, tokenize = encoder._model, encoder._preprocess, encoder._tokenize
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(images.open_trusted(one)) for one in real])).double()
        read = model.encode_text(tokenize(captions)).double()
        shown = [images.decode(chain.concept.read(one), one.name) for one in chain.concept.images]
        targets = model.encode_image(torch.stack([preprocess(one) for one in shown])).double()
    cosine = torch.nn.functional.cosine_similarity
    scores = [2.5 * max(float(cosine(a, b, dim=0)), 0) for a, b in zip(seen, read, strict=True)]
    likeness = [float(torch.stack([cosine(a, b, dim=0) for b in targets]).mean()) for a in seen]
    ours = judge.images(real)
    pictures = judge.images([chain.concept.read(one) for one in chain.concept.images])
    assert text_alignment(ours, judge.texts(captions)) == pytest.approx(scores, abs=1e-6)
    assert image_alignment(ours, pictures) == pytest.approx(likeness, abs=1e-6)


def test_known_answers(judge: Judge, real: list[bytes], captions: list[str]) -> None:
    """Equal sets, shuffled prompts and noise: the figures move the right way, and far."""
    drawn, words = judge.images(real), judge.texts(captions)
    shuffled = words[np.random.default_rng(0).permutation(len(words))]
    right, wrong = text_alignment(drawn, words).mean(), text_alignment(drawn, shuffled).mean()
    assert right - wrong > 0.3
    half, other, static = judge.images(real[:COUNT]), judge.images(real[COUNT:]), judge.images(noise(COUNT))
    assert image_alignment(half, half).mean() > image_alignment(static, half).mean() + 0.1
    same, apart, noisy = (kid(one, half, COUNT, 1) for one in (half, other, static))
    assert same < apart < noisy
    assert same <= 0  # a set is nearer to itself than chance allows
    assert noisy > 10 * abs(apart)


def test_kids_pseudo_values_average_to_it_and_give_its_interval() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.3, 1, (60, 8)), rng.normal(0, 1, (60, 8))
    values = jackknife(one, other, 20)
    assert values.shape == (20,)
    assert values.mean() == pytest.approx(kid(one, other, 60, 1), rel=0.02)
    low, high = kid_interval(0, values)
    assert (high - low) / 2 == pytest.approx(2.09302 * values.std(ddof=1) / 20**0.5, rel=1e-4)
