"""Trajectories as folders below `output/dual_process`: saved, kept where a run ended early, and loaded."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import is_link
from torch import Tensor

from .refusals import refused
from .run_files import free_folder, interrupted_folder, path_below, trajectories_folder
from .types import CATEGORY, to_comfy
from .types import Plan as PlanSocket
from .types import Trajectory as TrajectorySocket

NONE_FOUND = "(no trajectory was saved)"
log = logging.getLogger(__name__)


def save(painting: Any, folder: Path) -> None:
    """The trajectory with its pictures and filmstrip, and what planners and inspectors learn from it."""
    from ..process.files import CHATS, save_chats, save_painting

    save_painting(painting, folder)
    save_chats(painting.trajectory, folder / CHATS)


class Kept:
    """Writes down each step of a process while it goes on, so that it can go on after a cancel, a failure or a kill.

    Args:
        key: of what is made, see `key_of`.
    """

    def __init__(self, key: str) -> None:
        self.folder = interrupted_folder() / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{key}"
        self._key, self._steps = key, 0  # how many steps are there from before

    def earlier(self, check: Callable[[Any], None]) -> Any:
        """What a process with the same key left that ended early, to go on with in its folder; None if there is none.

        Args:
            check: raises ProcessError for a trajectory that was made otherwise all the same.
        """
        from ..core.errors import DualProcessError
        from ..process.files import load_painting

        for folder in sorted(interrupted_folder().glob(f"*_{self._key}"), reverse=True):
            try:
                painting = load_painting(folder)
                check(painting.trajectory)
            except DualProcessError as error:
                log.info("Begins anew, not from %s: %s", folder.name, error)
                continue
            self.folder, self._steps = folder, len(painting.trajectory.steps)
            log.info("Goes on from the %d steps of a run that ended early, in %s.", self._steps, folder.name)
            return painting
        return None

    def __call__(self, painting: Any) -> None:
        """A step that cannot be written is only logged."""
        from ..core.errors import ProcessError
        from ..process.files import save_painting

        if len(painting.trajectory.steps) <= self._steps:
            return
        try:
            save_painting(painting, self.folder, last_step_only=True)
        except ProcessError as error:
            log.warning("%s", error)

    def whole(self, painting: Any) -> str:
        """With the filmstrip and the chats; the folder, as the user finds it."""
        if len(painting.trajectory.steps) >= self._steps:  # else it has ended even earlier than the one before
            save(painting, self.folder)
        return f"output/dual_process/{self.folder.parent.name}/{self.folder.name}"

    def discard(self) -> None:
        """The process has come to its end."""
        shutil.rmtree(self.folder, ignore_errors=True)


def key_of(prompt: Any, node_id: str | None, image: Tensor | None = None) -> str:
    """Twelve hex digits for what a node makes: its inputs, those of all nodes before it, and a picture's numbers.

    Args:
        prompt: as ComfyUI runs it; where it does not tell the node's inputs, every key is another one.
    """
    known: dict[str, str] = {}

    def digest(key: str) -> str:
        if key not in known:
            node = prompt[key]
            inputs = {n: [digest(v[0]), v[1]] if is_link(v) else v for n, v in node["inputs"].items()}
            text = json.dumps([node["class_type"], inputs], sort_keys=True, default=str)
            known[key] = hashlib.sha256(text.encode()).hexdigest()
        return known[key]

    try:
        made = hashlib.sha256(digest(node_id or "").encode())
    except (KeyError, TypeError):
        return uuid.uuid4().hex[:12]
    if image is not None:
        made.update(image.cpu().contiguous().numpy().tobytes())
    return made.hexdigest()[:12]


def saved() -> dict[str, Path]:
    """Every trajectory by the name that the user sees, the newest first."""
    roots = (trajectories_folder(), interrupted_folder())
    found = [(root, path.parent) for root in roots for path in root.rglob("trajectory.json")]
    found.sort(key=lambda pair: pair[1].stat().st_mtime_ns, reverse=True)
    return {f"{root.name}/{folder.relative_to(root).as_posix()}": folder for root, folder in found}


class SaveTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessSaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description="Saves how a picture was made: each step's picture, the filmstrip, all that was planned, asked "
            "and found as JSON, and chats that planners and inspectors can be trained on. Nothing is overwritten.",
            search_aliases=["filmstrip", "export", "dataset"],
            is_output_node=True,
            inputs=[
                TrajectorySocket.Input("trajectory", tooltip="From Paint by Process or Process Step."),
                io.String.Input(
                    "name",
                    default="picture",
                    tooltip="The folder's name below output/dual_process/trajectories, without number; folders with / "
                    "are made.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="folder", tooltip="The folder's name as Load Trajectory lists it."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """What can be known before there is a picture is; a name that comes by a wire is not."""
        try:
            if name is not None:
                target(name)
        except ValueError as error:
            return refused(cls, str(error))
        return True

    @classmethod
    def execute(cls, trajectory: Any, name: str) -> io.NodeOutput:
        from ..process.files import FILMSTRIP

        wanted = target(name)
        folder = free_folder(wanted.parent, wanted.name)
        save(trajectory, folder)
        root = trajectories_folder()
        shown = f"{root.name}/{folder.relative_to(root).as_posix()}"
        strip = ui.SavedResult(FILMSTRIP, f"dual_process/{shown}", io.FolderType.output)
        return io.NodeOutput(shown, ui={"images": [strip], "text": (f"saved as {shown}",)})


def target(name: str) -> Path:
    from ..core.errors import ProcessError

    return path_below(trajectories_folder(), name, ProcessError, "output/dual_process/trajectories", "picture")


class LoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="A picture that was made step by step, saved or kept where it was cancelled, to look at or to "
            "go on with by Process Step. Press R to refresh the list.",
            search_aliases=["filmstrip", "resume"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(saved()) or [NONE_FOUND],
                    tooltip="Folders of output/dual_process/trajectories and interrupted, the newest first.",
                ),
            ],
            outputs=[
                TrajectorySocket.Output(
                    display_name="trajectory", tooltip="For Process Step, or resume of Paint by Process."
                ),
                io.Image.Output(display_name="image", tooltip="The result."),
                io.Image.Output(display_name="filmstrip", tooltip="All steps, each with what was asked and found."),
                PlanSocket.Output(display_name="plan", tooltip="For Inspect Image, or to paint it again."),
                io.String.Output(display_name="report", tooltip="What came of it in words, with P of each fact."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        if folder is None or folder in saved():  # None comes by a wire
            return True
        return refused(cls, not_there(folder))

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None) -> Any:
        path = saved().get(folder or "")
        return None if path is None else (path / "trajectory.json").stat().st_mtime_ns

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from ..core.errors import ProcessError
        from ..process.files import filmstrip, load_painting, pixels
        from ..process.words import trajectory_in_words

        path = saved().get(folder)
        if path is None:
            raise ProcessError(not_there(folder))
        painting = load_painting(path)
        trajectory = painting.trajectory
        if not trajectory.steps:
            raise ProcessError(f"The trajectory {folder} has no steps: there is no picture in it.")
        strip = to_comfy(pixels(filmstrip(trajectory, painting.pictures)))
        report = trajectory_in_words(trajectory)
        return io.NodeOutput(
            *(painting, to_comfy(painting.picture), strip, trajectory.plan, report),
            ui=ui.PreviewImage(strip, cls=cls),
        )


def not_there(folder: str) -> str:
    """What to do where there is no such folder."""
    return f"There is no trajectory {folder!r}. Press R to refresh the list, and choose one."


NODES = [SaveTrajectory, LoadTrajectory]
