"""What one round of corrections is worth: a weak policy plays, the expert takes over at times, the policy learns on.

    python benchmarks/corrections.py [--env doom/basic] [--seeds 4 5 6] [--jobs 2]

Every training seed has its own demonstrations and its own weak policy. From there it learns on for the same number of
steps from the demonstrations alone, or also from new recordings: corrections (``bczoo record --policy --expert``),
DAgger (``--dagger true``), or further demonstrations, as many as give as many frames to learn from as the corrections.
All of them play the same unseen games. Prints a Markdown table and keeps recordings, runs and ``corrections.json`` in
``--out``; what is there is not made again.

The settings were chosen on training seeds 0 to 3; the default ones, 4 to 9, had no part in that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the policy is small, and other training seeds need the other cores

import numpy as np

from bczoo import BCPolicy
from bczoo.core.statistics import interval_over_episodes
from bczoo.core.workers import in_processes
from bczoo.data.recording import USER, known_action, read_annotation
from bczoo.games.game import make_game
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import play

ALONE, CORRECTED, MORE = "demonstrations alone", "+ corrections", "+ more demonstrations"
# way to learn on -> options of `bczoo record` for the weak policy's new episodes
WAYS: dict[str, list[str]] = {
    ALONE: [],
    CORRECTED: ["--expert", "expert"],
    "+ DAgger": ["--expert", "expert", "--dagger", "true", "--takeover", "0"],
    MORE: [],
}
WEAK = "weak policy"
SIZE = 64  # pixels of a frame
SMALL = ["--config", "quickstart", "--model.encoder.init_args.frame_size", SIZE]
FIT = [
    *("--ckpt_path", "null", "--data.source", "null", "--data.val_fraction", "0", "--trainer.limit_val_batches", "0"),
    *("--trainer.callbacks", '[{"class_path": "bczoo.ResumableCheckpoint"}]', "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--data.batch_size", "8", "--trainer.val_check_interval", "null"),
]
LEARN_ON = [
    *("--config", "finetune", "--model.freeze", "null", "--model.learning_rate", "null", "--data.num_workers", "0"),
    *("--model.optimizer.lr", "1e-3", "--model.lr_scheduler.warmup", "0.2"),
]


def bczoo(*words: object) -> None:
    """Run a command and stop with it if it fails."""
    subprocess.run([sys.executable, "-m", "bczoo", *map(str, words)], check=True)


def fit(folder: Path, roots: list[Path], seed: int, steps: int, *options: object) -> None:
    """Train into ``folder``, unless that is done."""
    if (folder / "checkpoints" / "last.ckpt").exists():
        return
    data = json.dumps([str(root) for root in roots])
    fixed = ["--trainer.max_steps", steps, "--trainer.default_root_dir", folder, "--data.root", data]
    bczoo("fit", *options, *FIT, *fixed, "--seed_everything", seed, "--data.seed", seed)


def steps_in(root: Path) -> dict[str, int]:
    """Frames of all recordings in a folder, and how many of them are learned from."""
    folders = [folder for folder in root.iterdir() if not folder.name.startswith(".")]
    kinds = [known_action(f)[0] for folder in folders for f in read_annotation(folder).frame_annotations[1:]]
    return {"frames": len(kinds), "learned_from": kinds.count(USER)}


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, dict]:
    """Everything of one training seed: per way its returns and the size of its new recordings."""
    out, first = Path(args.out) / f"seed-{seed}", 100_000 * (seed + 1)  # the unseen games come before
    demonstrations, weak = out / "demonstrations", out / "weak"
    fixed = ["--env", args.env, "--size", SIZE, "--out"]
    bczoo("record", *fixed, demonstrations, "--episodes", args.demonstrations, "--seed", first)
    fit(weak, [demonstrations], seed, args.steps, *SMALL)
    results = {WEAK: {"returns": returns(args, weak)}}
    for way, options in WAYS.items():
        name = way.replace("+ ", "").replace(" ", "-").lower()
        new, episodes = out / name, args.episodes
        if way == MORE:
            had = steps_in(demonstrations)["learned_from"] / args.demonstrations
            episodes = round(results[CORRECTED]["learned_from"] / had)
        if way != ALONE:
            policy = ["--policy", weak, *options] if options else []
            bczoo("record", *fixed, new, "--episodes", episodes, "--seed", first + 50_000, *policy)
        roots, sizes = ([demonstrations], {}) if way == ALONE else ([demonstrations, new], steps_in(new))
        fit(out / f"after-{name}", roots, seed, args.more_steps, *LEARN_ON, "--model.init_from", weak)
        results[way] = {"returns": returns(args, out / f"after-{name}"), **sizes}
        print(f"seed {seed}, {way}: {np.mean(results[way]['returns']):.1f}", flush=True)
    return results


def returns(args: argparse.Namespace, run: Path) -> list[float]:
    """Returns of a policy in the unseen games."""
    kept = run / f"returns-{args.games}.json"
    if not kept.exists():
        policy = PolicyPlayer(BCPolicy.from_pretrained(run))
        result = play(make_game(args.env), policy, args.games, seed=0, parallel=10, progress=False)
        kept.write_text(json.dumps(result.returns))
    return json.loads(kept.read_text())


def summary(seeds: dict[int, dict[str, dict]]) -> list[dict]:
    """Per way the mean return, its gain over learning on from the demonstrations alone, and 95 % intervals.

    A training seed counts as one, with the mean over its games: each has its own policies and recordings. Gains are
    paired by seed and game.
    """
    rows = []
    for way in (WEAK, *WAYS):
        by_seed = np.array([np.mean(one[way]["returns"]) for one in seeds.values()])
        gains = by_seed - [np.mean(one[ALONE]["returns"]) for one in seeds.values()]
        row = {"way": way, "mean": by_seed.mean(), "interval": interval(by_seed), "by_seed": by_seed.tolist()}
        if way != ALONE:
            row |= {"gain": gains.mean(), "gain_interval": interval(gains), "better_in": int((gains > 0).sum())}
        for key in ("frames", "learned_from"):
            if all(key in one[way] for one in seeds.values()):
                row[key] = float(np.mean([one[way][key] for one in seeds.values()]))
        rows.append(row)
    return rows


def interval(by_seed: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean: bootstrap over training seeds."""
    return interval_over_episodes(by_seed, np.ones(len(by_seed)))


