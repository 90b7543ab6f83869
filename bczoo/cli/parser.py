"""A parser whose errors suggest what was meant.

Place in the pipeline: the mix-in of both parsers of the command line.
"""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any

_UNKNOWN = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|[Uu]nrecognized arguments: --([\w.]+)"
)


def suggestion(message: str, options: list[str]) -> str:
    """A hint for a message about an unknown option; empty if there is none."""
    match = _UNKNOWN.search(message)
    if match is None:
        return ""
    last = match[match.lastindex or 0].split(".")[-1]
    by_last = {option.split(".")[-1]: option for option in options}
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return f"\nDid you mean {by_last[close[0]]!r}?" if close else ""


class SuggestingParser:
    """Mix-in for jsonargparse's ArgumentParser: adds a suggestion to errors about unknown options."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        super().error(message + suggestion(message, _options(self)), ex)  # type: ignore[misc]


def _options(parser: Any) -> list[str]:
    """Destinations of all options, those of subcommands and of the parts of a policy too."""
    out: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                out += _options(sub)
        elif action.dest:
            out.append(action.dest)
    return out + _part_options()


def _part_options() -> list[str]:
    """Arguments of the classes that YAML names; they are not options of the parser itself."""
    import inspect

    import bczoo

    exported = (getattr(bczoo, n) for n in bczoo.__all__ if not n.startswith("_"))
    classes = [c for c in exported if inspect.isclass(c) and c.__init__ is not dict.__init__]
    return sorted({p for c in classes for p in inspect.signature(c.__init__).parameters})
