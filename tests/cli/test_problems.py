"""Errors of the parsers: the first line says what is wrong, where, and what was meant."""

# ruff: noqa: F811 - fixtures are named as arguments
import os
import subprocess
import sys

import pytest
from command_line import bczoo, here, own_arguments  # noqa: F401


def told_by(capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        bczoo(*argv)
    assert exit.value.code == 2
    first, rest = capsys.readouterr().err.strip().split("\n")
    assert "--help" in rest and "BCZOO_TRACEBACK=1" in rest
    return first


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--trainer.max_steps many", "bczoo: --trainer.max_steps must be a whole number, got 'many'"),
        ("--trainer.max_steps", "bczoo: --trainer.max_steps needs a value behind it"),
        ("--model.window big", "bczoo: --model.window must be a whole number, got 'big'"),
        (
            "--model.encoder.init_args.frozen maybe",
            "bczoo: --model.encoder.init_args.frozen must be true or false, got 'maybe'",
        ),
        (
            "--model.encoder.frozn true",
            "bczoo: --model.encoder.frozn is no option of bczoo.ImageEncoder. Did you mean '--model.encoder.frozen'?",
        ),
        (
            "--trainer.max_step 4",  # the beginning of an option is none
            "bczoo: --trainer.max_step is no option of bczoo fit. Did you mean '--trainer.max_steps'?",
        ),
        (
            "--data.batchsize 3",
            "bczoo: --data.batchsize is no option of bczoo.RecordingDataModule. Did you mean '--data.batch_size'?",
        ),
        (
            "--model.decoder bczoo.ActionDecodr",
            "bczoo: --model.decoder: there is no bczoo.ActionDecodr. Did you mean 'bczoo.ActionDecoder'?",
        ),
        (
            "--model.decoder bczoo.ImageEncoder",
            "bczoo: --model.decoder: bczoo.ImageEncoder is no Decoder; there are bczoo.ActionDecoder, "
            "bczoo.BackboneHeads, bczoo.IndependentHeads, and classes of your own",
        ),
        (
            "--trainer.callbacks+=bczoo.PlayGam",
            "bczoo: --trainer.callbacks: there is no bczoo.PlayGam. Did you mean 'bczoo.PlayGame'?",
        ),
        ("--trainer.callbacks+=bczoo.PlayGame", "bczoo: --trainer.callbacks: bczoo.PlayGame needs env"),
        ("--nope 3", "bczoo: --nope is no option of bczoo fit."),
    ],
)
def test_a_wrong_option_of_fit_is_told_in_one_line(argv, line, capsys):
    assert told_by(capsys, "fit", "--config", "tiny", *argv.split()) == line


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("x --episodes ten", "bczoo: --episodes must be a whole number, got 'ten'"),
        ("x --epsodes 10", "bczoo: --epsodes is no option of bczoo play. Did you mean '--episodes'?"),
        ("x --dtype float8", "bczoo: --dtype must be one of float32, bfloat16, float16 or null, got 'float8'"),
        ("a b", "bczoo: what is 'b' for? bczoo play takes POLICY"),
        (
            "",
            "bczoo: missing: POLICY, an exported folder, org/name on the Hugging Face Hub, a run such as "
            "runs/quickstart, or a .ckpt file",
        ),
    ],
)
def test_a_wrong_option_of_another_command_is_told_in_one_line(argv, line, capsys):
    assert told_by(capsys, "play", *argv.split()) == line


@pytest.mark.parametrize(
    ("command", "yaml", "line"),
    [
        (
            "fit",
            "trainer: {max_stpes: 3}",
            "bczoo: my.yaml: trainer.max_stpes is no option of bczoo fit. Did you mean 'trainer.max_steps'?",
        ),
        (
            "fit",
            "modle: {class_path: bczoo.BCPolicy}",
            "bczoo: my.yaml: modle.class_path is no option of bczoo fit. Did you mean 'model.class_path'?",
        ),
        (
            "fit",
            "model: {class_path: bczoo.BCPolcy}",
            "bczoo: my.yaml: model: there is no bczoo.BCPolcy. Did you mean 'bczoo.BCPolicy'?",
        ),
        (
            "fit",
            "model: {init_args: {transformer: {class_path: bczoo.PolicyTransformer, init_args: {width: wide}}}}",
            "bczoo: my.yaml: model.transformer.width must be a whole number, got 'wide'",
        ),
        (
            "fit",
            "model: [1",
            "bczoo: my.yaml, line 1, column 10 is not YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("fit", "just text", "bczoo: my.yaml holds 'just text'; a configuration is a mapping of options to values"),
        (
            "record",
            "{env: doom/basic, out: x, episods: 3}",
            "bczoo: my.yaml: episods is no option of bczoo record. Did you mean 'episodes'?",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_the_file(command, yaml, line, here, capsys):
    (here / "my.yaml").write_text(yaml)
    base = ["--config", "tiny"] if "init_args" in yaml else []
    assert told_by(capsys, command, *base, "--config", "my.yaml") == line


def test_a_class_of_a_module_that_is_not_there_says_where_modules_are_found(capsys):
    line = told_by(capsys, "fit", "--config", "tiny", "--model.decoder", "no_such_module.Decoder")
    assert "no module 'no_such_module'" in line and "PYTHONPATH" in line


def test_the_whole_message_is_shown_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("BCZOO_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        bczoo("play", "x", "--episodes", "ten")
    told = capsys.readouterr().err
    assert "usage: bczoo play" in told and 'Parser key "episodes"' in told


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_trainer_command_alone_names_config_and_what_there_is(command):
    code = f"import sys; from bczoo.cli import main; status = main([{command!r}]); "
    code += "assert 'torch' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    (line,) = done.stderr.strip().split("\n")
    assert done.returncode == 2 and "--config" in line and "quickstart, " in line and "600m" in line
    assert ("bczoo validate runs/quickstart" in line) == (command == "validate")
