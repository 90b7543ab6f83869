"""First screens of help: quick, short, and true to the parsers."""

import json
import re
import subprocess
import sys
from importlib import import_module

import docstring_parser
import pytest
from jsonargparse import ArgumentParser

from bczoo.cli import FUNCTIONS, TRAINER, main
from bczoo.cli.examples import EXAMPLES, GROUPS
from bczoo.cli.pages import page
from bczoo.cli.source import describe

COMMANDS = [(name,) for name in TRAINER] + list(FUNCTIONS)
BEFORE_THE_PARSER = {"--import", "--seeds", "--data"}  # of trainer commands
OF_EVERY_RUN = {"--config", "--ckpt_path", "--seed_everything", "--print_config", "--env", "--logger", "--play"}


def help_of(capsys, *argv):
    status = main(list(argv))
    return status, capsys.readouterr()


def test_no_first_screen_imports_torch_and_each_fits_a_screen():
    code = """
import contextlib, io, json, sys
from bczoo.cli import FUNCTIONS, TRAINER, main
lines = {}
for command in [(), *((name,) for name in TRAINER), *FUNCTIONS, ("data",), ("help", "play")]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*command, "--help"] if command[:1] != ("help",) else list(command)) == 0, command
    lines[" ".join(command)] = out.getvalue().splitlines()
print(json.dumps([lines, sorted({"torch", "lightning", "jsonargparse"} & set(sys.modules))]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines, imported = json.loads(out)
    assert imported == []
    assert len(lines) == len(COMMANDS) + 3
    for command, text in lines.items():
        assert 3 < len(text) <= (42 if command else 64), command
        assert max(map(len, text)) <= 140, command
    assert lines["help play"] == lines["play"]


def test_help_by_word_and_by_option_are_the_same(capsys):
    assert help_of(capsys, "help", "data") == help_of(capsys, "data", "--help")
    assert help_of(capsys, "help") == help_of(capsys, "--help") == help_of(capsys)
    assert help_of(capsys, "play", "runs/a", "-h") == help_of(capsys, "play", "--help")
    status, told = help_of(capsys, "help", "plya")
    assert status == 2 and "did you mean 'play'" in told.err


def test_the_overview_lists_every_command_in_a_group(capsys):
    _, told = help_of(capsys, "--help")
    for command in COMMANDS:
        assert re.search(rf"^  {re.escape(' '.join(command))}  +\w", told.out, re.MULTILINE), command
    assert "bczoo fit --config quickstart" in told.out
    known = {word for members in GROUPS.values() for word in members}
    assert {c[0] for c in COMMANDS} <= known and "more:" not in told.out


def test_a_group_tells_its_commands(capsys):
    _, told = help_of(capsys, "data", "--help")
    assert "bczoo data check" in told.out and "draw the actions of a recording" in told.out
    status, told = help_of(capsys, "data", "nope", "--help")
    assert status == 2 and "data check, data view" in told.err


@pytest.mark.parametrize("command", list(FUNCTIONS), ids=" ".join)
def test_pages_say_what_the_functions_say(command):
    """What is read from the source is what importing it gives; every required argument is in the usage line."""
    _, target, positional = FUNCTIONS[command]
    module, _, name = target.partition(":")
    function = getattr(import_module(module), name)
    described, documented = describe(target), docstring_parser.parse(function.__doc__)
    assert [a.name for a in described.arguments] == [p.arg_name for p in documented.params]
    for argument, text in zip(described.arguments, documented.params, strict=True):
        assert argument.help == " ".join(text.description.split())
    usage = page(command).splitlines()[0]
    for argument in described.arguments:
        if argument.name in positional:
            assert argument.name.upper() in usage
        elif argument.default is None:
            assert f"--{argument.name}" in usage


@pytest.fixture(scope="module")
def trainer_options():
    """Options of the trainer commands: what their parsers take from the classes of trainer, data and policy."""
    from inspect import signature

    import lightning
    import torch

    from bczoo import BCPolicy, FineTune, ImageEncoder, RecordingDataModule

    owners = {
        "trainer": [lightning.Trainer],
        "data": [RecordingDataModule],
        "model": [BCPolicy, FineTune],
        "model.encoder": [ImageEncoder],
        "model.optimizer": [torch.optim.AdamW],
    }
    found = {f"--{at}.{p}" for at, classes in owners.items() for c in classes for p in signature(c.__init__).parameters}
    return found | OF_EVERY_RUN


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_in_a_first_screen_exists(command, trainer_options):
    shown = set(re.findall(r"--[a-z][\w.]*", page(command))) - {"--help"}
    assert command in EXAMPLES
    if command[0] in TRAINER:
        assert shown - BEFORE_THE_PARSER <= trainer_options
        return
    module, _, name = FUNCTIONS[command][1].partition(":")
    parser = ArgumentParser()
    parser.add_function_arguments(getattr(import_module(module), name), as_positional=False)
    assert shown - {"--config"} <= {f"--{action.dest}" for action in parser._actions}  # every function takes --config


def test_the_whole_of_a_parser_is_behind_help_all(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["data", "view", "--help", "all"])
    told = capsys.readouterr().out
    assert exit.value.code == 0 and "--start START" in told and "(type: int, default: 0)" in told


def test_defaults_and_choices_are_those_of_constants_and_named_types():
    play = describe("bczoo.play.command:play_policy")
    from bczoo.play.command import WATCH_PORT

    assert play.named("watch_port").default == str(WATCH_PORT)
    assert play.named("dtype").choices == ("float32", "bfloat16", "float16")
    assert play.named("policy").default is None and play.named("env").default == "None"


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{sys.executable} -c 'import time; from bczoo.cli import main; time.sleep(0.5); main([])' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
