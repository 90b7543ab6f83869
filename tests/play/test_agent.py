"""Streaming play: equal to the window it stands for, in every variant of the architecture."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bczoo import ActionDecoder, RecordingDataModule
from bczoo.data.recording import RecordingWriter
from bczoo.data.video import VideoWriter
from bczoo.models.bc import session
from bczoo.nn import sampling
from bczoo.nn.blocks import ROPE_BASE, Rotation
from bczoo.play.latency import StageTimes

VARIANTS = [
    "reference",
    "backbone heads",
    "independent heads",
    "many tokens",
    "no text, no thinking",
    "grouped queries, sinks",
    "histories",
    "no past actions",
    "no past actions, backbone heads",
    "gamepad",
    "everything",
]
FAKE_GPU = ["reference", "backbone heads", "independent heads", "everything"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_streaming_equals_one_long_window(variant):
    """Twelve steps past a window of five: the same as all steps at once with the window as history."""
    options = dict(tiny.VARIANTS[variant])
    policy = tiny.tiny_policy(**options).eval()
    batch = tiny.tiny_batch(policy, batch=1, steps=12)
    agent = policy.agent(seed=3)
    texts = batch["text"][0] if "text" in batch else [None] * 12
    decisions = [agent.step(f.numpy(), text=t) for f, t in zip(batch["frames"][0], texts, strict=True)]
    actions = {g.name: torch.tensor([[d.ids[g.name] for d in decisions]]) for g in policy.action_space.groups}
    policy.transformer.histories = [min(h, policy.input_spec.window - 1) for h in policy.transformer.histories]
    with torch.no_grad():
        logits = policy(batch["frames"], actions, batch.get("text"))
    for name, expected in logits.items():
        streamed = torch.tensor(np.stack([d.probabilities[name] for d in decisions]))
        torch.testing.assert_close(streamed, expected[0].softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_really_done_is_remembered(variant):
    """Somebody else acts in every second step; the window with the actions that were executed goes the same way."""
    policy = tiny.tiny_policy(**tiny.VARIANTS[variant]).eval()
    batch = tiny.tiny_batch(policy, batch=1, steps=9)
    agent, space, executed = policy.agent(2, seed=3), policy.action_space, []
    texts = batch["text"][0] if "text" in batch else [None] * 9
    decisions = []
    for t, frame in enumerate(batch["frames"][0].numpy()):
        decisions += agent.step_many([1], [frame], [texts[t]])
        ids = decisions[-1].ids
        if t % 2:
            values = space.decode({name: i[0, t].tolist() for name, i in batch["actions"].items()}, mouse="mean")
            agent.override_last_action(1, values)
            ids = space.encode(**values)
        executed.append(ids)
    actions = {g.name: torch.tensor([[ids[g.name] for ids in executed]]) for g in space.groups}
    policy.transformer.histories = [min(h, policy.input_spec.window - 1) for h in policy.transformer.histories]
    with torch.no_grad():
        embedded = policy.action_embedding(actions)
        latents = policy.latents(policy.encode(batch["frames"]), embedded, batch.get("text"))
    first = policy.decoder(latents, embedded)[space.groups[0].name][0, :, 0].softmax(-1)  # nothing chosen is in it
    streamed = torch.tensor(np.stack([d.probabilities[space.groups[0].name][0] for d in decisions]))
    torch.testing.assert_close(streamed, first, atol=1e-5, rtol=0)


def test_nothing_was_done_before_the_first_step():
    agent = tiny.tiny_policy().agent()
    with pytest.raises(ValueError, match="no step"):
        agent.override_last_action(0, {"keys": ["w"]})


@pytest.mark.parametrize("row", [-1, 2])
def test_games_that_there_are_not(row):
    agent = tiny.tiny_policy().agent(2)
    for attempt in (
        agent.reset,
        lambda row: agent.override_last_action(row, {}),
        lambda row: agent.step_many([row], [None]),
    ):
        with pytest.raises(ValueError, match=r"games in 0\.\.1"):
            attempt(row)


def test_groups_that_the_policy_lacks_are_left_out_of_what_was_done():
    agent = tiny.tiny_policy(action_space="gamepad").agent()
    agent.step(np.zeros((64, 64, 3), np.uint8))
    agent.override_last_action(0, {"buttons": ["south"], "mouse_dx": 3, "keys": ["w"]})
    assert agent.session.last_ids[0].any()


def test_an_agent_that_is_dropped_gives_its_memory_back_at_once():
    agent = tiny.tiny_policy().agent()
    agent.step(np.zeros((64, 64, 3), np.uint8))
    keys = weakref.ref(agent.session.memory.layers[0].k)
    gc.disable()
    try:
        del agent
        assert keys() is None
    finally:
        gc.enable()


def test_a_step_that_cannot_be_recorded_is_played_without(monkeypatch):
    def refuse(*arguments):
        raise session.GraphError("this policy's step cannot be recorded")

    policy = tiny.tiny_policy()
    monkeypatch.setattr("bczoo.models.bc.session.GraphedBCSession", refuse)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
    with pytest.warns(UserWarning, match="cannot be recorded.*playing without"):
        assert type(policy.agent().session) is session.BCSession
    with pytest.raises(ValueError, match="cannot be recorded"):
        policy.agent(cuda_graphs=True)


def test_games_side_by_side_do_not_touch_each_other():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, batch=3, steps=8)["frames"].numpy()
    alone = []
    for row in range(3):
        agent = policy.agent(3, seed=1)
        alone.append([agent.step_many([row], [frames[row, t]])[0] for t in range(8)])
    together = policy.agent(3, seed=1)
    for t in range(8):
        rows = [0, 2] if t == 4 else [0, 1, 2]  # game 1 pauses once
        for row, decision in zip(
            rows,
            together.step_many(rows, [frames[r, t if r != 1 or t < 4 else t - 1] for r in rows]),
            strict=True,
        ):
            expected = alone[row][t if row != 1 or t < 4 else t - 1]
            assert decision.ids == expected.ids and decision.values == expected.values


def test_reset_forgets():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, steps=7)["frames"][0].numpy()
    agent = policy.agent(greedy=True)
    first = [agent.step(f).ids for f in frames]
    agent.reset()
    assert [agent.step(f).ids for f in frames] == first


def test_a_seeded_reset_draws_the_same_again():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, steps=5)["frames"][0].numpy()
    agent = policy.agent(2)
    agent.reset(1, seed=7)
    first = [agent.step_many([1], [f])[0].ids for f in frames]
    agent.step_many([0], frames[:1])
    agent.reset(0, seed=7)
    assert [agent.step_many([0], [f])[0].ids for f in frames] == first


def test_frames_of_any_size_and_order():
    agent = tiny.tiny_policy().agent(greedy=True)
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    ids = agent.step(frame).ids
    agent.reset()
    assert agent.step(frame.transpose(2, 0, 1)).ids == ids
    with pytest.raises(ValueError, match="uint8"):
        agent.step(frame.astype(float))


def test_decisions_speak():
    decision = tiny.tiny_policy().agent().step(np.zeros((64, 64, 3), np.uint8))
    assert decision.keys == decision.values["keys"] and isinstance(decision.mouse_dx, int)
    assert {k: v.shape for k, v in decision.probabilities.items()} == {
        "keys": (4, 20), "mouse_buttons": (2, 4), "mouse_dx": (1, 23), "mouse_dy": (1, 17)
    }  # fmt: skip
    assert np.allclose(decision.probabilities["keys"].sum(-1), 1, atol=1e-5)


def test_samples_of_the_reference_system():
    cases = json.loads((Path(__file__).parents[1] / "golden" / "sampler_public.json").read_text())["cases"]
    for case in cases:
        logits = (2 * np.random.RandomState(case["seed"]).standard_normal(case["n"])).astype(np.float32)
        p = sampling.probabilities(torch.from_numpy(logits)[None], case["temperature"], case["top_p"])
        assert sampling.sample(p, torch.tensor([case["u"]], dtype=torch.float64)).item() == case["index"], case


def test_angles_stay_exact_after_ten_hours():
    positions = torch.tensor([0, 1, 2399, 720_000 * 12, 720_000 * 12 + 11])
    rotation = Rotation.at(positions, 64)
    exact = positions.numpy()[:, None] * ROPE_BASE ** -(np.arange(0, 64, 2) / 64)
    assert np.abs(rotation.cos.numpy() - np.cos(exact)).max() < 1e-6
    assert np.abs(rotation.sin.numpy() - np.sin(exact)).max() < 1e-6


def test_ten_hours_of_play_change_no_decision():
    """Only distances between tokens count, so step 720,000 has to go like step 0; errors in the angles would show."""
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, batch=1, steps=12)["frames"][0].numpy()
    fresh, old = policy.agent(), policy.agent()
    old.session.steps.fill_(720_000)
    for frame in frames:
        a, b = fresh.step(frame), old.step(frame)
        assert a.ids == b.ids
        for name, p in a.probabilities.items():
            np.testing.assert_allclose(p, b.probabilities[name], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_guessing_all_tokens_at_once_chooses_as_one_by_one(variant, monkeypatch):
    policy = tiny.tiny_policy(**tiny.VARIANTS[variant]).eval()
    frames = tiny.tiny_batch(policy, batch=3, steps=8)["frames"].numpy()
    decisions = []
    for most in (0, 16):
        monkeypatch.setattr(session, "MOST_GUESSED", most)
        agent = policy.agent(3, seed=5)
        decisions.append([agent.step_many([0, 1, 2], list(frames[:, t])) for t in range(8)])
    for one_by_one, guessed in zip(*decisions, strict=True):
        for a, b in zip(one_by_one, guessed, strict=True):
            assert a.values == b.values
            for name, p in a.probabilities.items():
                np.testing.assert_allclose(p, b.probabilities[name], atol=1e-5)


def test_a_good_guess_takes_one_pass(monkeypatch):
    policy = tiny.tiny_policy().eval()
    agent = policy.agent(greedy=True)
    passes = []
    outputs = ActionDecoder.outputs
    monkeypatch.setattr(ActionDecoder, "outputs", lambda *a: passes.append(1) or outputs(*a))
    frame = np.zeros((64, 64, 3), np.uint8)
    ids = [agent.step(frame).ids for _ in range(20)]
    assert ids[-1] == ids[-2], "a steady picture should lead to steady decisions, or this shows nothing"
    passes.clear()
    agent.step(frame)
    assert len(passes) == 1


def memory_of(agent):
    memory = agent.session.memory
    return [t.data_ptr() for layer in memory.layers for t in (layer.k, layer.v)] + [
        memory.held.data_ptr()
    ], memory.bytes


def test_memory_is_taken_once():
    agent = tiny.tiny_policy().agent(2)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    before = memory_of(agent)
    for rows in [[0, 1]] * 12 + [[1]] * 3:
        agent.step_many(rows, [frames[r] for r in rows])
    assert memory_of(agent) == before
    layer = agent.session.memory.layers[0]
    assert before[1] == 2 * sum(t.numel() * t.element_size() for t in (layer.k, layer.v))  # two layers alike


@pytest.mark.parametrize("variant", FAKE_GPU)
def test_a_step_on_a_gpu_never_waits_for_the_cpu(variant):
    """What a CUDA graph needs: on a pretended GPU, all stages run without a value looked at or a tensor off the GPU."""
    policy = tiny.tiny_policy(**tiny.VARIANTS[variant]).eval()
    width = policy.input_spec.text_dim or 0
    with FakeTensorMode():
        for module in policy.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    kind[name] = (
                        None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    )
        agent = policy.agent(3, cuda_graphs=False)
        frames = torch.empty(3, 3, tiny.SIZE, tiny.SIZE, dtype=torch.uint8, device="cuda")
        u = torch.empty(3, agent.space.tokens, dtype=torch.float64, device="cuda")
        active = torch.empty(3, dtype=torch.bool, device="cuda")
        with torch.no_grad(), OnlyOnGPU() as seen:
            images = agent.session.encode(frames)
            latent = agent.session.observe(images, torch.empty(3, width, device="cuda"))
            ids, p = agent.session.decode(latent, u, None, active)
    assert ids.shape == (3, agent.space.tokens) and p.shape[:2] == ids.shape and seen.calls > 100


class OnlyOnGPU(TorchDispatchMode):
    """Refuses every operation with a tensor on the CPU."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        assert all(t.device.type == "cuda" for t in tensors), f"{function} has a tensor on the CPU"
        return out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"mouse": "median"}, "truncated_normal"),
        ({"num_envs": 0}, "num_envs"),
        ({"cuda_graphs": True}, "GPU"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        tiny.tiny_policy().agent(**options)


def test_stages_are_measured_when_asked():
    agent = tiny.tiny_policy().agent(2)
    frame = np.zeros((80, 90, 3), np.uint8)
    agent.step_many([0, 1], [frame] * 2)
    agent.times = StageTimes()
    for _ in range(3):
        agent.step_many([0, 1], [frame] * 2)
    summary = agent.times.summary()
    assert list(summary) == ["resize", "encode", "backbone", "decode", "sample"]
    assert all(row["n"] == 3 and row["max"] > 0 for row in summary.values())


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 64), (80, 112)])
def test_live_and_recorded_frames_become_the_same_tensor(height, width, tmp_path):
    """A lossless video, read as for training, against the same pixels shown to an agent."""
    policy = tiny.tiny_policy(text_dim=None).eval()
    shown = np.random.default_rng(0).integers(0, 256, (7, height, width, 3), dtype=np.uint8)
    with RecordingWriter(tmp_path / "game", size=64) as writer:
        for frame in shown:
            writer.add(frame, user={"keys": ["w"]})
    (tmp_path / "game" / "64x64.mp4").unlink()
    with VideoWriter(tmp_path / "game" / "video.mp4", fps=20.0, pix_fmt="rgb24", crf=0) as video:
        for frame in [*shown, shown[-1]]:
            video.add(frame)
    data = RecordingDataModule(root=str(tmp_path), batch_size=1, num_workers=0, val_fraction=0.0)
    data.trainer = SimpleNamespace(
        lightning_module=policy,
        is_global_zero=True,
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device="cpu"),
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    start = int(batch["start"][0])
    live = policy.agent().pixels(list(shown[start : start + policy.input_spec.window]))
    assert live.shape[-1] == 64 and torch.equal(live, batch["frames"][0, : len(live)])


