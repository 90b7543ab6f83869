"""State dicts under their plain names, whatever was wrapped around the policy while it trained.

Place in the pipeline: everything that is exported passes here, so that compiled, LoRA-trained and plainly trained
policies are exported under the same names. A checkpoint is a file, or a folder that several processes wrote
(:mod:`bczoo.hub.checkpoint_folder`); whoever reads one comes here and need not know. ``torch.compile`` adds
``_orig_mod.`` to names; peft keeps a layer's own weight as ``base_layer`` beside two small matrices, which are merged
here.
"""

from __future__ import annotations

import errno
import hashlib
import math
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.core.parts import Family
from bczoo.hub.checkpoint_folder import (
    damaged_file,
    folder_fingerprint,
    is_folder_checkpoint,
    read_folder_checkpoint,
    read_rest,
)
from bczoo.hub.finite import check_finite
from bczoo.hub.names import Header, plain_entries, some

CLASS_PATH = "bczoo_class_path"  # key of a checkpoint
RUN_STATE = "RunRecord"  # where that callback's state is in a checkpoint
KEEPER_STATE = "ResumableCheckpoint"  # the same of that callback
LORA_SCALE = "bczoo_lora_scale"  # key of a checkpoint


def plain_state(policy: Family, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of a policy, on the CPU, LoRA merged.

    Args:
        policy: the policy, left as it is.
        dtype: brings the weights to this type; as they are if left out.
    """
    return plain(policy.state_dict(), getattr(policy, "lora_scale", None), dtype)


def plain(
    state: Mapping[str, Tensor], lora_scale: float | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A state dict under plain names, LoRA merged: W + scale * B A, computed in float32."""
    out: dict[str, Tensor] = {}
    for name, (tensor, matrices) in plain_entries(state).items():
        tensor = tensor.detach()
        if matrices is not None:
            if lora_scale is None:
                raise UserError("these weights have LoRA matrices, but it is not known how to scale them")
            a, b = (m.detach().float() for m in matrices)
            if (len(b), a.shape[-1]) != tuple(tensor.shape):
                raise UserError(f"the LoRA matrices of {name} are not of its shape")
            tensor = (tensor.float() + lora_scale * (b @ a)).to(tensor.dtype)
        tensor = tensor.cpu()
        out[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return out


class Checkpoint(NamedTuple):
    """What a checkpoint of a training run holds of the policy.

    Args:
        path: the file or folder.
        spec: family and arguments of the model.
        raw: weights as they were trained.
        lora_scale: of their LoRA matrices.
        step: optimiser steps.
        run: which run wrote it, as its record says.
        measured: metrics of the validation before it was written, and the ``step`` of it; may be empty.
    """

    path: Path
    spec: dict[str, Any]
    raw: dict[str, Tensor]
    lora_scale: float | None
    step: int
    run: str | None
    measured: dict[str, float]

    @property
    def headers(self) -> dict[str, Header]:
        """Shape and kind of every weight under its plain name; nothing is computed."""
        return {k: Header(tuple(t.shape), t.is_floating_point()) for k, (t, _) in plain_entries(self.raw).items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights under plain names, LoRA merged; an error if any is NaN or infinite."""
        try:
            state = plain(self.raw, self.lora_scale)
        except (UserError, RuntimeError) as error:
            raise UserError(f"the weights in {self.path} cannot be merged: {error}") from error
        check_finite(state, self.path)
        return state


def is_checkpoint(path: str | Path) -> bool:
    """Whether a checkpoint lies at a path: a file, or a folder that several processes wrote."""
    return Path(path).is_file() or is_folder_checkpoint(path)


def load_tensors(path: str | Path, optimizer: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, without executing anything that is in it, and without tensors that claim to be more
    than it holds.

    ``torch.load(mmap=True)`` looks at no checksum, so those of the file are checked here, once per process as long as
    the file stays the same. That reads the whole file: about a second per gigabyte from memory, as long as the disk
    takes otherwise; the weights are mapped from the same pages afterwards. Of a folder they are copied.

    Args:
        path: a file of ``torch.save``, or a folder.
        optimizer: read the state of the optimiser from a folder too; a file has it anyway.
    """
    if (wrong := damaged_part(path)) is not None:
        raise UserError(f"{path} is damaged: its checksum of {wrong} does not match. {_others(Path(path))}")
    try:
        if is_folder_checkpoint(path):
            content = read_folder_checkpoint(Path(path), optimizer)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails in any way
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR):
            raise
        reason = " ".join((str(error) or repr(error)).split())
        if not zipfile.is_zipfile(path) and not is_folder_checkpoint(path):  # its table of contents is at the end
            raise UserError(
                f"{path} is cut off, damaged or no checkpoint at all: {reason}. {_others(Path(path))}"
            ) from error
        raise UserError(
            f"{path} is no checkpoint of tensors and plain values, and code in it is not executed: {reason}"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise UserError(f"{path} has no state_dict of tensors")
    if odd := [k for k, t in state.items() if t.layout != torch.strided or t.device.type != "cpu"]:
        raise UserError(f"{path} holds tensors that are no plain ones: {some(odd)}")
    if larger := [k for k, t in state.items() if t.untyped_storage().nbytes() < t.numel() * t.element_size()]:
        raise UserError(f"{path} holds less than its tensors claim: {some(larger)}")
    return content


def _others(path: Path) -> str:
    """What can be taken instead of a damaged checkpoint."""
    beside = [p for p in path.parent.glob("*.ckpt") if p.name != path.name and is_checkpoint(p)]
    for other in sorted(beside, key=lambda p: (not p.name.startswith("best"), p.stat().st_mtime), reverse=True):
        if (zipfile.is_zipfile(other) or other.is_dir()) and damaged_part(other) is None:
            if other.name.startswith("best"):
                return f"{other} beside it is whole; it can be played and exported, but no training goes on from it"
            return f"{other} beside it is whole; give that one (--ckpt_path in training)"
    return "There is no whole one beside it; train anew with --ckpt_path null, which keeps it"


def damaged_part(path: str | Path) -> str | None:
    """The part of a checkpoint whose checksum does not match; None if all match, or it is another file."""
    path = Path(path)
    if not is_checkpoint(path):
        return None
    stats = [file.stat() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    identity = tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)
    return _damaged_part(path.absolute(), identity)


@lru_cache(maxsize=64)
def _damaged_part(path: Path, identity: tuple[tuple[int, ...], ...]) -> str | None:
    if path.is_dir():
        return damaged_file(path)
    if not zipfile.is_zipfile(path):
        return None  # cut off, or of a format without checksums; torch.load says so
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "a compressed entry"  # torch compresses nothing, and a small one could unpack without end
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                return "an entry that overlaps others"
            return archive.testzip()
    except Exception as error:  # a damaged table of contents fails in any way, EINVAL if it points out of the file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        return "its table of contents"


def fingerprint(path: str | Path) -> str:
    """A few digits for what a checkpoint holds, from the checksums in its table of contents; "" if that is damaged.

    It stays the same when the file is copied, and costs as little for a large file as for a small one.
    """
    try:
        if is_folder_checkpoint(path):
            return folder_fingerprint(Path(path))
        with zipfile.ZipFile(path) as archive:
            entries = sorted((entry.filename, entry.CRC, entry.file_size) for entry in archive.infolist())
    except Exception:  # a damaged file fails in any way
        return ""
    return hashlib.blake2b(repr(entries).encode(), digest_size=16).hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint, without executing anything that is in it; the policy is not built yet."""
    content = load_tensors(path)
    config, step, scale = content.get("hyper_parameters"), content.get("global_step", 0), content.get(LORA_SCALE)
    callbacks = content.get("callbacks")
    kept = callbacks.get(RUN_STATE) if isinstance(callbacks, dict) else None
    run, measured = (kept.get(name) for name in ("run", "measured")) if isinstance(kept, dict) else (None, None)
    if not isinstance(config, dict) or not isinstance(step, int) or not isinstance(scale, float | int | None):
        raise UserError(f"{path} is not a checkpoint of a bczoo policy")
    # checkpoints that name no class are from when there was one
    spec = {"class_path": content.get(CLASS_PATH, "bczoo.BCPolicy"), "init_args": config}
    run = run if isinstance(run, str) else None
    return Checkpoint(Path(path), spec, content["state_dict"], scale, step, run, _numbers(measured))


def kept_by(path: str | Path, callback: str) -> dict[str, Any]:
    """What a callback keeps in a checkpoint; empty if that is not known. No weights are read, nor checked."""
    try:
        state = without_weights(path)["callbacks"][callback]
    except Exception:  # a damaged file fails in any way, and whoever loads it says so
        return {}
    return state if isinstance(state, dict) else {}


def without_weights(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds beside its weights, which are not read, nor checked."""
    if is_folder_checkpoint(path):
        return read_rest(Path(path))
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def of_one_run(one: str | Path, other: str | Path) -> bool:
    """Whether two checkpoints are of the same run, as far as they say which one they are of."""
    marks = [kept_by(path, KEEPER_STATE).get("run") for path in (one, other)]
    return marks[0] == marks[1] or None in marks


def _numbers(measured: Any) -> dict[str, float]:
    """Metrics by name, if a checkpoint, which may be anyone's, holds such; else nothing."""
    sound = isinstance(measured, dict) and all(
        isinstance(k, str) and isinstance(v, int | float) and math.isfinite(v) for k, v in measured.items()
    )
    return dict(measured) if sound else {}
