"""``bczoo tokenize``: the ids of recordings, written once.

Place in the pipeline: a trained tokenizer and recordings come in; ids lie beside the recordings then
(:mod:`bczoo.data.tokens` says where), and token models read them instead of decoding video. Ids are computed in float32
and in evaluation mode. A recording's ids are there whole or not at all, so an interrupted command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bczoo.core.devices import usable_device
from bczoo.core.errors import UserError
from bczoo.core.files import sweep, write_errors, write_json
from bczoo.data.features import Features, require_room
from bczoo.data.features_build import compute
from bczoo.data.index import open_index
from bczoo.data.tokens import ABOUT, LARGEST_CODEBOOK, stored_tokens
from bczoo.hub.source import locate
from bczoo.models.tokenizer.tokenizer import Tokenizer


@dataclass
class Tokenized:
    """What was done.

    Attributes:
        recordings: that were tokenized.
        kept: that had their ids.
        frames: tokenized.
        seconds: it took.
        digest: of the tokenizer.
        used: share of the codebook's ids that occur in all recordings.
    """

    recordings: int
    kept: int
    frames: int
    seconds: float
    digest: str
    used: float

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:,.0f} a second" if self.frames else ""
        kept = f"; {self.kept} had theirs" if self.kept else ""
        warning = "; below half is a fault of the tokenizer" if self.used < 0.5 else ""
        return (
            f"ids of {self.frames:,} frames of {self.recordings} recordings{rate}{kept}; tokenizer {self.digest}; "
            f"{100 * self.used:.0f} % of its codes are used{warning}"
        )


def tokenize(
    tokenizer: str,
    recordings: str,
    fps: float | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    revision: str | None = None,
) -> Tokenized:
    """Write the ids of recordings beside them, for token models to learn from.

    What has ids of the same tokenizer is left as it is, so an interrupted command goes on.

    Args:
        tokenizer: an exported folder, org/name on the Hub, a run or a .ckpt file.
        recordings: folder of recordings or of archives of them, an archive, or a URL of either.
        fps: steps per second of the model that will learn from the ids; the tokenizer's own if left out.
        device: cpu or cuda.
        num_workers: processes that decode.
        revision: branch, tag or commit on the Hub.
    """
    found = locate(tokenizer, revision)
    model = found.load(Tokenizer).float()
    if chosen := found.chosen:
        print(chosen)
    if model.codebook_size > LARGEST_CODEBOOK:
        raise UserError(
            f"{tokenizer} has {model.codebook_size:,} codes; ids are kept in 16 bits, of which there are "
            f"{LARGEST_CODEBOOK:,}"
        )
    index = open_index(recordings, None, fps or model.input_spec.fps, None)
    index.report()
    features = stored_tokens(index, model)
    places = list(dict.fromkeys(Path(features.path(r)).parent for r in index.usable.tolist()))
    missing = features.missing(index.usable)
    began = time.perf_counter()
    for place in places:
        own = missing[[features.path(r).parent == place for r in missing.tolist()]]
        frames = int(index.n_frames[own].sum())
        with write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            sweep(place)
            write_json(place / ABOUT, about(model))
            require_room(place, features.bytes_of(own), frames, "tokens", "or move the recordings to a larger one")
            _write(model, features, own, device, num_workers)
    result = Tokenized(
        len(missing),
        len(index.usable) - len(missing),
        int(index.n_frames[missing].sum()),
        time.perf_counter() - began,
        model.digest,
        _used(features, index.usable, model.codebook_size),
    )
    print(result)
    return result


def about(model: Tokenizer) -> dict:
    """What ids depend on besides the recordings, as plain JSON."""
    spec = model.input_spec
    return {
        "digest": model.digest,
        "tokenizer": model.spec,
        "tokens": model.tokens,
        "grid": list(model.grid),
        "codebook_size": model.codebook_size,
        "frame_size": list(spec.shape),
        "resize": spec.resize,
    }


def _write(model: Tokenizer, features: Features, recordings: np.ndarray, device: str, num_workers: int) -> None:
    spec, where = model.input_spec, usable_device(device)
    model.to(where)

    def ids(frames: Tensor) -> Tensor:
        return model.encode(frames).cpu().to(torch.uint16)

    with torch.inference_mode():
        compute(ids, where, spec.frame_size, [(features, recordings)], spec.resize, num_workers, "Tokens")


def _used(features: Features, recordings: Sequence[int] | np.ndarray, codes: int) -> float:
    """Share of the codes that occur in the ids of recordings."""
    seen = np.zeros(codes, bool)
    for recording in recordings:
        seen[np.unique(np.load(features.path(int(recording)) / f"{features.field}.npy", mmap_mode="r"))] = True
    return float(seen.mean())
