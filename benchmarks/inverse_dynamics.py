"""What actions read off video are worth: a policy from k labelled minutes, and n more with guesses or with the truth.

    python benchmarks/inverse_dynamics.py [--env doom/health_gathering] [--minutes 2 5 15] [--seeds 0 1 2] [--jobs 2]

The game's expert is recorded. Of each training seed, the first k minutes keep their actions and teach an inverse
dynamics model; from n further minutes the actions are hidden, and the model reads them off the video. Then a policy
learns from the k minutes alone, from both with the guesses, from the guesses alone, and from both with the truth, for
the same number of steps, and plays unseen games. The guesses are compared with what was hidden too. Prints Markdown
tables; keeps everything and ``inverse_dynamics.json`` in ``--out``, where what is there is not made again.

``--smoke`` runs all of it at a size that shows nothing but that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the networks are small, and other training seeds need the other cores

import numpy as np

from bczoo.core.devices import processor
from bczoo.core.files import PartialPath, write_json
from bczoo.core.statistics import interval_over_episodes
from bczoo.core.tables import markdown_table
from bczoo.core.workers import in_processes
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.schema import annotation as pb
from bczoo.games.game import make_game
from bczoo.models.idm.check import idm_check
from bczoo.models.policy import Policy
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import play

ALONE, GUESSED, GUESSED_ALONE, TRUE = "k labelled", "k labelled + n read off", "n read off", "k + n labelled"
SIZE, FPS = 64, 20
FIT = [
    *("--trainer.callbacks", '[{"class_path": "bczoo.ResumableCheckpoint"}]', "--ckpt_path", "null"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.limit_val_batches", "0", "--trainer.val_check_interval", "null", "--trainer.accelerator", "cpu"),
    *("--data.source", "null", "--data.val_fraction", "0"),
]


def bczoo(*words: object) -> None:
    """Run a command and stop with it if it fails."""
    subprocess.run([sys.executable, "-m", "bczoo", *map(str, words)], check=True)


def fit(folder: Path, roots: list[Path], seed: int, steps: int, *options: object) -> Path:
    """Train into ``folder``, unless that is done."""
    if not (folder / "checkpoints" / "last.ckpt").exists():
        data = json.dumps([str(root) for root in roots])
        fixed = ["--trainer.max_steps", steps, "--trainer.default_root_dir", folder, "--data.root", data]
        bczoo("fit", *options, *FIT, *fixed, "--seed_everything", seed, "--data.seed", seed)
    return folder


def first_minutes(source: Path, target: Path, minutes: float) -> Path:
    """Links to the first recordings of a folder that hold so many minutes together."""
    target.mkdir(parents=True, exist_ok=True)
    held = 0
    for folder in recordings(source):
        if held >= minutes * 60 * FPS:
            break
        if not (target / folder.name).exists():
            (target / folder.name).symlink_to(folder.resolve())
        held += length(folder)
    return target


def recordings(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if not folder.name.startswith("."))


def length(folder: Path) -> int:
    """Steps of a recording."""
    return len(pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes()).frame_annotations) - 1


def hide(source: Path, target: Path) -> Path:
    """Copies of labelled recordings that hold the guesses and no longer the truth."""
    for folder in recordings(source):
        if (target / folder.name).exists():
            continue
        message = pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes())
        for frame in message.frame_annotations:
            frame.ClearField("user_action")
        with PartialPath(target / folder.name) as partial:
            shutil.copytree(folder, partial.path)
            (partial.path / ANNOTATION_FILE).write_bytes(message.SerializeToString())
    return target


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, dict]:
    """Everything of one training seed: per k the returns of each policy and the quality of the guesses."""
    out, first = Path(args.out) / f"seed-{seed}", 100_000 * (seed + 1)  # the unseen games come before
    minute = args.episode_steps / 60 / FPS  # of an episode
    for name, wanted, start in (("labelled", max(args.minutes), first), ("hidden", args.more, first + 50_000)):
        episodes = max(2, int(np.ceil(wanted / minute)))
        fixed = ["--env", args.env, "--size", SIZE, "--workers", 1]
        bczoo("record", *fixed, "--out", out / name, "--episodes", episodes, "--seed", start)
    more = first_minutes(out / "hidden", out / f"more-{args.more:g}", args.more)
    results = {}
    for k in args.minutes:
        at = out / f"k-{k:g}"
        labelled = first_minutes(out / "labelled", at / "labelled", k)
        idm = fit(at / "idm", [labelled], seed, args.idm_steps, "--config", "idm_doom")
        bczoo("data", "label", idm, more, "--out", at / "guessed")
        agreement = idm_check(str(at / "guessed"))
        guessed = hide(at / "guessed", at / "guessed-only")
        pseudo = ["--data.pseudo", "true", "--data.pseudo_min_confidence", args.min_confidence]
        policy = ["--config", "bc_cnn_quickstart", "--model.encoder.init_args.frame_size", SIZE]
        ways = {
            ALONE: ([labelled], []),
            GUESSED: ([labelled, guessed], pseudo),
            GUESSED_ALONE: ([guessed], pseudo),
            TRUE: ([labelled, more], []),
        }
        returns_by_way = {}
        for way, (roots, options) in ways.items():
            run = fit(at / way.replace(" + ", "-").replace(" ", "-"), roots, seed, args.steps, *policy, *options)
            returns_by_way[way] = returns(args, run)
            print(f"seed {seed}, k = {k:g} min, {way}: {np.mean(returns_by_way[way]):.1f}", flush=True)
        results[f"{k:g}"] = {"returns": returns_by_way, "measures": agreement.measures}
    return results


def returns(args: argparse.Namespace, run: Path) -> list[float]:
    """Returns of a policy in the unseen games."""
    kept = run / f"returns-{args.games}.json"
    if not kept.exists():
        player = PolicyPlayer(Policy.from_pretrained(run))
        result = play(make_game(args.env), player, args.games, seed=0, parallel=min(args.games, 10), progress=False)
        write_json(kept, result.returns)
    return json.loads(kept.read_text())


def interval(by_seed: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean: bootstrap over training seeds."""
    return interval_over_episodes(by_seed, np.ones(len(by_seed)))


