"""Scaling laws: how the best size and the best amount of data grow with compute. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Law": "law",
        "ScalingFit": "law",
        "Curve": "curves",
        "fit_parametric": "parametric",
        "fit_frontier": "frontier",
        "fit_isoflop": "isoflop",
        "extrapolate": "extrapolation",
        "Extrapolation": "extrapolation",
        "plan": "planning",
        "Plan": "planning",
    },
)

if TYPE_CHECKING:
    from bczoo.scaling.curves import Curve as Curve
    from bczoo.scaling.extrapolation import Extrapolation as Extrapolation
    from bczoo.scaling.extrapolation import extrapolate as extrapolate
    from bczoo.scaling.frontier import fit_frontier as fit_frontier
    from bczoo.scaling.isoflop import fit_isoflop as fit_isoflop
    from bczoo.scaling.law import Law as Law
    from bczoo.scaling.law import ScalingFit as ScalingFit
    from bczoo.scaling.parametric import fit_parametric as fit_parametric
    from bczoo.scaling.planning import Plan as Plan
    from bczoo.scaling.planning import plan as plan
