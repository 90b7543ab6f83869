"""BC-CNN beside the reference architecture: the same recordings, the same steps, the same unseen games.

    python benchmarks/families.py [--seeds 0 1 2] [--episodes 20] [--out runs/families]

Trains the configurations ``quickstart`` and ``bc_cnn_quickstart`` once per seed, with the causality score in
validation, and plays. Prints a Markdown table: mean and standard deviation over the seeds, and each seed's return with
its 95 % interval over games. What lies in ``--out`` is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

from bczoo import Policy

FAMILIES = {"reference (`quickstart`)": "quickstart", "BC-CNN (`bc_cnn_quickstart`)": "bc_cnn_quickstart"}
ENV = "doom/health_gathering"
METRICS = {
    "change-point perplexity, `mouse_dx`": "val/change_perplexity/mouse_dx",
    "accuracy, `mouse_dx`": "val/accuracy/mouse_dx",
    "causality (nats)": "val/causality",
    "action reliance (nats)": "val/action_reliance",
}


def train(config: str, seed: int, args: argparse.Namespace) -> dict:
    """The record of a run, made if it is not there."""
    folder = Path(args.out) / f"{config}-{seed}"
    if not (folder / "checkpoints" / "finished").exists():
        play = {"env": ENV, "episodes": args.episodes, "parallel": 10, "threads": 1}
        callbacks = [
            {"class_path": "bczoo.ResumableCheckpoint", "init_args": {"every_n_train_steps": 100}},
            {"class_path": "bczoo.CausalityScore"},
            {"class_path": "bczoo.PlayGame", "init_args": play},
        ]
        words = ["fit", "--config", config, "--seed_everything", seed, "--data.seed", seed, "--data.root", args.data]
        words += ["--trainer.default_root_dir", folder, "--trainer.callbacks", json.dumps(callbacks)]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1.0"]
        words += ["--trainer.val_check_interval", args.steps, "--trainer.max_steps", args.steps]
        subprocess.run([sys.executable, "-m", "bczoo", *map(str, words)], check=True)
    return json.loads((folder / "record.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", default="data/quickstart")
    parser.add_argument("--out", default="runs/families")
    args = parser.parse_args()
    rows: dict[str, list[str]] = {"": [], "parameters": [], "return": []}
    rows |= {name: [] for name in METRICS}
    for family, config in FAMILIES.items():
        records = [train(config, seed, args) for seed in args.seeds]
        played = [r["play"][ENV]["players"]["policy"] for r in records]
        means = np.array([p["mean"] for p in played])
        policy = Policy.from_config(config, pretrained=False)
        rows[""].append(family)
        rows["parameters"].append(f"{policy.parameter_counts()['total'] / 1e6:.2f} M")
        each = "; ".join(f"{p['mean']:.0f} ({p['low']:.0f} to {p['high']:.0f})" for p in played)
        rows["return"].append(f"{means.mean():.0f} ± {means.std():.0f}: {each}")
        for name, metric in METRICS.items():
            rows[name].append(spread([r["metrics"][metric] for r in records], 3))
    expert, random = (records[0]["play"][ENV]["players"][who]["mean"] for who in ("expert", "random"))
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    print("\n".join([lines[0], "|---|---|---|", *lines[1:]]))
    print(
        f"\nexpert {expert:.0f}, random play {random:.0f}; return: mean ± deviation over seeds, then each seed's mean"
    )
    print(f"with its 95 % interval over {args.episodes} unseen games")


def spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


if __name__ == "__main__":
    main()
