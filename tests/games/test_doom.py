"""Doom: controls are calibrated, episodes repeat by seed, experts play well, and nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from bczoo.core.actions import ActionSpace
from bczoo.games import ExpertPlayer, RandomPlayer, make_game
from bczoo.games.doom import TICS_PER_STEP, DoomEnv
from bczoo.play.episodes import play, play_in_processes


def turned(before: float, after: float) -> float:
    """Degrees to the right."""
    return -((after - before + 180) % 360 - 180)


@pytest.mark.parametrize("scenario", ["defend_the_center", "health_gathering"])
def test_the_mouse_turns_by_a_quarter_degree_per_px_whatever_the_step_lasts(scenario):
    game = make_game(f"doom/{scenario}")
    with game.open(for_expert=True) as running:
        _, info = running.reset(seed=0)
        for _ in range(8):  # past the first tics, in which the engine may not turn yet
            _, _, _, info = running.step({})
        for dx in (60, 60, 60, 60, -24, 1, -2, 9, 320):
            before = info["angle"]
            _, _, done, info = running.step({"mouse_dx": dx})
            assert not done
            assert turned(before, info["angle"]) == pytest.approx(dx / 4, abs=0.03)


def test_looking_down_with_the_mouse_shows_more_floor():
    game = make_game("doom/health_gathering")
    with game.open() as running:
        running.reset(seed=0)
        for _ in range(4):
            level, *_ = running.step({})
        for _ in range(4):
            down, *_ = running.step({"mouse_dy": 40})
        for _ in range(4):
            up, *_ = running.step({"mouse_dy": -40})
    # the acid floor of this scenario is green
    green = [int((f[..., 1].astype(int) > f[..., 0] + 20).sum()) for f in (level, down, up)]
    assert green[1] > 1.2 * green[0]
    assert abs(green[2] - green[0]) < 0.1 * green[0]


def test_keys_walk():
    game = make_game("doom/health_gathering")
    with game.open(for_expert=True) as running:
        places = {}
        for key in "wasd":
            _, info = running.reset(seed=0)
            start, heading = complex(info["x"], info["y"]), np.exp(1j * np.radians(info["angle"]))
            for _ in range(20):
                _, _, _, info = running.step({"keys": [key]})
            places[key] = (complex(info["x"], info["y"]) - start) / heading  # forward, and to the left
    assert places["w"].real > 50 and places["s"].real < -50
    assert places["a"].imag > 50 and places["d"].imag < -50


def test_twenty_steps_a_second_on_average():
    game = make_game("doom/health_gathering")
    assert game.fps == pytest.approx(20)
    with game.open() as running:
        running.reset(seed=0)
        rewards = [running.step({})[1] for _ in range(8)]  # this scenario gives 1 per tic
    assert rewards == [*TICS_PER_STEP, *TICS_PER_STEP]


def test_an_episode_depends_on_its_seed_alone():
    game = make_game("doom/defend_the_center")
    alone = play(game, RandomPlayer(game), 3, seed=5, parallel=1, progress=False)
    together = play(game, RandomPlayer(game), 4, seed=4, parallel=3, progress=False)
    spread = play_in_processes(game, "random", 3, seed=5, workers=2, progress=False)
    assert (alone.returns, alone.lengths) == (together.returns[1:], together.lengths[1:])
    assert (alone.returns, alone.lengths) == (spread.returns, spread.lengths)
    assert len(set(alone.lengths)) > 1


def test_frames_repeat_by_seed_and_the_expert_env_shows_the_same_game():
    def frames(see_objects: bool, seeds: list[int]) -> np.ndarray:
        env = DoomEnv("deadly_corridor", see_objects)
        try:
            for seed in seeds:
                seen = [env.reset(seed=seed)[0]]
                rng = np.random.default_rng(0)
                for _ in range(20):
                    buttons = np.append(rng.integers(0, 2, 5), [rng.uniform(-9, 9), 0])
                    seen.append(env.step(buttons)[0])
            return np.stack(seen)
        finally:
            env.close()

    first = frames(False, [7])
    assert np.array_equal(first, frames(False, [1, 7]))
    assert np.array_equal(first, frames(True, [7]))
    assert not np.array_equal(first, frames(False, [8]))


@pytest.mark.parametrize(
    ("scenario", "at_least", "random_at_most"),
    [
        ("defend_the_center", 22, 6),
        ("basic", 80, 70),
        ("health_gathering", 2000, 700),
        ("deadly_corridor", 2000, 300),
        ("defend_the_line", 28, 16),
    ],
)
def test_experts_beat_random_players(scenario, at_least, random_at_most):
    game = make_game(f"doom/{scenario}")
    expert = play_in_processes(game, "expert", 3, seed=50, progress=False)
    random = play_in_processes(game, "random", 3, seed=50, progress=False)
    assert expert.mean >= at_least
    assert random.mean <= random_at_most


def test_what_the_expert_does_survives_the_mouse_bins():
    game = make_game("doom/defend_the_center")
    space, seen = ActionSpace.keyboard_mouse(), []
    play(game, ExpertPlayer(game), 1, progress=False, on_step=lambda e, f, d, r: seen.append(d.values))
    assert len({v["mouse_dx"] for v in seen}) > 5
    assert [space.decode(space.encode(**v), "mean") for v in seen] == seen


def test_no_expert_where_there_is_none():
    game = make_game("doom/take_cover")
    with pytest.raises(ValueError, match=r"doom/take_cover.*no expert"):
        play(game, ExpertPlayer(game), 1, progress=False)


def engines(temporary: Path) -> list[str]:
    """Processes that work in a folder below ``temporary``: engines, and who is starting one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(temporary) in os.readlink(process / "cwd"):
                found.append(process.name)
        except OSError:
            continue
    return found


