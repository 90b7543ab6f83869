"""What Lightning and torch say of themselves and not of the user's training is not shown.

Place in the pipeline: the trainer commands call :func:`quieten` first. Errors stay, and so do warnings that tell a user
something; whatever is left out here is said elsewhere in better words, or is no news.
"""

from __future__ import annotations

import logging
import os
import warnings

IRRELEVANT = {
    r".*LeafSpec.*": "Lightning uses a name that torch has deprecated",
    r"Starting from v1\.9\.0, `tensorboardX`": "which loggers Lightning would take; bczoo writes metrics.csv",
    r"Found \d+ module\(s\) in eval mode": "frozen parts are meant to be; the model's line names them",
    r"The number of training batches \(\d+\) is smaller than the logging interval": "steps are counted over epochs",
    r"Couldn't infer the batch indices": "predictions carry recording and start themselves",
    r"This DataLoader will create \d+ worker processes": "a shipped configuration on a machine with fewer cores",
    r"FSDP2-wrapped module \(.*\) returned a view tensor": "nothing is added in place to what a model returns",
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated": "Lightning calls it by that name",
}  # what a warning begins with, and why nobody needs it


def quieten() -> None:
    """Leave out notices (adverts for other products, devices that are not there) and the warnings above."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # notices are INFO; what went wrong is not
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)
