"""Pictures of the studies: what they say, and that they are drawn again from results alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawing import check_legible, figures, texts
from matplotlib.colors import to_hex

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.core.style import COLORS
from bczoo.studies.confusion_pictures import Kind, plot_prediction, plot_scaling
from bczoo.studies.confusion_report import COLUMNS
from bczoo.studies.gap import plot as plot_gap
from bczoo.studies.redraw import redraw
from bczoo.studies.toy import Curves, Settings
from bczoo.studies.toy import plot as plot_toy

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")


def made_up_kind(fraction, size="s", decoder="decoder", past_actions=True, world="corridor", shift=0.0):
    values = {name: (i + fraction + shift, 0.25) for i, name in enumerate(COLUMNS)}
    return Kind(world, size, 270_000, fraction, decoder, past_actions, 3, values)


BASELINES = {"corridor": {"expert": 2118.6, "random": -21.4}}


def test_scaling_shows_shares_in_per_cent_and_explains_its_bars(tmp_path):
    kinds = [made_up_kind(f, size, shift=shift) for f in (0.1, 0.3, 1.0) for size, shift in (("xs", 0), ("m", 5))]
    kinds.append(made_up_kind(1.0, decoder="independent", shift=100))
    with figures() as (drawn):
        plot_scaling(kinds, BASELINES, tmp_path / "a.png")
    said = texts(drawn[0])
    for expected in ("10 %", "30 %", "100 %", "loss (nats)", "corridor", "expert 2,119, random play −21"):
        assert expected in said
    assert "xs: 0.27 M parameters" in said and "m: 0.27 M parameters" in said
    assert "mean over 3 seeds; bars: ± half the range over them" in said
    assert not any("10^" in text for text in said)
    check_legible(drawn[0])
    loss = drawn[0].axes[0]
    assert loss.get_ylim()[1] < 10, "the other decoder is none of the sizes"
    line, _, (bars,) = loss.containers[1]
    np.testing.assert_allclose(line.get_ydata().astype(float), [5.1, 5.3, 6.0])
    np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars.get_segments()], 0.5)
    assert len({container[0].get_color() for container in loss.containers}) == 2
    assert len({container[0].get_marker() for container in loss.containers}) == 2
    assert not np.intersect1d(*(container[0].get_xdata() for container in loss.containers)).size, "side by side"


def test_prediction_tells_decoders_and_hidden_past_actions_apart(tmp_path):
    kinds = [made_up_kind(1.0, "s", d, past) for d in ("decoder", "no decoder") for past in (True, False)]
    found = {"corridor": {"return": {"loss": {"rho": -0.54, "low": -0.7, "high": 0.1}, "causality": None}}}
    with figures() as drawn:
        plot_prediction(kinds, found, tmp_path / "a.png")
    said = texts(drawn[0])
    assert "ρ = −0.54\n(−0.70 to +0.10)" in said and sum("ρ =" in text for text in said) == 1
    for expected in ("action decoder", "no decoder", "past actions seen", "not seen", "accuracy at changes"):
        assert expected in said
    assert any("its bars are ± half the range" in text and "rank correlation" in text for text in said)
    check_legible(drawn[0])
    lines = [container[0] for container in drawn[0].axes[0].containers]
    looks = [(to_hex(x.get_color()).upper(), x.get_marker(), to_hex(x.get_markerfacecolor()).upper()) for x in lines]
    blue, orange = COLORS[:2]
    assert looks == [(blue, "o", blue), (blue, "o", "#FFFFFF"), (orange, "s", orange), (orange, "s", "#FFFFFF")]


def test_no_curve_of_the_toy_world_lies_on_another(tmp_path):
    steps = np.arange(5) * 1_000_000.0
    curves = steps[:, None, None] * np.array([2.0, 1.0, 1.0])[:, None] * np.array([0.8, 1.2]) / 1e6
    settings = Settings(4_000_000, 2, 20, 1_000_000, 10, (3, 0, 2), False, 1e-4, 0, 0)
    with figures() as drawn:
        plot_toy(settings, Curves(steps, curves, curves, np.ones(3)), tmp_path / "a.png")
    said = texts(drawn[0])
    assert [area.get_title("left") for area in drawn[0].axes] == ["linear, no bias", "depth 2", "depth 3"]
    for expected in ("mean of 2 replicas", "from the lowest to the highest", "optimal linear policy, with bias"):
        assert expected in said
    for expected in ("causal correctness (nats)", "steps of the expert to learn from", "8.00 at the end"):
        assert expected in said
    assert "4 M" in said
    check_legible(drawn[0])
    for area, slope in zip(drawn[0].axes, (1, 1, 2), strict=True):
        mean, _optimal = area.get_lines()
        np.testing.assert_allclose(mean.get_ydata(), slope * steps / 1e6)
        (final,) = area.texts  # above the band; below it in the last panel, where the optimal policy's line is near
        assert final.get_va() == ("top" if slope == 2 else "bottom")


def test_the_gap_has_values_beside_its_bars_and_names_its_intervals(tmp_path):
    one = {"kl": 0.2, "kl_interval": [0.15, 0.3]}
    rows = {"game": one, "yuv420p crf 23": one, "rgb crf 0": {"kl": 0.0, "kl_interval": [0.0, 0.0]}}
    with figures() as drawn:
        plot_gap("my/game", {"plain": rows, "other": rows}, tmp_path / "a.png")
    said = texts(drawn[0])
    assert said.count("0.2000") == 2 and said.count("0") >= 2 and "game" not in said
    assert said.count("95 % interval over games") == 1 and {"plain", "other", "rgb crf 0"} <= set(said)
    check_legible(drawn[0])
    number = next(text for text in drawn[0].axes[0].texts if text.get_text() == "0.2000")
    assert number.get_position()[0] > 0.3, "beyond the interval"


def test_what_the_docs_show_is_drawn_from_stored_results(tmp_path):
    with figures() as drawn:
        written = redraw(str(RESULTS / "confusion.json"), str(tmp_path))
    assert [path.name for path in written] == ["scaling.png", "prediction.png"]
    assert all((ROOT / "docs" / path.name).stat().st_size > 5000 for path in written)
    for figure in drawn:
        check_legible(figure)


def cells_of(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def test_stored_averages_are_those_of_the_page():
    content = json.loads((RESULTS / "confusion.json").read_text())
    for world, baseline in content["baselines"].items():
        part = PAGE.split(f"\n### {world}\n")[1].split("\n##")[0]
        assert f"expert {baseline['expert']:.1f}, random {baseline['random']:.1f}." in part
        rows = [cells_of(line) for line in part.splitlines() if line.startswith(("| xs", "| s ", "| m "))]
        kinds = [Kind(**kind) for kind in content["kinds"] if kind["world"] == world]
        assert len(rows) == len(kinds) == 14
        for row, kind in zip(rows, kinds, strict=True):
            past = "yes" if kind.past_actions else "no"
            assert row[:5] == [kind.size, f"{kind.parameters / 1e6:.2f} M", f"{kind.fraction:.0%}", kind.decoder, past]
            for cell, (name, (_, digits)) in zip(row[5:], COLUMNS.items(), strict=True):
                mean, spread = kind.values[name]
                assert cell == f"{mean:.{digits}f} ± {spread:.{digits}f}"
        for name, found in content["findings"][world]["return"].items():
            assert f"| {name} | {found['rho']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}) |" in part


def test_results_without_pictures_are_refused(tmp_path):
    (tmp_path / "toy.json").write_text("{")
    with pytest.raises(UserError, match=r"toy.json is no JSON"):
        redraw(str(tmp_path))
    (tmp_path / "toy.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"holds the results of no study.*running the study again"):
        redraw(str(tmp_path / "toy.json"))
    (tmp_path / "gap.json").write_text("{}")
    with pytest.raises(UserError, match=r"has toy.json and gap.json; name a file"):
        redraw(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has none of them"):
        redraw(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is no "):
        redraw(str(tmp_path / "nowhere"))


def test_a_toy_study_is_drawn_again_from_its_folder(tmp_path, capsys):
    options = ["--steps", "4000", "--every", "1000", "--replicas", "2", "--depths", "[1,0]", "--compare_steps", "0"]
    assert main(["study", "toy", *options, "--out", str(tmp_path / "toy")]) == 0
    with figures() as drawn:
        assert main(["study", "redraw", str(tmp_path / "toy"), "--out", str(tmp_path / "other")]) == 0
    assert str(tmp_path / "other" / "toy.png") in capsys.readouterr().out
    content = json.loads((tmp_path / "toy" / "toy.json").read_text())
    for area, depth in zip(drawn[0].axes, "01", strict=True):
        mean = area.get_lines()[0].get_ydata()
        np.testing.assert_allclose(mean, np.mean(content["correctness"][depth], axis=0), atol=1e-9)
