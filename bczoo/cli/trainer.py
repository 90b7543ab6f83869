"""fit, validate, test and predict: LightningCLI with what it lacks.

Place in the pipeline: assembles policy, data and trainer from YAML and the command line. Beyond LightningCLI:
``--config`` takes names of shipped configurations, ``ckpt_path: last`` resumes an interrupted run and nothing else,
hyperparameters in a checkpoint never override the command line, missing data is reported before a large model is built,
a run folder is claimed before anything is read from it, what an interrupted run still owes is made up for, and every
run has the callbacks and the logger that its folder lives from, whatever a configuration lists.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import bczoo
from bczoo.cli import retarget
from bczoo.cli.evaluation import evaluation_table
from bczoo.cli.loggers import check_loggers, make_loggers
from bczoo.cli.parser import SuggestingParser
from bczoo.cli.quiet import quieten
from bczoo.cli.resume import check_resumable, flat, settings_of
from bczoo.core.configs import with_config_paths
from bczoo.core.devices import training_precision
from bczoo.core.errors import UserError, behind
from bczoo.core.files import set_aside, write_text
from bczoo.hub.finite import check_finite
from bczoo.hub.state import RUN_STATE, is_checkpoint, kept_by, load_tensors
from bczoo.models.model import TRAINING_SETTINGS
from bczoo.train.callbacks.best import OF_TRAINING
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.display import in_place_of_lightnings
from bczoo.train.callbacks.final_validation import ValidateAtEnd
from bczoo.train.callbacks.finite import FiniteCheck
from bczoo.train.callbacks.learning_rate import LogLearningRate
from bczoo.train.callbacks.play import PlayGame
from bczoo.train.callbacks.predictions import WritePredictions
from bczoo.train.callbacks.ranks import Ranks
from bczoo.train.callbacks.run_record import RunRecord
from bczoo.train.callbacks.scaling import ScalingLog
from bczoo.train.callbacks.throughput import Throughput
from bczoo.train.events_file import EventsFile, can_write_events
from bczoo.train.metrics_file import MetricsFile
from bczoo.train.run_record import LAST
from bczoo.train.sharded import Sharded as Sharded  # so that --trainer.strategy knows its name


class TrainerParser(SuggestingParser, LightningArgumentParser):
    """Parser of the trainer commands."""


class TrainerCLI(LightningCLI):
    """Lightning's command line for bczoo."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        options: list[tuple[str, Any, Any, str]] = [
            (
                "--logger",
                str | None,
                None,
                "loggers beside metrics.csv and TensorBoard's files, with commas: wandb, mlflow, comet",
            ),
            ("--env", str | None, None, retarget.HELP),
            ("--play", bool, True, "play the closing games that the configuration names (bczoo.PlayGame)"),
            ("--resume_on_other_data", bool, False, "let an interrupted run go on although its data has changed"),
        ]
        for name, kind, default, text in options:
            parser.add_argument(name, type=kind, default=default, help=text)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what was saved in a checkpoint must not override the configuration.

        Lightning merges the checkpoint's hyperparameters over the command line here (its issues 21262, 21246).
        """

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self._resumed = self._to_resume(config)
        check_loggers(config.logger)
        retarget.retarget(config, sys.argv[1:])
        data = config.get("data")
        if data is not None and data["class_path"].endswith("RecordingDataModule"):
            from bczoo.data.index import require_recordings

            arguments = data["init_args"]
            if arguments.get("source") is None:
                require_recordings(arguments["root"])
        encoder = (config.model.get("init_args") or {}).get("encoder") if self._resumed else None
        if isinstance(encoder, Namespace) and "pretrained" in encoder.get("init_args", {}):
            encoder.init_args.pretrained = False  # ImageNet weights would be overwritten; do not download them

    def _to_resume(self, config: Any) -> str | Path | None:
        """The checkpoint that the weights will come from; None if they will come from none."""
        if config.get("ckpt_path") != "last" or self.subcommand != "fit":
            named: str | None = config.get("ckpt_path") or None
            return named
        kept = [c for c in config.trainer.callbacks or [] if c.class_path == "bczoo.ResumableCheckpoint"]
        keeper = ResumableCheckpoint(kept[0].init_args.dirpath if kept else None)
        keeper.locate(config.trainer.default_root_dir or ".")
        return keeper.to_resume()

    def _choose_precision(self, given: Any) -> None:
        """Take the numbers that suit the device where neither a configuration nor the command line names any."""
        if given.precision is not None:
            return
        alone = given.devices in (None, "auto", 1, "1") and int(os.environ.get("WORLD_SIZE", 1)) == 1
        before = kept_by(self._resumed, RUN_STATE).get("precision") if self._resumed else None
        given.precision, why = training_precision(given.accelerator, 1 if alone else 2, before)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"precision {given.precision}: {why} (--trainer.precision takes another)")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Lightning's trainer with what belongs to every run, and the plain progress bar of all long stages."""
        given = self._get(self.config_init, "trainer")
        self._choose_precision(given)
        run, fitting = Path(given.default_root_dir or "."), self.subcommand == "fit"
        self._metrics = MetricsFile(run)
        loggers: list[Any] = [self._metrics] if fitting else []
        loggers += [EventsFile(self._metrics)] if fitting and can_write_events() else []
        loggers += make_loggers(check_loggers(self._get(self.config, "logger")), run) + _listed(given.logger)
        callbacks = _listed(given.callbacks)
        if fitting and not self._get(self.config, "play"):
            callbacks = [c for c in callbacks if not isinstance(c, PlayGame)]
        if fitting:  # before RunRecord, which notes whether a validation follows
            callbacks = _lacking([ValidateAtEnd, LogLearningRate, Throughput, ScalingLog], callbacks) + callbacks
        keepers = [ResumableCheckpoint] if given.enable_checkpointing is not False else []
        callbacks += _lacking([FiniteCheck, RunRecord, *keepers], callbacks)  # behind the games, which are recorded
        callbacks.insert(0, Ranks())  # it hears of an error first
        if self.subcommand == "predict" and not any(isinstance(c, BasePredictionWriter) for c in callbacks):
            callbacks.append(WritePredictions(str(run / "predictions.safetensors")))
        try:
            trainer = super().instantiate_trainer(logger=loggers or False, callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if behind(error, UserError):
                raise
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        self._metrics.trainer = trainer
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = in_place_of_lightnings(callbacks)
        callbacks.sort(key=lambda c: isinstance(c, Checkpoint))  # they come last: they keep what the others have done
        self._dump_config()
        self._record: RunRecord = next(c for c in callbacks if isinstance(c, RunRecord))
        self._record.settings = settings_of(self.config_dump)
        return trainer

    def validate(self, **kwargs: Any) -> None:
        """Lightning's, with a table that explains what it could not measure."""
        self._evaluate(self.trainer.validate, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """The same on the test recordings."""
        self._evaluate(self.trainer.test, **kwargs)

    def _evaluate(self, evaluate: Callable[..., Any], verbose: bool = True, **kwargs: Any) -> None:
        logged = evaluate(verbose=False, **kwargs)
        metrics = {name: value for part in logged for name, value in part.items()}
        if verbose and self.trainer.is_global_zero and metrics:
            print(f"\n{evaluation_table(metrics)}")

    def fit(self, model: L.LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, behind a validation that the run to be resumed had not come to after its last step."""
        if ckpt_path and is_checkpoint(ckpt_path):
            self._make_up_for(model, Path(ckpt_path), **kwargs)
        self.trainer.fit(model, ckpt_path=ckpt_path, **kwargs)

    def _make_up_for(self, model: L.LightningModule, path: Path, **kwargs: Any) -> None:
        saved, keeper = load_tensors(path), self._keeper
        owes = self._record.owes_validation(self.trainer, saved)
        if keeper is not None and path == keeper.path:
            again = [name for name, due in (("val/", owes), ("play/", not keeper.finished)) if due]
            self._metrics.go_on_from(saved["global_step"], tuple(again))
        if owes:
            print(f"the validation after step {saved['global_step']} is made up for")
            self._metrics.evaluated_step = saved["global_step"]
            self.trainer.validate(model, ckpt_path=path, verbose=False, **kwargs)
            self._metrics.evaluated_step = None
            if keeper is not None:
                keeper.take_into_account(self.trainer, saved, self._record.measured)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict" and kwargs.get("return_predictions") is None:
            kwargs["return_predictions"] = False  # they are written as they come; nobody reads them here
        if subcommand == "fit" and self._keeper is not None:
            self._keeper.claim(self.trainer)  # before it is read what there is to resume
        if kwargs.get("ckpt_path") in ("last", "best"):
            kwargs["ckpt_path"] = self._kept(kwargs["ckpt_path"])
        elif kwargs.get("ckpt_path") and Path(kwargs["ckpt_path"]).is_dir() and not is_checkpoint(kwargs["ckpt_path"]):
            raise UserError(_no_file(Path(kwargs["ckpt_path"])))
        elif kwargs.get("ckpt_path") and not _is_known(kwargs["ckpt_path"]):
            raise UserError(f"there is no checkpoint {kwargs['ckpt_path']!r}")
        if kwargs.get("ckpt_path") and is_checkpoint(kwargs["ckpt_path"]):
            self._check_same_policy(Path(kwargs["ckpt_path"]))
        return kwargs

    @property
    def _keeper(self) -> ResumableCheckpoint | None:
        return next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)), None)

    def _kept(self, which: str) -> str | None:
        """Where ``ckpt_path: last`` or ``best`` leads; None to start anew."""
        keeper = self._keeper
        if keeper is None:
            raise UserError(f"ckpt_path: {which} needs checkpoints: leave out --trainer.enable_checkpointing false")
        keeper.locate(self.trainer.default_root_dir)
        if self.subcommand != "fit":
            path = keeper.path if which == "last" else keeper.best_path
            if not is_checkpoint(path):
                raise UserError(f"there is no {path.name} in {keeper.dirpath}; train first, or give --ckpt_path FILE")
            best = " (--ckpt_path best takes the best by validation)" if is_checkpoint(keeper.best_path) else ""
            print(f"{self.subcommand} of {path}{best if which == 'last' else ''}")
            return str(path)
        if which == "best":
            raise UserError("training goes on from the last checkpoint of a run; leave out --ckpt_path best")
        path_to_resume = keeper.to_resume()
        if keeper.finished:
            print(
                f"the run in {keeper.dirpath} has finished; a new one starts and keeps its checkpoint (--ckpt_path "
                f"{keeper.path} goes on with it instead, for more --trainer.max_steps)"
            )
        return str(path_to_resume) if path_to_resume else None

    def _say_resumed(self, path: Path, saved: Mapping[str, Any]) -> None:
        """As much as was said when the run was interrupted."""
        step, most = saved["global_step"], self.trainer.max_steps
        of = f" of {most}, {max(most - step, 0)} remain" if most != -1 else f" in epoch {saved.get('epoch', 0) + 1}"
        run = "run" if self._keeper is not None and self._keeper.finished else "interrupted run"
        print(f"resuming the {run} from {path}: step {step}{of} (--ckpt_path null starts anew)")

    def _check_same_policy(self, path: Path) -> None:
        """Raise if a checkpoint's weights are not those of the policy that is configured, or were trained otherwise."""
        saved = load_tensors(path)
        check_finite(saved["state_dict"], path)
        fitting = self.subcommand == "fit"
        theirs = {k: v.shape for k, v in saved["state_dict"].items()}
        before, now = saved.get(TRAINING_SETTINGS, {}), getattr(self.model, "training_settings", {})
        same_weights = theirs == {k: v.shape for k, v in self.model.state_dict().items()}
        same_function = same_weights and before.get("lora") == now.get("lora")
        if not same_function or (before != now and fitting):
            before = flat(saved.get("hyper_parameters", {}) | before)
            now = flat(getattr(self.model, "config", {}) | now)
            names = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
            changed = "; ".join(f"{name}: {before.get(name)} -> {now.get(name)}" for name in names[:5])
            raise UserError(
                f"{path} holds another policy than the one configured ({changed}); give the same options, another "
                "--ckpt_path or --trainer.default_root_dir, or --ckpt_path null to start anew and keep the old one"
            )
        if not fitting:
            return
        if not any(key in saved for key in OF_TRAINING):
            raise UserError(
                f"{path} holds weights and no state of their training, so none goes on from it; last.ckpt has that, "
                "and --config finetune --model.init_from starts another training from these weights"
            )
        kept = saved.get("callbacks", {}).get(RUN_STATE, {}).get("settings", {})
        other = check_resumable(path, kept, self._record.settings, self._get(self.config, "resume_on_other_data"))
        if self._keeper is not None:
            self._keeper.compare_anew = other
        self._say_resumed(path, saved)


def _lacking(kinds: list[type[L.Callback]], callbacks: list[L.Callback]) -> list[L.Callback]:
    """One of every kind that is not among the callbacks."""
    return [kind() for kind in kinds if not any(isinstance(c, kind) for c in callbacks)]


def _listed(value: Any) -> list[Any]:
    """One, several or none, as YAML gives them; Lightning's default loggers are none."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _no_file(folder: Path) -> str:
    """What to say to a folder where a checkpoint file is asked for."""
    inside = [path for path in (folder / LAST, folder / "checkpoints" / LAST) if is_checkpoint(path)]
    instead = f"name the file, --ckpt_path {inside[0]}" if inside else "give it a .ckpt file, or last"
    return f"--ckpt_path {folder} is a folder; {instead}"


def _is_known(path: str) -> bool:
    """What is there, an address, or one of Lightning's own words."""
    return Path(path).exists() or "://" in path or path == "hpc" or path.startswith("registry")


class SaveConfig(SaveConfigCallback):
    """Keeps ``config.yaml`` of a training in the run's folder, whole or not at all."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero or self.already_saved:
            return
        text, path = (
            self.parser.dump(self.config, skip_none=False),
            Path(trainer.default_root_dir) / self.config_filename,
        )
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            set_aside(path)
        write_text(path, text)
        self.already_saved = True


def run_trainer(argv: list[str], cli: type[TrainerCLI] = TrainerCLI) -> int:
    """Run one of the trainer commands; returns the exit status, which is that of a signal after Ctrl-C or SIGTERM."""
    quieten()
    sys.argv[1:] = with_config_paths(argv)  # LightningCLI warns about arguments that it is given in another way
    try:
        cli(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=TrainerParser,
            parser_kwargs={"prog": "bczoo", "version": bczoo.__version__},
        )
    except SIGTERMException as stop:
        return int(stop.code or 128 + signal.SIGTERM)
    except SystemExit as stop:  # Lightning's answer to a Ctrl-C that did not wait is an error
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise
    return 0
