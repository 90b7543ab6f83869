"""One recording: a folder with ``annotation.proto`` and a video with one frame per frame annotation.

Place in the pipeline: players and people record through :class:`RecordingWriter`; :func:`read_annotation` and
:func:`parse_steps` turn a recording's annotation into the arrays that the index keeps.

Frame i is paired with annotation i+1, the action taken after seeing frame i; annotation 0 is never learned
from.

Shape legend: n steps (= frames = annotations, unless resampled), A action tokens per step, E text annotations, D text
width.
"""

from __future__ import annotations

import shutil
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from bczoo.core.actions import ActionSpace, HeldGroup, SwitchGroup, Values
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, write_errors
from bczoo.core.frames import LETTERBOX, named_size, resize
from bczoo.data.errors import RecordingError, printable
from bczoo.data.reading import Annotation
from bczoo.data.resample import Resampling, combine, share
from bczoo.data.schema import annotation as pb
from bczoo.data.video import VideoInfo, VideoWriter, probe

ANNOTATION_FILE = "annotation.proto"
# Whose action a step holds, and what is learned from it: a person's or an expert's (itself), a policy's own (nothing),
# a policy's own or action noise with what an expert would have done (that), or one that an inverse dynamics model has
# read off the video (itself, if that is wanted).
UNKNOWN, USER, SYSTEM, LABELLED, PSEUDO = range(5)
LEARNED = (USER, LABELLED)  # by a policy that learns from people

OWN_ANNOTATOR = "bczoo"  # version under which RecordingWriter stores instructions
ACCEPTED_ANNOTATORS = ("gemini-2.5-flash", "gemini-2.5-flash-thinking-0905", OWN_ANNOTATOR)
TOKENIZER = "gemma"  # whose embeddings are read
LONGEST_TEXT = 1e9  # seconds that an instruction may hold, 30 years
LEAST_KNOWN = (UNKNOWN, SYSTEM, PSEUDO, LABELLED, USER)  # a step of several annotations is of the first kind among them
MOST_SEEN = 100_000  # combinations of values whose ids are remembered


def _held_pad_buttons(action: Any) -> tuple[str, ...]:
    return tuple(field.name for field, held in action.game_pad.buttons.ListFields() if held)


# Where the values of each action group lie in a LowLevelAction.
_READERS: dict[str, Callable[[Any], Any]] = {
    "keys": lambda a: tuple(a.keyboard.keys),
    "mouse_buttons": lambda a: tuple(a.mouse.buttons_down),
    "mouse_dx": lambda a: a.mouse.mouse_delta_px.x,
    "mouse_dy": lambda a: a.mouse.mouse_delta_px.y,
    "scroll_dx": lambda a: a.mouse.scroll_delta_px.x,
    "scroll_dy": lambda a: a.mouse.scroll_delta_px.y,
    "buttons": _held_pad_buttons,
    "left_stick_x": lambda a: a.game_pad.left_stick.x,
    "left_stick_y": lambda a: a.game_pad.left_stick.y,
    "right_stick_x": lambda a: a.game_pad.right_stick.x,
    "right_stick_y": lambda a: a.game_pad.right_stick.y,
    "left_trigger": lambda a: a.game_pad.left_trigger,
    "right_trigger": lambda a: a.game_pad.right_trigger,
}
_MOUSE_FIELDS = {
    "mouse_dx": ("mouse_delta_px", "x"),
    "mouse_dy": ("mouse_delta_px", "y"),
    "scroll_dx": ("scroll_delta_px", "x"),
    "scroll_dy": ("scroll_delta_px", "y"),
}


