"""What breaks a training must not cost what was trained: full disks, NaN, signals, damaged files, two runs at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import crash
import lightning as L
import pytest
import tiny
import torch
from command_line import QUIET, bczoo, fit, here, own_arguments, recordings, weights  # noqa: F401
from processes import several

from bczoo.core import files
from bczoo.core.errors import UserError
from bczoo.hub.folder import load_folder
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.finite import FiniteCheck, NonFiniteError
from bczoo.train.callbacks.lock import FolderLock
from bczoo.train.metrics_file import MetricsFile

EVERY_2 = ["--trainer.callbacks.every_n_train_steps", 2]
RUN = Path("runs/tiny")
LAST = RUN / "checkpoints" / "last.ckpt"


def step(path=LAST):
    return torch.load(path, weights_only=True)["global_step"]


class FullDisk:
    """A disk that is full for checkpoints, but for the first few."""

    def __init__(self, monkeypatch, spared):
        self.left, self.flush = spared, files.flush
        monkeypatch.setattr(files, "flush", self)

    def __call__(self, path):
        if "last.ckpt" in path.name:
            if self.left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= 1
        self.flush(path)


def partials(folder):
    return [p for p in Path(folder).rglob("*") if ".writing-" in p.name]


# ------------------------------------------------------------------ disks


def test_checkpoints_do_not_go_by_the_folder_for_temporary_files(recordings, here, monkeypatch):  # noqa: F811
    """Lightning's own writer goes by TMPDIR and copies over the older checkpoint."""
    lightnings = "lightning.fabric.plugins.io.torch_io._atomic_save"
    monkeypatch.setattr(lightnings, lambda *_: pytest.fail("a checkpoint went by TMPDIR"))
    assert fit(recordings) == 0


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(recordings, here, monkeypatch):  # noqa: F811
    disk = FullDisk(monkeypatch, spared=1)

    def space_again(*_):
        disk.left = 9

    monkeypatch.setattr(L.Callback, "on_train_end", space_again)  # of callbacks that have none of their own
    with pytest.warns(UserWarning, match=r"step 4 could not be written: No space left.*last.ckpt"):
        assert fit(recordings, *EVERY_2, "--trainer.max_steps", 5) == 0
    assert step() == 5 and not partials(RUN)


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(recordings, here, monkeypatch, capsys):  # noqa: F811
    FullDisk(monkeypatch, spared=1)
    with pytest.warns(UserWarning, match="step 4"):
        assert fit(recordings, *EVERY_2, "--trainer.max_steps", 5) == 1
    assert "last.ckpt: No space left on device; free space" in capsys.readouterr().err
    assert step() == 2 and not (RUN / "checkpoints" / "finished").exists()


def test_an_earlier_run_is_not_touched_by_a_save_that_fails(recordings, here, monkeypatch):  # noqa: F811
    fit(recordings)
    first = weights()
    FullDisk(monkeypatch, spared=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit(recordings, *EVERY_2) == 1
    assert all(torch.equal(weights()[k], first[k]) for k in first)
    assert sorted(p.name for p in LAST.parent.iterdir()) == [".lock", "best.ckpt", "finished", "last.ckpt", "validated"]


def test_metrics_that_cannot_be_written_do_not_end_a_run(recordings, here, monkeypatch):  # noqa: F811
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsFile, "_write", full)
    with pytest.warns(UserWarning, match="metrics.csv could not be written.*tried again"):
        assert fit(recordings) == 0


@pytest.mark.parametrize("what", ["file", "folder", "no room"])
def test_a_run_folder_that_cannot_be_used_is_told_before_training(recordings, here, monkeypatch, capsys, what):  # noqa: F811
    if what == "file":
        RUN.parent.mkdir()
        RUN.touch()
    elif what == "folder":
        LAST.mkdir(parents=True)
    else:
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr("bczoo.train.callbacks.checkpoint.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("bczoo.models.bc.policy.BCPolicy.training_step", lambda *_: pytest.fail("training began"))
    assert fit(recordings) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("bczoo:")]
    expected = {"file": "Not a directory", "folder": "last.ckpt is a folder", "no room": "weights alone take"}
    assert (expected[what] in line and "default_root_dir" in line) or "move it away" in line


def test_errors_of_the_system_are_one_line(here, capsys, monkeypatch):  # noqa: F811
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "out/config.json")

    monkeypatch.setattr("bczoo.hub.commands.locate", denied)
    assert bczoo("export", "a", "b") == 1
    assert capsys.readouterr().err.startswith("bczoo: out/config.json: Permission denied; give yourself the right")
    monkeypatch.setenv("BCZOO_TRACEBACK", "1")
    with pytest.raises(PermissionError):
        bczoo("export", "a", "b")


