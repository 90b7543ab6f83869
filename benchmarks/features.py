"""What features on disk save: seconds per update with the videos and with the features, as ratios in one run.

    python benchmarks/features.py [--config 150m] [--steps 50] [--layers 2]

Writes recordings, and trains the same frozen policy on them in turns, once from videos and once from features, each
time for a few updates; reading, the step and the optimiser count. Medians over all turns are printed, and what the pass
before the first turn took.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np

from bczoo import BCPolicy, RecordingDataModule
from bczoo.core.threads import tune_for_cpu
from bczoo.data.recording import RecordingWriter

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Updates(L.Callback):
    """Seconds from one update's end to the next one's, without the first, and losses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.began = self.started = 0.0

    def on_train_start(self, trainer, pl_module):
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.perf_counter()
        if batch_idx:
            self.seconds.append(now - self.began)
        self.began = now
        self.losses.append(float(outputs["loss"]))


def write_recordings(root: Path, count: int, steps: int, size: int) -> None:
    """Noise that moves, so that the videos are no smaller than those of a game."""
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = np.kron(rng.integers(0, 256, (size // 8, size // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        with RecordingWriter(root / f"rec_{i}", size=size) as writer:
            for t in range(steps):
                writer.add(np.roll(picture, 3 * t, axis=1), user={"keys": ["w"] if t % 2 else []})


def train(options: argparse.Namespace, root: Path, cache: Path | None) -> tuple[Updates, float]:
    """A few updates, and seconds from the start of the run to the first of them."""
    L.seed_everything(0, verbose=False)
    parts = {
        "encoder": {"init_args": {"frozen": True}},
        "transformer": {"init_args": {"layers": options.layers, "dropout": 0.0}},
    }
    policy = BCPolicy.from_config(options.config, pretrained=False, window=options.steps, **parts)
    data = RecordingDataModule(
        str(root), batch_size=options.batch, val_fraction=0.0, feature_cache=None if cache is None else str(cache)
    )
    updates, begun = Updates(), time.perf_counter()
    L.Trainer(max_steps=options.updates + 1, callbacks=[updates], limit_val_batches=0, **QUIET).fit(policy, data)
    return updates, updates.started - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="150m")
    parser.add_argument("--steps", type=int, default=50, help="steps of a window")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=10, help="transformer layers")
    parser.add_argument("--updates", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "recordings", Path(folder) / "features"
        size = BCPolicy.from_config(options.config, pretrained=False).frame_size
        write_recordings(root, 2, options.steps * options.batch * (options.updates + 2) // 2, size)
        took: dict[str, list[Updates]] = {"videos": [], "features": []}
        making = train(options, root, cache)[1]
        for _ in range(options.rounds):
            took["videos"].append(train(options, root, None)[0])
            took["features"].append(train(options, root, cache)[0])
        n_bytes = sum(path.stat().st_size for path in cache.rglob("*.npy"))
        frames = sum(len(np.load(path)) for path in cache.rglob("readable.npy"))
    base = statistics.median(s for run in took["videos"] for s in run.seconds)
    for name, runs in took.items():
        median = statistics.median(s for run in runs for s in run.seconds)
        print(f"{name:10} {1000 * median:8.0f} ms per update   {median / base:.2f}")
    pairs = zip(took["videos"][0].losses, took["features"][0].losses, strict=True)
    print(f"losses differ by {max(abs(a - b) / a for a, b in pairs):.1g} of themselves at most")
    print(f"{frames} frames: {n_bytes / frames / 1e3:.1f} kB each; computed before the first step in {making:.1f} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tune_for_cpu()
    main()
