"""A policy that is corrected: who plays, how it is marked, and that only the expert is learned from."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_game
import torch
from interruption import interrupted
from tiny import tiny_policy

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import LABELLED, SYSTEM, UNKNOWN, USER, action_values, known_action, read_annotation
from bczoo.games.game import Game
from bczoo.nn.text import TextEncoder
from bczoo.play.agent import Agent
from bczoo.record.command import record
from bczoo.record.corrections import TakeoverRule, Takeovers
from bczoo.train.loss import bc_loss

CATCH = "tiny_game:catch"
GROUPS = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")
SPACE = ActionSpace.keyboard_mouse()

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def policy(here):
    tiny_policy(text_dim=None).save_pretrained("policy")
    return "policy"


@pytest.fixture
def watched(monkeypatch):
    """Everything that is executed in one game: the environment's actions, in order."""
    executed: list[int] = []

    def step(self, action, play=tiny_game.Catch.step):
        executed.append(action)
        return play(self, action)

    monkeypatch.setattr(tiny_game.Catch, "step", step)
    return executed


@pytest.fixture
def wanted(monkeypatch):
    """What the expert wanted at every step, whoever played."""
    asked: list[dict] = []

    def act(self, frame, info, ask=tiny_game.CatchExpert.act):
        asked.append(ask(self, frame, info))
        return asked[-1]

    monkeypatch.setattr(tiny_game.CatchExpert, "act", act)
    return asked


def correct(policy, out="out", episodes=1, **options) -> list[str]:
    return record(CATCH, out, episodes=episodes, size=64, policy=policy, **options)


def steps(folder: str) -> tuple[list[int], list[dict]]:
    """Kind and values of all steps; annotation 0 is not one of them."""
    known = [known_action(f) for f in read_annotation(folder).frame_annotations[1:]]
    return [k for k, _ in known], [action_values(a, GROUPS) for _, a in known]


def same(bindings, values: list[dict], actions: list[int]) -> bool:
    return [bindings(v) for v in values] == actions


def test_what_is_recorded_is_what_was_executed_and_by_whom(policy, watched, wanted):
    (folder,) = correct(policy, expert="expert", takeover=0.1, takeover_steps=(3, 5))
    kinds, values = steps(folder)
    assert kinds.count(USER) >= 8 and kinds.count(SYSTEM) >= 8 and UNKNOWN not in kinds
    assert len(kinds) == len(watched) == len(wanted), "the expert is asked at every step"
    assert same(tiny_game.catch().bindings, values, watched)
    of_expert = [v["keys"] == w["keys"] for k, v, w in zip(kinds, values, wanted, strict=True) if k == USER]
    assert all(of_expert)
    of_policy = [v["keys"] == w["keys"] for k, v, w in zip(kinds, values, wanted, strict=True) if k == SYSTEM]
    assert not all(of_policy), "an untrained policy does something else"
    message = read_annotation(folder)
    assert all(not f.user_action.is_known for f in message.frame_annotations if f.system_action.is_known)
    assert message.metadata.user.startswith("policy (policy-") and message.metadata.user.endswith("and expert")


def test_takeovers_last_as_long_as_asked(policy):
    (folder,) = correct(policy, expert="expert", takeover=0.1, takeover_steps=(4, 4))
    kinds = np.array(steps(folder)[0][:-1])  # the last takeover may be cut short
    edges = np.flatnonzero(np.diff([0, *(kinds == USER).astype(int), 0]))
    lengths = (edges[1::2] - edges[::2])[: -1 if kinds[-1] == USER else None]
    assert len(lengths) and all(length % 4 == 0 for length in lengths)


