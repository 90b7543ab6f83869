"""Causality, the gap, metrics and callbacks of one's own, for families that are no BCPolicy."""

import json
import sys
from functools import partial
from pathlib import Path

import gymnasium
import lightning as L
import numpy as np
import pytest
import tiny
import torch
import yaml
from pages import block
from torch.utils.data import DataLoader

from bczoo import AttentionMaskCheck, ConvNeXtEncoder
from bczoo.causality.leaks import AttentionLeakError, check_mask
from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data.recording import RecordingWriter
from bczoo.games import DiscreteBindings, Game
from bczoo.train.callbacks.metrics import LogMetrics

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODER = {"frame_size": tiny.SIZE, "channels": [4, 8, 8], "blocks": 1, "embedding": 16}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the modules of docs/extending.md, on the path."""
    folder = tmp_path_factory.mktemp("own")
    for module, name in (("my_lstm", "family"), ("my_metrics", "metric"), ("my_callbacks", "callback")):
        (folder / f"{module}.py").write_text(block("docs/extending.md", name))
    loaded = {name: sys.modules.pop(name, None) for name in ("my_lstm", "my_metrics", "my_callbacks")}
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name, module in loaded.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(params=["cnn", "cnn with past actions", "own"])
def policy(request, own):
    torch.manual_seed(0)
    if request.param == "own":
        encoder = partial(ConvNeXtEncoder, **ENCODER)
        made = __import__("my_lstm").LSTMPolicy(encoder, 16, window=5)
    else:
        made = tiny.tiny_cnn(past_actions=request.param != "cnn")
    with torch.no_grad():
        for parameter in made.parameters():  # a policy that has opinions
            parameter.mul_(1.5)
    return made.eval()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for i in range(3):
        with RecordingWriter(root / f"rec_{i}", size=tiny.SIZE) as writer:
            for _ in range(12):
                frame = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                writer.add(frame, user={"keys": [str(rng.choice(["w", "a"]))], "mouse_dx": int(rng.integers(-9, 10))})
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bczoo"])


def test_causality_from_the_command_line(policy, recordings):
    folder = policy.save_pretrained("policy")
    words = ["--perturb", "swap,freeze,blank,noise", "--batch_size", "2", "--out", "out", "--import", "my_lstm"]
    assert main(["causality", str(folder), "--data", str(recordings), *words]) == 0
    metrics = {
        name: one["value"] for name, one in json.loads(Path("out/causality.json").read_text())["metrics"].items()
    }
    for name in ("causality", "causality_freeze", "causality_blank", "causality_noise"):
        assert metrics[name] > 0
    assert (metrics["action_reliance"] > 0) == policy.past_actions
    assert metrics["visual_share"] == 1 if not policy.past_actions else 0 < metrics["visual_share"] < 1


class Flicker(gymnasium.Env):
    """Noise for twelve steps."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (48, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 12
        return self._frame(), {}

    def step(self, action):
        self.left -= 1
        return self._frame(), 0.0, self.left == 0, False, {}

    def _frame(self):
        return self.np_random.integers(0, 256, (48, 64, 3), np.uint8)


class Expert:
    def reset(self, seed):
        pass

    def act(self, frame, info):
        return {"keys": ["a"] if frame[0, 0, 0] < 128 else []}


def flicker() -> Game:
    return Game("flicker", Flicker, DiscreteBindings({"a": 0}, none=1), expert=Expert)


def test_the_gap_from_the_command_line(policy, monkeypatch):
    monkeypatch.setattr("bczoo.studies.gap.plot", lambda *arguments: None)
    folder = policy.save_pretrained("policy")
    words = ["--env", f"{__name__}:flicker", "--episodes", "2", "--crf", "30", "--out", "out", "--import", "my_lstm"]
    assert main(["gap", str(folder), *words]) == 0
    (rows,) = json.loads(Path("out/gap.json").read_text())["policies"].values()
    played, elsewhere = rows["game"], rows["another moment"]
    assert played["kl"] == 0 and elsewhere["kl"] > 0
    expected = sum(played["cross_entropy"][name] / scale for name, scale in policy.loss_scales.items())
    assert played["loss"] - expected == pytest.approx(0, abs=0.05)  # the loss of the family, and its z-loss


def test_attention_says_which_families_it_is_for(policy, recordings, capsys):
    folder = policy.save_pretrained("policy")
    assert main(["attention", str(folder), "--data", str(recordings), "--import", "my_lstm"]) == 1
    said = capsys.readouterr().err
    assert f"{type(policy).__name__} has no mask over the tokens of a step to look at" in said and "BCPolicy" in said


