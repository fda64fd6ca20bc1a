"""`prefect deployment run customize/cat`, really: server, worker, index, training, evaluation, report."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from customdiff_core import concepts, profiles, tables
from customdiff_core.config import Runtime
from customdiff_core.finetuning.finetune import finetune

from .conftest import BRIEF, PATIENCE, REPOSITORY, SMALL, Stack, until

pytestmark = pytest.mark.e2e
KILLED = {"steps": 120, "seed": 7, "batch_size": 2}
STAGES = {"build-index", "retrieve", "augment", "finetune", "evaluate", "report"}


def test_a_cold_run_makes_every_stage_and_shows_each(stack: Stack, first_run: dict[str, Any]) -> None:
    states = stack.task_states(first_run["id"])
    shown = stack.artifacts(first_run["id"])

    assert states == dict.fromkeys(STAGES, "Completed")
    for stage in ("retrieve", "augment", "finetune", "evaluate"):
        assert "data:image/" in shown[f"cat-{stage}"]
        assert "Made by this run" in shown[f"cat-{stage}"]
    report = stack.store.newest("report", concept="cat")
    url = f"{stack.files_url}/report/{report.key}/report.html"
    assert url in shown["cat-report"]
    assert "teal cat" in httpx.get(url).text
    regularization = tables.read(stack.store, stack.store.newest("regularization", concept="cat"), "regularization")
    assert len(regularization) == 200
    assert regularization["caption"].str.contains("cat").mean() > 0.5  # the embedded CLIP also finds other animals


def test_the_readmes_command_finds_everything_cached_and_says_so(stack: Stack, first_run: dict[str, Any]) -> None:
    import json

    parameters = [f"--param={name}={json.dumps(value)}" for name, value in SMALL.items()]
    ran = stack.command("prefect", "deployment", "run", "customize/cat", *parameters, "--watch")
    assert ran.returncode == 0, ran.stdout + ran.stderr

    newest = stack.newest_run()
    assert newest["id"] != first_run["id"]
    assert stack.task_states(newest["id"]) == dict.fromkeys(STAGES, "Cached")
    shown = stack.artifacts(newest["id"])
    for stage in ("retrieve", "augment", "finetune", "evaluate", "report"):
        assert "From the cache" in shown[f"cat-{stage}"]
        assert first_run["name"] in shown[f"cat-{stage}"]


def test_makes_own_command_follows_a_run_and_tells_where_its_report_is(stack: Stack, first_run: dict[str, Any]) -> None:
    parameters = [f"--param={name}={json.dumps(value)}" for name, value in SMALL.items()]
    done = stack.local("run", "customize/cat", *parameters)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cached +\d+\.\d s  evaluate", done.stdout)
    (report,) = re.findall(r"^report: (\S+)$", done.stdout, re.MULTILINE)
    assert report.startswith(stack.files_url)
    assert "<title>" in httpx.get(report, timeout=60).text
    refused = stack.local("run", "customize/cat", '--param=model={"profile": "none"}')
    assert refused.returncode == 1
    assert "found parameters that its form refuses" in refused.stderr


def test_a_page_from_elsewhere_may_not_read_the_server(stack: Stack) -> None:
    """It has no log-in: any page in this user's browser could start runs and read their results."""
    for origin, allowed in ((stack.ui_url, True), ("https://evil.example", False)):
        answer = stack.api.get("health", headers={"Origin": origin})
        assert answer.status_code == httpx.codes.OK
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        assert (stack.api.options("flow_runs/filter", headers=asked).status_code == httpx.codes.OK) is allowed


def test_a_changed_prompt_reruns_evaluate_and_report_only(stack: Stack, first_run: dict[str, Any]) -> None:
    evaluate = SMALL["evaluate"] | {"prompts": ["a kissing {}"]}
    states = stack.task_states(stack.run("customize/cat", **(SMALL | {"evaluate": evaluate}))["id"])
    assert {name for name, state in states.items() if state == "Completed"} == {"evaluate", "report"}
    assert {name for name, state in states.items() if state == "Cached"} == STAGES - {"evaluate", "report"}


