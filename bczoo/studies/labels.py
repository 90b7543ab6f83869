"""``bczoo study labels``: what actions read off video are worth to a policy, and how many labels that takes.

Place in the pipeline: records a game's expert (:mod:`bczoo.record`), trains an inverse dynamics model on the first n
recordings of each seed, hides the actions of m further ones and has the model read them off (``bczoo data label``).
Then policies learn, with the same number of steps, from

    labelled   n recordings
    guessed    n recordings, and m whose actions were read off
    true       n recordings, and the same m with what was really pressed

and :mod:`bczoo.studies.labels_report` compares their loss on held-out recordings and their return in play. How good the
guesses are is measured too, since their truth is known. Each model and policy leaves a row in a file, so an interrupted
study goes on, and more seeds add to it. Every seed has recordings of its own, so intervals over seeds cover both.

Nobody disturbs the expert here: what is read off video is what was done, and under action noise not what was wanted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, link, require_folder_target, write_json
from bczoo.core.workers import default_workers, in_processes
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.schema import annotation as pb
from bczoo.games.game import make_game
from bczoo.games.players import make_player
from bczoo.models.cnn.encoder import ConvNeXtEncoder
from bczoo.models.cnn.policy import CNNPolicy
from bczoo.models.idm.check import idm_check
from bczoo.models.idm.encoder import MotionEncoder
from bczoo.models.idm.label import label
from bczoo.models.idm.model import InverseDynamics
from bczoo.models.model import Model
from bczoo.play.agent import PolicyPlayer
from bczoo.play.episodes import play
from bczoo.record.command import record
from bczoo.train.schedules import WarmupCosine

WAYS = ("labelled", "guessed", "true")
SEED_STRIDE, MORE_SEED = 10_000, 5_000  # of episodes: seed s records from s * 10,000 on, the m from 5,000 after that
TEST_SEED, PLAY_SEED = 500_000, 1_000_000
MEASURES = ("event_f1/keys", "event_f1/mouse_buttons", "joint", "joint_copy", "r2/mouse_dx")  # of the guesses


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Args:
        env: the game.
        few: numbers n of labelled recordings, smallest first.
        more: m, recordings whose actions are read off.
        test: held-out recordings.
        games: episodes that every policy plays.
        seeds: repetitions.
        frame_size: height and width of the frames in pixels.
        channels: of the encoders, smallest first.
        width: of the transformers.
        window: steps of a window of both models.
        reader_batch: windows a step of an inverse dynamics model.
        reader_steps: its optimiser steps.
        batch: windows a step of a policy.
        steps: its optimiser steps, whatever it learns from.
        validations: of each training; the weights of the best one are kept, so that few recordings are not learned by
            heart for longer than is good for the policy.
    """

    env: str
    few: tuple[int, ...]
    more: int
    test: int
    games: int
    seeds: int
    frame_size: int
    channels: tuple[int, ...]
    width: int
    window: int
    reader_batch: int
    reader_steps: int
    batch: int
    steps: int
    validations: int


PLANS = {
    "smoke": Plan(
        env="doom/defend_the_center",
        few=(1, 2),
        more=2,
        test=1,
        games=1,
        seeds=2,
        frame_size=64,
        channels=(4, 8, 16),
        width=32,
        window=8,
        reader_batch=2,
        reader_steps=4,
        batch=2,
        steps=4,
        validations=2,
    ),
    "cpu": Plan(
        env="doom/health_gathering",
        few=(2, 8),
        more=12,
        test=4,
        games=5,
        seeds=3,
        frame_size=64,
        channels=(16, 32, 64),
        width=128,
        window=16,
        reader_batch=16,
        reader_steps=500,
        batch=8,
        steps=200,
        validations=3,
    ),
}


@dataclass(frozen=True)
class Reader:
    """An inverse dynamics model.

    Args:
        few: n, recordings that it learns from.
        seed: of weights, order of the data, and recordings.
    """

    few: int
    seed: int

    @property
    def name(self) -> str:
        return f"n{self.few}-seed{self.seed}"


@dataclass(frozen=True)
class Trial:
    """A policy.

    Args:
        way: of :data:`WAYS`.
        few: n, recordings with known actions.
        seed: of weights, order of the data, and recordings.
    """

    way: str
    few: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.way}-n{self.few}-seed{self.seed}"


def readers(plan: Plan) -> list[Reader]:
    """All inverse dynamics models, seed by seed, so that a study that is stopped early is whole for its first seeds."""
    return [Reader(n, seed) for seed in range(plan.seeds) for n in plan.few]


def trials(plan: Plan) -> list[Trial]:
    """All policies, seed by seed."""
    return [Trial(way, n, seed) for seed in range(plan.seeds) for n in plan.few for way in WAYS]


