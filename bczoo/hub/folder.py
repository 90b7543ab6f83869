"""An exported policy on disk: ``config.json``, ``model.safetensors``, ``README.md``.

Place in the pipeline: a trained policy goes out through :func:`write_folder` and comes back through
:func:`load_folder`, which trusts nothing that it reads: a folder may come from anyone. ``config.json`` names only
parts that are already imported, is read without importing anything, and is compared with the headers of the weights
before any memory is taken. There is no pickle on this path.

In memory there is one copy of the weights: the policy is built without them, and they are mapped from the file.

``huggingface_hub.PyTorchModelHubMixin`` was tried and left out: a class loads the folder of another class, the config's
values reach the constructor unchecked, weights that are missing are passed over (``strict=False``), a repository
without safetensors is read as a pickle, weights in several files are not read, and a save that is interrupted leaves
the folder without its config. What is used of the library is ``save_torch_state_dict``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, restore, sweep, system_errors, write_json, write_text
from bczoo.core.parts import Family
from bczoo.hub.build import check_spec, fill
from bczoo.hub.finite import check_finite
from bczoo.hub.names import Header, some
from bczoo.train.run_record import EXPORTED_RECORD, read_json, read_record

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
INDEX = f"{WEIGHTS}.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SHARD_SIZE = "5GB"

FORMAT_VERSION = 2

LARGEST_HEADER = 16 << 20  # bytes of the header of a weights file; that of the 1.2b takes 0.1 MB
FLOATS = {"F64", "F32", "F16", "BF16"}


def _name_the_family(content: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew one family and held its arguments alone."""
    return content | {"policy": {"class_path": "bczoo.BCPolicy", "init_args": content.get("policy")}}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _name_the_family
}  # n -> a config of version n + 1


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a weights file says of one tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, BF16, I64


@dataclass(frozen=True)
class ExportedFolder:
    """A folder whose config and weights fit together.

    Args:
        path: the folder.
        spec: family and arguments of the model, ``{"class_path": ..., "init_args": {...}}``.
        tensors: header of every tensor by state-dict name.
        model: as it describes it, without memory.
    """

    path: Path
    spec: dict[str, Any]
    tensors: dict[str, StoredTensor]
    model: Family

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the training (``training.json``); empty if there is nothing."""
        return read_record(self.path / EXPORTED_RECORD)


# ---------------------------------------------------------------------------------------------------- writing


def write_folder(
    folder: str | Path,
    spec: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str,
    record: Mapping[str, Any] | None = None,
    shard_size: int | str = SHARD_SIZE,
) -> Path:
    """Write an exported folder; an older one in its place is replaced as a whole, and other files in it stay.

    Args:
        folder: where to.
        spec: :attr:`bczoo.Family.spec`.
        state: weights by plain state-dict names (``bczoo.hub.state.plain_state``).
        card: text of README.md.
        record: what is known of the training, for training.json.
        shard_size: larger weights are spread over several files (bytes, or words such as ``5GB``).

    Raises:
        UserError: there is something else in the folder, or weights are NaN or infinite.
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder).resolve()
    if any(path.is_file() for path in (folder, *folder.parents)):
        raise UserError(f"{folder} is a file or lies in one; give a folder to write the policy to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds other things than a policy; give a new or an empty folder")
    check_finite(state, "this policy")
    folder.parent.mkdir(parents=True, exist_ok=True)
    content = {"format_version": FORMAT_VERSION, "library_name": "bczoo", "policy": dict(spec)}
    sweep(folder.parent)
    # Into a folder beside it first, and read back, so that what cannot be loaded is never put in place. The folders
    # change names: never is there a mixture, and a policy that is mapped from the old files goes on living.
    beside = PartialPath(folder)
    fresh = beside.path
    try:
        fresh.mkdir()
        with system_errors():
            save_torch_state_dict(dict(state), fresh, max_shard_size=shard_size)
        write_json(fresh / CONFIG, content)
        write_text(fresh / CARD, card)
        if record:
            write_json(fresh / EXPORTED_RECORD, record)
        written = {path.name for path in fresh.iterdir()}
        mode = (fresh / CONFIG).stat().st_mode  # safetensors writes files that only their owner may read
        for name in written:
            (fresh / name).chmod(mode)
        read_folder(fresh)
        older = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        ours = written | {WEIGHTS, INDEX, EXPORTED_RECORD} | {name for name in older if SHARD.fullmatch(name)}
        beside.exchange(keep=sorted(older - ours))
    except OSError as error:
        if error.filename is None:  # as of a full disk
            error.filename = str(folder)
        raise
    finally:
        beside.discard()
    return folder