# ---------------------------------------------------------------------- leaks


def test_a_sound_policy_passes_the_check_in_training(policy):
    batches = DataLoader([tiny.tiny_batch(policy)], batch_size=None)
    L.Trainer(max_steps=1, callbacks=[AttentionMaskCheck()], **tiny.QUIET).fit(policy, batches)


TURN = "action token 6 (mouse_dx)"


def early_frames(encoded, batch, logits_from):
    return logits_from(encoded.roll(-1, 1), batch)


def own_action(encoded, batch, logits_from):
    logits = logits_from(encoded, batch)
    return logits | {"keys": logits["keys"] + batch["actions"]["keys"].flip(-1)[..., None] / 9 * torch.arange(20)}


def last_action(encoded, batch, logits_from):
    before = batch["actions"]["mouse_dx"].roll(1, 1)
    before[:, 0] = 0
    logits = logits_from(encoded, batch)
    return logits | {"mouse_dx": logits["mouse_dx"] + before[..., None] / 9 * torch.arange(23)}


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (early_frames, "the logits of action token 0 (keys) of step 0 depend on the frame of step 1"),
        (own_action, "the logits of action token 3 (keys) of step 0 depend on action token 0 (keys) of step 0"),
        (
            last_action,
            "the logits of action token 6 (mouse_dx) of step 1 depend on action token 6 (mouse_dx) of step 0",
        ),
    ],
)
def test_what_a_policy_must_not_see_is_named(policy, mistake, said):
    right = policy.logits_from
    policy.logits_from = lambda encoded, batch: mistake(encoded, batch, right)
    batch = tiny.tiny_batch(policy)
    if mistake is last_action and policy.past_actions:
        return check_mask(policy, batch)  # there the last action may be seen
    with pytest.raises(AttentionLeakError) as error:
        check_mask(policy, batch)
    assert f"{type(policy).__name__} sees what it must not; {said}. " in str(error.value)
    return None


# ---------------------------------------------------------------------- a metric and a callback of one's own


def test_the_metric_and_the_callback_of_the_page_through_yaml(own, recordings, capsys):
    mine = yaml.safe_load(block("docs/extending.md", "metric-yaml"))
    quiet = tiny.QUIET | {"enable_checkpointing": True}
    base = {
        "trainer": {"max_steps": 2, "val_check_interval": 1, "default_root_dir": "run", **quiet},
        "model": {
            "class_path": "bczoo.CNNPolicy",
            "init_args": {
                "encoder": {"class_path": "bczoo.ConvNeXtEncoder", "init_args": ENCODER},
                "width": 16,
                "layers": 1,
                "heads": 2,
                "window": 5,
            },
        },
        "data": {"class_path": "bczoo.RecordingDataModule", "init_args": {"root": str(recordings), "batch_size": 1}},
    }
    for name, content in (("base", base), ("mine", mine)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", "base.yaml", "--config", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "step 1: val/loss " in said and "step 2: val/loss " in said


def test_a_logged_metric_is_that_of_all_steps_that_count(own, policy):
    metric = __import__("my_metrics").Confidence()
    batches = [tiny.tiny_batch(policy, batch=n + 1, seed=n) for n in range(3)]
    batches[0]["user"][:, 2:] = False
    callback = LogMetrics({"confidence": metric})
    trainer = L.Trainer(callbacks=[callback], **tiny.QUIET)
    (logged,) = trainer.validate(policy, DataLoader(batches, batch_size=None), verbose=False)
    most = []
    with torch.no_grad():
        for batch in batches:
            for group in policy.logits(batch).values():
                most.append(group.softmax(-1).amax(-1)[batch["user"]].flatten())
    assert logged["val/confidence"] == pytest.approx(torch.cat(most).mean().item(), abs=1e-5)
    (again,) = trainer.validate(policy, DataLoader(batches, batch_size=None), verbose=False)
    assert again["val/confidence"] == logged["val/confidence"]  # nothing is carried over


def test_what_log_metrics_cannot_do_is_said():
    with pytest.raises(UserError, match="at least one by its name"):
        LogMetrics({})
    metric = LogMetrics({"one": __import__("torchmetrics").MeanMetric()})
    with pytest.raises(UserError, match="gives no logits in validation"):
        metric.on_validation_batch_end(None, object(), None, {}, 0)