@dataclass
class Steps:
    """Everything but the pixels of a recording, brought to an action space and a rate.

    Args:
        ids: (n, A) action ids of annotation i; unknown steps are neutral ("no key, no motion").
        kind: (n,) uint8, UNKNOWN, USER, SYSTEM, LABELLED or PSEUDO.
        labels: (n, A) ids that are learned from, an expert's where the kind is LABELLED and otherwise those of ``ids``;
            (0, A) where no step is LABELLED.
        confidence: (n,) float16, how sure the model was of a step that is PSEUDO; (0,) where none is.
        text_start: (E,) annotation index from which an instruction holds.
        text_steps: (E,) for how many steps.
        text: (E, D) float32, the instructions' embeddings.
        without_embedding: instructions that carry no embedding and so reach no policy.
        unknown: held names that the action space lacks and how many steps hold them, as ``group:name``.
        n_recorded: frames of the recording, which are as many as the steps unless it was resampled.
        recorded_fps: frames per second from which it was resampled; 0 if it was not.
    """

    ids: np.ndarray
    kind: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    text_start: np.ndarray
    text_steps: np.ndarray
    text: np.ndarray
    without_embedding: int
    unknown: Counter[str]
    n_recorded: int
    recorded_fps: float


def read_annotation(folder: str | Path) -> Annotation:
    """The annotation of a recording folder; its frames are parsed as they are asked for.

    Raises:
        RecordingError: the file is missing, no regular file, too large, empty or cut off.
    """
    annotation = Annotation(Path(folder) / ANNOTATION_FILE)
    if not annotation.frame_annotations:
        raise RecordingError(folder, f"{ANNOTATION_FILE} holds no frame annotations ({annotation.size} bytes)")
    return annotation


def action_values(action: Any, groups: Sequence[str]) -> Values:
    """The values of a LowLevelAction message for the named action groups."""
    return {g: list(v) if isinstance(v := _READERS[g](action), tuple) else v for g in groups}


def known_action(frame: Any) -> tuple[int, Any]:
    """Whose action a FrameAnnotation holds, and the action that was done, which is a policy's own where it has one."""
    if frame.system_action.is_known:
        return LABELLED if frame.expert_action.is_known else SYSTEM, frame.system_action
    if frame.user_action.is_known:
        return USER, frame.user_action
    if frame.pseudo_action.is_known:
        return PSEUDO, frame.pseudo_action
    return UNKNOWN, None


def check_groups(space: ActionSpace) -> None:
    """Raise unless recordings can hold all groups of an action space."""
    if missing := [g.name for g in space.groups if g.name not in _READERS]:
        raise UserError(
            f"action space {space.name!r} has groups that recordings do not hold: {missing}; "
            f"they hold {sorted(_READERS)}"
        )


def parse_steps(
    annotation: Annotation,
    space: ActionSpace | None,
    fps: float,
    text_dim: int | None,
    where: str | Path,
    recorded_fps: float = 0.0,
) -> Steps:
    """Bring a recording's annotation to an action space and a rate.

    Args:
        annotation: see :func:`read_annotation`.
        space: what to map actions to; names it lacks are left out (as in the paper's system) and counted. None reads
            only whose the actions are.
        fps: steps per second of the policy; a recording of another rate is resampled (:mod:`bczoo.data.resample`).
        text_dim: values of a text embedding; None reads no text.
        where: folder, for errors.
        recorded_fps: rate of a recording that does not state its own; 0 for that of the policy.

    Raises:
        RecordingError: of a rate that cannot be resampled, or an annotation is damaged or holds what is no finite
            number.
    """
    try:
        resampling = Resampling.between(annotation.metadata.frames_per_second or recorded_fps or fps, fps)
    except ValueError as error:
        raise RecordingError(where, str(error)) from error
    n_recorded = len(annotation.frame_annotations)
    n = n_recorded if resampling is None else resampling.n_steps(n_recorded)
    encode = None if space is None else _Encoder(space)
    read = _Reader(annotation, encode, resampling.recorded if resampling else fps, text_dim, where)
    kind = np.zeros(n, np.uint8)
    ids = np.zeros((n, 0), np.uint8) if encode is None else np.tile(encode.neutral, (n, 1))
    steps = map(read, range(n)) if resampling is None else _resampled(read, resampling, n)
    labels, confidence = ids[:0], np.zeros(0, np.float16)
    for i, step in enumerate(steps):
        kind[i] = step.kind
        try:
            if step.done is not None and encode is not None:
                ids[i] = encode(step.done)
            if step.kind == LABELLED and not len(labels):
                labels = ids.copy()
            if len(labels):
                labels[i] = ids[i] if step.label is None or encode is None else encode(step.label)
        except ValueError as error:
            raise RecordingError(where, f"annotation {step.number}: {error}") from error
        if step.kind == PSEUDO:
            confidence = confidence if len(confidence) else np.zeros(n, np.float16)
            confidence[i] = step.confidence
    text_start, text_steps = np.array(read.text_start, np.int64), np.array(read.text_steps, np.int64)
    if resampling is not None:
        text_start, text_steps = resampling.spans(text_start, text_steps, n)
    return Steps(
        ids=ids,
        kind=kind,
        labels=labels,
        confidence=confidence,
        text_start=text_start,
        text_steps=text_steps,
        text=np.array(read.embeddings, np.float32).reshape(len(text_start), text_dim or 0),
        without_embedding=read.without_embedding,
        unknown=Counter() if encode is None else encode.unknown,
        n_recorded=n_recorded,
        recorded_fps=0.0 if resampling is None else resampling.recorded,
    )


