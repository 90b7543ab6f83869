"""``bczoo evaluate``: how well a world model goes on with recordings that it has not seen.

Place in the pipeline: clips of held-out recordings (:mod:`bczoo.worlds.clips`) give a context and the recorded actions;
what the world dreams is compared with what really followed, picture by picture and as a whole (paper 2411.04434,
section 2.2: one real frame, the real actions). What is measured:

* ``token_accuracy``, ``psnr`` (dB), ``ssim`` by horizon, the picture's number behind the context. Pictures are compared
  with the real frames; ``_floor`` is the tokenizer's own reconstruction of these, the best that any world can reach.
* ``frechet_tokens_32d_<T>f_<N>``: the Frechet distance of :mod:`bczoo.worlds.frechet` on features of the tokens, and
  ``_floor``, that between two halves of the real clips. It is not FVD, and compares within one tokenizer only.
* ``lpips_alex`` by horizon and ``fvd_r3d18_<T>f_<N>`` with ``networks`` (:mod:`bczoo.worlds.networks`).
* whether the world follows actions: each clip is dreamt again, with the same random numbers, under the actions of
  another clip. ``action_effect`` is the share of tokens that change; ``action_following`` the token accuracy under its
  own actions less that under the other's. Both are 0 where actions change nothing.
* ``idm/...`` with an inverse dynamics model: the share of actions that it reads off the dream as they were put in,
  beside the share that it reads off the real frames (``idm_real/...``).

Shape legend: N clips, T steps of a dream, C steps of the context, H, W pixels, z tokens of a picture, A action tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, sweep, write_json
from bczoo.core.progress import Progress
from bczoo.core.tables import markdown_table
from bczoo.hub.source import locate
from bczoo.models.idm.model import InverseDynamics
from bczoo.models.token.dream import Dream
from bczoo.models.token.world import WorldModel
from bczoo.worlds import networks as downloaded
from bczoo.worlds.clips import Clips, known_places, open_recordings, open_world, read_clips
from bczoo.worlds.frechet import frechet_distance, token_features

UNBIASED = 2048  # clips from which on the bias of a Frechet distance need not be told
FEWEST = 4  # clips: two halves of two
LOSSLESS = 100.0  # dB, of equal pictures


@dataclass
class WorldMeasures:
    """What was measured.

    Args:
        world: as it was named.
        data: the recordings.
        context: steps C that the world was shown.
        clips: N.
        steps: T.
        by_horizon: per measure, means over the clips, T values.
        overall: per measure one number.
    """

    world: str
    data: str
    context: int
    clips: int
    steps: int
    by_horizon: dict[str, list[float]] = field(default_factory=dict)
    overall: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        horizons = sorted({h for h in (1, 2, 5, 10, 20, 50, 100, 200, 500) if h < self.steps} | {self.steps})
        rows = [["picture", *map(str, horizons), "mean"]]
        for name, values in self.by_horizon.items():
            rows.append([name, *(f"{values[h - 1]:.3f}" for h in horizons), f"{np.mean(values):.3f}"])
        whole = [["measure", "value"], *([name, f"{value:.4f}"] for name, value in self.overall.items())]
        head = (
            f"{self.world} on {self.data}: {self.clips} clips, {self.context} real step{'s' * (self.context != 1)}, "
            f"{self.steps} dreamt under the recorded actions"
        )
        lines = [head, "", markdown_table(rows), "", markdown_table(whole)]
        if self.clips < UNBIASED:
            lines += ["", f"Frechet distances of {self.clips} clips are too large, the floor likewise"]
        return "\n".join(lines)


def evaluate(
    world: str,
    data: str,
    clips: int = 32,
    steps: int = 20,
    context: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    parallel: int = 16,
    idm: str | None = None,
    networks: bool = False,
    json: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> WorldMeasures:
    """Measure how well a world model goes on with recordings that it has not seen, under the recorded actions.

    Args:
        world: an exported folder, org/name on the Hub, a run such as runs/wm_token_doom, or a .ckpt file.
        data: folder of held-out recordings.
        clips: how many are dreamt, spread over all recordings.
        steps: pictures of each.
        context: real steps that the world is shown before.
        temperature: of sampling; 0 takes the most likely token.
        top_k: sample among so many of the most likely tokens; all if left out.
        seed: of the choice of clips and of the random numbers.
        parallel: clips that are dreamt side by side; each takes the memory of two windows.
        idm: an inverse dynamics model of the same action space, which reads actions off the dreams.
        networks: also LPIPS and FVD, whose networks are downloaded once.
        json: file to write the measures to as JSON.
        device: cpu or cuda.
        revision: branch, tag or commit of the world on the Hub.
    """
    if json is not None:
        require_file_target(json, "--json", "measures.json")
    arguments.whole("clips", clips, FEWEST)
    arguments.whole("context", context, 1)
    arguments.whole("parallel", parallel, 1)
    arguments.whole("steps", steps, downloaded.SHORTEST if networks else 2)
    model = open_world(world, revision, device)
    reader = None if idm is None else _open_idm(idm, model, device)
    index = open_recordings(model, data)
    places = known_places(index, context + steps, clips, seed)
    if len(places) < FEWEST:
        raise UserError(f"{data} holds {len(places)} clips of {context + steps} steps, and {FEWEST} are needed")
    shown = read_clips(model, index, places, context + steps)
    result = WorldMeasures(world, data, context, len(places), steps)

    def dreamt(actions: Tensor, what: str) -> Tensor:
        """Ids (N, T, z) that follow from the context under actions (N, C + T, A)."""
        parts = []
        with Progress(total=len(places) * steps, desc=what, unit="picture", disable=None) as bar:
            for first in range(0, len(places), parallel):
                some = slice(first, min(first + parallel, len(places)))
                dreaming = Dream(model, some.stop - first, temperature, top_k, seed, first)
                dreaming.see(shown.pictures[some, :context], shown.actions[some, : context - 1])
                pictures = []
                for t in range(context - 1, context + steps - 1):
                    pictures.append(dreaming.step(actions[some, t]).ids)
                    bar.update(some.stop - first)
                parts.append(torch.stack(pictures, dim=1))
        return torch.cat(parts)

    ours = dreamt(shown.actions, "Dreaming")
    real = shown.pictures[:, context:]
    _compare(result, model, shown, ours)
    swapped = dreamt(shown.actions.roll(1, 0), "Under other actions")
    result.overall["action_effect"] = float((ours != swapped).float().mean())
    following = (ours == real).float().mean() - (swapped == real).float().mean()
    result.overall["action_following"] = float(following)
    _frechet(result, f"frechet_tokens_32d_{steps}f", *(token_features(x, model.layout.codes) for x in (ours, real)))
    if networks:
        made, frames = _decoded(model, ours), shown.frames[:, context:]
        result.by_horizon["lpips_alex"] = downloaded.lpips(made, frames).mean(0).tolist()
        _frechet(result, f"fvd_r3d18_{steps}f", *(downloaded.r3d18_features(x) for x in (made, frames)))
    if reader is not None:
        done = shown.actions[:, context - 1 :]
        for name, frames in (("idm", _decoded(model, ours)), ("idm_real", shown.frames[:, context:])):
            whole = torch.cat([shown.frames[:, context - 1 : context], frames], dim=1)  # (N, T + 1, ...)
            result.overall |= {f"{name}/{g}": share for g, share in _recovered(reader, whole, done).items()}
    print(result)
    if json is not None:
        sweep(json.rpartition("/")[0] or ".")
        write_json(json, dataclasses.asdict(result), indent=1)
    return result


def _decoded(world: WorldModel, pictures: Tensor) -> Tensor:
    """Frames (N, T, 3, H, W) uint8, on the CPU, of ids (N, T, z)."""
    with torch.no_grad():
        return torch.stack([world.tokenizer.decode(clip).cpu() for clip in pictures])


def _compare(result: WorldMeasures, world: WorldModel, shown: Clips, ours: Tensor) -> None:
    """Add what is measured picture by picture."""
    real, frames = shown.pictures[:, result.context :], shown.frames[:, result.context :]
    result.by_horizon["token_accuracy"] = (ours == real).float().mean((0, 2)).tolist()
    for suffix, pictures in (("", ours), ("_floor", real)):
        made = _decoded(world, pictures)
        by_picture = [(_psnr(a, b), _ssim(a, b)) for a, b in zip(made, frames, strict=True)]  # N times (T,), (T,)
        for name, values in zip(("psnr", "ssim"), zip(*by_picture, strict=True), strict=True):
            result.by_horizon[f"{name}{suffix}"] = torch.stack(values).mean(0).tolist()


def _psnr(one: Tensor, other: Tensor) -> Tensor:
    """Decibels (T,) of pictures (T, 3, H, W) uint8; 100 where they are equal."""
    error = (one.float() - other.float()).square().mean((1, 2, 3))
    return (10 * (255**2 / error).log10()).clamp(max=LOSSLESS)


def _ssim(one: Tensor, other: Tensor) -> Tensor:
    """SSIM (T,) of pictures (T, 3, H, W) uint8."""
    similarity = structural_similarity_index_measure(one / 255, other / 255, reduction="none", data_range=1.0)
    assert isinstance(similarity, Tensor)
    return similarity


def _frechet(result: WorldMeasures, name: str, ours: np.ndarray, real: np.ndarray) -> None:
    """Add the distance of features (N, F), and that between two halves of the real ones."""
    result.overall[f"{name}_{len(ours)}"] = frechet_distance(ours, real)
    result.overall[f"{name}_{len(ours) // 2}_floor"] = frechet_distance(real[::2], real[1::2])


def _open_idm(source: str, world: WorldModel, device: str) -> InverseDynamics:
    """An inverse dynamics model that fits a world."""
    model = locate(source).load(InverseDynamics, device=device)
    for name in ("action_space", "fps"):
        own, asked = getattr(model.input_spec, name), getattr(world.input_spec, name)
        if own != asked:
            shown = [getattr(x, "name", x) for x in (own, asked)]
            raise UserError(f"--idm {source} has the {name} {shown[0]}, and the world {shown[1]}; take one that fits")
    return model


@torch.no_grad()
def _recovered(reader: InverseDynamics, frames: Tensor, done: Tensor) -> dict[str, float]:
    """Per group, the share of its tokens (N, T, A) that are read off frames (N, T + 1, 3, H, W) as they were."""
    size, window = reader.input_spec.shape, reader.input_spec.window
    right: dict[str, list[Tensor]] = {g.name: [] for g in reader.action_space.groups}
    for clip, ids in zip(frames, done, strict=True):
        if tuple(clip.shape[-2:]) != size:
            clip = F.interpolate(clip.float(), size=size, mode="area").round().to(torch.uint8)
        for first in range(0, len(clip) - 1, window - 1):  # the last frame of a window has none after it
            part = clip[None, first : first + window].to(reader.device)
            logits = reader.logits(part, torch.ones(part.shape[:2], dtype=torch.bool, device=reader.device))
            for name, where in reader.action_space.slices.items():
                read = logits[name].argmax(-1)[0, :-1]
                right[name].append(read == ids[first : first + len(read), where].to(read.device))
    return {name: float(torch.cat(hits).float().mean()) for name, hits in right.items()}
