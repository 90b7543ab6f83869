"""``bczoo study confusion``: many small policies on Doom, measured by everything that claims to see causal confusion.

Place in the pipeline: records demonstrations (:mod:`bczoo.record`), trains one policy per :class:`Trial`, and
measures each of them in four ways: on held-out recordings (loss, metrics of :mod:`bczoo.train.metrics`, causality
score), on interventions (:mod:`bczoo.studies.interventions`) and in play. :mod:`bczoo.studies.confusion_report` makes
tables and plots of the rows. Every trial leaves its row in a file, so an interrupted study goes on, and a longer plan
adds to it.

Two worlds invite confusion: ``deadly_corridor``, where long stretches of one action follow each other, and
``health_gathering`` with an expert that holds every decision for four steps, so that the past action predicts the next
one three times out of four.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bczoo.core.devices import usable_device
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.workers import default_workers, in_processes
from bczoo.data.module import RecordingDataModule
from bczoo.games.game import make_game
from bczoo.games.players import ActionRepeat, make_player
from bczoo.models.bc.decoder import ActionDecoder, BackboneHeads, Decoder, IndependentHeads
from bczoo.models.bc.policy import BCPolicy
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.nn.encoders import ImageEncoder
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import play
from bczoo.record.command import record
from bczoo.studies.intervention_scores import accuracy, score
from bczoo.studies.interventions import Interventions, collect
from bczoo.train.callbacks.causality import CausalityScore
from bczoo.train.schedules import WarmupCosine

DECODERS: dict[str, Callable[..., Decoder]] = {
    "decoder": partial(ActionDecoder, layers=1, heads=4),
    "no decoder": BackboneHeads,
    "independent": IndependentHeads,
}
SIZES = {"xs": (32, 1), "s": (64, 2), "m": (128, 4), "l": (256, 6), "xl": (512, 8)}  # width and layers of the backbone
NOISE = 0.05
TEST_SEED, CASES_SEED, PLAY_SEED = 500_000, 600_000, 1_000_000  # training episodes are counted from 0


@dataclass(frozen=True)
class World:
    """A game and its demonstrations.

    Args:
        env: the game.
        hold: the expert holds every decision for so many steps.
        episodes: recordings to learn from.
        test_episodes: recordings to measure on.
        games: episodes that every policy plays.
    """

    env: str
    hold: int
    episodes: int
    test_episodes: int
    games: int

    @property
    def name(self) -> str:
        return self.env.split("/")[-1] + (f" (held {self.hold})" if self.hold > 1 else "")

    @property
    def folder(self) -> str:
        return f"{self.env.replace('/', '-')}-hold{self.hold}"


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Args:
        worlds: games.
        sizes: of the backbone, names in ``SIZES``; the middle one takes part in the comparison of decoders.
        fractions: shares of the training frames.
        seeds: repetitions.
        steps: optimiser steps of every policy, whatever its size and data.
        batch: windows per step.
        window: steps of a window.
        frame_size: height and width of the frames in pixels.
        backbone: timm name of the image encoder's.
        cases: interventions per world.
    """

    worlds: tuple[World, ...]
    sizes: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: int
    steps: int
    batch: int
    window: int
    frame_size: int
    backbone: str
    cases: int


PLANS = {
    "smoke": Plan(
        worlds=(World("doom/basic", 1, 4, 2, 2),),
        sizes=("xs",),
        fractions=(1.0,),
        seeds=1,
        steps=4,
        batch=4,
        window=4,
        frame_size=64,
        backbone="test_efficientnet",
        cases=10,
    ),
    "cpu": Plan(
        worlds=(World("doom/deadly_corridor", 1, 60, 15, 30), World("doom/health_gathering", 4, 10, 3, 10)),
        sizes=("xs", "s", "m"),
        fractions=(0.1, 0.3, 1.0),
        seeds=3,
        steps=400,
        batch=8,
        window=8,
        frame_size=64,
        backbone="test_efficientnet",
        cases=200,
    ),
    "gpu": Plan(
        worlds=(World("doom/deadly_corridor", 1, 400, 40, 50), World("doom/health_gathering", 4, 60, 6, 50)),
        sizes=("s", "m", "l", "xl"),
        fractions=(0.03, 0.1, 0.3, 1.0),
        seeds=3,
        steps=4000,
        batch=16,
        window=32,
        frame_size=96,
        backbone="efficientnet_b0",
        cases=500,
    ),
}