def test_the_policy_sees_every_step_and_remembers_what_was_done(policy, monkeypatch, wanted):
    log = []

    def reset(self, row=0, seed=None, do=Agent.reset):
        log.append(f"begin {seed}")
        do(self, row, seed)

    def step_many(self, rows, frames, texts=None, do=Agent.step_many):
        decisions = do(self, rows, frames, texts)
        log.extend(decision.values["keys"] for decision in decisions)
        return decisions

    def override(self, row, values, do=Agent.override_last_action):
        log[-1] = values["keys"]
        do(self, row, values)

    monkeypatch.setattr(Agent, "reset", reset)
    monkeypatch.setattr(Agent, "step_many", step_many)
    monkeypatch.setattr(Agent, "override_last_action", override)
    for dagger in (False, True):
        log.clear()
        wanted.clear()
        (folder,) = correct(
            policy, expert="expert", takeover=0.1, takeover_steps=(1, 4), seed=5, dagger=dagger, parallel=1
        )
        kinds, values = steps(folder)
        assert log[0] == "begin 5" and len(log) == len(kinds) + 1
        if not dagger:
            assert log[1:] == [v["keys"] for v in values] and len(set(kinds)) == 2
        else:
            assert log[1:] != [w["keys"] for w in wanted], "not the labels, but what was executed"


def test_games_side_by_side_are_those_played_alone(policy):
    options = {"expert": "expert", "takeover": 0.1, "takeover_steps": (3, 5), "episodes": 3}
    together = correct(policy, "together", parallel=2, **options)
    alone = correct(policy, "alone", parallel=1, **options)
    assert [steps(f) for f in together] == [steps(f) for f in alone]
    assert len({str(steps(f)) for f in alone}) == 3


def test_dagger_labels_what_the_policy_did_with_what_the_expert_would_have_done(policy, watched, wanted, capsys):
    (folder,) = correct(policy, expert="expert", dagger=True, takeover=0)
    kinds, values = steps(folder)
    assert set(kinds) == {LABELLED} and same(tiny_game.catch().bindings, values, watched), "the policy played"
    assert labels(folder) == [w["keys"] for w in wanted]
    assert labels(folder) != [v["keys"] for v in values]
    watched.clear()
    wanted.clear()
    (mixed,) = correct(policy, expert="expert", dagger=True, takeover=0.5, takeover_steps=(5, 5))
    kinds, values = steps(mixed)
    assert set(kinds) == {USER, LABELLED} and mixed != folder
    assert same(tiny_game.catch().bindings, values, watched), "the history is what was done"
    assert labels(mixed) == [w["keys"] for w, kind in zip(wanted, kinds, strict=True) if kind == LABELLED]


def labels(folder: str) -> list[list[str]]:
    """The expert's keys where the policy played."""
    frames = read_annotation(folder).frame_annotations
    return [list(f.expert_action.keyboard.keys) for f in frames if known_action(f)[0] == LABELLED]


def test_without_an_expert_nothing_is_to_be_learned(policy, watched, capsys):
    (folder,) = correct(policy)
    kinds, values = steps(folder)
    assert set(kinds) == {SYSTEM} and same(tiny_game.catch().bindings, values, watched)
    assert "nothing is learned" in capsys.readouterr().out


def test_names_tell_policies_and_rules_apart(policy, capsys):
    first = correct(policy, expert="expert", episodes=2)
    assert correct(policy, expert="expert", episodes=3)[:2] == first
    assert "2 of them were already there" in capsys.readouterr().out
    Path("policy").rename("moved")
    assert correct("moved", expert="expert", episodes=2) == first, "the weights tell, not the folder's name"
    others = [
        *correct("moved"),
        *correct("moved", expert="expert", takeover=0.2),
        *correct("moved", expert="expert", takeover_steps=(1, 2)),
        *correct("moved", expert="expert", dagger=True),
        *correct("moved", expert="expert", temperature=0.5),
        *correct("moved", expert="expert", greedy=True),
    ]
    trained = tiny_policy(text_dim=None)
    next(trained.transformer.parameters()).data[0] += 1e-3
    trained.save_pretrained("trained")
    others += correct("trained", expert="expert")
    assert len({*first, *others}) == 9


def test_an_interrupted_recording_goes_on(policy, monkeypatch):
    with interrupted(monkeypatch):
        correct(policy, expert="expert", episodes=3, parallel=1)
    assert len(list(Path("out").iterdir())) == 1
    assert len(correct(policy, expert="expert", episodes=3)) == len(list(Path("out").iterdir())) == 3


