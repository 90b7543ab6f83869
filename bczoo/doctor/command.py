"""``bczoo doctor``: what works here, what does not, and the command that mends it.

Place in the pipeline: run by the command line without its parser, which may be what is broken. Checks never raise: one
that fails in a way that nobody foresaw is a finding itself.
"""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from collections.abc import Callable, Iterable

from bczoo.doctor import machine, packages
from bczoo.doctor.finding import BROKEN, NOTE, Finding


def doctor(json: bool = False) -> int:
    """Say what of this installation and machine works, what will not, and the command that mends it.

    The exit status is 1 if something that is needed is broken.

    Args:
        json: print the findings as JSON.

    Returns:
        The exit status.
    """
    findings = examine()
    broken = sum(f.status == BROKEN for f in findings)
    if json:
        print(json_format.dumps({"broken": broken, "findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
        return int(broken > 0)
    print("\n".join(map(str, findings)))
    notes = sum(f.status == NOTE for f in findings)
    also = f"; {notes} note{'s' if notes != 1 else ''} above" if notes else ""
    print(f"\n{f'{broken} broken; the arrows say what mends it' if broken else 'All that is needed works'}{also}.")
    return int(broken > 0)


def run(argv: list[str]) -> int:
    """:func:`doctor` with the words of a command line."""
    if argv in ([], ["--json", "false"], ["--json=false"]):
        return doctor()
    if argv in (["--json"], ["--json", "true"], ["--json=true"]):
        return doctor(json=True)
    print(f"bczoo: bczoo doctor takes --json true and nothing else, got {' '.join(argv)}", file=sys.stderr)
    return 2


def examine() -> list[Finding]:
    """All findings."""
    probed = packages.probe()
    checks: list[tuple[str, Callable[[], Finding | Iterable[Finding]]]] = [
        ("packages", lambda: packages.versions(probed)),
        ("processor", machine.processor),
        ("GPU", lambda: packages.devices(probed)),
        ("memory", machine.memory),
        ("disks", machine.disks),
        ("H.264", lambda: packages.codecs(probed)),
        ("display", machine.display),
    ]
    found: list[Finding] = []
    for name, check in checks:
        try:
            result = check()
            found += [result] if isinstance(result, Finding) else list(result)
        except Exception as error:
            found.append(Finding(name, BROKEN, f"could not be looked at: {type(error).__name__}: {error}"))
    return found
