"""Tables in Markdown, which a terminal shows as well.

Place in the pipeline: whatever prints or writes rows of numbers formats them here. tabulate was tried: its ``pipe``
format gives the same rows once number parsing is off and every column's side is named, but no table without padding, so
it would be a dependency that saves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1, padded: bool = True) -> str:
    """A Markdown table.

    Args:
        rows: its cells; the first row is the head.
        left: how many columns stand at their left side; the others, of numbers, stand at their right.
        padded: make columns as wide as their widest cell, for reading as it is.
    """
    widths = [max(map(len, column)) if padded else 0 for column in zip(*rows, strict=True)]
    sides = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    head, *body = (
        f"| {' | '.join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True))} |"
        for row in rows
    )
    rules = ["-" * max(width, 3) if i < left else "-" * (max(width, 4) - 1) + ":" for i, width in enumerate(widths)]
    rule = f"| {' | '.join(rules)} |" if padded else f"|{'|'.join(rules)}|"
    return "\n".join([head, rule, *body])
