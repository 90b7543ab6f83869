"""What ids on disk save: seconds to read a batch from videos and from ids, as a ratio in one run.

    python benchmarks/tokens.py [--size 128] [--tokens 256] [--window 10] [--batch 16]

Writes recordings of moving noise and ids for them, and reads the same windows in turns, frames from videos, and ids. No
tokenizer runs: what it costs to make ids is what ``bczoo tokenize`` tells. Medians over all batches are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from features import write_recordings

from bczoo.core.devices import device_name
from bczoo.core.spec import InputSpec
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import Index, open_index
from bczoo.data.tokens import stored_tokens
from bczoo.data.windows import Plan


def datasets(index: Index, size: int, tokens: int, window: int) -> dict[str, WindowDataset]:
    """The same windows from videos and from ids, which are written here."""
    tokenizer = SimpleNamespace(digest="noise", tokens=tokens, input_spec=InputSpec(None, size, window=window))
    features = stored_tokens(index, tokenizer)
    rng = np.random.default_rng(0)
    for recording in index.usable.tolist():
        count = int(index.n_frames[recording])
        writing = features.writing(recording)
        ids = rng.integers(0, 4096, (count, tokens)).astype(np.uint16)
        writing.add(torch.from_numpy(ids), np.ones(count, bool))
        writing.commit()
    return {
        "videos": WindowDataset(index, window, size),
        "ids": WindowDataset(index, window, size, fields=("tokens",), features=features),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="pixels of a frame's side")
    parser.add_argument("--tokens", type=int, default=256, help="of a frame")
    parser.add_argument("--window", type=int, default=10, help="steps")
    parser.add_argument("--batch", type=int, default=16, help="windows")
    parser.add_argument("--batches", type=int, default=10, help="of each kind")
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600, help="of a recording")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "recordings"
        write_recordings(root, options.recordings, options.steps, options.size)
        index = open_index(root, None, 20.0, None)
        found = datasets(index, options.size, options.tokens, options.window)
        plan = Plan(index, index.usable, options.window, options.batch, shuffle=True)
        keys = [batch for epoch in range(options.batches) for batch in plan.batches(epoch)][: options.batches + 1]
        taken: dict[str, list[float]] = {name: [] for name in found}
        for batch in keys:
            for name, dataset in found.items():
                started = time.perf_counter()
                dataset.__getitems__(batch)
                taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}
    what = f"{options.batch} windows of {options.window} steps, {options.size} x {options.size} pixels"
    print(f"{device_name(torch.device('cpu'))}: {what}, {options.tokens} tokens")
    for name, seconds in medians.items():
        frames = options.batch * options.window / seconds
        print(f"{name:8} {1000 * seconds:8.2f} ms a batch, {frames:10,.0f} frames a second")
    print(f"ids are read {medians['videos'] / medians['ids']:.0f} times as fast")


if __name__ == "__main__":
    main()
