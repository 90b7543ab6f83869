"""``bczoo data stats``: hours, games, holds, motions and frames, as text, as JSON and as a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from synthetic import SIZE, numbered

from bczoo.cli import main
from bczoo.core.actions import ActionSpace
from bczoo.data.check import check
from bczoo.data.recording import RecordingWriter
from bczoo.data.stats import stats


def record(folder, steps, action, frame=numbered, env="doom", subtype="basic", **arguments):
    with RecordingWriter(folder, size=SIZE, env=env, env_subtype=subtype) as writer:
        for i in range(steps):
            writer.add(frame(i), user=action(i), **arguments)


@pytest.fixture
def root(tmp_path):
    """w is held for 3 of 10 steps and Space for 1; the mouse moves in every fifth step; one picture never changes."""

    def action(i):
        return {"keys": ["w"] * (i % 10 < 3) + ["Space"] * (i % 10 == 7), "mouse_dx": 5 * (i % 5 == 0)}

    record(tmp_path / "in" / "a", 100, action)
    embedding = np.ones(768, np.float32)
    record(tmp_path / "in" / "b", 50, action, subtype="", text="go", text_embedding=embedding)
    record(
        tmp_path / "in" / "frozen", 50, lambda i: None if i < 20 else {}, lambda i: numbered(65535), env="", subtype=""
    )
    return tmp_path / "in"


def test_numbers(root):
    found = stats(str(root))
    assert {name: game.recordings for name, game in found.games.items()} == {
        "doom/basic": 1,
        "doom": 1,
        "no game named": 1,
    }
    assert sum(game.hours for game in found.games.values()) == pytest.approx(found.counts.hours)
    w, space = found.held["keys:w"], found.held["keys:Space"]
    assert list(found.held) == ["keys:w", "keys:Space"]
    assert (w.presses, w.lengths, w.median_s, w.longest_s) == (15, {3: 15}, 0.15, 0.15)
    assert (space.presses, space.lengths) == (15, {1: 15})
    assert w.share == pytest.approx(45 / 180) and w.per_minute == pytest.approx(15 / (180 / 20 / 60))
    assert found.still["mouse_dx"] == pytest.approx(150 / 180) and found.motions["mouse_dx"]["4..6"] == 30
    assert found.idle == pytest.approx((180 - 15 * 4 - 15) / 180)  # the mouse moves at 0 and 5, at 0 with w
    assert (found.instructions, found.counts.text_steps) == (1, 50)
    assert found.frames.still == ["frozen"] and found.frames.unchanged >= 8
    assert sum(found.brightness) == found.frames.frames and found.brightness[-1] >= 10
    assert found.counts.actions == check(str(root), decode=False).actions


def test_a_hold_ends_where_nobody_knows(tmp_path):
    record(tmp_path / "a", 30, lambda i: None if i == 10 else {"keys": ["w"]})
    assert stats(str(tmp_path)).held["keys:w"].lengths == {10: 1, 19: 1}


def test_switches(tmp_path):
    record(tmp_path / "a", 40, lambda i: {"buttons": ["south"] if i % 4 else [], "left_stick_x": 0.5})
    found = stats(str(tmp_path), action_space=ActionSpace.gamepad().to_dict())
    assert found.held["buttons:south"].lengths == {3: 10} and found.still["left_stick_x"] == 0


def test_files_and_broken_ones(root, tmp_path, capsys):
    (root / "bad").mkdir()
    (root / "bad" / "annotation.proto").write_bytes(b"\xff")
    files = "--json", str(tmp_path / "stats.json"), "--out", str(tmp_path / "stats.png")
    assert main(["data", "stats", str(root), *files]) == 1
    told = capsys.readouterr().out
    assert "3 recordings, 0.00 h, 203 steps" in told and "1 broken:\n  bad: " in told
    assert "| keys:w     | 25.0% |" in told and "frozen       1 recording whose" in told
    plain = json.loads((tmp_path / "stats.json").read_text())
    assert plain["held"]["keys:w"]["lengths"] == {"3": 15} and plain["counts"]["broken"].keys() == {"bad"}
    picture = np.asarray(Image.open(tmp_path / "stats.png").convert("RGB"))
    assert picture.shape[1] == 1600 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "stats.txt"], "does not end like a picture"),
        (["--out", "."], "is a folder"),
        (["--videos", "-1"], "videos must be a whole number"),
    ],
)
def test_what_cannot_be_written_is_told_first(root, capsys, arguments, says):
    assert main(["data", "stats", str(root), *arguments]) == 1
    told = capsys.readouterr()
    assert says in told.err and not told.out


def test_nothing_at_all(tmp_path, capsys):
    assert main(["data", "stats", str(tmp_path)]) == 1
    assert "holds no recordings" in capsys.readouterr().err
    record(tmp_path / "a", 20, lambda i: None)
    assert main(["data", "stats", str(tmp_path), "--out", str(tmp_path / "s.png"), "--videos", "0"]) == 0
    assert "0 steps are learned from" in capsys.readouterr().out