def folders(temporary: Path) -> list[Path]:
    """Of running engines, or left by them."""
    return list(temporary.glob("*bczoo_doom*"))


PLAYING = """
from bczoo.games import make_game, ExpertPlayer
from bczoo.play.episodes import play, play_in_processes
if __name__ == "__main__":
    game = make_game("doom/health_gathering")
    {call}
"""
IN_ONE = "play(game, ExpertPlayer(game), 1000, parallel=2, progress=False)"
IN_MANY = "play_in_processes(game, 'expert', 1000, workers=2, progress=False)"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("call", "end"),
    [
        (IN_ONE, signal.SIGTERM),
        (IN_ONE, signal.SIGINT),
        (IN_MANY, signal.SIGTERM),
        (IN_MANY, signal.SIGINT),
        (IN_MANY, signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(tmp_path, call, end):
    script, here, temporary = tmp_path / "playing.py", tmp_path / "here", tmp_path / "tmp"
    script.write_text(PLAYING.format(call=call))
    here.mkdir()
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=here,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # a shell's background job ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(engines(temporary)) >= 2, 90, "two engines run")
        time.sleep(0.5)
        process.send_signal(end)
        process.wait(90)
        wait_for(lambda: not engines(temporary), 90, "all engines have ended")
        wait_for(lambda: not folders(temporary), 90, "their folders are gone")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the engines, should they still run
        process.wait()
    assert list(here.iterdir()) == []


STOPPED_WHILE_CLOSING = """
import os, shutil, signal
from bczoo.games import make_game, ExpertPlayer
from bczoo.play.episodes import play, play_in_processes

def stopped(*arguments, remove=shutil.rmtree, **options):
    shutil.rmtree = remove
    os.kill(os.getpid(), signal.SIGTERM)
    remove(*arguments, **options)

if (__name__ == "__main__") == {in_one}:
    shutil.rmtree = stopped
if __name__ == "__main__":
    game = make_game("doom/basic")
    {call}
"""


@pytest.mark.parametrize("call", [IN_ONE, IN_MANY])
def test_nothing_is_left_behind_by_a_stop_in_the_middle_of_closing(tmp_path, call):
    script, temporary = tmp_path / "playing.py", tmp_path / "tmp"
    script.write_text(STOPPED_WHILE_CLOSING.format(call=call.replace("1000", "4"), in_one=call == IN_ONE))
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.run([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, timeout=90)
    if call == IN_ONE:
        assert process.returncode == 128 + signal.SIGTERM
    else:
        assert b"has ended (status 143)" in process.stderr
    assert not folders(temporary)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has died")
def test_a_killed_process_takes_its_engine_with_it_and_the_next_game_sweeps_its_folder(tmp_path, monkeypatch):
    script, temporary = tmp_path / "playing.py", tmp_path / "tmp"
    script.write_text(PLAYING.format(call=IN_ONE))
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(engines(temporary)) >= 2, 90, "two engines run")
        time.sleep(1.0)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not engines(temporary), 90, "all engines have ended")
    left = folders(temporary)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    env = DoomEnv("basic")
    try:
        assert left and len(folders(temporary)) == 1 and folders(temporary)[0] not in left
    finally:
        env.close()
    assert not folders(temporary)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for shared memory in /dev/shm")
def test_the_memory_of_a_running_engine_has_no_name_that_could_be_left():
    env = DoomEnv("basic")
    try:
        assert not list(Path("/dev/shm").glob(f"*{env._engine.get_instance_id()}"))
        assert env.reset(seed=1)[0].any()
    finally:
        env.close()


def test_an_environment_that_is_dropped_without_closing_takes_its_engine_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = DoomEnv("basic")
    assert len(list(tmp_path.iterdir())) == 1
    del env
    gc.collect()
    assert not list(tmp_path.iterdir())


def wait_for(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s until {what}"
        time.sleep(0.1)
