"""What the doctor finds.

Place in the pipeline: every check of this package returns findings, and :mod:`bczoo.doctor.command` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, BROKEN = "ok", "note", "broken"  # works, does not but is not needed, does not and is needed


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what it is.
        status: ok, note or broken.
        text: what was found.
        mend: the command or step that mends it.
    """

    name: str
    status: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<7} {self.name:<16} {self.text}"
        return f"{line}\n{'':<24} -> {self.mend}" if self.mend else line