def study_labels(
    size: Literal["smoke", "cpu"] = "cpu",
    out: str = "runs/labels",
    seeds: int | None = None,
    workers: int | None = None,
) -> Any:
    """Train policies on few labelled recordings, with more whose actions were read off video, and with the truth.

    Args:
        size: of the study: smoke (to try it), cpu (6 inverse dynamics models and 18 policies on Doom).
        out: folder of recordings, models, labels.json and labels.png; a study that was interrupted goes on there.
        seeds: repetitions, if others than the size's own.
        workers: models that are trained at the same time, one thread each; one per processor core if left out.
    """
    from bczoo.studies.labels_report import report

    if size not in PLANS:
        raise UserError(f"the size of a study is one of {', '.join(PLANS)}, got {size!r}")
    plan = PLANS[size] if seeds is None else dataclasses.replace(PLANS[size], seeds=seeds)
    if plan.seeds < 1:
        raise UserError(f"seeds is at least 1, got {seeds}")
    require_folder_target(out, "--out")
    folder, workers = Path(out), workers or default_workers()
    _keep_plan(plan, folder)
    started = time.perf_counter()
    minutes = prepare(plan, folder, workers)
    read = _all(read_off, readers(plan), "readers", plan, folder, workers)
    policies = _all(run_trial, trials(plan), "policies", plan, folder, workers)
    print(f"{(time.perf_counter() - started) / 60:.1f} min, in {workers} processes")
    baselines = json.loads((folder / "baselines.json").read_text())
    return report(policies, read, baselines, dataclasses.asdict(plan) | {"minutes": minutes}, folder)


def _keep_plan(plan: Plan, folder: Path) -> None:
    """Note the plan in the folder of its study; models of another plan must not be taken for this one's."""
    path = folder / "plan.json"
    this = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(plan, seeds=0))))
    if path.exists() and json.loads(path.read_text()) != this:
        raise UserError(f"{folder} holds a study of another size or version; choose another folder with --out")
    write_json(path, this, indent=1)


def _all(do: Any, todo: list[Any], kind: str, plan: Plan, folder: Path, workers: int) -> list[dict[str, Any]]:
    """The rows of all models of a kind, of which those that are not there are made."""
    missing = [one for one in todo if not _row(folder, kind, one).exists()]
    done, started = len(todo) - len(missing), time.perf_counter()
    print(f"{len(todo)} {kind}, {done} of them are already there", flush=True)
    made = 0

    def tell(row: dict[str, Any]) -> None:
        nonlocal made
        made += 1
        minutes = (time.perf_counter() - started) * (len(missing) / made - 1) / 60
        numbers = ", ".join(f"{k} {row[k]:.3f}" for k in ("loss", "return", "joint") if k in row)
        print(f"{done + made}/{len(todo)} {row['name']}: {numbers}; {minutes:.0f} min left for {kind}", flush=True)

    in_processes(do, [(one, plan, str(folder)) for one in missing], workers, tell)
    return [json.loads(_row(folder, kind, one).read_text()) for one in todo]


def _row(folder: Path, kind: str, one: Reader | Trial) -> Path:
    return folder / kind / one.name / "row.json"


def prepare(plan: Plan, folder: Path, workers: int) -> float:
    """Recordings, and what expert and random play return, where they are not there yet; minutes of a recording."""
    wanted = [(str(folder / "data" / "test"), plan.test, TEST_SEED)]
    for seed in range(plan.seeds):
        first = seed * SEED_STRIDE
        for before, n in zip((0, *plan.few), plan.few, strict=False):
            wanted.append((str(_part(folder, seed, n)), n - before, first + before))
        wanted.append((str(_more(folder, seed)), plan.more, first + MORE_SEED))
    made: list[str] = []
    with contextlib.redirect_stdout(io.StringIO()):  # a line or two for each of the folders
        for root, n, seed in wanted:
            made += record(plan.env, root, "expert", n, seed, plan.frame_size, workers=workers)
    if not (folder / "baselines.json").exists():
        game = make_game(plan.env)
        players = {name: make_player(name, game) for name in ("expert", "random")}
        played = {k: play(game, p, plan.games, PLAY_SEED, plan.games, progress=False).mean for k, p in players.items()}
        write_json(folder / "baselines.json", played, indent=1)
    steps = [len(pb.VideoAnnotation.FromString(_annotation(Path(one))).frame_annotations) - 1 for one in made]
    return sum(steps) / len(steps) / make_game(plan.env).fps / 60


def _annotation(folder: Path) -> bytes:
    return (folder / ANNOTATION_FILE).read_bytes()


def _part(folder: Path, seed: int, n: int) -> Path:
    """The recordings that n has and the number before it has not."""
    return folder / "data" / f"seed{seed}" / f"to{n}"


def _more(folder: Path, seed: int) -> Path:
    return folder / "data" / f"seed{seed}" / "more"


def _labelled(plan: Plan, folder: Path, one: Reader | Trial) -> list[str]:
    """Folders of the n recordings with known actions."""
    return [str(_part(folder, one.seed, n)) for n in plan.few if n <= one.few]


