"""What a training node shows: the state of its newest run, kept on the server beside what the run leaves.

The frontend gives each node a key of its own in its properties. A run writes into a folder of its own below
`output/dual_process/runs`, whose name ends in the key, so that every tab, a reload, and the next day see the same.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import uuid
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from server import PromptServer
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .run_files import favourites_folder, is_key, new_run_folder, newest_run

KEY = "dual_process_view"  # the node's property
STATE = "state.json"
EVENT = "dual_process.view"
PICTURE_SIZE = 320  # pixels, the longer side
MOST_POINTS = 1000  # of a curve; a longer one loses every second
log = logging.getLogger(__name__)

_running: dict[str, View] = {}


def view_key(hidden: Any) -> str | None:
    """The key that the frontend gave the node, from the workflow that came with the prompt."""
    workflow = ((hidden.extra_pnginfo if hidden is not None else None) or {}).get("workflow") or {}
    definitions = (workflow.get("definitions") or {}).get("subgraphs") or []
    number = str(hidden.unique_id or "").rsplit(":", 1)[-1]
    for graph in (workflow, *definitions):
        for node in graph.get("nodes") or []:
            key = (node.get("properties") or {}).get(KEY)
            if str(node.get("id")) == number and is_key(key):
                return key
    return None


def running(key: str) -> View | None:
    """The run that is going on under a key."""
    return _running.get(key)


class View:
    """The state of one run; every change goes to all tabs.

    Args:
        key: the node's; None where no frontend shows it, such as a run through the API.
        recipe: what is trained; None where the node's inputs do not even make one.
        prompts: of the pictures that are shown.
        about: lines on the preset and on what the user should know.
        memory: a line on the memory plan.
    """

    def __init__(
        self,
        key: str | None,
        node_id: str | None,
        recipe: Any,
        prompts: Sequence[str],
        about: Sequence[str],
        memory: str = "",
    ):
        self.key = key or uuid.uuid4().hex
        self.folder = new_run_folder(self.key)
        self.stop_requested = False
        questions = recipe.questions if recipe is not None else ()
        self._recent: list[float] = []  # seconds of the last steps
        self._lock = threading.Lock()  # tabs ask from the server's thread, and curves must be of one length
        self.state: dict[str, Any] = {
            "key": self.key,
            "run": self.folder.name,
            "node": node_id,
            "status": "preparing",
            "message": "",
            "about": list(about),
            "memory": memory,
            "step": 0,
            "train_steps": 0 if recipe is None else recipe.train_steps,
            "seconds_left": None,
            "questions": [{"text": q.text, "answer": q.answer, "role": q.role} for q in questions],
            "curves": {
                "step": [],
                "loss": [],
                "p_answer": [[] for _ in questions],
                "penalties": {name: [] for name in (recipe.penalties if recipe is not None else ())},
            },
            "looks": [],
            "pictures": {"prompts": list(prompts), "before": None, "now": None},
            "verdict": None,
            "saved": None,
        }
        _running[self.key] = self
        self._write()
        self._send({"started": True})

    def on_anchor(self, done: int, total: int) -> None:
        self._change(message=f"looking for anchors: picture {done} of {total}")

    def on_picture(self, done: int, total: int) -> None:
        self._change(message=f"held-out picture {done} of {total}")

    def on_step(self, report: Any, preview: Any) -> None:
        """After every step."""
        self._recent = [*self._recent[-19:], report.seconds]
        left = (report.train_steps - report.step) * sum(self._recent) / len(self._recent)
        row = {
            "step": report.step,
            "loss": finite(report.loss),
            "p_answer": [finite(p) for p in report.p_answer],
            "penalties": {name: finite(value) for name, value in report.penalties.items()},
        }
        self._add(row)
        self.state.update(status="training", message="", step=report.step, seconds_left=round(left, 1))
        self._send({"row": row, "status": "training", "message": "", "seconds_left": self.state["seconds_left"]})

    def show(self, step: int, pictures: Tensor, look: dict[str, Any] | None = None) -> None:
        """Held-out pictures [B, 3, H, W] in [0, 1] with their overlay on, after `step` steps, and what was measured."""
        which = "before" if step == 0 else "now"
        for number, picture in enumerate(pictures):
            image = to_pil_image(picture.float().clamp(0, 1))
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            image.save(self.folder / f"{which}_{number}.jpg", quality=88)
        self.state["pictures"][which] = step
        if look is not None:
            self.state["looks"].append({"step": step, **look})
        self._write()
        self._send({"pictures": self.state["pictures"], "looks": self.state["looks"]})

    def finish(self, status: str, message: str = "", **found: Any) -> None:
        """The end of the run: `status` is "done", "stopped" or "failed"; `found` may hold verdict and saved."""
        self._change(status=status, message=message, seconds_left=None, **found)
        self._write()
        _running.pop(self.key, None)

    def say(self, message: str) -> None:
        self._change(message=message)

    def saved_as(self, name: str) -> None:
        self._change(saved=name)
        self._write()

    def stop(self) -> None:
        """The user wants the run to end well, and to keep what is there."""
        self.stop_requested = True
        self._change(message="stopping after this step")

    def snapshot(self) -> dict[str, Any]:
        """The state as it is now."""
        with self._lock:
            return deepcopy(self.state)

    def _add(self, row: dict[str, Any]) -> None:
        curves = self.state["curves"]
        with self._lock:
            curves["step"].append(row["step"])
            curves["loss"].append(row["loss"])
            for curve, value in zip(curves["p_answer"], row["p_answer"], strict=True):
                curve.append(value)
            for name, value in row["penalties"].items():
                curves["penalties"][name].append(value)
            if len(curves["step"]) > MOST_POINTS:
                for curve in (curves["step"], curves["loss"], *curves["p_answer"], *curves["penalties"].values()):
                    del curve[::2]

    def _change(self, **values: Any) -> None:
        self.state.update(values)
        self._send(values)

    def _send(self, patch: dict[str, Any]) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync(EVENT, {"key": self.key, **patch})

    def _write(self) -> None:
        """A view that cannot be written does not end a run."""
        try:
            temporary = self.folder / (STATE + ".tmp")
            temporary.write_text(json.dumps(self.state), encoding="utf-8")
            temporary.replace(self.folder / STATE)
        except OSError as error:
            log.warning("The state of the run could not be written into %s: %s.", self.folder.name, error)


def finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return round(value, 5) if math.isfinite(value) else None


def state_of(key: str) -> dict[str, Any] | None:
    """What a tab shows: the run that is going on, else the newest one on disk, else None."""
    if (view := running(key)) is not None:
        return view.snapshot()
    folder = newest_run(key)
    if folder is None:
        return None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if state["status"] in ("preparing", "training", "judging"):  # the server has gone down meanwhile
        state.update(status="stopped", message=f"ComfyUI ended at step {state['step']}.", seconds_left=None)
    return state


def add_routes() -> None:
    """GET the state and the pictures of a run or of a session of Pick Favourites; POST that a run is to stop and keep
    what is there."""
    from aiohttp import web

    routes = PromptServer.instance.routes

    @routes.get("/dual_process/runs/{key}")
    async def state(request: Any) -> Any:
        return web.json_response(state_of(request.match_info["key"]))

    @routes.get("/dual_process/runs/{key}/{picture}")
    async def picture(request: Any) -> Any:
        folder, name = newest_run(request.match_info["key"]), request.match_info["picture"]
        if folder is None or not re.fullmatch(r"(before|now)_\d{1,2}\.jpg", name) or not (folder / name).is_file():
            return web.Response(status=404)
        return web.FileResponse(folder / name, headers={"Cache-Control": "no-cache"})

    @routes.get("/dual_process/favourites/{session}/{name}")
    async def favourites(request: Any) -> Any:
        session, name = request.match_info["session"], request.match_info["name"]
        known = is_key(session) and re.fullmatch(rf"{re.escape(STATE)}|round_\d{{1,4}}_\d{{1,2}}\.jpg", name)
        path = favourites_folder() / session / name
        if not known or not path.is_file():
            return web.Response(status=404)
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})

    @routes.post("/dual_process/runs/{key}/stop")
    async def stop(request: Any) -> Any:
        view = running(request.match_info["key"])
        if view is not None:
            view.stop()
        return web.json_response({"stopping": view is not None})