class ReplayedEagerly:
    """Stands in for a CUDA graph on a CPU: fixed inputs, fixed outputs, the function run anew by every replay."""

    def __init__(self, function, *inputs):
        self.function, self.inputs = function, inputs
        self.output = function(*inputs)

    def replay(self):
        outputs = self.function(*self.inputs)
        if isinstance(outputs, torch.Tensor):
            self.output.copy_(outputs)
        else:
            for kept, new in zip(self.output, outputs, strict=True):
                kept.copy_(new)


@pytest.mark.parametrize("variant", FAKE_GPU)
def test_graphs_over_fixed_tensors_decide_as_plain_steps(variant, monkeypatch):
    """Games pause, start anew and go on; in graphs all of them are computed every time."""
    monkeypatch.setattr(session, "CudaGraph", ReplayedEagerly)
    policy = tiny.tiny_policy(**tiny.VARIANTS[variant]).eval()
    batch = tiny.tiny_batch(policy, batch=3, steps=14)
    frames, texts = batch["frames"].numpy(), batch["text"]
    played = []
    for graphed in (False, True):
        agent = policy.agent(3, seed=2)
        if graphed:
            agent.session = session.GraphedBCSession(policy, 3, agent.sampler)
        steps = []
        for t in range(14):
            rows = [0, 1, 2] if t % 3 else [[0, 2], [1], [2]][t // 3 % 3]
            if t == 9:
                agent.reset(1, seed=8)
            steps += agent.step_many(rows, [frames[r, t] for r in rows], [texts[r, t] for r in rows])
        played.append(steps)
    for plain, graphed in zip(*played, strict=True):
        assert plain.ids == graphed.ids and plain.values == graphed.values
        for name, p in plain.probabilities.items():
            np.testing.assert_allclose(p, graphed.probabilities[name], atol=1e-5)
