"""What a training run writes into its folder, says, and goes on with."""

# ruff: noqa: F811 - fixtures are named as arguments
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import crash
import lightning as L
import pytest
import torch
from command_line import QUIET, bczoo, fit, here, own_arguments, recordings, weights  # noqa: F401

from bczoo.core.errors import UserError
from bczoo.hub.source import locate
from bczoo.train.callbacks.best import Best
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.play import PlayGame, _best_weights
from bczoo.train.events_file import can_write_events
from bczoo.train.metrics_file import read_metrics

RUN = Path("runs/tiny")
LAST, BEST = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/best.ckpt"
EVERY_3 = ["--trainer.callbacks.every_n_train_steps", 3]
CRASH_AT = ["--trainer.callbacks+=crash.CrashAt", "--trainer.callbacks.step"]


def record(run=RUN):
    return json.loads((run / "record.json").read_text())


def validations(run=RUN):
    return [(row["step"], row["val/loss"]) for row in read_metrics(run / "metrics.csv")[1] if row.get("val/loss")]


def step(path):
    return torch.load(path, weights_only=True)["global_step"]


class CrashInValidationAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise crash.PowerCut


FIRST_IS_BEST = ["--trainer.callbacks.mode", "max"]  # of val/loss, which falls


# ------------------------------------------------------------------ the folder


def test_everything_lies_in_the_run_folder(recordings, here, monkeypatch, capsys):
    """Also where tensorboard is installed, which Lightning would then write instead."""
    connector = sys.modules["lightning.pytorch.trainer.connectors.logger_connector.logger_connector"]
    monkeypatch.setattr(connector, "_TENSORBOARD_AVAILABLE", True)
    more = ["--trainer.log_every_n_steps", 2, "--trainer.default_root_dir", "elsewhere"]
    assert fit(recordings, *more) == 0
    assert [path.name for path in here.iterdir()] == ["elsewhere"]
    run = Path("elsewhere")
    written = ["checkpoints", "config.yaml", "metrics.csv", "record.json", "scaling.csv"]
    assert sorted(path.name for path in run.iterdir()) == written + ["tensorboard"] * can_write_events()
    columns, rows = read_metrics("elsewhere/metrics.csv")
    assert columns[:3] == ["step", "epoch", "lr"] and {"train/loss", "val/loss"} < set(columns)
    assert [row["step"] for row in rows if row["train/loss"]] == ["2", "4", "6"]
    assert all(row["lr"] == "0.001" for row in rows if row["train/loss"])
    assert not any(name.startswith("lr") for name in record(run)["metrics"])
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    common = ["--config", "tiny", "--data.root", recordings, *QUIET, "--trainer.default_root_dir", "elsewhere"]
    assert bczoo("validate", *common, "--data.batch_size", 4) == 0
    changed = {
        path.name for path in Path("elsewhere").iterdir() if path.is_file() and before[path] != path.read_bytes()
    }
    assert changed <= {"record.json"}


def test_an_earlier_run_keeps_all_that_it_wrote(recordings, here):
    fit(recordings)
    first = record()
    assert fit(recordings, "--trainer.max_steps", 3) == 0
    for name in ("metrics-before-*.csv", "config-before-*.yaml", "record-before-*.json"):
        assert len(list(RUN.glob(name))) == 1, name
    (last,), (best,) = (list(LAST.parent.glob(name)) for name in ("before-*.ckpt", "best-before-*.ckpt"))
    assert best.name == f"best-{last.name}"
    assert locate(last).record["run"] == first["run"] != record()["run"]
    assert validations()[-1][0] == "3"


