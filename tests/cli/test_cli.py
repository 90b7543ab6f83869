"""The command line, as a user types it."""

# ruff: noqa: F811 - fixtures are named as arguments
import json
import re
import subprocess
import sys
from pathlib import Path

import crash
import numpy as np
import pytest
import torch
import yaml
from command_line import QUIET, bczoo, fit, here, own_arguments, recordings, weights  # noqa: F401
from safetensors.torch import load_file

from bczoo import BCPolicy
from bczoo.cli import main
from bczoo.core import configs
from bczoo.data.video import iterate_frames

REPOSITORY = Path(__file__).parents[2]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_needs_nothing_heavy():
    code = "import sys; from bczoo.cli import main; main(['--help']); print({'torch', 'lightning'} & set(sys.modules))"
    out = run_python(code)
    assert "usage: bczoo" in out and "600m" in out and out.strip().endswith("set()")


def test_importing_bczoo_is_light():
    assert run_python("import sys, bczoo; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("argv", [["fitt"], ["data"], ["dta", "check"]])
def test_unknown_commands_get_a_suggestion(argv, capsys):
    assert main(argv) == 2
    assert {"fitt": "'fit'", "data": "data check, data view", "dta": "'data check'"}[argv[0]] in capsys.readouterr().err


LAID_OVER = {  # a policy's configuration
    "tasks/defend_the_line": ["doom"],
    "experiments/causality_150m": ["150m"],
    "experiments/frozen_encoder": ["150m", "experiments/causality_150m"],
}


OF_OTHER_COMMANDS = ("experiments/toy", "scaling/")


@pytest.mark.parametrize("name", [n for n in configs.names() if not n.startswith(OF_OTHER_COMMANDS)])
def test_every_shipped_config_parses_and_names_itself(name, capsys):
    under = [word for base in LAID_OVER.get(name, []) for word in ("--config", base)]
    init_from = ["--model.init_from", "org/name"] if name == "finetune" else []
    with pytest.raises(SystemExit) as exit:
        bczoo("fit", *under, "--config", name, *init_from, "--print_config")
    assert exit.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    families = {"finetune": "FineTune", "bc_cnn": "CNNPolicy", "bc_cnn_quickstart": "CNNPolicy"}
    families |= dict.fromkeys(("idm", "idm_doom"), "InverseDynamics")
    families |= dict.fromkeys(("vqvae", "vqvae_small"), "VQVAE") | {"vqgan": "VQGAN", "vqgan_540": "ViTVQGAN"}
    token_models = {"bc_token": "TokenPolicy", "wm_token": "WorldModel"}
    family = token_models.get(name[:8], families.get(name, "BCPolicy"))
    assert config["model"]["class_path"] == f"bczoo.{family}"
    folder = name.replace("/", "_") if name[:8] in token_models else name.split("/")[-1]
    assert config["trainer"]["default_root_dir"] == f"runs/{folder}"
    if name.startswith("experiments/"):
        assert config["data"]["init_args"]["fraction"] == 0.06
        assert config["model"]["init_args"]["encoder"]["init_args"]["frozen"] == (name == "experiments/frozen_encoder")
        callbacks = {c["class_path"] for c in config["trainer"]["callbacks"]}
        assert {"bczoo.CausalityScore", "bczoo.AttentionMaskCheck", "bczoo.ResumableCheckpoint"} <= callbacks


def test_sizes_differ_only_in_numbers():
    def shape(value):
        if isinstance(value, dict):
            return {k: shape(v) for k, v in value.items()}
        if isinstance(value, list):
            return [shape(v) for v in value]
        return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value

    loaded = {
        n: (configs.FOLDER / f"{n}.yaml").read_text().replace(n, "SIZE") for n in ("150m", "300m", "600m", "1.2b")
    }
    shapes = [shape(yaml.safe_load(text)) for text in loaded.values()]
    assert all(s == shapes[0] for s in shapes)


def test_without_data_the_error_says_how_to_get_some(here, capsys):
    assert bczoo("fit", "--config", "600m", *QUIET) == 1
    assert "bczoo record --env" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--data.batchsize", "batch_size"),
        ("--model.encoder.init_args.frosen", "frozen"),
        ("--trainer.max_stpes", "max_steps"),
    ],
)
def test_unknown_options_get_a_suggestion(option, meant, capsys):
    with pytest.raises(SystemExit) as exit:
        bczoo("fit", "--config", "tiny", option, "1")
    assert exit.value.code == 2 and re.search(f"Did you mean '.*{meant}'", capsys.readouterr().err)


