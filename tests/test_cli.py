"""The command line, run as users run it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import safetensors
import torch
from fakes import FakeCritic, FakeGenerator
from fakes import recipe as tiny_run
from torchvision.utils import save_image
from typer.testing import CliRunner

from dual_process.cli import app, shared
from dual_process.core.tensor_file import read_tensors
from dual_process.demo import WEIGHTS, world
from dual_process.distillation import distill
from dual_process.generators import DiffusersGenerator

RECIPE = """
prompts = ["a day sky over the sea", "a night sky over the grass"]
held_out = ["a sunset sky over the sand"]
train_steps = {steps}
learning_rate = 3e-4
height = 112
width = 112
num_inference_steps = 1

[[questions]]
text = "Is the overlaid red line aligned with the horizon of the scene?"
overlay = {{ kind = "horizon", position = 0.4 }}

[penalties]
anchors = 1.0

[anchors]
pool = 4
least = 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(steps=3))
    return path


def arguments(recipe, output):
    folders = ["--generator", str(WEIGHTS / "pipeline"), "--critic", str(WEIGHTS / "critic")]
    return ["train", str(recipe), *folders, "--output", str(output), "--device", "cpu"]


def test_train_writes_its_files(recipe, tmp_path):
    result = CliRunner().invoke(app, arguments(recipe, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "lora.safetensors",
        "checkpoint.safetensors",
        "before_after.png",
        "progress.png",
        "report.json",
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["steps"], report["pairs"]) == (3, 2)  # two noises of the one held-out prompt
    metadata = read_tensors(tmp_path / "out" / "lora.safetensors")[1]
    verdict = json.loads(metadata["dual_process.verdict"])
    assert {*verdict} == {"outcome", "verdict", "lost", "before", "after"}  # as the node writes them
    assert {name: report[name] for name in verdict} == verdict
    assert verdict["verdict"] in " ".join(result.output.split())
    assert len(json.loads(metadata["dual_process.anchors"])) >= 2


def test_the_savings_that_are_not_exact(recipe, tmp_path):
    """The demo's own VAE as the tiny decoder changes nothing; the others do."""
    ways = {
        "plain": [],
        "tiny": ["--tiny-decoder", str(WEIGHTS / "pipeline" / "vae")],
        "small": ["--critic-size", "84"],
        "half": ["--lora-targets", "attention + feed-forward, last half"],
    }
    loras = {}
    for name, options in ways.items():
        result = CliRunner().invoke(app, [*arguments(recipe, tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        loras[name] = read_tensors(tmp_path / name / "lora.safetensors")
    plain, metadata = loras["plain"]
    for name in ("tiny", "small"):
        same = all(torch.equal(tensor, plain[key]) for key, tensor in loras[name][0].items())
        assert same == (name == "tiny")
    assert {key.split(".")[1] for key in loras["half"][0]} == {"single_transformer_blocks"}
    assert "tiny decoder vae" in loras["tiny"][1]["dual_process.base_model"]
    assert "at most 84" in loras["small"][1]["dual_process.critics"]
    assert "settings" not in metadata["dual_process.base_model"] + metadata["dual_process.critics"]


def test_turns_train_the_same_lora(recipe, tmp_path):
    ways = {"together": [], "turns": ["--take-turns", "--checkpointing"], "stream": ["--stream"]}
    ways["apart"] = ["--critic-device", "cpu"]
    for name, options in ways.items():
        result = CliRunner().invoke(app, [*arguments(recipe, tmp_path / name), *options])
        assert result.exit_code == 0, result.output
    together, *others = (read_tensors(tmp_path / name / "lora.safetensors")[0] for name in ways)
    for other in others:
        for name, tensor in together.items():
            assert (other[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_a_quantised_generator_is_trained_and_said(recipe, tmp_path):
    command = [*arguments(recipe, tmp_path / "out"), "--stream", "--generator-quantization", "fp8"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    metadata = read_tensors(tmp_path / "out" / "lora.safetensors")[1]
    assert json.loads(metadata["dual_process.base_model"])["dtype"] == "fp8, float32"


def test_interrupt_saves_the_lora_and_resume_goes_on(recipe, tmp_path):
    recipe.write_text(RECIPE.format(steps=100000))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "dual_process", *arguments(recipe, output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (output / "checkpoint.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "--resume" in said
    _, metadata = read_tensors(output / "lora.safetensors")
    done = json.loads(metadata["dual_process.history"])["steps"]
    assert 25 <= done < 100000
    recipe.write_text(RECIPE.format(steps=done + 2))
    result = CliRunner().invoke(app, [*arguments(recipe, output), "--resume"])
    assert result.exit_code == 0, result.output
    assert json.loads((output / "report.json").read_text())["steps"] == done + 2


@pytest.fixture
def unfinished(tmp_path):
    """A folder that holds the checkpoint of a run that was interrupted after the second of six steps."""
    seen = []
    settings = tiny_run()
    result = distill(FakeGenerator(), FakeCritic(), settings, lambda r, _: seen.append(r), lambda: len(seen) == 2)
    result.save_checkpoint(tmp_path / "unfinished" / "checkpoint.safetensors")
    return tmp_path / "unfinished"


def test_an_unfinished_run_is_not_overwritten_without_a_word(recipe, unfinished):
    before = (unfinished / "checkpoint.safetensors").read_bytes()
    for call in (["demo", "--output", str(unfinished)], arguments(recipe, unfinished)):
        result = CliRunner().invoke(app, call)
        assert_error(result, "an unfinished run (2 of 6 steps)", "--resume", "--overwrite")
        assert_error(CliRunner().invoke(app, [*call, "--resume", "--overwrite"]), "got both")
    assert [p.name for p in unfinished.iterdir()] == ["checkpoint.safetensors"]
    assert (unfinished / "checkpoint.safetensors").read_bytes() == before


def test_an_unfinished_run_is_overwritten_when_asked_and_a_finished_one_at_once(recipe, unfinished):
    result = CliRunner().invoke(app, [*arguments(recipe, unfinished), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert json.loads((unfinished / "report.json").read_text())["steps"] == 3
    recipe.write_text(RECIPE.format(steps=1))
    result = CliRunner().invoke(app, arguments(recipe, unfinished))
    assert result.exit_code == 0, result.output
    assert json.loads((unfinished / "report.json").read_text())["steps"] == 1


def test_the_demo_overwrites_an_unfinished_run_when_asked(unfinished):
    result = short_demo(unfinished, "--steps", "1", "--overwrite")
    assert result.exit_code == 0, result.output
    assert json.loads((unfinished / "report.json").read_text())["steps"] == 1


def test_a_file_that_is_no_checkpoint_stops_nothing(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a fi")
    assert shared.checkpoint_to_resume(tmp_path, resume=False, overwrite=False) is None


def short_demo(output, *options):
    return CliRunner().invoke(app, ["demo", "--output", str(output), "--pairs", "2", *options])


def test_a_finished_demo_leaves_its_files(tmp_path):
    result = short_demo(tmp_path / "[red]", "--steps", "1")
    assert result.exit_code == 0, result.output
    assert "[red]" in result.output
    assert {p.name for p in (tmp_path / "[red]").iterdir()} == {
        "lora.safetensors",
        "checkpoint.safetensors",
        "before_after.png",
        "progress.png",
        "report.json",
    }
    before, _ = read_tensors(tmp_path / "[red]" / "lora.safetensors")
    result = short_demo(tmp_path / "[red]", "--steps", "1", "--resume")  # only measures again
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "[red]" / "report.json").read_text())["steps"] == 1
    after, _ = read_tensors(tmp_path / "[red]" / "lora.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_ask(tmp_path):
    scenes = world.scenes_from_noise(["a night sky over the sea"], torch.zeros(1, 16, 14, 14))
    save_image(world.render(scenes), tmp_path / "night.png")
    call = ["ask", "--critic", str(WEIGHTS / "critic"), "--image", str(tmp_path / "night.png")]
    result = CliRunner().invoke(app, [*call, "--question", "Is it night?", "--json"])
    said = json.loads(result.stdout)
    assert said["reply"] == "Yes"
    assert said["p_answer"] > 0.5


def test_paint_makes_a_picture_step_by_step_and_goes_on(tmp_path):
    call = ["paint", "a blue house far left and two balls", "--output", str(tmp_path / "way"), "--seed", "3"]
    result = CliRunner().invoke(app, [*call, "--budget", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stop_reason"] == "budget"
    unfinished = "holds an unfinished picture of 'a blue house far left and two balls': go on with it by --resume"
    assert_error(CliRunner().invoke(app, call), unfinished, "begin anew by --overwrite")
    result = CliRunner().invoke(app, [*call, "--resume", "--json"])
    assert result.exit_code == 0, result.output
    way = json.loads(result.stdout)
    assert (way["stop_reason"], way["passes"]) == ("done", 4)
    assert "4 of 4 facts held" in result.stderr
    assert_error(CliRunner().invoke(app, call), "holds the finished picture of", "begin anew by --overwrite")
    names = {path.name for path in (tmp_path / "way").iterdir()}
    assert names >= {"trajectory.json", "filmstrip.png", "chats.jsonl", "latents.safetensors", "step_03.png"}
    whole = CliRunner().invoke(app, [*call[:-3], str(tmp_path / "at_once"), "--seed", "3", "--json"])
    assert json.loads(whole.stdout) == way


def test_paint_says_what_it_needs(tmp_path):
    call = ["paint", "a house", "--output", str(tmp_path / "way")]
    assert_error(CliRunner().invoke(app, [*call, "--painter", "flux"]), "both --painter and --critic", "got one")
    assert_error(CliRunner().invoke(app, [*call, "--resume"]), "folder with a trajectory.json, found none")
    assert_error(CliRunner().invoke(app, [*call, "--plan", "none.json"]), "Expected a plan as a JSON file at none.json")
    (tmp_path / "own.json").write_text('{"facts": [{"id": "f1", "question": "Is it night?"}]}')
    own = CliRunner().invoke(app, [*call, "--plan", str(tmp_path / "own.json"), "--budget", "1", "--json"])
    assert json.loads(own.stdout)["plan"]["source"] == "user"
    result = CliRunner().invoke(app, ["paint", "a queen", "--output", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "Expected a prompt of this world" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train_stepz = 3", "Unknown recipe keys ['train_stepz']"),
        ("rank = 0", "rank"),
        ("seed = -1", "seed"),
    ],
)
def test_a_bad_recipe_is_named(recipe, tmp_path, change, message):
    recipe.write_text(f"{change}\n{recipe.read_text()}")
    result = CliRunner().invoke(app, arguments(recipe, tmp_path / "out"))
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("device", ["foo", "mps:0", "meta", "xpu", "cuda:99"])
@pytest.mark.parametrize("command", ["train", "ask"])
def test_a_wrong_device_is_named(recipe, tmp_path, command, device):
    ask = ["ask", "--critic", str(WEIGHTS / "critic"), "--image", str(blank(tmp_path)), "--question", "Is it night?"]
    call = [*arguments(recipe, tmp_path / "out"), "--device", device] if command == "train" else ask
    result = CliRunner().invoke(app, [*call, "--device", device])
    assert_error(result, "Expected a device", f"got '{device}'")


def blank(folder):
    save_image(torch.zeros(3, 112, 112), folder / "blank.png")
    return folder / "blank.png"


def assert_error(result, *parts):
    """The pack's own error, in one message."""
    said = " ".join(result.output.split())
    assert (result.exit_code, said[:6]) == (1, "Error:"), result.output
    assert all(part in said for part in parts), said
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("--pairs", value, "Invalid value for '--pairs'") for value in ("0", "-3")),
        *(("--steps", value, "Invalid value for '--steps'") for value in ("0", "-1")),
        *(("--line", value, "Invalid value for '--line'") for value in ("1.5", "-0.1", "nan")),
        ("--learning-rate", "0", "Error: Expected learning_rate to be a number and above 0, got 0.0"),
        ("--learning-rate", "-1", "Error: Expected learning_rate to be a number and above 0, got -1.0"),
        ("--seed", "-1", "Error: Expected seed to be a whole number from 0"),
    ],
)
def test_wrong_numbers_are_named(tmp_path, option, value, message):
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path), option, value])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made_is_named(recipe, tmp_path):
    for command in (["demo", "--output", str(recipe)], arguments(recipe, recipe / "out")):
        assert_error(CliRunner().invoke(app, command), "Could not make the output folder", "Choose another.")


def test_square_brackets_in_paths_and_errors_are_shown_as_they_are(recipe, tmp_path):
    call = arguments(recipe, tmp_path / "out")
    call[call.index("--generator") + 1] = str(tmp_path / "[/INST] [red] :warning:")
    result = CliRunner().invoke(app, call)
    assert isinstance(result.exception, SystemExit)
    assert "[/INST] [red] :warning:" in " ".join(result.output.split())


def test_square_brackets_in_tables_and_progress_are_shown_as_they_are(capsys):
    shared.print_measures({"pairs": "[/INST]", "before": {"[red]": 0.0}, "after": {"[red]": 1.0}})
    with shared.progress_bars(3):
        shared.console.print("[/INST]")
    said = capsys.readouterr().err
    assert said.count("[/INST]") == 2
    assert "[red]" in said
    assert "[bold]" not in said


def test_a_missing_picture_is_named(tmp_path):
    call = ["ask", "--critic", str(WEIGHTS / "critic"), "--image", str(tmp_path / "none.png"), "--question", "Is it?"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1
    assert "none.png" in "".join(result.output.split())


def planned(memory, *options):
    folders = ["--generator", str(WEIGHTS / "pipeline"), "--critic", str(WEIGHTS / "critic")]
    return CliRunner().invoke(app, ["plan", *folders, "--memory", str(memory), "--size", "112", *options])


def test_plan_says_what_fits_without_loading_weights(monkeypatch):
    monkeypatch.setattr(safetensors, "safe_open", None)
    result = planned(24, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["generator"], row["critic"]) for row in rows[:2]] == [("16bit", "16bit"), ("16bit", "8bit")]
    assert {row["plan"] for row in rows} == {"resident"}
    assert all(0.5 < row["peak_gb"] < 0.7 and row["moved_gb"] == 0 for row in rows)
    assert "resident" in planned(24).stdout


def test_plan_for_two_cards():
    rows = json.loads(planned(24, "--json", "--two-cards").stdout)
    assert rows[0]["plan"] == "resident | resident"
    together = json.loads(planned(24, "--json").stdout)[0]
    assert rows[0]["peak_gb"] < together["peak_gb"]


def test_plan_says_when_nothing_fits():
    result = planned(0.1)
    assert result.exit_code == 1
    assert "No plan fits 0.1 GB" in result.output


def test_train_says_its_plan_and_what_it_took(recipe, tmp_path):
    result = CliRunner().invoke(app, arguments(recipe, tmp_path / "out"))
    line = r"Memory plan: pipeline float32 resident, critic float32 resident: about 0\.\d of \d+\.\d GB free"
    assert re.search(line, result.output)
    assert re.search(r"Most memory in use: \d+\.\d GB", result.output)


def test_train_goes_on_by_a_thriftier_plan_when_memory_runs_out(recipe, tmp_path, monkeypatch, caplog):
    estimate, calls = DiffusersGenerator.estimate, []

    def short_of_memory(self, *args, **kwargs):
        calls.append(self.keeps_graph)
        if len(calls) == 2:  # in the first step, of an anchor
            raise torch.OutOfMemoryError("out of memory")
        return estimate(self, *args, **kwargs)

    monkeypatch.setattr(DiffusersGenerator, "estimate", short_of_memory)
    result = CliRunner().invoke(app, arguments(recipe, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "Memory ran out after step 0 with the plan 'resident'" in caplog.text
    assert calls[0] is False
    assert calls[-1] is True
    monkeypatch.setattr(DiffusersGenerator, "estimate", estimate)
    CliRunner().invoke(app, arguments(recipe, tmp_path / "whole"))
    ours, whole = (read_tensors(tmp_path / name / "lora.safetensors")[0] for name in ("out", "whole"))
    for name, tensor in whole.items():
        assert (ours[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
