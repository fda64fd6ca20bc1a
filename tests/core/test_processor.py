from pathlib import Path

import pytest

from customdiff_core import profiles
from customdiff_core.processor import native_precision

X86 = "processor\t: 0\nmodel name\t: Some bf16 name\nflags\t\t: fpu sse2 avx512f {}\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        (X86.format("avx512_bf16 avx512_vnni"), "bf16"),
        (X86.format("amx_bf16"), "bf16"),
        (X86.format("avx512_vnni"), "fp32"),  # the name of a processor is none of its features
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", "bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "fp32"),
        ("", "fp32"),
    ],
)
def test_bf16_only_where_the_processor_multiplies_it(tmp_path: Path, told: str, precision: str):
    path = tmp_path / "cpuinfo"
    path.write_text(told)
    assert native_precision(path) == precision


def test_a_system_that_tells_nothing_computes_in_fp32(tmp_path: Path):
    assert native_precision(tmp_path / "none") == "fp32"


def test_the_embedded_profile_trains_and_draws_as_this_processor_does_best():
    profile = profiles.get("openmoji")
    assert profile.finetune.precision == profile.evaluate.sample.precision == native_precision()
