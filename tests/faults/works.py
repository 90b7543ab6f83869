"""The commands that keep something on disk, and how to tell that what they keep is whole.

A work runs in an empty folder that :meth:`Work.prepare` fills. It is run once undisturbed; whatever is done to it
later, :meth:`Work.check_whole` has to hold at any moment and :meth:`Work.check_done` once the same command has
come to its end.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from disk import PAGE
from mutate import arrays_equal
from process import Run, bczoo, new_folder
from recordings import write_moving

from bczoo import Policy
from bczoo.core.actions import ActionSpace
from bczoo.data.index import open_index
from bczoo.data.recording import read_annotation
from bczoo.data.video import probe
from bczoo.data.windows import list_windows
from bczoo.hub.source import locate
from bczoo.hub.state import load_tensors
from bczoo.train.metrics_file import read_metrics

SIZE = 96
KEYBOARD = ActionSpace.keyboard_mouse()
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
GAME = "tiny_game:catch"
CHECKPOINT = Path("runs/tiny/checkpoints/last.ckpt")
BEST = CHECKPOINT.with_name("best.ckpt")


class Undisturbed(NamedTuple):
    """What a work is like when nothing happens to it."""

    result: dict[str, np.ndarray]
    changes: int  # to its folder
    seconds: float
    bytes_before: int
    bytes_after: int
    folder: Path


class Work:
    """A command that keeps something on disk."""

    name: str
    argv: list[Any]

    def prepare(self, folder: Path) -> None:
        """Fill the folder that the command runs in."""
        raise NotImplementedError

    def check_whole(self, folder: Path) -> None:
        """Raise if something that is there is not whole."""
        raise NotImplementedError

    def result(self, folder: Path) -> dict[str, np.ndarray]:
        """What the finished command left, as arrays."""
        raise NotImplementedError

    def check_done(self, folder: Path) -> None:
        """Raise unless all is there, the same as undisturbed, with nothing half done beside it."""
        self.check_whole(folder)
        assert arrays_equal(self.result(folder), self.undisturbed.result), f"{self.name}: the result is another"
        assert not (left := leftovers(folder)), f"{self.name} left {left}"

    @cached_property
    def undisturbed(self) -> Undisturbed:
        folder = new_folder(self.name)
        self.prepare(folder)
        before = room_of(folder)
        run, started = Run(self.argv, folder), time.monotonic()
        assert run.wait() == 0, run
        seconds = time.monotonic() - started
        return Undisturbed(self.result(folder), run.changes, seconds, before, room_of(folder), folder)


def room_of(folder: Path) -> int:
    """Bytes that the files of a folder take on a tmpfs."""
    return sum(-(-path.lstat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def leftovers(folder: Path) -> list[str]:
    """Names of what looks half written."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.name.startswith(".") and path.name not in (".bczoo", ".lock")) or path.suffix in (".tmp", ".partial")
    ]


class Fit(Work):
    """Steps, checkpoints, validation and closing games; result: the trained weights."""

    def __init__(self, workers: int) -> None:
        self.name = f"fit with {workers} workers" if workers else "fit"
        self.argv = [
            "fit", "--config", "tiny", "--data.root", "data", "--data.batch_size", 2, "--data.num_workers", workers,
            "--trainer.max_steps", 6, "--trainer.val_check_interval", 3, "--trainer.callbacks.every_n_train_steps", 2,
            "--trainer.callbacks+=bczoo.PlayGame", "--trainer.callbacks.env", GAME, "--trainer.callbacks.episodes", 1,
            "--trainer.callbacks.parallel", 1, "--trainer.callbacks.threads", 1, "--trainer.accelerator", "cpu", *QUIET,
        ]  # fmt: skip

    def prepare(self, folder: Path) -> None:
        write_moving(folder / "data", 3, 40)

    def check_whole(self, folder: Path) -> None:
        for path in (folder / CHECKPOINT, folder / BEST):
            if path.exists():
                load_tensors(path)
        if (folder / BEST).exists():
            assert (folder / CHECKPOINT).exists(), "the best checkpoint has no last one beside it"
        for path in folder.rglob("record.json"):
            json.loads(path.read_text())

    def check_done(self, folder: Path) -> None:
        super().check_done(folder)
        record = json.loads((folder / "runs/tiny/record.json").read_text())
        assert record["training"]["steps"] == 6
        assert list(record["play"]) == [GAME], "the closing games are missing from record.json"
        step = load_tensors(folder / BEST)["global_step"]
        assert record["best"]["step"] == record["best"]["metrics"]["step"] == record["play"][GAME]["step"] == step
        rows = read_metrics(folder / "runs/tiny/metrics.csv")[1]
        assert [row["step"] for row in rows if row.get("val/loss")] == ["3", "6"], "validations in metrics.csv"
        assert locate(folder / "runs/tiny").path == folder / BEST

    def result(self, folder: Path) -> dict[str, np.ndarray]:
        """Last weights by name, and the best ones behind ``best/``."""
        last, best = (load_tensors(folder / path)["state_dict"] for path in (CHECKPOINT, BEST))
        return {k: v.numpy() for k, v in last.items()} | {f"best/{k}": v.numpy() for k, v in best.items()}


