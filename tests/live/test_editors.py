"""Drawing in the nodes of overlays, in both renderers: the widgets say what is drawn, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_server import Server, open_page
from PIL import Image

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
TRACKER = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
# The node in question draws on a picture that has no preview of its own; Apply Overlay shows what comes of it.
BUILD = """type => { const graph = window.app.graph; graph.clear();
  const make = (type, x, y) => {
    const node = LiteGraph.createNode(type); graph.add(node); node.pos = [x, y]; return node; };
  const into = (from, to, input) => from.connect(0, to, to.inputs.findIndex(i => i.name === input));
  const load = make('LoadImage', 0, 0), invert = make('ImageInvert', 0, 420), drawn = make(type, 320, 0);
  const apply = make('DualProcessApplyOverlay', 700, 0), save = make('SaveImage', 700, 150);
  load.widgets[0].value = 'scene.png';
  into(load, invert, 'image'); into(invert, drawn, 'image'); into(invert, apply, 'image');
  into(drawn, apply, 'overlay'); into(apply, save, 'images');
  Object.assign(window.app.canvas.ds, { scale: 1, offset: [100, 100] }); window.app.canvas.setDirty(true, true); }"""
REFERENCE = """() => { const graph = window.app.graph; graph.clear();
  const make = (type, x) => {
    const node = LiteGraph.createNode(type); graph.add(node); node.pos = [x, 0]; return node; };
  const load = make('LoadImage', 0), palette = make('DualProcessPaletteOverlay', 320);
  const apply = make('DualProcessApplyOverlay', 700), show = make('PreviewImage', 950);
  load.widgets[0].value = 'two_colors.png';
  load.connect(0, palette, palette.inputs.findIndex(i => i.name === 'reference'));
  load.connect(0, apply, 0); palette.connect(0, apply, 1); apply.connect(0, show, 0);
  Object.assign(window.app.canvas.ds, { scale: 1, offset: [100, 100] }); window.app.canvas.setDirty(true, true); }"""
NODE = """[window.app.graph, ...window.app.graph.subgraphs.values()].flatMap(g => g.nodes)
  .find(n => n.type.startsWith('DualProcess') && n.type !== 'DualProcessApplyOverlay')"""
VALUES = f"""() => Object.fromEntries({NODE}.widgets.filter(w => w.serialize !== false).map(w => [w.name, w.value]))"""
SET = f"""values => {{ for (const [name, value] of Object.entries(values))
  {NODE}.widgets.find(w => w.name === name).value = value; }}"""
NEW = f"""() => {{ const editors = document.querySelectorAll('.dp-editor'), {{ widgets }} = {NODE};
  return editors.length === 1 && widgets.some(w => w.element === editors[0])
    && editors[0].querySelector('[data-key]'); }}"""
COPY = f"""() => {{ const {{ canvas }} = window.app, node = {NODE};
  canvas.selectNode(node); canvas.copyToClipboard(); canvas.pasteFromClipboard();
  const [pasted] = canvas.selectedItems, values = n => JSON.stringify(n.serialize().widgets_values);
  const same = values(pasted) === values(node); window.app.graph.remove(pasted); return same; }}"""


class Drawing:
    """A page with a node's editor, and a user's mouse and keyboard on it."""

    def __init__(self, server: Server, page: Any, node: str) -> None:
        size = 192, 128
        Image.new("RGB", size, "#202020").save(server.base / "input" / "scene.png")
        self.server, self.page = server, page
        page.evaluate(BUILD, f"DualProcess{node}")
        self.surface = page.locator(".dp-surface")
        self.surface.locator("[data-key]").first.wait_for(state="attached")
        page.wait_for_timeout(500)
        page.evaluate(f"() => {TRACKER}.captureCanvasState()")

    def values(self) -> dict[str, Any]:
        return self.page.evaluate(VALUES)

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the picture is, given in fractions."""
        frame = self.surface.locator(".dp-frame").bounding_box()
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.screen(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.screen(*end), steps=4)
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(500)  # the frontend takes a state to undo to in a later frame

    def item(self, key: str) -> Any:
        return self.surface.locator(f"[data-key='{key}']")

    def undo(self) -> None:
        """The nodes are made anew, and so are their editors."""
        self.page.evaluate(f"() => {TRACKER}.undo()")
        self.page.wait_for_function(NEW)

    def type(self, **values: Any) -> None:
        """Changes widgets by other means than the editor's."""
        self.page.evaluate(SET, values)

    def reload(self) -> None:
        self.page.wait_for_timeout(1000)  # the frontend keeps its draft a moment later
        self.page.reload()
        self.page.wait_for_function(f"() => window.app?.extensionManager && window.app.graph && {NODE}")

    def keeps(self, values: dict[str, Any]) -> None:
        """The values survive a copy, a file, a reload of the page, and a subgraph."""
        assert self.values() == values
        assert self.page.evaluate(COPY)
        self.page.evaluate("() => window.app.loadGraphData(window.app.graph.serialize())")
        assert self.values() == values
        self.reload()
        assert self.values() == values
        self.page.evaluate(f"() => {{ window.app.graph.convertToSubgraph(new Set([{NODE}])); }}")
        assert self.values() == values
        self.page.evaluate(f"() => window.app.canvas.setGraph({NODE}.graph)")
        self.surface.locator("[data-key]").first.wait_for(state="attached")

    def picture(self) -> Image.Image:
        """Runs the graph; the picture with the overlay."""
        known = self.server.get("/history").keys()
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        (new,) = self.server.wait(lambda: self.server.get("/history").keys() - known, "run the graph")
        (saved,) = (image for shown in self.server.finish(new)["outputs"].values() for image in shown.get("images", ()))
        return Image.open(self.server.picture(saved)).convert("RGB")


