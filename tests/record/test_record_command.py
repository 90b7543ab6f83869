"""Recordings of played episodes: whole, reused, resumed, and disturbed where asked."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_game
from interruption import interrupted
from processes import wait_for

from bczoo.core.actions import ActionSpace, Decision
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath
from bczoo.core.spec import loss_mask, targets
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.recording import LABELLED, USER, action_values, known_action, read_annotation
from bczoo.data.video import probe, read_frames
from bczoo.games import Game, PlayedRecordings, RandomPlayer
from bczoo.games.bindings import VectorBindings
from bczoo.games.players import ActionRepeat
from bczoo.record.command import record
from bczoo.record.demonstrations import ActionNoise
from bczoo.record.episode import Stored, episode_name

CATCH = "tiny_game:catch"
GROUPS = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def steps(folder: str) -> list[dict]:
    """Values that the player decided on in all steps; annotation 0 is not one of them."""
    message = read_annotation(folder)
    assert not message.frame_annotations[0].user_action.is_known
    wanted = [f.user_action if f.user_action.is_known else f.expert_action for f in message.frame_annotations[1:]]
    return [action_values(action, GROUPS) for action in wanted if action.is_known]


def test_frames_are_paired_with_the_action_that_answers_them():
    (folder,) = record(CATCH, "out", episodes=1, size=48, workers=1)
    taken = steps(folder)
    info = probe(Path(folder) / "48x48.mp4")
    assert len(taken) == 55 and info.n_frames >= 55 and info.fps == 20
    frames = read_frames(Path(folder) / "48x48.mp4", 0, 55, 48)
    expert = tiny_game.CatchExpert()
    agree = 0
    for frame, values in zip(frames, taken, strict=True):
        small = frame.reshape(12, 4, 12, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
        small[-1, :, 0] = 0  # the dot is above the paddle
        agree += expert.act(small, {})["keys"] == values["keys"]
    assert agree >= 52, "as seen through the video, the expert would do the same"
    message = read_annotation(folder)
    assert (message.metadata.env.env, message.metadata.user) == ("catch", "expert")


def test_what_is_there_is_kept_and_the_rest_is_added(capsys):
    first = record(CATCH, "out", episodes=2, size=32, workers=1)
    before = {f: os.stat(f).st_mtime_ns for f in first}
    more = record(CATCH, "out", episodes=4, size=32, workers=2)
    assert more[:2] == first and len(set(more)) == 4
    assert {f: os.stat(f).st_mtime_ns for f in first} == before
    assert "2 of them were already there" in capsys.readouterr().out
    other = record(CATCH, "out", agent="random", episodes=2, size=32, workers=1)
    assert not set(other) & set(more)
    assert len(list(Path("out").iterdir())) == 6


def test_an_interrupted_recording_leaves_nothing_half_done_and_goes_on(monkeypatch):
    with interrupted(monkeypatch):
        record(CATCH, "out", episodes=3, size=32, workers=1)
    assert len(list(Path("out").iterdir())) == 1
    assert len(record(CATCH, "out", episodes=3, size=32, workers=1)) == 3
    assert len(list(Path("out").iterdir())) == 3


def test_the_first_of_two_recordings_of_an_episode_stays(monkeypatch, capsys):
    (first,) = record(CATCH, "one", episodes=1, size=32, workers=1)
    content = (Path(first) / "annotation.proto").read_bytes() + b"\xf2\x06\x00"  # a field that nobody knows
    (Path(first) / "annotation.proto").write_bytes(content)

    def act(self, frame, info, ask=tiny_game.CatchExpert.act):
        if not (there := Path("two") / Path(first).name).exists():  # as if another process had been faster
            shutil.copytree(first, there)
        return ask(self, frame, info)

    monkeypatch.setattr(tiny_game.CatchExpert, "act", act)
    folders = record(CATCH, "two", episodes=2, size=32, workers=1)
    assert len(folders) == 2 and sorted(str(p) for p in Path("two").iterdir()) == folders
    assert (Path(folders[0]) / "annotation.proto").read_bytes() == content
    told = capsys.readouterr().out
    assert "1 episodes were recorded by another process meanwhile" in told
    assert "2 episodes of tiny_game:catch in two, 1 of them were already there" in told


def test_what_a_killed_process_left_is_swept():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with PartialPath("out/episode") as partial:
        partial.path.mkdir()
        mine = partial.path.name
        left = Path("out") / mine.replace(f"-{os.getpid()}-", f"-{process.pid}-")
        left.mkdir()
        record(CATCH, "out", episodes=1, size=32, workers=1)
        assert {p.name for p in Path("out").iterdir()} == {mine, "tiny_game-catch_expert_32px_000000"}


@pytest.mark.parametrize(("out", "told"), [("file", "it is a file"), ("file/below", "Not a directory")])
def test_a_folder_that_cannot_be_is_told_before_anything_is_played(monkeypatch, out, told):
    Path("file").touch()
    monkeypatch.setattr(tiny_game, "Catch", None)  # nothing to play
    with pytest.raises(UserError, match=rf"^cannot record into {out} \({told}\); choose another folder with --out$"):
        record(CATCH, out, episodes=1, size=32, workers=1)


def test_a_full_folder_that_cannot_be_written_is_used_as_it_is(monkeypatch):
    folders = record(CATCH, "out", episodes=1, size=32, workers=1)
    monkeypatch.setattr(Path, "mkdir", None)
    assert record(CATCH, "out", episodes=1, size=32, workers=1) == folders


SLOW = """
import time
import tiny_game
from bczoo.games import Game

