"""Every picture has the same look."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from bczoo.core import style

ROOT = Path(__file__).parents[2]


def test_the_style_holds_in_the_block_and_is_gone_after_it(tmp_path):
    with mpl.rc_context({"font.size": 33, "axes.grid": False, "lines.linewidth": 7}):  # a user's own matplotlibrc
        with style.saved_figure(tmp_path / "a.png", height=2) as figure:
            axes = figure.subplots()
            (line,) = axes.plot([0, 1], [0, 1])
            label = axes.set_xlabel("seconds")
            assert mpl.rcParams["axes.grid"] and mpl.rcParams["lines.linewidth"] < 3
        assert line.get_color() == style.COLORS[0] and not axes.spines["top"].get_visible()
        assert style.SMALL <= label.get_fontsize() < 12
        assert mpl.rcParams["font.size"] == 33
    assert Image.open(tmp_path / "a.png").size == (round(style.WIDTH * style.DPI), 2 * style.DPI)


def test_a_failed_drawing_leaves_the_older_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), style.saved_figure(path, height=2):
        raise ZeroDivisionError
    assert path.read_text() == "older" and mpl.rcParams["savefig.dpi"] == "figure"


def deuteranope(color: str) -> list[float]:
    """What is left of a colour where the eye has no cones for green: Viénot, Brettel and Mollon (1999), linear RGB."""
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(color))
    both = 0.29275 * red + 0.70725 * green
    return [both, -0.02234 * red + 0.02234 * green + blue]


def test_colours_differ_without_cones_for_green():
    seen = [deuteranope(color) for color in style.COLORS]
    pairs = [(a, b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(max(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in pairs) > 0.05
    red, green = deuteranope("#CC0000"), deuteranope("#006E00")  # a pair that is known to fail
    assert max(abs(x - y) for x, y in zip(red, green, strict=True)) < 0.1


def test_curves_and_points_differ_in_more_than_colour():
    styles = [style.line_style(i) for i in range(35)]
    assert len({str(one) for one in styles}) == 35
    assert len({str(one["linestyle"]) for one in styles[:5]}) == 5
    assert len({one["marker"] for one in map(style.point_style, range(7))}) == 7


def test_shades_get_lighter_all_along():
    grey = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, style.shades(6))]
    assert grey == sorted(grey) and len(style.shades(1)) == 1 and grey[-1] < 0.8


def test_the_module_does_not_import_matplotlib():
    code = "import sys, bczoo.core.style; raise SystemExit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OWN = r"pyplot|rcParams|rc_context|savefig|figsize|\bdpi\s*=|font_?size\s*=\s*\d|\"#[0-9a-fA-F]{6}\"|\bFigure\("


def test_whoever_draws_leaves_the_look_to_the_style():
    assert re.search(OWN, "figure = Figure(figsize=(3, 4))") and re.search(OWN, 'axes.text(0, 0, "a", fontsize=7)')
    drawing = []
    for path in [*(ROOT / "bczoo").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        if path.name == "style.py" or not re.search(r"^\s*(from|import) matplotlib", source, re.MULTILINE):
            continue
        if path != ROOT / "bczoo" / "core" / "files.py":  # which writes them
            assert not (found := re.search(OWN, source)), f"{path} has {found[0]!r}, which belongs to core/style.py"
            assert re.search(r"\b(saved_figure|figure_style)\b", source), f"{path} draws without core/style.py"
        drawing.append(path.name)
    assert {"clip.py", "attention.py", "gap.py", "toy.py", "confusion_pictures.py"} <= set(drawing)