class Read(NamedTuple):
    """What an annotation, or several in a row, say of a step."""

    number: int  # of the annotation
    kind: int
    done: tuple[Any, ...] | None = None  # values of every group
    label: tuple[Any, ...] | None = None  # the expert's, where they are learned from
    confidence: float = 1.0


class _Reader:
    """Reads annotations in order, each once, and keeps the texts that it comes by."""

    def __init__(
        self, annotation: Annotation, encode: _Encoder | None, fps: float, text_dim: int | None, where: str | Path
    ) -> None:
        self.groups = () if encode is None else encode.groups
        self.text_start: list[int] = []
        self.text_steps: list[int] = []
        self.embeddings: list[np.ndarray] = []
        self.without_embedding = 0
        self._frames, self._encode, self._fps, self._text_dim = annotation.frame_annotations, encode, fps, text_dim
        self._where = where
        self._last = Read(-1, UNKNOWN)

    def __call__(self, i: int) -> Read:
        if i != self._last.number:
            frame = self._frames[i]
            kind, action = known_action(frame)
            label = frame.expert_action if kind == LABELLED else None
            confidence = self._confidence(frame, i) if kind == PSEUDO else 1.0
            self._last = Read(i, kind, self._values(action), self._values(label), confidence)
            if self._text_dim is not None and frame.frame_text_annotation:
                self._read_text(frame, i, self._text_dim)
        return self._last

    def _values(self, action: Any) -> tuple[Any, ...] | None:
        return None if action is None or self._encode is None else self._encode.read(action)

    def _confidence(self, frame: Any, i: int) -> float:
        if not 0 <= frame.pseudo_confidence <= 1:  # nor is NaN
            raise RecordingError(self._where, f"annotation {i}: a confidence of {frame.pseudo_confidence:g}")
        return float(frame.pseudo_confidence)

    def _read_text(self, frame: Any, i: int, text_dim: int) -> None:
        duration, embedding = _text_of(frame, text_dim, self._where, i)
        if embedding is not None:
            self.text_start.append(i)
            self.text_steps.append(text_length(duration, self._fps, self._where, i))
            self.embeddings.append(embedding)
        self.without_embedding += embedding is None


