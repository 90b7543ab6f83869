"""What has to stay the same when a training is resumed: its data and its optimiser.

Place in the pipeline: ``bczoo fit`` keeps :func:`settings_of` in every checkpoint
(:class:`bczoo.train.callbacks.run_record.RunRecord`) and compares it with what is configured before it resumes. The
policy itself is compared by its weights (:mod:`bczoo.cli.trainer`). The number of steps may change: that extends a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError

WITHOUT_EFFECT = {"num_workers", "strict", "pin_memory", "test_root"}  # arguments of the data, on what is learned
FOLDERS = {"root", "val_root"}
OF_OPTIMIZER = ("optimizer", "lr_scheduler")
SHOWN = 5  # changes that an error names


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration has to stay, as plain JSON by dotted name.

    Args:
        config: of ``bczoo fit``, as plain values.
    """
    data = dict(config.get("data") or {})
    data["init_args"] = {k: v for k, v in (data.get("init_args") or {}).items() if k not in WITHOUT_EFFECT}
    model = (config.get("model") or {}).get("init_args") or {}
    kept = {"data": _without_classes(data), **{f"model.{k}": _without_classes(model.get(k)) for k in OF_OPTIMIZER}}
    plain: dict[str, Any] = json.loads(json.dumps(flat(kept), default=str))
    return plain | {"seed_everything": config.get("seed_everything")}


def check_resumable(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], other_data: bool) -> bool:
    """Raise if a run would go on with other data or another optimiser than it had; returns whether the data is other.

    Args:
        path: the checkpoint.
        before: settings that it was written with; empty if they are not known.
        now: settings of this command.
        other_data: whether other data is meant.
    """
    if not before:
        return False
    names = sorted({*before, *now})
    changed = {k: f"{k}: {before.get(k)} -> {now.get(k)}" for k in names if _differ(k, before, now)}
    seed = changed.pop("seed_everything", None)
    data = [text for name, text in changed.items() if name.startswith("data.")]
    optimizer = [text for name, text in changed.items() if name.startswith("model.")]
    anew = "another --trainer.default_root_dir, or --ckpt_path null to start anew and keep the old one"
    if optimizer:
        raise UserError(
            f"{path} keeps the state of another optimiser than the one configured ({_some(optimizer)}), and a resumed "
            f"run goes on with its own; give the same options, {anew}"
        )
    if data and not other_data:
        raise UserError(
            f"{path} was trained on other data than what is given now ({_some(data)}); give the same options, "
            f"--resume_on_other_data true if that is meant, {anew}"
        )
    if data:
        print(f"the resumed run goes on with other data: {_some(data)}")
    if seed:
        print(f"{seed} changes nothing in a resumed run, which goes on with the random numbers that it had")
    return bool(data)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(config, Mapping):
        return {prefix.strip("."): config}
    return {k: v for name, part in config.items() for k, v in flat(part, f"{prefix}.{name}").items()}


def _differ(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    one, other = before.get(name), now.get(name)
    if one == other:
        return False
    if name.rpartition(".")[2] in FOLDERS and one is not None and other is not None:
        return _resolved(one) != _resolved(other)
    return True


def _resolved(folders: Any) -> list[Path]:
    return [Path(str(folder)).resolve() for folder in (folders if isinstance(folders, list) else [folders])]


def _without_classes(value: Any) -> Any:
    """Arguments of a class in the place of its ``init_args``, so that names are those of the command line."""
    if isinstance(value, Mapping):
        arguments = value.get("init_args")
        rest = {name: part for name, part in value.items() if name != "init_args"}
        merged = {**rest, **(arguments if isinstance(arguments, Mapping) else {})}
        return {name: _without_classes(part) for name, part in merged.items()}
    if isinstance(value, list):
        return [_without_classes(part) for part in value]
    return value


def _some(changes: list[str]) -> str:
    return "; ".join(changes[:SHOWN]) + ("; ..." if len(changes) > SHOWN else "")
