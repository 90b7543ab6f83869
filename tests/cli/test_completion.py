"""Completion of commands, options and configurations."""

import os
import shutil
import subprocess
import sys

import pytest

from bczoo.cli import main
from bczoo.cli.completion import complete


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pla"], {"play"}),
        (["data", "i"], {"idm-check", "import"}),
        (["help", "ben"], {"bench"}),
        (["fit", "--config", "ti"], {"tiny"}),
        (["fit", "--config", "=", "fine"], {"finetune"}),
        (["play", "x", "--vid"], {"--video", "--video_seconds"}),
        (["play", "x", "--watch", ""], {"true", "false"}),
        (["play", "x", "--dtype", "b"], {"bfloat16"}),
        (["play", "x", "--env", "doom/defend_the_c"], {"doom/defend_the_center"}),
        (["fit", "--trainer.max_s"], {"--trainer.max_steps"}),
        (["fit", "--config", "finetune", "--model.init"], {"--model.init_from"}),
        (["fit", "--config", "tiny", "--model.encoder.b"], {"--model.encoder.backbone"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["play", ""], set()),  # a path: the shell's own
        (["play", "x", "--video", ""], set()),
        (["nonsense", ""], set()),
    ],
)
def test_what_a_word_may_become(words, expected):
    assert set(complete(words)) == expected


def test_completing_imports_no_torch():
    code = (
        "import sys; from bczoo.cli import main; main(['__complete', 'fit', '--config', 'tiny', '--model.']); "
        "print({'torch', 'lightning'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--model.encoder" in out and out.strip().endswith("set()")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_script(tmp_path):
    command = tmp_path / "bczoo"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bczoo "$@"\n')
    command.chmod(0o755)
    (tmp_path / "clip.mp4").touch()
    script = """
eval "$(bczoo completion bash)"
complete -p bczoo
COMP_WORDS=(bczoo fit --config qui); COMP_CWORD=3; _bczoo; echo "${COMPREPLY[@]}"
COMP_WORDS=(bczoo rec); COMP_CWORD=1; _bczoo; echo "${COMPREPLY[@]}"
COMP_WORDS=(bczoo play ""); COMP_CWORD=2; _bczoo; echo "none: ${#COMPREPLY[0]}"
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment).stdout
    registered, *completed = out.splitlines()
    assert "-o default" in registered and "-F _bczoo" in registered  # files where no word fits
    assert completed == ["quickstart", "record", "none: 0"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_ask_for_words(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "bczoo __complete" in script and "{" not in script.replace("{(@", "").replace("${", "").replace("{\n", "")
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])
    assert "bash, zsh" in capsys.readouterr().err
