"""A parser whose errors are one line that says what is wrong and what was meant.

Place in the pipeline: the mix-in of both parsers of the command line; :mod:`bczoo.cli.problems` has the words.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from bczoo.cli.problems import Typed, explain

TRACEBACK = "BCZOO_TRACEBACK"  # environment variable: show all there is to an error


class SuggestingParser:
    """Mix-in for jsonargparse's ArgumentParser: an error is one line, the whole of it behind ``BCZOO_TRACEBACK=1``.

    Attributes:
        argv: what is parsed; the arguments of the process if left empty.
    """

    argv: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # --trainer.max_step is no --trainer.max_steps

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error or os.environ.get(TRACEBACK):  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]  # raises where parsers nest, else it exits
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        command, argv = parser.prog.replace(" [options]", ""), list(self.argv or sys.argv[1:])
        if subcommand := [word for word in argv[:1] if not word.startswith("-") and command == "bczoo"]:
            command, argv = f"{command} {subcommand[0]}", argv[1:]
        typed = Typed(command, argv, _options(parser), _positionals(parser))
        sys.stderr.write(
            f"bczoo: {explain(message, typed)}\n({command} --help; {TRACEBACK}=1 shows all that was said)\n"
        )
        sys.exit(2)


def _options(parser: Any) -> list[str]:
    """Destinations of all options, those of subcommands too."""
    out: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                out += _options(sub)
        elif action.dest:
            out.append(action.dest)
    return out


def _positionals(parser: Any) -> dict[str, str]:
    """Arguments without a name, and what they are."""
    return {
        action.dest: action.help or ""
        for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction) and action.dest
    }
