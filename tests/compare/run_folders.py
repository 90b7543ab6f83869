"""Folders as runs leave them, for the tests of what reads them; no training behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml


def options(root: Path, seed: int, layers: int = 2, **more: Any) -> dict[str, Any]:
    """A config.yaml as the trainer's command line writes it, in short."""
    transformer = {"class_path": "bczoo.PolicyTransformer", "init_args": {"width": 64, "layers": layers}}
    player = {"class_path": "bczoo.PlayGame", "init_args": {"episodes": 10, "video": f"{root}/play.mp4"}}
    model = {"class_path": "bczoo.BCPolicy", "init_args": {"transformer": transformer}}
    trainer = {"max_steps": 300, "max_time": None, "default_root_dir": str(root), "callbacks": [player]}
    return {"seed_everything": seed, "trainer": trainer, "model": model, "ckpt_path": None} | more


def record(seed: int, loss: float, played: float = 5.0, steps: int = 300, **more: Any) -> dict[str, Any]:
    """A record.json."""
    players = {"policy": {"mean": played, "low": played - 1, "high": played + 1, "episodes": 10}}
    return {
        "bczoo": "0.1.0",
        "data": {"root": ["data"], "train": {"recordings": 8, "hours": 0.5}, "batch_size": 4},
        "training": {"steps": steps, "seconds": 600.0 + seed, "seed": seed, "device": "cpu, 2 threads, x86_64"},
        "metrics": {"step": steps, "val/loss": loss, "val/perplexity/keys": 1 + loss},
        "play": {"doom/basic": {"seed": 7, "step": steps, "players": players}},
    } | more


def write_curve(path: Path, losses: dict[int, float], **columns: dict[int, float]) -> None:
    """A metrics.csv in Lightning's columns, blank where nothing was logged."""
    curves = {"val/loss": losses, **{name.replace("_", "/", 1): values for name, values in columns.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "step", *curves])
        table.writeheader()
        for step in sorted({step for values in curves.values() for step in values}):
            table.writerow({"epoch": 0, "step": step} | {k: v[step] for k, v in curves.items() if step in v})


def write_run(root: Path, seed: int = 0, loss: float = 0.5, layers: int = 2, played: float = 5.0, **more: Any) -> Path:
    """A run with all that it leaves; ``more`` goes into its record."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(options(root, seed, layers)))
    (root / "record.json").write_text(json.dumps(record(seed, loss, played, **more)))
    write_curve(root / "metrics.csv", {149: loss + 0.2, 299: loss}, train_loss={s: loss + 1 / (s + 1) for s in (9, 99)})
    return root
