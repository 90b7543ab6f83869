"""A dataset in LeRobot's format, version 3, written episode by episode.

Place in the pipeline: `command.py` gives it the steps and the video of every recording. The layout and its sources are
in :mod:`bczoo.imports.lerobot`, which reads it back.

An episode has a video file of its own, which the format allows, so that videos need not be encoded again.

Shape legend: n frames of an episode, D numbers of an action, Q quantiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from bczoo.core.files import PartialPath, write_json
from bczoo.data.video import sample_frames
from bczoo.imports.format import needed
from bczoo.imports.lerobot import ACTION, CAMERA, EPISODES, INFO, KNOWN, TASKS, VERSION

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_A_CHUNK = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200  # LeRobot's own bounds, by which it splits what it adds
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}  # by their names in LeRobot
SAMPLED = 4  # frames of every video, for the statistics of pixels


@dataclass
class Episode:
    """What a recording gives.

    Args:
        actions: (n, D) float32.
        known: (n,) bool, whether the action is a person's or an expert's.
        texts: (n) the instruction that holds, "" for none.
        start: time in seconds of the video's first frame.
        about: further columns of the table of episodes, such as the game's name.
    """

    actions: np.ndarray
    known: np.ndarray
    texts: Sequence[str]
    start: float
    about: Mapping[str, str]


class DatasetWriter:
    """Writes a dataset; its folder appears, whole, with :meth:`close`.

    Args:
        folder: must not exist, or be empty.
        fps: steps per second.
        names: of the D numbers of an action.
        robot: what acts, for ``robot_type``.
    """

    def __init__(self, folder: Path, fps: int, names: Sequence[str], robot: str) -> None:
        self._arrow, self._parquet = needed("pyarrow"), needed("pyarrow.parquet")
        self._fps, self._names, self._robot = fps, list(names), robot
        self._partial = PartialPath(folder)
        self._root = self._partial.path
        self._root.mkdir()
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._frames = 0
        self._stats: dict[str, _Statistics] = {}
        self._data: Any = None  # the file of rows that is being written, how many came before, and its bytes
        self._data_files = self._data_bytes = 0

    @property
    def next_video(self) -> Path:
        """Where the video of the next episode has to be when :meth:`add` is called."""
        path = self._root / VIDEO_PATH.format(video_key=CAMERA, **_place(len(self._episodes)))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, episode: Episode) -> None:
        """Append an episode whose video is at :attr:`next_video`.

        Raises:
            RecordingError: the video cannot be read; nothing was added.
        """
        arrow, number, n = self._arrow, len(self._episodes), len(episode.actions)
        pixels = [run[0] for run in sample_frames(self.next_video, SAMPLED, 1)]
        for text in episode.texts:
            self._tasks.setdefault(text, len(self._tasks))
        numbers = {
            ACTION: episode.actions if len(self._names) > 1 else episode.actions[:, 0],
            KNOWN: episode.known,
            "timestamp": (np.arange(n) / self._fps).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": np.arange(self._frames, self._frames + n),
            "task_index": np.array([self._tasks[text] for text in episode.texts]),
        }
        columns = dict(numbers)
        if len(self._names) > 1:
            flat = arrow.array(episode.actions.reshape(-1))
            columns[ACTION] = arrow.FixedSizeListArray.from_arrays(flat, len(self._names))
        self._write_rows(arrow.table(columns))
        stats = {name: _Statistics(values.reshape(n, -1)) for name, values in numbers.items()}
        stats[CAMERA] = _Statistics(np.concatenate([frame.reshape(-1, 3) / 255 for frame in pixels]), len(pixels))
        row = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(episode.texts)),
            "length": n,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + n,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            f"videos/{CAMERA}/from_timestamp": episode.start,
            f"videos/{CAMERA}/to_timestamp": episode.start + n / self._fps,
            **{f"data/{name}": value for name, value in _place(self._data_files).items()},
            **{f"videos/{CAMERA}/{name}": value for name, value in _place(number).items()},
            **episode.about,
        }
        for name, found in stats.items():
            row |= {f"stats/{name}/{kind}": value for kind, value in found.plain(name).items()}
            self._stats[name] = self._stats[name].joined(found) if name in self._stats else found
        self._episodes.append(row)
        self._frames += n

    def close(self) -> None:
        """Write the tables that speak of all episodes, and give the folder its name.

        Raises:
            FileExistsError: there is something in the folder; what was written is discarded.
        """
        self._data.close()
        (self._root / EPISODES / "chunk-000").mkdir(parents=True)
        episodes = self._arrow.Table.from_pylist(self._episodes)
        self._parquet.write_table(episodes, self._root / EPISODES / "chunk-000" / "file-000.parquet")
        self._parquet.write_table(self._task_table(), self._root / TASKS)
        write_json(self._root / INFO, self._info(), indent=4)
        stats = {name: found.plain(name) for name, found in self._stats.items()}
        write_json(self._root / "meta/stats.json", stats, indent=4)
        self._partial.commit()

    def discard(self) -> None:
        """Remove what was written; harmless after :meth:`close`."""
        if self._data is not None:
            self._data.close()
        self._partial.discard()

    def _write_rows(self, table: Any) -> None:
        """Write the rows of an episode, into another file when one is full."""
        if self._data is not None and self._data_bytes + table.nbytes > DATA_FILE_MB * 2**20:
            self._data.close()
            self._data, self._data_bytes = None, 0
            self._data_files += 1
        if self._data is None:
            path = self._root / DATA_PATH.format(**_place(self._data_files))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(path, table.schema)
        self._data.write_table(table)
        self._data_bytes += table.nbytes

    def _task_table(self) -> Any:
        """Texts and their numbers, as pandas writes a table whose index is the text."""
        table = self._arrow.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        column = {"numpy_type": "int64", "pandas_type": "int64", "metadata": None}
        index = {"numpy_type": "object", "pandas_type": "unicode", "metadata": None}
        about = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {"name": "task_index", "field_name": "task_index", **column},
                {"name": "task", "field_name": "task", **index},
            ],
            "creator": {"library": "pyarrow", "version": self._arrow.__version__},
            "pandas_version": "2.2.0",
        }
        return table.replace_schema_metadata({"pandas": json.dumps(about)})

    def _info(self) -> dict[str, Any]:
        video = self._root / VIDEO_PATH.format(video_key=CAMERA, **_place(0))
        with av.open(str(video), format="mp4") as container:
            stream = container.streams.video[0]
            height, width = stream.height, stream.width
            about = {
                "video.height": height,
                "video.width": width,
                "video.codec": stream.codec.canonical_name,
                "video.pix_fmt": stream.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": bool(container.streams.audio),
            }
        one = {"shape": [1], "names": None}
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {
                CAMERA: {
                    "dtype": "video",
                    "shape": [height, width, 3],
                    "names": ["height", "width", "channels"],
                    "info": about,
                },
                ACTION: {"dtype": "float32", "shape": [len(self._names)], "names": self._names},
                KNOWN: {"dtype": "bool", **one},
                "timestamp": {"dtype": "float32", **one},
                **{name: {"dtype": "int64", **one} for name in ("frame_index", "episode_index", "index", "task_index")},
            },
        }


def _place(file: int) -> dict[str, int]:
    """Chunk and number of a file, of those that are numbered through."""
    return {"chunk_index": file // FILES_A_CHUNK, "file_index": file % FILES_A_CHUNK}


class _Statistics:
    """What LeRobot normalises by: least, largest, mean, standard deviation and quantiles of every number of a feature.

    Quantiles of many episodes are the mean of theirs, weighted by their length, as LeRobot joins them: those of all
    numbers would need all numbers at once.

    Args:
        values: (n, D) numbers.
        count: of what LeRobot counts, frames; n if left out.
    """

    def __init__(self, values: np.ndarray, count: int | None = None) -> None:
        values = values.astype(np.float64)
        self.n, self.count = len(values), len(values) if count is None else count
        self.least, self.largest = values.min(0), values.max(0)
        self.mean, self.squares = values.mean(0), ((values - values.mean(0)) ** 2).sum(0)
        self.quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)  # (Q, D)

    def joined(self, other: _Statistics) -> _Statistics:
        """Those of all numbers of two."""
        both = _Statistics.__new__(_Statistics)
        both.n, both.count = self.n + other.n, self.count + other.count
        both.least, both.largest = np.minimum(self.least, other.least), np.maximum(self.largest, other.largest)
        apart = other.mean - self.mean
        both.mean = self.mean + apart * other.n / both.n
        both.quantiles = self.quantiles + (other.quantiles - self.quantiles) * other.n / both.n
        both.squares = self.squares + other.squares + apart**2 * self.n * other.n / both.n
        return both

    def plain(self, feature: str) -> dict[str, Any]:
        """As lists; those of a camera have LeRobot's shape (3, 1, 1)."""
        shape = (-1, 1, 1) if feature == CAMERA else (-1,)
        found = {
            "min": self.least,
            "max": self.largest,
            "mean": self.mean,
            "std": np.sqrt(self.squares / self.n),
            **dict(zip(QUANTILES, self.quantiles, strict=True)),
        }
        return {kind: values.reshape(shape).tolist() for kind, values in found.items()} | {"count": [self.count]}
