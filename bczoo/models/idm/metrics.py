"""How good guessed actions are, by measures that holding keys cannot fool (torchmetrics, reduced over ranks).

Place in the pipeline: :class:`InverseDynamicsMetrics` is fed in validation, and by ``bczoo data idm-check``
with the guesses that recordings hold. Keys are held for many steps, so whoever copies the last state is right nearly
always and says nothing; what counts is when they change::

    event_f1/<group>            presses and releases, matched one to one within 1 step; _f1_0 and _f1_2 within 0 and 2
    event_f1_macro/<group>      the same, a mean over the keys with at least 50 of them
    event_f1_centre, _edge      over all keys, in the middle half of the window and outside of it
    r2/<axis>                   1 - squared error over variance, of the centres of bins
    mae/<axis>, sign/<axis>     mean absolute error in the axis's unit, and share of right signs where it moved
    joint, joint_copy           share of steps whose whole action is right, and for whoever repeats the true one before
    calibration                 expected calibration error of the probability of the whole action, 15 bins
    shift_<s>                   joint against the labels s steps later, -2 to 2, of the steps that have all of them

Shape legend: B windows, T steps, n tokens and V choices of a group, K keys of all groups, G axes, E events.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from bczoo.core.actions import ActionGroup, ActionSpace, BinnedGroup, HeldGroup

TOLERANCES = (0, 1, 2)  # steps
FEWEST = 50  # events of a key that counts in the macro mean
BINS = 15  # of the calibration
SHIFTS = (-2, -1, 0, 1, 2)  # steps
MARGIN = 0.005  # of the joint accuracy, by which another shift has to win before it is told


def confidence(logits: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
    """Probability (B, T) of the most likely whole action: the product over all tokens, which are independent."""
    groups = [(g.float() / temperature).log_softmax(-1).amax(-1).sum(-1) for g in logits.values()]
    return torch.stack(groups).sum(0).exp()


def held(group: ActionGroup, ids: np.ndarray) -> np.ndarray:
    """Which names of a group are held, (B, T, K) bool, from ids (B, T, n)."""
    if not isinstance(group, HeldGroup):
        return ids.astype(bool)
    out = np.zeros((*ids.shape[:-1], group.choices), bool)
    np.put_along_axis(out, ids, True, axis=-1)
    return out[..., 1:]  # id 0 is nothing


def centres(group: BinnedGroup) -> np.ndarray:
    """The number (V,) that each bin stands for."""
    return np.array([sum(group.support(i)) / 2 for i in range(group.choices)])


def events(state: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Presses and releases, (2, B, T, K) bool: steps whose state is not that of the step before, both in the mask.

    Args:
        state: (B, T, K) bool, what is held.
        mask: (B, T) bool.
    """
    changed = np.zeros((2, *state.shape), bool)
    both = (mask[:, 1:] & mask[:, :-1])[..., None]
    changed[0, :, 1:] = state[:, 1:] & ~state[:, :-1] & both
    changed[1, :, 1:] = ~state[:, 1:] & state[:, :-1] & both
    return changed


def matched(true: np.ndarray, guessed: np.ndarray, within: int) -> np.ndarray:
    """Which true events have a guess of their own at most ``within`` steps away, like ``true``.

    Each guess serves one event. Both are taken in the order of time, which leaves no better pairing.

    Args:
        true: (2, B, T, K) bool, from :func:`events`.
        guessed: the same.
        within: steps.
    """
    out = np.zeros_like(true)
    flat = np.moveaxis(out, 2, -1)  # time last, so that the events of one key in one window stand together
    at, near = (np.argwhere(np.moveaxis(e, 2, -1)) for e in (true, guessed))  # (E, 4)
    length = true.shape[2] + within  # rows further apart than any two steps that match
    rows = np.array([true.shape[1] * true.shape[3], true.shape[3], 1])
    times, others = ((e[:, :3] @ rows) * length + e[:, 3] for e in (at, near))
    j = 0
    for i, time in enumerate(times.tolist()):
        while j < len(others) and others[j] < time - within:
            j += 1
        if j < len(others) and others[j] <= time + within:
            flat[tuple(at[i])] = True
            j += 1
    return out


