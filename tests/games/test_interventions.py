"""Interventions in Doom: the changed scene is real, the expert's verdict on it is the truth, and scores tell it."""

from __future__ import annotations

import lightning
import numpy as np
import pytest
import torch

pytest.importorskip("vizdoom")

from tiny import tiny_policy
from torch.nn.functional import one_hot

from bczoo.core.actions import ActionSpace
from bczoo.core.frames import resize
from bczoo.core.spec import InputSpec
from bczoo.games import ExpertPlayer, make_game
from bczoo.games.players import ActionRepeat
from bczoo.record.demonstrations import ActionNoise
from bczoo.studies.intervention_scores import Scores, accuracy, score
from bczoo.studies.interventions import Interventions, collect

SPACE = ActionSpace.keyboard_mouse()
GROUPS = [g.name for g in SPACE.groups]
SCENARIOS = {"basic": 1, "health_gathering": 3}  # steps that the expert holds its decisions
SIZE, WINDOW, NOISE = 64, 5, 0.1


@pytest.fixture(scope="module", params=SCENARIOS)
def cases(request) -> Interventions:
    return collect(f"doom/{request.param}", 15, WINDOW, SIZE, SPACE, 30, NOISE, hold=SCENARIOS[request.param])


def live(game, running, episode: int, hold: int, until: int, change: str):
    """The expert plays anew, without a replay; yields every frame, decision and what was executed in its place but for
    the change, the last of them after it."""
    player, bursts = ActionRepeat(ExpertPlayer(game), hold), ActionNoise(game, NOISE, episode)
    player.start(1, episode)
    frame, info = running.reset(episode)
    player.reset(0, episode)
    what, _, detail = change.partition(" ")
    for step in range(until + 1):
        values = player.act([0], [frame], [info])[0].values
        executed = bursts(values)
        yield frame, values, executed
        if step == until - 1 and what == "turn":
            executed = {**executed, "mouse_dx": executed["mouse_dx"] + 4 * float(detail)}
        if step == until - 1 and what in ("remove", "summon"):
            running.env.command(change)
        frame, _, _, info = running.step(executed)


def test_every_kind_has_its_share_over_several_episodes(cases):
    assert [cases.kinds.count(k) for k in ("turn", "remove", "summon", "history", "none")] == [3] * 5
    assert len(set(cases.episodes.tolist())) > 1
    assert cases.steps.min() >= 1 and (cases.lengths == np.minimum(cases.steps + 1, WINDOW)).all()
    assert all((cases.frames[i, n:] == 0).all() for i, n in enumerate(cases.lengths))


def test_frames_and_verdicts_are_those_of_a_game_played_anew(cases):
    game = make_game(cases.env)
    hold = SCENARIOS[cases.env.split("/")[1]]
    with game.open(for_expert=True) as running:
        earliest = {cases.kinds[i]: i for i in np.argsort(-cases.steps)}  # of every kind, to play few steps
        for kind, i in earliest.items():
            change, step, length = cases.changes[i], int(cases.steps[i]), int(cases.lengths[i])
            plain = list(live(game, running, int(cases.episodes[i]), hold, step, ""))[-length:]
            played = list(live(game, running, int(cases.episodes[i]), hold, step, change))[-length:]
            frames = np.stack([resize(frame, SIZE) for frame, _, _ in played])
            answer = SPACE.encode(**played[-1][1])
            past = [SPACE.encode(**executed) for _, _, executed in played[:-1]]
            habit = SPACE.encode(**plain[-1][1])
            assert np.array_equal(cases.frames[i, :length], frames)
            changed = not np.array_equal(frames[-1], resize(plain[-1][0], SIZE))
            assert changed == (kind in ("turn", "remove", "summon"))
            for name in GROUPS:
                assert cases.answer[name][i].tolist() == answer[name]
                if kind != "history":
                    assert cases.habit[name][i].tolist() == habit[name]
                    assert cases.past[name][i, : length - 1].tolist() == [one[name] for one in past]
            if kind == "history":
                episode, moment = map(int, change.split()[1].split(":"))
                assert episode != cases.episodes[i]
                other = list(live(game, running, episode, hold, moment, ""))[-length:]
                habit = SPACE.encode(**other[-1][1])
                past = [SPACE.encode(**executed) for _, _, executed in other[:-1]]
                for name in GROUPS:
                    assert cases.habit[name][i].tolist() == habit[name]
                    assert cases.past[name][i, : length - 1].tolist() == [one[name] for one in past]


