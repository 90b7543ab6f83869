"""What ``bczoo validate`` and ``bczoo test`` print.

Place in the pipeline: the trainer's command line hands over what was logged. A metric that no step tells is "n/a", and
a line below says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from bczoo.core.tables import markdown_table

# part of a metric's name -> why it may be unknown; the first that fits
REASONS = {
    "change_": "no change points: no action in the {part} recordings differs from the one before",
    "relative_cross_entropy": "the actions of a group are always the same in the {part} recordings",
    "repeat_accuracy": "no two steps in a row of the {part} recordings have an action to learn from",
    "persistence": "no two steps in a row of the {part} recordings have an action to learn from",
    "visual_share": "neither the picture nor past actions matter, so there is nothing to share",
    "causality": "no step of the {part} recordings has a picture to put in its place",
    "reliance": "no step of the {part} recordings has other actions to put in their place",
    "": "no step of the {part} recordings has an action to learn from",
}
PARTS = {"val": "validation", "test": "test"}


def evaluation_table(metrics: Mapping[str, float]) -> str:
    """A Markdown table of metrics, and below why some are unknown.

    Args:
        metrics: by name, such as ``val/loss``.
    """
    rows = [["metric", "value"]]
    rows += [[name, "n/a" if math.isnan(value) else f"{value:.4f}"] for name, value in metrics.items()]
    return "\n".join([markdown_table(rows), *why_unknown(metrics)])


def why_unknown(metrics: Mapping[str, float]) -> list[str]:
    """Lines that explain the metrics that are not a number."""
    reasons: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if math.isnan(value):
            part, _, rest = name.partition("/")
            reason = next(text for key, text in REASONS.items() if key in rest)
            reasons.setdefault(reason.format(part=PARTS.get(part, part)), []).append(name)
    return [f"\n{', '.join(names)}: {reason}." for reason, names in reasons.items()]
