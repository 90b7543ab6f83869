"""Devices by name, as the commands take them.

Place in the pipeline: every command that runs a policy asks here before it loads one.
"""

from __future__ import annotations

import torch

from bczoo.errors import UserError


def usable_device(name: str) -> torch.device:
    """The device of a name, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the device {name!r} cannot be used here; choose cpu, or cuda on a machine with a GPU"
        ) from error
    return device