def test_the_expert_that_judges_remembers_its_episode():
    cases = collect("doom/defend_the_line", 6, 2, 32, SPACE, 0, kinds=["turn"])
    side = cases.habit["keys"][:, 0]  # this expert strafes to and fro, which no single picture tells
    assert len(set(side.tolist())) == 2
    assert np.array_equal(cases.answer["keys"][:, 0], side)


def test_interventions_change_what_the_expert_does(cases):
    kinds = np.array(cases.kinds)
    assert not cases.differs[kinds == "none"].any()
    assert cases.differs[kinds == "remove"].all(), "what the expert acts on has gone"
    assert cases.differs[kinds != "none"].mean() > 0.5


def test_a_file_keeps_the_cases(cases, tmp_path):
    cases.save(tmp_path / "new" / "cases.safetensors")
    assert_same(Interventions.load(tmp_path / "new" / "cases.safetensors"), cases)
    (tmp_path / "other").write_bytes(b"nothing")
    for name in ("other", "absent"):
        with pytest.raises(ValueError, match=rf"interventions from .*{name}.*collect them anew"):
            Interventions.load(tmp_path / name)


def test_a_seed_gives_the_same_cases_again():
    one, two, three = (collect("doom/basic", 6, 4, 32, SPACE, seed) for seed in (1, 1, 2))
    assert_same(one, two)
    assert not np.array_equal(one.frames, three.frames)