def test_a_part_that_cannot_be_built_is_told_in_one_line(recordings, here, capsys):
    assert fit(recordings, "--model.transformer.init_args.heads", 5) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("bczoo: width 64, heads 5")


def test_unknown_config_gets_a_suggestion(capsys):
    assert bczoo("fit", "--config", "60m") == 1
    assert "did you mean '600m'" in capsys.readouterr().err


def test_fit_validate_test_predict(recordings, here, capsys):
    assert fit(recordings) == 0
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    assert bczoo("validate", *common) == 0
    assert "val/perplexity/keys" in capsys.readouterr().out
    assert bczoo("test", *common) == 0
    assert "test/accuracy/mouse_dx" in capsys.readouterr().out
    assert bczoo("predict", *common) == 0
    rows = load_file("runs/tiny/predictions.safetensors")
    assert (rows["recording"] >= 0).all()
    assert rows["ids.keys"].shape[1:] == (8, 4) and len(rows["recording"]) == len(rows["ids.keys"])
    assert ((rows["probability.keys"] > 0) & (rows["probability.keys"] <= 1)).all()
    policy = BCPolicy.load_from_checkpoint("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert policy.config["window"] == 8
    policy.agent().step(np.zeros((96, 96, 3), np.uint8))


def test_a_second_run_starts_anew_and_keeps_the_first(recordings, here):
    fit(recordings)
    first = weights()
    assert Path("runs/tiny/checkpoints/finished").exists()
    assert fit(recordings, "--seed_everything", 1) == 0
    second = weights()
    assert any(not torch.equal(first[k], second[k]) for k in first)
    (kept,) = Path("runs/tiny/checkpoints").glob("before-*.ckpt")
    assert all(torch.equal(weights(kept)[k], first[k]) for k in first)


def test_a_run_that_ran_out_of_time_can_be_resumed(recordings, here, capsys):
    """And ends as one that had the time."""
    long = ["--trainer.max_steps", 12, "--trainer.default_root_dir", "runs/long"]
    assert fit(recordings, *long) == 0
    timed = ["--trainer.max_steps", 12, "--trainer.callbacks+=command_line.OutOfTime"]
    assert fit(recordings, *timed) == 0
    left = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 0 < left < 12 and not Path("runs/tiny/checkpoints/finished").exists()
    capsys.readouterr()
    assert fit(recordings, "--trainer.max_steps", 12) == 0
    assert "resuming the interrupted run" in capsys.readouterr().out
    assert Path("runs/tiny/checkpoints/finished").exists()
    resumed, expected = weights(), weights("runs/long/checkpoints/last.ckpt")
    assert all(torch.equal(resumed[k], expected[k]) for k in expected)


def test_an_interrupted_run_of_another_policy_is_not_resumed(recordings, here, capsys):
    with pytest.raises(crash.PowerCut):
        fit(recordings, "--trainer.callbacks+=crash.CrashAtTheEnd")
    assert fit(recordings, "--model.transformer.init_args.layers", 3) == 1
    assert "transformer.init_args.layers: 2 -> 3" in capsys.readouterr().err
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    assert bczoo("validate", *common, "--model.decoder", "bczoo.IndependentHeads") == 1
    assert "ActionDecoder -> bczoo.IndependentHeads" in capsys.readouterr().err
    assert fit(recordings, "--model.transformer.init_args.layers", 3, "--trainer.default_root_dir", "runs/other") == 0
    assert Path("runs/other/checkpoints/last.ckpt").exists()
    assert fit(recordings, "--model.transformer.init_args.layers", 3, "--ckpt_path", "null") == 0
    assert len(list(Path("runs/tiny/checkpoints").glob("before-*.ckpt"))) == 1


def test_interrupted_after_training_nothing_is_trained_again(recordings, here, capsys):
    """What comes after training (the closing games) may be interrupted too; the run goes on behind the training."""
    with pytest.raises(crash.PowerCut):
        fit(recordings, "--trainer.callbacks+=crash.CrashAtTheEnd")
    trained = weights()
    fit(recordings, "--seed_everything", 1)
    assert "resuming the interrupted run" in capsys.readouterr().out
    assert all(torch.equal(weights()[k], trained[k]) for k in trained)
    assert Path("runs/tiny/checkpoints/finished").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(recordings, here, capsys, workers):
    """Crash before step 5, in the middle of an epoch; the last checkpoint is of step 4. Dropout is on."""
    options = ["--data.num_workers", workers, "--trainer.callbacks.every_n_train_steps", 2]
    fit(recordings, *options)
    expected = weights()
    Path("runs/tiny/checkpoints/last.ckpt").unlink()
    with pytest.raises(crash.PowerCut):
        fit(recordings, *options, "--trainer.callbacks+=crash.CrashAt", "--trainer.callbacks.step=5")
    assert torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    capsys.readouterr()
    fit(recordings, *options)
    assert "resuming the interrupted run" in capsys.readouterr().out
    resumed = weights()
    assert all(torch.equal(resumed[k], expected[k]) for k in expected)


def test_the_command_line_overrides_what_a_checkpoint_says(recordings, here):
    fit(recordings)
    path = "runs/tiny/checkpoints/last.ckpt"
    assert (
        bczoo(
            "validate", "--config", "tiny", "--data.root", recordings, "--ckpt_path", path, "--model.window", 4, *QUIET
        )
        == 0
    )
    saved = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert saved["model"]["init_args"]["window"] == 8
    hparams = torch.load(path, weights_only=True)["hyper_parameters"]
    assert json.loads(json.dumps(hparams)) == hparams


def test_any_number_of_steps_with_a_schedule(recordings, here):
    assert fit(recordings, "--model.lr_scheduler", "bczoo.WarmupCosine", "--trainer.max_steps", 9) == 0
    rates = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"][0]["_last_lr"]
    assert rates == [pytest.approx(0, abs=1e-9)]


def test_a_missing_checkpoint_is_told(recordings, here, capsys):
    common = ["--config", "tiny", "--data.root", recordings, *QUIET]
    assert bczoo("validate", *common) == 1
    assert "train first" in capsys.readouterr().err
    assert bczoo("validate", *common, "--ckpt_path", "nowhere.ckpt") == 1
    assert "nowhere.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decoder", "more"),
    [
        ("bczoo.BackboneHeads", []),
        ("bczoo.IndependentHeads", []),
        ("bczoo.ActionDecoder", ["--model.encoder.frozen", "true"]),
    ],
)
def test_ablations_train_by_yaml(recordings, here, decoder, more):
    assert fit(recordings, "--model.decoder", decoder, *more, "--trainer.max_steps", 1) == 0


def test_data_check_and_view(recordings, here, capsys):
    assert bczoo("data", "check", recordings) == 0
    out = capsys.readouterr().out
    assert re.search(r"\b6 recordings\b", out) and "360" in out, out  # six of sixty steps
    assert bczoo("data", "view", recordings / "rec_0", "--out", "clip.mp4") == 0
    drawn = list(iterate_frames(Path("clip.mp4")))
    assert len(drawn) == 61 and drawn[0].ndim == 3  # sixty steps, and the frame that the last one led to


def test_record_and_its_errors(here, capsys):
    options = ["--env", "doom/basic", "--agent", "expert", "--episodes", 1, "--out", "my_game", "--size", 96]
    assert bczoo("record", *options) == 0
    assert len(list(Path("my_game").glob("*/annotation.proto"))) == 1
    assert bczoo("record", "--env", "doom/basik", "--out", "x") == 1
    assert "doom/basic" in capsys.readouterr().err
