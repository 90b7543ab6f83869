"""What pretraining is worth on a game that it did not see: fine-tuning against training from scratch.

    python benchmarks/finetuning.py [--source checkpoints/doom] [--task tasks/defend_the_line] [--seeds 0 1 2]

Both learn from the same recordings in the same number of steps. Prints a table of the return in play and of the
change-point perplexity on held-out recordings, and keeps every run in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import yaml

from bczoo.core.configs import find
from bczoo.hub.source import locate

# all parts trained from the first step, and the rate in the shape that it has from scratch; its peak there is 2e-3
FINETUNE = [
    *("--model.freeze", "null", "--model.learning_rate", "null", "--model.optimizer.lr", "1e-3"),
    *("--model.lr_scheduler.warmup", "0.2", "--trainer.gradient_clip_val", "null"),
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def bczoo(*words: str) -> None:
    """Run a command and stop with it if it fails."""
    subprocess.run([sys.executable, "-m", "bczoo", *words], check=True)


def ways(args: argparse.Namespace) -> dict[str, list[str]]:
    """The options of each way to train."""
    return {
        "from scratch": ["--config", args.config],
        "fine-tuned": ["--config", "finetune", "--model.init_from", args.source, *FINETUNE],
    }


def cells(records: list[dict], env: str) -> list[str]:
    """Mean and deviation over seeds: return, and change-point perplexity per group."""
    returns = [r["play"][env]["players"]["policy"]["mean"] for r in records]
    names = ["mouse_dx", "mouse_buttons", "keys"]
    perplexities = [[r["metrics"][f"val/change_perplexity/{n}"] for r in records] for n in names]
    values = [returns, *perplexities, [r["metrics"]["val/loss"] for r in records]]
    digits = [1, 2, 3, 3, 3]
    spread = [f" ± {stdev(v):.{d}f}" if len(v) > 1 else "" for v, d in zip(values, digits, strict=True)]
    return [f"{mean(v):.{d}f}{s}" for v, d, s in zip(values, digits, spread, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="checkpoints/doom", help="policy to fine-tune (checkpoints/doom)")
    parser.add_argument("--config", default="doom", help="configuration to train from scratch (doom)")
    parser.add_argument("--task", default="tasks/defend_the_line", help="what both learn (tasks/defend_the_line)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of each way per seed (0 1 2)")
    parser.add_argument("--out", default="runs/finetuning", help="folder of the runs (runs/finetuning)")
    parser.add_argument("options", nargs="*", help="further options of bczoo fit for both, after --")
    args = parser.parse_args()
    locate(args.source)  # before anything is trained
    source = yaml.safe_load(find(args.task).read_text())["data"]["init_args"]["source"]
    env = source["init_args"]["env"]
    records: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for way, options in ways(args).items():
            folder = Path(args.out) / f"{way.replace(' ', '-')}-{seed}"
            seeds = ["--seed_everything", str(seed), "--data.seed", str(seed)]
            fixed = ["--config", args.task, "--trainer.default_root_dir", str(folder), "--ckpt_path", "null"]
            bczoo("fit", *options, *fixed, *seeds, *QUIET, *args.options)
            records.setdefault(way, []).append(json.loads((folder / "record.json").read_text()))
    print(f"\n{env}, {len(args.seeds)} seeds, mean ± standard deviation\n")
    print("| | return | change-point perplexity: `mouse_dx` | `mouse_buttons` | `keys` | loss |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, found in records.items():
        print(f"| {way} | {' | '.join(cells(found, env))} |")
    players = records["from scratch"][0]["play"][env]["players"]
    print("\nFor comparison, returns: " + ", ".join(f"{p} {players[p]['mean']:.1f}" for p in players if p != "policy"))


if __name__ == "__main__":
    main()
