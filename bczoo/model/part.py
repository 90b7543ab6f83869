"""What the exchangeable parts of a policy have in common: they remember how they were built.

Place in the pipeline: YAML names the class and the arguments of each part; a built part gives them back as plain
JSON (:attr:`Part.spec`), which goes into checkpoints, so that a policy can be rebuilt anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import lightning as L

from bczoo.errors import UserError


class Configured:
    """Keeps the arguments of its construction in :attr:`init_args`.

    Arguments must be plain values (numbers, strings, lists, None); what the policy passes in itself (the width, the
    action space) is named in ``given`` and left out.
    """

    given: tuple[str, ...] = ()
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise TypeError(f"{cls.__name__} is built from a config, so its arguments need names, not *{name}")
            arguments.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        for name in cls.given:
            arguments.pop(name, None)
        object.__setattr__(self, "init_args", arguments)
        return self

    @property
    def spec(self) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": {...}}``, as YAML would say it."""
        return {"class_path": class_path(type(self)), "init_args": dict(self.init_args)}


class Part(Configured, L.LightningModule):
    """A LightningModule that remembers its arguments."""


T = TypeVar("T")


def class_path(cls: type) -> str:
    """Import path of a part; bczoo's own parts are all exported at the top."""
    module = "bczoo" if cls.__module__.startswith("bczoo.") else cls.__module__
    return f"{module}.{cls.__qualname__}"


def build(spec: Mapping[str, Any], base: type[T], *given: Any) -> T:
    """Build a part from its :attr:`Configured.spec`. Imports nothing: only classes that are already known are built.

    Args:
        spec: ``{"class_path": ..., "init_args": {...}}``.
        base: what the part must be a subclass of.
        *given: leading arguments that are not in the spec (width, action space).
    """
    known = {class_path(cls): cls for cls in _subclasses(base)}
    path = spec.get("class_path")
    if path not in known:
        raise UserError(
            f"{path!r} is not a known {base.__name__}; known are {sorted(known)}. "
            "A part of your own must be imported before the policy is built."
        )
    return known[path](*given, **spec.get("init_args", {}))


def _subclasses(cls: type[T]) -> list[type[T]]:
    return [cls, *(d for sub in cls.__subclasses__() for d in _subclasses(sub))]
