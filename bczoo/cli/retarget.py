"""``bczoo fit --config quickstart --env CarRacing-v3``: a configuration for one game, turned to another.

Place in the pipeline: :class:`bczoo.cli.trainer.TrainerCLI` calls :func:`retarget` on the parsed configuration, before
anything is built. What is recorded and what is played at the end becomes the new game; its recordings and its run get
folders of their own, so that neither mixes with those of another game.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.games.bindings import inputs_in
from bczoo.games.game import Game, make_game
from bczoo.record.origin import game_slug

HELP = (
    "another game for a configuration that records and plays one, such as quickstart: CarRacing-v3, doom/basic or "
    "package.module:function; data.root, data.val_root and trainer.default_root_dir get its name, unless they are given"
)
ROOTS = (("root", "source"), ("val_root", "val_source"))  # folders, and who fills them


def retarget(config: Namespace, given: Sequence[str]) -> None:
    """Turn a configuration to the game in ``config.env``, if there is one.

    Args:
        config: of a trainer command; changed in place.
        given: the command line; folders, rates and action spaces that it names stay as they are.

    Raises:
        UserError: the configuration neither records nor plays a game, or several; or the game has no expert to record.
    """
    env, config.env = config.get("env"), None
    if env is None:
        return
    game = make_game(env)
    sources, plays = list(_sources(config)), list(_parts(config.trainer.callbacks, "PlayGame"))
    _check_one_game(env, sources, plays)
    data = (config.get("data") or Namespace()).get("init_args") or Namespace()
    for root, source in ROOTS:
        if isinstance(data.get(root), str) and not _is_given(given, f"data.{root}"):
            data[root] = f"{data[root]}-{game_slug(env)}"
        if data.get(source) in sources:
            _check_expert(env, game, data[source].init_args, data[root])
    _move_run(config.trainer, env, plays, given)
    for part in (*sources, *plays):
        part.init_args.env = env
    print(f"{env}: recordings in {data.get('root')}, run in {config.trainer.default_root_dir}")
    _fit_policy(config.model.get("init_args") or Namespace(), game, given)


def _parts(parts: Any, name: str) -> Iterator[Namespace]:
    """The parts of a class, among one, several or none."""
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, Namespace) and str(part.get("class_path")).rpartition(".")[2] == name:
            yield part


def _sources(config: Namespace) -> Iterator[Namespace]:
    data = (config.get("data") or Namespace()).get("init_args") or Namespace()
    for _, source in ROOTS:
        yield from _parts(data.get(source), "PlayedRecordings")


def _check_one_game(env: str, sources: list[Namespace], plays: list[Namespace]) -> None:
    games = {str(part.init_args.env) for part in (*sources, *plays)}
    if not plays and not sources:
        raise UserError(
            f"--env {env}: this configuration records no game and plays none; quickstart and bc_cnn_quickstart do "
            "(--config quickstart), or record the game first (bczoo record) and give --data.root"
        )
    if len(games) > 1 or any(isinstance(part.init_args.env, list) for part in sources):
        raise UserError(
            f"--env {env} takes the place of one game, but this configuration has several "
            f"({', '.join(sorted(games))}); begin with --config quickstart, or change it in a file of your own"
        )


def _check_expert(env: str, game: Game, source: Namespace, root: str) -> None:
    """Raise, before anything is built, where an expert is to play and there is none."""
    if source.agent != "expert" or game.expert is not None:
        return
    size = f" --size {source.size}" if source.get("size") else ""
    raise UserError(
        f"{env} has no expert that could be recorded. Play it yourself (bczoo record --env {env} --agent keyboard "
        f"--out {root}{size}) and train on that with --data.source null; or give its Game an expert and name it "
        "package.module:function. --data.source.agent random records random play: it shows that everything runs, and "
        "nothing is learned"
    )


def _move_run(trainer: Namespace, env: str, plays: list[Namespace], given: Sequence[str]) -> None:
    """Give the run a folder of its own, with the videos that would lie in the old one."""
    before = trainer.default_root_dir
    if before is None or _is_given(given, "trainer.default_root_dir"):
        return
    trainer.default_root_dir = f"{before}-{game_slug(env)}"
    for part in plays:
        video = part.init_args.get("video")
        if isinstance(video, str) and Path(video).is_relative_to(before):
            part.init_args.video = str(trainer.default_root_dir / Path(video).relative_to(before))


def _fit_policy(model: Namespace, game: Game, given: Sequence[str]) -> None:
    """Let a policy that starts from nothing act at the game's rate and press all that the game listens to."""
    if "fps" in model and model.fps != game.fps and not _is_given(given, "model.fps"):
        print(f"the policy acts {game.fps:g} times a second, as {game.name} runs (was {model.fps:g})")
        model.fps = game.fps
    space = model.get("action_space")
    if space is None or _is_given(given, "model.action_space"):
        return
    if game.inputs - inputs_in(ActionSpace.of(space)):
        print(f"the policy has the action space of {game.name}, which listens to more keys")
        model.action_space = game.action_space.to_dict()


def _is_given(given: Sequence[str], option: str) -> bool:
    """Whether an option stands on the command line, also in its long form."""
    part, _, name = option.partition(".")
    words = {word.partition("=")[0] for word in given}
    return bool(words & {f"--{option}", f"--{part}.init_args.{name}"})
