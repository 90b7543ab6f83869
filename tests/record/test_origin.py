"""No game is recorded among the recordings of another; sizes at which frames are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_game

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data import schema
from bczoo.data.reading import read_metadata
from bczoo.data.recording import RecordingWriter, read_annotation
from bczoo.games import Game, PlayedRecordings
from bczoo.record.command import record
from bczoo.record.episode import usual_size
from bczoo.record.origin import check_origin, game_of

CATCH = "tiny_game:catch"
BLACK = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of_game(folder, env="", subtype=""):
    with RecordingWriter(folder, size=64, env=env, env_subtype=subtype) as writer:
        writer.add(BLACK, user={"keys": ["w"]})
    return folder


def other() -> Game:
    """The same game under another name."""
    return Game("other", tiny_game.Catch, tiny_game.catch().bindings, tiny_game.CatchExpert, time_limit_s=1.0)


def names(folder="out") -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir())


def test_another_games_folder_is_refused_and_left_as_it_is():
    of_game("out/batch/rec-1", "doom", "basic")
    with pytest.raises(UserError) as refused:
        record(CATCH, "out", episodes=1, size=32, workers=1)
    assert str(refused.value) == (
        "out holds recordings of doom/basic (batch/rec-1), so tiny_game:catch is not recorded there; record into "
        "another folder (--out), or give --mix true where the games are meant to be mixed"
    )
    assert names() == ["batch"]


def test_recordings_that_name_no_game_are_refused_too():
    of_game("out/mine")
    with pytest.raises(UserError, match=r"^out holds recordings that name no game \(mine\), so tiny_game:catch is not"):
        record(CATCH, "out", episodes=1, size=32, workers=1)


def test_the_command_refuses_and_mixes(capsys):
    of_game("out/rec-1", "doom", "basic")
    command = ["record", "--env", CATCH, "--out", "out", "--episodes", "1", "--size", "32", "--workers", "1"]
    assert main(command) == 1
    assert "out holds recordings of doom/basic (rec-1)" in capsys.readouterr().err
    for number, mix in enumerate(("true", "[doom/basic]")):
        assert main([*command, "--seed", str(number), "--mix", mix]) == 0
    assert names() == ["rec-1", "tiny_game-catch_expert_32px_000000", "tiny_game-catch_expert_32px_000001"]


def test_the_same_game_goes_on_whoever_played_it_and_whatever_it_was_called_by():
    record(CATCH, "out", agent="random", episodes=1, size=32, workers=1)
    record(tiny_game.catch(), "out", episodes=1, size=32, workers=1)
    record(CATCH, "out", episodes=1, size=48, workers=1)
    assert len(names()) == 3


def test_what_is_there_is_kept_where_nothing_is_left_to_record(capsys):
    record(CATCH, "out", episodes=1, size=32, workers=1)
    of_game("out/rec-1", "doom", "basic")
    assert len(record(CATCH, "out", episodes=1, size=32, workers=1)) == 1
    with pytest.raises(UserError, match="doom/basic"):
        record(CATCH, "out", episodes=2, size=32, workers=1)


def test_an_episode_of_this_game_that_names_none_is_its_own():
    (folder,) = record(CATCH, "out", episodes=1, size=32, workers=1)
    path = Path(folder) / "annotation.proto"
    message = schema.annotation.VideoAnnotation.FromString(path.read_bytes())
    message.metadata.ClearField("env")
    path.write_bytes(message.SerializeToString())
    assert len(record(CATCH, "out", episodes=2, size=32, workers=1)) == 2
    path.write_bytes(b"")  # broken, and still of this name
    assert len(record(CATCH, "out", episodes=3, size=32, workers=1)) == 3


def test_a_source_says_what_to_do_in_its_config():
    of_game("data/rec-1", "mine")
    with pytest.raises(UserError) as refused:
        PlayedRecordings(CATCH, episodes=1, size=32, workers=1).prepare(Path("data"))
    assert str(refused.value).startswith("data holds recordings of mine (rec-1), so tiny_game:catch is not recorded")
    for advice in ("--data.root", "--data.source null", "--data.source.mix true"):
        assert advice in str(refused.value)
    PlayedRecordings(CATCH, episodes=1, size=32, workers=1, mix=True).prepare(Path("data"))
    assert len(names("data")) == 2


def test_several_games_of_one_source_share_a_folder(monkeypatch):
    monkeypatch.setattr(tiny_game, "other", other, raising=False)
    source = PlayedRecordings([CATCH, "tiny_game:other"], episodes=1, size=32, workers=1)
    source.prepare(Path("data"))
    source.episodes = 2
    source.prepare(Path("data"))
    assert len(names("data")) == 4
    with pytest.raises(UserError, match=r"data holds recordings of (other|catch)"):
        PlayedRecordings(CATCH, episodes=3, size=32, workers=1).prepare(Path("data"))


def test_a_folder_that_is_not_there_holds_nothing_else():
    check_origin(Path("nowhere"), {"catch"}, "catch", "")


def test_metadata_is_read_alone_and_wherever_it_lies():
    folder = of_game(Path("rec"), "a", "b/c")
    path = folder / "annotation.proto"
    assert game_of(read_metadata(path)) == "a/b/c"
    rest = schema.annotation.VideoAnnotation.FromString(path.read_bytes())
    metadata = schema.annotation.VideoAnnotation(metadata=rest.metadata)
    rest.ClearField("metadata")
    path.write_bytes(rest.SerializeToString() + metadata.SerializeToString())
    assert game_of(read_metadata(path)) == "a/b/c"
    path.write_bytes(metadata.SerializeToString() + b"\xff\xff")  # what follows is damaged
    assert game_of(read_metadata(path)) == "a/b/c"


class Showing(tiny_game.Catch):
    """Frames of any shape."""

    shape = (400, 600)

    def reset(self, **options):
        frame, info = super().reset(**options)
        return np.resize(frame, (*self.shape, 3)), info

    def step(self, action):
        frame, *rest = super().step(action)
        return np.resize(frame, (*self.shape, 3)), *rest


def showing(height, width) -> Game:
    env = type("Shown", (Showing,), {"shape": (height, width)})
    return Game("shown", env, tiny_game.catch().bindings, tiny_game.CatchExpert, time_limit_s=0.2)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 60), 64), ((96, 96), 96), ((210, 160), 160), ((240, 320), 192), ((400, 600), 192), ((64, 512), 64)],
)
def test_frames_are_stored_at_the_largest_usual_size_that_enlarges_nothing(shape, size):
    assert usual_size(showing(*shape)) == size


def test_how_frames_are_stored_is_said_at_the_end(capsys):
    (folder,) = record(showing(400, 600), "out", episodes=1, workers=1)
    assert (Path(folder) / "192x192.mp4").is_file()
    shown = read_annotation(folder).metadata.capture_device_specs.window_specs
    assert (shown.width, shown.height) == (600, 400)
    assert "\nframes 600 x 400 stored as 192 x 192, squashed (--size, --fit)\n" in capsys.readouterr().out
    record(showing(400, 400), "square", episodes=1, workers=1)
    assert "\nframes 400 x 400 stored as 192 x 192 (--size)\n" in capsys.readouterr().out
    record(showing(128, 128), "same", episodes=1, workers=1)
    assert "stored as" not in capsys.readouterr().out
