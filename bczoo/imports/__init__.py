"""Recordings of other recorders, turned into recordings of this project: ``bczoo data import``.

The way of a recording: a :class:`Format` finds it and reads it as a :class:`Session` (timed frames and timed input
events), `steps.py` cuts that into steps of one rate, `convert.py` writes them, `command.py` does so for a whole folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Event": "session",
        "Format": "format",
        "Session": "session",
        "Stream": "session",
        "held_events": "session",
        "key_of_code": "keys",
        "timed_frames": "frames",
    },
)

if TYPE_CHECKING:
    from bczoo.imports.format import Format as Format
    from bczoo.imports.frames import timed_frames as timed_frames
    from bczoo.imports.keys import key_of_code as key_of_code
    from bczoo.imports.session import Event as Event
    from bczoo.imports.session import Session as Session
    from bczoo.imports.session import Stream as Stream
    from bczoo.imports.session import held_events as held_events
