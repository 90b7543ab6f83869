"""``bczoo validate|test|predict POLICY``: the trainer commands for a policy that is there, instead of a configuration.

Place in the pipeline: the command line comes here where the first argument is no option. A checkpoint in the folder
of a run is evaluated with the run's own ``config.yaml``; an exported folder, or a checkpoint alone, becomes a
configuration that is made here, of what it was built from and of what is known of its recordings. From there on it is
the same command as with ``--config``: the same metrics, the same files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Checkpoint

from bczoo.cli.trainer import TrainerCLI, run_trainer
from bczoo.core.errors import UserError
from bczoo.data.index import as_roots
from bczoo.hub.source import Source, locate
from bczoo.models.policy import Policy
from bczoo.nn.text import where_untold
from bczoo.train.callbacks.run_record import RunRecord

CONFIG = "config.yaml"  # of a run


def run_evaluation(argv: Sequence[str]) -> int:
    """Run ``validate``, ``test`` or ``predict`` of a policy; returns the exit status.

    Args:
        argv: the command, the policy, and options of the trainer commands; ``--data FOLDER`` names the recordings,
            ``--revision`` a branch, tag or commit on the Hub.
    """
    command, policy, *rest = argv
    rest, given = _taken(rest, "--data", "--revision")
    found = locate(policy, given.get("--revision"))
    folder = given.get("--data")
    if (config := _config_of_run(found)) is not None:
        own = yaml.safe_load(config.read_text(encoding="utf-8"))
        root = (own.get("data", {}).get("init_args") or {}).get("root")
        options = ["--config", str(config), "--trainer.default_root_dir", str(found.path.parent.parent)]
        options += ["--ckpt_path", str(found.path), *_recordings(folder, root, command)]
        return run_trainer([command, *options, *rest])
    with _made_config(found, folder, command) as config:
        options = ["--config", str(config), "--ckpt_path", "null"]
        options += ["--trainer.default_root_dir", f"runs/{command}-{_name(policy)}"]
        PolicyCLI.source = found
        options += _recordings(folder, found.record.get("data", {}).get("root"), command)
        return run_trainer([command, *options, *rest], PolicyCLI)


class PolicyCLI(TrainerCLI):
    """The trainer commands with the weights of a policy; there is no run that its numbers would belong to."""

    source: ClassVar[Source]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:  # other processes are started by a command line, which names no policy
            raise UserError("an exported policy is evaluated on one device; leave out --trainer.devices")
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, RunRecord | Checkpoint)]
        return trainer

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.model.load_state_dict(self.source.float_weights(), assign=True)
        if isinstance(self.model, Policy) and (text := self.source.record.get("instruction")):
            _follow(self.model, text)


def _follow(policy: Policy, text: str) -> None:
    """Have a policy see the instruction that it was fine-tuned under at steps that carry none, as in its training."""
    if policy.why_no_text is not None:
        raise UserError(f"the policy was fine-tuned under the instruction {text!r}, but {policy.why_no_text}")
    print(f"instruction: {text}")
    embedded, recorded = policy.embed(text), policy.instructions

    def instructions(batch: Any) -> torch.Tensor:
        shape = (*batch["valid"].shape, len(embedded))
        known = recorded(batch)
        return where_untold(batch["valid"].new_zeros(shape, dtype=torch.float32) if known is None else known, embedded)

    object.__setattr__(policy, "instructions", instructions)


def _config_of_run(found: Source) -> Path | None:
    """The configuration that a checkpoint's run was started with; None if it lies in none."""
    if found.exported:
        return None
    run = found.path.parent.parent
    older = sorted(run.glob(f"lightning_logs/version_*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    return next((path for path in (run / CONFIG, *reversed(older)) if path.is_file()), None)


@contextmanager
def _made_config(found: Source, folder: str | None, command: str) -> Iterator[Path]:
    """A configuration of a policy's own specification and of what is known of its recordings."""
    data = found.record.get("data", {})
    if folder is None and "root" not in data:
        raise UserError(f"{command} of which recordings? Those of the training are not known; give --data FOLDER")
    arguments = {"root": folder or data["root"], "batch_size": data.get("batch_size", 8)}
    trained_in = found.record.get("training", {}).get("precision", "32-true")  # or the numbers would be others
    content = {
        "trainer": {"devices": 1, "precision": trained_in},
        "model": dict(found.spec),
        "data": {"class_path": "bczoo.RecordingDataModule", "init_args": arguments},
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "policy.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        yield path


def _recordings(folder: str | None, trained_on: Any, command: str) -> list[str]:
    """Options for the recordings: the held-out ones of a training's own folder, all of another one."""
    if folder is None or folder.startswith("bczoo."):
        return [] if folder is None else ["--data", folder]
    none_recorded = ["--data.source", "null", "--data.val_source", "null"]
    own = [Path(path).resolve() for path in as_roots(trained_on or [])]
    if [Path(folder).resolve()] == own:
        print(f"{command}: the recordings of {folder} that were held out in training")
        return none_recorded
    print(f"{command}: all recordings of {folder}")
    return ["--data.root", folder, "--data.val_root", folder, "--data.test_root", folder, *none_recorded]


def _name(policy: str) -> str:
    return Path(policy).resolve().name.removesuffix(".ckpt")


def _taken(words: Sequence[str], *options: str) -> tuple[list[str], Mapping[str, str]]:
    """Words without some options, and the values of these."""
    rest, values, waiting = [], {}, iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option not in options:
            rest.append(word)
        elif equals or ((value := next(waiting, "")) and not value.startswith("--")):
            values[option] = value
        else:
            raise UserError(f"{option} needs a value behind it")
    return rest, values
