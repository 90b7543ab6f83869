"""A run, or an exported folder, as it is compared: its options, its measures, its curves.

Place in the pipeline: ``bczoo compare`` and ``bczoo plot`` read every folder through :func:`read_run`::

    <run>/config.yaml, record.json, metrics.csv                     a run
    <run>/lightning_logs/version_N/{config.yaml, metrics.csv}       a run of an earlier bczoo
    <folder>/config.json, training.json                             an exported folder

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bczoo.core.errors import UserError
from bczoo.hub.models import shipped_weights
from bczoo.train.run_record import EXPORTED_RECORD, RUN_RECORD, Record, read_json, read_record, weights_step

RUN_CONFIG, METRICS, LOGS = "config.yaml", "metrics.csv", "lightning_logs"
EXPORTED_CONFIG = "config.json"
SEED = "seed_everything"
WITHOUT_EFFECT = (  # options that change nothing of what is learned: places, and what is shown
    SEED,
    "ckpt_path",
    "config",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.logger",
)

Curve = tuple[np.ndarray, np.ndarray]  # steps (n,) ascending, values (n,)


@dataclass(frozen=True)
class Measure:
    """A number that was measured on a run's policy.

    Args:
        value: the number.
        low: lower end of its 95 % interval within the run, over games or recordings; None without one.
        high: upper end.
        step: optimiser steps of the weights that it was measured on; None if that is not known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class Run:
    """What a folder says of a run.

    Args:
        name: the folder, as it was given.
        path: the folder.
        record: of the run; empty if there is none.
        options: dotted name to value, without the seed and what has no effect (:data:`WITHOUT_EFFECT`).
        complete: an option that is not among them was not set; False where only some of them are known.
        seed: of the training; None if it is not known.
    """

    name: str
    path: Path
    record: Record
    options: Mapping[str, Any]
    complete: bool
    seed: int | None

    @property
    def steps(self) -> int | None:
        """Optimiser steps of the training."""
        return self.training.get("steps", weights_step(self.record))

    @property
    def policy_step(self) -> int | None:
        """Optimiser steps of the weights that the folder means as a policy: the best ones, else the last."""
        return self.record.get("weights_step", self.record.get("best", {}).get("step", self.steps))

    @property
    def training(self) -> Mapping[str, Any]:
        """Steps, seconds, device and so on of the training; empty if nothing is known of it."""
        return self.record.get("training", {})

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """By metric its values over the steps of the training, from metrics.csv; empty if there is none."""
        return read_curves(metrics_files(self.path))

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """By name what is known of the policy.

        ``val/...`` (of the best weights, where the run keeps them) and ``test/...`` as they were logged,
        ``play/<game>`` the policy's mean return, ``<metric> on <folder>`` what `bczoo causality` measured there.
        """
        found: dict[str, Measure] = {}
        for name, (steps, values) in self.curves.items():
            if name.startswith(("val/", "test/")):
                found[name] = Measure(float(values[-1]), step=int(steps[-1]))
        best = self.record.get("best", {}).get("metrics", {})
        of_the_policy = best if best.get("step") == self.policy_step else {}
        for logged in (self.record.get("metrics", {}), of_the_policy, self.record.get("test_metrics", {})):
            found |= {k: Measure(v, step=int(logged["step"])) for k, v in logged.items() if k != "step"}
        for env, played in self.record.get("play", {}).items():
            if (policy := played["players"].get("policy")) is not None:
                found[f"play/{env}"] = Measure(policy["mean"], policy["low"], policy["high"], played["step"])
        for data, scored in self.record.get("causality", {}).items():
            for name, metric in scored["metrics"].items():
                if metric["value"] is not None:
                    value = Measure(metric["value"], metric["low"], metric["high"], scored["step"])
                    found[f"{name} on {data}"] = value
        return {name: measure for name, measure in found.items() if math.isfinite(measure.value)}


def read_run(folder: str | Path) -> Run:
    """What a folder says of its run.

    Args:
        folder: a run, an exported folder, or ``checkpoints/name``, weights that ship.

    Raises:
        UserError: it is neither a run nor an exported folder; says what it lacks.
    """
    name, path = str(Path(folder)), Path(folder)
    path = path if path.exists() else shipped_weights(path) or path
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give runs such as runs/quickstart, or exported folders")
    if (path / EXPORTED_CONFIG).is_file():
        return _exported(name, path)
    record, config = read_record(path / RUN_RECORD), _config_file(path)
    if not record and config is None and not metrics_files(path):
        inside = sorted(p.name for p in path.iterdir() if (p / RUN_RECORD).is_file() or _config_file(p) is not None)
        hint = f"; it holds the runs {', '.join(inside[:5])}: give {path}/*" if inside else ""
        raise UserError(f"{path} is no run: it has neither {RUN_RECORD} nor {RUN_CONFIG} nor {METRICS}{hint}")
    options = {} if config is None else read_options(config)
    seed = record.get("training", {}).get("seed", options.get(SEED))
    known = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    return Run(name, path, record, _of_effect(options) | _facts(record), config is not None, seed if known else None)


