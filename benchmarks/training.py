"""What the encoder's options cost in training: seconds per update and peak memory, as ratios in one run.

    python benchmarks/training.py [--config 150m] [--steps 8] [--batch 1] [--layers 2]

Variants take turns, so that a machine whose speed drifts slows all of them; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bczoo import BCPolicy
from bczoo.core.threads import tune_for_cpu
from bczoo.train.loss import bc_loss

VARIANTS = {
    "unfrozen": {},
    "frozen": {"frozen": True},
    "unfrozen, channels first": {"channels_last": False},
}


class Update:
    """One training step of a policy on random data."""

    def __init__(self, config: str, encoder: dict, layers: int, batch: int, steps: int, device: str) -> None:
        parts = {"encoder": {"init_args": encoder}, "transformer": {"init_args": {"layers": layers}}}
        self.policy = BCPolicy.from_config(config, pretrained=False, **parts).to(device).train()
        self.optimizer = self.policy.configure_optimizers()
        size = self.policy.input_spec.frame_size
        self.frames = torch.randint(0, 256, (batch, steps, 3, size, size), dtype=torch.uint8, device=device)
        self.actions = {
            g.name: torch.randint(0, g.choices, (batch, steps, g.tokens), device=device)
            for g in self.policy.action_space.groups
        }
        self.counted = torch.ones(batch, steps, dtype=torch.bool, device=device)
        self.saved = 0

    def __call__(self) -> float:
        """Seconds of one update."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.saved = 0
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor):
            loss = bc_loss(self.policy(self.frames, self.actions), self.actions, self.counted).total
        loss.backward()
        self.optimizer.step()
        if self.frames.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.saved += tensor.nbytes
        return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="150m")
    parser.add_argument("--steps", type=int, default=8, help="steps of a window")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2, help="transformer layers, few so that the encoder shows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    updates = {
        name: Update(options.config, encoder, options.layers, options.batch, options.steps, options.device)
        for name, encoder in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for turn in range(options.rounds + 2):
        for name, update in updates.items():
            took = update()
            if turn >= 2:  # the first two warm up
                seconds[name].append(took)
    base = statistics.median(seconds["unfrozen"])
    memory = updates["unfrozen"].saved
    print(f"{'':26}{'ms per update':>14}{'ratio':>8}{'MB kept for backward':>22}{'ratio':>8}")
    for name, update in updates.items():
        median = statistics.median(seconds[name])
        print(
            f"{name:26}{1000 * median:14.0f}{median / base:8.2f}{update.saved / 1e6:22.0f}{update.saved / memory:8.2f}"
        )


if __name__ == "__main__":
    tune_for_cpu()
    main()
