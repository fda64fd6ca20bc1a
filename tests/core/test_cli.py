"""`customdiff` on the chain's store: the same artifacts as the flows', and errors in a line instead of a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from customdiff_core import concepts, images, tables
from customdiff_core import delta as deltas
from customdiff_core.artifacts import Artifact
from customdiff_core.cli import bars as bars_module
from customdiff_core.cli.app import app
from customdiff_core.cli.bars import Bars
from customdiff_core.cli.changes import read_changes
from customdiff_core.cli.drawing import texts_for
from customdiff_core.config import AugmentConfig, EarlyStop, FinetuneConfig, RetrieveConfig
from customdiff_core.errors import ConfigError
from customdiff_core.lineage import Taught
from customdiff_core.pipeline import Pipeline
from customdiff_core.settings import REPOSITORY

from ..handmade import knowing
from ..small_models import stable_diffusion_xl


@pytest.fixture
def run(chain, monkeypatch: pytest.MonkeyPatch):
    """Run a command on the chain's store; returns its exit code and its answer, in one line: with the errors, if there was one."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(chain.store.root))
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, " ".join((result.output if result.exit_code else result.stdout).split())

    return command


def test_help_lists_the_commands_and_brings_no_tensor_library_along():
    program = "import sys; from customdiff_core.cli.app import app; print('torch' in sys.modules); app(['--help'])"
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")
    for name in ("train", "compose", "generate", "convert", "compress", "inspect", "evaluate", "tidy"):
        assert name in done.stdout


def test_inspect_says_what_is_in_a_file_and_that_it_fits(chain, run):
    code, said = run("inspect", str(chain.store.path(chain.delta) / deltas.FILE))
    assert code == 0
    for words in ("customdiff", "custom-diffusion", "<teal-cat> cat", "fits this model │ yes"):
        assert words in said


def test_inspect_says_what_does_not_fit(run, tmp_path: Path):
    torch.save({"unet": {"x.attn2.to_k.weight": torch.zeros(2, 2)}, "modifier_token": {}}, tmp_path / "delta.bin")
    code, said = run("inspect", str(tmp_path / "delta.bin"))
    assert code == 1
    assert "no: delta: found x.attn2.to_k.weight" in said


def test_an_error_is_a_line_and_no_traceback(run, tmp_path: Path):
    code, said = run("inspect", str(tmp_path / "none.bin"))
    assert code == 1
    assert said.startswith("DeltaError")
    assert "found no file, need trained weights; correct the path" in said
    assert "Traceback" not in said


def test_convert_writes_for_another_program_and_says_where(chain, run, tmp_path: Path):
    code, said = run("convert", chain.delta.key, str(tmp_path / "delta.bin"), "--to", "authors")
    assert code == 0
    assert f"{tmp_path}/delta.bin" in said
    found = torch.load(tmp_path / "delta.bin", weights_only=True)
    assert list(found["modifier_token"]) == ["<teal-cat>"]
    code, said = run("convert", str(tmp_path / "delta.bin"), str(tmp_path / "x"), "--to", "onnx")
    assert code == 1
    assert "format: found 'onnx', need one of customdiff, diffusers" in said


def test_convert_says_what_diffusers_needs_to_draw_an_sdxl_delta(chain, run, openmoji, tmp_path: Path):
    model = stable_diffusion_xl(tmp_path / "model", openmoji).model.path
    rows = {"unet": {}, "modifier_token": {"<new1>": [torch.randn(24), torch.randn(32)]}}
    torch.save(rows, tmp_path / "delta.bin")
    stated = ("--token", "<new1>", "--category", "cat")
    arguments = ("convert", str(tmp_path / "delta.bin"), str(tmp_path / "out"), *stated)
    line = "pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id"
    code, said = run(*arguments, "--to", "diffusers", "--weights", str(model))
    assert code == 0, said
    assert line in said
    assert line not in run(*arguments, "--to", "embedding", "--weights", str(model))[1]
    _, said = run("convert", chain.delta.key, str(tmp_path / "small"), "--to", "diffusers")
    assert line not in said


def test_compress_says_what_it_costs(chain, run):
    code, said = run("compress", chain.delta.key, "--rank", "2")
    assert code == 0
    assert "rank 2 to 2, relative error 0." in said
    key = said.split()[1]
    assert set(deltas.load(chain.store.path(chain.store.get("delta", key)) / deltas.FILE).factors)


