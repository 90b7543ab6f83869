"""A published policy on disk: ``config.json``, ``model.safetensors``, ``README.md``.

Place in the pipeline: a trained policy goes out through :func:`write_folder` and comes back through
:func:`load_folder`, which trusts nothing that it reads: a folder may come from anyone. ``config.json`` names only
parts that are already imported, is read without importing anything, and is compared with the headers of the weights
before any memory is taken. There is no pickle on this path.

In memory there is one copy of the weights: the policy is built without them, and they are mapped from the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bczoo.configs import without_imagenet
from bczoo.errors import UserError
from bczoo.record import PUBLISHED_RECORD, read_json, read_record

if TYPE_CHECKING:
    from bczoo.model.policy import BCPolicy

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
INDEX = f"{WEIGHTS}.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SHARD_SIZE = "5GB"

FORMAT_VERSION = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # n -> what makes a config of version n + 1

LARGEST_NUMBER = 1_000_000  # any number in config.json
MOST_PARAMETERS = 20_000  # tensors of a policy
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a weights file says of one tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, BF16, I64


@dataclass(frozen=True)
class PublishedFolder:
    """A folder whose config and weights fit together.

    Args:
        path: the folder.
        config: arguments of the policy.
        tensors: header of every tensor by state-dict name.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the training (``training.json``); empty if there is nothing."""
        return read_record(self.path / PUBLISHED_RECORD)


# ---------------------------------------------------------------------------------------------------- writing


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str,
    record: Mapping[str, Any] | None = None,
    shard_size: int | str = SHARD_SIZE,
) -> Path:
    """Write a published folder; an older one in its place is replaced.

    Args:
        folder: where to.
        config: :attr:`bczoo.BCPolicy.config`.
        state: weights by plain state-dict names (``bczoo.hub.state.plain_state``).
        card: text of README.md.
        record: what is known of the training, for training.json.
        shard_size: larger weights are spread over several files (bytes, or words such as ``5GB``).
    """
    from huggingface_hub import save_torch_state_dict

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to write the policy to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds other things than a policy; give a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    content = {"format_version": FORMAT_VERSION, "library_name": "bczoo", "policy": without_imagenet(config)}
    # Into a folder beside it first: a policy that is mapped from the old files goes on living, and an interruption
    # leaves the old folder whole.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        fresh = Path(name)
        save_torch_state_dict(dict(state), fresh, max_shard_size=shard_size)
        (fresh / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(card, encoding="utf-8")
        if record:
            (fresh / PUBLISHED_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        written = {path.name for path in fresh.iterdir()}
        folder.mkdir(exist_ok=True)
        for path in list(folder.iterdir()):
            if path.name not in written and (
                path.name in (WEIGHTS, INDEX, PUBLISHED_RECORD) or SHARD.fullmatch(path.name)
            ):
                path.unlink()
        for file in sorted(written):
            os.replace(fresh / file, folder / file)
    return folder


# ---------------------------------------------------------------------------------------------------- reading


def read_folder(folder: str | Path, cls: type[BCPolicy] | None = None) -> PublishedFolder:
    """Read config and headers and check that they describe one and the same policy; no weights are read.

    Raises:
        UserError: says what is wrong with which file.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a published policy: it has no {CONFIG}; `bczoo export` writes one")
    config = _read_config(folder / CONFIG)
    tensors = _read_headers(folder)
    published = PublishedFolder(folder, config, tensors)
    with torch.device("meta"), _parameters():
        policy = _build(published, cls)
    if differing := sorted(config.keys() ^ policy.config.keys()):
        raise UserError(f"{folder / CONFIG}: these entries of 'policy' are unknown or missing: {', '.join(differing)}")
    _compare(folder, policy.state_dict(), tensors)
    return published


def load_folder(
    folder: str | Path,
    cls: type[BCPolicy] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> BCPolicy:
    """The policy of a published folder, in evaluation mode.

    Args:
        folder: a folder that :func:`write_folder` wrote.
        cls: class of the policy; BCPolicy if left out.
        device: where the weights go.
        dtype: brings the weights to this type; as they were saved if left out.
    """
    published = read_folder(folder, cls)
    with _parameters(on_meta=True):
        policy = _build(published, cls)
    policy.load_state_dict(read_weights(published, device, dtype), assign=True)
    return policy.to(device).eval()


def read_weights(
    published: PublishedFolder, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights of a published folder, mapped from its files where device and dtype let them be."""
    state: dict[str, Tensor] = {}
    for file in sorted({t.file for t in published.tensors.values()}):
        with safe_open(published.path / file, framework="pt", device=str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                tensor = weights.get_tensor(name)
                state[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return state


def _build(published: PublishedFolder, cls: type[BCPolicy] | None) -> BCPolicy:
    from bczoo.model.policy import BCPolicy

    try:
        return (cls or BCPolicy)(**without_imagenet(published.config))
    except UserError as error:
        raise UserError(f"{published.path / CONFIG}: {error}") from error
    except Exception as error:  # whatever a wrong value leads to, it is the file that is wrong
        raise UserError(f"{published.path / CONFIG} does not describe a policy: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
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
    policy = content.get("policy")
    if not isinstance(policy, dict):
        raise UserError(f"{path} has no section 'policy'")
    _check_numbers(policy, path)
    return policy


def _check_numbers(value: Any, path: Path, where: str = "policy") -> None:
    """Numbers of a config are small; a huge one would make building the policy take all memory or for ever."""
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
        raise UserError(f"{path}: {where} is {value}, which no policy needs")
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _check_numbers(entry, path, f"{where}.{key}")


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    single, index = folder / WEIGHTS, folder / INDEX
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
        raise UserError(f"{index} and the shards beside it do not agree on {_some(wrong)}")
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
            slices = [weights.get_slice(name) for name in names]
            return {
                n: StoredTensor(path.name, tuple(s.get_shape()), s.get_dtype())
                for n, s in zip(names, slices, strict=True)
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download or export it again") from error


def _compare(folder: Path, expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Raise unless the weights are those of the policy that config.json describes."""
    problems = {
        "missing": [n for n in expected if n not in stored],
        "not of this policy": [n for n in stored if n not in expected],
        "misshaped": [
            f"{n} {list(s.shape)} instead of {list(expected[n].shape)}"
            for n, s in stored.items()
            if n in expected and s.shape != tuple(expected[n].shape)
        ],
        "of the wrong type": [
            f"{n} ({s.dtype})"
            for n, s in stored.items()
            if n in expected and (s.dtype in FLOATS) != expected[n].is_floating_point()
        ],
    }
    found = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if found:
        raise UserError(f"the weights in {folder} are not those of its {CONFIG}: {found}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _parameters(on_meta: bool = False) -> Iterator[None]:
    """While a policy is built: stop one that never ends, and take parameters off memory as soon as they are there.

    Args:
        on_meta: keep no values; they come from the file. Buffers are kept, some of them are in no file.
    """
    count = 0

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal count
        if parameter is None:
            return None
        count += 1
        if count > MOST_PARAMETERS:
            raise UserError(f"the policy described has more than {MOST_PARAMETERS:,} parameter tensors")
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad) if on_meta else None

    handle = register_module_parameter_registration_hook(registered)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
