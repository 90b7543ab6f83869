"""What a policy is shown instead: the perturbations of the causality score.

Place in the pipeline: a batch of frames and their image tokens in, image tokens of the replacements out, and where
they really differ. In evaluation mode an image token depends on its own frame alone, so ``swap`` and ``freeze`` take
tokens that are already there (the donors' and the window's own) and cost no encoder pass.

Shape legend: B batch, T steps, H = W frame size, I image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bczoo.causality.donors import Donors
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch, pictures
from bczoo.models.policy import Policy

KINDS = ("swap", "freeze", "blank", "noise", "counterfactual")
FREEZE_STEPS = 10  # half a second


@dataclass(frozen=True)
class Replacement:
    """Image tokens that take the place of the recorded ones.

    Args:
        encoded: (B, T, I, D).
        where: (B, T) bool, steps that have a replacement at all.
    """

    encoded: Tensor
    where: Tensor


# (policy, batch, image tokens (B, T, I, D), windows to swap with)
Perturbation = Callable[[Policy, Batch, Tensor, Donors], Replacement]


def swap(policy: Policy, batch: Batch, encoded: Tensor, donors: Donors) -> Replacement:
    """The frames of another window, of another recording where there is one."""
    return Replacement(*donors.encoded_for(batch))


def freeze(policy: Policy, batch: Batch, encoded: Tensor, donors: Donors, steps: int = FREEZE_STEPS) -> Replacement:
    """The frame of ``steps`` steps ago, of half a window ago at most; the first steps of a window have none."""
    steps = longest_freeze(steps, encoded.shape[1])
    kept = encoded.shape[1] - steps
    where = torch.zeros_like(batch["valid"])
    if steps:
        where[:, steps:] = batch["valid"][:, steps:] & batch["valid"][:, :kept]
    return Replacement(torch.cat([encoded[:, :steps], encoded[:, :kept]], dim=1), where)


def longest_freeze(steps: int, window: int) -> int:
    """How many steps ``freeze`` goes back in a window of this many steps."""
    return min(steps, window // 2)


def blank(policy: Policy, batch: Batch, encoded: Tensor, donors: Donors) -> Replacement:
    """The clip's mean colour."""
    frames = pictures(batch)
    colour = frames.float().mean(dim=(1, 3, 4)).round().to(torch.uint8)  # (B, 3)
    flat = colour[:, None, :, None, None].expand(-1, 1, -1, *frames.shape[-2:]).contiguous()
    return Replacement(policy.encode(flat).expand_as(encoded), batch["valid"])


def noise(policy: Policy, batch: Batch, encoded: Tensor, donors: Donors) -> Replacement:
    """Independent random pixels, the same for the same clip whatever batch it comes in."""
    frames = torch.stack([_random_frames(batch, i) for i in range(len(encoded))])
    return Replacement(policy.encode(frames), batch["valid"])


def _random_frames(batch: Batch, row: int) -> Tensor:
    seed = int(batch["recording"][row]) * 1_000_003 + int(batch["start"][row])
    generator = torch.Generator().manual_seed(seed & 0xFFFFFFFF)
    frames = pictures(batch)[row]
    return torch.randint(0, 256, frames.shape, dtype=torch.uint8, generator=generator).to(frames.device)


def checked_kinds(kinds: Sequence[str], counterfactual: str | None, replaced: int, freeze_steps: int) -> list[str]:
    """Names of perturbations, with ``counterfactual`` where a folder of such frames is given.

    Raises:
        UserError: for what cannot be done, before anything is loaded.
    """
    out = list(kinds)
    if counterfactual is not None and "counterfactual" not in out:
        out.append("counterfactual")
    perturbations(out, freeze_steps, swap if counterfactual is not None else None)
    if replaced < 1 or freeze_steps < 1:
        raise UserError(f"replaced and freeze_steps are numbers of steps from 1 on, got {replaced}, {freeze_steps}")
    return out


def perturbations(
    kinds: Sequence[str], freeze_steps: int = FREEZE_STEPS, counterfactual: Perturbation | None = None
) -> dict[str, Perturbation]:
    """The perturbations of these names.

    Args:
        kinds: of :data:`KINDS`.
        freeze_steps: how many steps ago ``freeze`` shows the frame of; half a window at most.
        counterfactual: what ``counterfactual`` shows, a :class:`bczoo.causality.counterfactual.Counterfactuals`.

    Raises:
        UserError: an unknown name.
    """
    known: dict[str, Perturbation | None] = {
        "swap": swap,
        "freeze": partial(freeze, steps=freeze_steps),
        "blank": blank,
        "noise": noise,
        "counterfactual": counterfactual,
    }
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"there is no perturbation {unknown[0]!r}; choose of {', '.join(KINDS)}")
    chosen = {kind: known[kind] for kind in kinds}
    if chosen.get("counterfactual", swap) is None:
        raise UserError("the perturbation counterfactual needs the folder of your frames")
    return chosen  # type: ignore[return-value]