def read_off(reader: Reader, plan: Plan, out: str) -> dict[str, Any]:
    """Train an inverse dynamics model, have it read the actions of the m recordings off, and compare with the truth.

    Leaves ``idm``, ``guessed`` (the m recordings with guesses and without the truth) and ``row.json`` in
    ``<out>/readers/<reader>``.
    """
    folder = Path(out)
    place = folder / "readers" / reader.name
    _begin(reader.seed)
    row = dataclasses.asdict(reader) | {"name": reader.name}
    if not (place / "idm" / "config.json").exists():
        model = InverseDynamics(
            partial(MotionEncoder, frame_size=plan.frame_size, channels=list(plan.channels), blocks=1),
            width=plan.width,
            layers=2,
            heads=4,
            window=plan.window,
            optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.01),
            lr_scheduler=WarmupCosine,
        )
        data = _data(folder, _labelled(plan, folder, reader), reader.seed, plan.reader_batch)
        _fit(model, data, plan.reader_steps, plan.validations)
        model.save_pretrained(place / "idm")
    quiet = io.StringIO()  # progress bars and tables; the row says what is compared
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        label(str(place / "idm"), str(_more(folder, reader.seed)), str(place / "both"))
        measures = idm_check(str(place / "both")).measures
    for recording in sorted((place / "both").glob("[!.]*")):
        hide(recording, place / "guessed" / recording.name)
    row |= {name: measures[name] for name in MEASURES if not math.isnan(measures[name])}  # keys may never be pressed
    write_json(place / "row.json", row, indent=1)
    return row


def hide(labelled: Path, target: Path) -> None:
    """Write a recording that holds the guesses and no longer the truth, unless it is there; its videos are linked."""
    if target.exists():
        return
    message = pb.VideoAnnotation.FromString(_annotation(labelled))
    for frame in message.frame_annotations:
        for field in ("user_action", "system_action", "expert_action"):
            frame.ClearField(field)
    with PartialPath(target) as whole:
        whole.path.mkdir()
        for video in labelled.glob("*.mp4"):
            link(video, whole.path / video.name)
        (whole.path / ANNOTATION_FILE).write_bytes(message.SerializeToString())


def run_trial(trial: Trial, plan: Plan, out: str) -> dict[str, Any]:
    """Train a policy, measure it and let it play; it goes to ``<out>/policies/<trial>``, with its ``row.json``."""
    folder = Path(out)
    _begin(trial.seed)
    roots = _labelled(plan, folder, trial)
    if trial.way == "guessed":
        roots.append(str(folder / "readers" / Reader(trial.few, trial.seed).name / "guessed"))
    elif trial.way == "true":
        roots.append(str(_more(folder, trial.seed)))
    policy = CNNPolicy(
        partial(ConvNeXtEncoder, frame_size=plan.frame_size, channels=list(plan.channels), blocks=1, embedding=256),
        width=plan.width,
        layers=2,
        heads=4,
        window=plan.window,
        fps=20.0,
        optimizer=partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
        lr_scheduler=WarmupCosine,
    )
    data = _data(folder, roots, trial.seed, plan.batch, pseudo=trial.way == "guessed")
    best = _fit(policy, data, plan.steps, plan.validations)
    place = folder / "policies" / trial.name
    policy.save_pretrained(place)
    game = make_game(plan.env)
    played = play(game, PolicyPlayer(policy), plan.games, PLAY_SEED, plan.games, progress=False)
    row = dataclasses.asdict(trial) | {"name": trial.name, "recordings": trial.few + plan.more * (trial.way == "true")}
    row |= {"loss": best.loss, "best_step": best.step, "return": played.mean, "returns": played.returns}
    write_json(place / "row.json", row, indent=1)
    return row


def _data(folder: Path, roots: list[str], seed: int, batch: int, pseudo: bool = False) -> RecordingDataModule:
    test = str(folder / "data" / "test")
    return RecordingDataModule(roots, batch_size=batch, val_root=test, seed=seed, pseudo=pseudo)


class _Best(L.Callback):
    """Remembers the weights of the validation with the lowest loss, and that loss."""

    def __init__(self) -> None:
        self.loss, self.step = float("inf"), 0
        self.weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (loss := float(trainer.callback_metrics["val/loss"])) < self.loss:
            self.loss, self.step = loss, trainer.global_step
            self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def _begin(seed: int) -> None:
    """Train in one thread, without a word, from the seed's weights."""
    torch.set_num_threads(1)
    for message in (".*num_workers.*", ".*LeafSpec.*", ".*ModelCheckpoint.*"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(seed, verbose=False)


def _fit(model: Model, data: RecordingDataModule, steps: int, validations: int) -> _Best:
    """Train a model, which ends with the weights of its best validation."""
    best = _Best()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=steps // validations,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the summary of the data
        trainer.fit(model, data)
    model.load_state_dict(best.weights)
    model.eval()
    return best