def test_a_changed_learning_rate_keeps_retrieve_and_augment(stack: Stack, first_run: dict[str, Any]) -> None:
    train = BRIEF["train"] | {"learning_rate": 3e-4}
    states = stack.task_states(stack.run("customize/cat", **(SMALL | {"train": train}))["id"])
    assert states == dict.fromkeys(STAGES, "Completed") | dict.fromkeys(
        ("build-index", "retrieve", "augment"), "Cached"
    )


def test_damaged_artifacts_are_noticed_and_made_again(stack: Stack, first_run: dict[str, Any]) -> None:
    store = stack.store
    metrics = next(one for one in store.manifests("metrics") if first_run["id"] in one.producer).artifact
    chain = store.lineage(metrics)
    before = {kind: artifact.sha256 for kind, artifact in chain.items()}
    (store.path(chain["regularization"]) / "regularization.parquet").unlink()
    _truncate(store.path(chain["training_set"]) / "latents.safetensors")
    _flip_a_bit(store.path(chain["delta"]) / "delta.safetensors")

    states = stack.task_states(stack.run("customize/cat", **SMALL)["id"])

    assert {name for name, state in states.items() if state == "Completed"} == {"retrieve", "augment", "finetune"}
    assert {kind: artifact.sha256 for kind, artifact in store.lineage(metrics).items()} == before
    assert len(list((store.root / "damaged").iterdir())) == 3


def test_a_killed_training_goes_on_and_ends_at_the_same_weights(stack: Stack, first_run: dict[str, Any]) -> None:
    run = stack.start("customize/cat", **(SMALL | {"train": KILLED}))
    checkpoints = stack.folder / "store" / "checkpoints"

    def half_way() -> bool:
        made = [one for one in stack.store.manifests("delta") if run in one.producer]
        assert not made, "the training ended before it could be killed: give it more steps"
        return 50 in _unfinished_steps(checkpoints, stack)

    until(half_way, "the checkpoint of step 50")
    for process in stack.engines(run):
        process.kill()
    assert stack.wait(run, {"CRASHED"})["state_type"] == "CRASHED"
    # Prefect's worker dies of a run that comes back before it has let go of its slot.
    done = {"event": {"name": ["prefect.worker.executed-flow-run"]}, "related": {"id": [f"prefect.flow-run.{run}"]}}
    until(lambda: stack.post("events/filter", {"filter": done})["events"], "the worker to be done with the killed run")

    retried = stack.command("prefect", "flow-run", "retry", run)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    stack.wait(run, {"RUNNING", "COMPLETED"})
    finished = stack.wait(run)

    assert finished["state_type"] == "COMPLETED", finished["state"]["message"]
    stack.assert_said(run, "going on from the checkpoint of step")
    _assert_equal_to_unbroken(stack, run)


def test_overlapping_runs_make_each_stage_once(stack: Stack, first_run: dict[str, Any]) -> None:
    runs = [stack.start("customize/house", **BRIEF) for _ in range(2)]
    finished = [stack.wait(run) for run in runs]

    assert [run["state_type"] for run in finished] == ["COMPLETED", "COMPLETED"]
    (start_a, end_a), (start_b, end_b) = (_interval(run) for run in finished)
    assert start_a < end_b
    assert start_b < end_a
    for kind in ("regularization", "training_set", "delta", "metrics", "report"):
        made = [one for one in stack.store.manifests(kind) if one.recipe.labels.get("concept") == "house"]
        assert len(made) == 1, kind
    assert {stack.task_states(run)["build-index"] for run in runs} == {"Cached"}


def test_one_heavy_computation_at_a_time(stack: Stack, first_run: dict[str, Any], tmp_path: Path) -> None:
    """Whoever asks for the slot while another holds it waits."""
    code = """
import sys, time
from pathlib import Path
from tasks.slots import gpu_slot
name, log, asking = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def say(what):
    with log.open("a") as file:
        file.write(f"{name} {what}\\n")
if name == "second":
    asking.touch()
with gpu_slot():
    say("has it")
    while not asking.exists():
        time.sleep(0.1)
    time.sleep(2)
    say("gives it back")
"""
    log, asking = tmp_path / "log", tmp_path / "asking"
    command = [sys.executable, "-c", code]

    def begun(name: str) -> subprocess.Popen[bytes]:
        arguments = [*command, name, str(log), str(asking)]
        return subprocess.Popen(arguments, cwd=REPOSITORY, env=stack.environment)

    first = begun("first")
    until(log.exists, "the first to have the slot")
    second = begun("second")
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    assert log.read_text().splitlines() == [
        f"{name} {what}" for name in ("first", "second") for what in ("has it", "gives it back")
    ]


