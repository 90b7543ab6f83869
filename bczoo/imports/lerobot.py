"""LeRobot datasets, version 3: parquet tables of many episodes, and videos with many episodes in a file.

Place in the pipeline: a format of :mod:`bczoo.imports`; :mod:`bczoo.exports.lerobot` writes the same layout. Fields are
those of https://huggingface.co/docs/lerobot/lerobot-dataset-v3 and of huggingface/lerobot 0.4.4 (Apache 2.0),
``datasets/utils.py`` and ``datasets/lerobot_dataset.py``:

    meta/info.json                                 rate, features, where files lie
    meta/episodes/chunk-000/file-000.parquet       a row an episode: length, files, from and to when in the video
    meta/tasks.parquet                             texts and their numbers
    data/chunk-000/file-000.parquet                a row a frame: action, task_index, ...
    videos/CAMERA/chunk-000/file-000.mp4

Frame i of an episode is row i, whose action is the one taken at that frame. A robot's action is a vector of numbers, so
a map says which of them are keys: from the name of an input to a column, ``{"w": "action.forward"}``. A key is held
where the column is above 0.5; ``{"a": {"column": "action.x", "scale": -5}}`` holds it below -0.1. Motions and positions
are the column's value times the scale. Datasets that bczoo exported need no map.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.data.errors import RecordingError
from bczoo.data.video import probe
from bczoo.imports.format import Format, files_below, needed
from bczoo.imports.frames import timed_frames
from bczoo.imports.session import MOTIONS, POSITIONS, Event, Picture, Session, held_events, input_of

VERSION = "v3.0"
INFO, EPISODES, TASKS = "meta/info.json", "meta/episodes", "meta/tasks.parquet"
ACTION, KNOWN, CAMERA = "action", "known_action", "observation.images.screen"  # features of exported datasets
OURS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # features that every dataset has
PICTURES = ("video", "image")  # types of features
ABOUT = ("env", "env_subtype", "user", "task")  # of an episode, where bczoo exported it
HELD_ABOVE = 0.5
SHOWN = 40  # columns in an error


@dataclass(frozen=True)
class _Column:
    """A number of every frame: element ``place`` of a feature, or the feature itself."""

    feature: str
    place: int | None


class LeRobot(Format):
    """LeRobot datasets of version 3.

    Args:
        map: column by input, or a YAML or JSON file of it; a column is a name, or a name and a scale.
        camera: feature whose pictures are the frames; may be left out where there is only one.
        env: name of the game, if the dataset does not say.
    """

    name = "lerobot"
    description = "LeRobot datasets, version 3: meta/info.json, parquet tables and videos"

    def __init__(self, map: str | dict[str, Any] | None = None, camera: str = "", env: str = "") -> None:
        self.map = None if map is None else _checked_map(map)
        self.camera, self.env = camera, env

    def find(self, source: Path) -> Iterator[Path]:
        """``<dataset>/episode_<number>``, which is no path on disk; what cannot be read is named by its own file."""
        for info in files_below(source, ".json"):
            if info.parts[-2:] != ("meta", "info.json"):
                continue
            root, some = info.parent.parent, False
            for file in files_below(root / EPISODES, ".parquet"):
                some = True
                try:
                    numbers = _rows(file, ["episode_index"])
                except RecordingError:
                    yield file
                    continue
                yield from (root / f"episode_{row['episode_index']:06d}" for row in numbers)
            if not some:
                yield info

    def read(self, path: Path) -> Session:
        if path.suffix == ".parquet":  # one of meta/episodes that find could not read
            _rows(path, ["episode_index"])
        if path.suffix:
            raise RecordingError(path, f"the dataset has no episodes ({EPISODES}/*/*.parquet)")
        root, number = path.parent, int(path.name.removeprefix("episode_"))
        info = _info(root)
        features, fps = info["features"], float(info["fps"])
        columns = _columns(features)
        inputs = self._inputs(root, columns)
        camera = self._camera(root, features)
        episode = _episode(root, number)
        wanted = {column.feature for column, _ in inputs.values()} | {"frame_index", "task_index"}
        wanted |= {name for name in (KNOWN, camera) if name in features and features[name]["dtype"] != "video"}
        rows = _table(
            _file(root, info["data_path"], episode, "data", number), sorted(wanted), [("episode_index", "=", number)]
        )
        n = len(rows["frame_index"])
        if n != episode["length"] or list(rows["frame_index"]) != list(range(n)):
            raise RecordingError(path, f"its {n} rows of data are not the {episode['length']} frames that it has")
        video = None
        frames: Iterator[tuple[float, Picture]]
        if features[camera]["dtype"] == "image":
            frames = ((i / fps, _picture(cell, i)) for i, cell in enumerate(rows[camera]))
        else:
            video = _file(root, info["video_path"], episode, f"videos/{camera}", number, video_key=camera)
            frames = _frames(video, float(episode[f"videos/{camera}/from_timestamp"]), n, fps)
            video = video if probe(video).n_frames == n else None  # others hold further episodes
        known = rows.get(KNOWN, [True] * n)
        about = {name: str(episode.get(name) or "") for name in ABOUT}
        return Session(
            frames,
            _events(rows, inputs, fps, path),
            texts=_texts(_tasks(root), rows["task_index"], fps, path),
            fps=fps,
            end=n / fps,
            unknown=[(i / fps, (i + 1) / fps) for i in range(n) if not known[i]],
            env=self.env or about["env"],
            env_subtype=about["env_subtype"],
            user=about["user"],
            task=about["task"],
            video=video,
        )

    def _inputs(self, root: Path, columns: Mapping[str, _Column]) -> dict[str, tuple[_Column, float]]:
        """Column and scale of every input."""
        actions = [name for name in columns if name.startswith(f"{ACTION}.")]
        if self.map is None:
            own = {input_of(name.removeprefix(f"{ACTION}.")): name for name in actions}
            if None in own or not own:
                raise UserError(
                    f"format lerobot: a map has to say which columns of {root} are keys and mouse, such as "
                    f'--options \'{{"map": {{"w": "{next(iter(actions or columns), "action.forward")}"}}}}\'; '
                    f"there are {_listed(actions or list(columns))}"
                )
            return {str(name): (columns[column], 1.0) for name, column in own.items()}
        if missing := [column for column, _ in self.map.values() if column not in columns]:
            raise UserError(
                f"format lerobot: map names {missing[0]!r}, which {root} does not have; there are "
                f"{_listed(list(columns))}"
            )
        return {name: (columns[column], scale) for name, (column, scale) in self.map.items()}

    def _camera(self, root: Path, features: Mapping[str, Any]) -> str:
        cameras = [name for name, feature in features.items() if feature["dtype"] in PICTURES]
        if self.camera in cameras or (not self.camera and len(cameras) == 1):
            return self.camera or cameras[0]
        raise UserError(
            f"format lerobot: {root} has {'no camera ' + repr(self.camera) if self.camera else 'several cameras'}; "
            f'name one of {", ".join(cameras)}, such as --options \'{{"camera": "{cameras[0]}"}}\''
            if cameras
            else f"format lerobot: {root} has no pictures, and so nothing to learn actions from"
        )


def _checked_map(given: str | dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Column and scale by input."""
    if isinstance(given, str):
        try:
            given = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"format lerobot: map {given} cannot be read ({error})") from error
    if not isinstance(given, dict) or not given:
        arguments.refuse("map", given, 'columns by input, such as {"w": "action.forward"}')
    out = {}
    for name, entry in given.items():
        entry = {"column": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not {"column"} <= set(entry) <= {"column", "scale"}:
            arguments.refuse(f"map: {name}", entry, 'a column, or {"column": name, "scale": number}')
        arguments.number(f"map: scale of {name}", entry.get("scale", 1.0), -1e9, 1e9)
        out[str(name)] = str(entry["column"]), float(entry.get("scale", 1.0))
    return out


def _info(root: Path) -> dict[str, Any]:
    """``meta/info.json``, of a version that is read here and with the fields that are needed."""
    path = root / INFO
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if not version.startswith("v3."):
            raise RecordingError(
                path,
                f"the dataset is of version {version}, where {VERSION} is read; lerobot's "
                "lerobot.datasets.v30.convert_dataset_v21_to_v30 brings it there",
            )
        arguments.number("fps", info["fps"], 0.1, 1000)
        for feature in info["features"].values():
            feature["dtype"], feature["shape"] = str(feature["dtype"]), [int(side) for side in feature["shape"]]
        str(info["data_path"]), info.get("video_path")
    except UserError as error:
        raise error if isinstance(error, RecordingError) else RecordingError(path, str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(path, f"says no rate and features ({type(error).__name__}: {error})") from error
    return info


def _columns(features: Mapping[str, Any]) -> dict[str, _Column]:
    """The numbers of a frame by name: ``feature.name``, ``feature.number`` without names, ``feature`` of one number."""
    columns = {}
    for feature, about in features.items():
        if about["dtype"] in (*PICTURES, "string") or feature in OURS or len(about["shape"]) != 1:
            continue
        length, names = about["shape"][0], about.get("names")
        if isinstance(names, dict):  # {"motors": [names]}, or numbers by name
            names = next((v for v in names.values() if isinstance(v, list)), sorted(names, key=names.__getitem__))
        if length == 1 and not names:
            columns[feature] = _Column(feature, None)
            continue
        names = names if names and len(names) == length else range(length)
        columns |= {
            f"{feature}.{name}": _Column(feature, place if length > 1 else None) for place, name in enumerate(names)
        }
    return columns


def _episode(root: Path, number: int) -> dict[str, Any]:
    for file in files_below(root / EPISODES, ".parquet"):
        try:
            found = _rows(file, None, [("episode_index", "=", number)])
        except RecordingError:  # reported by find; the episode lies in another one
            continue
        if found:
            return found[0]
    raise RecordingError(root, f"there is no episode {number}")


def _file(root: Path, template: str, episode: Mapping[str, Any], of: str, number: int, **names: str) -> Path:
    """The file in which the data or the frames of an episode lie."""
    try:
        where = {name: int(episode[f"{of}/{name}"]) for name in ("chunk_index", "file_index")}
        path = root / template.format(**where, **names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(root, f"nothing says where {of} of episode {number} lies ({error!r})") from error
    if not path.resolve().is_relative_to(root.resolve()):
        raise RecordingError(path, "lies outside of the dataset")
    return path


def _tasks(root: Path) -> dict[int, str]:
    """Texts by number. pandas calls the column of the texts by the name of an index, which differs."""
    out = {}
    for row in _rows(root / TASKS, None):
        text = next((value for name, value in row.items() if name != "task_index"), "")
        out[int(row["task_index"])] = str(text)
    return out


def _texts(tasks: Mapping[int, str], numbers: Sequence[int], fps: float, where: Path) -> list[tuple[float, str | None]]:
    if unknown := set(numbers) - set(tasks):
        raise RecordingError(where, f"task {min(unknown)} is not in {TASKS}")
    begins = [0, *(i for i, (a, b) in enumerate(pairwise(numbers), 1) if a != b)]
    return [(i / fps, tasks[numbers[i]] or None) for i in begins]


def _events(
    rows: Mapping[str, Any], inputs: Mapping[str, tuple[_Column, float]], fps: float, where: Path
) -> list[Event]:
    """What the columns say was held, moved and steered."""
    times = [i / fps for i in range(len(rows["frame_index"]))]
    held: list[set[str]] = [set() for _ in times]
    events: list[Event] = []
    for name, (column, scale) in inputs.items():
        cells = rows[column.feature]
        try:
            values = np.array(cells if column.place is None else [cell[column.place] for cell in cells], float)
            values = values.reshape(len(times)) * scale
        except (TypeError, ValueError, IndexError) as error:
            raise RecordingError(where, f"{column.feature} holds no numbers ({error})") from error
        if not np.isfinite(values).all():
            raise RecordingError(where, f"{column.feature} is no finite number at frame {np.isfinite(values).argmin()}")
        if name in MOTIONS or name in POSITIONS:
            events += [Event(time, name, value) for time, value in zip(times, values.tolist(), strict=True)]
            continue
        for i in np.flatnonzero(values > HELD_ABOVE).tolist():
            held[i].add(name)
    return events + held_events(times, held)


def _frames(video: Path, start: float, count: int, fps: float) -> Iterator[tuple[float, Picture]]:
    """The frames of an episode, by number; a video that lacks some of them is broken."""
    number = 0
    for _, picture in timed_frames(video, start - 0.5 / fps, start + (count - 0.5) / fps):
        yield number / fps, picture
        number += 1
    if number != count:
        raise RecordingError(video, f"has {number} of the {count} frames from {start:g} s on")


def _picture(cell: Any, i: int) -> Picture:
    """A picture in a table: the bytes of an image file."""

    def decode() -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
        except Exception as error:  # whatever upsets the library is damage of this picture
            raise RecordingError("", f"the picture of frame {i} cannot be read ({error})") from error

    return decode


def _rows(path: Path, columns: list[str] | None, filters: list[Any] | None = None) -> list[dict[str, Any]]:
    table = _table(path, columns, filters)
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _table(path: Path, columns: list[str] | None, filters: list[Any] | None = None) -> dict[str, list[Any]]:
    """Columns of a parquet file, all but statistics if none are named."""
    parquet = needed("pyarrow.parquet")
    if not path.is_file():
        raise RecordingError(path, "the file is missing")
    try:
        if columns is None:
            columns = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
        found = parquet.read_table(path, columns=columns, filters=filters, partitioning=None)
        if missing := set(columns) - set(found.column_names):
            raise RecordingError(path, f"lacks the column {min(missing)}")
        return {name: found.column(name).to_pylist() for name in columns}
    except RecordingError:
        raise
    except Exception as error:  # whatever upsets the library is damage of this file
        raise RecordingError(path, f"cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
