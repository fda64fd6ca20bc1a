"""What a person reads while a run goes on: every stage by its whole name."""

import pytest

from deployments.watch import stage_name


@pytest.mark.parametrize(
    "name", ["textual-inversion cat at 0.25 of the steps, seed 2026112800", "custom-diffusion cat", "judge"]
)
def test_a_name_that_a_task_gives_its_run_is_told_whole(name: str) -> None:
    assert stage_name(name) == name


def test_prefects_own_suffix_is_not_told() -> None:
    assert stage_name("build-index-3f0") == "build-index"