class InverseDynamicsMetrics(Metric):
    """The measures of this module's list.

    Args:
        space: the action space.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        self.keys = [g for g in space.groups if not isinstance(g, BinnedGroup)]
        self.axes = [g for g in space.groups if isinstance(g, BinnedGroup)]
        self._names = [g.name for g in self.keys for _ in (g.names[1:] if isinstance(g, HeldGroup) else g.names)]
        shapes = {
            "hits": (len(TOLERANCES), 2, len(self._names)),  # by centre and edge; true events with a guess
            "true": (2, len(self._names)),
            "guessed": (2, len(self._names)),
            "motion": (len(self.axes), 7),  # steps, y, y^2, (y - p)^2, |y - p|, moved, right signs
            "joint": (2,),  # steps, right ones
            "copy": (2,),
            "calibration": (BINS, 3),  # steps, probability, right ones
            "shifts": (1 + len(SHIFTS),),  # steps, right ones
        }
        for name, shape in shapes.items():
            self.add_state(f"{name}_sums", torch.zeros(shape), dist_reduce_fx="sum")

    def update(
        self,
        guesses: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        mask: Tensor,
        sure: Tensor,
        kept: Tensor | None = None,
    ) -> None:
        """Add guessed ids (B, T, n) and the recorded ones.

        Args:
            guesses: per group.
            actions: per group.
            mask: (B, T) bool, the steps that count.
            sure: (B, T), probability of the whole action.
            kept: (B, T) bool, of these steps the ones whose events and actions are counted; all if left out.
        """
        ours, theirs = ({k: v.cpu().numpy() for k, v in one.items()} for one in (guesses, actions))
        known: np.ndarray = mask.cpu().numpy()
        counted = known if kept is None else known & kept.cpu().numpy()
        right: np.ndarray = np.ones_like(known)
        copied = np.ones_like(known[:, 1:])
        states = []
        for group in self.keys:
            states.append((held(group, ours[group.name]), held(group, theirs[group.name])))
        for axis in self.axes:
            states.append((ours[axis.name], theirs[axis.name]))
        shifted = {s: np.ones_like(known) for s in SHIFTS}
        for guess, truth in states:
            right &= (guess == truth).all(-1)
            copied &= (truth[:, 1:] == truth[:, :-1]).all(-1)
            for s in SHIFTS:
                shifted[s] &= (guess == np.roll(truth, -s, axis=1)).all(-1)
        self._add_events(states[: len(self.keys)], known, counted)
        self._add_motion(ours, theirs, counted)
        self._sum("joint", [counted.sum(), (right & counted).sum()])
        after = counted[:, 1:] & known[:, :-1]
        self._sum("copy", [after.sum(), (copied & after).sum()])
        self._add_calibration(right, sure.cpu().numpy(), counted)
        inner = np.ones_like(known)  # steps that have a label at every shift
        for s in SHIFTS:
            inner &= np.roll(known, -s, axis=1)
        inner[:, : max(SHIFTS)] = inner[:, min(SHIFTS) :] = False
        self._sum("shifts", [inner.sum(), *((shifted[s] & inner).sum() for s in SHIFTS)])

    def compute(self) -> dict[str, Tensor]:
        """By name; not a number where nothing was counted."""
        out: dict[str, Tensor] = {}
        hits, true, guessed = (getattr(self, f"{n}_sums") for n in ("hits", "true", "guessed"))
        both = (true + guessed).sum(0)  # (K,), over centre and edge
        for group in self.keys:
            of = torch.tensor([name == group.name for name in self._names], device=hits.device)
            for i, within in enumerate(TOLERANCES):
                name = "event_f1" if within == 1 else f"event_f1_{within}"
                out[f"{name}/{group.name}"] = 2 * hits[i].sum(0)[of].sum() / both[of].sum()
            often = of & (true.sum(0) >= FEWEST)
            each = 2 * hits[TOLERANCES.index(1)].sum(0) / both
            out[f"event_f1_macro/{group.name}"] = each[often].mean()
        for i, where in enumerate(("centre", "edge") if self.keys else ()):
            counts = true[i].sum() + guessed[i].sum()
            out[f"event_f1_{where}"] = 2 * hits[TOLERANCES.index(1), i].sum() / counts
        for axis, sums in zip(self.axes, self.motion_sums, strict=True):  # type: ignore[arg-type]
            n, y, squares, error, absolute, moved, signs = sums
            spread = squares - y.square() / n
            out[f"r2/{axis.name}"] = torch.where(spread > 0, 1 - error / spread, torch.nan)
            out[f"mae/{axis.name}"], out[f"sign/{axis.name}"] = absolute / n, signs / moved
        out["joint"], out["joint_copy"] = (s[1] / s[0] for s in (self.joint_sums, self.copy_sums))  # type: ignore[index]
        n, sure, right = self.calibration_sums.unbind(-1)  # type: ignore[operator]
        out["calibration"] = (sure - right).abs().sum() / n.sum()
        shifts: Tensor = self.shifts_sums  # type: ignore[assignment]
        out |= {f"shift_{s}": right / shifts[0] for s, right in zip(SHIFTS, shifts[1:], strict=True)}
        return out

    def misaligned(self) -> str | None:
        """What to tell if guesses fit labels better that were moved by some steps; None if they do not."""
        values = self.compute()
        best = max(SHIFTS, key=lambda s: float(values[f"shift_{s}"].nan_to_num()))
        at, here = float(values[f"shift_{best}"]), float(values["shift_0"])
        if not at > here + MARGIN:
            return None
        return (
            f"actions that are read off the video fit the labels {abs(best)} step{'s' * (abs(best) > 1)} "
            f"{'later' if best > 0 else 'earlier'} better than their own ({at:.1%} of whole actions against "
            f"{here:.1%}). Annotation i + 1 has to hold the action taken after frame i was seen; look at the recordings"
            " with bczoo data view. A game that shows an action late, or a model that learned little, looks the same"
        )

    def _sum(self, name: str, values: object) -> None:
        sums: Tensor = getattr(self, f"{name}_sums")
        more = torch.as_tensor(np.asarray(values, np.float32), device=sums.device)
        setattr(self, f"{name}_sums", sums + more)  # a new tensor: the old one may be of inference mode

    def _add_events(self, states: list[tuple[np.ndarray, np.ndarray]], known: np.ndarray, counted: np.ndarray) -> None:
        if not states:
            return
        guess, truth = (np.concatenate(one, axis=-1) for one in zip(*states, strict=True))  # (B, T, K)
        guessed, true = (events(state, known) & counted[..., None] for state in (guess, truth))
        steps = np.arange(known.shape[1])
        centre = (steps >= len(steps) // 4) & (steps < len(steps) - len(steps) // 4)

        def by_place(of: np.ndarray) -> np.ndarray:
            """Counts (2, K) in the centre and at the edges."""
            return np.stack([of[:, :, where].sum((0, 1, 2)) for where in (centre, ~centre)])

        self._sum("hits", [by_place(matched(true, guessed, within)) for within in TOLERANCES])
        self._sum("true", by_place(true))
        self._sum("guessed", by_place(guessed))

    def _add_motion(self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], counted: np.ndarray) -> None:
        rows = []
        for axis in self.axes:
            guess, truth = (centres(axis)[ids[axis.name][counted][:, 0]] for ids in (ours, theirs))
            error, moved = guess - truth, truth != 0
            right = (np.sign(guess) == np.sign(truth)) & moved
            sums = [truth.sum(), (truth**2).sum(), (error**2).sum(), np.abs(error).sum(), moved.sum(), right.sum()]
            rows.append([len(truth), *sums])
        self._sum("motion", np.reshape(rows, (len(self.axes), 7)))

    def _add_calibration(self, right: np.ndarray, sure: np.ndarray, counted: np.ndarray) -> None:
        sure, right = sure[counted], right[counted]
        where = np.minimum((sure * BINS).astype(int), BINS - 1)
        values = (np.ones_like(sure), sure, right)
        self._sum("calibration", np.stack([np.bincount(where, v, BINS) for v in values], axis=-1))