def _resampled(read: _Reader, resampling: Resampling, n: int) -> Iterator[Read]:
    """What :class:`_Reader` reads, for ``n`` steps of another rate; the numbers are those of the first part."""
    yield read(0)
    shown = resampling.frames(0, n).tolist()
    part = 0  # of a frame that is shown in several steps
    for step in range(n - 1):
        first, last = shown[step] + 1, max(shown[step + 1], shown[step] + 1)
        part = part + 1 if step and shown[step] == shown[step - 1] else 0
        parts = [read(i) for i in range(first, last + 1)]
        kind = next(kind for kind in LEAST_KNOWN if any(one.kind == kind for one in parts))
        if kind == UNKNOWN or not read.groups:
            yield Read(first, kind)
            continue
        of = bisect_right(shown, shown[step], step) - step + part if last == first else 1
        done = share(read.groups, combine(read.groups, [one.done for one in parts if one.done]), part, of)
        label = None
        if kind == LABELLED:
            wanted = [one.label or one.done for one in parts]
            label = share(read.groups, combine(read.groups, [one for one in wanted if one]), part, of)
        yield Read(first, kind, done, label, min(one.confidence for one in parts))


def text_length(duration: float, fps: float, where: str | Path, index: int) -> int:
    """For how many steps an instruction of ``duration`` seconds holds; ``where`` and ``index`` are for the error."""
    if not abs(duration) <= LONGEST_TEXT:  # nor is NaN
        raise RecordingError(where, f"annotation {index}: text duration of {duration:g} seconds")
    return int(duration * fps)


class _Encoder:
    """Maps values to ids; players repeat themselves, so every combination is mapped once."""

    def __init__(self, space: ActionSpace) -> None:
        check_groups(space)
        self.unknown: Counter[str] = Counter()
        dtype = np.uint8 if max(g.choices for g in space.groups) <= 256 else np.uint16
        self.neutral = np.array([i for group in space.neutral.values() for i in group], dtype)
        self.groups = space.groups
        self._space = space
        self._readers = [_READERS[g.name] for g in space.groups]
        self._seen: dict[tuple, tuple[list[int], list[str]]] = {}

    def read(self, action: Any) -> tuple[Any, ...]:
        """The values of a LowLevelAction for every group."""
        return tuple(read(action) for read in self._readers)

    def __call__(self, values: tuple[Any, ...]) -> list[int]:
        if values not in self._seen:
            if len(self._seen) == MOST_SEEN:
                self._seen.clear()
            named = dict(zip((g.name for g in self._space.groups), values, strict=True))
            ids = self._space.encode(ignore_unknown=True, **named)
            unknown = [
                f"{g.name}:{name}"
                for g in self._space.groups
                if isinstance(g, HeldGroup | SwitchGroup)
                for name in sorted(set(named[g.name]) - set(g.names))
            ]
            self._seen[values] = [i for group in ids.values() for i in group], unknown
        ids_row, unknown = self._seen[values]
        self.unknown.update(unknown)
        return ids_row


def _text_of(frame: Any, text_dim: int, where: str | Path, index: int) -> tuple[float, np.ndarray | None]:
    """Duration in seconds and embedding of a frame's first accepted text annotation; no embedding is None."""
    for text in frame.frame_text_annotation:
        version = text.frame_text_annotator.version
        if version not in ACCEPTED_ANNOTATORS:
            continue
        if version not in text.text_embedding_dict:
            return 0.0, None
        by_tokenizer = text.text_embedding_dict[version].text_embeddings
        if TOKENIZER not in by_tokenizer or not by_tokenizer[TOKENIZER].shape:
            return 0.0, None
        embedding = np.array(by_tokenizer[TOKENIZER].values, np.float32)
        if embedding.size != text_dim:
            raise RecordingError(
                where, f"annotation {index}: text embedding of {embedding.size} values, wanted are {text_dim}"
            )
        if not np.isfinite(embedding).all():
            what = "NaN" if np.isnan(embedding).any() else "infinite values"
            raise RecordingError(where, f"annotation {index}: text embedding holds {what}")
        return text.duration, embedding
    return 0.0, None


class RecordingExistsError(UserError, FileExistsError):
    """A recording of this name is there already, perhaps since a moment ago."""


