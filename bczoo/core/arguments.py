"""Checks of arguments that may be anyone's: from a YAML file, a command line, or the config of a foreign policy.

Place in the pipeline: the constructors of a policy's parts, of action spaces and of
:class:`bczoo.core.spec.InputSpec` check their arguments here before they use them, so that a wrong value is refused
where it is read and not in the middle of a game. ``True`` is no number, NaN and infinity are none either.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from bczoo.core.errors import UserError

LONGEST_NAME = 200  # characters of a name
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """A value for an error: what is long is cut, for it may be the whole of somebody's file."""
    return _short.repr(value)


def refuse(name: str, value: Any, allowed: str, cause: Exception | None = None) -> NoReturn:
    """Say which argument is wrong, what is allowed, and what it was."""
    raise UserError(f"{name} must be {allowed}, got {shown(value)}") from cause


def whole(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raise unless ``value`` is a whole number from ``low`` to ``high``."""
    if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        refuse(name, value, f"a whole number {_from_to(low, high)}")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number from ``low`` to ``high``."""
    if not (_is_number(value) and low <= value <= high):
        refuse(name, value, f"a number {_from_to(low, high)}")


def share(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number from 0 to below 1, such as a dropout."""
    if not (_is_number(value) and 0 <= value < 1):
        refuse(name, value, "a number from 0 to below 1")


def flag(name: str, value: Any) -> None:
    """Raise unless ``value`` is true or false."""
    if not isinstance(value, bool):
        refuse(name, value, "true or false")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of some words."""
    if not (isinstance(value, str) and value in choices):
        refuse(name, value, f"one of {', '.join(choices)}")


def line(name: str, value: Any) -> None:
    """Raise unless ``value`` is a short text that can be printed in one line."""
    if not (isinstance(value, str) and value.isprintable() and 1 <= len(value) <= LONGEST_NAME):
        refuse(name, value, f"a text of 1 to {LONGEST_NAME} printable characters")


def check_call(owner: str, function: Callable[..., Any], /, *given: Any, **options: Any) -> None:
    """Raise unless a function takes these arguments, by their number and names."""
    try:
        inspect.signature(function).bind(*given, **options)
    except TypeError as error:
        raise UserError(f"{owner}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # NaN is not


def _from_to(low: float, high: float) -> str:
    if high == math.inf:
        return "that is finite" if low == -math.inf else f"from {low:,} on"
    return f"from {low:,} to {high:,}"