class FitAgain(Fit):
    """A new training in the folder of one that has finished, whose checkpoint has to be kept."""

    def __init__(self, first: Fit) -> None:
        super().__init__(workers=0)
        self._first = first
        self.name = "fit again"
        self.argv = [*self.argv, "--seed_everything", 1]

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self._first.undisturbed.folder, folder, dirs_exist_ok=True)

    def check_whole(self, folder: Path) -> None:
        super().check_whole(folder)
        kept = (load_tensors(path)["state_dict"] for path in (folder / CHECKPOINT).parent.glob("*.ckpt"))
        first = {k: v for k, v in self._first.undisturbed.result.items() if not k.startswith("best/")}
        assert any(arrays_equal({k: v.numpy() for k, v in state.items()}, first) for state in kept), "the first is lost"


class Record(Work):
    """Episodes of a game; result: their actions."""

    name = "record"
    argv = ["record", "--env", GAME, "--out", "data", "--episodes", 3, "--size", 48, "--workers", 1]  # noqa: RUF012

    def prepare(self, folder: Path) -> None:
        (folder / "data").mkdir()

    def check_whole(self, folder: Path) -> None:
        for episode in (folder / "data").iterdir():
            if not episode.name.startswith("."):
                annotations = read_annotation(episode).frame_annotations
                assert probe(episode / "48x48.mp4").n_frames == len(annotations)

    def result(self, folder: Path) -> dict[str, np.ndarray]:
        index = open_index(folder / "data", KEYBOARD, text_dim=None)
        assert not index.problems.any(), index.problems
        return {str(name): index.steps(i)[0] for i, name in enumerate(index.names)}


class Export(Work):
    """A policy takes the place of an older one; result: its weights."""

    name = "export"
    argv = ["export", str(CHECKPOINT), "out", "--license", "mit"]  # noqa: RUF012

    def __init__(self, fit: Fit) -> None:
        self._fit = fit

    @cached_property
    def _older(self) -> Path:
        """A published policy whose weights are others."""
        folder = new_folder("older")
        shutil.copytree(self._fit.undisturbed.folder / "data", folder / "data")
        assert bczoo(*self._fit.argv, "--seed_everything", 1, folder=folder)[0] == 0
        assert bczoo(*self.argv, folder=folder)[0] == 0
        return folder / "out"

    @cached_property
    def _older_weights(self) -> dict[str, np.ndarray]:
        return _weights(self._older)

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self._fit.undisturbed.folder / "runs", folder / "runs")
        shutil.copytree(self._older, folder / "out")

    def check_whole(self, folder: Path) -> None:
        found = _weights(folder / "out")
        older = arrays_equal(found, self._older_weights)
        assert older or arrays_equal(found, self.undisturbed.result), "neither the older policy nor the new one"

    def result(self, folder: Path) -> dict[str, np.ndarray]:
        return _weights(folder / "out")


class Index(Work):
    """The index of recordings, some of which are new; result: what it holds."""

    name = "index"
    argv = ["data", "check", "data", "--decode", "false", "--processes", 1, "--json", "report.json"]  # noqa: RUF012

    def prepare(self, folder: Path) -> None:
        write_moving(folder / "data", 1, 40)
        assert bczoo(*self.argv, folder=folder)[0] == 0
        (folder / "report.json").unlink()
        shutil.copytree(folder / "data" / "rec_0", folder / "data" / "rec_1")

    def check_whole(self, folder: Path) -> None:
        index = open_index(folder / "data", KEYBOARD, scan=False)
        assert index.names.tolist() in (["rec_0"], ["rec_0", "rec_1"])
        contents(index)
        if (folder / "report.json").exists():
            json.loads((folder / "report.json").read_text())

    def result(self, folder: Path) -> dict[str, np.ndarray]:
        assert (folder / "report.json").is_file()
        return contents(open_index(folder / "data", KEYBOARD, scan=False))


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in locate(folder).load(Policy).state_dict().items()}


def contents(index: Any, window: int = 5) -> dict[str, np.ndarray]:
    """Everything that an index says, as arrays."""
    out: dict[str, np.ndarray] = {"problems": np.array(index.problems, str)}
    for i in index.usable.tolist():
        out |= {f"{index.names[i]}/steps/{n}": np.array(a) for n, a in enumerate(index.steps(i))}
        out |= {f"{index.names[i]}/texts/{n}": np.array(a) for n, a in enumerate(index.texts(i))}
    which, start = list_windows(index, index.usable, window)
    return out | {"windows": which, "starts": start}
