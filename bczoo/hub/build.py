"""Building a policy from a config and weights that may be anyone's.

Place in the pipeline: exported folders (``bczoo.hub.folder``) and checkpoints (``bczoo.hub.source``) come here.
Nothing is imported for a config: it can name only parts that are there already. What it describes is built once,
without memory (on the meta device); its names and shapes are compared with those of the weights, and the same object
then takes them (:func:`fill`). Only a family that holds tensors which are in no file is built a second time, for their
values.

accelerate's ``init_empty_weights`` was tried and left out: it takes a parameter to the meta device after it had
its memory, so a config of anyone's could claim all of it, and keeps buffers in memory. transformers' way is for
its own classes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bczoo.core.arguments import check_call
from bczoo.core.configs import without_imagenet
from bczoo.core.errors import UserError
from bczoo.core.parts import Family, class_path, find_class
from bczoo.hub.names import Header, plain_entries, some

LARGEST_NUMBER = 1_000_000  # any number in a config
MOST_TENSORS = 20_000  # parameters of a policy, each counted as one


def check_spec(spec: Any, stored: Mapping[str, Header], where: Path, cls: type[Family] | None = None) -> Family:
    """The model that a spec describes, without memory; an error unless the stored weights are that model's.

    Args:
        spec: ``{"class_path": ..., "init_args": {...}}``.
        stored: header of every tensor by state-dict name.
        where: the file that the spec is from, for errors.
        cls: family that it has to be of; any if left out.
    """
    model = described(spec, where, cls)
    if differing := sorted(spec["init_args"].keys() ^ model.config.keys()):
        raise UserError(f"{where}: these entries of the {model.kind} are unknown or missing: {', '.join(differing)}")
    _compare(model.state_dict(), stored, where)
    return model


def described(spec: Any, where: Path, cls: type[Family] | None = None) -> Family:
    """The model that a spec describes, without memory (on the meta device)."""
    family = family_of(spec, where, cls)
    try:
        check_numbers(spec["init_args"], where)
    except RecursionError as error:
        raise UserError(f"{where} does not describe a {family.kind}: it is nested without end") from error
    with torch.device("meta"), _parameters():
        return _build(family, spec["init_args"], where)


def fill(model: Family, state: Mapping[str, Tensor], spec: Mapping[str, Any], where: Path) -> Family:
    """Give a model that was built without memory its weights.

    Args:
        model: of :func:`check_spec`; used up.
        state: all that its state dict holds; not copied.
        spec: what the model was built from.
        where: the file that the spec is from, for errors.
    """
    if _holds_more_than(model, state):
        with _parameters(on_meta=True):  # what else it holds gets its values from its constructor
            model = _build(type(model), spec["init_args"], where)
    model.load_state_dict(state, assign=True)
    return model


def _holds_more_than(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a model on the meta device holds tensors there that its weights do not replace."""
    if any(buffer.is_meta and name not in state for name, buffer in model.named_buffers()):
        return True
    held = [vars(module) for module in model.modules()]
    registered = ("_parameters", "_buffers", "_modules")
    todo = [value for entries in held for name, value in entries.items() if name not in registered]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor) and value.is_meta:
            return True
        if id(value) in seen or isinstance(value, nn.Module | Tensor | type | FunctionType | ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value
        else:
            todo += getattr(value, "__dict__", {}).values()
    return False


def family_of(spec: Any, where: Path, cls: type[Family] | None = None) -> type[Family]:
    """The class of a spec.

    Raises:
        UserError: it is not laid out as one, it is of another family than ``cls``, or of one that is not known here.
    """

    if not isinstance(spec, Mapping) or set(spec) != {"class_path", "init_args"}:
        raise UserError(f"{where}: a model is described by an object with class_path and init_args, and nothing else")
    if not isinstance(spec["init_args"], Mapping):
        raise UserError(f"{where}: init_args of a model are an object, not a {type(spec['init_args']).__name__}")
    try:
        family = find_class(spec.get("class_path"), Family)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if cls is not None and cls.kind == "policy" != family.kind:
        raise UserError(f"{where} holds a {class_path(family)}, which does not act; name a policy")
    if cls is not None and not issubclass(family, cls):
        raise UserError(
            f"{where} holds a {class_path(family)} and no {class_path(cls)}; bczoo.from_pretrained loads any family"
        )
    return family


def check_rebuilds(model: Family) -> None:
    """Raise unless a model can be built again from what is saved of it: then its weights would be of no use."""
    where = Path(type(model).__name__)
    entries = plain_entries(model.state_dict())  # what an export would hold, LoRA merged
    stored = {k: Header(tuple(t.shape), t.is_floating_point()) for k, (t, _) in entries.items()}
    try:
        check_spec(model.spec, stored, where)
    except UserError as error:
        raise UserError(
            f"this {model.kind} cannot be rebuilt from its arguments, so nothing could load what is trained: {error}"
        ) from error


def _build(family: type[Family], init_args: Mapping[str, Any], where: Path) -> Family:
    try:
        check_call(family.__name__, family, **init_args)
        return family(**without_imagenet(init_args, family))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # whatever a wrong value leads to, it is the file that is wrong
        raise UserError(f"{where} does not describe a {family.kind}: {error}") from error


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
        raise UserError(f"the weights are not those of the model that {where} describes; {found}")


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
