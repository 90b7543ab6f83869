"""What a picture says, without its pixels: figures as they were when they were written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from matplotlib.figure import Figure
from matplotlib.text import Text

from bczoo.core import style


@contextmanager
def figures() -> Iterator[list[Figure]]:
    """The figures that are written meanwhile, in order; they are written all the same."""
    seen: list[Figure] = []

    def write(figure, path, **options):
        seen.append(figure)
        written(figure, path, **options)

    written = style.write_figure
    with mock.patch.object(style, "write_figure", write):
        yield seen


def texts(figure: Figure) -> list[str]:
    """All that can be read in a figure."""
    return [text.get_text() for text in _shown(figure)]


def check_legible(figure: Figure) -> None:
    """No text is smaller than the smallest of the style, and none is cut off by the figure's edge."""
    width, height = figure.canvas.get_width_height()
    for text in _shown(figure):
        assert text.get_fontsize() >= style.SMALL, text
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text


def _shown(figure: Figure) -> list[Text]:
    """Texts that are drawn, which leaves out those of axes that are switched off and of ticks beyond the axes."""
    found: list[Text] = []

    def draw(text, renderer, *arguments, **options):
        if text.get_visible() and text.get_text():
            found.append(text)
        return drawn(text, renderer, *arguments, **options)

    drawn = Text.draw
    with mock.patch.object(Text, "draw", draw):
        figure.draw_without_rendering()
    return list(dict.fromkeys(found))