def table(rows: list[dict]) -> str:
    lines = [
        "| | new frames | learned from | return, 95 % over seeds | by training seed "
        "| gain over demonstrations alone, 95 % over seeds | seeds with a gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        new = [f"{row[key]:.0f}" if key in row else "" for key in ("frames", "learned_from")]
        mean = f"{row['mean']:.1f} ({row['interval'][0]:.1f} to {row['interval'][1]:.1f})"
        seeds = ", ".join(f"{value:.1f}" for value in row["by_seed"])
        gain = better = ""
        if "gain" in row:
            gain = f"{row['gain']:+.1f} ({row['gain_interval'][0]:+.1f} to {row['gain_interval'][1]:+.1f})"
            better = f"{row['better_in']} of {len(row['by_seed'])}"
        lines.append(f"| {row['way']} | {' | '.join(new)} | {mean} | {seeds} | {gain} | {better} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="doom/basic", help="the game (doom/basic)")
    parser.add_argument("--demonstrations", type=int, default=10, help="episodes that the weak policy learns from (10)")
    parser.add_argument("--episodes", type=int, default=40, help="games of the weak policy that are recorded (40)")
    parser.add_argument("--steps", type=int, default=150, help="training steps of the weak policy (150)")
    parser.add_argument("--more_steps", type=int, default=300, help="training steps with each kind of data (300)")
    parser.add_argument("--games", type=int, default=30, help="unseen games that each policy plays (30)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6, 7, 8, 9], help="training seeds (4 to 9)")
    parser.add_argument("--jobs", type=int, default=2, help="training seeds at the same time, one thread each (2)")
    parser.add_argument("--out", default="runs/corrections", help="folder of everything (runs/corrections)")
    args = parser.parse_args()
    results = in_processes(run_seed, [(args, seed) for seed in args.seeds], args.jobs)
    seeds = dict(zip(args.seeds, results, strict=True))
    rows = summary(seeds)
    content = {"options": vars(args), "rows": rows, "seeds": seeds}
    (Path(args.out) / "corrections.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{args.env}, {args.games} unseen games for each of {len(seeds)} training seeds\n\n{table(rows)}")


if __name__ == "__main__":
    main()
