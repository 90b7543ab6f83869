"""Intervention accuracy: does a policy do what the expert does when only the scene changes, or only the past?

Place in the pipeline: :func:`collect` lets the expert of a game of Doom play and changes something at chosen
moments; :class:`Interventions` are the cases, kept in a file, so that many policies are scored on the same ones;
:mod:`bczoo.studies.intervention_scores` asks a policy and sums up.

How a case comes about: the expert plays an episode as for a recording, disturbed by the same bursts of turning.
Then the engine plays the same seed and actions again up to the step before a moment t, which gives the same state to
the bit (saved games of the engine do not), and in that step something else happens too:

    turn      the view turns by a further 20 to 90 degrees, to either side
    remove    all objects of the class that the expert acts on vanish
    summon    an object of a class that the expert acts on in this episode appears ahead
    history   nothing; but the policy is shown the past actions of another moment
    none      nothing at all: the control, apart from every total

A copy of the expert as it was at t judges the new scene: its ``answer``. What the past actions lead up to is the
``habit``: what the expert did in the scene that they come from. A policy that looks gives the answer; one that goes
on as if nothing had happened follows the habit. Cases in which the two differ separate these policies.

Limits: the policy sees frames as the game renders them, without the losses of a recording's video. Past actions are
what was executed, as in recordings, so also the bursts. What the expert knows and no picture shows
(its pause between two shots, the direction of a corridor) keeps even a perfect policy below 1; accuracy on ``none``
shows how far. Only the last frame is changed, so the change itself is sudden, as a turn within one step is. A removed
object may be small: some pixels change, however few.

Shape legend: N cases, T steps of a window, S height and width of a frame in pixels, n tokens and V choices of a group.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bczoo.core.actions import ActionGroup, ActionSpace, BinnedGroup, Values
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, system_errors
from bczoo.core.frames import resize
from bczoo.games.doom import DoomEnv
from bczoo.games.doom_experts import PX_PER_DEGREE
from bczoo.games.game import Expert, Game, RunningGame, as_game
from bczoo.record.demonstrations import ActionNoise

CONTROL = "none"
KINDS = ("turn", "remove", "summon", "history", CONTROL)
TURN_DEGREES = (20.0, 90.0)
CASES_PER_EPISODE = 10
STEPS_PER_CASE = 4  # a short episode gives one case for so many of its steps
BARREN_EPISODES = 50  # so many in a row without a case, and there will be none
_FORMAT = "bczoo interventions 1"


@dataclass(frozen=True)
class Interventions:
    """Cases to score policies on.

    A window lies at the beginning of its T steps: it holds ``lengths[i]`` steps, fewer than T at the beginning of an
    episode, and what follows is zero. Its last frame is the changed one.

    Args:
        env: the game.
        action_space: of the ids.
        kinds: N names out of ``KINDS``.
        changes: N descriptions, such as ``turn -43.2`` (degrees, positive to the right) or ``remove Medikit``.
        episodes: (N,) int64, seed of the episode.
        steps: (N,) int64, the moment t: the step that the policy is asked for.
        lengths: (N,) int64, steps of the window.
        frames: (N, T, S, S, 3) uint8, RGB.
        past: per group (N, T, n) int64, ids of what was executed before t; the step t itself is zero.
        answer: per group (N, n) int64, what the expert does in the scene of the last frame.
        habit: per group (N, n) int64, what it did in the scene that the past actions lead up to.
    """

    env: str
    action_space: ActionSpace
    kinds: list[str]
    changes: list[str]
    episodes: np.ndarray
    steps: np.ndarray
    lengths: np.ndarray
    frames: np.ndarray
    past: dict[str, np.ndarray]
    answer: dict[str, np.ndarray]
    habit: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def differs(self) -> np.ndarray:
        """(N,) bool: the answer is another than the habit, by more than an agreement forgives."""
        same = [agree(g, self.answer[g.name], self.habit[g.name]) for g in self.action_space.groups]
        return ~np.all(same, axis=0)

    def save(self, path: str | Path) -> None:
        """Write the cases to one file (safetensors)."""
        tensors = {"episodes": self.episodes, "steps": self.steps, "lengths": self.lengths, "frames": self.frames}
        for part in ("past", "answer", "habit"):
            tensors |= {f"{part}.{name}": ids for name, ids in getattr(self, part).items()}
        about = {
            "env": self.env,
            "action_space": self.action_space.to_dict(),
            "kinds": self.kinds,
            "changes": self.changes,
        }
        with PartialPath(path) as partial, system_errors():
            save_file(tensors, partial.path, {"format": _FORMAT, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Interventions:
        """Read a file of :meth:`save`."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read interventions from {path}: {error}; collect them anew") from error
        if metadata.get("format") != _FORMAT:
            raise UserError(f"{path} holds no interventions of this version; collect them anew")
        about = json.loads(metadata["about"])
        space = ActionSpace.from_dict(about.pop("action_space"))
        for part in ("past", "answer", "habit"):
            about[part] = {g.name: tensors.pop(f"{part}.{g.name}") for g in space.groups}
        return cls(action_space=space, **about, **tensors)


