"""The study of characters: its sources, what each variant is told, verdicts in all directions, and a study in small."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.scaling import Law
from bczoo.studies import characters, characters_report
from bczoo.studies.characters import CONTEXT, CharacterModel, Plan, Shape, runs, study_characters, training
from bczoo.studies.characters_report import Exponent, exponent, interval, verdict
from bczoo.studies.characters_source import CLASSES, FIRST, SYMBOLS, MarkovSource, TextSource

TINY = Plan((Shape(8, 1, 12_000), Shape(16, 1, 8_000), Shape(24, 1, 6_000)), (0.016, 0.008), 8, seeds=1, splits=2)


def test_the_chain_follows_its_probabilities():
    source = MarkovSource(seed=0, stream=0)
    symbols = source.windows(40_000, 4) - FIRST
    assert symbols.min() >= 0 and symbols.max() < SYMBOLS
    contexts = (symbols[:, 0] * SYMBOLS + symbols[:, 1]) * SYMBOLS + symbols[:, 2]
    expected = source.chances[contexts].mean(axis=0)
    np.testing.assert_allclose(np.bincount(symbols[:, 3], minlength=SYMBOLS) / len(symbols), expected, atol=0.01)
    hits = source.chances[contexts, symbols[:, 3]]
    assert hits.mean() == pytest.approx((source.chances[contexts] ** 2).sum(axis=1).mean(), abs=0.01)


def test_streams_differ_and_come_again():
    first, again, other = (MarkovSource(3, stream).windows(50, 17) for stream in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_a_text_is_split_and_must_be_ascii(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a" * 900 + "b" * 100)
    assert set(TextSource(str(path), 0).windows(500, 8).ravel()) == {ord("a")}
    assert set(TextSource(str(path), 0, held_out=True).windows(50, 8).ravel()) == {ord("b")}
    path.write_bytes("caf\u00e9".encode())
    with pytest.raises(UserError, match="not in ASCII: 2 bytes, the first at 3"):
        TextSource(str(path), 0)


def test_a_text_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a" * 1000)
    with pytest.raises(UserError, match="900 characters to train on"):
        study_characters("smoke", str(tmp_path / "out"), text=str(path))


def test_sparse_variants_are_told_the_last_position_alone():
    torch.manual_seed(0)
    windows = torch.randint(0, CLASSES, (4, CONTEXT + 1))
    other = windows.clone()
    other[:, 5] = (other[:, 5] + 1) % CLASSES  # also seen by the last position, so compare gradients of outputs
    for variant, positions in (("dense", CONTEXT), ("sparse", 1), ("classes", 1)):
        model = CharacterModel(16, 1, variant)
        seen = []
        model.gpt.register_forward_hook(lambda _, __, output, seen=seen: (output.retain_grad(), seen.append(output))[1])
        model.loss(windows).backward()
        told = seen[0].grad.abs().sum(dim=(0, 2)) > 0
        assert told.sum() == positions and told[-1], variant


def test_a_plan_has_every_seed_of_every_kind_and_size():
    todo = runs(replace(TINY, seeds=3))
    assert len(set(todo)) == len(todo) == 3 * 3 * (2 + 2) and {run.seed for run in todo[:12]} == {0}


def test_halves_are_balanced_and_differ_by_split():
    first, second = (CharacterModel(16, 1, "classes", split).halves for split in (0, 1))
    assert first.sum() == CLASSES // 2 == second.sum() and (first != second).any()


def test_training_learns():
    losses = [float(loss) for _, loss in training(Shape(16, 1, 40_000), "dense", 0, 0.01, 40_000, TINY, 0)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.5


def law_rows(a, split, seed, noise=0.003):
    law = Law(A=50, B=210, E=1.2, alpha=0.5 * (1 - a), beta=0.5 * a)
    rng = np.random.default_rng([split, seed])
    rows = []
    for n in np.geomspace(5e3, 1e6, 6):
        tokens = np.geomspace(1e4, 1e8, 40)
        loss = law.loss(n, tokens) * np.exp(noise * rng.standard_normal(40))
        rows.append({"split": split, "seed": seed, "params": n, "name": f"{n:.0f}", "tokens": tokens, "loss": loss})
    return rows


def test_exponents_of_a_known_law_are_found_with_intervals_over_seeds():
    found = exponent([row for seed in range(2) for row in law_rows(0.6, 0, seed)], "squares")
    assert found.a == pytest.approx(0.6, abs=0.03) and found.low < found.a < found.high
    assert found.units == 2 and len(found.repeats) == 2 and not found.refused


def test_splits_are_the_units_where_there_are_several_and_refusals_are_counted():
    rows = [row for split in range(2) for seed in range(2) for row in law_rows(0.5, split, seed)]
    assert exponent(rows, "frontier").units == 2
    refused = exponent([row for row in rows if row["params"] < 2e4], "huber")
    assert refused.a is None and sum(refused.refused.values()) == 4


def test_interval_is_students():
    low, high = interval([0.4, 0.5, 0.6])
    assert (low, high) == (pytest.approx(0.5 - 0.2484, abs=1e-4), pytest.approx(0.5 + 0.2484, abs=1e-4))
    assert interval([0.5]) == (None, None)


@pytest.mark.parametrize(
    ("middles", "expected"),
    [
        ((0.63, 0.50, 0.15), ("reproduced", "reproduced", "reproduced")),
        ((0.50, 0.63, 0.15), ("contradicted", "reproduced", "contradicted")),
        ((0.51, 0.50, 0.15), ("undecided", "reproduced", "undecided")),
    ],
)
def test_verdicts(middles, expected):
    found = {
        v: Exponent(a, a - 0.03, a + 0.03, [a] * 3, 3, {}, {})
        for v, a in zip(characters.VARIANTS, middles, strict=True)
    }
    assert tuple(verdict(found).values()) == expected
    found["dense"] = replace(found["dense"], low=None, high=None)
    assert verdict(found)["dense > sparse"] == "undecided"


def test_a_study_runs_goes_on_and_is_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(characters.PLANS, "smoke", TINY)
    monkeypatch.setattr(characters_report, "METHODS", {"frontier": characters_report.METHODS["frontier"]})  # the quick
    command = ["study", "characters", "--size", "smoke", "--workers", "1", "--out", str(tmp_path)]
    assert main([*command, "--dry_run", "true"]) == 0
    assert "12 runs, 0 of them are already there" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main(command) == 0
    content = json.loads((tmp_path / "characters.json").read_text())
    assert len(content["runs"]) == len(runs(TINY)) == 12 and content["verdict"]["all"] in (
        "reproduced",
        "contradicted",
        "undecided",
    )
    row = content["runs"][0]
    assert row["tokens"] == sorted(row["tokens"]) and len(row["tokens"]) == len(row["loss"])
    capsys.readouterr()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    next(iter(kept)).unlink()
    assert main(command) == 0
    assert "12 runs, 11 of them are already there" in capsys.readouterr().out
    assert [p for p, time in kept.items() if p.stat().st_mtime_ns != time] == [next(iter(kept))]
    (tmp_path / "characters.png").unlink()
    assert main(["study", "redraw", str(tmp_path)]) == 0
    assert (tmp_path / "characters.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="another size, source or version"):
        study_characters("smoke", str(tmp_path), source_seed=1)
