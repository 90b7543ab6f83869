"""The closed loop: every player goes through it, and what it reports is right."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest
import tiny_game
from tiny import tiny_policy

from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.games import ExpertPlayer, Game, PlayResult, RandomPlayer, play_to_video, score_table
from bczoo.play.agent import PolicyPlayer
from bczoo.play.command import OneAtATime, play_policy
from bczoo.play.episodes import PlayInterrupted, play, play_beside_baselines, play_in_processes


class Copycat:
    """A player that answers many games at once with what the expert would do, and keeps account."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.resets: list[tuple[int, int]] = []

    def start(self, games: int, seed: int) -> None:
        self.games = games

    def reset(self, row: int, seed: int) -> None:
        self.resets.append((row, seed))

    def act(self, rows, frames, infos):
        self.calls.append(rows)
        return [Decision(tiny_game.CatchExpert().act(f, i)) for _, f, i in zip(rows, frames, infos, strict=True)]


def result(returns: list[float]) -> PlayResult:
    return PlayResult("g", returns, [10] * len(returns), list(range(len(returns))), 2.0)


def test_the_tiny_game_is_played_well_by_its_expert_and_badly_at_random():
    game = tiny_game.catch()
    expert = play(game, ExpertPlayer(game), 20, progress=False)
    random = play(game, RandomPlayer(game), 20, progress=False)
    assert expert.mean > 4.5
    assert random.mean < 2.5
    assert expert.seeds == list(range(20)) and len(set(random.returns)) > 1


def test_running_games_are_asked_together_and_results_do_not_depend_on_how_many_there_are():
    game = tiny_game.catch()
    player = Copycat()
    many = play(game, player, 7, seed=3, parallel=4, progress=False)
    assert player.games == 4 and player.calls[0] == [0, 1, 2, 3]
    assert len(player.calls) < 0.5 * sum(many.lengths), "one call for several games"
    assert player.resets[:4] == [(0, 3), (1, 4), (2, 5), (3, 6)] and len(player.resets) == 7
    one = play("tiny_game:catch", Copycat(), 7, seed=3, parallel=1, progress=False)
    spread = play_in_processes("tiny_game:catch", "expert", 7, seed=3, workers=2, progress=False)
    assert (many.returns, many.lengths, many.seeds) == (one.returns, one.lengths, one.seeds)
    assert (many.returns, many.lengths, many.seeds) == (spread.returns, spread.lengths, spread.seeds)


def test_on_step_sees_the_frame_that_was_answered():
    game, seen = tiny_game.catch(), []
    played = play(game, ExpertPlayer(game), 2, progress=False, on_step=lambda *step: seen.append(step), parallel=2)
    assert len(seen) == sum(played.lengths)
    assert {episode for episode, *_ in seen} == {0, 1}
    assert sum(reward for *_, reward in seen) == sum(played.returns)
    for _, frame, decision, _ in seen:
        assert decision.values == tiny_game.CatchExpert().act(frame, {})


def test_games_are_closed_when_the_player_fails():
    closed = []

    class Closing(tiny_game.Catch):
        def close(self):
            closed.append(self)

    class Failing(Copycat):
        def act(self, rows, frames, infos):
            raise RuntimeError("out of memory")

    game = Game("g", Closing, tiny_game.catch().bindings)
    with pytest.raises(RuntimeError, match="out of memory"):
        play(game, Failing(), 5, parallel=3, progress=False)
    assert len(closed) == 3


def test_a_game_that_cannot_be_sent_to_other_processes_says_why():
    held = threading.Lock()
    game = Game("g", lambda: held and tiny_game.Catch(), tiny_game.catch().bindings, tiny_game.CatchExpert)
    with pytest.raises(UserError, match=r"cannot send the game.*lock.*package.module:function.*workers=1"):
        play_in_processes(game, "expert", 4, workers=2, progress=False)
    assert play_in_processes(game, "expert", 4, workers=1, progress=False).mean > 4


def test_a_game_that_other_processes_cannot_make_says_so(monkeypatch):
    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    module.Only = type("Only", (tiny_game.Catch,), {"__module__": "only_here", "__qualname__": "Only"})
    game = Game("g", module.Only, tiny_game.catch().bindings)
    with pytest.raises(UserError, match=r"worker process cannot make the game.*only_here.*workers=1"):
        play_in_processes(game, "random", 4, workers=2, progress=False)


def test_a_failure_in_another_process_is_raised_here():
    game = tiny_game.catch("vector")  # shows no frame
    with pytest.raises(UserError, match="shows no frame"):
        play_in_processes(game, "random", 4, workers=2, progress=False)


class Ending(tiny_game.Catch):
    """Ends early, at a step that the seed decides."""

    def step(self, action):
        frame, reward, done, truncated, info = super().step(action)
        return frame, reward, done or bool(self.np_random.random() < 0.05), truncated, info


