"""The law of loss over size and data, and what a fit of it has found.

Place in the pipeline: the three methods (:mod:`bczoo.scaling.parametric`, :mod:`bczoo.scaling.frontier`,
:mod:`bczoo.scaling.isoflop`) return a :class:`ScalingFit`; ``bczoo scaling fit`` writes it, ``bczoo scaling plan``
reads it. The law is that of Hoffmann et al. (arXiv 2203.15556, approach 3), as paper 2411.04434 uses it (section 3.4).

Units: N parameters, D inputs seen in training (tokens), C = 6 N D floating point operations, L nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.train.run_record import read_json

FLOPS_PER_PARAMETER = 6  # and token: 2 forwards, 4 backwards
EXPONENTS = ("a", "b", "a0", "b0", "E", "c", "c0", "A", "B", "alpha", "beta")  # what a fit may know
Interval = tuple[float, float]
_LOG_6 = math.log(FLOPS_PER_PARAMETER)


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A N^-alpha + B D^-beta, and what follows of it under C = 6 N D.

    Args:
        A: of the term of the size.
        B: of the term of the data.
        E: loss that remains with endless size and data.
        alpha: exponent of the size.
        beta: exponent of the data.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of the best size over compute."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the best number of tokens over compute."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def c(self) -> float:
        """Exponent of the least loss over compute."""
        return self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def log_g(self) -> float:
        """ln G, where N_opt = G (C/6)^a and D_opt = (C/6)^b / G."""
        return math.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)

    @property
    def a0(self) -> float:
        return _exp(self.log_g - self.a * _LOG_6)

    @property
    def b0(self) -> float:
        return _exp(-self.log_g - self.b * _LOG_6)

    @property
    def c0(self) -> float:
        size, data = math.log(self.A) - self.alpha * self.log_g, math.log(self.B) + self.beta * self.log_g
        return _exp(size + self.c * _LOG_6) + _exp(data + self.c * _LOG_6)

    def loss(self, params: Any, tokens: Any) -> Any:
        """Loss of sizes after numbers of tokens; arrays that broadcast."""
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def crossing(self, smaller: float, larger: float) -> float:
        """The C at which two sizes have the same loss; from there on the larger one is better."""
        rise = larger**self.beta - smaller**self.beta
        fall = smaller**-self.alpha - larger**-self.alpha
        return FLOPS_PER_PARAMETER * (self.B * rise / (self.A * fall)) ** (1 / self.beta)


@dataclass(frozen=True)
class ScalingFit:
    """What a method found: N_opt = a0 C^a, D_opt = b0 C^b, L_opt = E + c0 C^-c.

    Args:
        method: ``parametric``, ``frontier`` or ``isoflop``, with its variant.
        a: exponent of the best size.
        b: exponent of the best number of tokens.
        a0: factor of the best size.
        b0: factor of the best number of tokens.
        E: loss that remains; None, like all below, where the method does not know it.
        c: exponent of the least loss.
        c0: factor of the least loss.
        A: of :class:`Law`.
        B: of :class:`Law`.
        alpha: of :class:`Law`.
        beta: of :class:`Law`.
        intervals: 95 % intervals by name; empty without a bootstrap.
        dropped: what did not enter the fit, and why.
        flags: what makes the fit doubtful.
        refused: by name of what could not be fitted the reason.
        points: (P, 4) C, N, D and L of what the exponents were read off.
        range: smallest and largest ``params``, ``tokens`` and ``flops`` of the data.
        samples: by name (K,) the values of the bootstrap.
        tokens_per_frame: inputs a frame of the models that were fitted; None if they differ or that is not known.
    """

    method: str
    a: float
    b: float
    a0: float
    b0: float
    E: float | None = None
    c: float | None = None
    c0: float | None = None
    A: float | None = None
    B: float | None = None
    alpha: float | None = None
    beta: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 4)), repr=False)
    range: dict[str, Interval] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    tokens_per_frame: float | None = None

    @classmethod
    def of_law(cls, law: Law, **more: Any) -> ScalingFit:
        """A fit that knows the whole law."""
        return cls(**{name: getattr(law, name) for name in EXPONENTS}, **more)

    @property
    def law(self) -> Law | None:
        """The law over size and data; None where the method knows the optimum alone."""
        if self.A is None or self.B is None or self.E is None or self.alpha is None or self.beta is None:
            return None
        return Law(self.A, self.B, self.E, self.alpha, self.beta)

    def n_opt(self, flops: Any) -> Any:
        """The size of least loss at C ``flops``."""
        return self.a0 * flops**self.a

    def d_opt(self, flops: Any) -> Any:
        """The tokens of least loss at C ``flops``."""
        return self.b0 * flops**self.b

    def loss_opt(self, flops: Any) -> Any:
        """The least loss at C ``flops``.

        Raises:
            UserError: the loss law was refused; says why.
        """
        if self.E is None or self.c is None or self.c0 is None:
            raise UserError(f"this fit knows no loss: {self.refused.get('E', 'its method gives none')}")
        return self.E + self.c0 * flops**-self.c

    def interval_of(self, quantity: str, flops: float) -> Interval | None:
        """95 % interval of ``n_opt``, ``d_opt`` or ``loss_opt`` at a C; None without a bootstrap."""
        needs = {"n_opt": ("a0", "a"), "d_opt": ("b0", "b"), "loss_opt": ("c0", "c", "E")}[quantity]
        if any(name not in self.samples for name in needs):
            return None
        factor, exponent, *rest = (self.samples[name] for name in needs)
        sign = -1 if quantity == "loss_opt" else 1
        return percentiles(factor * flops ** (sign * exponent) + (rest[0] if rest else 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_dict` reads it."""
        known = {name: getattr(self, name) for name in EXPONENTS}
        return {
            "method": self.method,
            **known,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "dropped": list(self.dropped),
            "flags": list(self.flags),
            "refused": self.refused,
            "range": {name: list(ends) for name, ends in self.range.items()},
            "tokens_per_frame": self.tokens_per_frame,
            "points": [[float(f"{x:.8g}") for x in row] for row in self.points],
            "samples": {name: [float(f"{x:.6g}") for x in values] for name, values in self.samples.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ScalingFit:
        numbers: dict[str, Any] = {k: None if content[k] is None else float(content[k]) for k in EXPONENTS}
        return cls(
            method=str(content["method"]),
            **numbers,
            intervals={name: (float(low), float(high)) for name, (low, high) in content["intervals"].items()},
            dropped=tuple(content["dropped"]),
            flags=tuple(content["flags"]),
            refused=dict(content["refused"]),
            range={name: (float(low), float(high)) for name, (low, high) in content["range"].items()},
            points=np.array(content["points"], dtype=float).reshape(-1, 4),
            samples={name: np.array(values, dtype=float) for name, values in content["samples"].items()},
            tokens_per_frame=content["tokens_per_frame"],
        )

    @classmethod
    def read(cls, path: str | Path) -> ScalingFit:
        """The fit in a file that ``bczoo scaling fit --out`` wrote.

        Raises:
            UserError: there is none, it is laid out otherwise, or all it says is why nothing could be fitted.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}; bczoo scaling fit --out {path} writes one")
        content = read_json(Path(path))
        try:
            if content["a"] is None:
                raise UserError(f"{path} holds no fit: {'; '.join(map(str, content['refused'].values()))}")
            return cls.from_dict(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no fit of bczoo scaling fit: {error!r}; fit anew") from error


def _exp(x: float) -> float:
    """e^x, infinite where that is no number any more: resamples of data that say little end there."""
    return math.exp(x) if x < 709 else math.inf


def percentiles(values: np.ndarray) -> Interval:
    """The ends between which 95 % of resamples lie."""
    low, high = np.quantile(values[np.isfinite(values)], (0.025, 0.975))
    return float(low), float(high)


def span(params: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> dict[str, Interval]:
    """:attr:`ScalingFit.range` of points."""
    arrays = {"params": params, "tokens": tokens, "flops": flops}
    return {name: (float(values.min()), float(values.max())) for name, values in arrays.items()}


def power_law(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Exponent and factor of y = factor x^exponent, by least squares of the logarithms.

    Centred, so that the two are found apart from each other.
    """
    log_x, log_y = np.log(x), np.log(y)
    w = np.ones_like(log_x) if weights is None else weights
    mean_x, mean_y = np.average(log_x, weights=w), np.average(log_y, weights=w)
    slope = float((w * (log_x - mean_x) * (log_y - mean_y)).sum() / (w * (log_x - mean_x) ** 2).sum())
    return slope, math.exp(mean_y - slope * mean_x)
