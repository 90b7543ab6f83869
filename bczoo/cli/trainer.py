"""fit, validate, test and predict: LightningCLI with what it lacks.

Place in the pipeline: assembles policy, data and trainer from YAML and the command line. Beyond LightningCLI:
``--config`` takes names of shipped configurations, ``ckpt_path: last`` resumes an interrupted run and nothing else,
hyperparameters in a checkpoint never override the command line, missing data is reported before a large model is built,
a run folder is claimed before anything is read from it, and what an interrupted run still owes is made up for.
"""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import bczoo
from bczoo.cli.parser import SuggestingParser
from bczoo.cli.quiet import quieten
from bczoo.core.configs import with_config_paths
from bczoo.core.errors import UserError, behind
from bczoo.core.files import write_text
from bczoo.hub.finite import check_finite
from bczoo.hub.state import load_tensors
from bczoo.models.model import TRAINING_SETTINGS
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.display import in_place_of_lightnings
from bczoo.train.callbacks.finite import FiniteCheck
from bczoo.train.callbacks.predictions import WritePredictions
from bczoo.train.callbacks.run_record import RunRecord
from bczoo.train.run_record import LAST


class TrainerParser(SuggestingParser, LightningArgumentParser):
    """Parser of the trainer commands."""


class TrainerCLI(LightningCLI):
    """Lightning's command line for bczoo."""

    def _parse_ckpt_path(self) -> None:
        """Do nothing: what was saved in a checkpoint must not override the configuration.

        Lightning merges the checkpoint's hyperparameters over the command line here (its issues 21262, 21246).
        """

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        data = config.get("data")
        if data is not None and data["class_path"].endswith("RecordingDataModule"):
            from bczoo.data.index import require_recordings

            arguments = data["init_args"]
            if arguments.get("source") is None:
                require_recordings(arguments["root"])
        encoder = (config.model.get("init_args") or {}).get("encoder") if self._from_checkpoint(config) else None
        if isinstance(encoder, Namespace) and "pretrained" in encoder.get("init_args", {}):
            encoder.init_args.pretrained = False  # ImageNet weights would be overwritten; do not download them

    def _from_checkpoint(self, config: Any) -> bool:
        """Whether the weights will come from a checkpoint."""
        if config.get("ckpt_path") != "last" or self.subcommand != "fit":
            return bool(config.get("ckpt_path"))
        for callback in config.trainer.callbacks or []:
            if callback.class_path == "bczoo.ResumableCheckpoint":
                keeper = ResumableCheckpoint(callback.init_args.dirpath)
                keeper.locate(config.trainer.default_root_dir or ".")
                return keeper.to_resume() is not None
        return False

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Lightning's trainer, with the plain progress bar of all long stages, and predictions written to a file."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if behind(error, UserError):
                raise
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        trainer.loggers = [PatientCSVLogger.of(g) if type(g) is CSVLogger else g for g in trainer.loggers]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = in_place_of_lightnings(callbacks)
        if self.subcommand == "predict" and not any(isinstance(c, BasePredictionWriter) for c in callbacks):
            callbacks.append(WritePredictions(str(Path(trainer.default_root_dir) / "predictions.safetensors")))
        for kind in (FiniteCheck, RunRecord):
            if not any(isinstance(c, kind) for c in callbacks):
                callbacks.append(kind())
        callbacks.sort(key=lambda c: isinstance(c, Checkpoint))  # they come last: they keep what the others have done
        return trainer

    def fit(self, model: L.LightningModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, behind the validation that the run to be resumed had not come to after its last step."""
        record = next(c for c in self.trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
        if ckpt_path and Path(ckpt_path).is_file() and record.owes_validation(self.trainer, load_tensors(ckpt_path)):
            print("the validation after the last step is made up for")
            self.trainer.validate(model, ckpt_path=ckpt_path, **kwargs)
        self.trainer.fit(model, ckpt_path=ckpt_path, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict" and kwargs.get("return_predictions") is None:
            kwargs["return_predictions"] = False  # they are written as they come; nobody reads them here
        if subcommand == "fit" and self._keeper is not None:
            self._keeper.claim(self.trainer)  # before it is read what there is to resume
        if kwargs.get("ckpt_path") == "last":
            kwargs["ckpt_path"] = self._last(resume=subcommand == "fit")
        elif kwargs.get("ckpt_path") and Path(kwargs["ckpt_path"]).is_dir():
            raise UserError(_no_file(Path(kwargs["ckpt_path"])))
        elif kwargs.get("ckpt_path") and not _is_checkpoint(kwargs["ckpt_path"]):
            raise UserError(f"there is no checkpoint {kwargs['ckpt_path']!r}")
        if kwargs.get("ckpt_path") and Path(kwargs["ckpt_path"]).is_file():
            self._check_same_policy(Path(kwargs["ckpt_path"]))
        return kwargs

    @property
    def _keeper(self) -> ResumableCheckpoint | None:
        return next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)), None)

    def _last(self, resume: bool) -> str | None:
        """Where ``ckpt_path: last`` leads; None to start anew."""
        keeper = self._keeper
        if keeper is None:
            raise UserError(
                "ckpt_path: last needs a bczoo.ResumableCheckpoint among trainer.callbacks (a list of callbacks in a "
                "second --config takes the place of the first one's); add it there, or give --ckpt_path a path or null"
            )
        keeper.locate(self.trainer.default_root_dir)
        if resume:
            path = keeper.to_resume()
            if keeper.finished:
                print(f"the run in {keeper.dirpath} has finished; a new one starts and keeps its checkpoint")
            if path is not None:
                print(f"resuming the interrupted run from {path} (--ckpt_path null starts anew)")
            return str(path) if path else None
        if not keeper.path.is_file():
            raise UserError(f"there is no checkpoint in {keeper.dirpath}; train first, or give --ckpt_path FILE")
        return str(keeper.path)

    def _check_same_policy(self, path: Path) -> None:
        """Raise if a checkpoint's weights are not those of the policy that is configured, or were trained otherwise."""
        saved = load_tensors(path)
        check_finite(saved["state_dict"], path)
        theirs = {k: v.shape for k, v in saved["state_dict"].items()}
        before, now = saved.get(TRAINING_SETTINGS, {}), getattr(self.model, "training_settings", {})
        same_weights = theirs == {k: v.shape for k, v in self.model.state_dict().items()}
        same_function = same_weights and before.get("lora") == now.get("lora")
        if same_function and (before == now or self.subcommand != "fit"):
            return
        before = _flat(saved.get("hyper_parameters", {}) | before)
        now = _flat(getattr(self.model, "config", {}) | now)
        changed = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted(before | now) if before.get(k) != now.get(k)]
        raise UserError(
            f"{path} holds another policy than the one configured ({'; '.join(changed[:5])}); give the same options, "
            "another --ckpt_path or --trainer.default_root_dir, or --ckpt_path null to start anew and keep the old one"
        )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(config, dict):
        return {prefix.strip("."): config}
    return {k: v for name, part in config.items() for k, v in _flat(part, f"{prefix}.{name}").items()}


