"""Commands that are functions: their arguments are the options, their docstring is the help.

Place in the pipeline: ``bczoo record``, ``bczoo data check``, ``bczoo data view``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from bczoo.cli.parser import SuggestingParser


class FunctionParser(SuggestingParser, ArgumentParser):
    """Parser of one function's options."""


def run_function(command: tuple[str, ...], target: str, argv: list[str]) -> int:
    """Run ``target`` ("module:function") with options from ``argv``; its result, if a number, is the exit status."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = FunctionParser(prog=" ".join(("bczoo", *command)), description=summary(function))
    required = parser.add_function_arguments(function, as_positional=True)
    arguments = parser.instantiate_classes(parser.parse_args(argv)).as_dict()
    result = function(**{k: arguments[k] for k in (required or arguments) if k in arguments})
    status = getattr(result, "status", result)
    return status if isinstance(status, int) else 0


def summary(function: Callable[..., Any]) -> str:
    """First paragraph of a docstring."""
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