def _exported(name: str, path: Path) -> Run:
    """An exported folder: of the options it keeps those of the model alone."""
    record = read_record(path / EXPORTED_RECORD)
    options = flatten({"model": read_json(path / EXPORTED_CONFIG).get("policy")})
    options = {k: v for k, v in options.items() if not k.endswith(".pretrained")}  # weights are never fetched again
    seed = record.get("training", {}).get("seed", -1)
    return Run(name, path, record, options | _facts(record), False, seed if seed >= 0 else None)


def _facts(record: Record) -> dict[str, Any]:
    """What may differ between trainings of one configuration."""
    trained = record.get("data", {}).get("train", {})
    facts = {"recordings": trained.get("recordings"), "hours of recordings": trained.get("hours")}
    facts |= {"bczoo": record.get("bczoo"), "init_from": record.get("init_from")}
    return {name: value for name, value in facts.items() if value is not None}


def _of_effect(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that change what is learned; paths in the run's own folder are the same in all runs."""
    root = str(options.get("trainer.default_root_dir") or "")
    kept = {k: v for k, v in options.items() if not any(k == n or k.startswith(f"{n}.") for n in WITHOUT_EFFECT)}
    if not root:
        return kept
    inside = re.compile(rf"{re.escape(root)}(?=/|$)")
    return {k: inside.sub("<run>", v, count=1) if isinstance(v, str) else v for k, v in kept.items()}


# ---------------------------------------------------------------------------------------------------- options


def read_options(path: Path) -> dict[str, Any]:
    """All options in a ``config.yaml``, by dotted name.

    Raises:
        UserError: it is not YAML, or no table of options.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path} is not YAML ({str(error).splitlines()[0]}); restore it or leave this run out"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options; restore it or leave this run out")
    return flatten(content)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Options by dotted name, as the command line takes them.

    A part ``{class_path, init_args}`` is its class under its own name and its arguments below; parts in a list go by
    their classes: ``trainer.callbacks.PlayGame.episodes``. Other lists are values.
    """
    if isinstance(value, dict) and "class_path" in value:
        arguments = flatten(value.get("init_args") or {}, prefix)
        return {prefix: str(value["class_path"])} | {k: v for k, v in arguments.items() if k != prefix}
    if isinstance(value, dict):
        below = (flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items())
        return {k: v for part in below for k, v in part.items()}
    if isinstance(value, list) and value and all(isinstance(v, dict) and "class_path" in v for v in value):
        seen: Counter[str] = Counter()
        out: dict[str, Any] = {}
        for part in value:
            name = str(part["class_path"]).rpartition(".")[2]
            seen[name] += 1
            out |= flatten(part, f"{prefix}.{name}{seen[name] if seen[name] > 1 else ''}")
        return out
    if isinstance(value, list):
        return {prefix: json.dumps(value, default=str)}
    return {prefix: value}


def _config_file(path: Path) -> Path | None:
    """The configuration of a run: its own, or of the last of Lightning's versions."""
    if (path / RUN_CONFIG).is_file():
        return path / RUN_CONFIG
    return next((v / RUN_CONFIG for v in reversed(_versions(path)) if (v / RUN_CONFIG).is_file()), None)


def _versions(path: Path) -> list[Path]:
    """Folders of Lightning's logs in the order that they were written in."""
    versions = [v for v in (path / LOGS).glob("version_*") if v.name.removeprefix("version_").isdecimal()]
    return sorted(versions, key=lambda v: int(v.name.removeprefix("version_")))


# ---------------------------------------------------------------------------------------------------- curves


def metrics_files(path: Path) -> list[Path]:
    """Files of logged metrics, in the order that they were written in; several where a run was resumed."""
    if (path / METRICS).is_file():
        return [path / METRICS]
    return [v / METRICS for v in _versions(path) if (v / METRICS).is_file()]


def read_curves(paths: list[Path]) -> dict[str, Curve]:
    """By metric steps and values. Where a later file begins at an earlier step, it is in the right.

    Raises:
        UserError: a file is not laid out as a table of metrics; says where.
    """
    rows: list[tuple[int, dict[str, float]]] = []
    for path in paths:
        later = _read_rows(path)
        first = min((step for step, _ in later), default=math.inf)
        rows = [row for row in rows if row[0] < first] + later
    points: dict[str, dict[int, float]] = {}
    for step, values in rows:
        for name, value in values.items():
            points.setdefault(name, {})[step] = value
    curves = {}
    for name, by_step in points.items():
        steps = np.array(sorted(by_step))
        curves[name] = steps, np.array([by_step[step] for step in steps])
    return curves


def _read_rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and logged values of every line."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for line in reader:
            if line.get("step"):
                try:
                    known = {k: float(v) for k, v in line.items() if k not in ("step", "epoch", None) and v}
                    rows.append((int(float(line["step"])), known))
                except (TypeError, ValueError, OverflowError) as error:
                    raise UserError(f"{path}, line {reader.line_num}: {error}; correct or delete that line") from error
    return rows
