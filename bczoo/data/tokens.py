"""Ids of an image tokenizer on disk: where they lie, and which of them a model may read.

Place in the pipeline: ``bczoo tokenize`` writes them once (:mod:`bczoo.models.tokenizer.command`), in the layout of
:mod:`bczoo.data.features`. A model whose ``fields`` hold ``tokens`` reads them instead of videos. It has the tokenizer
in ``model.tokenizer``, whose digest is the name of the only folder that is looked into, so the ids of another tokenizer
are never read::

    <root>/.bczoo/tokens/<digest>/about.json                 the tokenizer: class, arguments, digest
    <root>/.bczoo/tokens/<digest>/<recording>/tokens.npy     (n, z) uint16, one row a step of the recording
    <root>/.bczoo/tokens/<digest>/<recording>/readable.npy   (n,) bool

A root that cannot be written to has them in the user's cache, as its index. The digest stands for class, arguments
(frame size and resize filter among them) and weights. A recording's name stands for its video and the rate.

Shape legend: n steps of a recording, z tokens of a frame, R recordings.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bczoo.core.errors import UserError
from bczoo.data.features import Features, recording_names
from bczoo.data.index import Index
from bczoo.data.index_files import beside
from bczoo.data.stores import Root

TOKENS, ABOUT = "tokens", "about.json"
LARGEST_CODEBOOK = 2**16  # ids are kept in 16 bits


def stored_tokens(index: Index, tokenizer: Any) -> Features:
    """Where the ids of an index's recordings lie, or will.

    Args:
        index: of the recordings, at the rate that ids are wanted for.
        tokenizer: whose ids; has ``digest``, ``tokens`` and ``input_spec``.
    """
    places = [beside(root, TOKENS, tokenizer.digest) for root in index.roots]
    paths = []
    names = recording_names(index, tokenizer.input_spec.frame_size)
    for root, name in zip(index.root_of.tolist(), names.tolist(), strict=True):
        found = next((place for place in places[root] if (place / name).is_dir()), None)
        paths.append(str((found or writable(places[root])) / name))
    command = f"run {_command(index.roots, tokenizer, index.target.fps)}"
    return Features(index, np.array(paths), tokenizer.tokens, torch.uint16, TOKENS, command)


def tokens_of(index: Index, recordings: np.ndarray, model: Any, fps: float) -> Features:
    """The ids that a model reads.

    Args:
        index: of the recordings.
        recordings: (R,) those that are read.
        model: holds the tokenizer in ``tokenizer``.
        fps: steps per second.

    Raises:
        UserError: it holds none, or a recording has no ids of it; says what to run.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            f"{type(model).__name__} asks for batches with tokens, so it has to hold the tokenizer that makes them in "
            "its attribute tokenizer"
        )
    features = stored_tokens(index, tokenizer)
    missing = features.missing(recordings)
    if len(missing):
        roots = list(dict.fromkeys(index.roots[index.root_of[r]] for r in missing.tolist()))
        others = "; ".join(dict.fromkeys(line for root in roots for line in _others(root, tokenizer.digest)))
        why = f"there are ids of {others}" if others else "they are new, or their videos or their rate have changed"
        raise UserError(
            f"{len(missing)} of {len(recordings)} recordings, such as {index.names[missing[0]]}, have no ids of this "
            f"model's tokenizer ({tokenizer.digest}); {why}. Run: {_command(roots, tokenizer, fps)}"
        )
    return features


def writable(places: list[Path]) -> Path:
    """The first of some folders that can be written to; the last one if none seems to."""
    for place in places[:-1]:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if os.access(there, os.W_OK | os.X_OK):
            return place
    return places[-1]


def _command(roots: list[Root], tokenizer: Any, fps: float) -> str:
    """What makes ids; the tokenizer is known by its digest alone, so its name is left to the user."""
    rate = "" if fps == tokenizer.input_spec.fps else f" --fps {fps:g}"
    return " and ".join(f"bczoo tokenize TOKENIZER {root}{rate}" for root in roots)


def _others(root: Root, digest: str) -> list[str]:
    """The other tokenizers that a root has ids of, in words."""
    found = []
    for place in beside(root, TOKENS, digest):
        for about in sorted(place.parent.glob(f"*/{ABOUT}")):
            if about.parent.name != digest:
                said = json.loads(about.read_text(encoding="utf-8"))
                found.append(f"{about.parent.name} ({said['tokenizer']['class_path']}, {said['tokens']} tokens)")
    return found
