"""Serving a policy to games that run elsewhere. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Answer": "client",
    "Client": "client",
    "Limits": "connection",
    "Server": "server",
    "listen_on_tcp": "listen",
    "listen_on_unix": "listen",
}
__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from bczoo.serve.client import Answer as Answer
    from bczoo.serve.client import Client as Client
    from bczoo.serve.connection import Limits as Limits
    from bczoo.serve.server import Server as Server


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
