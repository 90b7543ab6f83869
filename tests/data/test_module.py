"""The data module with a real trainer: what is seen, by whom, and again after an interruption."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import several
from synthetic import SIZE, damage, number_of, write_recording, write_recordings
from torchvision.transforms import v2

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import InputSpec
from bczoo.data.augment import IsoNoise
from bczoo.data.errors import FrameReadError, RecordingError
from bczoo.data.module import RecordingDataModule
from bczoo.data.source import RecordingSource

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU)")
SPEC = InputSpec(ActionSpace.keyboard_mouse(), frame_size=SIZE, window=6, text_dim=4)


class Watcher(L.LightningModule):
    """Notes every batch that it is given; stops by an exception after ``stop`` steps."""

    def __init__(self, stop: int | None = None, spec: InputSpec | None = SPEC, folder: Path | None = None):
        super().__init__()
        if spec is not None:
            self.input_spec = spec
        self.weight = torch.nn.Linear(1, 1)
        self.stop = stop
        self.folder = folder
        self.seen: dict[str, list] = {"train": [], "val": [], "test": [], "predict": []}
        self.sums: list[int] = []

    def note(self, stage, batch, batch_idx):
        keys = list(zip(batch["recording"].tolist(), batch["start"].tolist(), strict=True))
        self.seen[stage].append((self.current_epoch, batch_idx, keys))
        self.sums.append(int(batch["frames"].sum()))

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop:
            raise RuntimeError("power cut")
        self.note("train", batch, batch_idx)
        return self.weight(torch.ones(1, 1)).mean()

    def validation_step(self, batch, batch_idx):
        self.note("val", batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.note("test", batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self):
        if self.folder is not None:
            torch.save(self.seen, self.folder / f"rank-{self.global_rank}.pt")


def trainer(folder, callbacks=(), **arguments):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(callbacks),
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | arguments)


def data(root, **arguments):
    return RecordingDataModule(str(root), **{"batch_size": 3, "val_fraction": 0.2} | arguments)


def fit(root, folder, stop=None, every=4, checkpoint=None, trainer_arguments=None, **arguments):
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=every, save_top_k=-1)
    model = Watcher(stop)
    arguments_of_fit = {"ckpt_path": checkpoint} if checkpoint else {}
    module = data(root, **arguments)
    run = trainer(folder, [saver], **trainer_arguments or {})
    if stop is None:
        run.fit(model, module, **arguments_of_fit)
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            run.fit(model, module, **arguments_of_fit)
    return model


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("shared") / "recordings")


def test_fit_validate_test_and_predict_see_their_recordings(shared_root, tmp_path):
    model, module = Watcher(), data(shared_root)
    run = trainer(tmp_path)
    run.fit(model, module)
    assert [len([b for b in model.seen["train"] if b[0] == epoch]) for epoch in (0, 1)] == [
        run.num_training_batches
    ] * 2
    assert len({tuple(b[2]) for b in model.seen["train"]}) == 2 * run.num_training_batches
    training = {r for _, _, keys in model.seen["train"] for r, _ in keys}
    validation = {r for _, _, keys in model.seen["val"] for r, _ in keys} - {-1}
    assert training
    assert validation
    assert not training & validation
    assert training | validation == set(range(8))
    first_epoch = [b for b in model.seen["val"] if b[0] == 0]
    run.validate(model, module)
    assert [b[2] for b in model.seen["val"][2 * len(first_epoch) :]] == [b[2] for b in first_epoch]
    run.test(model, module)
    run.predict(model, module)
    assert [b[2] for b in model.seen["test"]] == [b[2] for b in first_epoch]
    predicted = [key for b in model.seen["predict"] for key in b[2]]
    real = [key for key in predicted if key[0] != -1]
    assert real == sorted(real) == sorted(key for b in first_epoch for key in b[2] if key[0] != -1)


def test_roots_of_their_own(shared_root, tmp_path):
    write_recordings(tmp_path / "val", 1, 13)
    write_recordings(tmp_path / "test", 1, 20)
    model = Watcher()
    module = data(shared_root, val_root=str(tmp_path / "val"), test_root=[str(tmp_path / "test")], batch_size=4)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, module)
    run.test(model, module)
    assert {r for _, _, keys in model.seen["train"] for r, _ in keys} == set(range(8))
    assert [b[2] for b in model.seen["val"]] == [[(0, 0), (0, 6), (-1, 0), (-1, 0)]]
    assert [b[2] for b in model.seen["test"]] == [[(0, 0), (0, 6), (0, 12), (0, 18)]]


def test_number_of_workers_changes_nothing(shared_root, tmp_path):
    augment = {"augment": [v2.ColorJitter(0.3), IsoNoise()]}
    alone = fit(shared_root, tmp_path / "a", num_workers=0, **augment)
    helped = fit(shared_root, tmp_path / "b", num_workers=2, **augment)
    assert alone.seen == helped.seen
    assert alone.sums == helped.sums
    plain = fit(shared_root, tmp_path / "c")
    assert plain.seen == alone.seen
    assert plain.sums != alone.sums


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [5, 9])
def test_resumed_run_sees_exactly_what_was_left(shared_root, tmp_path, num_workers, stop):
    """Interrupted within an epoch; with augmentations, whose draws must be the same too."""
    arguments = {"augment": [v2.ColorJitter(0.3)], "trainer_arguments": {"max_epochs": 3}}
    whole = fit(shared_root, tmp_path / "whole", **arguments)
    per_epoch = len(whole.seen["train"]) // 3
    assert per_epoch >= 7
    cut = fit(shared_root, tmp_path / "cut", stop, num_workers=num_workers, **arguments)
    assert cut.seen["train"] == whole.seen["train"][:stop]
    last = stop // 4 * 4
    checkpoint = tmp_path / "cut" / "checkpoints" / f"step={last}.ckpt"
    rest = fit(shared_root, tmp_path / "rest", checkpoint=str(checkpoint), num_workers=num_workers, **arguments)
    assert rest.seen["train"] == whole.seen["train"][last:]
    assert rest.sums[-1] == whole.sums[-1]


def test_resume_at_and_after_the_end_of_an_epoch_and_across_validation(shared_root, tmp_path):
    """Checkpoints at every single step; validation in mid-epoch."""
    arguments = {"max_epochs": 2, "val_check_interval": 4}
    whole = fit(shared_root, tmp_path / "whole", every=1, trainer_arguments=arguments)
    total = len(whole.seen["train"])
    per_epoch = total // 2
    for step in (4, per_epoch - 1, per_epoch, per_epoch + 1, total - 1):
        checkpoint = str(tmp_path / "whole" / "checkpoints" / f"step={step}.ckpt")
        rest = fit(shared_root, tmp_path / f"{step}", every=100, checkpoint=checkpoint, trainer_arguments=arguments)
        assert rest.seen["train"] == whole.seen["train"][step:], step


def test_resume_on_other_data_warns(shared_root, tmp_path):
    fit(shared_root, tmp_path / "cut", stop=5)
    checkpoint = str(tmp_path / "cut" / "checkpoints" / "step=4.ckpt")
    with pytest.warns(UserWarning, match=r"data is not what it was .*batch_size 3 -> 2"):
        fit(shared_root, tmp_path / "rest", checkpoint=checkpoint, batch_size=2)


def test_limited_epochs_and_overfitting(shared_root, tmp_path):
    limited = fit(shared_root, tmp_path / "a", num_workers=1, trainer_arguments={"limit_train_batches": 2})
    full = fit(shared_root, tmp_path / "b")
    per_epoch = len(full.seen["train"]) // 2
    assert limited.seen["train"] == full.seen["train"][:2] + full.seen["train"][per_epoch : per_epoch + 2]
    same = fit(shared_root, tmp_path / "c", trainer_arguments={"overfit_batches": 2})
    assert [b[2] for b in same.seen["train"][:2]] == [b[2] for b in same.seen["train"][2:]]


def test_two_processes_share_the_windows(shared_root, tmp_path):
    model = Watcher(folder=tmp_path)
    trainer(tmp_path, max_epochs=1, **several(2)).fit(model, data(shared_root))
    ranks = [torch.load(tmp_path / f"rank-{r}.pt") for r in range(2)]
    for stage in ("train", "val"):
        batches = [rank[stage] for rank in ranks]
        assert len(batches[0]) == len(batches[1]) > 0
        keys = [key for b in batches for _, _, keys in b for key in keys if key[0] >= 0]
        assert len(keys) == len(set(keys))
    module = data(shared_root, window=6, frame_size=SIZE)
    module.setup("fit")
    whole = [key for batch in module.val_dataloader() for key in batch["recording"].tolist() if key >= 0]
    assert len(keys) == len(whole)


def test_without_a_trainer(shared_root):
    module = data(shared_root, window=5, frame_size=96, action_space="keyboard_mouse", num_workers=0)
    module.setup("fit")
    loader = module.train_dataloader()
    batch = next(iter(loader))
    assert batch["frames"].shape == (3, 5, 3, 96, 96)  # enlarged
    assert batch["actions"]["keys"].shape == (3, 5, 4)
    assert batch["actions"]["keys"].dtype == torch.int64
    assert batch["text"].shape == (3, 5, 768)
    numbers = [[number_of(f) for f in clip.permute(0, 2, 3, 1).numpy()] for clip in batch["frames"]]
    for recording, start, valid, shown in zip(batch["recording"], batch["start"], batch["valid"], numbers, strict=True):
        wanted = [1000 * int(recording) + int(start) + t for t in range(int(valid.sum()))]
        assert shown[: len(wanted)] == wanted
    assert sum(1 for _ in loader) == len(loader)


def test_fraction_limits_training_alone(shared_root):
    chosen = {}
    for fraction in (0.3, 0.6, 1.0):
        module = data(shared_root, fraction=fraction, window=6, frame_size=SIZE)
        module.setup()
        chosen[fraction] = set(module.train_dataloader().plan.recordings.tolist())
        chosen["val", fraction] = set(module.val_dataloader().plan.recordings.tolist())
    assert chosen[0.3] < chosen[0.6] < chosen[1.0]
    assert chosen["val", 0.3] == chosen["val", 1.0]


def test_policy_that_takes_no_text_gets_none(shared_root, tmp_path):
    module = data(shared_root)
    model = Watcher(spec=dataclasses.replace(SPEC, text_dim=None))
    trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(model, module)
    assert "text" not in next(iter(module.train_dataloader()))


def test_contradicting_the_policy_is_an_error(shared_root, tmp_path):
    for argument, value in (("frame_size", 96), ("action_space", "gamepad")):
        with pytest.raises(UserError, match=f"data.{argument} is .*leave data.{argument} out"):
            trainer(tmp_path).fit(Watcher(), data(shared_root, **{argument: value}))


def test_source_produces_recordings_before_the_first_run(tmp_path):
    class Source(RecordingSource):
        calls = 0

        def prepare(self, root):
            self.calls += 1
            if not root.exists():
                write_recordings(root, 4, 20)

    source = Source()
    for _ in range(2):
        model = Watcher()
        trainer(tmp_path, max_epochs=1).fit(model, data(tmp_path / "made", source=source))
        assert model.seen["train"]
    assert source.calls == 2
    with pytest.raises(UserError, match="a source fills one root"):
        RecordingDataModule(["a", "b"], source=source).prepare_data()


def test_too_few_windows_for_a_batch(tmp_path):
    write_recording(tmp_path / "recordings" / "rec", 10)
    with pytest.raises(UserError, match=r"1 training recordings give 2 windows .* too few for one batch of 8"):
        trainer(tmp_path).fit(Watcher(), data(tmp_path / "recordings", batch_size=8))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_recordings_do_not_stop_training(tmp_path, num_workers):
    root = write_recordings(tmp_path / "recordings", 5, 70)
    (root / "rec-1" / "annotation.proto").write_bytes(b"\x01")
    damage(root / "rec-2" / f"{SIZE}x{SIZE}.mp4")
    model = Watcher()
    module = data(root, val_root=str(root), num_workers=num_workers)
    with pytest.warns(UserWarning) as caught:
        trainer(tmp_path, max_epochs=1).fit(model, module)
    texts = [str(w.message) for w in caught if "bczoo data check" in str(w.message)]
    assert sum("1 of 5 recordings are broken: rec-1 (annotation.proto is damaged" in t for t in texts) == 2
    assert sum("steps had no readable frame" in t for t in texts) == 1
    assert {r for _, _, keys in model.seen["train"] for r, _ in keys} == {0, 2, 3, 4}
    with pytest.raises(RecordingError, match="1 of 5"):
        trainer(tmp_path).fit(Watcher(), data(root, strict=True))
    (root / "rec-1" / "annotation.proto").unlink()
    (root / "rec-1" / f"{SIZE}x{SIZE}.mp4").unlink()
    with pytest.raises(FrameReadError, match="rec-2"):
        trainer(tmp_path).fit(Watcher(), data(root, strict=True, val_fraction=0.0, num_workers=num_workers))


@pytest.mark.parametrize("rank", [0, 1])
def test_errors_stop_every_process_and_only_the_first_warns(tmp_path, rank):
    """A process that went on alone would wait for the others for ever."""
    root = write_recordings(tmp_path / "recordings", 2, 10)

    def setup(strict=False):
        module = data(root, strict=strict)
        module.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(input_spec=SPEC), is_global_zero=rank == 0, global_rank=rank, world_size=2
        )
        module.prepare_data()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.setup("fit")
        return len(caught)

    (root / "rec-0" / "annotation.proto").write_bytes(b"\x01")
    assert setup() == (rank == 0)
    with pytest.raises(RecordingError, match="1 of 2 recordings are broken"):
        setup(strict=True)
    (root / "rec-1" / "annotation.proto").write_bytes(b"\x01")
    with pytest.raises(RecordingError, match="no recording is usable"):
        setup()


def test_new_loaders_replace_the_old_ones(shared_root, tmp_path):
    """Each would keep its worker processes otherwise."""

    class Counter(L.Callback):
        most = 0

        def on_train_epoch_end(self, trainer, module):
            self.most = max(self.most, len(multiprocessing.active_children()))

    counter = Counter()
    arguments = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 2}
    model = Watcher()
    trainer(tmp_path, [counter], enable_checkpointing=False, **arguments).fit(model, data(shared_root, num_workers=1))
    assert counter.most == 2  # one for training and one for validation
    plain = Watcher()
    trainer(tmp_path, max_epochs=4, limit_train_batches=2).fit(plain, data(shared_root))
    assert model.seen == plain.seen


def test_frames_are_resized_as_the_policy_wants(shared_root):
    sums = set()
    for resize in ("hamming", "box"):
        module = data(shared_root)
        spec = dataclasses.replace(SPEC, frame_size=32, resize=resize)
        module.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(input_spec=spec),
            is_global_zero=True,
            global_rank=0,
            world_size=1,
            strategy=SimpleNamespace(root_device="cpu"),
        )
        module.prepare_data()
        module.setup()
        sums.add(int(next(iter(module.val_dataloader()))["frames"].sum()))
    assert len(sums) == 2


def memory_kb():
    """Private memory of this process; pages of the mapped index do not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def test_files_and_memory_stay_flat_over_epochs(shared_root):
    module = data(shared_root, window=6, frame_size=SIZE)
    module.setup("fit")
    loader = module.train_dataloader()

    def epochs(numbers):
        for epoch in numbers:
            loader.set_epoch(epoch)
            for _ in loader:
                pass
        return len(os.listdir("/proc/self/fd")), memory_kb()

    files, memory = epochs(range(5))
    more_files, more_memory = epochs(range(5, 25))
    assert more_files == files
    assert more_memory < memory + 4096


def test_workers_end_with_the_run(shared_root, tmp_path):
    """Also if it ends by an exception."""
    fit(shared_root, tmp_path / "a", num_workers=2)
    assert multiprocessing.active_children() == []
    fit(shared_root, tmp_path / "b", num_workers=2, stop=3)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("name", "value", "least"), [("batch_size", 0, 1), ("batch_size", -1, 1), ("num_workers", -1, 0), ("window", 0, 1)]
)
def test_numbers_that_make_no_sense_are_refused(name, value, least):
    with pytest.raises(UserError, match=f"{name} must be .*{least}.* got {value}"):
        RecordingDataModule("nowhere", **{name: value})