def test_one_draws_ones_own_prompts(stack: Stack, first_run: dict[str, Any]) -> None:
    run = stack.run("generate/prompts", concept="cat", prompts=["a {} on a yellow background"], images=3)
    samples = [one for one in stack.store.manifests("samples") if run["id"] in one.producer]
    assert [one.artifact.rows for one in samples] == [3]
    assert any("data:image/" in text for text in stack.artifacts(run["id"]).values())


def test_a_stage_alone_takes_the_newest_input(stack: Stack, first_run: dict[str, Any]) -> None:
    stages = ("retrieve", "augment", "report")
    runs = [stack.start(f"{stage}/stage", concept="cat") for stage in stages]
    for stage, run in zip(stages, runs, strict=True):
        assert stack.wait(run)["state_type"] == "COMPLETED"
        assert stage in stack.task_states(run)


def test_bad_parameters_are_refused_by_the_run_form(stack: Stack) -> None:
    for parameters, words in (
        ({"concept": "catt"}, "'catt' is not one of ['car', 'cat'"),
        ({"train": {"stpes": 10}}, "stpes"),
        ({"train": {"steps": 0}}, "steps"),
        ({"model": {"profile": "sd15"}}, "'sd15' is not one of"),
    ):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            stack.start("customize/cat", **parameters)
        assert words in caught.value.response.text


def test_a_profile_without_weights_fails_with_one_message(stack: Stack) -> None:
    finished = stack.wait(stack.start("customize/cat", model={"profile": "sd14"}))
    assert finished["state_type"] == "FAILED"
    for words in (
        "CompVis/stable-diffusion-v1-4",
        "about 4 GB",
        "16 GB",
        "10 minutes",
        "model.index",
        "model.validation",
    ):
        assert words in finished["state"]["message"]


def test_every_concept_has_a_deployment(stack: Stack) -> None:
    found = stack.post("deployments/filter", {"limit": 100})
    assert {"cat", "dog", "teddybear", "house"} <= {one["name"] for one in found}
    assert set(concepts.names()) <= {one["name"] for one in found}
    assert all(one["description"] and one["tags"] for one in found)


def _assert_equal_to_unbroken(stack: Stack, run: str) -> None:
    """Train the same recipe in this process, in one go and without its checkpoints, and compare the weights' bits."""
    made = [one for one in stack.store.manifests("delta") if run in one.producer]
    assert len(made) == 1
    broken = made[0].artifact
    kept = stack.store.path(broken).rename(stack.folder / "broken")
    (stack.folder / "store" / "checkpoints" / "delta" / made[0].recipe.base_key).rename(stack.folder / "checkpoints")
    profile = profiles.get("openmoji")
    config = profile.finetune.model_copy(update=KILLED)
    training_set = stack.store.newest("training_set", concept="cat")
    unbroken = finetune((concepts.load("cat"),), (training_set,), profile, config, store=stack.store, runtime=Runtime())
    assert unbroken.key == broken.key
    assert _bytes(stack.store.path(unbroken)) == _bytes(kept)


def _unfinished_steps(folder: Path, stack: Stack) -> set[int]:
    """Steps of the checkpoints of a training that has no artifact yet."""
    done = {one.recipe.base_key for one in stack.store.manifests("delta")}
    found = [path for path in folder.glob("delta/*/step-*.safetensors") if path.parent.name not in done]
    return {int(path.name.split("-")[1]) for path in found}


def _bytes(folder: Path) -> bytes:
    return (folder / "delta.safetensors").read_bytes()


def _interval(run: dict[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(run["start_time"]), datetime.fromisoformat(run["end_time"])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