def _no_file(folder: Path) -> str:
    """What to say to a folder where a checkpoint file is asked for."""
    inside = [path for path in (folder / LAST, folder / "checkpoints" / LAST) if path.is_file()]
    instead = f"name the file, --ckpt_path {inside[0]}" if inside else "give it a .ckpt file, or last"
    return f"--ckpt_path {folder} is a folder; {instead}"


def _is_checkpoint(path: str) -> bool:
    """A file, an address, or one of Lightning's own words."""
    return Path(path).exists() or "://" in path or path in ("best", "hpc") or path.startswith("registry")


class PatientCSVLogger(CSVLogger):
    """Lightning's default logger, for which a full disk is no reason to end a training: it tries again later."""

    @classmethod
    def of(cls, logger: CSVLogger) -> PatientCSVLogger:
        return cls(
            logger.save_dir,
            logger.name,
            logger.version,
            prefix=logger._prefix,
            flush_logs_every_n_steps=logger._flush_logs_every_n_steps,
        )

    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            warnings.warn(f"metrics could not be written to {self.log_dir}: {error}", stacklevel=2)


class SaveConfig(SaveConfigCallback):
    """Keeps ``config.yaml`` beside the logs, whole or not at all."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # all processes ask for it, it is broadcast
        if folder is None or "://" in folder:
            super().setup(trainer, pl_module, stage)
        elif trainer.is_global_zero and not self.already_saved:
            write_text(Path(folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))
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