def test_the_rate_of_every_group_is_logged(here):
    from bczoo.train.callbacks.learning_rate import is_learning_rate, learning_rates

    groups = [{"lr": 0.1, "name": "encoder"}, {"lr": 0.2, "name": "rest"}]
    two = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)])
    assert learning_rates(two) == {"lr/encoder": 0.1, "lr/rest": 0.2}
    unnamed = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])] * 2)
    assert learning_rates(unnamed) == {"lr/0": 0.1, "lr/1": 0.1}
    assert is_learning_rate("lr/rest") and not is_learning_rate("lrx")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("neptune", "Neptune has shut down"),
        ("mlflow", "--logger mlflow needs the package mlflow: pip install mlflow"),
    ],
)
def test_a_logger_that_cannot_be_had_is_told_before_anything_is_built(
    recordings, here, capsys, monkeypatch, word, said
):
    monkeypatch.setattr("bczoo.cli.loggers.find_spec", lambda _: None)
    monkeypatch.setattr("bczoo.cli.trainer.TrainerCLI.instantiate_classes", lambda _: pytest.fail("a policy was built"))
    assert fit(recordings, "--logger", word) == 1
    assert said in capsys.readouterr().err


class FakeWandb(L.pytorch.loggers.CSVLogger):
    """Lightning's, as it is called."""

    made = []  # noqa: RUF012

    def __init__(self, project, name, save_dir):
        super().__init__(save_dir, name="wandb", version="")
        self.made.append((project, name, save_dir))


def test_other_loggers_come_on_top(recordings, here, monkeypatch):
    monkeypatch.setattr("bczoo.cli.loggers.find_spec", lambda _: True)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeWandb)
    own = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "mine"]
    assert fit(recordings, "--logger", "wandb", *own, "--trainer.log_every_n_steps", 1) == 0
    assert FakeWandb.made == [("bczoo", "tiny", "runs/tiny")]
    assert (RUN / "wandb/metrics.csv").is_file() and (RUN / "metrics.csv").is_file()
    assert len(list(Path("mine").rglob("metrics.csv"))) == 1


def test_videos_go_into_the_run_folder():
    def trainer(*callbacks):
        return SimpleNamespace(default_root_dir="runs/a", callbacks=list(callbacks))

    one, other = PlayGame("doom/basic", video=True), PlayGame("doom/basic", video="me.mp4")
    assert one.video_path(trainer(one)) == Path("runs/a/play.mp4")
    assert one.video_path(trainer(one, other)) == Path("runs/a/play-doom-basic.mp4")
    assert other.video_path(trainer(other)) == Path("runs/a/me.mp4")
    assert PlayGame("doom/basic", video="/tmp/me.mp4").video_path(trainer()) == Path("/tmp/me.mp4")
    assert PlayGame("doom/basic").video_path(trainer()) is None


# ------------------------------------------------------------------ validation and the best checkpoint


@pytest.mark.parametrize(
    "end",
    [
        ["--trainer.max_steps", 5],
        ["--trainer.max_steps", -1, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 4],
        ["--trainer.max_steps", 5, "--trainer.val_check_interval", 1.0, "--trainer.check_val_every_n_epoch", 3],
    ],
)
def test_every_run_validates_at_its_end(recordings, here, end):
    assert fit(recordings, *end) == 0
    assert record()["metrics"]["step"] == record()["training"]["steps"] == int(validations()[-1][0])
    assert record()["best"]["metrics"]["step"] == step(BEST)


def test_the_best_weights_are_what_a_run_stands_for(recordings, here, capsys):
    assert fit(recordings, *EVERY_3, *FIRST_IS_BEST) == 0
    assert (step(BEST), step(LAST)) == (3, 6)
    out = capsys.readouterr().out
    best = record()["best"]
    assert f"the best by validation, step 3, val/loss {best['value']:.4f}, is {BEST}" in out
    assert any(not torch.equal(weights(BEST)[k], v) for k, v in weights(LAST).items())
    assert "optimizer_states" not in torch.load(BEST, weights_only=True)
    assert (best["monitor"], best["step"], best["metrics"]["step"]) == ("val/loss", 3, 3)
    assert record()["metrics"]["step"] == 6
    found = locate(RUN)
    assert found.path == BEST and found.record["weights_step"] == 3 and found.record["metrics"] == best["metrics"]
    assert locate(LAST).record["metrics"]["step"] == 6
    assert bczoo("export", RUN, "out") == 0
    loss = f"{best['metrics']['val/loss']:.4f}"
    assert f"{BEST}: the best by validation, step 3, val/loss {loss}; the last one is {LAST}" in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    assert f"| `val/loss` | {loss} |" in card and "not on these weights" not in card
    assert bczoo("fit", "--config", "tiny", "--data.root", recordings, *QUIET, "--ckpt_path", BEST) == 1
    assert "holds weights and no state of their training" in capsys.readouterr().err
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    assert bczoo("validate", *common, "--ckpt_path", "best") == 0
    assert record()["metrics"]["step"] == 6 and record()["best"]["metrics"]["step"] == 3
    assert bczoo("validate", *common) == 0
    assert f"validate of {LAST} (--ckpt_path best takes the best" in capsys.readouterr().out


