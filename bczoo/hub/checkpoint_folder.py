"""Checkpoints that are folders, of which every process of a training writes its own part.

Place in the pipeline: ``bczoo.Sharded(sharded_checkpoints=true)`` writes and resumes them; :mod:`bczoo.hub.state` reads
them, as it reads files, for everything else. The format is that of torch.distributed.checkpoint, so the parts can be
read by any number of processes, also by one without a process group; beside them lie checksums of all files.

    last.ckpt/__<rank>_0.distcp     weights and optimiser state of a process
    last.ckpt/.metadata             where in these files which part of which tensor is
    last.ckpt/meta.pt               everything else that a checkpoint holds
    last.ckpt/checksums.json        size and CRC-32 of every file

torch keeps ``.metadata`` as a pickle; here only the few classes that belong in it are let in, so that reading a folder
executes nothing, whoever it is from.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from bczoo.core.files import PartialPath

CHECKSUMS, REST, INDEX = "checksums.json", "meta.pt", ".metadata"
DTYPES = {str(kind).removeprefix("torch.") for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
IN_INDEX = {
    "torch": {"Size", "strided", *DTYPES},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}  # names by module


def is_folder_checkpoint(path: str | Path) -> bool:
    """Whether a path is such a folder."""
    return (Path(path) / CHECKSUMS).is_file()


# ------------------------------------------------------------------ writing


def write_folder(path: Path, tensors: Mapping[str, Any], rest: Mapping[str, Any], group: dist.ProcessGroup) -> None:
    """Write a checkpoint whole or not at all; all processes of a group do, on one file system.

    They write into one hidden folder beside the target, and the first one renames it when all have.

    Args:
        path: of the checkpoint; an older one there, file or folder, is replaced.
        tensors: weights and optimiser state, on the CPU, of every process its own part (DTensor).
        rest: everything else; what the first process has is written.
        group: that talks over the CPU, and that nobody else uses meanwhile.

    Raises:
        OSError: the system's own, such as of a full disk, in any process; raised in all of them.
    """
    rank = dist.get_rank(group)
    partial: PartialPath | None = None

    def begin() -> str:
        nonlocal partial
        partial = PartialPath(path)
        return str(partial.path)

    def finish() -> None:
        assert partial is not None
        save_file(folder / REST, dict(rest))
        files = {name: found for part in parts for name, found in part.items()}
        files |= {name: _checksum(folder / name) for name in (REST, INDEX)}
        (folder / CHECKSUMS).write_text(json.dumps(files, indent=1, sort_keys=True), encoding="utf-8")
        partial.exchange()

    try:
        folder = Path(_together(group, begin if rank == 0 else _nothing)[0])
        try:
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), process_group=group)
        except dcp.CheckpointException as error:
            raise system_error(failure for failure, _ in error.failures.values()) or error from None
        parts = _together(group, lambda: {p.name: _checksum(p) for p in folder.glob(f"__{rank}_*")})
        _together(group, finish if rank == 0 else _nothing)
    except BaseException:
        if partial is not None:
            partial.discard()
        raise


def save_file(path: Path, content: Any) -> None:
    """``torch.save``, with the system's own error where it cannot be written."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch reports what it could not write; why is behind it
        raise system_error([error]) or error from None


def system_error(errors: Iterable[BaseException]) -> OSError | None:
    """The first error of the system among some, or behind them."""
    behind = [found for error in errors for found in (error, error.__cause__, error.__context__)]
    return next((found for found in behind if isinstance(found, OSError)), None)


def _together(group: dist.ProcessGroup, act: Callable[[], Any]) -> list[Any]:
    """Have every process of a group do something; what came out by rank, or the first error, raised in all of them."""
    try:
        own: tuple[Any, Exception | None] = act(), None
    except Exception as error:
        own = None, error
    found: list[tuple[Any, Exception | None]] = [own] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group=group)
    if errors := [error for _, error in found if error is not None]:
        raise errors[0]
    return [result for result, _ in found]


def _nothing() -> None:
    pass


# ------------------------------------------------------------------ reading


def read_folder_checkpoint(path: Path, optimizer: bool = False) -> dict[str, Any]:
    """What a checkpoint holds, as it would be in a file; by one process, which needs no group.

    Args:
        path: of the checkpoint, whose checksums were compared (:func:`damaged_file`).
        optimizer: read its state too, in memory; weights alone take a third of it.
    """
    reader = Reader(path)
    index = reader.read_metadata()
    known = {name: found for name, found in index.state_dict_metadata.items() if optimizer or _is_weight(index, name)}
    room = sum(entry.stat().st_size for entry in path.iterdir())
    claimed = sum(t.size.numel() * t.properties.dtype.itemsize for t in known.values() if _is_tensor(t))
    if claimed > room:
        raise ValueError(f"tensors of {claimed} bytes in files of {room}")
    flat = {k: torch.empty(t.size, dtype=t.properties.dtype) if _is_tensor(t) else None for k, t in known.items()}
    planner = Planner(flatten_state_dict=False, flatten_sharded_tensors=False)  # fills this very dict
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be here
        dcp.load(flat, storage_reader=reader, planner=planner, no_dist=True)
    nested = unflatten_state_dict(flat, {name: index.planner_data[name] for name in flat})
    content = read_rest(path) | {"state_dict": nested.pop("state_dict", {})}
    return content | ({"optimizer_states": list(nested.values())} if nested else {})


def read_rest(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimiser state."""
    rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    return rest


def load_into(tensors: dict[str, Any], path: Path) -> None:
    """Fill a nested dict of tensors, of every process its own part, with what a checkpoint holds; all processes do."""
    dcp.load(tensors, storage_reader=Reader(path), planner=Planner())


class Reader(dcp.FileSystemReader):
    """torch's, which executes nothing of what it reads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / INDEX).open("rb") as file:
            index = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"{INDEX} holds no index")
        return index


class Planner(dcp.DefaultLoadPlanner):
    """The same of torch's planner, for what is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), loaded)
        loaded.seek(0)
        super().load_bytes(read_item, loaded)


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePath  # where the folder was written, which is of no use here
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python 3.11.0 to 3.11.3 write a member of an enumeration
        if name not in IN_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} names {module}.{name}, which does not belong there")
        return super().find_class(module, name)


def _member(of: Any, name: str) -> Enum:
    if not (isinstance(of, type) and issubclass(of, Enum)):
        raise pickle.UnpicklingError(f"{INDEX} asks for {name} of what is no enumeration")
    return of[name]


def _is_tensor(found: Any) -> TypeGuard[TensorStorageMetadata]:
    return isinstance(found, TensorStorageMetadata)


def _is_weight(index: Metadata, name: str) -> bool:
    return bool(index.planner_data[name][0] == "state_dict")


# ------------------------------------------------------------------ checksums


def damaged_file(path: Path) -> str | None:
    """The file of a checkpoint that is not what was written; None if all are."""
    try:
        files = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        wrong = [name for name, written in files.items() if not _same(path / Path(name).name, written)]
        missing = {REST, INDEX} - files.keys()
    except (ValueError, AttributeError):
        return CHECKSUMS
    return next(iter([*wrong, *sorted(missing)]), None)


def folder_fingerprint(path: Path) -> str:
    """A few digits for what a checkpoint holds, from its checksums."""
    return hashlib.blake2b((path / CHECKSUMS).read_bytes(), digest_size=16).hexdigest()


def _same(path: Path, written: Any) -> bool:
    return path.is_file() and path.stat().st_size == written["bytes"] and _checksum(path) == written


def _checksum(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}
