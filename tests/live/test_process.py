"""Painting by process in a live ComfyUI: the demo, a MODEL as a painter, cancel and going on, steps by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graphs import PROCESS, Graph, node
from live_server import Server
from PIL import Image

pytestmark = pytest.mark.comfyui
PROMPT = "a yellow house, a blue house and two green trees by dusk"


def graph(prompt: str = PROMPT, painter: str = "demo", **changes: Any) -> Graph:
    output = 4 if painter == "demo" else 0
    settings = {**PROCESS, **changes}
    return {
        "demo": node("DualProcessLoadDemoStrokes"),
        "paint": node(
            "DualProcessPaintByProcess", painter=[painter, output], critic=["demo", 3], prompt=prompt, **settings
        ),
        "picture": node("PreviewImage", images=["paint", 0]),
        "strip": node("PreviewImage", images=["paint", 3]),
        "report": node("PreviewAny", source=["paint", 4]),
        "save": node("DualProcessSaveTrajectory", trajectory=["paint", 2], name="live"),
    }


def told(outputs: dict[str, Any], key: str = "report") -> str:
    return "".join(outputs[key]["text"])


def folder(server: Server, outputs: dict[str, Any]) -> Path:
    """Where the trajectory was saved."""
    return server.picture(outputs["save"]["images"][0]).parent


def test_the_demo_paints_what_its_prompt_says(server: Server) -> None:
    outputs = server.run(graph())
    assert told(outputs).startswith("Everything is as planned.\n6 of 6 facts held")
    assert Image.open(server.picture(outputs["picture"]["images"][0])).size == (128, 128)
    made = json.loads((folder(server, outputs) / "trajectory.json").read_text())
    assert [step["ins"] for step in made["steps"]][1:] == [
        *("add a yellow house far left", "add a blue house far right"),
        *("add a tree near left", "add a tree near right"),
    ]
    kept = [step["keep_psnr"] for step in made["steps"][1:]]
    assert min(kept) > 30
    server.free()
    again = server.run(graph())
    assert (folder(server, again) / "trajectory.json").read_text() == (
        folder(server, outputs) / "trajectory.json"
    ).read_text()


def test_a_painter_of_a_model_inpaints_and_gives_a_latent(server: Server) -> None:
    parts = graph(painter="painter", whole_draft=True, restarts=1)
    parts["painter"] = node(
        "DualProcessPainter",
        model=["demo", 0],
        clip=["demo", 1],
        vae=["demo", 2],
        mode="inpaint",
        width=128,
        height=128,
        steps=1,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        negative="",
        **{"guidance": 0.0, "denoise": 1.0, "denoise_whole": 0.6, "grow": 0},
    )
    parts["decode"] = node("VAEDecode", samples=["paint", 1], vae=["demo", 2])
    parts["decoded"] = node("PreviewImage", images=["decode", 0])
    outputs = server.run(parts)
    whole, decoded = (Image.open(server.picture(outputs[key]["images"][0])) for key in ("picture", "decoded"))
    assert whole.size == decoded.size == (128, 128)
    assert max(abs(a - b) for a, b in zip(whole.tobytes(), decoded.tobytes(), strict=True)) <= 4
    made = json.loads((folder(server, outputs) / "trajectory.json").read_text())
    assert made["models"]["painter"]["architecture"] == "flux"
    assert all(step["mask"] for step in made["steps"] if step["stroke"] != "draft")


def begun(server: Server, seed: int) -> tuple[str, Path]:
    """Queues a process and waits until it has drafted; the prompt's id and where its steps are kept."""
    interrupted = server.base / "output" / "dual_process" / "interrupted"
    known = {*interrupted.glob("*")}
    number = server.queue(graph(seed=seed))
    server.wait(lambda: {path.parent for path in interrupted.glob("*/trajectory.json")} - known, "draft")
    (kept,) = {*interrupted.glob("*")} - known
    return number, kept


def steps_in(kept: Path) -> int:
    return len(json.loads((kept / "trajectory.json").read_text())["steps"])


def test_a_cancelled_process_goes_on_to_the_same_end(server: Server) -> None:
    whole = server.run(graph(seed=4))
    server.free()
    number, kept = begun(server, seed=4)
    server.post("/interrupt", {})
    entry = server.finish(number)
    assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
    assert (kept / "filmstrip.png").is_file()
    assert 1 <= steps_in(kept) < 5
    going_on = graph(seed=4, resume=["load", 0])
    going_on["load"] = node("DualProcessLoadTrajectory", folder=f"interrupted/{kept.name}")
    outputs = server.run(going_on)
    files = [folder(server, o) / "trajectory.json" for o in (whole, outputs)]
    assert files[0].read_text() == files[1].read_text()


def test_the_same_graph_goes_on_after_a_kill(server: Server) -> None:
    _, kept = begun(server, seed=7)
    server.kill()
    steps = steps_in(kept)
    assert 1 <= steps < 5
    server.start()
    outputs = server.run(graph(seed=7))
    assert f"Goes on from the {steps} steps of a run that ended early, in {kept.name}." in server.log()
    assert not kept.exists()
    server.free()
    whole = server.run(graph(seed=7))
    files = [folder(server, o) / "trajectory.json" for o in (whole, outputs)]
    assert files[0].read_text() == files[1].read_text()
    assert len(json.loads(files[0].read_text())["steps"]) == 5


def test_steps_by_hand_and_an_inspection(server: Server) -> None:
    parts = graph("a blue house far left and a green tree near right by night", budget=1)
    hand = {"painter": ["demo", 4], "critic": ["demo", 3], "local_prompt": "", "keep": "always", "seed": 1}
    parts["first"] = node("DualProcessProcessStep", trajectory=["paint", 2], instruction="", **hand)
    parts["second"] = node(
        "DualProcessProcessStep", trajectory=["first", 2], instruction="add a white ball near left", **hand
    )
    parts["report"] = node("PreviewAny", source=["second", 4])
    parts["plan"] = node("DualProcessPlanImage", prompt="a blue house far left", own_plan="", critic=["demo", 3])
    parts["inspect"] = node("DualProcessInspectImage", critic=["demo", 3], image=["second", 0], plan=["plan", 0])
    outputs = server.run(parts)
    assert told(outputs).startswith("Kept: add a white ball near left.")
    assert "✓ Is there a blue house far left in the image?" in told(outputs)
    assert "… Is there a green tree near right in the image?" in told(outputs)
    assert "✓ Is there a blue house far left in the image?" in told(outputs, "inspect")
    assert outputs["inspect"]["images"]
    assert "s1: add a blue house far left in a region of its own" in told(outputs, "plan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "The prompt is empty: say what the picture is to show, or connect a plan."),
        ({"prompt": "a purple dragon"}, "Expected a prompt of this world"),
    ],
)
def test_prompts_that_say_nothing_are_refused(server: Server, changes: dict[str, Any], message: str) -> None:
    assert message in server.error(graph(**changes))
