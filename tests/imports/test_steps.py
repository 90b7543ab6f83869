"""Frames and events of any times become steps: each shows the newest frame, and has what was done after it."""

from __future__ import annotations

import numpy as np
import pytest
from foreign import number_of, numbered

from bczoo.data.errors import RecordingError
from bczoo.imports.keys import Names, key_of_code
from bczoo.imports.session import Event, Session, held_events
from bczoo.imports.steps import cut


def frames(*times):
    return [(time, numbered(i)) for i, time in enumerate(times)]


def steps(session, fps=20.0):
    return list(cut(session, fps, "a"))


def keys(session, fps=20.0):
    return [step.values and step.values["keys"] for step in steps(session, fps)]


def test_a_step_shows_the_newest_frame_that_there_was():
    shown = [number_of(step.frame) for step in steps(Session(frames(10.0, 10.048, 10.052, 10.19, 10.21)))]
    assert shown == [0, 1, 2, 2, 3]  # at 10.00, 10.05, 10.10, 10.15, 10.20; 10.21 comes after the last begin


@pytest.mark.parametrize("fps", [20.0, 16.0, 30.0])
def test_frames_of_the_same_rate_are_taken_one_by_one(fps):
    at = [round(1000 * i / fps) / 1000 for i in range(40)]  # as a container that counts milliseconds tells them
    assert [number_of(step.frame) for step in steps(Session(frames(*at)), fps)] == list(range(40))


def test_pictures_are_asked_for_only_where_a_step_shows_them():
    asked = []

    def picture(i):
        return lambda: asked.append(i) or numbered(i)

    shown = steps(Session([(i / 60, picture(i)) for i in range(61)]))
    assert [number_of(step.frame) for step in shown] == asked == list(range(0, 61, 3))


def test_what_is_held_at_the_begin_and_what_is_pressed_within_is_held():
    events = [
        Event(0.06, "w", 1), Event(0.12, "w", 0),
        Event(0.16, "e", 1), Event(0.17, "e", 0),  # shorter than a step
        Event(0.20, "q", 1), Event(0.25, "q", 0),  # exactly one step
    ]  # fmt: skip
    assert keys(Session(frames(0.0, 0.30), events, end=0.35)) == [[], ["w"], ["w"], ["e"], ["q"], [], []]


def test_a_press_and_its_release_at_the_begin_of_a_step_are_a_press():
    assert keys(Session(frames(0.0, 0.1), [Event(0.05, "w", 1), Event(0.05, "w", 0)]))[:2] == [[], ["w"]]


def test_who_is_released_first_was_held_from_the_start():
    events = [Event(0.07, "w", 0), Event(0.07, "mouse_right", 0)]
    told = [step.values for step in steps(Session(frames(0.0, 0.15), events))[:3]]
    assert [(v["keys"], v["mouse_buttons"]) for v in told] == [(["w"], ["1"])] * 2 + [([], [])]


def test_motion_is_summed_and_no_part_of_a_pixel_is_lost():
    events = [Event(0.01 * i, "mouse_dx", 0.3) for i in range(20)] + [Event(0.12, "scroll_dy", -1)]
    told = [step.values for step in steps(Session(frames(0.0, 0.2), events))]
    assert [v["mouse_dx"] for v in told[:4]] == [2, 1, 2, 1] and sum(v["mouse_dx"] for v in told[:4]) == 6
    assert [v["scroll_dy"] for v in told[:4]] == [0, 0, -1, 0]


def test_sticks_take_their_mean_over_the_step():
    events = [Event(0.025, "left_stick_x", 1.0), Event(0.0625, "left_stick_x", -1.0), Event(0.0, "south", 1)]
    told = [step.values for step in steps(Session(frames(0.0, 0.15), events))]
    assert [round(v["left_stick_x"], 6) for v in told[:3]] == [0.5, -0.5, -1.0]
    assert told[0]["buttons"] == ["south"] and "keys" not in told[0]


def test_the_action_is_unknown_where_nobody_knows_it():
    assert keys(Session(frames(0.0, 0.2))) == [None] * 5
    events = [Event(0.0, "w", 1)]
    assert keys(Session(frames(0.0, 0.2), events, unknown=[(0.05, 0.1)])) == [["w"], None, ["w"], ["w"], None]
    assert keys(Session(frames(0.0, 0.2), events, end=0.25)) == [["w"]] * 5  # known until the end
    assert keys(Session(frames(0.0, 0.05, 0.1, 0.15), events, end=0.1)) == [["w"]] * 2 + [None] * 2
    assert (
        keys(Session(frames(0.0, 0.12), events)) == keys(Session(frames(0.0), events, end=0.12)) == [["w"]] * 2 + [None]
    )


def test_an_instruction_holds_from_the_next_step_on():
    told = steps(Session(frames(0.0, 0.2), texts=[(0.07, "go"), (0.15, None)]))
    assert [step.text for step in told] == [None, None, "go", None, None]


def test_the_age_of_a_frame_is_told():
    assert [round(step.age, 3) for step in steps(Session(frames(0.0, 0.12)))] == [0.0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (Session([]), "there is no frame"),
        (Session(frames(1.0, 0.5)), "the time of a frame is -0.500 s"),
        (Session(frames(0.0, 1e9)), "the time of a frame is 1000000000.000 s"),
        (Session(frames(0.0, float("nan"))), "the time of a frame is nan s"),
        (Session(frames(0.0), end=1e6), "it ends 1000000 s after its last frame"),
        (Session(frames(0.0, 0.1), [Event(0.0, "mouse_dx", float("nan"))]), "mouse_dx is nan"),
        (Session(frames(0.0, 0.1), [Event(float("inf"), "w", 1)]), "w is 1 at inf s"),
    ],
)
def test_what_is_no_recording_is_refused(session, reason):
    with pytest.raises(RecordingError, match=reason):
        steps(session)


def test_held_names_become_events():
    held = held_events([0.0, 0.05, 0.1], [{"w"}, {"w", "a"}, set()])
    assert held == [Event(0.0, "w", 1), Event(0.05, "a", 1), Event(0.1, "a", 0), Event(0.1, "w", 0)]


def test_codes_have_the_names_of_the_action_space():
    codes = [0x57, 0x31, 32, 160, 37, 162, 1, 179]
    assert [key_of_code(c) for c in codes] == [
        "w", "1", "Space", "LeftShift", "LeftArrow", "LeftControl", "mouse_left", "code_179",
    ]  # fmt: skip


def test_renamed_keys_are_released_with_the_last_of_them():
    names = Names({"RightShift": "LeftShift", "Tab": ""})
    events = [
        Event(0, "LeftShift", 1), Event(1, "RightShift", 1), Event(2, "LeftShift", 0), Event(3, "RightShift", 0),
        Event(1, "Tab", 1), Event(2, "Tab", 0), Event(4, "mouse_dx", 3),
    ]  # fmt: skip
    told = names(events)
    assert [tuple(e) for e in told] == [
        (0, "LeftShift", 1), (1, "LeftShift", 1), (3, "LeftShift", 0), (4, "mouse_dx", 3),
    ]  # fmt: skip
    assert names.renamed == {("RightShift", "LeftShift"): 2} and names.dropped == {"Tab": 2}


def test_frames_of_any_type_go_through():
    array = np.zeros((4, 6, 3), np.uint8)
    assert steps(Session([(0.0, lambda: array)]))[0].frame is array
