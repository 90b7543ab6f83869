"""Playing the game with the policy that was just trained.

Place in the pipeline: a callback that, at the end of training, plays unseen games in closed loop, compares with the
expert and with random play, and writes a video of its own play. A training whose games were stopped or killed has not
finished: the same command goes on with them.
"""

from __future__ import annotations

import contextlib
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
from bczoo.games.game import Game, make_game
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import (
    PlayResult,
    check_playable,
    play_beside_baselines,
    play_to_video,
    require_video_target,
    score_table,
)


class PlayGame(L.Callback):
    """Plays a game with the policy after training and prints a table: policy, expert, random.

    Args:
        env: name of the game, e.g. ``doom/health_gathering``.
        episodes: how many games each of them plays.
        seed: of the first game; keep it away from the seeds of the recordings, so that the games are unseen.
        parallel: games that the policy plays side by side.
        temperature: of the policy's sampling.
        text: instruction to the policy; if left out, that of the fine-tuning, or none.
        video: where to write an mp4 of one game of the policy; null for none.
        video_seconds: longest length of the video.
        threads: processor threads of the policy in play; null for one where it is small, torch's choice otherwise.
    """

    def __init__(
        self,
        env: str,
        episodes: int = 20,
        seed: int = 1_000_000,
        parallel: int = 10,
        temperature: float = 1.0,
        text: str | None = None,
        video: str | None = None,
        video_seconds: float = 60.0,
        threads: int | None = None,
    ) -> None:
        self.env, self.episodes, self.seed, self.parallel = env, episodes, seed, parallel
        self.temperature, self.text, self.video, self.video_seconds = temperature, text, video, video_seconds
        self.threads = threads
        self.results: dict[str, PlayResult] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out before a long training that the game cannot be played with this policy."""
        check_playable(make_game(self.env), pl_module.input_spec)  # type: ignore[arg-type]
        if self.video:
            require_video_target(self.video, "PlayGame's video")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.interrupted:
            return
        game = make_game(self.env)
        text = self.text or getattr(pl_module, "instruction", None)
        player = PolicyPlayer(pl_module, text, temperature=self.temperature)  # type: ignore[arg-type]
        training, threads = pl_module.training, torch.get_num_threads()
        try:
            play_threads(pl_module, self.threads)
            with _ending_on_sigterm():
                self._play(trainer, game, player)
        finally:
            torch.set_num_threads(threads)
            pl_module.train(training)

    def _play(self, trainer: L.Trainer, game: Game, player: PolicyPlayer) -> None:
        self.results = play_beside_baselines(game, player, self.episodes, self.seed, self.parallel)
        print(f"\n{self.env}, {self.episodes} unseen games each\n{score_table(self.results)}")
        self._log(trainer)
        if self.video:
            Path(self.video).parent.mkdir(parents=True, exist_ok=True)
            play_to_video(game, player, self.video, self.seed, max_seconds=self.video_seconds)
            print(f"a game of the policy: {self.video}")

    def _log(self, trainer: L.Trainer) -> None:
        scores: dict[str, Any] = {f"play/{name}": result.mean for name, result in self.results.items()}
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=trainer.global_step)
            logger.save()


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end the games; Lightning would note it for the end of a training batch, and there is none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except SIGTERMException:
        print("\nstopped by SIGTERM in the closing games; the training is saved, and the same command plays them anew")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleaning up short
    raise SIGTERMException(128 + number)
