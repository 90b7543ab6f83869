"""``bczoo zoo replay``: a game of a policy as a video that lies beside its weights.

Place in the pipeline: behind ``bczoo export``; adds ``replay.mp4`` to an exported folder, what it shows to
``training.json``, and writes the model card anew (:mod:`bczoo.hub.card`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bczoo.core.errors import UserError
from bczoo.core.files import write_bytes, write_json, write_text
from bczoo.games.game import make_game
from bczoo.hub.card import model_card
from bczoo.hub.folder import CARD, read_folder
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import check_playable, play_to_video
from bczoo.play.open import open_policy
from bczoo.train.run_record import EXPORTED_RECORD, weights_step

REPLAY = "replay.mp4"
LARGEST = 1_000_000  # bytes: it is fetched with the weights


def replay(folder: str, env: str, seconds: float = 10.0, seed: int = 1_000_000, size: int = 192) -> None:
    """Write a replay video of exported weights into their folder, and tell of it in their model card.

    Args:
        folder: what `bczoo export` wrote.
        env: the game, such as doom/defend_the_center.
        seconds: longest length of the video.
        seed: of the game.
        size: height of the picture in pixels.
    """
    exported, game = read_folder(folder), make_game(env)
    opened = open_policy(folder)
    check_playable(game, opened.policy.input_spec)
    player = PolicyPlayer(opened.for_play(), opened.text)
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch) / REPLAY
        returned = play_to_video(game, player, video, seed, seconds, size)
        content = video.read_bytes()
    if len(content) > LARGEST:
        raise UserError(f"the video takes {len(content):,} bytes, more than {LARGEST:,}; give less --seconds or --size")
    write_bytes(exported.path / REPLAY, content)
    shown = {"video": REPLAY, "env": env, "seed": seed, "return": returned, "step": weights_step(exported.record) or 0}
    record = exported.record | {"replay": shown}
    write_json(exported.path / EXPORTED_RECORD, record)
    write_text(exported.path / CARD, model_card(exported.path.resolve().name, exported.model, record))
    print(f"{exported.path / REPLAY}: {len(content) / 1e6:.2f} MB, return {returned:.1f}")
