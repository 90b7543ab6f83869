"""Windows and their order: golden values of the reference, and the promises of the plan."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from synthetic import GOLDEN, SIZE, damage, number_of, numbered, write_recording, write_recordings

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.dataset import WindowDataset
from bczoo.data.errors import FrameReadError
from bczoo.data.index import open_index
from bczoo.data.recording import RecordingWriter
from bczoo.data.windows import FILL, Plan, cut, first_starts, list_windows, split, subset

KEYBOARD = ActionSpace.keyboard_mouse()
CASES = {
    "T20": (20, 0, True),
    "T23": (23, 0, True),
    "T60": (60, 0, True),
    "T4_drop": (4, 0, True),
    "T4_nodrop": (4, 0, False),
    "T20_shuffle_seed3": (20, 10, True),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Index of the golden recording, and its description."""
    root = tmp_path_factory.mktemp("golden") / "recordings"
    shutil.copytree(GOLDEN / "recording", root)
    return open_index(root, KEYBOARD), json.loads((GOLDEN / "dataset_golden.json").read_text())


def golden_batch(golden, case):
    window, first, drop = CASES[case]
    index, _ = golden
    recording, start = list_windows(index, np.array([0]), window, np.array([first]), drop)
    keys = list(zip(recording.tolist(), start.tolist(), strict=True))
    return keys, WindowDataset(index, window, 192).__getitems__(keys)


@pytest.mark.parametrize("case", CASES)
def test_golden_actions_and_masks(golden, case):
    expected = load_file(GOLDEN / "dataset_golden.safetensors")
    keys, batch = golden_batch(golden, case)
    assert len(keys) == golden[1]["n_chunks"][case]
    for ours, theirs in (
        (batch["actions"]["keys"], "keys"),
        (batch["actions"]["mouse_buttons"], "mouse_buttons"),
        (batch["actions"]["mouse_dx"], "mouse_delta_x"),
        (batch["actions"]["mouse_dy"], "mouse_delta_y"),
        (batch["user"], "user_action_mask"),
        (batch["system"], "system_action_mask"),
        (batch["valid"], "valid_frame_mask"),
    ):
        assert np.array_equal(ours.numpy(), expected[f"{case}.{theirs}"]), theirs


@pytest.mark.parametrize("case", CASES)
def test_golden_frames(golden, case):
    expected = load_file(GOLDEN / "dataset_golden.safetensors")
    _, batch = golden_batch(golden, case)
    frames = batch["frames"].numpy()  # (B, T, 3, H, W)
    tolerance = 0.5 * 192 * 192 * 3  # half a grey level on average, for other decoders
    assert np.abs(frames.sum((2, 3, 4), dtype=np.int64) - expected[f"{case}.frame_sum"]).max() < tolerance
    assert np.abs(frames[..., 0, 0].astype(int) - expected[f"{case}.first_pixel_rgb"]).max() <= 3
    assert np.abs(frames[..., 96, 96].astype(int) - expected[f"{case}.center_pixel_rgb"]).max() <= 3


@pytest.mark.parametrize("case", CASES)
def test_golden_text_where_the_instruction_began_in_the_window(golden, case):
    """The reference forgets an instruction at a window's end. Here it goes on, as its duration says."""
    expected = load_file(GOLDEN / "dataset_golden.safetensors")
    keys, batch = golden_batch(golden, case)
    used = [t for t in golden[1]["text_annotations"] if t.get("used", True) and "seed" in t]
    text = batch["text"].numpy()
    carried = 0
    for b, (_, start) in enumerate(keys):
        for t in range(text.shape[1]):
            annotation = start + 1 + t
            holding = [u for u in used if 0 <= annotation - u["index"] < int(u["duration"] * 20)]
            if holding and holding[-1]["index"] < start + 1:  # began in an earlier window
                assert not expected[f"{case}.text_present"][b, t]
                values = np.random.RandomState(holding[-1]["seed"]).standard_normal(768).astype(np.float32)
                assert np.array_equal(text[b, t], values)
                carried += 1
            else:
                assert text[b, t].any() == expected[f"{case}.text_present"][b, t]
                assert np.array_equal(text[b, t, :4], expected[f"{case}.text_first4"][b, t])
                assert text[b, t].sum() == pytest.approx(expected[f"{case}.text_sum"][b, t], abs=1e-3)
    assert (carried > 0) == (case != "T60")


def brute_force(n, window, first):
    """The rule as it is written."""
    starts, start = [], first
    while start + window + 1 <= n:
        starts.append(start)
        start += window
    return starts + ([start] if start < n - 1 else [])


def test_cut_is_the_rule():
    for window in (1, 3, 4, 20):
        n_frames = np.arange(0, 50)
        first = first_starts(n_frames, window, np.arange(50, dtype=np.uint64), seed=1, epoch=2)
        which, start = cut(n_frames, window, first)
        for r in range(50):
            limit = min(max(0, r - (window + 1)), window - 1)
            assert 0 <= first[r] <= limit
            assert start[which == r].tolist() == brute_force(r, window, first[r]), (r, window)