class _FinishedVideo:
    """In the place of a VideoWriter, a video that is there already: counts its frames and copies it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.n_frames = 0
        self.info: VideoInfo = probe(source)
        self._source, self._path = source, folder / f"{self.info.width}x{self.info.height}.mp4"

    def add(self, frame: np.ndarray) -> None:
        self.n_frames += 1

    def close(self) -> None:
        shutil.copyfile(self._source, self._path)

    def abort(self) -> None:
        """The recording's folder is removed as a whole."""


class RecordingWriter:
    """Writes a recording, frame by frame; the folder appears, whole, when the writer is closed.

    Until then everything lies in a hidden folder beside it, which an exception inside the ``with`` block removes (see
    :class:`bczoo.core.files.PartialPath`).

    >>> with RecordingWriter("recordings/game-1", fps=20, env="doom") as writer:
    ...     writer.add(frame, user={"keys": ["w"], "mouse_dx": 3})

    Args:
        folder: the recording's folder; must not exist. Its name becomes the recording's id.
        fps: steps per second.
        size: height and width of the stored frames in pixels, one number for a square.
        env: name of the game.
        env_subtype: map or level.
        user: who played.
        task: what the player was to do.
        crf: quality of the video, 0 (lossless) to 51.
        pix_fmt: ``yuv420p``, ``yuv444p`` (full colour resolution) or ``rgb24``.
        keyframe_interval: most frames between keyframes.
        resize: how frames of another size are brought to it, see :func:`bczoo.core.frames.resize`.
        video: an .mp4 file that is copied as it is, since its frames are those that are added; size, crf, pix_fmt,
            keyframe_interval and resize have no effect then. An action at its last frame has no frame behind it and is
            left out.

    Raises:
        RecordingExistsError: here or in :meth:`close`, where another writer was faster.
        UserError: here or in any method: the disk is full, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: float = 20.0,
        size: int | Sequence[int] = 192,
        env: str = "",
        env_subtype: str = "",
        user: str = "",
        task: str = "",
        crf: int = 23,
        pix_fmt: str = "yuv420p",
        keyframe_interval: int = 20,
        resize: str = "hamming",
        video: Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists():
            raise self._exists()
        self.size, self.resize = size, resize
        self.fps = fps
        with write_errors(self.folder):
            self._partial = PartialPath(self.folder)
            try:
                self._partial.path.mkdir()
                self._video: VideoWriter | _FinishedVideo
                if video is None:
                    path = self._partial.path / f"{named_size(size, 'x')}.mp4"
                    self._video = VideoWriter(path, fps, pix_fmt, crf, keyframe_interval=keyframe_interval)
                else:
                    self._video = _FinishedVideo(video, self._partial.path)
            except BaseException:
                self._partial.discard()
                raise
        self._message = pb.VideoAnnotation()
        metadata = self._message.metadata
        metadata.id = printable(self.folder.name)  # names of folders may hold bytes that are no text
        metadata.timestamp = int(time.time())
        metadata.user = user
        metadata.frames_per_second = fps
        metadata.env.env = env
        metadata.env.env_subtype = env_subtype
        if resize == LETTERBOX:
            metadata.video_source_info.video_filter_info = LETTERBOX
        if task:
            metadata.tasks.append(task)
        self._message.frame_annotations.add()  # annotation 0: what came before the first frame is unknown
        self._last: np.ndarray | None = None
        self._text: Any = None  # the instruction that holds, and since which annotation
        self._text_since = 0

    @property
    def n_frames(self) -> int:
        """Frames added so far."""
        return self._video.n_frames

    def add(
        self,
        frame: np.ndarray,
        user: Values | None = None,
        system: Values | None = None,
        text: str | None = None,
        text_embedding: np.ndarray | None = None,
        expert: Values | None = None,
    ) -> None:
        """Append what was seen and the action that was taken after seeing it.

        Args:
            frame: (H, W, 3) uint8 of any size.
            user: a person's action, ``{"keys": ["w"], "mouse_dx": 3, ...}``; None if a person did not act.
            system: the policy's own action, or noise; None if neither acted.
            text: the instruction that holds in this step.
            text_embedding: its embedding, 1-dimensional; instructions without one cannot be trained on.
            expert: what an expert would have done in the place of ``system``, which is learned from.
        """
        resized = frame if isinstance(self._video, _FinishedVideo) else resize(frame, self.size, self.resize)
        if self._last is None:
            window = self._message.metadata.capture_device_specs.window_specs
            window.height, window.width = frame.shape[:2]
        self._last = resized
        with write_errors(self.folder):
            self._video.add(self._last)
        annotation = self._message.frame_annotations.add()  # number n_frames: taken after seeing this frame
        for values, action in (
            (user, annotation.user_action),
            (system, annotation.system_action),
            (expert, annotation.expert_action),
        ):
            if values is not None:
                write_action(values, action)
        self._write_text(annotation, text, text_embedding)

    def close(self) -> None:
        """Complete the recording and give the folder its name.

        The last action is paired with the last frame, so an end without a further frame repeats that frame.
        """
        try:
            if self._last is None:
                raise UserError(f"{self.folder}: nothing was recorded, so no recording is written")
            frames = self._message.frame_annotations
            self._set_text_duration(len(frames))
            finished = isinstance(self._video, _FinishedVideo)
            if finished or known_action(frames[-1])[0] == UNKNOWN:
                del frames[-1]
            with write_errors(self.folder):
                if len(frames) > self.n_frames:
                    self._video.add(self._last)
                self._video.close()
                (self._partial.path / ANNOTATION_FILE).write_bytes(self._message.SerializeToString())
                try:
                    self._partial.commit()
                except FileExistsError:
                    raise self._exists() from None
        except BaseException:
            self.discard()
            raise

    def _exists(self) -> RecordingExistsError:
        return RecordingExistsError(
            f"{self.folder} exists already; recordings are never overwritten, choose another name"
        )

    def discard(self) -> None:
        """Remove what was written."""
        self._video.abort()
        self._partial.discard()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _write_text(self, annotation: Any, text: str | None, embedding: np.ndarray | None) -> None:
        index = self.n_frames
        if text == (self._text.instruction if self._text is not None else None):
            return
        self._set_text_duration(index)
        self._text = None
        if text is None:
            return
        self._text, self._text_since = annotation.frame_text_annotation.add(instruction=text), index
        self._text.frame_text_annotator.provider = OWN_ANNOTATOR
        self._text.frame_text_annotator.version = OWN_ANNOTATOR
        if embedding is not None:
            values = np.asarray(embedding, np.float32).reshape(-1)
            tensor = self._text.text_embedding_dict[OWN_ANNOTATOR].text_embeddings[TOKENIZER]
            tensor.shape.extend((1, values.size))
            tensor.values.extend(values.tolist())

    def _set_text_duration(self, end: int) -> None:
        """End the running instruction before annotation ``end``."""
        if self._text is not None:
            # Readers take int(duration * fps), so half a step guards against rounding down.
            self._text.duration = (end - self._text_since + 0.5) / self.fps


def write_action(values: Mapping[str, Any], action: Any) -> None:
    """Write values by group into a LowLevelAction."""
    action.is_known = True
    for group, value in values.items():
        if group == "keys":
            action.keyboard.keys.extend(value)
        elif group == "mouse_buttons":
            action.mouse.buttons_down.extend(value)
        elif group in _MOUSE_FIELDS:
            vector, axis = _MOUSE_FIELDS[group]
            setattr(getattr(action.mouse, vector), axis, round(value))
        elif group == "buttons":
            for name in value:
                setattr(action.game_pad.buttons, name, True)
        elif group in ("left_stick_pressed", "right_stick_pressed"):
            getattr(action.game_pad, group.removesuffix("_pressed")).pressed = bool(value)
        elif group in ("left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y"):
            setattr(getattr(action.game_pad, group[:-2]), group[-1], value)
        elif group in ("left_trigger", "right_trigger"):
            setattr(action.game_pad, group, value)
        else:
            raise UserError(f"recordings cannot hold the action group {group!r}; they hold {sorted(_READERS)}")
