"""Writing recordings: demonstrations of experts and people, corrections of a policy. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, {"record": "command", "PlayedRecordings": "command"})

if TYPE_CHECKING:
    from bczoo.record.command import PlayedRecordings as PlayedRecordings
    from bczoo.record.command import record as record
