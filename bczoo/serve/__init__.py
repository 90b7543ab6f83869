"""Serving a policy to games that run elsewhere. Names are imported on first use.

A game's side in Python::

    from bczoo.serve import Client

    with Client(tcp="127.0.0.1:8089") as client:
        client.send(frame, id=1)                    # frame uint8 (H, W, 3), RGB, of any size
        answer = client.receive()                   # .id, .values, .error, .dropped

Frames that are sent faster than they are answered are superseded by the newest; an answer says how many were.
"""

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