def test_training_learns_from_the_expert_alone_and_sees_what_was_executed(policy, watched):
    (folder,) = correct(policy, expert="expert", takeover=0.04, takeover_steps=(2, 4), seed=3)
    kinds = steps(folder)[0]
    data = RecordingDataModule("out", batch_size=1, window=5, val_fraction=0.0, frame_size=64)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    mixed = counted = 0
    starts = []
    for batch in loader:
        start, size = int(batch["start"]), int(batch["valid"].sum())
        starts.append(start)
        part = slice(start, start + size)
        user, system = batch["user"][0, :size].numpy(), batch["system"][0, :size].numpy()
        assert user.any(), "windows of the policy's own actions are dropped"
        assert user.tolist() == [k == USER for k in kinds[part]]
        assert system.tolist() == [k == SYSTEM for k in kinds[part]]
        mixed += user.any() and system.any()
        counted += int((batch["user"] & batch["valid"]).sum())
        for i, executed in enumerate(watched[part]):
            ids = {name: one[0, i].tolist() for name, one in batch["actions"].items()}
            assert tiny_game.catch().bindings(SPACE.decode(ids)) == executed
        assert loss(batch) == loss(batch, of_system=1), "what the policy did is no label"
        assert loss(batch) != loss(batch, of_user=1)
    assert mixed >= 2
    everywhere = np.array(kinds[starts_from(loader) :]) == USER
    assert counted == everywhere.sum() > 0
    windows_of_all = math.ceil((len(kinds) - starts_from(loader)) / 5)
    assert len(starts) < windows_of_all, "some windows hold nothing but the policy's actions"


def starts_from(loader) -> int:
    """Start of the first window of the only recording in the loader's last epoch; those before it are cut off."""
    from bczoo.data.windows import first_starts

    plan = loader.plan
    index = plan.index
    return int(first_starts(index.n_frames, plan.window, index.hashes, plan.seed, 0)[0])


def loss(batch, of_system: int = 0, of_user: int = 0) -> float:
    """The loss where the labels, not the past actions, of the policy's or the expert's steps are others."""
    policy = tiny_policy(text_dim=None).eval()
    with torch.no_grad():
        logits = policy(batch["frames"], batch["actions"])
    shift = of_system * batch["system"] + of_user * batch["user"]
    labels = {name: (ids + shift[..., None]) % logits[name].shape[-1] for name, ids in batch["actions"].items()}
    return bc_loss(logits, labels, batch["user"] & batch["valid"]).total.item()


class Lengths(TextEncoder):
    """Embeds a text by its length."""

    def __init__(self) -> None:
        """Nothing to set."""

    def __call__(self, texts):
        return torch.tensor([[float(len(t)), *[1.0] * 15] for t in texts])


def test_the_instruction_is_written_with_its_embedding(monkeypatch):
    loaded = tiny_policy(text_encoder=Lengths())

    class Found:
        chosen = None
        record = {"instruction": "catch the dot"}  # noqa: RUF012

        def load(self, cls, device, dtype):
            return loaded

    monkeypatch.setattr("bczoo.play.open.locate", lambda source, revision: Found())
    (folder,) = correct("somewhere", expert="expert", takeover=0.3)
    assert read_annotation(folder).frame_annotations[1].frame_text_annotation[0].instruction == "catch the dot"
    (other,) = correct("somewhere", expert="expert", takeover=0.3, text="catch")
    assert other != folder
    data = RecordingDataModule("out", batch_size=1, window=5, val_fraction=0.0, frame_size=64)
    data.trainer = type("T", (), {"lightning_module": loaded, "global_rank": 0, "world_size": 1, "strategy": None})()
    data.trainer.is_global_zero, data.trainer.overfit_batches = True, 0
    data.pin_memory = False
    data.prepare_data()
    data.setup()
    told = {tuple(batch["text"][0, :, 0].unique().tolist()) for batch in data.train_dataloader()}
    assert told == {(5.0,), (13.0,)}