def assert_same(one: Interventions, two: Interventions) -> None:
    assert (one.env, one.kinds, one.changes, one.action_space) == (two.env, two.kinds, two.changes, two.action_space)
    for name in ("episodes", "steps", "lengths", "frames"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    for name in ("past", "answer", "habit"):
        assert all(np.array_equal(getattr(one, name)[g], getattr(two, name)[g]) for g in GROUPS)


class Stub(lightning.LightningModule):
    """Answers every window with the ids that it was told for the case of this last frame."""

    def __init__(self, cases: Interventions, ids: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.input_spec = InputSpec(SPACE, SIZE, text_dim=None)
        self.rows = {cases.frames[i, n - 1].tobytes(): i for i, n in enumerate(cases.lengths)}
        assert len(self.rows) == len(cases)
        self.told = ids

    def logits(self, batch):
        frames, actions = batch["frames"], batch["actions"]
        assert frames.dtype == torch.uint8 and "text" not in batch
        shown = frames.permute(0, 1, 3, 4, 2).numpy()
        lengths = shown.any(axis=(2, 3, 4)).sum(1)
        rows = [self.rows[f[n - 1].tobytes()] for f, n in zip(shown, lengths, strict=True)]
        out = {}
        for group in SPACE.groups:
            ids = torch.zeros_like(actions[group.name])
            ids[np.arange(len(rows)), lengths - 1] = torch.from_numpy(self.told[group.name][rows])
            out[group.name] = 4.0 * one_hot(ids, group.choices)
        return out


def test_an_oracle_is_always_right_and_habit_never_where_it_matters(cases):
    right = accuracy(score(Stub(cases, cases.answer), cases, batch=4), cases)
    kinds = ["turn", "remove", "summon", "history", "none"]
    assert list(right) == [*kinds, "total"]
    assert all(one.accuracy == 1 and one.interval == (1, 1) for one in right.values())
    assert all(right[kind].cases == 3 for kind in kinds) and right["total"].cases == 12
    assert right["total"].telling == cases.differs.sum() > 0
    assert right["total"].telling_accuracy == 1 and right["none"].telling_accuracy is None

    habit = accuracy(score(Stub(cases, cases.habit), cases, batch=4), cases)
    assert habit["none"].accuracy == 1 and habit["none"].habit is None
    assert habit["total"].habit == 1
    assert habit["remove"].telling_accuracy == 0
    assert habit["total"].accuracy < 0.6
    assert habit["total"].cross_entropy > right["total"].cross_entropy + 1


def test_mouse_motion_may_be_off_by_one_bin_and_keys_may_not(cases):
    near = {k: v.copy() for k, v in cases.answer.items()}
    near["mouse_dx"] += 1 - 2 * (near["mouse_dx"] > 10)
    assert score(Stub(cases, near), cases).right.all()
    near["mouse_dx"] += 1 - 2 * (near["mouse_dx"] > 10)
    scores = score(Stub(cases, near), cases)
    assert not scores.right.all() and scores.agrees["keys"].all() and scores.agrees["mouse_dy"].all()
    keys = {**cases.answer, "keys": np.where(cases.answer["keys"] > 0, 0, 6)}
    scores = score(Stub(cases, keys), cases)
    assert not scores.agrees["keys"].any() and scores.agrees["mouse_dx"].all() and not scores.right.any()


def test_a_policy_is_asked_at_the_last_step_of_each_window(cases):
    policy = tiny_policy(text_dim=None).eval()
    scores = score(policy, cases, batch=4)
    for i in range(0, len(cases), 4):
        n = cases.lengths[i]
        frames = torch.from_numpy(cases.frames[i : i + 1, :n]).permute(0, 1, 4, 2, 3)
        ids = {k: torch.from_numpy(v[i : i + 1, :n].copy()) for k, v in cases.past.items()}
        for name, taken in ids.items():
            taken[0, -1] = torch.from_numpy(cases.answer[name][i])
        with torch.no_grad():
            logits = policy(frames, ids)
        nats = -sum(
            logits[k][0, -1].log_softmax(-1).gather(-1, taken[0, -1][:, None]).sum() for k, taken in ids.items()
        )
        assert scores.cross_entropy[i] == pytest.approx(float(nats), rel=1e-4)


def test_the_interval_draws_whole_episodes():
    def interval(episodes):
        n = len(episodes)
        ids = {g.name: np.zeros((n, g.tokens), np.int64) for g in SPACE.groups}
        cases = Interventions(
            "g", SPACE, ["turn"] * n, [""] * n, np.array(episodes), *[np.ones(n)] * 2, np.zeros(n), ids, ids, ids
        )
        right = np.arange(n) < n // 2
        (one, _) = accuracy(Scores({"keys": right}, {"keys": right}, np.ones(n)), cases).values()
        assert one.accuracy == 0.5 and one.telling == 0
        return one.interval

    assert interval([0] * 20 + [1] * 20) == (0, 1)
    wide, narrow = (high - low for low, high in (interval([i // 10 for i in range(40)]), interval(list(range(40)))))
    assert wide > 1.5 * narrow > 0.2


def test_a_constant_answer_is_seen_through():
    """Nine cases want a turn to the right and one wants W: always turning is mostly right, and not balanced."""
    n, held, turn = 10, SPACE.encode(keys=["w"]), SPACE.encode(mouse_dx=60)
    answer = {g.name: np.array([(held if i == 0 else turn)[g.name] for i in range(n)]) for g in SPACE.groups}
    habit = {g.name: np.array([g.neutral] * n) for g in SPACE.groups}
    cases = Interventions(
        "g", SPACE, ["turn"] * n, [""] * n, np.arange(n), *[np.ones(n)] * 2, np.zeros(n), habit, answer, habit
    )
    turning = np.arange(n) > 0
    found = accuracy(Scores({"keys": turning}, {"keys": ~turning}, np.ones(n)), cases)["turn"]
    assert (found.telling, found.telling_accuracy, found.constant, found.balanced) == (10, 0.9, 0.9, 0.5)

    nearly = {k: v.copy() for k, v in answer.items()}
    nearly["mouse_dx"][1:] += 1  # a bin further: an agreement forgives that, so these cases tell nothing
    near = Interventions(
        "g", SPACE, ["turn"] * n, [""] * n, np.arange(n), *[np.ones(n)] * 2, np.zeros(n), habit, answer, nearly
    )
    assert not near.differs.any()


def test_what_does_not_fit_is_named(cases):
    with pytest.raises(ValueError, match=r"out of turn, remove.*got \['trun'\]"):
        collect("doom/basic", 4, 4, 32, SPACE, 0, kinds=["trun"])
    with pytest.raises(ValueError, match=r"doom/take_cover.*no expert"):
        collect("doom/take_cover", 4, 4, 32, SPACE, 0)
    with pytest.raises(ValueError, match=r"'tiny_game:catch' is another game"):
        collect("tiny_game:catch", 4, 4, 32, SPACE, 0)
    with pytest.raises(ValueError, match=r"collected for frames of 64 pixels.*policy takes 32"):
        score(tiny_policy(text_dim=None, encoder={"frame_size": 32}), cases)