def tables(seeds: dict[int, dict[str, dict]]) -> str:
    """Returns by k and way, with the share of the difference that guesses win back; and the quality of the guesses."""
    rows = [["k, minutes", ALONE, GUESSED, GUESSED_ALONE, TRUE, "won back"]]
    quality = [["k, minutes", "event F1 of keys", "whole actions right", "copied", "R^2, mouse_dx"]]
    for k in next(iter(seeds.values())):
        by_way = {
            way: np.array([np.mean(one[k]["returns"][way]) for one in seeds.values()])
            for way in (ALONE, GUESSED, GUESSED_ALONE, TRUE)
        }
        gap = by_way[TRUE].mean() - by_way[ALONE].mean()
        won = f"{(by_way[GUESSED].mean() - by_way[ALONE].mean()) / gap:.0%}" if gap > 0 else "no difference to win"
        cells = [f"{x.mean():.0f} ({interval(x)[0]:.0f} to {interval(x)[1]:.0f})" for x in by_way.values()]
        rows.append([k, *cells, won])
        names = ("event_f1/keys", "joint", "joint_copy", "r2/mouse_dx")
        measured = [np.mean([one[k]["measures"][name] for one in seeds.values()]) for name in names]
        quality.append([k, *(f"{value:.3f}" for value in measured)])
    return f"{markdown_table(rows)}\n\n{markdown_table(quality)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="doom/health_gathering", help="the game (doom/health_gathering)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 15], help="k, labelled (2 5 15)")
    parser.add_argument("--more", type=float, default=60, help="n, minutes without actions (60)")
    parser.add_argument("--episode_steps", type=int, default=1200, help="steps of an episode of the game (1200)")
    parser.add_argument("--idm_steps", type=int, default=600, help="training steps of inverse dynamics (600)")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each policy (600)")
    parser.add_argument("--min_confidence", type=float, default=0.0, help="of guesses that are learned from (0)")
    parser.add_argument("--games", type=int, default=30, help="unseen games that each policy plays (30)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (0 1 2)")
    parser.add_argument("--jobs", type=int, default=2, help="training seeds at the same time, one thread each (2)")
    parser.add_argument("--out", default="runs/inverse_dynamics", help="folder of everything (runs/inverse_dynamics)")
    parser.add_argument("--smoke", action="store_true", help="the least of everything")
    args = parser.parse_args()
    if args.smoke:
        least = {"minutes": [0.5], "more": 0.5, "idm_steps": 2, "steps": 2, "games": 1, "seeds": [0], "jobs": 1}
        vars(args).update(least)
    results = in_processes(run_seed, [(args, seed) for seed in args.seeds], args.jobs)
    seeds = dict(zip(args.seeds, results, strict=True))
    write_json(Path(args.out) / "inverse_dynamics.json", {"options": vars(args), "seeds": seeds}, indent=1)
    print(
        f"\n{args.env} on {processor()}: n = {args.more:g} minutes, {args.games} unseen games for each of {len(seeds)} "
        f"training seeds, 95 % intervals over seeds\n\n{tables(seeds)}"
    )


if __name__ == "__main__":
    main()
