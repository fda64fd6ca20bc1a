"""What a flow loads before its first task: a cached run is done in seconds because it never opens the tensor libraries."""

import subprocess
import sys
from pathlib import Path

import flows

HEAVY = ("torch", "diffusers", "transformers", "faiss", "open_clip", "scipy.stats")


def test_no_tensor_library_is_loaded_before_a_task_needs_it() -> None:
    modules = [f"flows.{path.stem}" for path in Path(flows.__path__[0]).glob("[a-z]*.py")]
    code = f"import sys, deployments.local, {', '.join(modules)}; print(*set({HEAVY}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
