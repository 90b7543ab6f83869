"""``bczoo play``: a trained policy in closed loop, compared with the game's expert and with random play.

Place in the pipeline: loads a policy from anywhere (:mod:`bczoo.play.open`), plays with :mod:`bczoo.play.episodes`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace, Decision
from bczoo.core.devices import Precision
from bczoo.core.errors import UserError
from bczoo.games.game import Game, GameOrName, announce, as_game, game_names, is_known
from bczoo.hub.measurements import keep, measured_step
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import (
    PlayInterrupted,
    PlayResult,
    check_playable,
    play_beside_baselines,
    play_to_video,
    require_video_target,
    score_table,
)
from bczoo.play.latency import latency_table
from bczoo.play.loop import OnStep
from bczoo.play.open import open_policy
from bczoo.train.run_record import play_entry

WATCH_PORT = 8765
STEPS_UNTIL_NEXT = 10  # of another episode: then the one that is watched is over


def play_policy(
    policy: str,
    env: GameOrName | None = None,
    episodes: int = 10,
    seed: int = 1_000_000,
    parallel: int = 10,
    realtime: bool = False,
    watch: bool = False,
    watch_port: int = WATCH_PORT,
    temperature: float = 1.0,
    top_p: float | None = None,
    greedy: bool = False,
    text: str | None = None,
    video: str | None = None,
    video_seconds: float = 60.0,
    compare: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    dtype: Precision | None = None,
    revision: str | None = None,
    add_to_record: bool | None = None,
) -> dict[str, PlayResult]:
    """Play a game with a policy and print its returns beside those of the expert and of random play.

    Every game runs in a process of its own; the policy answers all of them with one forward pass.

    Args:
        policy: an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        env: the game, such as doom/defend_the_center, an id of Gymnasium such as CarRacing-v3, or
            package.module:function for your own; from Python also a Game; if left out, the game that the policy was
            measured in.
        episodes: how many games each player plays.
        seed: of the first game.
        parallel: games that the policy plays side by side.
        realtime: let the games run on the clock, whether the policy has answered or not, and count missed deadlines.
        watch: show a game as it is played, with keys, mouse and probabilities, on a page on this machine.
        watch_port: of that page.
        temperature: of the policy's sampling.
        top_p: sample only from the most likely choices that together reach this mass.
        greedy: take the most likely action instead of sampling.
        text: instruction to the policy; the one it was fine-tuned under if left out.
        video: mp4 file to write one more game of the policy to, which is not on the clock.
        video_seconds: longest length of the video.
        compare: let the expert and the random player play too.
        threads: processor threads; if left out, one for a small policy and torch's choice for others.
        device: where the policy runs, cpu or cuda.
        dtype: numbers that the policy computes with; those of its weights if left out.
        revision: branch, tag or commit on the Hub.
        add_to_record: keep the returns in the record of the policy, for its card; if left out, those of a run are kept,
            and those of an exported folder, whose card is written anew for them, are not.
    """
    if video:
        require_video_target(video, "--video")
    opened = open_policy(policy, revision, device, dtype, text, temperature, top_p)
    env = env or _measured_in(opened.record)
    game = as_game(env)
    announce(game)
    check_playable(game, opened.policy.input_spec)
    player = PolicyPlayer(opened.for_play(threads), opened.text, temperature=temperature, top_p=top_p, greedy=greedy)
    name = env if isinstance(env, str) else game.name
    try:
        with _watching(game, player.action_space, watch_port) if watch else contextlib.nullcontext() as on_step:
            results = play_beside_baselines(
                game,
                player,
                episodes,
                seed,
                parallel,
                compare,
                on_step=on_step,
                processes=True,
                realtime=realtime,
                measure=True,
            )
    except PlayInterrupted as stop:
        print(f"\n{name}, stopped; seeds from {seed}\n{_format_finished(stop.results, episodes)}")
        raise
    print(f"\n{name}, {episodes} game{'s' * (episodes != 1)} each, seeds from {seed}\n{score_table(results)}\n")
    print(_format_speed(results["policy"]))
    if (step := measured_step(opened.found)) is not None:
        settings = {"temperature": temperature, "top_p": top_p, "greedy": greedy, "realtime": realtime, "dtype": dtype}
        usual = {"temperature": 1.0}
        told = {k: v for k, v in settings.items() if v not in (None, False, usual.get(k))}
        entry = play_entry(results, seed, step, told)
        if line := keep(opened.found, "play", name, entry, episodes, add_to_record):
            print(f"\n{line}")
    if video:
        Path(video).parent.mkdir(parents=True, exist_ok=True)
        play_to_video(game, player, video, seed, max_seconds=video_seconds)
        print(f"a game of the policy: {video}")
    return results


def _format_finished(results: Mapping[str, PlayResult], episodes: int) -> str:
    """What is known of games that a Ctrl-C ended, as far as they were over."""
    over = {name: result for name, result in results.items() if result.returns}
    if not over:
        return "no game was over yet"
    counts = [f"{name} {len(one.returns)} of {episodes}" for name, one in over.items() if len(one.returns) < episodes]
    if not counts:
        return score_table(over)
    return (
        f"{score_table(over)}\n\nGames that were over: {', '.join(counts)}. Short games are over first, so these "
        "returns are no fair sample, and nothing was kept of them."
    )


def _measured_in(record: Mapping[str, Any]) -> str:
    """The game that a policy was measured in."""
    # only games by name: a record may be anyone's, and module:function would import what it says
    known = [name for name in record.get("play") or () if is_known(name)]
    if not known:
        raise UserError(
            f"which game? No game is known that this policy was measured in; --env is one of "
            f"{', '.join(game_names())}, an id of Gymnasium, or module:function for your own"
        )
    return known[0]


def _format_speed(played: PlayResult) -> str:
    """How fast the policy was."""
    lines = [latency_table(played.latency or {}), ""]
    lines.append(f"{played.actions_per_second:.0f} actions a second over all games of the policy")
    if played.realtime is not None:
        lines.append(played.realtime.summary())
    return "\n".join(lines)


@contextlib.contextmanager
def _watching(game: Game, space: ActionSpace, port: int) -> Iterator[OnStep]:
    """A page that shows one game at a time."""
    from bczoo.watch.page import Watch

    with Watch(space, game.name, port=port) as page:
        print(f"watch at {page.url}", flush=True)
        yield OneAtATime(game, page)


class OneAtATime:
    """Shows one of the episodes that run side by side until it is over, then the next one that steps.

    Args:
        game: what is played.
        page: has a method ``show(frame, decision, caption)``.
    """

    def __init__(self, game: Game, page: Any) -> None:
        self.game, self.page = game, page
        self.shown: int | None = None
        self.returns: Counter[int] = Counter()  # of every episode so far
        self.others: Counter[int] = Counter()  # steps of other episodes, since the one that is shown had one

    def __call__(self, episode: int, frame: np.ndarray, decision: Decision, reward: float) -> None:
        self.returns[episode] += reward  # type: ignore[assignment]
        self.others[episode] += 1
        if self.shown is None or self.others[episode] >= STEPS_UNTIL_NEXT:
            self.shown = episode
        if episode == self.shown:
            self.others.clear()
            caption = f"{self.game.name}   game {episode + 1}   return {self.returns[episode]:.1f}"
            self.page.show(frame, decision, caption)