@pytest.mark.parametrize("at", [3, 6])
def test_a_run_that_is_interrupted_in_a_validation_ends_as_if_it_had_not_been(recordings, here, capsys, at):
    options = [*EVERY_3, *FIRST_IS_BEST]
    fit(recordings, *options)
    expected, best, last = validations(), weights(BEST), weights()
    shutil.rmtree(RUN)
    stop = ["--trainer.callbacks+=test_run_folder.CrashInValidationAt", "--trainer.callbacks.step", at]
    with pytest.raises(crash.PowerCut):
        fit(recordings, *options, *stop)
    assert BEST.exists() == (at == 6)
    capsys.readouterr()
    assert fit(recordings, *options) == 0
    out = capsys.readouterr().out
    assert f"the validation after step {at} is made up for" in out
    assert f"resuming the interrupted run from {LAST}: step {at} of 6, {6 - at} remain" in out
    assert validations() == expected
    for path, wanted in ((BEST, best), (LAST, last)):
        assert all(torch.equal(weights(path)[k], v) for k, v in wanted.items())
    assert locate(RUN).record["metrics"]["step"] == record()["best"]["step"] == 3


def test_a_validation_that_was_finished_is_not_made_up_for(recordings, here, capsys):
    with pytest.raises(crash.PowerCut):
        fit(recordings, *EVERY_3, *CRASH_AT, 4)
    before = BEST.stat().st_mtime_ns
    capsys.readouterr()
    assert fit(recordings, *EVERY_3) == 0
    assert "made up for" not in capsys.readouterr().out
    assert [at for at, _ in validations()] == ["3", "6"]
    assert step(BEST) == 6 or BEST.stat().st_mtime_ns == before


def test_a_best_checkpoint_of_another_run_is_not_taken(recordings, here):
    """As a kill leaves it between a new last checkpoint and the removal of the older best one."""
    fit(recordings)
    older = BEST.read_bytes()
    fit(recordings, "--seed_everything", 1, "--trainer.limit_val_batches", 0)
    assert not BEST.exists() and locate(RUN).path == LAST
    BEST.write_bytes(older)
    assert locate(RUN).path == LAST
    LAST.unlink()
    assert locate(RUN).path == BEST


def test_what_cannot_be_monitored_is_told(recordings, here):
    with pytest.warns(UserWarning, match=r"logs no 'val/los', but .*val/loss"):
        assert fit(recordings, "--trainer.callbacks.monitor", "val/los") == 0
    assert not BEST.exists() and locate(RUN).path == LAST
    assert fit(recordings, "--trainer.callbacks.monitor", "null") == 0
    assert not BEST.exists()
    for arguments in ({"monitor": "train/loss"}, {"mode": "least"}):
        with pytest.raises(UserError):
            ResumableCheckpoint(**arguments)


def test_closing_games_are_played_with_the_best_weights_which_are_given_back(recordings, here):
    fit(recordings, *EVERY_3, *FIRST_IS_BEST)
    module, last = torch.nn.Linear(2, 2), {}
    best = {k: torch.full_like(v, 7.0) for k, v in module.state_dict().items()}
    last = {k: v.clone() for k, v in module.state_dict().items()}
    torch.save({"state_dict": best}, "other.ckpt")
    keeper = ResumableCheckpoint()
    keeper._best, keeper.dirpath = Best("val/loss", "min", 0.5, 3), Path()
    Path("other.ckpt").rename(keeper.best_path)
    trainer = SimpleNamespace(checkpoint_callbacks=[keeper], global_step=6, lightning_module=module)
    with _best_weights(trainer, module) as found:
        assert found.step == 3 and str(found) == "step 3, val/loss 0.5000"
        assert all((v == 7.0).all() for v in module.state_dict().values())
    assert all(torch.equal(v, last[k]) for k, v in module.state_dict().items())
    trainer.global_step = 3
    with _best_weights(trainer, module) as found:
        assert found.step == 3 and torch.equal(module.weight, last["weight"])
    with _best_weights(SimpleNamespace(checkpoint_callbacks=[], global_step=6), module) as found:
        assert found is None


