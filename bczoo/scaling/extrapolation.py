"""Whether the largest size does what the others predict.

Place in the pipeline: ``bczoo scaling fit --holdout true`` asks :func:`extrapolate`, which fits without the largest
size and looks where that size's curve meets the prediction (paper 2411.04434, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.scaling.curves import Curve, prepare_all
from bczoo.scaling.law import ScalingFit


@dataclass(frozen=True)
class Extrapolation:
    """The point of the largest size whose loss is nearest to the predicted L_opt(C).

    Args:
        flops: C of the point.
        params: N, of the largest size.
        tokens: D of the point.
        loss: L of the point.
        beyond: C over the largest C of the fit.
        params_factor: N over the predicted N_opt(C); 1 is agreement.
        tokens_factor: D over the predicted D_opt(C).
        loss_excess: L over the predicted L_opt(C), less 1.
    """

    flops: float
    params: float
    tokens: float
    loss: float
    beyond: float
    params_factor: float
    tokens_factor: float
    loss_excess: float

    def __str__(self) -> str:
        return (
            f"held out N = {self.params:.4g} at C = {self.flops:.3g}, {self.beyond:.3g} times the largest C fitted: "
            f"N is {self.params_factor:.3g} times the predicted, D {self.tokens_factor:.3g} times, its loss "
            f"{100 * self.loss_excess:+.2g} %"
        )

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def extrapolate(
    runs: Sequence[Sequence[Any]], fit: Callable[[list[Curve]], ScalingFit]
) -> tuple[Extrapolation, ScalingFit]:
    """Fit all sizes but the largest, and compare that one with the prediction.

    Args:
        runs: as :func:`bczoo.scaling.fit_frontier` takes them.
        fit: a method, such as ``lambda runs: fit_frontier(runs, resamples=0)``.

    Raises:
        UserError: without the largest size nothing can be fitted; says why.
    """
    curves, _ = prepare_all(runs)
    largest = max(curve.params for curve in curves)
    found = fit([curve for curve in curves if curve.params < largest])
    held_out = [curve for curve in curves if curve.params == largest]
    c, d, y = (np.concatenate(x) for x in zip(*((k.compute, k.tokens, k.loss) for k in held_out), strict=True))
    if y.min() <= 0:
        raise UserError("the largest size cannot be compared with a prediction: its measure is not above 0")
    predicted = found.loss_opt(c)
    i = int(np.abs(np.log(y / predicted)).argmin())
    return Extrapolation(
        flops=float(c[i]),
        params=largest,
        tokens=float(d[i]),
        loss=float(y[i]),
        beyond=float(c[i] / found.range["flops"][1]),
        params_factor=float(largest / found.n_opt(c[i])),
        tokens_factor=float(d[i] / found.d_opt(c[i])),
        loss_excess=float(y[i] / predicted[i] - 1),
    ), found