@dataclass(frozen=True)
class Trial:
    """One policy of a study.

    Args:
        world: what it learns.
        size: of the backbone, in ``SIZES``.
        fraction: share of the training frames.
        decoder: in ``DECODERS``.
        past_actions: whether it sees its past actions.
        seed: of weights and order of the data.
    """

    world: World
    size: str
    fraction: float
    decoder: str
    past_actions: bool
    seed: int

    @property
    def name(self) -> str:
        """Folder name."""
        past = "actions" if self.past_actions else "no-actions"
        return f"{self.world.folder}_{self.size}_{self.fraction:g}_{self.decoder.replace(' ', '-')}_{past}_{self.seed}"


def trials(plan: Plan) -> list[Trial]:
    """All sizes on all fractions, as in the paper; and the middle size on all data with every decoder, with and without
    past actions. Seed by seed, so that a study that is stopped early is whole for its first seeds."""
    middle = plan.sizes[len(plan.sizes) // 2]
    out = []
    for seed in range(plan.seeds):
        for world in plan.worlds:
            scaled = [(size, fraction, "decoder", True) for size in plan.sizes for fraction in plan.fractions]
            most = max(plan.fractions)
            ablated = [(middle, most, decoder, past) for decoder in DECODERS for past in (True, False)]
            out += [Trial(world, *one, seed) for one in dict.fromkeys(scaled + ablated)]
    return out


def study_confusion(
    size: str = "cpu",
    out: str = "runs/confusion",
    workers: int | None = None,
    seeds: int | None = None,
    device: str = "cpu",
) -> Any:
    """Train policies of several sizes, data fractions and decoders on Doom, and compare what sees causal confusion.

    Args:
        size: of the study: smoke (a minute, to try it), cpu (84 policies, an hour on two cores), gpu.
        out: folder of data, policies, rows and report; a study that was interrupted goes on there.
        workers: policies that are trained at the same time; one per processor core if left out, 1 on a GPU.
        seeds: repetitions, if others than the size's own.
        device: cpu or cuda.
    """
    from bczoo.studies.confusion_report import report

    if size not in PLANS:
        raise UserError(f"the size of a study is one of {', '.join(PLANS)}, got {size!r}")
    plan = PLANS[size] if seeds is None else dataclasses.replace(PLANS[size], seeds=seeds)
    if plan.seeds < 1:
        raise UserError(f"seeds is at least 1, got {seeds}")
    usable_device(device)
    require_folder_target(out, "--out")
    folder = Path(out)
    _keep_plan(plan, folder)
    workers = workers or (1 if device != "cpu" else default_workers())
    for world in plan.worlds:
        prepare(world, plan, folder, workers)
    todo = trials(plan)
    missing = [t for t in todo if not (folder / "policies" / t.name / "row.json").exists()]
    print(f"{len(todo)} policies, {len(todo) - len(missing)} of them are already there")
    done = len(todo) - len(missing)

    def report_row(row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        shown = {k: row[k] for k in ("loss", "causality", "intervention_accuracy", "return")}
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in shown.items() if v is not None)
        print(f"{done}/{len(todo)} {row['name']}: {numbers}", flush=True)

    in_processes(run_trial, [(t, plan, str(folder), device, workers) for t in missing], workers, report_row)
    rows = [json.loads((folder / "policies" / t.name / "row.json").read_text()) for t in todo]
    baselines = json.loads((folder / "baselines.json").read_text())
    return report(rows, baselines, folder)


def _keep_plan(plan: Plan, folder: Path) -> None:
    """Note the plan in the folder of its study; policies of another plan must not be taken for this one's."""
    path = folder / "plan.json"
    this = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(plan, seeds=0))))
    if path.exists() and json.loads(path.read_text()) != this:
        raise UserError(f"{folder} holds a study of another size or version; choose another folder with --out")
    write_json(path, this, indent=1)


def prepare(world: World, plan: Plan, folder: Path, workers: int) -> None:
    """Recordings, interventions, and what expert and random play return, where they are not there yet."""
    for part, episodes, seed in (("train", world.episodes, 0), ("test", world.test_episodes, TEST_SEED)):
        root = str(folder / "data" / world.folder / part)
        record(world.env, root, "expert", episodes, seed, plan.frame_size, NOISE, workers, world.hold)
    cases = folder / "data" / world.folder / "interventions.safetensors"
    game = make_game(world.env)
    if not cases.exists():
        print(f"collecting {plan.cases} interventions in {world.env}")
        space = game.action_space
        collect(
            world.env, plan.cases, plan.window, plan.frame_size, space, CASES_SEED, NOISE, hold=world.hold
        ).save(cases)  # fmt: skip
    path = folder / "baselines.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if world.name not in known:
        players = {
            "expert": ActionRepeat(make_player("expert", game), world.hold),
            "random": make_player("random", game),
        }
        played = {k: play(game, p, world.games, PLAY_SEED, world.games).mean for k, p in players.items()}
        write_json(path, known | {world.name: played}, indent=1)