# ------------------------------------------------------------------ resuming


def test_other_data_and_other_optimisers_are_refused_unless_meant(recordings, here, capsys, tmp_path_factory):
    with pytest.raises(crash.PowerCut):
        fit(recordings, *EVERY_3, *CRASH_AT, 4)
    other = shutil.copytree(recordings, tmp_path_factory.mktemp("other") / "data")
    for options, said in (
        (["--data.root", other], f"data.root: {recordings} -> {other}"),
        (["--data.fraction", 0.5], "data.fraction: 1.0 -> 0.5"),
        (["--data.batch_size", 2], "data.batch_size: 4 -> 2"),
        (["--data.seed", 7], "data.seed: 0 -> 7"),
        (["--model.optimizer.lr", 0.5], "model.optimizer.lr: 0.001 -> 0.5"),
    ):
        capsys.readouterr()
        assert fit(recordings, *EVERY_3, *options) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in line and "--ckpt_path null" in line
        assert ("--resume_on_other_data true" in line) == said.startswith("data."), line
    assert step(LAST) == 3
    meant = ["--data.root", other, "--data.fraction", 0.5, "--resume_on_other_data", "true"]
    with pytest.warns(UserWarning, match="the data is not what it was"):
        assert fit(recordings, *EVERY_3, *meant) == 0
    assert "the resumed run goes on with other data: data.fraction: 1.0 -> 0.5" in capsys.readouterr().out
    assert step(LAST) == 6


def test_what_changes_nothing_does_not_keep_a_run_from_going_on(recordings, here, capsys, monkeypatch):
    with pytest.raises(crash.PowerCut):
        fit(recordings, *EVERY_3, *CRASH_AT, 4)
    monkeypatch.chdir(recordings.parent)
    same = [recordings.name, *EVERY_3, "--trainer.default_root_dir", here / RUN, "--data.strict", "true"]
    capsys.readouterr()
    assert fit(*same, "--seed_everything", 5, "--trainer.max_steps", 8) == 0
    out = capsys.readouterr().out
    assert "step 3 of 8, 5 remain" in out and "seed_everything: 0 -> 5 changes nothing" in out
    assert step(here / LAST) == 8


def test_a_finished_run_is_extended_by_its_checkpoint(recordings, here, capsys):
    fit(recordings)
    run = record()["run"]
    assert fit(recordings, "--ckpt_path", LAST, "--trainer.max_steps", 9) == 0
    assert f"resuming the run from {LAST}: step 6 of 9, 3 remain" in capsys.readouterr().out
    assert record()["run"] == run and [at for at, _ in validations()] == ["3", "6", "9"]


def test_callbacks_can_be_left_out(recordings, here, capsys):
    """All of them, and the run can still be resumed; or the closing games alone."""
    assert fit(recordings, "--trainer.callbacks", "null", "--trainer.max_steps", 3) == 0
    assert step(LAST) == 3 and not Path("lightning_logs").exists()
    game = ["--trainer.callbacks+=bczoo.PlayGame", "--trainer.callbacks.env", "tiny_game:catch"]
    capsys.readouterr()
    assert fit(recordings, "--trainer.max_steps", 3, *game, "--play", "false") == 0
    assert "| policy |" not in capsys.readouterr().out and record()["play"] == {}
    few = ["--trainer.callbacks.episodes", 1, "--trainer.callbacks.parallel", 1, "--trainer.callbacks.threads", 1]
    assert fit(recordings, *EVERY_3, *FIRST_IS_BEST, *game, *few) == 0
    out, played = capsys.readouterr().out, record()["play"]["tiny_game:catch"]
    assert "1 unseen game each; the policy is the best by validation, of step 3, val/loss" in out
    assert played["step"] == record()["best"]["step"] == 3 and played["players"]["policy"]["low"] is None