def agree(group: ActionGroup, ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether ids (..., n) of a group are the same action: names equal, numbers within one bin."""
    return (np.abs(ids - others) <= (1 if isinstance(group, BinnedGroup) else 0)).all(-1)


# ---------------------------------------------------------------------- collecting


def collect(
    env: Game | str,
    cases: int,
    window: int,
    size: int,
    action_space: ActionSpace,
    seed: int,
    noise: float = 0.05,
    kinds: Sequence[str] = KINDS,
    hold: int = 1,
) -> Interventions:
    """Let the expert play, change the scene or the past at chosen moments, and note what the expert does then.

    Args:
        env: a game of Doom with an expert, such as doom/health_gathering, or its name.
        cases: how many; every kind gets an equal share.
        window: T, steps that a policy sees, the changed one among them.
        size: S, height and width of the frames in pixels.
        action_space: of the ids.
        seed: of the first episode; others follow. Take seeds that no policy was trained on.
        noise: share of steps that start a burst of random turning, as in recordings.
        kinds: of interventions, out of ``KINDS``.
        hold: the expert decides every so many steps and holds its decision in between, as in recordings;
            interventions happen where a new decision is due.

    Returns:
        The cases; the same ones for the same arguments.
    """
    _check(cases, window, kinds, hold)
    game = as_game(env)
    env = env if isinstance(env, str) else game.name
    rng = np.random.default_rng((seed, 2))  # a stream apart from the bursts'
    found: list[_Case] = []
    barren = 0
    with game.open(for_expert=True) as running:
        if not isinstance(running.env, DoomEnv):
            raise UserError(f"interventions replay the engine of Doom, but {env!r} is another game")
        episode = seed
        while len(found) < cases:
            played = _play(running, episode, size, noise, hold)
            most = min(CASES_PER_EPISODE, -(-cases // 2), cases - len(found))  # two episodes at least
            todo = [kinds[(len(found) + i) % len(kinds)] for i in range(most)]
            new = _cases(running, played, todo, window, size, rng)
            found += new
            episode += 1
            barren = 0 if new else barren + 1
            if barren == BARREN_EPISODES:
                raise UserError(f"{barren} episodes of {env} gave no chance for {todo[0]!r}; leave it out of the kinds")
    return _pack(env, _with_other_pasts(found, rng), window, action_space)


@dataclass(frozen=True)
class _Played:
    """An episode of the expert; lists have one entry per step."""

    seed: int
    frames: list[np.ndarray]  # (S, S, 3)
    infos: list[dict[str, Any]]
    decisions: list[Values]
    executed: list[Values]
    experts: dict[int, Expert]  # as they were before they decided, where a decision was due

    def answer(self, step: int, frame: np.ndarray, info: dict[str, Any]) -> Values:
        """What the expert of this step does in another scene."""
        return copy.deepcopy(self.experts[step]).act(frame, info)

    def wanted(self, step: int) -> list[str]:
        """Classes of visible objects without which the expert would do something else."""
        info, out = self.infos[step], []
        for name in sorted({thing.name for thing in info["objects"]}):
            without = [thing for thing in info["objects"] if thing.name != name]
            if self.answer(step, self.frames[step], {**info, "objects": without}) != self.decisions[step]:
                out.append(name)
        return out

    @functools.cached_property
    def ever_wanted(self) -> list[str]:
        """The same over all steps."""
        return sorted({name for step in self.experts for name in self.wanted(step)})


@dataclass(frozen=True)
class _Case:
    kind: str
    change: str
    episode: int
    step: int
    frames: list[np.ndarray]  # (S, S, 3), the last one changed
    past: list[Values]  # one fewer
    answer: Values
    habit: Values


def _check(cases: int, window: int, kinds: Sequence[str], hold: int) -> None:
    if cases < 2 or window < 2 or hold < 1:
        raise UserError(f"cases and window are at least 2 and hold at least 1, got {cases}, {window} and {hold}")
    if not kinds or set(kinds) - set(KINDS):
        raise UserError(f"kinds of interventions are out of {', '.join(KINDS)}, got {list(kinds)}")


def _play(running: RunningGame, seed: int, size: int, noise: float, hold: int) -> _Played:
    """The episode as :func:`bczoo.record.demonstrations.demonstrate_episode` plays it."""
    expert, bursts = running.game.make_expert(), ActionNoise(running.game, noise, seed)
    played = _Played(seed, [], [], [], [], {})
    frame, info = running.reset(seed)
    expert.reset(seed)
    done = False
    while not done:
        step = len(played.frames)
        if step % hold == 0:
            played.experts[step] = copy.deepcopy(expert)
            values = expert.act(frame, info)
        played.frames.append(resize(frame, size))
        played.infos.append(info)
        played.decisions.append(values)
        played.executed.append(bursts(values))
        frame, _, done, info = running.step(played.executed[-1])
    return played


def _cases(
    running: RunningGame, played: _Played, kinds: Sequence[str], window: int, size: int, rng: np.random.Generator
) -> list[_Case]:
    """One case of each of these kinds, at random moments; only the first kinds where moments run out."""
    moments = [step for step in played.experts if step > 0]
    most = min(len(kinds), max(1, len(moments) // STEPS_PER_CASE))
    found: list[_Case] = []
    for step in rng.permutation(moments).tolist():
        if len(found) == most:
            break
        case = _case(running, played, kinds[len(found)], step, window, size, rng)
        if case is not None:
            found.append(case)
    return found


def _case(
    running: RunningGame, played: _Played, kind: str, step: int, window: int, size: int, rng: np.random.Generator
) -> _Case | None:
    """A case at this step; None where it gives no chance for this kind."""
    first = max(0, step + 1 - window)
    frames, past = played.frames[first : step + 1], played.executed[first:step]
    habit = played.decisions[step]
    if kind in ("history", CONTROL):
        return _Case(kind, kind, played.seed, step, frames, past, habit, habit)
    change = _choose(kind, played, step, rng)
    seen = _intervene(running, played, step, change) if change else None
    if change is None or seen is None:
        return None
    frame, info = seen
    changed = resize(frame, size)
    if np.array_equal(changed, frames[-1]):
        return None
    answer = played.answer(step, frame, info)
    return _Case(kind, change, played.seed, step, [*frames[:-1], changed], past, answer, habit)


def _choose(kind: str, played: _Played, step: int, rng: np.random.Generator) -> str | None:
    """What to change: ``turn`` and degrees, or a command to the engine; None where there is nothing to change."""
    if kind == "turn":
        return f"turn {rng.choice([-1, 1]) * rng.uniform(*TURN_DEGREES):.1f}"
    names = played.wanted(step) if kind == "remove" else played.ever_wanted
    return f"{kind} {rng.choice(names)}" if names else None


def _intervene(
    running: RunningGame, played: _Played, step: int, change: str
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Frame and info of a step where something else happened in the step before; None where the episode ends."""
    game, env = running.game, running.env
    assert isinstance(env, DoomEnv)
    *before, last = played.executed[:step]
    env.replay(played.seed, [game.bindings(values) for values in before])
    what, detail = change.split(" ", 1)
    if what == "turn":
        last = {**last, "mouse_dx": last["mouse_dx"] + float(detail) * PX_PER_DEGREE}
    else:
        env.command(change)
    frame, _, done, info = running.step(last)
    return None if done else (frame, info)


def _with_other_pasts(cases: list[_Case], rng: np.random.Generator) -> list[_Case]:
    """Cases of ``history`` get the past of a case of another episode, and the habit that goes with it."""
    out = []
    for case in cases:
        if case.kind == "history":
            donors = [c for c in cases if c.episode != case.episode and len(c.past) >= len(case.past)]
            if not donors:  # the longest past of a short episode
                donors = [c for c in cases if c is not case]
            donor = donors[rng.integers(len(donors))]
            steps = min(len(case.past), len(donor.past))
            case = dataclasses.replace(
                case,
                change=f"history {donor.episode}:{donor.step}",
                frames=case.frames[-1 - steps :],
                past=donor.past[len(donor.past) - steps :],
                habit=donor.habit,
            )
        out.append(case)
    return out


def _pack(env: str, cases: list[_Case], window: int, space: ActionSpace) -> Interventions:
    size = cases[0].frames[0].shape[0]
    frames = np.zeros((len(cases), window, size, size, 3), np.uint8)
    past = {g.name: np.zeros((len(cases), window, g.tokens), np.int64) for g in space.groups}
    for i, case in enumerate(cases):
        frames[i, : len(case.frames)] = case.frames
        for name, ids in _ids(space, case.past).items():
            past[name][i, : len(case.past)] = ids
    return Interventions(
        env,
        space,
        kinds=[c.kind for c in cases],
        changes=[c.change for c in cases],
        episodes=np.array([c.episode for c in cases]),
        steps=np.array([c.step for c in cases]),
        lengths=np.array([len(c.frames) for c in cases]),
        frames=frames,
        past=past,
        answer=_ids(space, [c.answer for c in cases]),
        habit=_ids(space, [c.habit for c in cases]),
    )


def _ids(space: ActionSpace, values: list[Values]) -> dict[str, np.ndarray]:
    """Per group (len(values), n) int64."""
    encoded = [space.encode(**one) for one in values]
    return {g.name: np.array([ids[g.name] for ids in encoded], np.int64).reshape(-1, g.tokens) for g in space.groups}
