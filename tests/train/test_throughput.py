"""How fast a training goes: what is logged, what is warned of, how many operations a step takes."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import tiny
import torch
from recordings import write_telling

from bczoo import CompileBlocks, RecordingDataModule, Throughput
from bczoo.cli import main
from bczoo.core.devices import bfloat16_cost
from bczoo.core.errors import UserError
from bczoo.models.model import Model
from bczoo.train import bench
from bczoo.train.callbacks import throughput
from bczoo.train.flops import flops_per_window, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW, BATCH = 5, 2


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_telling(tmp_path_factory.mktemp("recordings"), 4, 30)


class Note(L.Callback):
    def __init__(self):
        self.logged = {}

    def on_train_batch_end(self, trainer, *_):
        self.logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("speed/")}


def fit(recordings, *callbacks, **options):
    policy = tiny.tiny_policy(text_dim=None)
    data = RecordingDataModule(root=str(recordings), batch_size=BATCH, val_fraction=0)
    note = Note()
    quiet = tiny.QUIET | {"max_steps": 6, "log_every_n_steps": 3} | options
    trainer = L.Trainer(callbacks=[*callbacks, note], **quiet)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(policy, data)
    return policy, trainer, note.logged, [str(w.message) for w in caught]


def test_what_is_logged_belongs_together(recordings):
    policy, trainer, logged, _ = fit(recordings, Throughput())
    assert logged.keys() == {f"speed/{n}" for n in ("windows", "frames", "tokens", "waiting", "hours", "hours_left")}
    assert logged["speed/tokens"] == pytest.approx(policy.layout.length * logged["speed/frames"], rel=1e-4)
    assert logged["speed/frames"] == pytest.approx(WINDOW * logged["speed/windows"], rel=1e-4)
    assert 0 <= logged["speed/waiting"] < 1
    assert logged["speed/hours"] == pytest.approx(trainer.global_step * BATCH * WINDOW / 20 / 3600)


def test_hours_go_on_in_a_resumed_training():
    before, after = Throughput(), Throughput()
    before._seen = 1234
    after.load_state_dict(before.state_dict())
    assert after._seen == 1234


def test_utilisation_is_of_all_operations_and_the_device_s_peak(recordings, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e12)
    policy, _, logged, _ = fit(recordings, Throughput())
    assert logged["speed/mfu"] == pytest.approx(logged["speed/windows"] * flops_per_window(policy) / 1e12, rel=1e-4)


def test_a_training_that_waits_for_its_data_is_told_once(recordings, monkeypatch):
    monkeypatch.setattr(throughput, "HELD_UP", -1.0)
    monkeypatch.setattr(throughput, "STEPS_TO_JUDGE", 0)
    said = [text for text in fit(recordings, Throughput())[3] if "waits for its data" in text]
    assert len(said) == 1 and "--data.num_workers" in said[0]
    monkeypatch.setattr(throughput, "HELD_UP", 1.1)
    assert not [text for text in fit(recordings, Throughput())[3] if "waits for its data" in text]


@pytest.mark.parametrize(("cost", "precision", "told"), [(3.2, "bf16-mixed", 1), (0.6, "bf16-mixed", 0), (3.2, 32, 0)])
def test_a_processor_that_is_slower_in_bfloat16_is_told(recordings, monkeypatch, cost, precision, told):
    monkeypatch.setattr(throughput, "bfloat16_cost", lambda: cost)
    said = [t for t in fit(recordings, Throughput(), precision=precision, max_steps=1)[3] if "in bfloat16" in t]
    assert len(said) == told
    assert not told or ("3.2 times as long" in said[0] and "--trainer.precision 32-true" in said[0])


def test_the_cost_of_bfloat16_is_measured():
    assert 0 < bfloat16_cost(size=64, rounds=1) < 1e4


def test_operations_of_a_block_are_those_of_its_matrices():
    width, steps = 32, WINDOW
    forward = 2 * 12 * width**2 * steps + 4 * steps**2 * width
    more = flops_per_window(tiny.tiny_cnn(layers=2)) - flops_per_window(tiny.tiny_cnn(layers=1))
    assert more == 3 * forward, "backward takes twice as many as forward"
    assert flops_per_window(tiny.tiny_cnn(window=2 * steps)) > 2 * flops_per_window(tiny.tiny_cnn(window=steps))


def test_what_is_computed_again_counts_once_and_what_is_frozen_has_no_backward():
    whole = flops_per_window(tiny.tiny_policy())
    assert flops_per_window(tiny.tiny_policy(transformer={"checkpointing": True})) == whole
    assert flops_per_window(tiny.tiny_policy(encoder={"frozen": True})) < 0.5 * whole


def test_compiled_blocks_learn_the_same_and_are_left_as_written(recordings, monkeypatch):
    compiled = []
    monkeypatch.setattr(  # the compiler itself is torch's; what is checked is who is compiled, when, and what is left
        torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", counting(self, compiled))
    )
    plain = fit(recordings)[0]
    policy, *_ = fit(recordings, CompileBlocks())
    blocks = {id(block) for block in policy.blocks()}
    assert {id(block) for block in compiled} == blocks and len(compiled) == 6 * len(blocks)
    assert all(block._compiled_call_impl is None for block in policy.blocks())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], value, msg=name)


def counting(module, calls):
    def call(*args, **kwargs):
        calls.append(module)
        return module._call_impl(*args, **kwargs)

    return call


def test_a_model_without_blocks_cannot_be_compiled():
    class Plain(Model):
        def __init__(self):
            super().__init__(tiny.tiny_policy().input_spec)

    with pytest.raises(UserError, match="Plain has no blocks to compile"):
        CompileBlocks().on_train_start(None, Plain())


def test_the_cost_of_a_step_by_stage(capsys):
    report = bench.train("tiny", batch=2, steps=3, rounds=1, checkpointing=True)
    assert list(report.parts)[-3:] == ["rest of forward", "backward", "optimizer"]
    assert {"encoder", "transformer", "decoder"} <= set(report.parts) and min(report.parts.values()) >= 0
    model = Model.from_config("tiny", pretrained=False)
    assert report.flops == 2 * flops_per_window(model, 3) and report.seconds > 0
    said = capsys.readouterr().out
    assert "tiny, " in said and "float32, batch 2, windows of 3 steps" in said and "frames or" in said
    assert (
        f"{report.tokens:,.0f} tokens a second" in said and report.tokens == 6 * model.tokens_per_step / report.seconds
    )
    assert report.memory > 1e8 and "most memory of this process" in said
    assert main(["bench", "train", "tiny", "--largest_batch", "true"]) == 1
    assert "needs a device whose memory can be full without harm" in capsys.readouterr().err


def test_noise_is_a_batch_of_the_model_s_kind():
    for make in (tiny.tiny_policy, tiny.tiny_cnn):
        model = make()
        batch = random_batch(model.input_spec, 3, steps=4)
        assert batch["frames"].shape == (3, 4, 3, tiny.SIZE, tiny.SIZE)
        assert model.loss(batch).total.isfinite()


def test_the_time_left_is_that_of_the_steps_left(recordings):
    seen = []

    class Left(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            logged = trainer.callback_metrics
            if "speed/hours_left" in logged:
                seen.append((trainer.global_step, float(logged["speed/hours_left"] * logged["speed/windows"])))

    fit(recordings, Throughput(), Left(), max_steps=6, log_every_n_steps=2)
    for step, hours in seen:
        logged_at = step - step % 2
        assert hours == pytest.approx((6 - logged_at) * BATCH / 3600, rel=1e-3)
    assert seen[-1][0] == 6
