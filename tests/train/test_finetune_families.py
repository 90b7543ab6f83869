"""Fine-tuning a CNNPolicy as it is typed, and what only some families have."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import bczoo
from bczoo import CNNPolicy, ConvNeXtEncoder, FineTune, LoRA
from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data.recording import RecordingWriter

pytestmark = pytest.mark.usefixtures("one_thread")
LAST = Path("runs/finetune/checkpoints/last.ckpt")
OWN = '''
from torch import nn
from bczoo import ActionHeads, ActionSpace, InputSpec, Policy

class Linear(Policy):
    """One linear map of the frame."""

    past_actions, independent_tokens = False, True

    def __init__(self, action_space="keyboard_mouse", window: int = 4, frame_size: int = 32) -> None:
        space = ActionSpace.of(action_space)
        super().__init__(InputSpec(space, frame_size, 20.0, window, text_dim=None))
        self.encoder = nn.Linear(3 * frame_size**2, 8)
        self.heads = ActionHeads(8, space)

    def logits(self, batch):
        return self.heads(self.encoder(batch["frames"].flatten(2) / 255))
'''


def cnn() -> CNNPolicy:
    torch.manual_seed(0)
    encoder = partial(ConvNeXtEncoder, frame_size=32, channels=[4, 8, 8], blocks=1, embedding=16)
    return CNNPolicy(encoder, width=16, layers=2, heads=2, window=4).eval()


@pytest.fixture
def recordings(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(2):
        with RecordingWriter(tmp_path / "data" / f"rec_{i}", size=32) as writer:
            for t in range(16):
                frame = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                writer.add(frame, user={"keys": ["w"] if t % 2 else [], "mouse_dx": t % 5})
    return tmp_path / "data"


@pytest.fixture
def fine_tune(recordings, tmp_path, monkeypatch):
    """Types ``bczoo fit --config finetune`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def typed(source, *more, steps=2):
        words = [
            "fit", "--config", "finetune", "--model.init_from", source, "--data.root", recordings,
            "--data.batch_size", 2, "--data.num_workers", 0, "--data.val_fraction", 0.5,
            "--trainer.max_steps", steps, "--trainer.val_check_interval", 1,
            "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
            "--trainer.enable_model_summary", "false", "--trainer.logger", "false", *more,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["bczoo", *map(str, words)])
        return main([str(word) for word in words])

    return typed


def moved(before, after) -> set[str]:
    """Parts whose weights are others."""
    return {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


def test_a_cnn_goes_on_with_a_frozen_encoder(fine_tune):
    source = cnn().save_pretrained("source")
    assert fine_tune(source) == 0  # the default freezes the encoder for 200 steps
    tuned = bczoo.from_pretrained("runs/finetune")
    assert type(tuned) is CNNPolicy
    assert moved(cnn().state_dict(), tuned.state_dict()) == {"transformer", "heads"}
    assert main(["export", "runs/finetune", "out"]) == 0
    assert type(bczoo.from_pretrained("out")) is CNNPolicy


def test_lora_of_a_cnn_is_on_all_linear_layers_of_its_transformer(fine_tune):
    source = cnn().save_pretrained("source")
    assert fine_tune(source, "--model.lora.rank", 2) == 0
    kept = torch.load(LAST, weights_only=True)["bczoo_training_settings"]["lora"]
    assert kept["layers"] == ["qkv", "out", "up", "down"]  # resolved, so that a run says what it trained
    before, after = cnn().state_dict(), bczoo.from_pretrained("runs/finetune").state_dict()
    others = {n for n in before if n.startswith("transformer.") and not torch.equal(before[n], after[n])}
    assert others == {f"transformer.blocks.{i}.{layer}.weight" for i in (0, 1) for layer in kept["layers"]}


def test_a_family_of_ones_own_is_imported_first(fine_tune, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_linear", raising=False)
    monkeypatch.setenv("BCZOO_IMPORT", "")
    Path("my_linear.py").write_text(OWN)
    import my_linear

    my_linear.Linear().save_pretrained("source")
    before = {k: v.clone() for k, v in bczoo.from_pretrained("source").state_dict().items()}
    assert fine_tune("source", "--import", "my_linear") == 0
    tuned = bczoo.from_pretrained("runs/finetune")
    assert type(tuned) is my_linear.Linear and moved(before, tuned.state_dict()) == {"heads"}
    capsys.readouterr()
    assert fine_tune("source", "--import", "my_linear", "--model.lora.rank", 2, "--ckpt_path", "null") == 1
    assert "LoRA is for families with a transformer, and the Linear in source has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruction": "go"}, "a CNNPolicy never does; leave the instruction out"),
        ({"text_dim": 8}, "a CNNPolicy has no text_dim to change; leave it out"),
        ({"freeze": {"decoder": True}}, r"unknown parts \['decoder'\]; this policy has encoder, transformer, heads"),
        ({"lora": LoRA(layers=["gate_up"])}, r"layers out of \['down', 'out', 'qkv', 'up'\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_family_lacks_is_said(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        FineTune(str(cnn().save_pretrained(tmp_path / "source")), **options)
