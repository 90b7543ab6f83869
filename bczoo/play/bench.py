"""``bczoo bench latency``: how long a step of play takes, stage by stage, and how far that is from the floor.

Place in the pipeline: runs an :class:`~bczoo.play.agent.Agent` on frames of noise, without a game, on a trained policy
or on random weights of any size. The floor is what no implementation can go below for one game: every weight has to
come from memory once a frame. Bandwidth is measured on the same device, by adding up a large tensor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bczoo.core.configs import names
from bczoo.core.devices import DTYPES, Precision, device_name, usable_device
from bczoo.core.errors import UserError
from bczoo.hub.measurements import keep, measured_step
from bczoo.models.policy import Policy
from bczoo.nn.packed import PackedLinear
from bczoo.play.agent import Agent
from bczoo.play.latency import StageTimes, latency_table
from bczoo.play.open import OpenedPolicy, open_policy

MEASURED_BYTES = 1 << 30
FRAME = (240, 320, 3)  # as Doom shows it


@dataclass(frozen=True)
class LatencyReport:
    """What was measured.

    Args:
        latency: milliseconds by stage and for the whole step, see :meth:`bczoo.play.latency.StageTimes.summary`.
        num_envs: games that stepped together.
        weight_bytes: of all weights that a frame needs.
        memory_bytes: keys and values that a frame looks at, over all games.
        bandwidth: bytes a second that the device reads.
        budget_ms: time of a step at the policy's rate.
    """

    latency: dict[str, dict[str, float]]
    num_envs: int
    weight_bytes: int
    memory_bytes: int
    bandwidth: float
    budget_ms: float

    @property
    def floor_ms(self) -> float:
        """Time to read the weights once."""
        return 1e3 * self.weight_bytes / self.bandwidth

    def lines(self) -> list[str]:
        """What the command prints."""
        p50, p99 = self.latency["step"]["p50"], self.latency["step"]["p99"]
        return [
            latency_table(self.latency),
            "",
            f"weights {self.weight_bytes / 1e6:.1f} MB, read at {self.bandwidth / 1e9:.1f} GB/s: floor "
            f"{self.floor_ms:.2f} ms; the median step takes {p50 / self.floor_ms:.1f} times as long",
            f"memory of {self.num_envs} game{'s' * (self.num_envs > 1)}: {self.memory_bytes / 1e6:.1f} MB",
            f"budget {self.budget_ms:.1f} ms: p99 takes {100 * p99 / self.budget_ms:.0f} % of it",
        ]


def latency(
    policy: str,
    device: str = "cpu",
    dtype: Precision | None = None,
    games: int = 1,
    steps: int = 200,
    warm_up: int = 20,
    threads: int | None = None,
    cuda_graphs: bool | None = None,
    text: str | None = None,
    revision: str | None = None,
    add_to_record: bool | None = None,
) -> LatencyReport:
    """Measure the latency of a policy by stage, and its distance to the floor that memory sets.

    Args:
        policy: a policy as for bczoo play, or a size such as 600m, which gets random weights.
        device: cpu or cuda.
        dtype: numbers that the policy computes with; those of its weights if left out.
        games: how many games step together.
        steps: how many steps are measured.
        warm_up: steps before that.
        threads: processor threads; if left out, one for a small policy and torch's choice for others.
        cuda_graphs: false takes single kernels instead of CUDA graphs on a GPU.
        text: instruction to the policy in every step; it is embedded once, before the steps are measured.
        revision: branch, tag or commit on the Hub.
        add_to_record: keep the result in the record of the policy, for its card; if left out, that of a run is kept,
            and that of an exported folder, whose card is written anew for it, is not.
    """
    if steps < 1 or warm_up < 0:
        raise UserError(f"steps must be at least 1 and warm_up at least 0, got {steps} and {warm_up}")
    opened = _open(policy, revision, device, dtype, text)
    instruction, loaded = opened.embedding(), opened.for_play(threads)
    agent = loaded.agent(games, cuda_graphs=cuda_graphs)
    report = measure(agent, steps, warm_up, instruction)
    weights, on_cpu = next(loaded.parameters()).dtype, agent.device.type == "cpu"
    where = device_name(agent.device)
    print(f"{policy}, {device} ({where}), {str(weights).removeprefix('torch.')}, games {games}, ", end="")
    print(f"threads {torch.get_num_threads()}, {steps} steps\n" if on_cpu else f"{steps} steps\n")
    print("\n".join(report.lines()))
    if (step := measured_step(opened.found)) is not None:
        step_ms = report.latency["step"]
        entry = {
            "step": step,
            "dtype": str(weights).removeprefix("torch."),
            "games": games,
            "threads": torch.get_num_threads() if on_cpu else 0,
            "steps_measured": steps,
            **{name: round(step_ms[name], 3) for name in ("p50", "p99")},
            "budget": report.budget_ms,
        }
        if line := keep(opened.found, "latency", where, entry, steps, add_to_record):
            print(f"\n{line}")
    return report


def _open(
    policy: str, revision: str | None, device: str, dtype: Precision | None, text: str | None = None
) -> OpenedPolicy:
    """A trained policy, or one of a size with random weights."""
    if policy in names():
        where, kind = usable_device(device), DTYPES[dtype] if dtype else None
        made = Policy.from_config(policy, pretrained=False).to(device=where, dtype=kind).eval()
        return OpenedPolicy(made, policy, text or None)
    try:
        return open_policy(policy, revision, device, dtype, text=text or "")
    except UserError as error:
        sizes = ", ".join(name for name in names() if "/" not in name)
        raise UserError(f"{error}. Sizes with random weights: {sizes}") from error


def measure(agent: Agent, steps: int, warm_up: int, instruction: Tensor | None = None) -> LatencyReport:
    """Let an agent act on noise, under an embedded instruction (E,) if there is one."""
    frames = np.random.default_rng(0).integers(0, 256, (16, *FRAME), dtype=np.uint8)
    env_ids = list(range(agent.num_envs))
    times = StageTimes()
    for step in range(warm_up + steps):
        shown = [frames[(step + env_id) % len(frames)] for env_id in env_ids]
        agent.times = times if step >= warm_up else None
        started = time.perf_counter()
        agent.step_many(env_ids, shown, [instruction] * len(env_ids))
        if agent.times is not None:
            times.add("step", time.perf_counter() - started)
    return LatencyReport(
        latency=times.summary(),
        num_envs=agent.num_envs,
        weight_bytes=weight_bytes(agent.policy),
        memory_bytes=agent.session.memory_bytes,
        bandwidth=bandwidth(agent.device),
        budget_ms=1e3 / agent.policy.input_spec.fps,
    )


def weight_bytes(policy: nn.Module) -> int:
    """Bytes of the weights that every frame needs; of an embedding table that is only a row or two."""
    tables = {id(m.weight) for m in policy.modules() if isinstance(m, nn.Embedding)}
    packed = sum(m.bytes for m in policy.modules() if isinstance(m, PackedLinear))
    return packed + sum(p.numel() * p.element_size() for p in policy.parameters() if id(p) not in tables)


def bandwidth(device: torch.device, repeats: int = 7) -> float:
    """Bytes a second that a device reads from its memory, the median of some readings."""
    data = torch.ones(MEASURED_BYTES // 4, dtype=torch.float32, device=device)
    data.sum()
    return MEASURED_BYTES / statistics.median(_seconds(data.sum, device) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started
