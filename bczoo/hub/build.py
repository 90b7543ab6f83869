"""Building a policy from a config and weights that may be anyone's.

Place in the pipeline: published folders (``bczoo.hub.folder``) and checkpoints (``bczoo.hub.source``) come here.
Nothing is imported for a config: it can name only parts that are there already. What it describes is built without
memory first, and its names and shapes are compared with those of the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bczoo.core.configs import without_imagenet
from bczoo.core.errors import UserError

if TYPE_CHECKING:
    from bczoo.models.bc.policy import BCPolicy

LARGEST_NUMBER = 1_000_000  # any number in a config
MOST_TENSORS = 20_000  # parameters of a policy, each counted as one


class Header(NamedTuple):
    """What is known of a stored tensor without reading it."""

    shape: tuple[int, ...]
    floating: bool


def check_config(config: Any, stored: Mapping[str, Header], where: Path, cls: type[BCPolicy] | None = None) -> None:
    """Raise unless a config describes a policy, and the stored weights are that policy's.

    Args:
        config: arguments of the policy.
        stored: header of every tensor by state-dict name.
        where: the file that the config is from, for errors.
        cls: class of the policy; BCPolicy if left out.
    """
    policy = described(config, where, cls)
    if differing := sorted(config.keys() ^ policy.config.keys()):
        raise UserError(f"{where}: these entries of the policy are unknown or missing: {', '.join(differing)}")
    _compare(policy.state_dict(), stored, where)


def described(config: Any, where: Path, cls: type[BCPolicy] | None = None) -> BCPolicy:
    """The policy that a config describes, without memory (on the meta device)."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: a policy is described by an object, not by a {type(config).__name__}")
    try:
        check_numbers(config, where)
    except RecursionError as error:
        raise UserError(f"{where} does not describe a policy: it is nested without end") from error
    with torch.device("meta"), _parameters():
        return _build(config, where, cls)


def build_without_weights(config: Mapping[str, Any], where: Path, cls: type[BCPolicy] | None = None) -> BCPolicy:
    """The policy of a checked config, its parameters on the meta device, for weights to be assigned."""
    with _parameters(on_meta=True):
        return _build(config, where, cls)


def _build(config: Mapping[str, Any], where: Path, cls: type[BCPolicy] | None) -> BCPolicy:
    from bczoo.models.bc.policy import BCPolicy

    try:
        return (cls or BCPolicy)(**without_imagenet(config))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # whatever a wrong value leads to, it is the file that is wrong
        raise UserError(f"{where} does not describe a policy: {error}") from error


def check_numbers(value: Any, where: Path, entry: str = "policy") -> None:
    """Numbers of a config are small; a huge one would make building the policy take all memory or for ever."""
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:  # NaN is not, either
        raise UserError(f"{where}: {entry} is {value}; a number of a policy is at most {LARGEST_NUMBER:,} from zero")
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        check_numbers(below, where, f"{entry}.{key}")


def _compare(expected: Mapping[str, Tensor], stored: Mapping[str, Header], where: Path) -> None:
    problems = {
        "missing": [n for n in expected if n not in stored],
        "not of this policy": [n for n in stored if n not in expected],
        "misshaped": [
            f"{n} {list(s.shape)} instead of {list(expected[n].shape)}"
            for n, s in stored.items()
            if n in expected and s.shape != tuple(expected[n].shape)
        ],
        "of the wrong type": [
            n for n, s in stored.items() if n in expected and s.floating != expected[n].is_floating_point()
        ],
    }
    if found := "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names):
        raise UserError(f"the weights are not those of the policy that {where} describes; {found}")


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _parameters(on_meta: bool = False) -> Iterator[None]:
    """While a policy is built: stop one that never ends, and take parameters off memory as soon as they are there.

    Args:
        on_meta: keep no values; they come from the file. Buffers are kept, some of them are in no file.
    """
    count, builder = 0, threading.get_ident()

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal count
        if parameter is None or threading.get_ident() != builder:  # the hook is seen by all threads
            return None
        count += 1
        if count > MOST_TENSORS:
            raise UserError(f"the policy described has more than {MOST_TENSORS:,} parameter tensors")
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad) if on_meta else None

    handle = register_module_parameter_registration_hook(registered)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