class SeedPlayer(Copycat):
    """Draws from the seeds that it was told, as a policy does."""

    def reset(self, row, seed):
        super().reset(row, seed)
        self.rngs = {**getattr(self, "rngs", {}), row: np.random.default_rng(seed)}

    def act(self, rows, frames, infos):
        return [Decision({"keys": [str(self.rngs[row].choice(["a", "d"]))]}) for row in rows]


@pytest.mark.parametrize("make", [RandomPlayer, lambda game: SeedPlayer()], ids=["random", "drawing"])
def test_the_score_of_a_player_that_draws_does_not_depend_on_parallel(make):
    game = Game("ending", Ending, tiny_game.catch().bindings)

    def played(parallel: int):
        seen: dict[int, list] = {}
        result = play(
            game, make(game), 9, 3, parallel, False, lambda e, f, d, r: seen.setdefault(e, []).append(d.values)
        )
        return result.returns, result.lengths, seen

    alone = played(1)
    assert alone == played(4) == played(9)
    assert len(set(alone[1])) > 3, "episodes of different lengths"


def test_players_are_told_the_seed_of_every_episode(tmp_path):
    player = Copycat()
    play(Game("ending", Ending, tiny_game.catch().bindings), player, 9, 3, 4, progress=False)
    assert [seed for _, seed in player.resets] == list(range(3, 12))
    player = Copycat()
    play_to_video(tiny_game.catch(), player, tmp_path / "play.mp4", seed=7, max_seconds=0.2, size=120)
    assert player.resets == [(0, 7)]


def test_the_progress_bar_moves_while_games_run(capsys, monkeypatch):
    shown = []

    class Looking(Copycat):
        def act(self, rows, frames, infos):
            shown.append(capsys.readouterr().err)
            return super().act(rows, frames, infos)

    monkeypatch.setattr("bczoo.play.loop.REFRESH_S", 0.0)
    monkeypatch.setattr("bczoo.core.progress.LINE_EVERY_S", 0.0)
    played = play(tiny_game.catch(), Looking(), 4, parallel=4)
    assert "0 of 4" in shown[5] and "20 steps" in shown[5] and "steps/s" in shown[5]
    assert f"{sum(played.lengths)} steps" in capsys.readouterr().err
    monkeypatch.setattr("bczoo.play.loop.REFRESH_S", 1000.0)
    shown.clear()
    play(tiny_game.catch(), Looking(), 4, parallel=4)
    assert not any("steps/s" in text for text in shown), "no more often than it should"


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        low, high = result(rng.normal(5.0, 2.0, 30).tolist()).interval
        held += low <= 5.0 <= high
    assert 86 <= held <= 99
    assert result([3.0, 3.0]).interval == (3.0, 3.0)
    assert result([1.0, 2.0]).actions_per_second == 10.0


def test_score_table_places_policies_between_random_and_expert():
    results = {"policy": result([6.0, 8.0] * 3), "expert": result([12.0] * 6), "random": result([2.0] * 6)}
    table = score_table(results)
    assert "| policy | 7.0 | 6.3 to 7.7 | 6 |" in table
    assert "policy closes 50 % of the gap" in table
    assert "closes" not in score_table({"policy": results["policy"]})
    same = score_table(results | {"expert": result([2.0] * 6)})
    assert "no better than random play" in same and "closes" not in same


def test_a_few_episodes_get_no_percentage_and_one_no_interval():
    results = {"policy": result([6.0]), "expert": result([12.0]), "random": result([2.0])}
    table = score_table(results)
    assert "| policy | 6.0 | n/a | 1 |" in table and results["policy"].interval is None
    assert "1 episode a player: too few to say how much of the gap" in table and "%" not in table.split("\n\n")[1]
    assert "4 episodes a player: too few" in score_table({name: result([1.0] * 4) for name in results})


def test_play_to_video_writes_a_video(tmp_path):
    from bczoo.data.video import probe

    game = tiny_game.catch()
    total = play_to_video(game, ExpertPlayer(game), tmp_path / "play.mp4", seed=2, max_seconds=1.0, size=120)
    info = probe(tmp_path / "play.mp4")
    assert info.n_frames == 20 and info.fps == 20
    assert info.width > info.height > 120
    assert total >= 1


def test_videos_of_experts_see_what_the_expert_needs(tmp_path):
    pytest.importorskip("vizdoom")
    from bczoo.games import make_game

    game = make_game("doom/basic")
    assert play_to_video(game, ExpertPlayer(game), tmp_path / "play.mp4", seed=2, size=120) > 80


class Page:
    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.captions: list[str] = []

    def show(self, frame, decision, caption):
        self.shown.append((int(frame), decision))
        self.captions.append(caption)


def test_one_game_at_a_time_is_shown_from_where_it_is_to_its_end():
    page = Page()
    show = OneAtATime(tiny_game.catch(), page)
    lengths = {0: 30, 1: 40, 2: 80, 3: 100}
    for step in range(100):
        for episode, length in lengths.items():
            if step < length:
                show(episode, step, episode, 1.0)
    shown = [episode for _, episode in page.shown]
    assert sorted(set(shown)) == [0, 1, 2, 3] and shown == sorted(shown), "1 is shown at its end"
    assert page.shown[:30] == [(step, 0) for step in range(30)], "nothing of another one in between"
    assert (79, 2) in page.shown and page.shown[-1] == (99, 3)
    assert page.captions[0] == "catch   game 1   return 1.0" and page.captions[-1] == "catch   game 4   return 100.0"
    assert len(shown) > 70