class Slow(tiny_game.Catch):
    def step(self, action):
        time.sleep(0.01)
        return super().step(action)

def slow():
    return Game("slow", Slow, tiny_game.catch().bindings, tiny_game.CatchExpert)
"""


def command(*options: str, before=None) -> subprocess.Popen:
    """``bczoo record`` in a process; ``before`` is called in it."""
    Path("slow_game.py").write_text(SLOW)
    path = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    arguments = ["record", "--env", "slow_game:slow", "--out", "out", "--workers", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "bczoo", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )


def there() -> list[str]:
    return sorted(os.listdir("out")) if Path("out").exists() else []


def finished() -> list[str]:
    return [name for name in there() if not name.startswith(".")]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_tells_what_is_there_and_leaves_nothing_else(end, status):
    # a shell's background job ignores Ctrl-C, and so would what it starts
    process = command("--episodes", "500", "--size", "32", before=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        wait_for(lambda: len(finished()) > 2, "some episodes are there")
        os.killpg(process.pid, end) if end == signal.SIGINT else process.send_signal(end)
        told = process.communicate(timeout=90)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status
    assert finished() == there() != []
    assert f"stopped with {len(finished())} of 500 episodes of slow_game:slow in out; the same command goes on" in told
    assert "Traceback" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_ends_the_command_with_one_line():
    import resource

    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))  # which fails as a full disk does
    told = (process := command("--episodes", "6", "--size", "192", before=full)).communicate(timeout=90)[1]
    assert process.returncode == 1 and there() == []
    assert re.search(r"\nbczoo: out/slow_game-slow_expert_192px_00000\d cannot be written \(file too large\)", told)
    assert "Traceback" not in told


def test_a_seed_gives_the_same_recording_again():
    (first,) = record(CATCH, "one", episodes=1, seed=5, size=32, noise=0.1, workers=1)
    (second,) = record(CATCH, "two", episodes=1, seed=5, size=32, noise=0.1, workers=1)
    (third,) = record(CATCH, "two", episodes=1, seed=6, size=32, noise=0.1, workers=1)
    assert steps(first) == steps(second) != steps(third)
    one, two, other = (read_frames(Path(f) / "32x32.mp4", 0, 55, 32).astype(int) for f in (first, second, third))
    assert np.abs(one - two).mean() < 1 < np.abs(one - other).mean(), "up to the rounding of the encoder"


def test_names_tell_everything_that_changes_an_episode():
    calls = [("doom/basic", "expert", 3, 192, 0.0)]
    calls += [("doom/take", *calls[0][1:]), ("doom/basic", "random", 3, 192, 0.0)]
    calls += [("doom/basic", "expert", 4, 192, 0.0), ("doom/basic", "expert", 3, 96, 0.0)]
    calls += [("doom/basic", "expert", 3, 192, 0.05)]
    calls = [(*c[:3], Stored(c[3]), *c[4:]) for c in calls] + [(*calls[0][:3], Stored(192, "letterbox"), 0.0)]
    names = {episode_name(*c) for c in calls}
    names |= {episode_name(*calls[-2], hold) for hold in (1, 4)}
    assert (
        len(names) == 8
        and "doom-basic_expert_noise0.05_hold4_192px_000003" in names
        and "doom-basic_expert_192px_000003" in names
    )
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for n in names)


def test_noise_turns_in_bursts_and_leaves_the_held_keys():
    game = Game("g", tiny_game.Catch, VectorBindings({"w": 0, "mouse_dx": 1}, 2))
    bursts = ActionNoise(game, 0.05, seed=0)
    clean = {"keys": ["w"], "mouse_buttons": [], "mouse_dx": 7.5}
    executed = [bursts(clean) for _ in range(4000)]
    disturbed = np.array([v != clean for v in executed])
    assert all(v["keys"] == ["w"] for v in executed)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], disturbed, [0]])))
    lengths = edges[1::2] - edges[::2]
    assert lengths.min() >= 2
    assert 3 < lengths.mean() < 9
    assert 0.15 < disturbed.mean() < 0.35
    assert [ActionNoise(game, 0.0, seed=0)(clean) for _ in range(100)] == [clean] * 100


def test_under_noise_a_step_holds_what_was_done_and_is_learned_as_what_was_wanted():
    executed = []

    class Watched(tiny_game.Catch):
        def step(self, action):
            executed.append(action)
            return super().step(action)

    from bczoo.record.demonstrations import demonstrate_episode

    game = Game("catch", Watched, tiny_game.catch().bindings, tiny_game.CatchExpert)
    demonstrate_episode(game, "expert", 0, "data/noisy", Stored(32), 0.2)
    labels = [game.bindings(v) for v in steps("data/noisy")]
    known = [known_action(f) for f in read_annotation("data/noisy").frame_annotations[1:]]
    assert [game.bindings(action_values(action, GROUPS)) for _, action in known] == executed
    assert {kind for kind, _ in known} == {USER, LABELLED}
    assert 0.1 < np.mean([a != b for a, b in zip(labels, executed, strict=True)]) < 0.7
    index = open_index("data", space := ActionSpace.keyboard_mouse(), text_dim=None)
    batch = WindowDataset(index, len(labels), 32)[0, 0]
    for told, tokens in ((executed, batch["actions"]), (labels, targets(batch))):
        rows = [{name: group[0, i].tolist() for name, group in tokens.items()} for i in range(len(labels))]
        assert [game.bindings(space.decode(row)) for row in rows] == told
    assert loss_mask(batch).all() and batch["system"].sum() == sum(kind == LABELLED for kind, _ in known)
    frames = read_frames("data/noisy/32x32.mp4", 0, len(labels), 32)
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) > 20


def test_a_player_that_holds_decides_every_few_steps(monkeypatch):
    asked = []

    def act(self, frame, info, ask=tiny_game.CatchExpert.act):
        asked.append(ask(self, frame, info))
        return asked[-1]

    monkeypatch.setattr(tiny_game.CatchExpert, "act", act)
    (folder,) = record(CATCH, "out", episodes=1, size=32, noise=0.1, workers=1, hold=3)
    taken = [v["keys"] for v in steps(folder)]
    assert len(asked) == -(-len(taken) // 3) and len({tuple(v["keys"]) for v in asked}) > 1
    assert taken == [asked[i // 3]["keys"] for i in range(len(taken))]
    source = PlayedRecordings(CATCH, episodes=1, size=32, noise=0.1, workers=1, hold=3)
    source.prepare(Path("out"))
    assert len(list(Path("out").iterdir())) == 1 and source.describe()["hold"] == 3


def test_games_side_by_side_hold_their_own_decisions():
    class Counting:
        privileged = True

        def start(self, games, seed):
            self.count = 0

        def reset(self, row, seed):
            self.count += 100

        def act(self, rows, frames, infos):
            self.count += 1
            return [Decision({"keys": [f"{row}:{self.count}"]}) for row in rows]

    player = ActionRepeat(Counting(), 2)
    assert player.privileged and not ActionRepeat(RandomPlayer(tiny_game.catch()), 2).privileged
    player.start(2, seed=0)
    player.reset(0, 0)
    player.reset(1, 1)
    seen = [player.act(rows, [None] * len(rows), [{}] * len(rows)) for rows in ([0, 1], [0, 1], [0], [0, 1])]
    assert [[d.keys[0] for d in one] for one in seen] == [["0:201", "1:201"]] * 2 + [["0:202"], ["0:202", "1:203"]]
    player.reset(0, 2)
    assert player.act([0], [None], [{}])[0].keys == ["0:304"]


def test_source_for_training_plays_once(capsys):
    source = PlayedRecordings(CATCH, episodes=2, size=32, workers=1)
    source.prepare(Path("data"))
    names = sorted(p.name for p in Path("data").iterdir())
    assert len(names) == 2
    source.prepare(Path("data"))
    assert sorted(p.name for p in Path("data").iterdir()) == names
    assert "2 of them were already there" in capsys.readouterr().out


def test_a_game_out_of_lambdas_reaches_the_workers_by_its_name():
    folders = record("tiny_game:with_lambdas", "out", episodes=2, size=32, workers=2)
    assert all(steps(folder) for folder in folders)


def test_a_game_object_is_recorded_as_one_by_name():
    game = Game(
        "ab/short", lambda: tiny_game.Catch(), tiny_game.catch().bindings, tiny_game.CatchExpert, time_limit_s=1.0
    )
    folders = record(game, "out", episodes=2, size=32, workers=2)
    assert [Path(f).name for f in folders] == [f"ab-short_expert_32px_00000{i}" for i in range(2)]
    assert [len(steps(f)) for f in folders] == [20, 20]
    assert record(game, "out", episodes=2, size=32) == folders


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        record(CATCH, "out", episodes=0)
    with pytest.raises(ValueError, match="noise is a share"):
        record(CATCH, "out", noise=1.5)
    with pytest.raises(ValueError, match="hold is a number of steps from 1 on, got 0"):
        record(CATCH, "out", hold=0)
    with pytest.raises(ValueError, match=r"no player 'exprt'.*expert or random"):
        record(CATCH, "out", agent="exprt")
    assert not Path("out").exists()


TAKEOVERS = {"takeover": 0.2, "takeover_steps": (1, 2), "dagger": True}
WITH_EXPERT = "(only with --policy and --expert expert)"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"temperature": 0.5, "greedy": True, "device": "cuda", "revision": "v1", "expert": "expert"},
            "expert, temperature, greedy, device, revision (only with --policy)",
        ),
        ({"parallel": 2}, "parallel (only with --policy that no keyboard corrects)"),
        (TAKEOVERS, f"takeover, takeover_steps, dagger {WITH_EXPERT}"),
        (
            {**TAKEOVERS, "expert": "expert"},
            f"expert (only with --policy); takeover, takeover_steps, dagger {WITH_EXPERT}",
        ),
        (
            {"agent": "keyboard", "noise": 0.1, "hold": 2, "workers": 2},
            "noise, hold, workers (only with --agent expert or random)",
        ),
        (
            {"policy": "p", "agent": "random", "noise": 0.1, "hold": 2, "workers": 2},
            "agent (only where no --policy plays); noise, hold, workers (only with --agent expert or random)",
        ),
        ({"policy": "p", **TAKEOVERS}, f"takeover, takeover_steps, dagger {WITH_EXPERT}"),
        (
            {"policy": "p", "expert": "keyboard", "parallel": 2, **TAKEOVERS},
            f"parallel (only with --policy that no keyboard corrects); takeover, takeover_steps, dagger {WITH_EXPERT}",
        ),
    ],
)
def test_options_that_would_change_nothing_are_named(given, told):
    with pytest.raises(UserError) as raised:
        record(CATCH, "out", **given)
    assert str(raised.value).endswith(f"leave them out: {told}")


def test_doom_is_recorded_without_litter():
    pytest.importorskip("vizdoom")
    folders = record("doom/basic", "out", episodes=2, noise=0.05, workers=2, size=96)
    assert [p.name for p in Path.cwd().iterdir()] == ["out"]
    assert all("0" in {b for s in steps(f) for b in s["mouse_buttons"]} for f in folders)
    assert read_annotation(folders[0]).metadata.env.env_subtype == "basic"


@pytest.mark.parametrize("size", [0, -1, 100_000])
def test_a_size_that_no_frame_can_have_is_refused(size):
    with pytest.raises(UserError, match=f"size is a number of pixels from 1 to 4096, got {size}"):
        record(CATCH, "out", size=size)
