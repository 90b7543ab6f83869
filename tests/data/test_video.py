"""Frames by number must be exactly those frames, whatever the encoder did."""

from __future__ import annotations

import gc
import os
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import av
import numpy as np
import pytest
from synthetic import SIZE, damage, number_of, numbered, write_video

from bczoo.core.errors import UserError
from bczoo.core.frames import FILTERS, resize
from bczoo.data import video
from bczoo.data.errors import FrameReadError, RecordingError
from bczoo.data.video import VideoWriter, choose_video, iterate_frames, probe, read_frames

N = 130
ENCODINGS = {
    "short groups": {"g": 12, "bf": 0},
    "b-frames": {"g": 25, "bf": 3},
    "b-frames as references": {"x264_params": "keyint=30:bframes=8:b-pyramid=normal:b-adapt=0"},
    "one long group": {"g": 1000, "bf": 3},
    "open groups": {"x264_params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
    "keyframes only": {"g": 1},
}


def numbers(path, start, count):
    return [number_of(f) for f in read_frames(path, start, count, SIZE)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_start_gives_exactly_these_frames(tmp_path, encoding):
    path = write_video(tmp_path / "video.mp4", N, **ENCODINGS[encoding])
    assert probe(path) == (N, SIZE, SIZE, 20.0)
    for start in range(N):
        count = min(3, N - start)
        assert numbers(path, start, count) == list(range(start, start + count)), start
    sequential = np.stack(list(iterate_frames(path)))
    assert np.array_equal(read_frames(path, 57, 20, SIZE), sequential[57:77])


def test_variable_rate(tmp_path):
    """Times with gaps, so that number = time * rate is wrong."""
    path = write_video(tmp_path / "video.mp4", 60, pts=lambda i: i + 2 * (i > 20) + 5 * (i > 40), g=10, bf=2)
    assert probe(path).n_frames == 60
    for start in (0, 19, 20, 21, 22, 39, 41, 42, 57):
        assert numbers(path, start, 3) == [start, start + 1, start + 2]


@pytest.mark.parametrize("shift", [-1, 1])
def test_uneven_by_a_hair(tmp_path, shift):
    """The header looks even, but frames are not where it says."""
    path = write_video(tmp_path / "video.mp4", 60, lambda i: 512 * i + shift * (i % 3 == 1), 10240, g=10, bf=2)
    with av.open(str(path)) as container:
        assert container.streams.video[0].base_rate == 20
    for start in range(57):
        assert numbers(path, start, 3) == [start, start + 1, start + 2]


def test_first_frame_later_than_zero(tmp_path):
    path = write_video(tmp_path / "video.mp4", 40, pts=lambda i: i + 30, g=10, bf=2)
    for start in (0, 1, 15, 37):
        assert numbers(path, start, 3) == [start, start + 1, start + 2]


def test_edit_list_hides_frames(tmp_path):
    """Cut without encoding anew: the first frames are in the file, but not shown."""
    whole = write_video(tmp_path / "whole.mp4", 60, g=20, bf=2)
    cut = tmp_path / "video.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        shift = int(7 / 20 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                sink.mux(packet)
    shown = [number_of(f.to_ndarray(format="rgb24")) for f in av.open(str(cut)).decode(video=0)]
    assert shown == list(range(7, 60))  # or this file is no test of it
    assert probe(cut).n_frames == 53
    for start in (0, 1, 12, 13, 14, 50):
        assert numbers(cut, start, 3) == [start + 7, start + 8, start + 9]


def test_fragmented_file(tmp_path):
    path = write_video(tmp_path / "video.mp4", 50, mux={"movflags": "frag_keyframe+empty_moov"}, g=10, bf=2)
    assert probe(path).n_frames == 50
    for start in (0, 9, 10, 11, 33, 47):
        assert numbers(path, start, 3) == [start, start + 1, start + 2]


def test_other_sizes_are_resized(tmp_path):
    path = write_video(tmp_path / "video.mp4", 5, size=96)
    frames = read_frames(path, 1, 3, SIZE)
    assert frames.shape == (3, SIZE, SIZE, 3)
    assert [number_of(f) for f in frames] == [1, 2, 3]


def test_resize_filter_is_chosen_by_name(tmp_path):
    path = write_video(tmp_path / "video.mp4", 2, size=80)
    results = {name: read_frames(path, 1, 1, SIZE, filter=name) for name in FILTERS}
    assert np.array_equal(read_frames(path, 1, 1, SIZE), results["hamming"])
    assert len({frames.tobytes() for frames in results.values()}) == len(FILTERS) == 5
    for size in (SIZE, 80):  # also where nothing has to be resized
        with pytest.raises(UserError, match="'nearest' is not one of hamming, bilinear, bicubic, lanczos, box"):
            resize(numbered(0, 80), size, "nearest")


def test_reading_past_the_end_gives_what_is_there(tmp_path):
    path = write_video(tmp_path / "video.mp4", 10)
    with pytest.raises(FrameReadError, match="ends before frame 10") as caught:
        read_frames(path, 8, 4, SIZE)
    assert [number_of(f) for f in caught.value.frames] == [8, 9]


@pytest.mark.parametrize("encoding", ["short groups", "b-frames", "keyframes only"])
def test_damaged_payload_is_an_error_and_earlier_frames_are_kept(tmp_path, encoding):
    path = write_video(tmp_path / "video.mp4", N, **ENCODINGS[encoding])
    damage(path)
    assert probe(path).n_frames == N  # the header is whole
    with pytest.raises(FrameReadError, match=r"frame \d+ cannot be decoded") as caught:
        read_frames(path, 0, N, SIZE)
    kept = [number_of(f) for f in caught.value.frames]
    assert kept == list(range(len(kept)))
    assert 20 < len(kept) < N - 20


def test_unreadable_files(tmp_path):
    good = write_video(tmp_path / "video.mp4", 40)
    empty, cut, text = tmp_path / "empty.mp4", tmp_path / "cut.mp4", tmp_path / "text.mp4"
    empty.touch()
    cut.write_bytes(good.read_bytes()[:-300])
    text.write_text("not a video")
    for path in (empty, cut, text, tmp_path / "missing.mp4"):
        with pytest.raises(RecordingError, match="cannot be opened"):
            probe(path)


@pytest.mark.parametrize("error", [AttributeError("index_entries"), ValueError("time base")])
def test_any_error_while_probing_is_the_files_own(tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    path = write_video(tmp_path / "video.mp4", 5)
    monkeypatch.setattr(video, "_probe", fail)
    with pytest.raises(RecordingError, match=rf"cannot be read \({type(error).__name__}: {error}\)"):
        probe(path)


def test_header_without_an_index(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 20)
    opened = video.opened

    class WithoutIndex:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return () if name == "index_entries" else getattr(self.stream, name)

    @contextmanager
    def without_index(*arguments):
        with opened(*arguments) as (container, stream):
            container = SimpleNamespace(name=str(path), demux=lambda wrapped: opened_demux(wrapped.stream))
            opened_demux = stream.container.demux
            yield container, WithoutIndex(stream)

    monkeypatch.setattr(video, "opened", without_index)
    assert probe(path) == (20, SIZE, SIZE, 20.0)


def test_file_cut_off_behind_a_leading_header(tmp_path):
    path = write_video(tmp_path / "video.mp4", N, mux={"movflags": "faststart"}, g=10)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(RecordingError, match="cut off"):
        probe(path)


def test_size_in_the_name_must_be_true(tmp_path):
    path = shutil.copy(write_video(tmp_path / "video.mp4", 5), tmp_path / "96x96.mp4")
    with pytest.raises(RecordingError, match="wrong frame size: the video is 48x48"):
        probe(path)


def test_choice_of_the_file():
    assert choose_video(["192x192.mp4", "96x96.mp4", "video.mp4"], 96) == "96x96.mp4"
    assert choose_video(["256x256.mp4", "192x192.mp4", "96x96.mp4", "video.mp4"], 128) == "192x192.mp4"
    assert choose_video(["64x64.mp4", "96x96.mp4"], 128) == "96x96.mp4"
    assert choose_video(["video.mp4"], 128) == "video.mp4"
    assert choose_video([], 128) is None


def test_no_file_stays_open(tmp_path):
    path = write_video(tmp_path / "video.mp4", 30)
    broken = write_video(tmp_path / "broken.mp4", N)
    damage(broken)
    gc.collect()  # files of other tests
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_frames(path, 5, 3, SIZE)
        probe(path)
        with pytest.raises(FrameReadError):
            read_frames(broken, 0, N, SIZE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_video_is_there_when_it_is_whole(tmp_path):
    path = write_video(tmp_path / "video.mp4", 3)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="crash"), VideoWriter(path, 20) as writer:
        writer.add(numbered(0))
        raise RuntimeError("crash")
    assert path.read_bytes() == before
    with VideoWriter(path, 20) as writer:
        writer.add(numbered(0))
        assert path.read_bytes() == before
    assert probe(path).n_frames == 1 and os.listdir(tmp_path) == ["video.mp4"]
    with pytest.raises(UserError, match=r"name of a video ends in \.mp4, .*got .*video\.txt"):
        VideoWriter(tmp_path / "video.txt", 20)


def test_writer_refuses_what_players_cannot_show(tmp_path):
    with pytest.raises(UserError, match="even sizes"), VideoWriter(tmp_path / "a.mp4", 20) as writer:
        writer.add(np.zeros((47, 47, 3), np.uint8))
    with VideoWriter(tmp_path / "b.mp4", 20) as writer:
        writer.add(numbered(0))
        with pytest.raises(ValueError, match="frame 1 is 32x32, the first was 48x48"):
            writer.add(numbered(1, 32))
