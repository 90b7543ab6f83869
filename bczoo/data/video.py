"""Video files: what a header says, any frames by number, and writing.

Place in the pipeline: `index.py` probes headers, `dataset.py` reads the frames of a window, `recording.py`
writes. Decoding is single-threaded unless asked otherwise, because data loaders run one process per worker;
files are closed after every call and nothing is kept.

Shape legend: n frames, H, W height and width in pixels; frames are uint8, RGB, (n, H, W, 3), planes (n, 3, H, W).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import av
import av.error
import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath
from bczoo.core.frames import check_filter, height_width, named_size, resize
from bczoo.data.colour import ToRGB
from bczoo.data.errors import FrameReadError, RecordingError
from bczoo.data.reading import open_regular

SIZED_NAME = re.compile(r"(\d+)x(\d+)\.mp4")  # <width>x<height>.mp4
ANY_SIZE_NAME = "video.mp4"
MOST_PIXELS = 2**25  # of a frame, 8K; headers can claim sizes that fill the memory
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".avi": "avi"}  # that hold H.264


class VideoInfo(NamedTuple):
    """What the header of a video file says."""

    n_frames: int
    width: int  # pixels
    height: int  # pixels
    fps: float


def choose_video(names: Sequence[str], size: int | Sequence[int]) -> str | None:
    """The file to read frames of ``size`` (one number for a square, or height and width) from: that very size, then any
    other named by its size, then video.mp4.

    Of other sizes the smallest that has to be shrunk is taken, and only if there is none the largest.
    """
    sized = [(int(m[1]), int(m[2]), name) for name in names if (m := SIZED_NAME.fullmatch(name))]
    height, width = height_width(size)
    if (exact := f"{named_size(size, 'x')}.mp4") in names:
        return exact
    if larger := [s for s in sized if s[0] >= width and s[1] >= height]:
        return min(larger)[2]
    if sized:
        return max(sized)[2]
    return ANY_SIZE_NAME if ANY_SIZE_NAME in names else None


def probe(path: str | Path) -> VideoInfo:
    """Number of frames, size and rate of a video, from its header, without decoding.

    Raises:
        RecordingError: the file is no readable video, holds no frame, or has another size than its name says.
    """
    path = Path(path)
    try:
        info = _probe(path)
    except RecordingError:
        raise
    except Exception as error:  # one odd file among thousands must not stop an index
        raise RecordingError(path, f"the video cannot be read ({type(error).__name__}: {error})") from error
    if not info.n_frames:
        raise RecordingError(path, "the video has no frames")
    if not 0 < info.width * info.height <= MOST_PIXELS:
        raise RecordingError(path, f"frames of {info.width}x{info.height} pixels cannot be read")
    named = SIZED_NAME.fullmatch(path.name)
    if named and (int(named[1]), int(named[2])) != (info.width, info.height):
        raise RecordingError(path, f"wrong frame size: the video is {info.width}x{info.height}")
    return info


def _probe(path: Path) -> VideoInfo:
    with opened(path) as (container, stream):
        entries = stream.index_entries if stream.frames else ()
        if len(entries):  # frames that an edit list hides are in the file but never shown
            n_frames = sum(not entry.is_discard for entry in entries)
            if max(entry.pos + entry.size for entry in entries) > path.stat().st_size:
                raise RecordingError(path, "the video is cut off")
        else:  # fragmented files do not say
            n_frames = len(_measured_times(container, stream))
        return VideoInfo(n_frames, stream.width, stream.height, float(stream.average_rate or 0))


def read_frames(
    path: str | Path, start: int, count: int, size: int | Sequence[int], threads: int = 1, filter: str = "hamming"
) -> np.ndarray:
    """Frames ``start .. start + count - 1`` of a video.

    Args:
        path: the video file.
        start: number of the first wanted frame, in the order of display.
        count: how many frames.
        size: height and width of the result in pixels, one number for a square; other videos are resized
            (`bczoo.core.frames.resize`).
        threads: decoder threads.
        filter: resize filter for videos of another size.

    Returns:
        (count, height, width, 3) uint8.

    Raises:
        FrameReadError: a wanted frame is missing or broken; holds the frames before it.
    """
    planes = np.empty((count, 3, *height_width(size)), np.uint8)
    read_into(planes, path, range(start, start + count), threads, filter)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def read_into(
    out: np.ndarray, path: str | Path, numbers: Sequence[int], threads: int = 1, filter: str = "hamming"
) -> None:
    """The same for frames of any numbers, written as planes to where they are wanted.

    Args:
        out: (n, 3, height, width) uint8.
        path: the video file.
        numbers: (n,) numbers of the frames, in ascending order; a number may come several times.
        threads: decoder threads.
        filter: resize filter for videos of another size.

    Raises:
        FrameReadError: as of :func:`read_frames`.
    """
    count, (height, width), start = len(out), out.shape[-2:], numbers[0] if len(numbers) else 0
    check_filter(filter)
    done = 0
    try:
        to_rgb = ToRGB()
        for number, frame in enumerate(decoded(path, start, threads), start):
            if done == count:
                break
            if number == numbers[done]:
                if (frame.width, frame.height) == (width, height):
                    to_rgb.planes(frame, out[done])
                else:
                    out[done] = resize(to_rgb.pixels(frame), (height, width), filter).transpose(2, 0, 1)
                done += 1
            while done < count and number == numbers[done]:
                out[done] = out[done - 1]
                done += 1
    except RecordingError as error:
        raise FrameReadError(path, error.reason, _read(out, done)) from error
    except UserError:  # of the arguments, not of the file
        raise
    except Exception as error:
        reason = f"frame {numbers[done]} cannot be read ({type(error).__name__}: {error})"
        raise FrameReadError(path, reason, _read(out, done)) from error
    if done < count:
        raise FrameReadError(path, f"the video ends before frame {numbers[done]}", _read(out, done))


def _read(planes: np.ndarray, done: int) -> np.ndarray:
    """The frames that were read before an error, (done, size, size, 3)."""
    return planes[:done].transpose(0, 2, 3, 1)


def iterate_frames(path: str | Path, start: int = 0, threads: int = 1) -> Iterator[np.ndarray]:
    """Yield frame ``start`` and all after it as (H, W, 3) uint8.

    Raises:
        RecordingError: a frame is missing or broken; the reason names it.
    """
    return map(ToRGB().pixels, decoded(path, start, threads))


def decoded(path: str | Path, start: int, threads: int = 1) -> Iterator[av.VideoFrame]:
    """Decode frame ``start`` and all after it.

    Frames are found by their time: with evenly spaced frames, number i is shown at ``first + i * step``.
    Files that turn out not to be even (variable rate, frames cut out) are read again with all times measured.

    Raises:
        RecordingError: a frame is missing or broken; the reason names it.
    """
    number = start
    try:
        for frame in _attempts(path, start, threads):
            yield frame
            number += 1
    except RecordingError:
        raise
    except Exception as error:  # whatever upsets the video library is damage of this file
        raise RecordingError(path, f"frame {number} cannot be read ({type(error).__name__}: {error})") from error


def _attempts(path: str | Path, start: int, threads: int) -> Iterator[av.VideoFrame]:
    number = start
    measured, strict = False, True
    while True:
        with opened(path, threads, strict) as (container, stream):
            times = None if measured else _even_times(stream)
            if times is None:
                times, measured = _measured_times(container, stream), True
            if number >= len(times):
                return
            try:
                for frame in _decoded_from(container, stream, times[number], number == 0, skip=not measured):
                    if frame.pts != times[number]:
                        break  # not where an even file shows it, or missing
                    yield frame
                    number += 1
                    if number == len(times):
                        return
            except av.error.FFmpegError as error:
                if not (strict and number == start > 0):
                    reason = f"frame {number} cannot be decoded ({error.strerror})"
                    raise RecordingError(path, reason) from error
                # A keyframe of an open group speaks of frames before the seek, which is no damage.
                strict = False
                continue
        if measured:
            raise RecordingError(path, f"frame {number} cannot be decoded")
        measured = True


def sample_frames(path: str | Path, places: int, run: int) -> Iterator[list[np.ndarray]]:
    """Yield a few frames in a row, (H, W, 3) uint8 each, from places all over a video.

    A run begins at the keyframe that seeking finds, wherever that is, so that no video takes long. A video with fewer
    keyframes gives fewer runs.

    Args:
        path: the video file.
        places: how many runs, at most.
        run: frames of a run, at most.

    Raises:
        RecordingError: the video cannot be read.
    """
    begun: set[int | None] = set()
    try:
        with opened(path, strict=False) as (container, stream):
            start, length = stream.start_time or 0, stream.duration or 0
            for place in range(places):
                container.seek(start + length * place // places, stream=stream, backward=True)
                frames = list(islice(container.decode(stream), run))
                if frames and frames[0].pts not in begun:
                    begun.add(frames[0].pts)
                    yield [frame.to_ndarray(format="rgb24") for frame in frames]
    except RecordingError:
        raise
    except Exception as error:
        raise RecordingError(path, f"the video cannot be read ({type(error).__name__}: {error})") from error


def frame_times(path: str | Path) -> list[float]:
    """Times in seconds of all frames that are shown, in order, by reading the whole file without decoding it.

    Raises:
        RecordingError: the video cannot be read.
    """
    with opened(path) as (container, stream):
        return [float(time * stream.time_base) for time in _measured_times(container, stream)]


class VideoWriter:
    """Writes RGB frames of one size to an H.264 file, which is there when the writer is closed.

    Errors of the file system, such as a full disk, are raised as OSError by every method but ``abort``.

    Args:
        path: the file to write, .mp4, .mkv, .mov or .avi; replaces an older one.
        fps: frames per second.
        pix_fmt: ``yuv420p`` plays everywhere; ``yuv444p`` keeps full colour resolution; ``rgb24`` keeps the colours
            themselves, with a crf of 0 to the bit, and few players show it.
        crf: constant rate factor of x264, 0 (lossless) to 51.
        keyframe_interval: most frames from one keyframe to the next, which bounds the cost of random access.
        threads: encoder threads.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        pix_fmt: str = "yuv420p",
        crf: int = 23,
        keyframe_interval: int = 20,
        threads: int = 1,
    ) -> None:
        self.path = Path(path)
        self.n_frames = 0
        if (container := CONTAINERS.get(self.path.suffix.lower())) is None:
            raise UserError(f"the name of a video ends in {', '.join(CONTAINERS)}; got {path}")
        self._partial = PartialPath(self.path)
        try:
            self._container = av.open(str(self._partial.path), "w", format=container)
        except BaseException:
            self._partial.discard()
            raise
        codec: Literal["libx264", "libx264rgb"] = "libx264rgb" if pix_fmt == "rgb24" else "libx264"
        self._stream: Any = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        self._stream.pix_fmt = pix_fmt
        # veryfast takes a third of the default's time on game frames and makes no larger files; without mbtree the
        # encoder gives the same bytes for the same frames
        self._stream.options = {
            "crf": str(crf),
            "g": str(keyframe_interval),
            "preset": "veryfast",
            "x264-params": "mbtree=0",
        }
        self._stream.codec_context.thread_count = threads

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8; all frames must have the size of the first."""
        height, width = frame.shape[:2]
        if self.n_frames == 0:
            if self._stream.pix_fmt == "yuv420p" and (height % 2 or width % 2):
                raise UserError(f"yuv420p needs even sizes, got {width}x{height}; choose yuv444p or another size")
            self._stream.width, self._stream.height = width, height
        elif (width, height) != (self._stream.width, self._stream.height):
            raise ValueError(
                f"{self.path}: frame {self.n_frames} is {width}x{height}, "
                f"the first was {self._stream.width}x{self._stream.height}"
            )
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        self.n_frames += 1

    def close(self) -> None:
        """Write what is still in the encoder, close the file and give it its name."""
        try:
            if self.n_frames:
                self._container.mux(self._stream.encode())
            self._container.close()
        except BaseException:
            self.abort()
            raise
        self._partial.commit()

    def abort(self) -> None:
        """Remove what was written; harmless after ``close``."""
        with contextlib.suppress(Exception):  # a full disk cannot take the end of a file that is removed anyway
            self._container.close()
        self._partial.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abort()


@contextmanager
def opened(path: str | Path, threads: int = 1, strict: bool = True) -> Iterator[tuple[Any, Any]]:
    """The container and video stream of a file; a strict decoder reports all that it could conceal."""
    with ExitStack() as stack:
        try:
            # Without a format, a text file of this name could be a playlist of other files and of addresses.
            container = stack.enter_context(av.open(stack.enter_context(open_regular(path)), format="mp4"))
        except (av.error.FFmpegError, OSError) as error:
            raise RecordingError(path, f"the video cannot be opened ({error.strerror})") from error
        if not container.streams.video:
            raise RecordingError(path, "the file has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise RecordingError(path, "the video has a codec that is not known")
        stream.codec_context.thread_count = threads
        options = {"max_pixels": str(MOST_PIXELS)}
        stream.codec_context.options = options | ({"err_detect": "explode"} if strict else {})
        yield container, stream


def _even_times(stream: Any) -> Sequence[int] | None:
    """Times of all frames in the stream's time base, if the header describes even spacing, else None."""
    if not stream.frames or not stream.duration or not stream.base_rate:
        return None
    step = 1 / (stream.base_rate * stream.time_base)
    n = stream.frames
    # The last frame may have any duration of its own; n frames on the grid then fill it without a gap.
    if step.denominator != 1 or not (n - 1) * step < stream.duration <= n * step:
        return None
    first = stream.start_time or 0
    return range(first, first + n * int(step), int(step))