def test_leftovers_of_killed_processes_are_swept(recordings, here):  # noqa: F811
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    name = f".last.ckpt.writing-{files._host()}-{int(dead.stdout)}-00000000"
    LAST.parent.mkdir(parents=True)
    (LAST.parent / name).write_bytes(b"cut off")
    (here / name.replace("last.ckpt", "out")).mkdir()
    assert fit(recordings, "--trainer.max_steps", 1) == 0
    assert bczoo("export", RUN, "out") == 0
    assert not partials(here)


# ------------------------------------------------------------------ NaN


class Poison(L.Callback):
    """Makes the loss of one step NaN."""

    def __init__(self, step: int, kind: str = "nan") -> None:
        self.step, self.kind = step, kind

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            next(pl_module.parameters()).data.view(-1)[0] = float(self.kind)


def test_training_stops_at_nan_and_keeps_the_good_checkpoint(recordings, here, capsys):  # noqa: F811
    poison = ["--trainer.callbacks+=test_safe_runs.Poison", "--trainer.callbacks.step=3"]
    assert fit(recordings, *EVERY_2, *poison) == 1
    out = capsys.readouterr()
    assert "training stopped in step 4: the loss is nan, with these recordings in the batch: rec_" in out.err
    assert "goes on from step 2" in out.out
    assert step() == 2
    assert fit(recordings, *EVERY_2) == 0
    assert all(v.isfinite().all() for v in weights().values()) and step() == 6


def plain_trainer(tmp_path, *callbacks, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=4,
        default_root_dir=tmp_path, callbacks=[FiniteCheck(), *callbacks], **options,
    )  # fmt: skip


def batches(policy, n=8):
    return [tiny.tiny_batch(policy, seed=i) for i in range(n)]


def loader(items):
    return torch.utils.data.DataLoader(items, batch_size=None)


def test_the_recording_with_nan_in_its_text_is_named(tmp_path):
    policy = tiny.tiny_policy()
    data = batches(policy)
    data[3]["text"][1, 2, 3] = float("nan")
    trainer = plain_trainer(tmp_path, accumulate_grad_batches=2, enable_checkpointing=False)
    with pytest.raises(NonFiniteError, match=r"in step 2.*the input is not finite in number 1; mend"):
        trainer.fit(policy, loader(data))


def test_a_gradient_that_is_infinite_stops_training_but_not_under_a_scaler(tmp_path):
    class Overflow(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 1 and not self.done:
                self.done = True
                next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")

        done = False

    policy = tiny.tiny_policy()
    with pytest.raises(NonFiniteError, match="step 2: the norm of the gradients is not finite"):
        plain_trainer(tmp_path, Overflow(), enable_checkpointing=False).fit(policy, loader(batches(policy)))
    policy = tiny.tiny_policy()
    from lightning.pytorch.plugins import MixedPrecision

    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    trainer = plain_trainer(tmp_path, Overflow(), enable_checkpointing=False, plugins=[scaled])
    trainer.fit(policy, loader(batches(policy)))
    assert trainer.global_step == 4 and scaled.scaler.get_scale() == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Burst(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            next(pl_module.parameters()).data.view(-1)[0] = float("inf")

    policy = tiny.tiny_policy()
    trainer = plain_trainer(tmp_path, Burst(), ResumableCheckpoint(every_n_train_steps=1))
    with pytest.raises(NonFiniteError, match="weights of step 1 are not finite"):
        trainer.fit(policy, loader(batches(policy)))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_two_processes_stop_together(tmp_path):
    policy = tiny.tiny_policy(text_dim=None)
    data = batches(policy)
    keeper = ResumableCheckpoint(every_n_train_steps=1)
    trainer = plain_trainer(tmp_path, OnOneRank(), keeper, **several(2))
    with pytest.raises(Exception, match="training stopped in step 3: the loss is nan"):
        trainer.fit(policy, loader(data))
    assert step(tmp_path / "checkpoints" / "last.ckpt") == 2


class OnOneRank(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            next(pl_module.parameters()).data.view(-1)[0] = float("nan")


def test_nan_is_not_loaded_or_published(recordings, here, capsys, tmp_path):  # noqa: F811
    fit(recordings, "--trainer.max_steps", 1)
    content = torch.load(LAST, weights_only=True)
    name = next(k for k in content["state_dict"] if k.endswith("running_var"))
    content["state_dict"][name][0] = float("inf")
    torch.save(content, LAST)
    capsys.readouterr()
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    for command in (["export", LAST, "out"], ["validate", *common]):
        assert bczoo(*command) == 1
        assert f"{LAST} holds weights that are NaN or infinite: {name}, 1 of" in capsys.readouterr().err
    assert not Path("out").exists()
    policy = tiny.tiny_policy()
    policy.save_pretrained("good")
    policy.state_dict()[name][0] = float("nan")
    with pytest.raises(UserError, match=name):
        policy.save_pretrained("good")
    assert load_folder("good")
    from safetensors.torch import load_file, save_file

    tensors = load_file("good/model.safetensors")
    tensors[name][0] = float("nan")
    save_file(tensors, "good/model.safetensors")
    with pytest.raises(UserError, match=name):
        load_folder("good")


# ------------------------------------------------------------------ stopping


class SignalAt(L.Callback):
    """Sends this process a signal, in a step or in a validation."""

    def __init__(self, step: int, number: int, validating: bool = False) -> None:
        self.step, self.number, self.validating = step, number, validating

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and not self.validating:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), self.number)


def signal_at(step, number, validating=False):
    return [
        "--trainer.callbacks+=test_safe_runs.SignalAt", f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.number={number}", f"--trainer.callbacks.validating={validating}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "at", "validating", "reached"),
    [(signal.SIGTERM, 1, False, 2), (signal.SIGINT, 4, False, 5), (signal.SIGTERM, 3, True, 3)],
)
def test_a_signal_saves_the_step_that_was_reached(recordings, here, capsys, number, at, validating, reached):  # noqa: F811
    fit(recordings)
    expected = weights()
    LAST.unlink()
    assert fit(recordings, *signal_at(at, int(number), validating)) == 128 + number
    assert f"goes on from step {reached}" in capsys.readouterr().out
    assert step() == reached
    assert fit(recordings) == 0
    assert all(torch.equal(weights()[k], expected[k]) for k in expected)


