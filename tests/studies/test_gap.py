"""The gap between training and play: nothing where nothing changed, elsewhere the numbers of the KL and the loss."""

from __future__ import annotations

import json
import math

import gymnasium
import numpy as np
import pytest
import tiny
import torch

from bczoo.causality.scores import kl
from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.core.frames import FILTERS, resize
from bczoo.data.video import VideoWriter, read_frames
from bczoo.games import DiscreteBindings, Game
from bczoo.studies import gap as gap_module
from bczoo.studies.gap import (
    ELSEWHERE,
    GAME,
    Episode,
    Subject,
    Version,
    gap,
    interval,
    measure,
    predict,
    show,
    versions,
)
from bczoo.train.loss import bc_loss

HEIGHT, WIDTH, STEPS = 60, 80, 12  # two windows of five steps and one of two
KEYS = {"a": 0, "d": 1}


class Drifting(gymnasium.Env):
    """Coloured blocks that drift sideways; their seed decides how long the game lasts."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        blocks = self.np_random.integers(0, 256, (HEIGHT // 3, WIDTH // 4, 3), np.uint8)
        self.picture = blocks.repeat(3, axis=0).repeat(4, axis=1)
        self.left = STEPS + int(seed) % 2
        return self.picture, {}

    def step(self, action):
        self.picture = np.roll(self.picture, 3, axis=1)
        self.left -= 1
        return self.picture, 0.0, self.left == 0, False, {}


class Expert:
    def reset(self, seed):
        self.step = 0

    def act(self, frame, info):
        self.step += 1
        return {"keys": ["a" if frame[0, 0, 0] < 128 else "d"], "mouse_dx": self.step - 0.6}


def drifting(**options) -> Game:
    return Game("drifting", Drifting, DiscreteBindings(KEYS, none=2), **{"expert": Expert} | options)


def without_expert() -> Game:
    return drifting(expert=None)


def slow() -> Game:
    return drifting(fps=10.0)


def opinionated(seed=0, **options):
    """A policy whose pictures and actions matter: a tiny one has next to no opinions as it is initialised."""
    policy = tiny.tiny_policy(seed, **options).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not name.startswith("encoder.backbone"):
                parameter.mul_(2.0)
    return policy


@pytest.fixture(scope="module")
def result():
    subjects = {"first": Subject(opinionated()), "second": Subject(opinionated(1))}
    return measure(drifting(), subjects, 2, 5, [0, 23, 40], progress=False)


@pytest.fixture(scope="module")
def episode():
    return gap_module.expert_episode(drifting(), 5)


def test_what_changes_nothing_has_no_gap(result):
    for rows in result.rows.values():
        for version in (GAME, "rgb crf 0"):
            row = rows[version]
            assert (row.kl, row.loss_change, row.other_action, row.psnr) == (0, 0, 0, None)
            assert row.kl_interval == row.loss_change_interval == (0, 0)
        assert all(row.kl > 0 and row.psnr for name, row in rows.items() if name not in (GAME, "rgb crf 0"))
        assert max(rows, key=lambda name: rows[name].kl) == ELSEWHERE
        assert rows[ELSEWHERE].other_action > 0
    assert result.steps == 2 * STEPS + 1


def test_less_of_the_colours_and_more_compression_cost_more(result):
    rows = result.rows["first"]
    for name in ("yuv420p", "yuv444p", "rgb"):
        fine, usual, coarse = (rows[f"{name} crf {rate}"] for rate in (0, 23, 40))
        assert fine.bytes_per_minute > usual.bytes_per_minute > coarse.bytes_per_minute
        assert (fine.psnr or math.inf) > usual.psnr > coarse.psnr
        assert fine.kl < coarse.kl
    assert rows["yuv420p crf 0"].psnr + 5 < rows["yuv444p crf 0"].psnr
    assert rows["yuv420p crf 0"].kl > rows["yuv444p crf 0"].kl
    assert rows["bilinear filter"].bytes_per_minute is rows[GAME].bytes_per_minute is None
    assert result.rows["second"]["rgb crf 23"].bytes_per_minute == rows["rgb crf 23"].bytes_per_minute


def test_numbers_are_those_of_the_loss_and_the_kl(result):
    """Computed again from whole windows that are fed to the policy by hand."""
    policy = opinionated()
    steps, nats, losses, differing, error = 0, 0.0, {GAME: 0.0, "box": 0.0}, 0, 0.0
    for seed in (5, 6):
        played = gap_module.expert_episode(drifting(), seed)
        n = len(played.frames)
        assert n == STEPS + seed % 2
        ids = [policy.action_space.encode(keys=v["keys"], mouse_dx=round(v["mouse_dx"])) for v in played.values]
        actions = {name: torch.tensor([one[name] for one in ids])[None] for name in ids[0]}
        logits, frames = {}, {}
        for filter in ("hamming", "box"):
            frames[filter] = np.stack([resize(f, tiny.SIZE, filter) for f in played.frames])
            pixels = torch.from_numpy(frames[filter]).permute(0, 3, 1, 2)[None]
            with torch.no_grad():
                parts = [
                    policy(pixels[:, i : i + 5], {name: group[:, i : i + 5] for name, group in actions.items()})
                    for i in range(0, n, 5)
                ]
            logits[filter] = {name: torch.cat([part[name] for part in parts], dim=1) for name in actions}
        counted = torch.ones(1, n, dtype=torch.bool)
        losses[GAME] += n * bc_loss(logits["hamming"], actions, counted, policy.z_loss).total.item()
        losses["box"] += n * bc_loss(logits["box"], actions, counted, policy.z_loss).total.item()
        nats += sum(values.sum().item() for values in kl(logits["hamming"], logits["box"]).values())
        differs = [(group.argmax(-1) != logits["box"][name].argmax(-1))[0] for name, group in logits["hamming"].items()]
        differing += sum(any(d[i].any() for d in differs) for i in range(n))
        error += n * np.square(frames["box"].astype(float) - frames["hamming"]).mean()
        steps += n
    row, in_play = result.rows["first"]["box filter"], result.rows["first"][GAME]
    assert row.kl == pytest.approx(nats / steps, rel=1e-3) and row.kl == pytest.approx(sum(row.kl_groups.values()))
    assert in_play.loss == pytest.approx(losses[GAME] / steps, rel=1e-5)
    assert row.loss == pytest.approx(losses["box"] / steps, rel=1e-5)
    assert row.loss_change == pytest.approx(row.loss - in_play.loss, abs=1e-6) and row.loss_change != 0
    assert row.other_action == pytest.approx(differing / steps)
    assert row.psnr == pytest.approx(20 * math.log10(255 / math.sqrt(error / steps)))
    assert row.perplexity["keys"] == pytest.approx(math.exp(row.cross_entropy["keys"]))


def test_a_policy_that_ignores_pictures_has_no_gap():
    policy = opinionated()
    policy.encoder.forward = lambda frames: torch.zeros(len(frames), 1, 32)
    rows = measure(drifting(), {"blind": Subject(policy)}, 1, 0, [30], progress=False).rows["blind"]
    assert all((row.kl, row.loss_change, row.other_action) == (0, 0, 0) for row in rows.values())
    assert rows["yuv420p crf 30"].psnr is not None and rows[GAME].kl_interval is None, "one episode has no interval"


def test_an_instruction_reaches_the_policy(episode):
    policy = opinionated()
    frames = show(episode, Version(GAME), policy.input_spec).frames
    ids = gap_module.action_ids(episode, policy.input_spec)
    told = predict(Subject(policy, torch.ones(16)), frames, ids)
    untold = predict(Subject(policy), frames, ids)
    assert all(nats.min() > 0 for nats in kl(told, untold).values())


def test_predictions_do_not_depend_on_how_many_windows_go_together(episode, monkeypatch):
    policy = opinionated()
    frames = show(episode, Version(GAME), policy.input_spec).frames
    ids = gap_module.action_ids(episode, policy.input_spec)
    together = predict(Subject(policy), frames, ids)
    monkeypatch.setattr(gap_module, "FRAMES_PER_FORWARD", 1)
    alone = predict(Subject(policy), frames, ids)
    for name, logits in together.items():
        assert logits.shape[:2] == (1, len(frames))
        torch.testing.assert_close(logits, alone[name], rtol=1e-4, atol=1e-5)


def test_videos_and_play_are_resized_by_the_policys_own_filter(episode):
    spec = opinionated(resize="box").input_spec
    by = {name: np.stack([resize(f, tiny.SIZE, name) for f in episode.frames]) for name in FILTERS}
    assert np.array_equal(show(episode, Version(GAME), spec).frames, by["box"])
    assert np.array_equal(show(episode, Version("", pix_fmt="rgb24"), spec).frames, by["box"])
    assert np.array_equal(show(episode, Version("", filter="lanczos"), spec).frames, by["lanczos"])
    names = [version.name for version in versions("box", [23])]
    assert "hamming filter" in names and "box filter" not in names and names[0] == GAME


def test_interval_weighs_episodes_by_their_steps():
    low, high = interval([1.0, 2.0, 3.0], np.array([10.0, 10.0, 10.0]))
    assert low == pytest.approx(1.0, abs=0.4) and high == pytest.approx(3.0, abs=0.4)
    assert interval([1.0, 1.0], np.array([3.0, 9.0])) == (1.0, 1.0)
    low, high = interval([0.0, 1.0, 1.0, 1.0], np.array([1e6, 1.0, 1.0, 1.0]))
    assert low < 1e-5 and high == 1.0
    assert interval([1.0], np.array([10.0])) is None


def test_colours_survive_a_lossless_rgb_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (25, 31, 31, 3), np.uint8)
    with VideoWriter(tmp_path / "video.mp4", 20, "rgb24", crf=0) as writer:
        for frame in frames:
            writer.add(frame)
    assert np.array_equal(read_frames(tmp_path / "video.mp4", 0, 25, 31), frames)


@pytest.fixture
def policies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("plain", "augmented")):
        opinionated(i).save_pretrained(tmp_path / name)
    return tmp_path


def test_the_command_compares_two_policies_in_one_table(policies, capsys):
    options = ["--env", "test_gap:drifting", "--compare", "augmented", "--crf", "[30, 23, 30]", "--episodes", "2"]
    assert main(["gap", "plain", *options, "--out", "out"]) == 0
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith("| yuv420p crf 23 |")]
    assert len(lines) == 3, "one line for both policies, and one each by group"
    assert lines[0].count("|") == 12 and lines[0].count(" to ") == 4
    assert "plain: KL, nats" in told and "augmented: KL, nats" in told and told.count("| mouse_dy |") == 2
    yardstick = next(line for line in told.splitlines() if line.startswith(f"| {ELSEWHERE} |"))
    assert yardstick.count("| 100.00 % |") == 2
    content = json.loads((policies / "out" / "gap.json").read_text())
    assert content["sources"] == {"plain": "plain", "augmented": "augmented"}
    assert content["env"] == "test_gap:drifting" and content["seed"] == 2_000_000
    rows = content["policies"]["augmented"]
    assert list(rows) == [v.name for v in versions("hamming", [23, 30])]
    low, high = rows["yuv444p crf 30"]["kl_interval"]
    assert low <= rows["yuv444p crf 30"]["kl"] <= high and high > low
    picture = (policies / "out" / "gap.png").read_bytes()
    assert main(["study", "redraw", "out/gap.json", "--out", "again"]) == 0
    assert picture.startswith(b"\x89PNG") and (policies / "again" / "gap.png").read_bytes() == picture


def test_the_command_gives_the_same_numbers_again(policies):
    first, again = (gap("plain", "test_gap:drifting", episodes=1, crf=[23], out=out) for out in ("a", "b"))
    assert first.to_dict() == again.to_dict()
    assert (policies / "a" / "gap.json").read_bytes() == (policies / "b" / "gap.json").read_bytes()


def test_a_game_is_as_good_as_its_name(policies):
    assert gap("plain", drifting(), episodes=1, crf=[23], out="game").steps == STEPS
    assert json.loads((policies / "game" / "gap.json").read_text())["env"] == "drifting"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"env": "doom/nowhere"}, "there is no game 'doom/nowhere'"),
        ({"env": "test_gap:without_expert"}, "has no expert"),
        ({"env": "test_gap:slow"}, "runs at 10.0 steps a second, but the policy at 20.0"),
        ({"policy": "nothing"}, "there is no policy 'nothing'"),
        ({"compare": "nothing"}, "there is no policy 'nothing'"),
        ({"compare": "plain"}, "compare is the policy itself, plain"),
        ({"crf": [52]}, "crf lists rate factors from 0"),
        ({"crf": []}, "crf lists rate factors from 0"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"device": "nowhere"}, "the device 'nowhere' cannot be used"),
    ],
)
def test_wrong_input_is_told(policies, options, told):
    with pytest.raises(UserError, match=told):
        gap(**{"policy": "plain", "env": "test_gap:drifting", "out": "out"} | options)
    assert not (policies / "out").exists()


def test_two_policies_of_one_name_are_told_apart(policies):
    (policies / "other").mkdir()
    opinionated(1).save_pretrained(policies / "other" / "plain")
    result = gap("plain", "test_gap:drifting", "other/plain", episodes=1, crf=[40], out="out")
    assert list(result.rows) == ["plain", "other/plain"]


def test_an_episode_holds_every_step_of_the_expert(episode):
    assert isinstance(episode, Episode) and len(episode.frames) == len(episode.values) == STEPS + 1
    assert [v["keys"] for v in episode.values] == [["a" if f[0, 0, 0] < 128 else "d"] for f in episode.frames]
