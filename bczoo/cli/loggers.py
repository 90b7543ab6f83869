"""Loggers by one word: ``bczoo fit --logger wandb``.

Place in the pipeline: the trainer's command line. ``metrics.csv`` (:mod:`bczoo.train.metrics_file`) and files for
TensorBoard (:mod:`bczoo.train.events_file`) are written in any case; what is named here comes on top, and so does
``trainer.logger`` of a YAML file.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError

PROJECT = "bczoo"  # what runs are grouped under, where a logger groups them

# word -> (Lightning's class, modules one of which it needs, what to install)
LOGGERS = {
    "wandb": ("WandbLogger", ("wandb",), "wandb"),
    "mlflow": ("MLFlowLogger", ("mlflow", "mlflow_skinny"), "mlflow"),
    "comet": ("CometLogger", ("comet_ml",), "comet-ml"),
}
ALWAYS = ("csv", "tensorboard")  # are written without being asked for
GONE = {"neptune": "Neptune has shut down, and Lightning has no logger for it any more"}


def check_loggers(words: str | None) -> list[str]:
    """The loggers of ``--logger a,b``; raises for unknown ones and for those whose package is missing."""
    named = [word for word in (words or "").replace(" ", "").split(",") if word not in ("", *ALWAYS)]
    for word in named:
        if word in GONE:
            raise UserError(f"--logger {word}: {GONE[word]}; there are {', '.join(LOGGERS)}")
        if word not in LOGGERS:
            close = difflib.get_close_matches(word, LOGGERS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"there is no logger {word!r}{hint} --logger takes {', '.join(LOGGERS)}")
        _, modules, package = LOGGERS[word]
        if not any(map(find_spec, modules)):
            raise UserError(
                f"--logger {word} needs the package {package}: pip install {package} (metrics.csv needs none)"
            )
    return list(dict.fromkeys(named))


def make_loggers(words: list[str], run: Path) -> list[Any]:
    """Lightning's loggers.

    Args:
        words: as :func:`check_loggers` gives them.
        run: folder of the run; what loggers write on this machine goes there.
    """
    where = str(run)
    arguments: dict[str, dict[str, Any]] = {
        "wandb": {"project": PROJECT, "name": run.name, "save_dir": where},
        "mlflow": {"experiment_name": PROJECT, "run_name": run.name, "save_dir": str(run / "mlruns")},
        "comet": {"project": PROJECT},
    }
    made = []
    for word in words:
        kind = getattr(import_module("lightning.pytorch.loggers"), LOGGERS[word][0])
        try:
            made.append(kind(**arguments[word]))
        except ImportError as error:
            raise UserError(f"--logger {word}: {error}") from error
    return made