def _measured_times(container: Any, stream: Any) -> Sequence[int]:
    """Times of all frames that are shown, in order, by reading the whole file without decoding it."""
    try:
        return sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)
    except av.error.FFmpegError as error:
        raise RecordingError(container.name, f"the video cannot be read ({error.strerror})") from error


def _decoded_from(container: Any, stream: Any, time: int, from_start: bool, skip: bool) -> Iterator[av.VideoFrame]:
    """Decode from the nearest keyframe shown at or before ``time``; yields the frames shown from then on.

    Containers seek by decoding time, which runs ahead of display time where there are B-frames, and may so
    land on a keyframe that is shown too late. Then the seek starts further back. With ``skip``, earlier frames that
    no other frame refers to, about half, are not decoded.
    """
    back = 0
    reach = max(int(8 / (stream.base_rate or 20) / stream.time_base), 1)
    begin = stream.start_time or 0
    while True:
        target = begin if from_start else max(time - back, begin)
        container.seek(target, stream=stream, backward=True)
        packets = container.demux(stream)
        packet = next(packets)
        if target == begin or (packet.is_keyframe and packet.pts is not None and packet.pts <= time):
            break
        back = max(reach, back * 8)
    while packet is not None:
        early = packet.pts is not None and packet.pts < time
        stream.codec_context.skip_frame = "NONREF" if skip and early else "DEFAULT"
        for frame in packet.decode():
            if frame.pts is None or frame.pts < time:
                continue
            if frame.is_corrupt:
                raise av.error.InvalidDataError(0, "Corrupted frame", str(container.name))
            yield frame
        packet = next(packets, None)