def test_a_second_run_in_the_same_folder_is_refused(here):  # noqa: F811
    code = (
        "import sys, time; from pathlib import Path; from bczoo.train.callbacks.lock import FolderLock;"
        "FolderLock(Path('.')).acquire(); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on .*, since 2.*default_root_dir"):
            FolderLock(Path()).acquire()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    for _ in range(2):
        FolderLock(Path()).acquire()
        FolderLock(Path()).acquire()
        FolderLock(Path()).release()


# ------------------------------------------------------------------ damaged files, unfinished ends


def test_a_cut_off_checkpoint_is_told_and_another_offered(recordings, here, capsys):  # noqa: F811
    fit(recordings)
    fit(recordings, "--seed_everything", 1)
    (kept,) = LAST.parent.glob("before-*.ckpt")
    LAST.write_bytes(LAST.read_bytes()[:-2000])
    (LAST.parent / "finished").unlink()
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    for command in (lambda: fit(recordings), lambda: bczoo("validate", *common), lambda: bczoo("export", LAST, "out")):
        capsys.readouterr()
        assert command() == 1
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("bczoo:")]
        assert "last.ckpt is cut off" in line and str(kept) in line
    for path in LAST.parent.glob("*before-*.ckpt"):
        path.unlink()
    assert fit(recordings) == 1
    assert f"{LAST.parent / 'best.ckpt'} beside it is whole; it can be played and exported" in capsys.readouterr().err
    assert bczoo("export", RUN, "out") == 0
    (LAST.parent / "best.ckpt").unlink()
    assert fit(recordings) == 1
    assert "--ckpt_path null" in capsys.readouterr().err


class CrashInValidation(L.Callback):
    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == 6:
            raise crash.PowerCut


@pytest.mark.parametrize("end", [["--trainer.max_steps", 6], ["--trainer.max_steps", -1, "--trainer.max_epochs", 1]])
def test_a_final_validation_that_was_interrupted_is_made_up_for(recordings, here, capsys, end):  # noqa: F811
    options = [*EVERY_2, "--trainer.limit_train_batches", 6, *end]
    fit(recordings, *options)
    expected = json.loads((RUN / "record.json").read_text())
    trained = weights()
    for path in (LAST, RUN / "record.json"):
        path.unlink()
    with pytest.raises(crash.PowerCut):
        fit(recordings, *options, "--trainer.callbacks+=test_safe_runs.CrashInValidation")
    assert not (RUN / "record.json").exists() and not (LAST.parent / "finished").exists()
    capsys.readouterr()
    assert fit(recordings, *options) == 0
    assert "made up for" in capsys.readouterr().out
    record = json.loads((RUN / "record.json").read_text())
    assert record["metrics"] == expected["metrics"] and record["metrics"]["step"] == 6
    assert record["training"]["steps"] == 6 and (LAST.parent / "finished").exists()
    assert all(torch.equal(weights()[k], trained[k]) for k in trained)