# ---------------------------------------------------------------------------------------------------- reading


def read_folder(folder: str | Path, cls: type[Family] | None = None) -> ExportedFolder:
    """Read config and headers and check that they describe one and the same policy; no weights are read.

    Raises:
        UserError: says what is wrong with which file.
    """
    folder = Path(folder)
    restore(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not an exported policy: it has no {CONFIG}; `bczoo export` writes one")
    spec = read_config(folder / CONFIG)
    tensors = _read_headers(folder)
    headers = {name: Header(t.shape, t.dtype in FLOATS) for name, t in tensors.items()}
    return ExportedFolder(folder, spec, tensors, check_spec(spec, headers, folder / CONFIG, cls))


def load_folder(
    folder: str | Path,
    cls: type[Family] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Family:
    """The policy of an exported folder, in evaluation mode.

    Args:
        folder: a folder that :func:`write_folder` wrote.
        cls: family that it has to be of; any if left out.
        device: where the weights go.
        dtype: brings the weights to this type; as they were saved if left out.
    """
    before = _inode(folder)
    exported = read_folder(folder, cls)
    state = read_weights(exported, device, dtype)
    if _inode(folder) != before:  # an export has replaced it meanwhile: config and weights are of two
        return load_folder(folder, cls, device, dtype)
    return fill(exported.model, state, exported.spec, exported.path / CONFIG).to(device).eval()


def _inode(folder: str | Path) -> int:
    """What tells a folder from another one of its name; 0 if there is none."""
    return Path(folder).stat().st_ino if Path(folder).exists() else 0


def read_weights(
    exported: ExportedFolder, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights of an exported folder, mapped from its files where device and dtype let them be.

    All of them are read once, to see that they are numbers; mapped ones take no memory of their own for that.

    Raises:
        UserError: some are NaN or infinite.
    """
    state: dict[str, Tensor] = {}
    for file in sorted({t.file for t in exported.tensors.values()}):
        with safe_open(exported.path / file, framework="pt", device=str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                tensor = weights.get_tensor(name)
                state[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    check_finite(state, exported.path)
    return state


def read_config(path: Path) -> Any:
    """Family and arguments of the model of a ``config.json``, brought to today's format; they are not checked yet."""
    content = read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{path} is not of a bczoo policy: it has no format_version")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, this bczoo reads up to {FORMAT_VERSION}; pip install -U bczoo"
        )
    for old in range(version, FORMAT_VERSION):
        content = UPGRADES[old](content)
    return content.get("policy")


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(f"{folder} holds both {WEIGHTS} and {INDEX}; delete the one that is not of this policy")
    if single.is_file():
        return _read_header(single)
    if not index.is_file():
        raise UserError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(f, str) for f in shards.values()):
        raise UserError(f"{index} has no weight_map from names to files")
    for file in sorted(set(shards.values())):
        if not SHARD.fullmatch(file):
            raise UserError(f"{index} names the file {file!r}; shards are called model-00001-of-00002.safetensors")
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks {file}, which {INDEX} names; download it again")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(shards.values())):
        tensors |= _read_header(folder / file)
    wrong = sorted(k for k in tensors.keys() | shards.keys() if k not in tensors or shards.get(k) != tensors[k].file)
    if wrong:
        raise UserError(f"{index} and the shards beside it do not agree on {some(wrong)}")
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise OSError(f"its header would take {length:,} bytes")
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
            slices = [weights.get_slice(name) for name in names]
            return {
                n: StoredTensor(path.name, tuple(s.get_shape()), s.get_dtype())
                for n, s in zip(names, slices, strict=True)
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download or export it again") from error