@pytest.fixture
def trained(chain, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """What is trained, with which settings; nothing is."""
    found: list[tuple[list[str], dict[str, Any]]] = []

    def train(self: Pipeline, names: list[str], config: FinetuneConfig, **named: Any) -> Artifact:
        found.append((names, {"config": config, **named}))
        return chain.delta

    monkeypatch.setattr(Pipeline, "train", train)
    return found


def test_every_setting_of_a_training_can_be_stated(run, trained):
    settings = ["method=dreambooth", "prior_weight=0", 'preview_prompts=["a {}"]', "early_stop.views=4"]
    settings += ["augment.random_resize=false", "retrieve.regularization=retrieved", "retrieve.fetch.deadline_s=3"]
    code, said = run("train", "cat", "dog", "--steps", "7", *(word for one in settings for word in ("--set", one)))
    assert code == 0, said
    assert [names for names, _ in trained] == [["cat"], ["dog"]]
    _, found = trained[0]
    config = found["config"]
    assert (config.method, config.steps, config.prior_weight) == ("dreambooth", 7, 0)
    assert (config.preview_prompts, config.early_stop) == (("a {}",), EarlyStop(views=4))
    assert not found["views"].random_resize
    assert (found["retrieval"].regularization, found["retrieval"].fetch.deadline_s) == ("retrieved", 3)


def test_a_setting_is_stated_by_every_name_that_the_stages_know():
    known = read_changes(
        [
            f"{stage}{name}=1"
            for stage, kind in (("", FinetuneConfig), ("augment.", AugmentConfig), ("retrieve.", RetrieveConfig))
            for name in kind.model_fields
        ]
    )
    assert set(known[""]) == set(FinetuneConfig.model_fields)
    assert set(known["augment."]) == set(AugmentConfig.model_fields)
    assert set(known["retrieve."]) == set(RetrieveConfig.model_fields)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "prior_wieght=0"], "did you mean 'prior_weight'?"),
        (["--set", "augment.veiws=9"], "found 'augment.veiws', need one of augment.resolution, augment.views,"),
        (["--set", "prior_weight"], "--set: found 'prior_weight', need name=value; for example --set prior_weight=0"),
        (["--set", "prior_weight=much"], "prior_weight: found 'much'; Input should be a valid number"),
        (["--set", "retrieve.regularization=some"], "found 'some'; Input should be 'retrieved', 'generated' or 'none'"),
        (["--set", 'preview_prompts=["a cat"]'], "preview_prompts: found 0 placeholders in 'a cat'"),
        (["--joint", "--sequential"], "train: found --joint and --sequential, need one of them; leave the other out"),
    ],
)
def test_what_a_training_does_not_take_is_said_before_it(run, trained, arguments: list[str], words: str):
    code, said = run("train", "cat", "dog", *arguments)
    assert code == 1
    assert words in said
    assert not trained


def test_compose_merges_and_says_what_is_no_constraint(chain, dog_delta, run):
    arguments = [chain.delta.key, dog_delta.key, "--index", str(chain.store.path(chain.index)), "--factored"]
    code, said = run("compose", *arguments, "--strength", "1", "--strength", "0.5")
    assert code == 0
    assert "cat+dog (merge, merge)" in said
    assert "no constraints, shared: photo, of, a" in said
    made = chain.store.get("delta", said.split()[1])
    assert sorted(set(tables.read(chain.store, made, "merge")["strength"])) == [0.5, 1.0]
    code, said = run("compose", *arguments, "--strength", "1")
    assert code == 2
    assert "found 1 strengths, need 2" in said


def test_compose_trains_anew_only_with_settings_of_its_own(run, monkeypatch: pytest.MonkeyPatch):
    asked: list[FinetuneConfig | None] = []

    def compose(self: Pipeline, names: list[str], strengths: list[float], training: FinetuneConfig | None, *rest: Any):
        asked.append(training)
        raise ConfigError("enough")

    monkeypatch.setattr(Pipeline, "compose", compose)
    for stated in ([], ["--steps", "3"], ["--method", "custom-diffusion-crossattn"]):
        assert run("compose", "cat", "dog", *stated)[0] == 1
    plain, short, faces = asked
    assert plain is None
    assert short is not None
    assert short.steps == 3
    assert faces is not None
    assert faces.method == "custom-diffusion-crossattn"
    code, said = run("compose", "cat", "dog", "--method", "dreambooth")
    assert code == 1
    assert "method: found dreambooth, which trains the whole UNet" in said
    assert len(asked) == 3


def test_compose_says_every_time_which_concept_is_called_otherwise(chain, dog_delta, run, tmp_path: Path):
    assert run("convert", dog_delta.key, str(tmp_path / "dog.bin"), "--to", "authors")[0] == 0
    arguments = [chain.delta.key, str(tmp_path / "dog.bin"), "--index", str(chain.store.path(chain.index))]
    for _ in range(2):  # the second time it is cached
        code, said = run("compose", *arguments, "--token", "<teal-cat>", "--category", "dog")
        assert code == 0
        assert "<teal-cat> of teal-cat is <teal-cat-2> now: another concept is <teal-cat>" in said


