"""A user's mouse and keyboard on the graph, in the classic renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SLOT = """([type, kind, name]) => { const node = window.app.graph.nodes.find(n => n.type === `DualProcess${type}`);
  const i = node[kind].findIndex(slot => slot.name === name), { scale, offset } = window.app.canvas.ds;
  const at = kind === 'inputs' ? node.getInputPos(i) : node.getOutputPos(i);
  const box = window.app.canvas.canvas.getBoundingClientRect();
  return [box.left + (at[0] + offset[0]) * scale, box.top + (at[1] + offset[1]) * scale]; }"""


class Hands:
    """A mouse and a keyboard; counts what they do."""

    def __init__(self, page: Any) -> None:
        self.page, self.searches, self.drags = page, 0, 0

    def slot(self, where: str) -> list[float]:
        """Where the slot is on the screen that is called such as "LoadDemoModels.outputs.clip"."""
        return self.page.evaluate(SLOT, where.split(".", 2))

    def drag(self, start: str, end: str | tuple[int, int]) -> None:
        """From a slot to another, or to an empty place."""
        x, y = self.slot(start)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 20, y + 5, steps=4)
        self.page.mouse.move(*(self.slot(end) if isinstance(end, str) else end), steps=8)
        self.page.mouse.up()
        self.page.wait_for_timeout(1000)
        self.drags += 1

    def search(self, name: str, place: tuple[int, int], picture: Path | None = None) -> None:
        """Types a node's name into the search that is open, takes the first that is found, and puts it down."""
        count = self.page.evaluate("window.app.graph.nodes.length")
        self.page.keyboard.type(name, delay=20)
        self.page.wait_for_timeout(2000)
        if picture is not None:
            self.page.screenshot(path=picture)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(f"window.app.graph.nodes.length === {count + 1}")
        self.page.mouse.move(*place, steps=5)  # it hangs on the mouse until a click
        self.page.wait_for_timeout(1000)
        self.page.mouse.click(*place)
        self.page.wait_for_timeout(1000)
        self.searches += 1

    def pull(self, start: str, end: tuple[int, int], name: str, picture: Path | None = None) -> None:
        """Drags from a slot to an empty place, where the search opens for what fits."""
        self.drag(start, end)
        self.search(name, end, picture)
