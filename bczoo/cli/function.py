"""Commands that are functions: their arguments are the options, their docstring is the help.

Place in the pipeline: all commands but those of the trainer; ``bczoo.cli.FUNCTIONS`` lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import docstring_parser
from jsonargparse import ArgumentParser

from bczoo.cli.parser import SuggestingParser
from bczoo.cli.source import describe
from bczoo.core.configs import with_config_paths


class FunctionParser(SuggestingParser, ArgumentParser):
    """Parser of one function's options."""


def run_function(command: tuple[str, ...], target: str, argv: list[str], positional: tuple[str, ...]) -> int:
    """Run ``target`` ("module:function") with options from ``argv``; its status is the exit status.

    Args:
        command: words of the command, for the help.
        target: where the function is.
        argv: what follows the command.
        positional: arguments that are given without a name.
    """
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    described = docstring_parser.parse(inspect.getdoc(function) or "")
    parser = FunctionParser(prog=" ".join(("bczoo", *command)), description=described.short_description)
    for parameter in described.params:
        if parameter.arg_name in positional:
            annotation = inspect.signature(function).parameters[parameter.arg_name].annotation
            choices = describe(target).named(parameter.arg_name).choices
            kind: Any = Literal[choices] if choices else str
            shape: dict[str, Any] = {"nargs": "+"} if annotation in ("list[str]", list[str]) else {}
            parser.add_argument(parameter.arg_name, type=kind, help=parameter.description, **shape)
    parser.add_argument("--config", action="config", help="YAML file with options, or the name of a shipped one")
    parser.add_function_arguments(function, skip=set(positional), as_positional=False)
    parser.argv = with_config_paths(argv)
    options = parser.instantiate_classes(parser.parse_args(parser.argv)).as_dict()
    del options["config"]
    result = function(**options)
    status = getattr(result, "status", 0)
    return status if isinstance(status, int) else 0
