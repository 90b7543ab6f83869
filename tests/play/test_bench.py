"""``bczoo bench latency``: what is counted, and what the command says."""

import pytest
import tiny
import torch

from bczoo.cli import main
from bczoo.play import bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_reading(monkeypatch):
    monkeypatch.setattr(bench, "MEASURED_BYTES", 1 << 24)


def test_the_command_prints_stages_and_the_distance_to_the_floor(capsys):
    assert main(["bench", "latency", "tiny", "--steps", "4", "--warm_up", "2", "--games", "2"]) == 0
    said = capsys.readouterr().out
    for stage in ("resize", "encode", "backbone", "decode", "sample", "step"):
        assert f"| {stage} |" in said
    assert "| 4 |" in said and "GB/s" in said and "times as long" in said and "budget 50.0 ms" in said


def test_the_floor_counts_every_weight_but_the_embedding_tables_once():
    policy = tiny.tiny_policy()
    tables = sum(t.weight.numel() for _, t in policy.action_embedding.tables.items())
    assert bench.weight_bytes(policy) == 4 * (policy.parameter_counts()["total"] - tables)
    assert bench.weight_bytes(policy.bfloat16()) == 2 * (policy.parameter_counts()["total"] - tables)


def test_the_report_relates_what_was_measured():
    report = bench.measure(tiny.tiny_policy().agent(3), steps=5, warm_up=1)
    assert all(row["n"] == 5 for row in report.latency.values())
    assert report.floor_ms == pytest.approx(1e3 * report.weight_bytes / report.bandwidth)
    stages = sum(row["mean"] for stage, row in report.latency.items() if stage != "step")
    assert 0.5 * report.latency["step"]["mean"] < stages <= report.latency["step"]["mean"]


def test_bandwidth_is_that_of_memory():
    assert 1e8 < bench.bandwidth(torch.device("cpu")) < 1e13


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["600x"], "600x"),
        (["tiny", "--device", "abacus"], "abacus"),
        (["tiny", "--steps", "0"], "steps"),
        (["tiny", "--cuda_graphs", "true"], "GPU"),
    ],
)
def test_bad_input_is_told(arguments, said, capsys):
    assert main(["bench", "latency", *arguments]) == 1
    assert said in capsys.readouterr().err
