"""One look for all pictures that matplotlib draws.

Place in the pipeline: whoever draws opens :func:`saved_figure` (or :func:`figure_style`, to write by itself) and takes
colours, lines and markers from here; nothing else in bczoo sets a font, a size or a colour. matplotlib is imported on
use.

Colours are those of Okabe and Ito, "Color Universal Design" (2002), which people with any of the common kinds of colour
blindness tell apart; its yellow is left out, since it is too pale for lines on white. Curves differ in line style or
marker as well, so that they can be told apart in grey. What has an order (layers, sizes, depths) takes shades of
cividis (Nuñez, Anderson and Renslow 2018), which get lighter all along.

A figure is :data:`WIDTH` inches wide. A README shows it at about 800 pixels, where a point is 1.4 pixels: the smallest
text, of 8.5 points, is then 12 pixels high.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bczoo.core.files import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
TEXT, MUTED = "#222222", "#666666"  # words; axes, and what stands back
PALE, PAPER = "#DDDDDD", "#EEEEEE"  # guides behind the data; empty cells
SMALL = 8.5  # points, of the smallest text
WIDTH = 8.0  # inches
DPI = 200  # twice what a README shows, for screens with fine pixels
BAND = 0.18  # opacity of an area from low to high

_STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so pictures are the same everywhere
    "font.size": 9.5,
    "figure.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.06,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and write figures in bczoo's style while this is open, whatever matplotlib is set to otherwise.

    >>> with figure_style():
    ...     figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    ...     ...
    ...     write_figure(figure, path)
    """
    from cycler import cycler
    from matplotlib import style

    with style.context({**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}, after_reset=True):
        yield


@contextmanager
def saved_figure(
    path: str | Path, height: float, width: float = WIDTH, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """A figure in bczoo's style, written whole when the block ends and not at all if it raises.

    >>> with saved_figure("runs/a/curves.png", height=4) as figure:
    ...     axes = figure.subplots()
    ...     axes.plot(steps, losses, **line_style(0), label="loss (nats)")

    Args:
        path: of the picture; its ending names the format, an older file is replaced.
        height: inches.
        width: inches.
        layout: how matplotlib makes room for labels; None leaves axes where they are put.
    """
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout=layout)
        yield figure
        write_figure(figure, path)


def line_style(i: int) -> dict[str, Any]:
    """Colour and line style of the curve number ``i``; 35 differ."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)]}


def point_style(i: int) -> dict[str, Any]:
    """Colour and marker of the points number ``i``."""
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


def shades(n: int) -> list[str]:
    """``n`` colours in an order, from dark blue to a yellow that can still be seen on white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["cividis"](0.85 * i / max(n - 1, 1))) for i in range(n)]
