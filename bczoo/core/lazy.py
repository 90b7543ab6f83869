"""Names that a package offers and that load their modules on first use.

Place in the pipeline: the ``__init__`` of a package, so that importing it stays light::

    __all__, __getattr__ = lazy_exports(__name__, {"Game": "game", "PlayResult": "bczoo.play.episodes"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """What ``__all__`` and ``__getattr__`` of a package have to be.

    Args:
        package: its name.
        modules: by exported name the module that it is in: one of the package, or the full name of another.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = modules[name]
        return getattr(import_module(module if "." in module else f"{package}.{module}"), name)

    return sorted(modules), load