def test_first_starts_reach_every_offset_and_change_with_epoch_seed_and_name():
    n_frames, names = np.full(2000, 50), np.arange(2000, dtype=np.uint64)
    drawn = first_starts(n_frames, 8, names, 0, 0)
    assert np.bincount(drawn, minlength=8).min() > 180  # of 250 expected
    for other in ((names, 0, 1), (names, 1, 0), (names + np.uint64(5), 0, 0)):
        assert 0.05 < (first_starts(n_frames, 8, *other) == drawn).mean() < 0.2


def test_windows_of_the_policy_alone_are_dropped(tmp_path):
    kinds = "uuuuSSSSSSSSSSSSuuSSSSSu"
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        for i, kind in enumerate(kinds):
            writer.add(numbered(i), **{"user" if kind == "u" else "system": {"keys": ["w"]}})
    write_recording(tmp_path / "zzz", 9)
    index = open_index(tmp_path, KEYBOARD)
    for window in (2, 3, 4, 6):
        for first in range(window):
            recordings = np.array([0, 1])
            recording, start = list_windows(index, recordings, window, np.array([first, 0]))
            kept = start[recording == 0].tolist()
            full = list(brute_force(25, window, first))
            expected = [s for s in full if s + window > 24 or set(kinds[s : s + window]) != {"S"}]
            assert kept == expected, (window, first)
            assert start[recording == 1].tolist() == brute_force(9, window, 0)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(write_recordings(tmp_path_factory.mktemp("many") / "r", 10, 24), KEYBOARD, text_dim=4)


def plan(index, **arguments):
    return Plan(index, index.usable, **{"window": 5, "batch_size": 3, "shuffle": True} | arguments)


def pairs(plan, epoch=0, first=0):
    return [key for batch in plan.batches(epoch, first) for key in batch]


def test_every_process_gets_as_many_batches_and_no_window_twice(index):
    alone = plan(index)
    for world_size in (1, 2, 3):
        ranks = [plan(index, rank=r, world_size=world_size) for r in range(world_size)]
        assert len({len(r) for r in ranks}) == 1
        assert len(alone) // world_size == len(ranks[0])
        for epoch in range(3):
            batches = [list(r.batches(epoch)) for r in ranks]
            assert {len(b) for b in batches} == {len(ranks[0])}
            seen = [key for b in batches for keys in b for key in keys]
            windows = set(zip(*(a.tolist() for a in alone._windows(epoch)), strict=True))
            assert set(seen) <= windows
            assert len(seen) - len(set(seen)) <= max(0, len(seen) - len(windows))


def test_evaluation_sees_every_window_once_in_order_and_fills_up(index):
    windows = list(zip(*(a.tolist() for a in list_windows(index, index.usable, 5)), strict=True))
    for world_size in (1, 2, 4):
        ranks = [plan(index, shuffle=False, rank=r, world_size=world_size) for r in range(world_size)]
        batches = [list(r.batches(0)) for r in ranks]
        merged = [key for step in zip(*batches, strict=True) for keys in step for key in keys]
        assert merged[: len(windows)] == windows
        assert set(merged[len(windows) :]) <= {(FILL, 0)}
        assert len(merged) < len(windows) + 3 * world_size


def test_spread_evaluation_sees_every_window_once_and_the_same_ones_first_however_they_are_cut(index):
    wanted = [key for batch in plan(index, shuffle=False, batch_size=1).batches(0) for key in batch]
    (alone,) = plan(index, shuffle=False, spread=True, batch_size=len(wanted)).batches(0)
    assert sorted(alone) == sorted(wanted)
    assert len({r for r, _ in alone[:8]}) > 4, "the first ones come from everywhere"
    for world_size, batch_size in ((1, 2), (1, 3), (2, 2), (2, 4), (4, 1)):
        cut = {"world_size": world_size, "batch_size": batch_size}
        ranks = [list(plan(index, shuffle=False, spread=True, rank=r, **cut).batches(0)) for r in range(world_size)]
        merged = [key for step in zip(*ranks, strict=True) for keys in step for key in keys]
        assert merged[: len(alone)] == alone
        assert set(merged[len(alone) :]) <= {(FILL, 0)}


def test_order_depends_on_seed_and_epoch_alone(index):
    assert pairs(plan(index), 1) == pairs(plan(index), 1)
    assert pairs(plan(index), 1) != pairs(plan(index), 0)
    assert pairs(plan(index, seed=1)) != pairs(plan(index))
    assert pairs(plan(index), 2, first=3) == pairs(plan(index), 2)[9:]


