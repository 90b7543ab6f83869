"""What the exchangeable parts of a policy have in common: they remember how they were built.

Place in the pipeline: YAML names the class and the arguments of each part; a built part gives them back as plain
JSON (:attr:`Part.spec`), which goes into checkpoints, so that a policy can be rebuilt anywhere.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import lightning as L

from bczoo.core import arguments
from bczoo.core.errors import UserError

PLUGINS = "bczoo"  # group of entry points


class Configured:
    """Keeps the arguments of its construction in :attr:`init_args`.

    Arguments must be plain values (numbers, strings, lists, None); what the policy passes in itself (the width, the
    action space) is named in ``given`` and left out. A class that others are derived from and that does nothing by
    itself says ``template = True``.
    """

    template = True
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

    template = True


class Family(Part):
    """What is known of a model where it is saved, loaded and exported: what it is rebuilt from.

    :class:`bczoo.Model` and through it every family is one; the packages below know no more of them.
    """

    template = True
    kind: ClassVar[str] = "model"  # what errors call it
    reference: ClassVar[str | None] = None  # the paper of the architecture, as a Markdown link
    title: ClassVar[str] = "A model that does not act, for the Python package `bczoo`: pixels in, actions out."  # cards
    input_spec: Any  # bczoo.InputSpec

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON: the arguments that rebuild this model, without weights and optimiser."""
        raise NotImplementedError(f"{type(self).__name__} must define config")

    def card_facts(self) -> list[str]:
        """Lines of the model card that are this family's own."""
        return [f"{self.input_spec.fps:g} steps a second, memory of {self.input_spec.window} steps"]

    def card_example(self) -> str:
        """Python in the model card of a model that does not act, behind the line that loads it as ``model``."""
        return ""

    def parameter_counts(self) -> dict[str, int]:
        """Parameters in total and by part."""
        raise NotImplementedError(f"{type(self).__name__} must define parameter_counts")


T = TypeVar("T")


def written_class(cls: type) -> type:
    """The class as it was written, where torch has derived one to shard its weights."""
    return cls.__bases__[1] if cls.__bases__[0].__name__ == "FSDPModule" else cls


def class_path(cls: type) -> str:
    """Import path of a part; bczoo's own parts are all exported at the top."""
    cls = written_class(cls)
    module = "bczoo" if cls.__module__.startswith("bczoo.") else cls.__module__
    return f"{module}.{cls.__qualname__}"


def build_part(name: str, part: Any, base: type[T], *given: Any) -> T:
    """A part of a policy from whatever the policy was given for it.

    Imports nothing: of a spec only classes that are already known are built.

    Args:
        name: which argument of the policy it is.
        part: the part; what makes it of ``given``; or its :attr:`Configured.spec`, ``{"class_path": ..., "init_args":
            {...}}``.
        base: what the part must be a subclass of.
        *given: leading arguments that are not in the spec (width, action space).

    Raises:
        UserError: it is none of these, or no such part is known, or it has no such argument.
    """
    if not isinstance(part, Mapping):
        made = part(*given) if given and callable(part) else part
        if not isinstance(made, base):
            arguments.refuse(name, part, f"of class {base.__name__}, or an object with class_path and init_args")
        return made
    cls = find_class(part.get("class_path"), base)
    init_args = part.get("init_args", {})
    if not isinstance(init_args, Mapping):
        arguments.refuse(f"init_args of {part.get('class_path')}", init_args, "an object of its arguments by name")
    arguments.check_call(class_path(cls), cls, *given, **init_args)
    return cls(*given, **init_args)


def find_class(path: Any, base: type[T]) -> type[T]:
    """The class of a part or family by its import path.

    Found are bczoo's own, those that are imported already, and those of installed packages that name their modules as
    entry points of the group ``bczoo``. Nothing else is imported, whatever a file says.

    Raises:
        UserError: there is none; says how to make it known.
    """
    if isinstance(path, str) and path.startswith("bczoo."):
        getattr(import_module("bczoo"), path.removeprefix("bczoo."), None)  # loads its module
    if isinstance(path, str) and path not in _known(base):
        _load_plugins()
    known = _known(base)
    if not isinstance(path, str) or path not in known:
        own = isinstance(path, str) and "." in path and not path.startswith("bczoo.")
        module = path.rpartition(".")[0] if own else "my_module"
        others = f"; known are {sorted(known)}" if known else ""
        raise UserError(
            f"{arguments.shown(path)} is not a known {base.__name__}{others}. A class of your own has to be imported "
            f"first: --import {module} on the command line, import {module} in Python"
        )
    return known[path]


def _known(base: type[T]) -> dict[str, type[T]]:
    return {class_path(cls): cls for cls in _subclasses(base) if not cls.__dict__.get("template")}


@cache
def _load_plugins() -> None:
    """Import what installed packages offer."""
    for entry in entry_points(group=PLUGINS):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(f"the plugin {entry.name} ({entry.value}) cannot be imported: {error}", stacklevel=2)


def _subclasses(cls: type[T]) -> list[type[T]]:
    return [cls, *(d for sub in cls.__subclasses__() for d in _subclasses(sub))]
