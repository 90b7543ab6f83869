"""One recording of another recorder, written as a recording of this project.

Place in the pipeline: `command.py` runs :func:`convert` for every recording that a format found, in processes of its
own; what it returns goes into the report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.frames import LETTERBOX
from bczoo.data.errors import RecordingError, printable
from bczoo.data.recording import RecordingExistsError, RecordingWriter
from bczoo.data.video import probe
from bczoo.imports.format import Format
from bczoo.imports.keys import Names
from bczoo.imports.session import Session
from bczoo.imports.steps import SLACK_S, cut

STALE_S = 0.5  # after which a frame counts as old


@dataclass(frozen=True)
class Wanted:
    """How recordings are written.

    Args:
        fps: steps per second; None takes the format's own, or 20.
        size: height and width of the stored frames in pixels.
        letterbox: keep the picture's proportions, between black bars.
        rename: new name of an input by its old one; an empty one drops it.
        crf: quality of the video.
        keep_video: copy a video whose frames are the steps, whatever its size.
        embeddings: of instructions, by their text.
    """

    fps: float | None = None
    size: int = 192
    letterbox: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    crf: int = 23
    keep_video: bool = False
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Imported:
    """What became of one recording.

    Args:
        name: of its folder.
        problem: why it was not imported.
        there: it was there already.
        steps: how many it has.
        seconds: how long it is.
        unknown: steps whose action nobody knows.
        texts: steps with an instruction.
        unembedded: of these, the ones whose instruction has no embedding.
        stale: steps that show a frame of more than half a second before.
        held: how many steps hold which name, as ``group:name``.
        renamed: how many events of which name went under which other one.
        dropped: how many events of which name were dropped, as asked.
        copied: the video was copied as it is.
        notes: what else there is to say.
    """

    name: str
    problem: str = ""
    there: bool = False
    steps: int = 0
    seconds: float = 0.0
    unknown: int = 0
    texts: int = 0
    unembedded: int = 0
    stale: int = 0
    held: Counter[str] = field(default_factory=Counter)
    renamed: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    copied: bool = False
    notes: list[str] = field(default_factory=list)


class _OtherFramesError(Exception):
    """The frames of a video turn out not to be the steps."""


def convert(format: Format, source: Path, folder: Path, wanted: Wanted) -> Imported:
    """Import one recording; its folder appears when it is whole.

    Args:
        format: reads it.
        source: what the format found.
        folder: where it goes; nothing is done if it is there.
        wanted: how it is written.

    Raises:
        UserError: what would go wrong with every other recording too, such as a full disk.
    """
    result = Imported(printable(folder.name))
    if folder.exists():
        result.there = True
        return result
    try:
        try:
            _convert(format, source, folder, wanted, result, copy=True)
        except _OtherFramesError:
            result = Imported(result.name)
            _convert(format, source, folder, wanted, result, copy=False)
    except RecordingExistsError:  # another process was faster
        return Imported(result.name, there=True)
    except RecordingError as error:
        at = "" if Path(error.where) in (source, Path()) else f"{Path(error.where).name}: "
        return Imported(result.name, problem=printable(at + error.reason))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a format meets files of any damage; the other recordings are imported
        if os.environ.get("BCZOO_TRACEBACK"):
            raise
        return Imported(result.name, problem=printable(f"{type(error).__name__}: {error}"))
    return result


def _convert(format: Format, source: Path, folder: Path, wanted: Wanted, result: Imported, copy: bool) -> None:
    session = format.read(source)
    names = Names(wanted.rename)
    if session.events is not None:
        session.events = names(session.events)
    fps = wanted.fps or session.fps or 20.0
    video = _to_copy(session, fps, wanted) if copy else None
    with RecordingWriter(
        folder,
        fps=fps,
        size=wanted.size,
        env=session.env,
        env_subtype=session.env_subtype,
        user=session.user,
        task=session.task,
        crf=wanted.crf,
        resize=LETTERBOX if wanted.letterbox else "hamming",
        video=video,
    ) as writer:
        for step in cut(session, fps, source):
            embedding = None if step.text is None else wanted.embeddings.get(step.text)
            writer.add(step.frame, user=step.values, text=step.text, text_embedding=embedding)
            result.texts += step.text is not None
            result.unembedded += step.text is not None and embedding is None
            result.steps += 1
            result.stale += step.age > STALE_S
            if video is not None and step.age > SLACK_S:
                raise _OtherFramesError
            result.unknown += step.values is None
            result.held.update(_held(step.values or {}))
        if video is not None and result.steps != probe(video).n_frames:
            raise _OtherFramesError
    result.copied = video is not None
    result.seconds = result.steps / fps
    result.renamed, result.dropped, result.notes = names.renamed, names.dropped, session.notes
    if session.fps is None and names.held:
        result.notes.append(f"{', '.join(names.held)} pressed and never released, so held to the end")


def _to_copy(session: Session, fps: float, wanted: Wanted) -> Path | None:
    """The video of a recording, if it may be copied as it is: its container, size and, about, its rate are ours."""
    if session.video is None or session.video.suffix.lower() != ".mp4":
        return None
    info = probe(session.video)
    fits = wanted.keep_video or info.width == info.height == wanted.size
    # Headers tell an average alone; whether each frame is a step shows when the steps are cut.
    return session.video if fits and abs(info.fps - fps) < fps / 2 else None


def _held(values: Mapping[str, Any]) -> list[str]:
    """What a step holds, and which motions and positions it has that are not zero, as ``group:name``."""
    names = []
    for group, value in values.items():
        if isinstance(value, list):
            names += [f"{group}:{name}" for name in value]
        elif value:
            names.append(group)
    return names
