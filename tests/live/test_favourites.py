"""Pick Favourites in a live ComfyUI: rounds by API, and a person with a mouse, in both renderers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graphs import HELD_OUT, TRAINED, Graph, node
from live_server import Server, open_page
from PIL import Image
from safetensors import safe_open

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
NODE = "window.app.graph.nodes.find(n => n.type === 'DualProcessPickFavourites')"
PICKS = f"{NODE}.widgets.find(w => w.name === 'picks').value"
LOOK_AT = f"""() => {{ const [x, y] = {NODE}.pos; const view = window.app.canvas.ds;
  view.scale = 0.9; view.offset = [150 - x, 90 - y]; window.app.canvas.setDirty(true, true); }}"""
STATUS = "(document.querySelector('.dual-process-favourites .dp-status')?.textContent ?? '')"
SHOWN = """[...document.querySelectorAll('.dp-candidate img')].filter(p => p.complete && p.naturalWidth > 0)
  .map(p => p.src)"""


def graph(picks: str = "", **settings: Any) -> Graph:
    """Rounds of four pictures on the demo models, and the LoRA saved."""
    return {
        "demo": node("DualProcessLoadDemoModels"),
        "critic": node("DualProcessLoadDemoComparingCritic"),
        "prompts": node(
            "DualProcessTrainingPrompts",
            clip=["demo", 1],
            text="\n".join(TRAINED[:3]),
            held_out="\n".join(HELD_OUT),
            file="(none: the text above)",
            guidance=0.0,
        ),
        "pick": node(
            "DualProcessPickFavourites",
            model=["demo", 0],
            vae=["demo", 2],
            prompts=["prompts", 0],
            critic=["critic", 0],
            picks=picks,
            **{
                "preset": "auto",
                "round_steps": 2,
                "learning_rate": 0.0,
                "seed": 0,
                "candidates": 4,
                "comparison": "How alike are the first picture and picture A, from 1 (not at all) to 5 (the same)? "
                "Answer with a number.",
                "rank": 0,
                "memory": "auto",
                **settings,
            },
        ),
        "save": node("DualProcessSaveDistilledLoRA", lora=["pick", 0], name="live/favourites", format="diffusers"),
        "liked": node("PreviewImage", images=["pick", 2]),
        "shown": node("PreviewImage", images=["pick", 1]),
    }


def shown_by(outputs: dict[str, Any]) -> dict[str, Any]:
    return outputs["pick"]["dual_process_favourites"][0]


def test_rounds_go_on_are_taken_back_and_survive_a_restart_of_the_graph(server: Server) -> None:
    first = server.run(graph(seed=3))
    assert {"pick", "shown"} <= first.keys()
    assert not {"save", "liked"} & first.keys()  # nothing is learnt yet
    assert [r["picks"] for r in shown_by(first)["rounds"]] == [None]
    two = server.run(graph("1 -2\n3", seed=3))
    state = shown_by(two)
    assert state["session"] == shown_by(first)["session"]
    assert [r["picks"] for r in state["rounds"]] == ["1 -2", "3", None]
    assert "save" in two
    assert len(two["liked"]["images"]) == 2
    folder = server.base / "output" / "dual_process" / "favourites" / state["session"]
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.jpg")}
    assert len(pictures) == 3 * 4
    assert Image.open(folder / "round_3_4.jpg").size == (112, 112)
    server.free()
    back = server.run(graph("1 -2", seed=3))  # the second round is taken back
    assert [r["picks"] for r in shown_by(back)["rounds"]] == ["1 -2", None]
    assert (folder / "round_2_1.jpg").read_bytes() == pictures["round_2_1.jpg"]
    again = server.run(graph("1 -2\n3", seed=3))  # and ended as before
    assert shown_by(again)["rounds"] == state["rounds"]
    assert (folder / "round_3_1.jpg").read_bytes() == pictures["round_3_1.jpg"]


def test_a_cancelled_round_leaves_those_before_and_keeps_its_lora(server: Server) -> None:
    state = shown_by(server.run(graph("1", seed=5)))
    loras = server.base / "models" / "loras" / "dual_process" / "interrupted"
    picture = server.base / "output" / "dual_process" / "favourites" / state["session"] / "round_2_4.jpg"
    before, kept = picture.stat().st_mtime_ns, set(loras.glob("*"))
    number = server.queue(graph("1\n2", seed=5, round_steps=5000))
    server.wait(lambda: picture.stat().st_mtime_ns > before, "begin the second round")

    def trains() -> bool:
        done, of = server.get("/test/progress").get("pick", [0, 0])
        return of == 5000 and done > 0  # not still making anchors

    server.wait(trains, "train a step")
    server.post("/interrupt", {})
    entry = server.finish(number)
    assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
    (lora,) = set(loras.glob("*")) - kept
    with safe_open(lora, "pt") as file:
        assert 0 < json.loads(file.metadata()["dual_process.history"])["steps"] < 5000
    again = shown_by(server.run(graph("1", seed=5, round_steps=3)))
    assert {**again, "made": 0} == {**state, "made": 0}


@pytest.mark.parametrize(
    ("picks", "message"),
    [
        ("1\n\n2", "Round 2: No picture is marked"),
        ("1 2 3 4", "Round 1: Every picture has the same mark"),
        ("2 -2", "Round 1: Marked as favourite and as rejected at once: picture 2"),
        ("5", "Round 1: Expected marks of 4 pictures, got one of picture 5"),
        ("a house", "Round 1: Expected the numbers of pictures from 1"),
    ],
)
def test_marks_that_say_nothing_are_refused(server: Server, picks: str, message: str) -> None:
    assert message in server.error(graph(picks))


def test_a_person_marks_pictures_and_takes_a_round_back(
    server: Server, context: Any, request: Any, tmp_path: Path
) -> None:
    page = open_page(server, context)
    page.evaluate("prompt => window.app.loadApiJson(prompt, 'favourites')", graph(seed=len(request.node.name)))
    page.wait_for_function(f"{STATUS} === 'Run shows pictures to mark.'")
    page.evaluate(LOOK_AT)
    show = page.locator(".dual-process-favourites")
    show.get_by_role("button", name="Show pictures").click()
    page.wait_for_function(f"() => {SHOWN}.length === 4")
    first = page.evaluate(SHOWN)
    following = show.get_by_role("button", name="Next round")
    assert following.is_disabled()
    show.locator("img").nth(1).click()
    show.get_by_title("Reject: picture 4").click()
    page.wait_for_function(f"{PICKS} === '2 -4'")
    show.get_by_title("Favourite: picture 4").click()  # another mark of the same picture
    page.wait_for_function(f"{PICKS} === '2 4'")
    show.get_by_title("Favourite: picture 4").click()  # none
    page.wait_for_function(f"{PICKS} === '2'")
    page.screenshot(path=tmp_path / "marked.png")
    following.click()
    page.wait_for_function(f"{STATUS}.startsWith('Round 2: mark')")
    page.wait_for_function(f"first => {SHOWN}.length === 4 && {SHOWN}[0] !== first", arg=first[0])
    show.get_by_title("Favourite: picture 1").click()
    page.wait_for_function(f"{PICKS} === '2\\n1'")
    following.click()
    page.wait_for_function(f"{STATUS}.startsWith('Round 3: mark')")
    page.screenshot(path=tmp_path / "third_round.png")

    workflow = page.evaluate("() => window.app.graph.serialize()")
    page.reload()
    page.wait_for_function("window.app && window.app.extensionManager")
    page.evaluate("data => window.app.loadGraphData(data)", workflow)
    page.evaluate(LOOK_AT)
    page.wait_for_function(f"{STATUS}.startsWith('Round 3: mark')")
    page.get_by_title("Round 1", exact=True).click()
    page.wait_for_function(f"{STATUS} === 'Round 1, over: 1 ♥  0 ✕'")
    assert show.locator('.dp-candidate[data-mark="liked"] span').all_inner_texts() == ["2"]
    assert following.is_disabled()
    page.screenshot(path=tmp_path / "looked_back.png")
    show.get_by_role("button", name="Go back to round 1").click()
    show.get_by_title("Reject: picture 3").click()
    page.wait_for_function(f"{PICKS} === '2 -3'")
    page.screenshot(path=tmp_path / "went_back.png")
    following.click()
    page.wait_for_function(f"{STATUS}.startsWith('Round 2: mark')")
    assert page.locator(".dp-rounds button").count() == 2
