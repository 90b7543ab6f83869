"""``bczoo data export lerobot``: what a reader of such datasets finds, and that it comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq

from bczoo.cli import main
from bczoo.core.actions import ActionSpace
from bczoo.data.errors import RecordingError
from bczoo.data.index import open_index
from bczoo.data.recording import LEARNED, RecordingWriter
from bczoo.data.video import iterate_frames, sample_frames
from bczoo.exports import lerobot
from bczoo.exports.command import export_recordings
from bczoo.imports.command import import_recordings
from bczoo.imports.lerobot import CAMERA

SPACE = ActionSpace.keyboard_mouse()


def write(folder, steps=30, size=48, fps=20.0, seed=0, **arguments):
    """Keys, motion, steps that nobody knows, of a policy and of an expert, and instructions."""
    rng = np.random.default_rng(seed)
    with RecordingWriter(folder, size=size, fps=fps, env="doom", env_subtype="basic", user="me", **arguments) as writer:
        for t in range(steps):
            user = {
                "keys": [["w"], [], ["Space", "w", "a", "d", "e"], ["F5", "q"]][t // 3 % 4],
                "mouse_buttons": ["0"] if t % 5 == 0 else [],
                "mouse_dx": int(rng.integers(-700, 700)),
                "mouse_dy": t % 9 - 4,
            }
            system = {"keys": ["s"]} if 15 <= t < 19 else None
            writer.add(
                rng.integers(0, 256, (size, size, 3), np.uint8),
                user=None if system or 8 <= t < 10 else user,
                system=system,
                expert=user if t == 17 else None,
                text="go" if 5 <= t < 12 else "stop" if 12 <= t < 14 else None,
            )
    return folder


def rows_of(out):
    return [row for file in sorted(out.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_round_trip(tmp_path):
    for i in range(3):
        write(tmp_path / "in" / f"rec_{i}", steps=20 + i, seed=i)
    report = export_recordings("lerobot", str(tmp_path / "in"), str(tmp_path / "set"))
    assert (report.status, report.episodes, report.copied) == (0, 3, 3) and list(report.beyond) == ["keys:F5"]
    again = import_recordings("lerobot", str(tmp_path / "set"), str(tmp_path / "out"), size=48, processes=1)
    assert again.status == 0 and sum(one.copied for one in again.recordings) == 3
    before, after = (open_index(tmp_path / name, SPACE) for name in ("in", "out"))
    for i in range(3):
        ids, kind = before.labels(i), before.steps(i)[1]
        known = np.isin(kind, LEARNED)
        assert 0 < known.sum() < len(kind)
        assert (np.isin(after.steps(i)[1], LEARNED) == known).all()
        np.testing.assert_array_equal(after.labels(i)[known], ids[known])
        with before.reading(i) as old, after.reading(i) as new:
            pairs = list(zip(*(iterate_frames(folder / "48x48.mp4") for folder in (old, new)), strict=True))
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)


def test_what_a_reader_finds(tmp_path):
    write(tmp_path / "in" / "a", steps=20, task="win")
    write(tmp_path / "in" / "b", steps=25)
    assert main(["data", "export", "lerobot", str(tmp_path / "in"), str(tmp_path / "set")]) == 0
    out = tmp_path / "set"
    info = json.loads((out / "meta/info.json").read_text())
    names = info["features"]["action"]["names"]
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 2, 47)
    assert names[:2] == ["keys:Space", "keys:1"] and names[-2:] == ["mouse_dx", "mouse_dy"]
    assert info["features"][CAMERA]["shape"] == [48, 48, 3]
    rows = rows_of(out)
    assert [row["index"] for row in rows] == list(range(47))
    assert [row["frame_index"] for row in rows] == [*range(21), *range(26)]
    held = {name for name, value in zip(names, rows[6]["action"], strict=True) if value == 1}
    assert held == {"keys:Space", "keys:w", "keys:a", "keys:d", "keys:e"}  # all five, where a policy says four
    assert [row["known_action"] for row in rows[7:11]] == [True, False, False, True]
    assert [row["known_action"] for row in rows[15:21]] == [False, False, True, False, True, False]  # 17 is an expert's
    tasks = pq.read_table(out / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    text = dict(zip(tasks.column("task_index").to_pylist(), tasks.column("task").to_pylist(), strict=True))
    assert [text[row["task_index"]] for row in (rows[0], rows[5], rows[13], rows[21])] == ["win", "go", "stop", ""]
    episodes = pq.read_table(out / "meta/episodes").to_pylist()
    assert [(e["length"], e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [
        (21, 0, 21),
        (26, 21, 47),
    ]
    assert [e[f"videos/{CAMERA}/file_index"] for e in episodes] == [0, 1] and episodes[0]["env"] == "doom"
    actions = np.array([row["action"] for row in rows])
    stats = json.loads((out / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-9)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    assert stats["action"]["max"] == actions.max(0).tolist() and stats["action"]["count"] == [47]
    of_episodes = [np.quantile(actions[:21], 0.9, axis=0), np.quantile(actions[21:], 0.9, axis=0)]
    np.testing.assert_allclose(stats["action"]["q90"], np.average(of_episodes, axis=0, weights=[21, 26]), atol=1e-6)
    assert {"q01", "q10", "q50", "q99"} < set(stats[CAMERA]) and np.shape(stats[CAMERA]["q50"]) == (3, 1, 1)
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1) and 0.3 < stats[CAMERA]["mean"][0][0][0] < 0.7


def test_rows_go_into_another_file_when_one_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "DATA_FILE_MB", 0.003)
    for i in range(3):
        write(tmp_path / "in" / f"rec_{i}", steps=20)
    export_recordings("lerobot", str(tmp_path / "in"), str(tmp_path / "set"))
    assert len(list((tmp_path / "set").glob("data/*/*.parquet"))) == 3 and len(rows_of(tmp_path / "set")) == 63
    report = import_recordings("lerobot", str(tmp_path / "set"), str(tmp_path / "out"), size=48, processes=1)
    assert report.status == 0 and [one.steps for one in report.recordings] == [21, 21, 21]


def test_what_cannot_be_exported_gets_a_line(tmp_path, capsys):
    for name in ("a", "b", "broken", "short"):
        write(tmp_path / "in" / name)
    write(tmp_path / "in" / "large", size=64)
    write(tmp_path / "in" / "slow", fps=10)
    (tmp_path / "in/broken/annotation.proto").write_bytes(b"\xff")
    video = tmp_path / "in/short/48x48.mp4"
    video.write_bytes(video.read_bytes()[:-2000])
    assert main(["data", "export", "lerobot", str(tmp_path / "in"), str(tmp_path / "set")]) == 1
    told = capsys.readouterr().out
    assert "2 episodes" in told and "4 not exported:" in told
    assert "large: frames of 64x64, the dataset has 48x48; --size makes them alike" in told
    assert "slow: has 10 steps per second, the dataset 20; export it with --fps 10" in told
    assert "broken: " in told and "short: " in told
    assert len(list((tmp_path / "set").glob("videos/*/*/*.mp4"))) == 2
    assert main(["data", "export", "lerobot", str(tmp_path / "in"), str(tmp_path / "set")]) == 1
    assert "OUT" in (error := capsys.readouterr().err) and "never overwritten" in error


def test_a_video_that_fails_late_leaves_no_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / "in" / name)

    def sample(path, *arguments):
        if path.name == "file-001.mp4":
            raise RecordingError(path, "broken")
        return sample_frames(path, *arguments)

    monkeypatch.setattr(lerobot, "sample_frames", sample)
    report = export_recordings("lerobot", str(tmp_path / "in"), str(tmp_path / "set"))
    assert report.problems == {"b": "broken"} and report.episodes == 1
    assert [path.name for path in (tmp_path / "set").glob("videos/*/*/*.mp4")] == ["file-000.mp4"]


def test_a_size_is_encoded_anew_where_needed(tmp_path):
    write(tmp_path / "in" / "a", steps=12)
    write(tmp_path / "in" / "b", steps=12, size=64)
    report = export_recordings("lerobot", str(tmp_path / "in"), str(tmp_path / "set"), size=64)
    assert (report.status, report.episodes, report.copied) == (0, 2, 1)
    for video in (tmp_path / "set").glob("videos/*/*/*.mp4"):
        assert [frame.shape for frame in iterate_frames(video)] == [(64, 64, 3)] * 13


def test_nothing_is_left_where_nothing_can_be_written(tmp_path):
    write(tmp_path / "in" / "a", fps=10)
    report = export_recordings("lerobot", str(tmp_path / "in"), str(tmp_path / "set"), fps=30)
    assert report.status == 1 and report.episodes == 0 and sorted(p.name for p in tmp_path.iterdir()) == ["in"]