def test_the_game_that_is_shown_is_never_one_that_has_ended():
    page = Page()
    show = OneAtATime(tiny_game.catch(), page)
    for first in (0, 4, 8):  # four at a time, which end together
        for step in range(30):
            for episode in range(first, first + 4):
                show(episode, step, episode, 1.0)
    shown = [episode for _, episode in page.shown]
    assert sorted(set(shown)) == [0, 4, 8] and shown == sorted(shown)
    assert min(shown.count(episode) for episode in (4, 8)) > 20
    assert page.shown[-1] == (29, 8)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("realtime", [False, True])
def test_the_command_tells_how_fast_the_policy_is(tmp_path, monkeypatch, capsys, realtime):
    pages = []

    class Watch:
        url = "http://here"

        def __init__(self, space, title, port):
            pages.append((title, port))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pages.append("closed")

        def show(self, frame, decision, caption):
            pages.append(set(decision.probabilities))

    monkeypatch.setattr("bczoo.watch.page.Watch", Watch)
    tiny_policy(text_dim=None).save_pretrained(tmp_path)
    results = play_policy(
        str(tmp_path), "tiny_game:short", episodes=2, watch=True, watch_port=7, compare=False, realtime=realtime
    )
    out = capsys.readouterr().out
    assert pages[0] == ("short", 7) and pages[-1] == "closed" and "watch at http://here" in out
    assert pages[1] == {"keys", "mouse_buttons", "mouse_dx", "mouse_dy"} and len(pages) >= 7
    played = results["policy"]
    assert played.lengths == [10, 10]
    stages = ["capture", "resize", "encode", "backbone", "decode", "sample", "send"]
    assert list(played.latency) == [*stages, *(["game"] if realtime else []), "total"]
    for stage in played.latency:
        assert f"| {stage} |" in out
    assert "| p50 | p95 | p99 | max |" in out and "actions a second" in out
    assert ("missed deadlines: " in out and " of 20 (" in out) == realtime
    assert (played.realtime is not None) == realtime


def test_a_video_shows_a_policy_that_knows_more_keys_than_the_game(tmp_path):
    policy = tiny_policy(action_space={"name": "keyboard_mouse", "extra_keys": ["r", "LeftControl"]}, text_dim=None)
    play_to_video(tiny_game.short(), PolicyPlayer(policy), tmp_path / "play.mp4", max_seconds=0.2)
    assert (tmp_path / "play.mp4").stat().st_size > 0


class CtrlC(Copycat):
    """Interrupts after so many answers."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def act(self, rows, frames, infos):
        if len(self.calls) == self.after:
            raise KeyboardInterrupt
        return super().act(rows, frames, infos)


def test_a_ctrl_c_leaves_the_games_that_were_over():
    game = tiny_game.catch()
    whole = play(game, Copycat(), 3, seed=5, parallel=1, progress=False)
    with pytest.raises(PlayInterrupted) as stop:
        play(game, CtrlC(whole.lengths[0] + whole.lengths[1] + 3), 3, seed=5, parallel=1, progress=False)
    (left,) = stop.value.results.values()
    assert (left.returns, left.seeds, left.lengths) == (whole.returns[:2], [5, 6], whole.lengths[:2])
    with pytest.raises(KeyboardInterrupt):
        play(game, CtrlC(0), 3, progress=False)


def test_a_ctrl_c_in_the_baselines_leaves_the_policy(monkeypatch):
    def stopped(task, tasks, workers, note, parcel):
        note(task(*tasks[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr("bczoo.play.episodes.in_processes", stopped)
    with pytest.raises(PlayInterrupted) as stop:
        play_beside_baselines(tiny_game.catch(), Copycat(), 3)
    assert {name: len(one.returns) for name, one in stop.value.results.items()} == {"policy": 3, "expert": 1}


def test_bczoo_play_prints_what_was_over(tmp_path, monkeypatch, capsys):
    folder = tiny_policy(text_dim=None).save_pretrained(tmp_path / "policy")
    over = {"policy": result([1.0, 2.0]), "expert": result([])}

    def stopped(*_, **__):
        raise PlayInterrupted(over)

    monkeypatch.setattr("bczoo.play.command.play_beside_baselines", stopped)
    with pytest.raises(KeyboardInterrupt):
        play_policy(str(folder), "tiny_game:catch", episodes=4)
    out = capsys.readouterr().out
    assert "| policy | 1.5 | 1.0 to 2.0 | 2 |" in out and "expert" not in out
    assert "Games that were over: policy 2 of 4. Short games are over first" in out
    over["policy"] = result([])
    with pytest.raises(KeyboardInterrupt):
        play_policy(str(folder), "tiny_game:catch", episodes=4)
    assert "no game was over yet" in capsys.readouterr().out
