"""Where recordings come from when they are not there yet.

Place in the pipeline: the data module calls ``prepare`` before it looks for recordings, on one process of
each node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class RecordingSource(ABC):
    """Produces recordings, for example by letting an expert play a game or by unpacking a download."""

    @abstractmethod
    def prepare(self, root: Path) -> None:
        """Make sure that ``root`` holds the recordings; called before every run, so it keeps what is there.

        Args:
            root: folder of recordings, which may not exist yet.
        """

    def describe(self) -> dict[str, Any]:
        """What the recordings are, as plain JSON, for the record of a training run."""
        return {}