@pytest.fixture
def draw(server: Server, context: Any) -> Any:
    return lambda node: Drawing(server, open_page(server, context), node)


def test_horizon(draw: Any, tmp_path: Path) -> None:
    horizon = draw("HorizonOverlay")
    position, color, thickness, tilt = 0.3, "#ff0000", 0.02, 0
    assert horizon.values() == {"position": position, "color": color, "thickness": thickness, "tilt": tilt}
    horizon.drag((0.6, 0.3), (0.6, 0.5))
    horizon.press("ArrowUp")
    assert horizon.values()["position"] == 0.49
    horizon.press("Shift+ArrowDown")
    assert horizon.values()["position"] == 0.54
    horizon.undo()
    assert horizon.values()["position"] == 0.49
    horizon.item("right").focus()
    horizon.press("Shift+ArrowUp", "ArrowUp")
    assert horizon.values()["tilt"] == 3
    horizon.drag((0.92, 0.49 - 0.42 * 0.0524), (0.92, 0.49 - 0.42 * 0.3640))  # tan 3° and tan 20°
    assert horizon.values()["tilt"] == 20
    horizon.page.screenshot(path=tmp_path / "tilted.png")
    assert horizon.item("line").get_attribute("aria-label") == "Horizon at 0.49"
    horizon.type(position=0.7, tilt=0)
    horizon.surface.get_by_label("Horizon at 0.70").wait_for(state="attached")
    horizon.keeps({"position": 0.7, "color": color, "thickness": thickness, "tilt": 0})
    horizon.drag((0.5, 0.2), (0.5, 0.25))
    assert horizon.values()["position"] == 0.25
    picture = horizon.picture()
    rows = [y for y in range(128) if picture.getpixel((96, y)) == (255, 0, 0)]
    assert rows in ([31, 32], [30, 31, 32, 33])
    backdrop = horizon.surface.locator("image[href*='temp']")
    backdrop.wait_for()
    horizon.page.screenshot(path=tmp_path / "over_its_picture.png")
    horizon.item("line").focus()
    horizon.press("ArrowDown")  # what a run has brought is saved with the next edit
    horizon.reload()
    horizon.page.evaluate(f"() => window.app.canvas.setGraph({NODE}.graph)")
    backdrop.wait_for()


def test_depth_points(draw: Any, tmp_path: Path) -> None:
    depth = draw("DepthPoints")
    depth.drag((0.3, 0.35), (0.2, 0.4))
    depth.press("ArrowRight", "Shift+ArrowDown")
    assert depth.values()["points"] == "0.21, 0.45\n0.7, 0.75"
    depth.drag((0.7, 0.75), (0.21, 0.45))
    assert depth.values()["points"] != "0.21, 0.45\n0.21, 0.45"  # no dot on another one
    depth.undo()
    depth.drag((0.5, 0.2), (0.5, 0.2))
    assert depth.values()["points"] == "0.21, 0.45\n0.7, 0.75\n0.5, 0.2"
    depth.page.get_by_title("Point C is the nearest").click()
    assert depth.values()["order"] == "CAB"
    depth.page.screenshot(path=tmp_path / "three.png")
    depth.undo()
    assert depth.values()["order"] == ""
    depth.page.get_by_title("Point C is the nearest").click()
    depth.item("A").focus()
    depth.press("Delete", "Delete")  # two are the fewest
    assert (depth.values()["points"], depth.values()["order"]) == ("0.7, 0.75\n0.5, 0.2", "BA")
    depth.page.get_by_title("Add a point").click()
    assert depth.values()["points"].splitlines()[2:] == ["0.5, 0.5"]
    depth.page.get_by_title("Remove the chosen point").click()
    depth.type(points="0.7, 0.75\n0.5, 0.3")
    depth.surface.get_by_label("Point B at 0.5, 0.3").wait_for()
    depth.keeps({"points": "0.7, 0.75\n0.5, 0.3", "color": "#ff0000", "radius": 0.035, "order": "BA"})
    depth.drag((0.7, 0.75), (0.25, 0.5))
    assert depth.picture().getpixel((48 - 5, 64)) == (255, 0, 0)