def test_generate_writes_pictures_with_their_recipe(chain, run, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("# mine\na crying {}\na {} and a pizza\n")
    out = tmp_path / "out"
    code, said = run(
        "generate",
        chain.delta.key,
        "--prompts-file",
        str(tmp_path / "prompts.txt"),
        "--seed",
        "7",
        "--seed",
        "9",
        "--sample-steps",
        "2",
        "--negative-prompt",
        "a dog",
        "--sampler",
        "ddim",
        "--precision",
        "bf16",
        "--out",
        str(out),
    )
    assert code == 0, said
    assert sorted(path.name for path in out.iterdir()) == ["000-7.png", "000-9.png", "001-7.png", "001-9.png"]
    recipe = images.recipe_of((out / "001-9.png").read_bytes())
    assert (recipe["prompt"], recipe["seed"], recipe["number"]) == ("a <teal-cat> cat and a pizza", 9, 1)
    assert (recipe["sampler"], recipe["steps"], recipe["negative_prompt"]) == ("ddim", 2, "a dog")
    assert recipe["precision"] == "bf16" != chain.profile.evaluate.sample.precision
    assert recipe["delta"] == chain.delta.sha256
    assert json.dumps(recipe)


def test_pictures_of_an_earlier_command_stay_and_prompts_are_numbered_on(chain, run, tmp_path: Path):
    arguments = ["--seed", "7", "--sample-steps", "2", "--out", str(tmp_path)]

    def drawn(prompt: str) -> dict[str, str]:
        code, said = run("generate", chain.delta.key, prompt, *arguments)
        assert code == 0, said
        return {path.name: images.recipe_of(path.read_bytes())["prompt"] for path in tmp_path.iterdir()}

    assert drawn("a crying {}") == {"000-7.png": "a crying <teal-cat> cat"}
    assert drawn("a crying {}") == {"000-7.png": "a crying <teal-cat> cat"}  # the same once more
    assert drawn("a {}") == {"000-7.png": "a crying <teal-cat> cat", "001-7.png": "a <teal-cat> cat"}


def test_prompts_name_every_concept_that_a_delta_knows(chain, dog_delta):
    assert texts_for(chain.delta, ["a {}", "two {0}"], chain.store) == ("a <teal-cat> cat", "two <teal-cat> cat")
    with pytest.raises(ConfigError) as error:
        texts_for(dog_delta, ["a {1}"], chain.store)
    assert str(error.value) == (
        "prompts: found {1} in 'a {1}', need {} or what the delta knows: {0} <purple-dog> dog; correct it"
    )


def test_generate_and_inspect_say_what_the_places_of_a_merge_stand_for(
    chain, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taught = (chain.concept.name, "dog")
    both = knowing(chain.store, *(taught_of(name) for name in reversed(taught)))
    drawn: list[tuple[str, ...]] = []
    monkeypatch.setattr("customdiff_core.cli.drawing.draw", lambda texts, *rest: drawn.append(texts) or [])
    done = CliRunner().invoke(app, ["generate", both.key, "a {0} and a {1}"])
    assert done.exit_code == 0, done.output
    assert "in prompts: {0} <purple-dog> dog, {1} <teal-cat> cat" in " ".join(done.stderr.split())
    assert drawn == [("a <purple-dog> dog and a <teal-cat> cat",)]
    _, said = run("inspect", str(chain.store.path(both) / deltas.FILE))
    assert "in prompts │ {0} <purple-dog> dog, {1} <teal-cat> cat" in said


def taught_of(name: str) -> Taught:
    return Taught.model_validate(concepts.load(name).model_dump(include=set(Taught.model_fields)))


def test_a_stage_that_says_nothing_has_no_bar():
    with bars_module.bars() as tell:
        assert isinstance(tell, Bars)
        quiet, loud = tell("cached"), tell("training")
        loud(3, 10, "loss 0.5")
        (task,) = tell._progress.tasks  # pyright: ignore[reportPrivateUsage]
        assert (task.description, task.completed, task.total, task.fields["note"]) == ("training", 3, 10, "loss 0.5")
        del quiet


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["compress", "cat", "--megabytes", "0"], "megabytes: found 0"),
        (["generate", "cat", "a {}", "--sampler", "euler"], "sampler: found 'euler'"),
        (["generate", "cta", "a {}"], "found 'cta', need a concept (car, cat,"),
        (["generate", "cta", "a {}"], "did you mean 'cat'?"),
        (["evaluate", "cat", "-p", "sd14", "--weights", "here"], "give its path as model.validation"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(command: list[str], said: str) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output
