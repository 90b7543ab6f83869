"""How long each stage of a step takes, over hours of play, in constant memory.

Place in the pipeline: the agent, the games and the server add their stages to one :class:`StageTimes`; ``bczoo play``,
``serve``, ``client-test`` and ``bench latency`` print its table. A step goes through

    capture   waiting for the game's frame
    resize    to the policy's frame size
    encode    image encoder
    backbone  policy transformer
    decode    action decoder
    sample    sampling ids (on a GPU that is part of decode), turning them into keys and pixels
    send      the action on its way to the game

Times are counted in bins 1 % wide, so percentiles are off by at most 1 %; count, mean and maximum are exact.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from bczoo.core.tables import markdown_table

STAGES = ("capture", "resize", "encode", "backbone", "decode", "sample", "send")
SHORTEST_S, LONGEST_S, GROWTH = 1e-7, 1e4, 1.01
_BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(GROWTH)) + 1
PERCENTILES = (50, 95, 99)


class Durations:
    """A histogram of durations."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.n, self.total_s, self.max_s = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        place = math.ceil(math.log(max(seconds, SHORTEST_S) / SHORTEST_S) / math.log(GROWTH))
        self.counts[min(place, _BINS - 1)] += 1
        self.n += 1
        self.total_s += seconds
        self.max_s = max(self.max_s, seconds)

    def merge(self, other: Durations) -> None:
        """Add all durations of another histogram."""
        self.counts += other.counts
        self.n += other.n
        self.total_s += other.total_s
        self.max_s = max(self.max_s, other.max_s)

    def percentile_s(self, percent: float) -> float:
        """The duration in seconds that ``percent`` % do not exceed; NaN if there are none."""
        if not self.n:
            return math.nan
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, math.ceil(percent / 100 * self.n))))
        return min(SHORTEST_S * GROWTH**place, self.max_s)

    def summary(self) -> dict[str, float]:
        """``n`` and, in milliseconds, ``mean``, ``p50``, ``p95``, ``p99`` and ``max``."""
        mean = self.total_s / self.n if self.n else math.nan
        percentiles = {f"p{p}": 1e3 * self.percentile_s(p) for p in PERCENTILES}
        return {"n": self.n, "mean": 1e3 * mean, **percentiles, "max": 1e3 * self.max_s}


class StageTimes:
    """Durations by stage; stages that nothing was added to are left out.

    >>> times = StageTimes()
    >>> with times.stage("resize"):
    ...     frame = resize(frame, 192)
    """

    def __init__(self) -> None:
        self.stages: defaultdict[str, Durations] = defaultdict(Durations)

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage].add(seconds)

    def merge(self, stage: str, durations: Durations) -> None:
        """Add durations that were measured elsewhere, such as in a game's process."""
        self.stages[stage].merge(durations)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    def summary(self) -> dict[str, dict[str, float]]:
        """:meth:`Durations.summary` by stage: those of a step in their order, then any others."""
        order = [*(s for s in STAGES if s in self.stages), *(s for s in self.stages if s not in STAGES)]
        return {stage: self.stages[stage].summary() for stage in order}

    def table(self) -> str:
        """A Markdown table in milliseconds."""
        return latency_table(self.summary())


def latency_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """:meth:`StageTimes.summary` as a Markdown table."""
    columns = ("p50", "p95", "p99", "max")
    rows = [[stage, *(f"{row[c]:.2f}" for c in columns), str(row["n"])] for stage, row in summary.items()]
    return markdown_table([["stage, ms", *columns, "n"], *rows], padded=False)
