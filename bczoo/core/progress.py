"""Progress of long stages: a bar on a terminal, a plain line now and then where the output is a file or a pipe.

Place in the pipeline: whatever takes long shows a :class:`Progress` in the place of tqdm's own bar, which would write a
line into a log file at every step.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0  # between two plain lines
PLAIN = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"


class Progress(tqdm):
    """tqdm's bar; without a terminal a line every half a minute and one at the end, unless ``leave`` is False."""

    def __init__(self, *args: Any, **options: Any) -> None:
        file = options.get("file") or sys.stderr
        self._plain = not file.isatty()
        self._last_line = time.monotonic()
        if self._plain:
            options |= {"bar_format": PLAIN, "dynamic_ncols": False}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self._plain:
            return super().display(msg, pos)
        now = time.monotonic()
        if msg != "" and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._write_line()
        return False

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        super().set_description(desc, refresh=False)
        if self._plain:
            self.desc = desc or ""  # tqdm adds the colon that the line has
        if refresh:
            self.refresh()

    def close(self) -> None:
        if self._plain and not self.disable:
            if self.leave is not False:
                self._write_line()
            self.leave = False
        super().close()

    def _write_line(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
