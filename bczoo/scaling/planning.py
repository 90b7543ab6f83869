"""``bczoo scaling plan``: what to train with a budget, by a fit.

Place in the pipeline: reads what ``bczoo scaling fit --out`` wrote (:class:`bczoo.scaling.law.ScalingFit`) and says
which size, how much data and what loss a number of operations buys, what another size would lose, and whether the
recordings at hand are enough: no recording should be seen more than four times (paper 2411.04434, A.3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table
from bczoo.scaling.law import FLOPS_PER_PARAMETER, Interval, ScalingFit
from bczoo.scaling.points import MOST_EPOCHS

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the best size, whose losses a plan compares
FAR = 10.0  # times the compute of the fit; beyond it a prediction is an extrapolation that nobody has tried


@dataclass(frozen=True)
class Plan:
    """What a budget buys.

    Args:
        flops: C.
        params: N_opt(C).
        tokens: D_opt(C).
        loss: L_opt(C); None where the fit knows no loss.
        intervals: 95 % intervals of ``params``, ``tokens`` and ``loss``, as far as the fit has them.
        sizes: N, D and L of other sizes at the same C, and L less the best; empty where the fit knows the optimum
            alone.
        enough: whether the tokens at hand are enough for four epochs; None if nobody said how many there are.
        notes: what is to be said of it.
    """

    flops: float
    params: float
    tokens: float
    loss: float | None
    intervals: dict[str, Interval]
    sizes: tuple[tuple[float, float, float, float], ...]
    enough: bool | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [["", "plan", "95 % interval"], ["compute C", f"{self.flops:.4g}", "-"]]
        for name, value in (("params", self.params), ("tokens", self.tokens), ("loss", self.loss)):
            ends = self.intervals.get(name)
            if value is not None:
                rows.append([name, f"{value:.5g}", "-" if ends is None else f"{ends[0]:.5g} to {ends[1]:.5g}"])
        text = markdown_table(rows)
        if self.sizes:
            other = [["params", "tokens", "tokens a parameter", "loss", "worse by"]]
            other += [
                [f"{n:.3g}", f"{d:.3g}", f"{d / n:.3g}", f"{y:.4g}", f"{more:.4g}"] for n, d, y, more in self.sizes
            ]
            text += f"\n\nOther sizes at the same compute:\n\n{markdown_table(other, left=0)}"
        return "\n".join([text, "", *(f"* {note}" for note in self.notes)]).rstrip()


def plan(
    fit: str,
    flops: float | None = None,
    gpus: int | None = None,
    hours: float | None = None,
    mfu: float = 0.4,
    device: str = "H100",
    tokens: float | None = None,
    data: list[str] | str | None = None,
    tokens_per_frame: float | None = None,
    fps: float = 20.0,
) -> Plan:
    """Say which size to train on how much data with a budget, by a fitted scaling law.

    Args:
        fit: file that bczoo scaling fit wrote, such as fit.json.
        flops: operations of the training; or give gpus and hours.
        gpus: how many.
        hours: of each of them.
        mfu: share of the device's peak that a training reaches, as bczoo fit logs it.
        device: name of the GPU, such as H100, A100 or RTX 4090.
        tokens: inputs at hand, once through all recordings.
        data: recordings at hand, in the place of tokens.
        tokens_per_frame: inputs a frame, to count recordings; that of the fitted runs if left out.
        fps: frames a second of the policy, to count recordings.
    """
    found = ScalingFit.read(fit)
    c = _budget(flops, gpus, hours, mfu, device)
    at_hand = _tokens_at_hand(found, tokens, data, tokens_per_frame, fps)
    n, d = float(found.n_opt(c)), float(found.d_opt(c))
    loss = None if found.E is None else float(found.loss_opt(c))
    ends = {"params": "n_opt", "tokens": "d_opt", "loss": "loss_opt"}
    known = {name: found.interval_of(quantity, c) for name, quantity in ends.items()}
    notes, law = _far(found, c, n), found.law
    sizes: list[tuple[float, float, float, float]] = []
    if law is None:
        notes.append(f"what another size loses is not known to {found.method}: fit with --method parametric")
    else:
        best = float(law.loss(n, c / (FLOPS_PER_PARAMETER * n)))
        for factor in FACTORS:
            other = c / (FLOPS_PER_PARAMETER * factor * n)
            reached = float(law.loss(factor * n, other))
            sizes.append((factor * n, other, reached, reached - best))
    enough = None if at_hand is None else d <= MOST_EPOCHS * at_hand
    if at_hand is not None:
        notes.append(_enough(found, c, d, at_hand))
    result = Plan(c, n, d, loss, {k: v for k, v in known.items() if v is not None}, tuple(sizes), enough, tuple(notes))
    print(result)
    return result


def _budget(flops: float | None, gpus: int | None, hours: float | None, mfu: float, device: str) -> float:
    """The operations that were asked for."""
    if (flops is None) == (gpus is None and hours is None):
        raise UserError("say how much compute there is: --flops 1e21, or --gpus 8 --hours 70")
    if flops is None:
        from bczoo.train.flops import PEAK

        if gpus is None or hours is None:
            raise UserError("--gpus and --hours belong together: --gpus 8 --hours 70")
        if not 0 < mfu <= 1:
            raise UserError(f"--mfu is a share of the device's peak, above 0 and up to 1; got {mfu}")
        peak = next((peak for name, peak in PEAK.items() if device.lower() in name.lower()), None)
        if peak is None:
            raise UserError(f"--device {device}: its peak is not known; take one of {', '.join(PEAK)}, or give --flops")
        flops = gpus * hours * 3600 * mfu * peak
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"a budget must be above 0, got {flops:g}")
    return float(flops)


def _tokens_at_hand(
    found: ScalingFit, tokens: float | None, data: list[str] | str | None, per_frame: float | None, fps: float
) -> float | None:
    """Inputs of one pass over the recordings there are; None if nobody said."""
    if data is None:
        return tokens
    if tokens is not None:
        raise UserError("give --tokens or --data, not both")
    per_frame = per_frame or found.tokens_per_frame
    if per_frame is None:
        raise UserError("how many inputs a frame makes is not known from this fit; give --tokens_per_frame")
    from bczoo.data.index import open_index

    index = open_index(data, None, fps=fps)
    return float(index.n_frames.sum()) * per_frame


def _far(found: ScalingFit, c: float, n: float) -> list[str]:
    """What to say of a budget outside of what was fitted."""
    notes: list[Any] = []
    low, high = found.range["flops"]
    if c > high:
        how = "nobody has tried whether the law goes on so far" if c > FAR * high else "an extrapolation"
        notes.append(f"{c / high:.3g} times the largest compute of the fit ({high:.3g}): {how}")
    elif c < low:
        notes.append(f"less compute than any run of the fit has had ({low:.3g})")
    smallest, largest = found.range["params"]
    if not smallest <= n <= largest:
        notes.append(f"the best size is outside of the sizes that were trained, {smallest:.3g} to {largest:.3g}")
    return notes


def _enough(found: ScalingFit, c: float, d: float, at_hand: float) -> str:
    """Whether recordings are enough, and what they are enough for."""
    most = MOST_EPOCHS * at_hand
    if d <= most:
        epochs = f"{d / at_hand:.3g} epochs of {at_hand:.4g} tokens"
        return f"the recordings at hand are enough: {epochs}, and up to {MOST_EPOCHS} count"
    reached = (most / found.b0) ** (1 / found.b)
    text = (
        f"the recordings at hand are not enough: {at_hand:.4g} tokens, {d / at_hand:.3g} epochs, and only "
        f"{MOST_EPOCHS} count. Record {d / most:.3g} times as much, or stop at C = {reached:.3g} with N = "
        f"{found.n_opt(reached):.3g}"
    )
    if (law := found.law) is not None:
        n = c / (FLOPS_PER_PARAMETER * most)
        text += f"; all of C on {MOST_EPOCHS} epochs would take N = {n:.3g} to a loss of {law.loss(n, most):.4g}"
    return text
