"""``bczoo bench train``: what a training step costs, part by part, and how much of the device it uses.

Place in the pipeline: runs the training step of any configuration on a batch of noise, without recordings and without
a trainer. Parts are timed by hooks around their modules, each behind a wait for the device, so that they add up; the
whole step is timed without them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bczoo.core.devices import DTYPES, Precision, device_name, usable_device
from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table
from bczoo.models.model import Model
from bczoo.train.flops import batch_for, flops_per_window, peak_flops
from bczoo.train.memory import set_checkpointing


@dataclass
class StepReport:
    """What a training step costs.

    Args:
        batch: windows of a step.
        steps: of a window.
        seconds: of a whole step, the median.
        parts: seconds of the stages of a step, by name.
        flops: operations of a step, see :func:`bczoo.train.flops.flops_per_window`.
        peak: operations a second of the device; None if that is not known.
        memory: most bytes taken on the device; on a CPU by this process since it began; None if that is not known.
        tokens_per_step: positions that a step takes in the transformer's sequence.
    """

    batch: int
    steps: int
    seconds: float
    flops: float
    peak: float | None = None
    memory: int | None = None
    tokens_per_step: int = 1
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> float:
        """Tokens of the transformer a second."""
        return self.batch * self.steps * self.tokens_per_step / self.seconds

    def lines(self) -> list[str]:
        """What the command prints."""
        rows = [["stage", "ms", "share"]]
        whole = sum(self.parts.values())
        rows += [[name, f"{1e3 * s:.1f}", f"{100 * s / whole:.0f} %"] for name, s in self.parts.items()]
        out = [
            markdown_table(rows),
            "",
            f"a step takes {1e3 * self.seconds:.1f} ms: {self.batch / self.seconds:.2f} windows, "
            f"{self.batch * self.steps / self.seconds:.1f} frames or {self.tokens:,.0f} tokens a second, "
            f"{self.flops / self.seconds / 1e9:,.0f} GFLOP/s",
        ]
        if self.peak:
            out.append(f"that is {100 * self.flops / self.seconds / self.peak:.1f} % of the device's peak (MFU)")
        if self.memory:
            out.append(f"most memory of this process: {self.memory / 1e9:.2f} GB")
        return out


def train(
    architecture: str,
    batch: int = 1,
    steps: int | None = None,
    device: str = "cpu",
    dtype: Precision = "float32",
    rounds: int = 5,
    compile: bool = False,
    checkpointing: bool | None = None,
    largest_batch: bool = False,
) -> StepReport:
    """Measure a training step of a configuration on random frames: stages, throughput, utilisation, memory.

    Args:
        architecture: a size such as 150m, or a YAML file with a model section.
        batch: windows of a step.
        steps: of a window; the configuration's own number if left out.
        device: cpu or cuda.
        dtype: numbers that are computed with; weights and optimiser stay float32.
        rounds: how many steps are measured, after two that warm up.
        compile: compile the blocks, as bczoo.CompileBlocks does.
        checkpointing: compute the blocks again in the backward pass; as the configuration says if left out.
        largest_batch: double the batch until memory is full, and tell the largest that fits (cuda only).
    """
    if batch < 1 or rounds < 1:
        raise UserError(f"batch and rounds must be at least 1, got {batch} and {rounds}")
    where = usable_device(device)
    if largest_batch and where.type != "cuda":
        raise UserError("largest_batch needs a device whose memory can be full without harm: --device cuda")
    model = Model.from_config(architecture, pretrained=False).to(where).train()
    if checkpointing is not None:
        set_checkpointing(model, checkpointing)
    if compile:
        for block in model.blocks():
            block.compile(dynamic=False)
    step = _Step(model, where, DTYPES[dtype])
    report = step.measure(batch, steps or model.input_spec.window, rounds)
    print(f"{architecture}, {_name(where)}, {dtype}, batch {batch}, windows of {report.steps} steps")
    print("\n".join(["", *report.lines()]))
    if largest_batch:
        print(f"the largest batch that fits: {step.largest(batch, report.steps)} windows")
    return report


class _Step:
    """The training step of a model."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device = model, device
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.optimizer = model.make_optimizer()

    def measure(self, batch: int, steps: int, rounds: int) -> StepReport:
        data = batch_for(self.model, batch, self.device, steps)
        for _ in range(2):
            self(data)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = [self(data) for _ in range(rounds)]
        return StepReport(
            batch=batch,
            steps=steps,
            seconds=statistics.median(seconds),
            flops=batch * flops_per_window(self.model, steps),
            peak=peak_flops(self.device),
            memory=self._peak_memory(),
            tokens_per_step=self.model.tokens_per_step,
            parts=self._stages(data, rounds),
        )

    def __call__(self, data: Any, at: Callable[[str], None] = lambda stage: None) -> float:
        """Seconds of one step; ``at`` is told when a stage has ended."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.model.loss(data).total
        at("forward")
        loss.backward()
        at("backward")
        self.optimizer.step()
        at("optimizer")
        self._wait()
        return time.perf_counter() - started

    def largest(self, batch: int, steps: int) -> int:
        """The largest batch, found by doubling, of which a step fits into the device's memory."""
        fits = batch
        while True:
            try:
                self(batch_for(self.model, 2 * fits, self.device, steps))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                return fits
            fits *= 2

    def _stages(self, data: Any, rounds: int) -> dict[str, float]:
        """Seconds of the forward pass by part, of the backward pass and of the optimiser; medians."""
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            clock = _Clock(self.model, self._wait)
            self(data, clock.end)
            clock.remove()
            for name, seconds in clock.seconds.items():
                taken[name].append(seconds)
        return {name: statistics.median(seconds) for name, seconds in taken.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak_memory(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # Windows
            return None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


class _Clock:
    """Seconds by stage: of the parts of a model in its forward pass, of the rest of it, and of what follows."""

    def __init__(self, model: Model, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._wait, self._hooks = wait, []
        self._in_parts, self._depth = 0.0, 0
        for name, modules in model.parts().items():
            for module in modules:
                self._hooks.append(module.register_forward_pre_hook(self._enter))
                self._hooks.append(module.register_forward_hook(lambda *_, name=name: self._leave(name)))
        wait()
        self._since = self._entered = time.perf_counter()

    def end(self, stage: str) -> None:
        """A stage of the step has ended."""
        self._wait()
        now = time.perf_counter()
        if stage == "forward":
            self.seconds["rest of forward"] = now - self._since - self._in_parts
        else:
            self.seconds[stage] = now - self._since
        self._since = now

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, *_: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._wait()
            self._entered = time.perf_counter()

    def _leave(self, name: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._wait()
            taken = time.perf_counter() - self._entered
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            self._in_parts += taken


def _name(device: torch.device) -> str:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device_name(device)}{threads}"
