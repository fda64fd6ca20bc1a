import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save as to_bytes

from customdiff_core.errors import DiskFullError
from customdiff_core.finetuning import checkpoints
from customdiff_core.finetuning.checkpoints import KEEP, newest_checkpoint, save_checkpoint
from customdiff_core.settings import REPOSITORY


def state(number: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3,), number), "history": torch.zeros(0, 4, dtype=torch.float64)}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*.safetensors"))


def test_nothing_is_step_0(tmp_path: Path):
    assert newest_checkpoint(tmp_path, 100) == (0, {})


def test_the_newest_comes_back_whole(tmp_path: Path):
    for step in (50, 100):
        save_checkpoint(tmp_path, step, state(step))
    step, found = newest_checkpoint(tmp_path, 1000)
    assert step == 100
    assert torch.equal(found["weight"], torch.full((3,), 100.0))
    assert found["history"].dtype == torch.float64


def test_its_bytes_are_safetensors_own_and_named_by_their_hash(tmp_path: Path):
    """So those of before are read."""
    save_checkpoint(tmp_path, 50, state(50))
    (path,) = tmp_path.iterdir()
    data = to_bytes(state(50))
    assert path.read_bytes() == data
    assert path.name == f"step-0000050-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"


def test_it_is_written_from_where_the_tensors_lie(tmp_path: Path):
    """In a process of its own, whose memory is counted: no second copy of them."""
    program = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from customdiff_core.finetuning.checkpoints import save_checkpoint\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "save_checkpoint(Path(sys.argv[1]), 1, {'w': torch.ones(9)})\n"
        "state = {'w': torch.ones(2**26)}; before = peak()\n"
        "save_checkpoint(Path(sys.argv[1]), 2, state); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 64  # MB, of a state of 256


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(DiskFullError, match="found no space left on the disk"):
        save_checkpoint(tmp_path, 50, state(50))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_takes_an_earlier_one(tmp_path: Path):
    for step in (50, 100):
        save_checkpoint(tmp_path, step, state(step))
    assert newest_checkpoint(tmp_path, 99)[0] == 50
    assert newest_checkpoint(tmp_path, 49) == (0, {})


def test_only_the_newest_few_are_kept(tmp_path: Path):
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, state(step))
    assert steps(tmp_path) == [30, 40]
    assert KEEP == 2


def test_a_shorter_run_keeps_its_own_beside_those_of_a_longer_one(tmp_path: Path):
    for step in (450, 500):
        save_checkpoint(tmp_path, step, state(step))
    for step in (50, 100, 150):
        save_checkpoint(tmp_path, step, state(step))
    assert steps(tmp_path) == [100, 150, 450, 500]
    assert newest_checkpoint(tmp_path, 300)[0] == 150


@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied"])
def test_a_damaged_one_is_said_and_falls_back_to_the_earlier(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
):
    for step in (50, 100):
        save_checkpoint(tmp_path, step, state(step))
    (path,) = tmp_path.glob("step-0000100-*")
    data = path.read_bytes()
    path.write_bytes({"flipped": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-5], "emptied": b""}[how])
    with caplog.at_level(logging.WARNING):
        step, found = newest_checkpoint(tmp_path, 1000)
    assert step == 50
    assert found["weight"].tolist() == [50, 50, 50]
    assert f"checkpoint {path}: other content than was written; going back to an earlier one" in caplog.text
    assert steps(tmp_path) == [50]
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_other_files_are_no_checkpoints(tmp_path: Path):
    (tmp_path / "step-0000100-0123456789abcdef.safetensors.tmp").write_text("half")
    (tmp_path / "preview-0000100.png").write_text("x")
    assert newest_checkpoint(tmp_path, 1000) == (0, {})
