"""What the README promises."""

import re
from typing import Any

import pytest

from customdiff_core import profiles

from .conftest import REPOSITORY, Stack

pytestmark = pytest.mark.e2e


def test_the_readmes_example_runs_all_stages_without_prefect(
    stack: Stack, first_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example
    assert len(example[1].strip().splitlines()) <= 16
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(stack.folder / "store"))
    monkeypatch.setitem(profiles.BUILDERS, "openmoji", small(profiles.BUILDERS["openmoji"]()))

    exec(compile(example[1], "README.md", "exec"), {})

    page = capsys.readouterr().out.strip()
    assert page.endswith("report.html")
    manifests = list(stack.store.manifests("report"))
    assert "library" in {one.producer for one in manifests}


def small(profile: profiles.Profile) -> Any:
    """The profile with a short training and a small evaluation."""
    sample = profile.evaluate.sample.model_copy(update={"steps": 8})
    evaluate = profile.evaluate.model_copy(
        update={"seeds": (0,), "kid_images": 20, "kid_subset_size": 10, "sample": sample}
    )
    finetune = profile.finetune.model_copy(update={"steps": 5})
    return lambda: profile.model_copy(update={"evaluate": evaluate, "finetune": finetune})


def test_tool_commands_of_the_readme_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make ([a-z]+)\b", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