def test_takeovers_depend_on_the_seed_and_come_as_often_as_asked():
    def draws(share, low, high, seed):
        takes_over = Takeovers(TakeoverRule(share, (low, high)), seed)
        return [takes_over() for _ in range(2000)]

    assert draws(0.5, 1, 4, seed=0) == draws(0.5, 1, 4, seed=0) != draws(0.5, 1, 4, seed=1)
    assert all(draws(1.0, 1, 1, seed=0))
    assert np.mean(draws(0.2, 1, 1, seed=0)) == pytest.approx(0.2, abs=0.03)
    # runs of 5 steps on average between waits of 9 steps (0.1 a step, and the next takeover may follow at once)
    assert np.mean(draws(0.1, 2, 8, seed=0)) == pytest.approx(5 / (5 + 9), abs=0.06)
    edges = np.flatnonzero(np.diff([0, *draws(0.01, 3, 4, seed=0), 0]))
    assert set(edges[1::2] - edges[::2]) == {3, 4}


def test_wrong_arguments_are_named(policy, monkeypatch):
    for wrong, message in (
        ({"expert": "exprt"}, r"expert or keyboard, got 'exprt'"),
        ({"expert": "expert", "takeover": 1.5}, r"takeover is a probability"),
        ({"expert": "expert", "takeover_steps": (5, 2)}, r"takeover_steps are .* \[5, 2\]"),
        ({"expert": "expert", "takeover": 0}, r"teaches nothing"),
        ({"expert": "exprt", "takeover": 0.1}, r"expert or keyboard, got 'exprt'"),
        ({"parallel": 0}, r"parallel must be at least 1"),
        ({"temperature": 0.0}, r"temperature must be above 0"),
        ({"text": "catch"}, r"takes no text"),
    ):
        with pytest.raises(UserError, match=message):
            correct(policy, **wrong)
    with pytest.raises(UserError, match="there is no policy 'polcy'; did you mean policy"):
        correct("polcy", expert="expert")
    with pytest.raises(UserError, match="steps a second"):
        tiny_policy(text_dim=None, fps=10.0).save_pretrained("slow")
        correct("slow", expert="expert")
    monkeypatch.setattr(tiny_game, "catch", lambda: Game("catch", tiny_game.Catch, lambda values: 2))
    with pytest.raises(UserError, match="has no expert"):
        correct(policy, expert="expert")
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize("at", ["begin", "end"])
def test_an_episode_that_another_process_has_recorded_stays(policy, monkeypatch, capsys, at):
    from bczoo.record import corrections

    (first,) = correct(policy, "one")
    before = (Path(first) / "annotation.proto").read_bytes()

    def recording_of(game, folder, *others, make=corrections.episode_writer):
        def copy():
            if folder.name == Path(first).name:
                shutil.copytree(first, folder)

        if at == "begin":
            copy()
        writer = make(game, folder, *others)
        copy()
        return writer

    monkeypatch.setattr(corrections, "episode_writer", recording_of)
    folders = correct(policy, episodes=3, parallel=2)
    assert sorted(str(p) for p in Path("out").iterdir()) == folders and len(folders) == 3
    assert (Path(folders[0]) / "annotation.proto").read_bytes() == before
    assert "3 episodes of tiny_game:catch in out, 1 of them were already there" in capsys.readouterr().out


def test_what_can_be_learned_is_told(policy, capsys):
    options = {"policy": policy, "expert": "expert", "episodes": 1, "size": 64}
    record(CATCH, "some", takeover=1.0, takeover_steps=(3, 3), **options)
    told = capsys.readouterr().out
    assert "steps have the expert's action" in told and "\n0 of" not in told
    record(CATCH, "none", takeover=1e-9, **options)
    told = capsys.readouterr().out
    assert "\n0 of" in told and "raise --takeover" in told
    data = RecordingDataModule("none", batch_size=1, val_fraction=0.0, window=5, frame_size=64)
    data.setup("fit")
    with pytest.raises(ValueError, match="none of the 1 training recordings holds an action of a user"):
        data.train_dataloader()