def run_trial(trial: Trial, plan: Plan, out: str, device: str, workers: int) -> dict[str, Any]:
    """Train and measure one policy; it goes to ``<out>/policies/<trial>``, its row into ``row.json`` there.

    A policy that is there already is only measured.
    """
    if workers > 1:
        torch.set_num_threads(1)
    for message in (".*num_workers.*", ".*LeafSpec.*", ".*ModelCheckpoint.*"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    root, place = Path(out) / "data" / trial.world.folder, Path(out) / "policies" / trial.name
    L.seed_everything(trial.seed, verbose=False)
    data = RecordingDataModule(
        root=str(root / "train"),
        val_root=str(root / "test"),
        batch_size=plan.batch,
        fraction=trial.fraction,
        seed=trial.seed,
    )
    trainer = L.Trainer(
        accelerator="cpu" if device == "cpu" else "auto",
        devices=1,
        max_steps=plan.steps,
        limit_val_batches=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=10 * plan.steps,  # not while training
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CausalityScore(["swap", "freeze", "blank", "noise"])],
    )
    if (place / "config.json").exists():
        policy = BCPolicy.from_pretrained(place)
    else:
        policy = make_policy(trial, plan)
        trainer.fit(policy, data)
        policy.save_pretrained(place)
    (metrics,) = trainer.validate(policy, data, verbose=False)
    policy.to(device).eval()
    row = describe(trial, policy) | measures(metrics)
    row |= on_interventions(policy, Interventions.load(root / "interventions.safetensors"))
    game = make_game(trial.world.env)
    played = play(game, PolicyPlayer(policy), trial.world.games, PLAY_SEED, trial.world.games, progress=False)
    row |= {"return": played.mean, "returns": played.returns, "metrics": {k: v for k, v in metrics.items() if v == v}}
    write_json(place / "row.json", row, indent=1)
    return row


def make_policy(trial: Trial, plan: Plan) -> BCPolicy:
    """The untrained policy of a trial."""
    width, layers = SIZES[trial.size]
    encoder = partial(
        ImageEncoder, backbone=plan.backbone, frame_size=plan.frame_size, pretrained=False, channels_last=True
    )
    return BCPolicy(
        PolicyTransformer(width=width, layers=layers, heads=4),
        encoder,
        DECODERS[trial.decoder],
        text_dim=None,
        past_actions=trial.past_actions,
        window=plan.window,
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-4),
        lr_scheduler=WarmupCosine,
    )


def describe(trial: Trial, policy: BCPolicy) -> dict[str, Any]:
    """What a row says of its policy."""
    about = {k: getattr(trial, k) for k in ("name", "size", "fraction", "decoder", "past_actions", "seed")}
    return about | {"world": trial.world.name, "parameters": policy.parameter_counts()["total"]}


def measures(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers of validation that a row compares; those of groups are means over the groups that have one."""

    def over_groups(kind: str) -> float | None:
        values = [v for k, v in metrics.items() if k.startswith(f"val/{kind}/") and v == v]
        return sum(values) / len(values) if values else None

    names = ("causality", "causality_freeze", "causality_blank", "causality_noise", "action_reliance", "visual_share")
    out: dict[str, float | None] = {name: metrics[f"val/{name}"] for name in ("loss", *names)}
    kinds = ("accuracy", "change_accuracy", "repeat_accuracy", "change_repeat_accuracy", "persistence")
    out |= {kind: over_groups(kind) for kind in (*kinds, "perplexity", "change_perplexity", "relative_cross_entropy")}
    return {k: v if v is not None and v == v else None for k, v in out.items()}


def on_interventions(policy: BCPolicy, cases: Interventions) -> dict[str, Any]:
    """What a row says of interventions, of the cases whose answer differs from the habit."""
    found = {kind: dataclasses.asdict(a) for kind, a in accuracy(score(policy, cases), cases).items()}
    total = found["total"]
    return {
        "intervention_accuracy": total["balanced"],
        "constant": total["constant"],
        "habit": total["habit"],
        "intervention_cross_entropy": total["cross_entropy"],
        "interventions": found,
    }
