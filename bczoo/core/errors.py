"""Errors that the user can put right.

Place in the pipeline: anywhere something that came from outside (data, configuration, a game) does not fit. The
command line shows the message alone; a traceback would not help.
"""

from __future__ import annotations


class UserError(ValueError):
    """Says what was wrong, where, and what to do."""


def behind(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """The first error of ``kind`` in a chain of causes; building a policy from YAML wraps what went wrong."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error
