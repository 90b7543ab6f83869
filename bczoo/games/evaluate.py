"""``bczoo play``: a trained policy in closed loop, compared with the game's expert and with random play.

Place in the pipeline: loads a policy from anywhere (:mod:`bczoo.hub.source`), plays with :mod:`bczoo.games.play`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bczoo.agent import PolicyPlayer
from bczoo.devices import usable_device
from bczoo.errors import UserError
from bczoo.games.game import game_names, make_game
from bczoo.games.play import PlayResult, check_playable, play_beside_baselines, record_play, score_table
from bczoo.hub.source import locate


def play_policy(
    policy: str,
    env: str | None = None,
    episodes: int = 10,
    seed: int = 1_000_000,
    parallel: int = 10,
    temperature: float = 1.0,
    greedy: bool = False,
    text: str | None = None,
    video: str | None = None,
    video_seconds: float = 60.0,
    compare: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> dict[str, PlayResult]:
    """Play a game with a policy and print its returns beside those of the expert and of random play.

    Args:
        policy: a published folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        env: the game, such as doom/defend_the_center, or package.module:function for your own; if left out, the
            game that the policy was measured in.
        episodes: how many games each player plays.
        seed: of the first game.
        parallel: games that the policy plays side by side.
        temperature: of the policy's sampling.
        greedy: take the most likely action instead of sampling.
        text: instruction to the policy; the one it was fine-tuned under if left out.
        video: mp4 file to write one game of the policy to.
        video_seconds: longest length of the video.
        compare: let the expert and the random player play too.
        threads: processor threads; a small policy is faster with one. torch's choice if left out.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit on the Hub.
    """
    if temperature <= 0:
        raise UserError(f"temperature must be above 0, got {temperature}; --greedy true takes the most likely action")
    if video and Path(video).suffix != ".mp4":
        raise UserError(f"a video is an mp4 file, got {video!r}")
    found = locate(policy, revision)
    loaded = found.load(device=usable_device(device))
    if env is None:
        # only games by name: a record may be anyone's, and module:function would import what it says
        known = [name for name in found.record.get("play") or () if name in game_names()]
        if not known:
            raise UserError(
                f"which game? No game is known that this policy was measured in; --env is one of "
                f"{', '.join(game_names())}, or module:function for your own"
            )
        env = known[0]
    game = make_game(env)
    check_playable(game, loaded.input_spec)
    if text is None and (text := found.record.get("instruction")):
        print(f"instruction: {text}")
    if threads:
        torch.set_num_threads(threads)
    player = PolicyPlayer(loaded, text, temperature=temperature, greedy=greedy)
    results = play_beside_baselines(game, player, episodes, seed, parallel, compare)
    print(f"\n{env}, {episodes} games each, seeds from {seed}\n{score_table(results)}")
    print(f"\n{results['policy'].steps_per_second:.0f} steps a second over all games of the policy")
    if video:
        Path(video).parent.mkdir(parents=True, exist_ok=True)
        record_play(game, player, video, seed, max_seconds=video_seconds)
        print(f"a game of the policy: {video}")
    return results
