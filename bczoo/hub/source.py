"""Whatever names a policy becomes that policy: an exported folder, a repository on the Hub, a run, a checkpoint.

Place in the pipeline: ``BCPolicy.from_pretrained``, ``--model.init_from`` and the commands that take a policy come
here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.core.files import restore
from bczoo.core.parts import Family
from bczoo.hub.build import check_spec, described, family_of, fill
from bczoo.hub.folder import CONFIG, ExportedFolder, load_folder, read_folder, read_weights
from bczoo.hub.models import shipped_weights
from bczoo.hub.remote import fetch, is_repository
from bczoo.hub.state import Checkpoint, is_checkpoint, of_one_run, read_checkpoint
from bczoo.train.run_record import BEST, EXPORTED_RECORD, LAST, read_record, records_of_runs, weights_step

Loaded = TypeVar("Loaded", bound=Family)


@dataclass(frozen=True)
class Source:
    """Where a policy comes from.

    Args:
        path: an exported folder, or a checkpoint.
        repository: name on the Hub, if it came from there.
    """

    path: Path
    repository: str | None = None

    @property
    def exported(self) -> bool:
        return not is_checkpoint(self.path)

    @cached_property
    def _content(self) -> ExportedFolder | Checkpoint:
        return read_folder(self.path) if self.exported else read_checkpoint(self.path)

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the model was built from, ``{"class_path": ..., "init_args": {...}}``."""
        return self._content.spec

    @property
    def family(self) -> type[Family]:
        """The class of the model."""
        return family_of(self._content.spec, self._where)

    @property
    def _where(self) -> Path:
        return self.path / CONFIG if self.exported else self.path

    def load(self, cls: type[Loaded], device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Loaded:
        """The model, in evaluation mode.

        Args:
            cls: family that it has to be of, or bczoo.Policy for any that acts.
            device: where the weights go.
            dtype: brings the weights to this type; as they were saved if left out.
        """
        if self.exported:
            model = load_folder(self.path, cls, device, dtype)
        else:
            checkpoint, blank = self._checkpoint(cls)
            state = {k: v.clone() for k, v in checkpoint.state.items()}
            model = fill(blank, state, checkpoint.spec, self.path).to(device=device, dtype=dtype).eval()
        assert isinstance(model, cls)
        return model

    def blueprint(self) -> Family:
        """The model without memory (on the meta device), for what it says of itself."""
        return described(self._content.spec, self._where)

    def float_weights(self) -> dict[str, Tensor]:
        """The weights in float32, for training to go on from."""
        if isinstance(self._content, ExportedFolder):
            return read_weights(self._content, dtype=torch.float32)
        return self._checkpoint()[0].state

    def _checkpoint(self, cls: type[Family] | None = None) -> tuple[Checkpoint, Family]:
        """The checkpoint, checked to be of one model, and that model without memory."""
        checkpoint = self._content
        assert isinstance(checkpoint, Checkpoint)
        return checkpoint, check_spec(checkpoint.spec, checkpoint.headers, self.path, cls)

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the training; empty if nothing is."""
        record = read_record(self.record_path) if self.record_path is not None else {}
        if self.exported:
            return record
        step, measured = self._checkpoint_content.step, self._checkpoint_content.measured
        if not record or step == weights_step(record):
            return record
        # the run went on from here; the numbers are those of these weights where there are such
        best = record.get("best", {}).get("metrics", {})
        of_these = next((m for m in (record.get("metrics", {}), best, measured) if m.get("step") == step), None)
        return record | {"weights_step": step} | ({"metrics": of_these} if of_these else {})

    @property
    def record_path(self) -> Path | None:
        """Where what is known of the training lies, or would; None if nothing is known of a checkpoint's run."""
        if self.exported:
            return self.path / EXPORTED_RECORD
        run = self._checkpoint_content.run
        # another run may have been started beside a checkpoint
        return next((p for p in records_of_runs(self.path) if run and read_record(p).get("run") == run), None)

    @property
    def _checkpoint_content(self) -> Checkpoint:
        assert isinstance(self._content, Checkpoint)
        return self._content

    @property
    def chosen(self) -> str:
        """Which checkpoint of a run this is, in words; "" for what is not one of several."""
        if self.exported or self.path.name not in (BEST, LAST):
            return ""
        step, measured = self._checkpoint_content.step, self._checkpoint_content.measured
        known = {**measured, **self.record.get("metrics", {})}
        loss = f", val/loss {known['val/loss']:.4f}" if known.get("step") == step and "val/loss" in known else ""
        name, kind = (LAST, "last") if self.path.name == BEST else (BEST, "best")
        other = f"; the {kind} one is {self.path.with_name(name)}" if is_checkpoint(self.path.with_name(name)) else ""
        what = "the best by validation" if self.path.name == BEST else "the last one"
        return f"{self.path}: {what}, step {step}{loss}{other}"


def _checkpoint_in(folder: Path) -> Path | None:
    """The best checkpoint of the run that a folder holds the last one of, or that one; None if there is neither."""
    last, best = folder / LAST, folder / BEST
    if is_checkpoint(best) and (not is_checkpoint(last) or of_one_run(best, last)):
        return best
    return last if is_checkpoint(last) else None


def chosen_step(checkpoint: Path) -> int | None:
    """Optimiser steps of the weights that the run of a checkpoint stands for; None if that is not known."""
    chosen = _checkpoint_in(checkpoint.parent)
    return None if chosen is None else read_checkpoint(chosen).step


def locate(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Source:
    """Find a policy.

    Args:
        source: an exported folder, a checkpoint (``.ckpt``), the folder of a run (its best checkpoint by validation, or
            the last one if there is no such), ``org/name`` on the Hub, or ``checkpoints/name``, weights that ship.
        revision: branch, tag or commit on the Hub.
        token: access token of the Hub; the stored one if left out.
        cache_dir: huggingface_hub's download cache, if it is another one.
        local_files_only: do not look at the network.

    Raises:
        UserError: there is no such policy; says what was looked for.
    """
    path = Path(source)
    restore(path)
    if not path.exists() and (shipped := shipped_weights(path)) is not None:
        return Source(shipped)
    if is_checkpoint(path):
        return Source(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return Source(path)
        for folder in (path, path / "checkpoints"):
            if (checkpoint := _checkpoint_in(folder)) is not None:
                return Source(checkpoint)
        raise UserError(f"{path} holds no policy: neither {CONFIG} (an exported folder) nor checkpoints/{LAST} (a run)")
    name = str(source)
    if is_repository(name) and not name.startswith(("runs/", "checkpoints/", ".")):
        try:
            return Source(fetch(name, revision, token, None, cache_dir, local_files_only), name)
        except UserError as error:
            raise UserError(f"there is no folder {name} here, and on the Hugging Face Hub: {error}") from error
    beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, beside, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise UserError(
        f"there is no policy {name!r}{hint} A policy is an exported folder, a run such as runs/quickstart, "
        "a .ckpt file, or org/name on the Hugging Face Hub"
    )