def test_composition(draw: Any, tmp_path: Path) -> None:
    composition = draw("Composition")
    composition.type(regions="")
    composition.page.get_by_title("Draw a region").click()
    composition.drag((0.1, 0.2), (0.5, 0.6))
    composition.page.keyboard.type("sky: wide ")
    assert composition.values()["regions"] == "0.1, 0.2, 0.4, 0.4: sky: wide "
    composition.press("Enter", "ArrowRight", "Shift+ArrowDown")
    assert composition.values()["regions"] == "0.11, 0.25, 0.4, 0.4: sky: wide"
    composition.drag((0.51, 0.65), (0.6, 0.7))
    composition.press("ArrowLeft")
    assert composition.values()["regions"] == "0.11, 0.25, 0.48, 0.45: sky: wide"
    composition.undo()
    assert composition.values()["regions"] == "0.11, 0.25, 0.49, 0.45: sky: wide"
    composition.page.get_by_title("Draw a line").click()
    composition.drag((0.1, 0.8), (0.9, 0.9))
    composition.page.keyboard.type("shore")
    assert composition.values()["lines"] == "0.1, 0.8, 0.9, 0.9: shore"
    composition.page.get_by_title("Draw a text").focus()
    composition.press("Enter", "ArrowDown", "Delete", "Shift+Tab")
    assert composition.values()["texts"] == ""
    composition.page.get_by_title("Draw a text").click()
    composition.drag((0.8, 0.2), (0.8, 0.1))
    composition.page.keyboard.type("sun")
    assert composition.values()["texts"] == "0.8, 0.1: sun"
    composition.page.screenshot(path=tmp_path / "composed.png")
    regions = "not a row\n0.5, 0.2, 0.4, 0.3"
    composition.type(regions=regions, texts="")
    composition.surface.get_by_label("region at 0.5, 0.2").wait_for()
    composition.drag((0.7, 0.35), (0.4, 0.35))
    assert composition.values()["regions"] == "not a row\n0.2, 0.2, 0.4, 0.3"
    composition.type(regions="0.2, 0.2, 0.4, 0.3")
    fixed = {"color": "#ff0000", "thickness": 0.008}
    lines = "0.1, 0.8, 0.9, 0.9: shore"
    composition.keeps({"regions": "0.2, 0.2, 0.4, 0.3", "lines": lines, "texts": "", **fixed})
    composition.drag((0.4, 0.35), (0.45, 0.5))
    picture = composition.picture()
    assert picture.getpixel((48, 70)) == (255, 0, 0)  # the left side, now at a quarter
    assert picture.getpixel((38, 70)) != (255, 0, 0)


def test_a_palette_is_taken_from_a_picture_and_kept(server: Server, context: Any, tmp_path: Path) -> None:
    page = open_page(server, context)
    picture = Image.new("RGB", (64, 64), "#204060")
    picture.paste("#ff8000", (0, 0, 64, 20))
    picture.save(server.base / "input" / "two_colors.png")
    page.evaluate(REFERENCE)
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    page.get_by_text("Taken:").wait_for()
    page.screenshot(path=tmp_path / "taken.png")
    page.get_by_role("button", name="Keep", exact=True).click()
    page.get_by_text("Taken:").wait_for(state="hidden")
    assert page.evaluate(VALUES)["colors"] == ["#204060", "#ff8000"]
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (palette,) = (row["inputs"] for row in prompt.values() if row["class_type"] == "DualProcessPaletteOverlay")
    assert palette["colors"] == {"__value__": ["#204060", "#ff8000"]}
    assert "reference" not in palette
