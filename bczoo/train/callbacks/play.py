"""Playing the game with the policy that was just trained.

Place in the pipeline: a callback that, at the end of training, plays unseen games in closed loop, compares with the
expert and with random play, and writes a video of its own play. Where the run keeps its best weights by validation
(:class:`bczoo.ResumableCheckpoint`), these play, as they do where the run is named as a policy. A training whose games
were stopped or killed has not finished: the same command goes on with them.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bczoo.core.devices import play_threads
from bczoo.games.game import Game, GameOrName, announce, as_game
from bczoo.hub.state import LORA_SCALE, load_tensors, plain
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import (
    PlayResult,
    check_playable,
    play_beside_baselines,
    play_to_video,
    require_video_target,
    score_table,
)
from bczoo.train.callbacks.best import Best
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.sharded import whole


class PlayGame(L.Callback):
    """Plays a game with the policy after training and prints a table: policy, expert, random.

    Args:
        env: the game, such as doom/health_gathering, an id of Gymnasium such as CarRacing-v3, or
            package.module:function for your own; from Python also a Game.
        episodes: how many games each of them plays.
        seed: of the first game; keep it away from the seeds of the recordings, so that the games are unseen.
        parallel: games that the policy plays side by side.
        temperature: of the policy's sampling.
        text: instruction to the policy; if left out, that of the fine-tuning, or none.
        video: an mp4 of one game of the policy: true for ``play.mp4`` in the run's folder, or another name there, or an
            absolute path; null for none.
        video_seconds: longest length of the video.
        threads: processor threads of the policy in play; null for one where it is small, torch's choice otherwise.
    """

    def __init__(
        self,
        env: GameOrName,
        episodes: int = 20,
        seed: int = 1_000_000,
        parallel: int = 10,
        temperature: float = 1.0,
        text: str | None = None,
        video: str | bool | None = None,
        video_seconds: float = 60.0,
        threads: int | None = None,
    ) -> None:
        self.game = env
        self.env = env if isinstance(env, str) else env.name
        self.episodes, self.seed, self.parallel = episodes, seed, parallel
        self.temperature, self.text, self.video, self.video_seconds = temperature, text, video, video_seconds
        self.threads = threads
        self.results: dict[str, PlayResult] = {}
        self.step = 0  # optimiser steps of the weights that played

    @property
    def settings(self) -> dict[str, Any]:
        """How the policy plays, where that is not the default."""
        return {"temperature": self.temperature} if self.temperature != 1.0 else {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before a long training that the game cannot be played with this policy."""
        game = as_game(self.game)
        announce(game)
        check_playable(game, pl_module.input_spec)  # type: ignore[arg-type]
        if (path := self.video_path(trainer)) is not None:
            require_video_target(str(path), "PlayGame's video")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy: Any = whole(pl_module)
        if policy is None or not trainer.is_global_zero or trainer.interrupted:
            return
        game = as_game(self.game)
        text = self.text or getattr(pl_module, "instruction", None)
        training, threads = policy.training, torch.get_num_threads()
        try:
            with _best_weights(trainer, policy) as best, _ending_on_sigterm():
                self.step = best.step if best is not None else trainer.global_step
                player = PolicyPlayer(policy, text, temperature=self.temperature)
                play_threads(policy, self.threads)
                self._play(trainer, game, player, best)
        finally:
            torch.set_num_threads(threads)
            policy.train(training)

    def _play(self, trainer: L.Trainer, game: Game, player: PolicyPlayer, best: Best | None) -> None:
        print(f"\nplaying {self.episodes} unseen game{'s' * (self.episodes != 1)} of {self.env}", flush=True)
        self.results = play_beside_baselines(game, player, self.episodes, self.seed, self.parallel)
        which = "" if best is None else f"; the policy is the best by validation, of {best}"
        games = f"{self.episodes} unseen game{'s' * (self.episodes != 1)} each"
        print(f"\n{self.env}, {games}{which}\n{score_table(self.results)}")
        self._log(trainer)
        if path := self.video_path(trainer):
            path.parent.mkdir(parents=True, exist_ok=True)
            play_to_video(game, player, path, self.seed, max_seconds=self.video_seconds)
            print(f"a game of the policy: {path}")

    def video_path(self, trainer: L.Trainer) -> Path | None:
        """Where the video is written; None for none."""
        if not self.video:
            return None
        name = self.video
        if name is True:
            several = sum(isinstance(c, PlayGame) for c in trainer.callbacks) > 1  # type: ignore[attr-defined]
            name = f"play-{re.sub(r'[^A-Za-z0-9]+', '-', self.env)}.mp4" if several else "play.mp4"
        return Path(trainer.default_root_dir) / name

    def _log(self, trainer: L.Trainer) -> None:
        scores: dict[str, Any] = {f"play/{name}": result.mean for name, result in self.results.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**scores, "play/step": self.step}, step=trainer.global_step)
            logger.save()


@contextlib.contextmanager
def _best_weights(trainer: L.Trainer, policy: L.LightningModule) -> Iterator[Best | None]:
    """Let a model have the best weights of its run for a while, and say what they are the best of; None without any."""
    kept = [(c.best, c.best_path) for c in trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)]
    best, path = kept[0] if kept else (None, None)
    if best is None or path is None or best.step == trainer.global_step:
        yield best
        return
    last = {name: tensor.detach().cpu().clone() for name, tensor in policy.state_dict().items()}
    saved = load_tensors(path)
    state = saved["state_dict"]
    policy.load_state_dict(state if policy is trainer.lightning_module else plain(state, saved.get(LORA_SCALE)))
    try:
        yield best
    finally:
        policy.load_state_dict(last)


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end the games; Lightning would note it for the end of a training batch, and there is none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except (SIGTERMException, KeyboardInterrupt) as stop:
        by = "SIGTERM" if isinstance(stop, SIGTERMException) else "Ctrl-C"
        print(f"\nstopped by {by} in the closing games; the training is saved, and the same command plays them anew")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleaning up short
    raise SIGTERMException(128 + number)