def test_order_changes_where_first_windows_cannot():
    short = Names([f"r{i}" for i in range(50)], np.full(50, 6))
    orders = [Plan(short, short.usable, 5, 5, True).epoch(epoch)[0] for epoch in range(3)]
    assert sorted(orders[0].reshape(-1)) == sorted(orders[1].reshape(-1)) == list(range(50))
    assert not (orders[0] == orders[1]).all()
    assert not (orders[1] == orders[2]).all()


def test_empty_window(index):
    batch = WindowDataset(index, 5, SIZE)[(FILL, 0)]
    assert not batch["valid"].any()
    assert not batch["user"].any()
    assert batch["frames"].shape == (1, 5, 3, SIZE, SIZE)
    assert batch["recording"].tolist() == [FILL]


def test_frames_and_actions_belong_together(index):
    batch = WindowDataset(index, 5, SIZE).__getitems__([(3, 7), (9, 28)])
    frames = batch["frames"].permute(0, 1, 3, 4, 2).numpy()
    assert [number_of(f) for f in frames[0]] == [3007, 3008, 3009, 3010, 3011]
    # recording 9 has 33 frames, 0..32: steps 28..31 have actions, then comes the last frame, without one
    assert [number_of(f) for f in frames[1]] == [9028, 9029, 9030, 9031, 9032]
    assert batch["valid"][1].tolist() == [True] * 4 + [False]
    assert batch["actions"]["keys"][0, :, 0].tolist() == [2 + i % 4 for i in range(7, 12)]
    assert batch["actions"]["keys"][1, :, 0].tolist() == [2 + i % 4 for i in range(28, 32)] + [0]


class Names:
    """As much of an index as splitting needs."""

    def __init__(self, names, n_frames=None):
        from bczoo.data.index import name_hash

        self.names = np.array(names)
        self.hashes = np.array([name_hash(n) for n in names], np.uint64)
        self.n_frames = np.full(len(names), 100) if n_frames is None else n_frames
        self.usable = np.arange(len(names))
        self.pack_of = np.full(len(names), -1)
        self.packs = []

    def system_only(self, recording, first, steps):
        return np.zeros(len(recording), bool)


def test_split_moves_no_recording_when_more_are_added():
    few = Names([f"game-{i}" for i in range(300)])
    more = Names([f"new-{i}" for i in range(500)] + [f"batch-7/game-{i}" for i in range(300)])
    train, val = split(few, 0.1)
    assert 15 <= len(val) <= 45
    assert not set(train) & set(val)
    assert len(train) + len(val) == 300
    kept = {n.split("/")[-1] for n in more.names[split(more, 0.1)[1]]}
    assert kept & set(few.names) == set(few.names[val])


def test_split_of_few():
    assert [len(part) for part in split(Names(["a", "b"]), 0.01)] == [1, 1]
    assert [len(part) for part in split(Names(["a", "b", "c"]), 0.99)] == [1, 2]
    assert [len(part) for part in split(Names(["a"]), 1e-9)] == [1, 0]
    assert [len(part) for part in split(Names(["a", "b"]), 0.0)] == [2, 0]


def test_fractions_are_nested_and_hold_their_share():
    rng = np.random.RandomState(0)
    index = Names([f"r{i}" for i in range(400)], rng.randint(50, 5000, 400))
    everything = index.usable
    previous: set = set()
    for fraction in (0.01, 0.06, 0.25, 0.5, 1.0):
        chosen = set(subset(index, everything, fraction).tolist())
        assert previous <= chosen
        previous = chosen
        share = index.n_frames[list(chosen)].sum() / index.n_frames.sum()
        assert fraction <= share < fraction + 0.01
    assert len(previous) == 400
    with pytest.raises(UserError, match="above 0"):
        subset(index, everything, 0.0)


def test_damaged_frames_are_not_learned_from(tmp_path):
    write_recordings(tmp_path, 3, 80)
    damage(tmp_path / "rec-1" / f"{SIZE}x{SIZE}.mp4", share=0.5)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    dataset = WindowDataset(index, 80, SIZE)
    with pytest.warns(UserWarning, match=r"recording rec-1: frame \d+ cannot be decoded") as caught:
        batch = dataset.__getitems__([(0, 0), (1, 0), (2, 0)])
        again = dataset.__getitems__([(1, 0)])
    assert len(caught) == 1
    valid = batch["valid"]
    assert valid[0].sum() == 79
    assert valid[2].sum() == 80
    readable = int(valid[1].sum())
    assert 5 < readable < 75
    assert valid[1, :readable].all()
    frames = batch["frames"][1].permute(0, 2, 3, 1).numpy()
    assert [number_of(f) for f in frames[:readable]] == list(range(1000, 1000 + readable))
    assert (frames[readable:] == frames[readable - 1]).all()
    assert (again["valid"] == valid[1:2]).all()
    assert dataset.unreadable_steps == 2 * (80 - readable)
    with pytest.raises(FrameReadError, match="cannot be decoded"):
        WindowDataset(index, 80, SIZE, strict=True)[(1, 0)]
