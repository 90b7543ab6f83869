"""Games in processes of their own: the same games as here, and nothing is left of them, however they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_game
from processes import session, wait_for

from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.games import ExpertPlayer, Game
from bczoo.play.envs import GameCrashError, SubprocessEnvs, SyncEnvs
from bczoo.play.episodes import play

TESTS = Path(__file__).parents[1]


class Ending(tiny_game.Catch):
    """Ends early, at a step that the seed decides."""

    def step(self, action):
        frame, reward, done, truncated, info = super().step(action)
        return frame, reward, done or bool(self.np_random.random() < 0.05), truncated, info


class Drawing:
    """Draws from the seeds that it was told, as a policy does, and remembers what it was asked."""

    def __init__(self) -> None:
        self.times = None
        self.rngs: dict[int, np.random.Generator] = {}

    def start(self, games: int, seed: int) -> None:
        self.calls = 0

    def reset(self, row: int, seed: int) -> None:
        self.rngs[row] = np.random.default_rng(seed)

    def act(self, rows, frames, infos):
        self.calls += 1
        assert infos == [{}] * len(rows)
        if self.times is not None:
            self.times.add("backbone", 0.001)
        return [Decision({"keys": [str(self.rngs[row].choice(["a", "d"]))]}) for row in rows]


def ending() -> Game:
    return Game("ending", Ending, tiny_game.catch().bindings)


@pytest.mark.parametrize("parallel", [1, 3])
def test_games_in_processes_are_the_games_here(parallel):
    def played(**options):
        seen: dict[int, list] = {}
        result = play(
            ending(),
            Drawing(),
            6,
            3,
            parallel,
            False,
            lambda e, f, d, r: seen.setdefault(e, []).append((f.tobytes(), d.values, r)),
            **options,
        )
        return (result.returns, result.lengths, result.seeds, seen), result

    here, unmeasured = played()
    there, measured = played(processes=True, measure=True)
    assert here == there
    assert len(set(here[1])) > 2, "episodes of different lengths"
    assert unmeasured.latency is None and measured.realtime is None
    steps = measured.latency["total"]["n"]
    assert set(measured.latency) == {"capture", "backbone", "send", "total"}, "the player adds its own stages"
    assert max(measured.lengths) <= steps <= sum(measured.lengths)
    assert {row["n"] for row in measured.latency.values()} == {steps}, "what warmed the player up is not counted"


class Telling(tiny_game.Catch):
    """Tells an expert where the dot falls."""

    def step(self, action):
        frame, reward, done, truncated, _ = super().step(action)
        return frame, reward, done, truncated, {"column": self.column}


def test_only_who_needs_infos_gets_them():
    game = Game("telling", Telling, tiny_game.catch().bindings)
    for privileged in (False, True):
        with SubprocessEnvs(game, 1, privileged) as there, SyncEnvs(game, 1, privileged) as here:
            for games in (there, here):
                games.reset(0, 5)
                assert games.see(0).info == {}
                games.step(0, {"keys": ["a"]})
            seen, expected = there.see(0), here.see(0)
        assert "column" in expected.info and seen.info == (expected.info if privileged else {})
        assert np.array_equal(seen.frame, expected.frame) and seen[1:3] == expected[1:3]


def test_all_games_step_before_any_is_waited_for():
    games, orders = SubprocessEnvs(tiny_game.catch(), 2), []
    games.send = lambda row, order: orders.append(row)
    games.step(0, {}), games.step(1, {})
    assert orders == [0, 1], "an order waits for nothing"


class Failing(tiny_game.Catch):
    def step(self, action):
        if self.row == 3:
            raise ZeroDivisionError("no dots left")
        return super().step(action)


class Dying(tiny_game.Catch):
    def step(self, action):
        os._exit(7)


@pytest.mark.parametrize(
    ("env", "error", "told"),
    [
        (Failing, GameCrashError, r"(?s)'g' \([12] of 2\) failed.*line \d+, in step.*ZeroDivisionError: no dots left"),
        (Dying, GameCrashError, r"process of game 'g' \([12] of 2\) has ended \(status 7\)"),
        (tiny_game.CatchIn("vector"), UserError, r"^game 'g' shows no frame"),
    ],
    ids=["failing", "dying", "wrong"],
)
@pytest.mark.parametrize("realtime", [False, True])
def test_what_goes_wrong_in_a_game_is_told_here(env, error, told, realtime):
    game = Game("g", env, tiny_game.catch().bindings, fps=50.0)
    with pytest.raises(error, match=told):
        play(game, Drawing(), 2, progress=False, processes=True, realtime=realtime)


def test_a_game_that_cannot_be_sent_says_why():
    held = threading.Lock()
    game = Game("g", lambda: held and tiny_game.Catch(), tiny_game.catch().bindings)
    with pytest.raises(UserError, match=r"cannot send the game.*lock.*package.module:function.*processes=False"):
        play(game, Drawing(), 1, progress=False, processes=True)


def test_a_game_of_lambdas_is_played_in_processes_as_it_is():
    class Here(Ending):
        """A class that no module knows by name."""

    game = Game("g", lambda: Here(), tiny_game.catch().bindings)
    here, there = (play(game, Drawing(), 2, 3, 2, False, processes=processes) for processes in (False, True))
    assert (here.returns, here.lengths) == (there.returns, there.lengths)


NOTEBOOK = """
import sys
sys.path.insert(0, {tests!r})
import tiny_game
from bczoo.games import Game
from bczoo.play.episodes import play_in_processes

