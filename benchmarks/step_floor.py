"""A training step beside what it cannot do without: its matrix products, its attention and its encoder, each alone.

    python benchmarks/step_floor.py [--config 150m] [--steps 100] [--dtype float32] [--threads 1] [--rounds 3]

Every product of the step (forward and backward) is noted by its shapes, and done again on other numbers of the same
shapes; so is attention. The encoder runs forward and backward by itself. What remains of the step is everything else:
norms, rotations, residuals, the loss, the optimiser. Step and parts take turns, and what is measured is the processor
time of the process, which other programs on the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bczoo.core.devices import DTYPES, processor
from bczoo.core.threads import tune_for_cpu
from bczoo.models.model import Model
from bczoo.train.flops import random_batch

aten = torch.ops.aten
PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1}  # and where the factors begin


class Products(TorchDispatchMode):
    """Counts matrix products by operation and by shape, stride and dtype of their factors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            factors = args[PRODUCTS[func] :][:2]
            self.seen[tuple((tuple(f.shape), f.stride(), f.dtype) for f in factors)] += 1
        return func(*args, **(kwargs or {}))

    def again(self) -> Callable[[], None]:
        """All of them once more, on ones."""
        factors = [
            ([torch.empty_strided(*shape, dtype=d).fill_(1) for *shape, d in k], n) for k, n in self.seen.items()
        ]

        def run() -> None:
            for (a, b), count in factors:
                for _ in range(count):
                    torch.matmul(a, b)

        return run


class Attention:
    """The attention of every block alone, forward and backward, on the numbers that the blocks gave it."""

    def __init__(self, model: Model) -> None:
        self.calls: list = []
        for block in model.blocks():
            block.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if len(args) == 3 and len(self.calls) < 1000:  # x, rotate, attend of the reference's blocks
            self.calls.append((block.attention, args[0].shape, args[2]))

    def again(self, dtype: torch.dtype) -> Callable[[], None]:
        calls, self.calls = self.calls, []
        prepared = []
        for attention, (batch, length, _), attend in calls:
            q = torch.randn(batch, attention.heads, length, attention.head_dim, dtype=dtype, requires_grad=True)
            kv = (batch, attention.kv_heads, length, attention.head_dim)
            k, v = (torch.randn(kv, dtype=dtype, requires_grad=True) for _ in range(2))
            prepared.append((q, k, v, attention.sinks, attend))

        def run() -> None:
            for q, k, v, sinks, attend in prepared:
                mixed = attend(q, k, v, sinks)
                torch.autograd.grad(mixed, (q, k, v), torch.ones_like(mixed))

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="150m")
    parser.add_argument("--steps", type=int, default=100, help="steps of a window")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    model = Model.from_config(options.config, pretrained=False).train()
    batch, optimizer = random_batch(model.input_spec, 1, steps=options.steps), model.make_optimizer()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(batch).total
        loss.backward()
        optimizer.step()

    def encoder() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            tokens = model.encode(batch["frames"])
        tokens.float().sum().backward()

    attention = Attention(model)
    with Products() as products:
        step()
    encoder_products = Products()
    with encoder_products:
        encoder()
    products.seen -= encoder_products.seen
    parts = {
        "step": step,
        "matrix products": products.again(),
        "attention": attention.again(dtype),
        "encoder": encoder,
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(options.rounds + 1):
        for name, part in parts.items():
            started = time.process_time()
            part()
            attention.calls.clear()
            if turn:  # the first warms up
                taken[name].append(time.process_time() - started)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    floor = sum(value for name, value in seconds.items() if name != "step")
    print(
        f"{options.config}, {processor()}, {options.threads} threads, {options.dtype}, window of {options.steps} steps"
    )
    for name, value in seconds.items():
        print(f"{name:16}{value:8.2f} s{100 * value / seconds['step']:6.0f} %")
    print(f"the step takes {seconds['step'] / floor:.2f} times as long as these parts together")


if __name__ == "__main__":
    tune_for_cpu()
    main()
