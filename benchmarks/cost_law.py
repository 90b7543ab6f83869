"""How the cost of a training step grows with window, width, depth and tokens a step, and where that departs.

    python benchmarks/cost_law.py [--rounds 5] [--threads 1]

One number of a small policy is changed at a time. The law that is fitted, by least squares of the relative errors, is
seconds = operations / rate + start. Operations are exact (:func:`bczoo.train.flops.flops_per_window`); the start is
what a step takes however small it is. Measured is the processor time of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from bczoo.core.devices import processor
from bczoo.core.threads import tune_for_cpu
from bczoo.models.model import Model
from bczoo.train.flops import flops_per_window, random_batch

BASE = {"width": 128, "layers": 4, "window": 20, "batch": 1, "thinking_tokens": 1}
GRID = {
    "window": (5, 40, 100),
    "width": (64, 256),
    "layers": (1, 8),
    "batch": (2, 4),
    "thinking_tokens": (0, 13),
}


class Point:
    """A policy of some size and its training step."""

    def __init__(self, changed: str, value: int, size: dict[str, int]) -> None:
        self.changed, self.value = changed, value
        parts: dict[str, Any] = {
            "encoder": {"init_args": {"frozen": True}},
            "transformer": {"init_args": {k: size[k] for k in ("width", "layers")}},
            "thinking_tokens": size["thinking_tokens"],
        }
        self.model = Model.from_config("tiny", pretrained=False, **parts).train()
        self.tokens = self.model.tokens_per_step * size["window"]
        self.flops = size["batch"] * flops_per_window(self.model, size["window"])
        self.batch = random_batch(self.model.input_spec, size["batch"], steps=size["window"])
        self.optimizer = self.model.make_optimizer()
        self.taken: list[float] = []

    def __call__(self) -> None:
        started = time.process_time()
        self.optimizer.zero_grad()
        self.model.loss(self.batch).total.backward()
        self.optimizer.step()
        self.taken.append(time.process_time() - started)

    @property
    def seconds(self) -> float:
        return statistics.median(self.taken[2:])  # the first two warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    points = [Point("base", 0, BASE)]
    points += [Point(name, value, BASE | {name: value}) for name, values in GRID.items() for value in values]
    for _ in range(options.rounds + 2):
        for point in points:
            point()
    terms = np.array([[p.flops, 1.0] for p in points])
    seconds = np.array([p.seconds for p in points])
    scale = terms.max(axis=0)
    law = np.linalg.lstsq(terms / scale / seconds[:, None], np.ones(len(points)), rcond=None)[0] / scale
    print(f"{processor()}, {options.threads} threads, float32, frozen encoder of the size tiny; base {BASE}")
    print(f"{'changed':18}{'value':>6}{'tokens':>8}{'GFLOP':>8}{'ms':>8}{'law ms':>8}{'ratio':>7}")
    for point, said in zip(points, terms @ law, strict=True):
        print(
            f"{point.changed:18}{point.value or '':>6}{point.tokens:8}{point.flops / 1e9:8.2f}"
            f"{1e3 * point.seconds:8.1f}{1e3 * said:8.1f}{point.seconds / said:7.2f}"
        )
    print(f"law: {1 / law[0] / 1e9:.0f} GFLOP/s and {1e3 * law[1]:.1f} ms a step")


if __name__ == "__main__":
    tune_for_cpu()
    main()