class Typed(tiny_game.Catch):
    pass

class Expert(tiny_game.CatchExpert):
    pass

game = Game("typed", Typed, tiny_game.catch().bindings, Expert)
print(play_in_processes(game, "expert", 4, workers=2, progress=False).returns)
"""


def test_what_was_typed_into_a_notebook_reaches_its_workers():
    code = NOTEBOOK.format(tests=str(TESTS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    expected = play(tiny_game.catch(), ExpertPlayer(tiny_game.catch()), 4, progress=False)
    assert done.stdout.strip() == str(expected.returns), done.stderr


def test_a_game_that_its_process_cannot_make_says_so(monkeypatch):
    import types

    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    module.Only = type("Only", (tiny_game.Catch,), {"__module__": "only_here", "__qualname__": "Only"})
    with pytest.raises(UserError, match=r"cannot make the game.*only_here.*processes=False"):
        play(Game("g", module.Only, tiny_game.catch().bindings), Drawing(), 1, progress=False, processes=True)


SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import tiny_game
from bczoo.games import ExpertPlayer, Game
from bczoo.play.episodes import play

folder = Path(sys.argv[1])

class Marked(tiny_game.Catch):
    "Is a file for as long as it is open."
    def __init__(self):
        super().__init__()
        self.mark = folder / f"open_{os.getpid()}"
        self.mark.touch()
    def step(self, action):
        time.sleep(0.001)
        return super().step(action)
    def close(self):
        self.mark.unlink()

if __name__ == "__main__":
    game = Game("marked", Marked, tiny_game.catch().bindings, tiny_game.CatchExpert)
    play(game, ExpertPlayer(game), 100_000, parallel=2, progress=False, processes=True, realtime=%s)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_every_game_is_closed_and_no_process_is_left(tmp_path, end, realtime):
    script, marks = tmp_path / "playing.py", tmp_path / "marks"
    script.write_text(SCRIPT % realtime)
    marks.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(marks), str(TESTS)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell's background job ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(list(marks.iterdir())) == 2, "two games run")
        if end == signal.SIGINT:
            os.killpg(process.pid, end)  # as a terminal does
        else:
            process.send_signal(end)
        told = process.communicate(timeout=90)[1].decode()
        wait_for(lambda: not session(process.pid), "all processes have ended")
        assert not list(marks.iterdir()), "every game was closed"
        assert told.count("Traceback") == (end == signal.SIGINT), f"only this process speaks of Ctrl-C: {told}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_doom_in_processes_is_doom_here():
    pytest.importorskip("vizdoom")
    from bczoo.games import make_game

    game = make_game("doom/basic")
    here = play(game, ExpertPlayer(game), 2, 7, 2, False)
    there = play(game, ExpertPlayer(game), 2, 7, 2, False, processes=True)
    assert (here.returns, here.lengths) == (there.returns, there.lengths)
