"""A text instruction is followed, or written down, wherever one can be given: from Python and from the command line."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from bczoo.causality.attention import attention_report
from bczoo.cli import FUNCTIONS, main
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.index import open_index
from bczoo.data.recording import read_annotation
from bczoo.games import PlayedRecordings
from bczoo.play import bench
from bczoo.play.agent import Agent, PolicyPlayer
from bczoo.record.command import record
from bczoo.studies import gap as gap_module
from bczoo.train.callbacks.play import PlayGame

sys.path.append(str(Path(__file__).parents[1] / "data"))
from synthetic import write_recordings

CATCH = "tiny_game:catch"
TEXT = "catch the red one"
EMBEDDED = tiny.Words()([TEXT])[0]
WORDS = "tiny.Words"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def policy():
    tiny.tiny_policy(text_encoder=tiny.Words()).save_pretrained("policy")
    return "policy"


def texts(folder):
    """Instructions of a recording: text, duration in steps, embedding or None."""
    found = []
    for frame in read_annotation(folder).frame_annotations:
        for text in frame.frame_text_annotation:
            tensors = [t for m in text.text_embedding_dict.values() for t in m.text_embeddings.values()]
            found.append((text.instruction, int(text.duration * 20), list(tensors[0].values) if tensors else None))
    return found


@pytest.mark.parametrize(
    "command", ["play", "serve", "client-test", "record", "causality", "attention", "gap", "bench latency"]
)
def test_every_command_that_runs_a_policy_takes_one(command):
    module, _, function = FUNCTIONS[tuple(command.split())][1].partition(":")
    assert "text" in inspect.signature(getattr(import_module(module), function)).parameters


def test_every_part_of_python_that_plays_takes_one():
    for part in (PlayedRecordings, PlayGame, PolicyPlayer, Agent.step):
        assert "text" in inspect.signature(part).parameters


def test_demonstrations_hold_the_embedded_instruction(capsys):
    (folder,) = record(CATCH, "out", episodes=1, size=32, workers=1, text=TEXT, text_encoder=WORDS)
    ((said, steps, embedding),) = texts(folder)
    assert said == TEXT and steps >= 54 and embedding == EMBEDDED.tolist()
    assert read_annotation(folder).metadata.tasks == [TEXT]
    index = open_index("out", ActionSpace.keyboard_mouse(), text_dim=16)
    assert index.without_embedding == 0 and np.array_equal(index.texts(0)[2][0], EMBEDDED.numpy())
    assert "without an embedding" not in capsys.readouterr().out


def test_an_instruction_without_an_encoder_is_written_and_told(capsys):
    (folder,) = record(CATCH, "out", agent="random", episodes=1, size=32, workers=1, text=TEXT)
    assert [(said, embedding) for said, _, embedding in texts(folder)] == [(TEXT, None)]
    assert "without an embedding, and no policy learns from it so; give --text_encoder" in capsys.readouterr().out


def test_episodes_under_other_instructions_are_others():
    folders = set()
    for text, encoder in ((None, None), (TEXT, None), (TEXT, WORDS), (TEXT, tiny.Words(8)), ("wait", WORDS)):
        folders.update(record(CATCH, "out", episodes=1, size=32, workers=1, text=text, text_encoder=encoder))
    assert len(folders) == 5
    assert len(record(CATCH, "out", episodes=1, size=32, text=TEXT, text_encoder=WORDS)) == 1


def test_the_command_line_takes_text_and_encoder():
    spec = json.dumps({"class_path": WORDS, "init_args": {"width": 8}})
    command = ["record", "--env", CATCH, "--out", "out", "--episodes", "1", "--size", "32", "--workers", "1"]
    assert main([*command, "--text", TEXT, "--text_encoder", spec]) == 0
    (folder,) = Path("out").iterdir()
    assert texts(folder)[0][2] == tiny.Words(8)([TEXT])[0].tolist()


def test_a_source_for_training_writes_it_too():
    source = PlayedRecordings(CATCH, episodes=1, size=32, workers=1, text=TEXT, text_encoder=WORDS)
    source.prepare(Path("data"))
    (folder,) = Path("data").iterdir()
    assert texts(folder)[0][2] == EMBEDDED.tolist()
    assert source.describe()["text"] == TEXT


def test_a_person_is_recorded_under_it(monkeypatch):
    pygame = pytest.importorskip("pygame")
    from bczoo.record import keyboard

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(keyboard.time, "sleep", lambda seconds: None)
    pygame.quit()
    (folder,) = record(CATCH, "out", agent="keyboard", episodes=1, size=32, text=TEXT, text_encoder=WORDS)
    assert texts(folder)[0][::2] == (TEXT, EMBEDDED.tolist())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"text_encoder": WORDS}, "text_encoder (only with --text)"),
        ({"text_encoder": WORDS, "text": TEXT, "policy": "p"}, "text_encoder (only where no --policy plays)"),
        ({"text": TEXT, "text_encoder": "tiny.Nobody"}, "'tiny.Nobody' is not a known TextEncoder"),
    ],
)
def test_what_cannot_embed_is_told_before_anything_is_played(given, told):
    with pytest.raises(UserError) as raised:
        record(CATCH, "out", episodes=1, size=32, workers=1, **given)
    assert told in str(raised.value)
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


def test_attention_looks_at_it(policy):
    write_recordings(Path("data"), 1, n=8)
    plain = attention_report(policy, "data", out="plain")
    told = attention_report(policy, "data", text=TEXT, out="told")
    assert not torch.equal(plain.kinds, told.kinds)
    assert json.loads(Path("told/attention.json").read_text())["text"] == TEXT
    assert json.loads(Path("plain/attention.json").read_text())["text"] is None


def test_gap_is_measured_under_it(policy, monkeypatch):
    subjects = []
    tiny.tiny_policy(seed=1, text_encoder=tiny.Words()).save_pretrained("other")
    monkeypatch.setattr(gap_module, "measure", lambda game, named, *more: subjects.extend(named.values()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gap_module.gap(policy, CATCH, compare="other", text=TEXT)
    assert [torch.equal(one.instruction, EMBEDDED) for one in subjects] == [True, True]


def test_latency_is_measured_under_it(policy, monkeypatch, capsys):
    told = []

    def step_many(self, env_ids, frames, texts=None, do=Agent.step_many):
        told.append(texts)
        return do(self, env_ids, frames, texts)

    monkeypatch.setattr(bench, "MEASURED_BYTES", 1 << 20)
    monkeypatch.setattr(Agent, "step_many", step_many)
    run = functools.partial(bench.latency, policy, games=2, steps=2, warm_up=0)
    run(text=TEXT)
    assert len(told) == 2 and all(torch.equal(one, EMBEDDED) for texts in told for one in texts)
    told.clear()
    run()
    assert told == [[None, None]] * 2
    assert main(["bench", "latency", "tiny", "--text", TEXT]) == 1
    assert f"tiny cannot follow the instruction {TEXT!r}: this policy has no text_encoder" in capsys.readouterr().err
