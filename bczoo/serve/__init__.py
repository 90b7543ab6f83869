"""Serving a policy to games that run elsewhere. Names are imported on first use.

A game's side in Python::

    from bczoo.serve import Client

    with Client(tcp="127.0.0.1:8089") as client:
        client.send(frame, id=1)                    # frame uint8 (H, W, 3), RGB, of any size
        answer = client.receive()                   # .id, .values, .error, .dropped

Frames that are sent faster than they are answered are superseded by the newest; an answer says how many were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Answer": "client",
        "Client": "client",
        "Limits": "connection",
        "Server": "server",
        "listen_on_tcp": "listen",
        "listen_on_unix": "listen",
    },
)

if TYPE_CHECKING:
    from bczoo.serve.client import Answer as Answer
    from bczoo.serve.client import Client as Client
    from bczoo.serve.connection import Limits as Limits
    from bczoo.serve.listen import listen_on_tcp as listen_on_tcp
    from bczoo.serve.listen import listen_on_unix as listen_on_unix
    from bczoo.serve.server import Server as Server
