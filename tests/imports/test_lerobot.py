"""LeRobot datasets as robots record them: several episodes in a file, actions that are no keys, and broken ones."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import HEIGHT, WIDTH, even, number_of, numbered, write_video
from PIL import Image

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data.errors import RecordingError
from bczoo.imports.command import import_recordings
from bczoo.imports.lerobot import LeRobot
from bczoo.imports.steps import cut

FPS = 10
LENGTHS = (4, 6, 5)
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
MAP = {
    "d": {"column": "action.vx", "scale": 5},
    "a": {"column": "action.vx", "scale": -5},
    "mouse_dx": {"column": "action.vy", "scale": 100},
    "mouse_left": "action.gripper",
}


def action(i):
    return [0.3 * (-1) ** i, i / 10, float(i % 3 == 0)]


def write_dataset(root, lengths=LENGTHS, version="v3.0", image=False):
    """All episodes in one file each of rows and frames; frames are numbered through, and so are actions."""
    total, starts = sum(lengths), np.cumsum((0, *lengths))
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    camera = {"dtype": "image" if image else "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "c"]}
    vector = {"dtype": "float32", "shape": [3], "names": ["vx", "vy", "gripper"]}
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": {FRONT: camera, "action": vector, "observation.state": {"dtype": "float32", "shape": [2]}},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = {
        "action": pa.array([action(i) for i in range(total)], pa.list_(pa.float32(), 3)),
        "frame_index": [i for n in lengths for i in range(n)],
        "episode_index": [e for e, n in enumerate(lengths) for _ in range(n)],
        "task_index": [e % 2 for e, n in enumerate(lengths) for _ in range(n)],
    }
    if image:
        for i in range(total):
            Image.fromarray(numbered(i)).save(root / f"{i}.png")
        rows[FRONT] = [{"bytes": (root / f"{i}.png").read_bytes(), "path": None} for i in range(total)]
    else:
        write_video(root / f"videos/{FRONT}/chunk-000/file-000.mp4", even(total, FPS))
    pq.write_table(pa.table(rows), root / "data/chunk-000/file-000.parquet")
    pq.write_table(
        pa.table({"task_index": [1, 0], "__index_level_0__": ["place", "pick"]}), root / "meta/tasks.parquet"
    )
    files = {f"{of}/{name}": 0 for of in ("data", f"videos/{FRONT}") for name in ("chunk_index", "file_index")}
    episodes = [
        {"episode_index": e, "length": n, f"videos/{FRONT}/from_timestamp": starts[e] / FPS, **files}
        for e, n in enumerate(lengths)
    ]
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def steps(session):
    return list(cut(session, FPS, "a"))


@pytest.mark.parametrize("image", [False, True], ids=["video", "image"])
def test_each_episode_has_its_own_rows_and_frames(tmp_path, image):
    write_dataset(tmp_path / "arm", image=image)
    reader = LeRobot(map=MAP, env="arm")
    found = list(reader.find(tmp_path))
    assert [path.name for path in found] == ["episode_000000", "episode_000001", "episode_000002"]
    first = 0
    for e, (path, n) in enumerate(zip(found, LENGTHS, strict=True)):
        told = steps(reader.read(path))
        assert [number_of(step.frame) for step in told] == list(range(first, first + n))
        for i, step in enumerate(told, first):
            assert step.values["keys"] == ["a" if i % 2 else "d"] and step.values["mouse_dx"] == i * 10
            assert step.values["mouse_buttons"] == (["0"] if i % 3 == 0 else [])
            assert step.text == ("place" if e % 2 else "pick")
        first += n


def test_a_map_lies_in_a_file_too(tmp_path):
    (tmp_path / "map.yaml").write_text("w: action.gripper\nmouse_dy: {column: action.vy, scale: -10}\n")
    write_dataset(tmp_path / "arm")
    told = steps(LeRobot(map=str(tmp_path / "map.yaml")).read(tmp_path / "arm" / "episode_000000"))
    assert [step.values["keys"] for step in told] == [["w"], [], [], ["w"]]
    assert [step.values["mouse_dy"] for step in told] == [0, -1, -2, -3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "a map has to say .* there are action.vx, action.vy, action.gripper"),
        ({"map": {"w": "forward"}}, "names 'forward', which .* there are action.vx, .* observation.state.1"),
        ({"map": {"w": {"scale": 2}}}, "map: w must be a column"),
        ({"map": {"w": {"column": "action.vx", "scale": "x"}}}, "scale of w must be a number"),
        ({"map": "nowhere.yaml"}, "map nowhere.yaml cannot be read"),
        ({"map": MAP, "camera": "top"}, f"has no camera 'top'; name one of {FRONT}"),
    ],
)
def test_what_the_user_has_to_say(tmp_path, options, says):
    write_dataset(tmp_path / "arm")
    with pytest.raises(UserError, match=says):
        import_recordings("lerobot", str(tmp_path / "arm"), str(tmp_path / "out"), options=options, processes=1)
    assert not (tmp_path / "out").exists()


def without(path):
    path.unlink()


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage", "says", "left"),
    [
        ("meta/episodes/chunk-000/file-000.parquet", cut_off, "file-000.parquet: cannot be read|cannot be read", 0),
        ("meta/episodes/chunk-000/file-000.parquet", without, "the dataset has no episodes", 0),
        ("meta/tasks.parquet", without, "tasks.parquet: the file is missing", 0),
        ("data/chunk-000/file-000.parquet", cut_off, "file-000.parquet: cannot be read", 0),
        (f"videos/{FRONT}/chunk-000/file-000.mp4", without, "file-000.mp4: ", 0),
        (f"videos/{FRONT}/chunk-000/file-000.mp4", lambda p: write_video(p, even(12, FPS)), "has 2 of the 5 frames", 2),
        ("meta/info.json", cut_off, "says no rate and features", 0),
    ],
)
def test_broken_datasets_get_a_line_each_and_never_half_a_recording(tmp_path, capsys, file, damage, says, left):
    damage(write_dataset(tmp_path / "arm") / file)
    out, options = tmp_path / "out", json.dumps({"map": MAP})
    assert main(["data", "import", "lerobot", str(tmp_path), str(out), "--options", options, "--processes", "1"]) == 1
    told = capsys.readouterr().out
    assert f"{left} recordings imported" in told and any(part in told for part in says.split("|"))
    assert "Traceback" not in told
    assert len(list(out.iterdir() if out.exists() else ())) == left


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codebase_version": "v2.1"}, "of version v2.1, where v3.0 is read"),
        ({"fps": "fast"}, "fps must be a number"),
        ({"data_path": "../../x.parquet"}, "lies outside of the dataset"),
        ({"data_path": "{nothing}"}, "nothing says where data of episode 0 lies"),
    ],
)
def test_what_info_says_is_not_trusted(tmp_path, change, says):
    info = write_dataset(tmp_path / "arm") / "meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(RecordingError, match=says):
        LeRobot(map=MAP).read(tmp_path / "arm" / "episode_000000")


def test_actions_that_are_no_numbers(tmp_path):
    file = write_dataset(tmp_path / "arm") / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    actions = table.column("action").to_pylist()
    actions[2][0] = float("nan")
    pq.write_table(table.set_column(0, "action", pa.array(actions)), file)
    with pytest.raises(RecordingError, match="action is no finite number at frame 2"):
        LeRobot(map=MAP).read(tmp_path / "arm" / "episode_000000")
