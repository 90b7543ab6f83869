"""A grid of sizes to train for a law: which runs it takes, in what order, and what there is of them.

Place in the pipeline: :mod:`bczoo.scaling.run` trains what :meth:`Grid.ready` names. Every run is an ordinary
``bczoo fit`` in a folder of its own, and the folders are all the state there is::

    <out>/<size>            the run that enters the fit
    <out>/sweep/<size>-lr<rate>     shorter runs that choose its learning rate (bczoo.scaling.rates)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bczoo.compare.seeds import finished
from bczoo.core.configs import find
from bczoo.core.errors import UserError
from bczoo.scaling.points import SCALING_LOG, read_table
from bczoo.scaling.rates import best_rate, next_rate

STEPS, RATE, ROOT = "trainer.max_steps", "model.optimizer.lr", "trainer.default_root_dir"
JUDGED = 0.2  # of a run of the sweep, at its end, whose mean loss compares rates


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        size: name of the size.
        folder: of the run.
        rate: learning rate.
        steps: optimiser steps.
        command: words behind ``bczoo``.
    """

    size: str
    folder: Path
    rate: float
    steps: int
    command: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the folder holds this run to its end; another run there is refused."""
        return finished(self.folder, self.command)

    @property
    def share(self) -> float:
        """How much of it has been logged, from 0 to 1."""
        log = self.folder / SCALING_LOG
        return min(1.0, float(read_table(log)["end_step"][-1]) / self.steps) if log.is_file() else 0.0

    def loss(self) -> float:
        """Mean training loss over the end of the run."""
        table = read_table(self.folder / SCALING_LOG)
        steps, losses = (np.array(table[name], dtype=float) for name in ("end_step", "loss"))
        return float(losses[steps >= (1 - JUDGED) * steps[-1]].mean())


@dataclass(frozen=True)
class Grid:
    """Sizes over a configuration.

    Args:
        base: configuration of ``bczoo fit``.
        sizes: by name the options of each size, such as ``{model.width: 64}``; smallest first.
        out: folder of the runs.
        rates: learning rates to choose from; one alone is taken without a sweep.
        sweep: steps of a run of the sweep, as a share of the size's.
        settings: options of all sizes.
    """

    base: str
    sizes: Mapping[str, Mapping[str, Any]]
    out: str
    rates: tuple[float, ...]
    sweep: float = 0.2
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        find(self.base)
        if not self.sizes:
            raise UserError("sizes: give at least one, such as {small: {model.width: 64}, large: {model.width: 128}}")
        if wrong := [name for name in self.sizes if not name or set(name) & set("/\\") or name == "sweep"]:
            raise UserError(f"sizes: {wrong[0]!r} names a folder; take letters, digits and hyphens")
        if not self.rates or min(self.rates) <= 0:
            raise UserError(f"rates are learning rates above 0, got {list(self.rates)}")
        if not 0 < self.sweep <= 1:
            raise UserError(f"sweep is a share of the steps, above 0 and up to 1; got {self.sweep}")

    def config(self, size: str) -> dict[str, Any]:
        """The whole configuration of a size."""
        config = yaml.safe_load(find(self.base).read_text(encoding="utf-8"))
        for name, value in self._options(size).items():
            _lay(config, name, value)
        return config

    def main(self, size: str, rate: float) -> Job:
        """The run that enters the fit."""
        return self._job(size, rate, Path(self.out) / size, self._steps(size))

    def trial(self, size: str, rate: float) -> Job:
        """A run of the sweep."""
        steps = max(1, round(self.sweep * self._steps(size)))
        return self._job(size, rate, Path(self.out) / "sweep" / f"{size}-lr{rate:g}", steps)

    def ready(self) -> tuple[list[Job], list[Job]]:
        """Runs that can be trained now, and those that are done; by what the folders hold.

        A size waits until the rate of the one before is known; the runs that enter the fit wait for their rate alone.
        """
        todo: list[Job] = []
        done: list[Job] = []
        start: float | None = None
        for size in self.sizes:
            tried: dict[float, float] = {}
            waiting: list[Job] = []
            while len(self.rates) > 1 and (rate := next_rate(self.rates, tried, start)) is not None:
                job = self.trial(size, rate)
                if job.done:
                    tried[rate] = job.loss()
                    done.append(job)
                    continue
                waiting.append(job)
                if start is not None:
                    break
                tried[rate] = float("nan")  # the smallest size tries all of them, whatever they come to
            if waiting:
                return [*todo, *waiting], done
            start = best_rate(tried) if tried else self.rates[0]
            job = self.main(size, start)
            (done if job.done else todo).append(job)
        return todo, done

    def _steps(self, size: str) -> int:
        steps = self.config(size)["trainer"].get("max_steps", -1)
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"size {size}: {STEPS} is not set; a run of a grid ends after a number of steps")
        return steps

    def _options(self, size: str) -> dict[str, Any]:
        return {**self.settings, **self.sizes[size]}

    def _job(self, size: str, rate: float, folder: Path, steps: int) -> Job:
        options = {**self._options(size), STEPS: steps, RATE: rate, ROOT: str(folder)}
        words = [word for name, value in options.items() for word in (f"--{name}", _written(value))]
        return Job(size, folder, rate, steps, ("fit", "--config", self.base, *words))


def _lay(config: dict[str, Any], name: str, value: Any) -> None:
    """Set an option by its name with dots, where ``init_args`` may be left out as on the command line."""
    *parents, last = name.split(".")
    for key in parents:
        config = _arguments(config, key).setdefault(key, {})
        if not isinstance(config, dict):
            raise UserError(f"{name}: {key} has no options")
    inner = _arguments(config, last)
    if isinstance(value, str) and isinstance(inner.get(last), dict) and "class_path" in inner[last]:
        inner[last] = {"class_path": value}  # another class by its name
    else:
        inner[last] = deepcopy(value)


def _arguments(config: dict[str, Any], key: str) -> dict[str, Any]:
    return config.setdefault("init_args", {}) if "class_path" in config and key not in config else config


def _written(value: Any) -> str:
    """A value as a word of a command."""
    return value if isinstance(value, str) else json.dumps(value)
