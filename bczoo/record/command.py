"""``bczoo record``: play a game and write every episode as a recording to train on.

Place in the pipeline: :func:`record` checks its options, lists the episodes that are not there yet and has them played
by whoever is asked for: experts and random players by :mod:`bczoo.record.demonstrations`, a policy and the expert that
corrects it by :mod:`bczoo.record.corrections`, a person by :mod:`bczoo.record.keyboard`. A config that should train
without a step before it names :class:`PlayedRecordings` as its source.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, sweep
from bczoo.core.frames import height_width
from bczoo.core.progress import Progress
from bczoo.core.workers import closing_on_sigterm
from bczoo.data.recording import LEARNED, known_action, read_annotation
from bczoo.data.source import RecordingSource
from bczoo.games.game import Game, GameOrName, announce, as_game
from bczoo.games.players import KEYBOARD, make_player
from bczoo.record.demonstrations import demonstrate
from bczoo.record.episode import Fit, Stored, Todo, episode_name, stored_as, usual_size
from bczoo.record.instruction import (
    NO_INSTRUCTION,
    UNEMBEDDED,
    EncoderOrName,
    Instruction,
    instruction_tag,
    make_instruction,
)
from bczoo.record.origin import OtherGameError, check_origin

HOW_TO_RECORD = "record into another folder (--out), or give --mix true where the games are meant to be mixed"
HOW_TO_TRAIN = (
    "give the recordings of this game a folder of their own (--data.root), train on what lies there alone "
    "(--data.source null), or give --data.source.mix true where the games are meant to be mixed"
)
LARGEST_PX = 4096  # height and width of stored frames
TAKEOVER_OPTIONS = ("takeover", "takeover_steps", "dagger")


def record(
    env: GameOrName,
    out: str,
    agent: str = "expert",
    episodes: int = 20,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    noise: float = 0.0,
    workers: int | None = None,
    hold: int = 1,
    mix: bool | list[str] = False,
    policy: str | None = None,
    expert: str | None = None,
    takeover: float = 0.05,
    takeover_steps: tuple[int, int] = (10, 30),
    dagger: bool = False,
    text: str | None = None,
    text_encoder: EncoderOrName | None = None,
    temperature: float = 1.0,
    greedy: bool = False,
    parallel: int = 8,
    device: str = "cpu",
    revision: str | None = None,
    fit: Fit = "squash",
) -> list[str]:
    """Play a game and write every episode as a recording: demonstrations, or a policy that is corrected.

    An episode that is already in the folder is kept and not played again, so the same command goes on with a
    recording that was interrupted, and a larger number of episodes adds to it. Episodes of other agents, policies and
    seeds may lie in the same folder, and several commands may record into it at the same time: of two episodes of one
    name the first to be finished stays. A folder that holds recordings of another game, or of one that nobody knows,
    is refused unless they are meant to be mixed.

    With a policy and an expert the policy plays and the expert takes over at times. Training learns from the
    expert's steps only; the policy's are marked as its own and stay in view as past actions.

    An option that would change nothing, such as a policy's temperature where an expert plays, is an error.

    Args:
        env: the game, such as doom/defend_the_center, an id of Gymnasium such as CarRacing-v3, or
            package.module:function for your own; from Python also a Game.
        out: folder of the recordings.
        agent: who plays where no policy does: expert, random, or keyboard for yourself in a window.
        episodes: how many episodes.
        seed: seed of the first episode; the others follow.
        size: of the stored frames in pixels, one number for a square or [height, width]; if left out, the largest of
            64, 96, 128, 160 and 192 that enlarges nothing.
        noise: share of steps that start a burst of random turning (2 to 10 steps long). Such steps hold what was
            done, and beside it what the expert would have done instead. That is what is learned of them, so a policy
            learns to recover from its own mistakes.
        workers: processes that play at the same time, of experts and random players; one per processor core if
            left out.
        hold: the player decides every so many steps and holds its decision in between.
        mix: true where out may hold recordings of other games too, or a list of those games.
        policy: the policy that plays: an exported folder, org/name on the Hugging Face Hub, a run, or a .ckpt file.
        expert: who corrects the policy: expert (the game's own), or keyboard for yourself in a window, where any
            bound key, mouse button or mouse motion takes over until half a second after the last, Tab takes over
            until the next Tab, Escape ends the episode and closing the window ends the recording. If left out,
            nothing can be learned from the recordings.
        takeover: probability, at every step of the policy, that the game's expert takes over.
        takeover_steps: fewest and most steps that the expert then plays, such as [10,30].
        dagger: label the policy's own steps with what the expert would have done, and learn from them too.
            The past actions that a policy sees in training stay those that were executed. With takeover 0 the policy
            plays alone.
        text: instruction to the player, written into the recordings; for a policy the one that it was fine-tuned under
            if left out.
        text_encoder: embeds the instruction where no policy does, such as bczoo.GemmaTextEncoder, or its class_path and
            init_args; policies learn from embedded instructions only.
        temperature: of the policy's sampling.
        greedy: let the policy take the most likely action instead of sampling.
        parallel: games that the policy plays side by side.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit of the policy on the Hub.

        fit: squash brings a frame that is no square to the stored square as the reference does; letterbox keeps its
            proportions between black bars, for policies with ``resize: letterbox``.

    Returns:
        The folders of the episodes.
    """
    given = dict(locals())
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    if not 0 <= noise < 1:
        raise UserError(f"noise is a share of steps from 0 up to (not including) 1, got {noise}")
    if size is not None and not all(1 <= side <= LARGEST_PX for side in height_width(size)):
        raise UserError(f"size is a number of pixels from 1 to {LARGEST_PX}, got {size}")
    if hold < 1:
        raise UserError(f"hold is a number of steps from 1 on, got {hold}")
    _check_effect(given)
    game = as_game(env)
    announce(game)
    env = env if isinstance(env, str) else game.name
    stored = Stored(usual_size(game) if size is None else size, fit)
    who, play = agent, functools.partial(demonstrate, game, agent, stored, noise, hold, workers)
    if policy is not None:
        from bczoo.record.corrections import TakeoverRule, record_corrections  # bring in torch
        from bczoo.record.playing import PlayingPolicy

        rule = TakeoverRule(takeover, takeover_steps, dagger) if _corrects(game, expert) else None
        playing = PlayingPolicy.load(policy, text, temperature, greedy, device, revision)
        who = playing.name + (f"_{rule.name if rule else expert}" if expert else "")
        play = functools.partial(record_corrections, game, playing, rule, stored, parallel)
        if expert == KEYBOARD:
            play = functools.partial(_by_hand, game, playing, stored)
    elif agent == KEYBOARD:
        play = functools.partial(_by_hand, game, None, stored)
    else:
        make_player(agent, game)  # says at once that there is none
    if policy is None:
        who += instruction_tag(text, text_encoder)
    folders = [Path(out) / episode_name(env, who, seed + i, stored, noise, hold) for i in range(episodes)]
    # unlike Path.exists, false in a folder that cannot be read, which is reported below
    todo = [(seed + i, folder) for i, folder in enumerate(folders) if not os.path.exists(folder)]
    kept = episodes - len(todo)
    outcomes: list[float | None] = []
    sweep(out)
    if todo:
        if mix is not True:
            check_origin(Path(out), {game.name, *(mix or ())}, env, HOW_TO_RECORD)
        _check_writable(Path(out))
        if policy is None:
            play = functools.partial(play, instruction=make_instruction(text, text_encoder))
        try:
            with (
                closing_on_sigterm(),
                Progress(total=episodes, initial=kept, desc=f"recording {env}", unit="ep") as bar,
            ):
                outcomes = play(todo, bar.update)
        except (KeyboardInterrupt, SystemExit):
            print(
                f"bczoo: stopped with {sum(folder.exists() for folder in folders)} of {episodes} episodes of {env} in "
                f"{out}; the same command goes on with the rest",
                file=sys.stderr,
            )
            raise
    returns = [total for total in outcomes if total is not None]
    if beaten := len(outcomes) - len(returns):
        print(f"{beaten} episodes were recorded by another process meanwhile; those stay, this process's are discarded")
    kept += beaten
    print(
        f"{kept + len(returns)} episodes of {env} in {out}"
        + (f", {kept} of them were already there" if kept else "")
        + (f"; mean return {np.mean(returns):.1f}" if returns else "")
    )
    print(stored_as([folder for folder in folders if folder.exists()][:1]), end="")
    if policy is None and text and text_encoder is None:
        print(UNEMBEDDED)
    if expert is not None:
        print(_learnable([folder for folder in folders if folder.exists()]))
    return [str(folder) for folder in folders if folder.exists()]


def _check_writable(folder: Path) -> None:
    """Raise before anything is played if nothing could be written."""
    try:
        probe = PartialPath(folder / "probe")
        try:
            probe.path.mkdir()
        finally:
            probe.discard()
    except OSError as error:
        reason = error.strerror if folder.is_dir() or not folder.exists() else "it is a file"
        raise UserError(f"cannot record into {folder} ({reason}); choose another folder with --out") from error


def _check_effect(given: dict[str, Any]) -> None:
    """Raise for options that were given and would change nothing."""
    has_policy, agent, expert = given["policy"] is not None, given["agent"], given["expert"]
    goes_with = [
        (not has_policy, "where no --policy plays", ("agent", "text_encoder")),
        (given["text"] is not None, "with --text", ("text_encoder",)),
        (not has_policy and agent != KEYBOARD, "with --agent expert or random", ("noise", "hold", "workers")),
        (has_policy, "with --policy", ("expert", "temperature", "greedy", "device", "revision")),
        (has_policy and expert != KEYBOARD, "with --policy that no keyboard corrects", ("parallel",)),
        (has_policy and expert not in (None, KEYBOARD), "with --policy and --expert expert", TAKEOVER_OPTIONS),
    ]
    known = inspect.signature(record).parameters
    problems = []
    for in_use, where, names in goes_with:
        changed = [name for name in names if given[name] != known[name].default]
        if changed and not in_use:
            problems.append(f"{', '.join(changed)} (only {where})")
    if problems:
        raise UserError(f"these options would change nothing here; leave them out: {'; '.join(problems)}")


def _learnable(folders: list[Path]) -> str:
    """How much can be learned from recordings of a policy."""
    kinds = [known_action(frame)[0] for f in folders for frame in read_annotation(f).frame_annotations[1:]]
    learned = sum(kind in LEARNED for kind in kinds)
    share = f"{learned:,} of {len(kinds):,} steps have the expert's action, and can be learned from"
    return share if learned else f"{share}: raise --takeover, or record more episodes"


def _corrects(game: Game, expert: str | None) -> bool:
    """Whether the game's own expert corrects a policy; checks that it can."""
    if expert not in (None, "expert", KEYBOARD):
        raise UserError(f"the expert of a policy is expert or keyboard, got {expert!r}")
    if expert is None:
        print("without --expert these recordings hold the policy's own actions, from which nothing is learned")
    if expert == "expert":
        game.make_expert()  # says at once that there is none
    return expert == "expert"


def _by_hand(
    game: Game,
    playing: Any,
    stored: Stored,
    todo: Todo,
    on_episode: Callable[[], object],
    instruction: Instruction = NO_INSTRUCTION,
) -> list[float | None]:
    from bczoo.record.keyboard import record_by_hand  # brings in the window

    return record_by_hand(game, playing, stored, todo, on_episode, instruction)


class PlayedRecordings(RecordingSource):
    """Recordings that an expert plays when training starts; see :func:`record`.

    Args:
        env: the game, such as doom/defend_the_center, an id of Gymnasium such as CarRacing-v3, or
            package.module:function for your own; or several; from Python also a Game or several.
        agent: who plays, expert or random.
        episodes: how many episodes of each game; one number, or one per game.
        seed: seed of the first episode.
        size: height and width of the stored frames in pixels; if left out, as of :func:`record`.
        noise: share of steps that start a burst of random turning.
        workers: processes that play at the same time; one per processor core if left out.
        hold: the player decides every so many steps and holds its decision in between.
        mix: true where the folder may hold recordings of other games too.
        text: instruction to the player, written into the recordings.
        text_encoder: embeds it, such as bczoo.GemmaTextEncoder, or its class_path and init_args.
        fit: how frames that are no squares are stored, squash or letterbox; see :func:`record`.
    """

    def __init__(
        self,
        env: GameOrName | list[GameOrName],
        agent: str = "expert",
        episodes: int | list[int] = 20,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        noise: float = 0.0,
        workers: int | None = None,
        hold: int = 1,
        mix: bool = False,
        text: str | None = None,
        text_encoder: EncoderOrName | None = None,
        fit: Fit = "squash",
    ) -> None:
        self.env = env
        self.agent = agent
        self.episodes = episodes
        self.seed = seed
        self.size = size
        self.noise = noise
        self.workers = workers
        self.hold = hold
        self.mix = mix
        self.text = text
        self.text_encoder = text_encoder
        self.fit: Fit = fit

    def describe(self) -> dict[str, Any]:
        names = [env if isinstance(env, str) else env.name for env in self._envs]
        return {
            "env": names if isinstance(self.env, list) else names[0],
            "agent": self.agent,
            "episodes": self.episodes,
            "seed": self.seed,
            "noise": self.noise,
            "hold": self.hold,
            **({"text": self.text} if self.text else {}),
            **({"fit": self.fit} if self.fit != "squash" else {}),
        }

    @property
    def _envs(self) -> list[GameOrName]:
        return self.env if isinstance(self.env, list) else [self.env]

    def prepare(self, root: Path) -> None:
        """Play what is not yet in ``root``."""
        envs = self._envs
        counts = [self.episodes] * len(envs) if isinstance(self.episodes, int) else self.episodes
        if len(counts) != len(envs):
            raise UserError(f"{len(envs)} games need one number of episodes or one for each, got {counts}")
        together = True if self.mix else [as_game(env).name for env in envs]
        for env, episodes in zip(envs, counts, strict=True):
            try:
                record(
                    env,
                    str(root),
                    self.agent,
                    episodes,
                    self.seed,
                    self.size,
                    self.noise,
                    self.workers,
                    self.hold,
                    together,
                    text=self.text,
                    text_encoder=self.text_encoder,
                    fit=self.fit,
                )
            except OtherGameError as error:
                raise OtherGameError(error.found, HOW_TO_TRAIN) from error
