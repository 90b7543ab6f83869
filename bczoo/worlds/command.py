"""``bczoo dream``: a video that a world model goes on with, from the first steps of a recording.

Place in the pipeline: behind ``bczoo fit`` of a :class:`bczoo.WorldModel`; shows what it has learned. Measured it is by
``bczoo evaluate``, walked in as the game ``dream:WORLD``.

Shape legend: A action tokens, H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, Decision, Values
from bczoo.core.errors import UserError
from bczoo.core.progress import Progress
from bczoo.data.index import Index
from bczoo.data.recording import LEARNED, SYSTEM
from bczoo.data.video import VideoWriter
from bczoo.games.render import render_decision
from bczoo.models.token.dream import Dream
from bczoo.models.token.world import WorldModel
from bczoo.play.agent import Agent
from bczoo.play.episodes import require_video_target
from bczoo.play.open import open_policy
from bczoo.worlds.clips import Clips, open_recordings, open_world, read_clips

RECORDED, RANDOM = "recorded", "random"


def dream(
    world: str,
    context: str,
    out: str = "dream.mp4",
    actions: str = RECORDED,
    start: int = 0,
    seen: int | None = None,
    steps: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    size: int = 384,
    device: str = "cpu",
    revision: str | None = None,
) -> str:
    """Write a video that a world model dreams on from the first steps of a recording.

    With the recorded actions the real video is shown beside it, on the left.

    Args:
        world: an exported folder, org/name on the Hub, a run such as runs/wm_token_doom, or a .ckpt file.
        context: a recording, whose first steps are shown to the world; better one that it has not learned from.
        out: mp4 file to write.
        actions: recorded, those of the recording; random, the recording's in any order; or a policy, which sees the
            dreamt pictures.
        start: step of the recording to begin at.
        seen: steps that the world is shown; half of its window if left out.
        steps: pictures to dream, fewer where the recorded actions end.
        temperature: of sampling; 0 takes the most likely token.
        top_k: sample among so many of the most likely tokens; all if left out.
        seed: of the random numbers.
        size: height of the pictures in pixels.
        device: cpu or cuda.
        revision: branch, tag or commit of the world on the Hub.

    Returns:
        The path of the video.
    """
    require_video_target(out, "--out")
    for name, number, least in (("start", start, 0), ("seen", seen, 1), ("steps", steps, 1)):
        if number is not None:
            arguments.whole(name, number, least)
    model = open_world(world, revision, device)
    dreaming = Dream(model, 1, temperature, top_k, seed)
    shown = model.input_spec.window // 2 if seen is None else seen
    index = open_recordings(model, context)
    if len(index) != 1:
        raise UserError(f"--context is one recording, and {context} holds {len(index)}; name one of their folders")
    there = int(index.n_frames[0]) - 1 - start
    wanted = shown + (steps if actions == RECORDED else 0)
    if there <= shown:
        raise UserError(
            f"{context} has {max(there, 0)} steps from step {start} on; the world is to see {shown} of them"
        )
    if there < wanted:
        print(f"{context} ends after {there} steps, so {there - shown} pictures are dreamt, not {steps}")
    clip = read_clips(model, index, [(0, start)], min(wanted, there))
    dreaming.see(clip.pictures[:, :shown], clip.actions[:, : shown - 1])
    source = _source(actions, model, index, clip, shown, seed, device)
    count = clip.frames.shape[1] - shown if actions == RECORDED else steps
    _write(dreaming, clip, shown, source, count, out, size, beside=actions == RECORDED)
    print(f"wrote {out}: {shown} real steps, {count} dreamt ones")
    return out


class ActionSource:
    """Decides what is done after each picture: ids (A,) of the recording, in order or in any."""

    def __init__(self, ids: Tensor, rng: np.random.Generator | None = None) -> None:
        self.ids, self.rng, self.next = ids, rng, 0

    def __call__(self, frame: np.ndarray) -> Tensor:
        """Ids (A,) after seeing a picture (H, W, 3)."""
        at = self.next if self.rng is None else int(self.rng.integers(len(self.ids)))
        self.next += 1
        return self.ids[at]


class PolicySource:
    """Has a policy decide, which sees the pictures."""

    def __init__(self, agent: Agent, space: ActionSpace) -> None:
        self.agent, self.space = agent, space

    def __call__(self, frame: np.ndarray) -> Tensor:
        return flat_ids(self.space, self.agent.step(frame).values)


def flat_ids(space: ActionSpace, values: Values) -> Tensor:
    """Ids (A,) of values; names that the space lacks are left out."""
    known = {name: value for name, value in values.items() if name in space.slices}
    return torch.tensor([i for ids in space.encode(ignore_unknown=True, **known).values() for i in ids])


def values_of(space: ActionSpace, ids: Tensor) -> Values:
    """Values of ids (A,)."""
    return space.decode({name: ids[part].tolist() for name, part in space.slices.items()})


def _source(
    actions: str, world: WorldModel, index: Index, clip: Clips, shown: int, seed: int, device: str
) -> ActionSource | PolicySource:
    if actions == RECORDED:
        return ActionSource(clip.actions[0, shown - 1 :])
    if actions == RANDOM:
        ids, kinds = index.steps(0)  # by annotation
        done = torch.from_numpy(ids[np.isin(kinds, (*LEARNED, SYSTEM))].astype(np.int64))
        return ActionSource(done, np.random.default_rng(seed))
    policy = open_policy(actions, device=device).policy
    if policy.input_spec.fps != world.input_spec.fps:
        raise UserError(
            f"{actions} acts {policy.input_spec.fps:g} times a second, and this world has {world.input_spec.fps:g} "
            "pictures a second; take a policy of the same rate"
        )
    return PolicySource(policy.agent(1, seed=seed), world.action_space)


def _write(
    dreaming: Dream,
    clip: Clips,
    shown: int,
    source: ActionSource | PolicySource,
    steps: int,
    out: str,
    size: int,
    beside: bool,
) -> None:
    """Write the steps that are shown and those that are dreamt, with what is done after each."""
    space, fps = dreaming.world.action_space, dreaming.world.input_spec.fps
    real = clip.frames[0].permute(0, 2, 3, 1).numpy()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(out, fps) as video:
        for t, (kind, frame, ids) in enumerate(_steps(dreaming, clip, shown, source, steps)):
            picture = np.concatenate([real[t], frame], axis=1) if beside else frame
            caption = f"{t / fps:.1f} s   {'recorded and ' if beside else ''}{kind}"
            video.add(render_decision(picture, Decision(values_of(space, ids)), caption, size, space))


def _steps(
    dreaming: Dream, clip: Clips, shown: int, source: ActionSource | PolicySource, steps: int
) -> Iterator[tuple[str, np.ndarray, Tensor]]:
    """What a picture is, the picture (H, W, 3), and the ids (A,) of what is done after it."""
    pictures = dreaming.pixels(clip.pictures[0, :shown])
    for t in range(shown - 1):
        yield "shown", pictures[t], clip.actions[0, t]
    frame, kind = pictures[-1], "shown"
    with Progress(total=steps, desc="Dreaming", unit="picture", disable=None) as bar:
        for _ in range(steps):
            ids = source(frame)
            yield kind, frame, ids
            frame, kind = dreaming.pixels(dreaming.step(ids[None].to(clip.actions.device)).ids)[0], "dreamt"
            bar.update()
    yield kind, frame, flat_ids(dreaming.world.action_space, {})
