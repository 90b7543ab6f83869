"""Fine-tuning from the command line, as a user types it."""

import json
import re
import sys
from pathlib import Path

import crash
import numpy as np
import pytest
import torch
import yaml

from bczoo import BCPolicy, FineTune, TextEncoder
from bczoo.cli import main
from bczoo.data.recording import RecordingWriter

QUIET = [
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu",
    "--trainer.num_sanity_val_steps", "0",
]  # fmt: skip
LAST = "runs/finetune/checkpoints/last.ckpt"
WITH_R = ["--model.action_space", "{name: keyboard_mouse, extra_keys: [r]}"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bczoo"])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(folder, steps=40, size=96, fps=20.0, key="w", text=None, embedding=None, changes=True):
    rng = np.random.default_rng(steps)
    with RecordingWriter(folder, size=size, fps=fps) as writer:
        for t in range(steps):
            frame = np.full((size, size, 3), (t * 4) % 256, np.uint8)
            frame[:, : size // 2] = rng.integers(0, 256)
            user = {"keys": [key] if t % 3 or not changes else [], "mouse_dx": int(t % 7) - 3 if changes else 0}
            writer.add(frame, user=user, text=text, text_embedding=embedding)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Six recordings that fit the source policy."""
    root = tmp_path_factory.mktemp("recordings")
    for i in range(6):
        record(root / f"rec_{i}", steps=40 + i)
    return root


def bczoo(*arguments):
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    """A trained policy whose preprocessing and sizes are not the defaults: the folder of its run."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bczoo"])
        status = bczoo(
            "fit", "--config", "tiny", "--data.root", recordings, "--data.batch_size", 4, "--trainer.max_steps", 3,
            "--trainer.val_check_interval", 3, "--trainer.default_root_dir", folder, *QUIET,
            "--model.encoder.init_args.drop_path", 0, "--model.resize", "bilinear", "--model.window", 6,
            "--model.z_loss", "1e-3", "--model.text_dim", 16, "--model.thinking_tokens", 2,
        )  # fmt: skip
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def source(run, tmp_path_factory):
    """The same policy as a published folder."""
    folder = tmp_path_factory.mktemp("published") / "source"
    assert bczoo("export", run, folder) == 0
    return folder


def finetune(source, root, *more, steps=4):
    return bczoo(
        "fit", "--config", "finetune", "--model.init_from", source, "--data.root", root, "--data.batch_size", 4,
        "--data.num_workers", 0, "--trainer.max_steps", steps, "--trainer.val_check_interval", 2, *QUIET, *more,
    )  # fmt: skip


def weights(path=LAST):
    return torch.load(path, weights_only=True)["state_dict"]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def one_line(capsys) -> str:
    """What was told on the error stream; anything but one line of ours fails."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"INFO|Seed set", line)]
    (line,) = [line for line in lines if line.startswith("bczoo: ")]
    assert lines[-1] == line and "Traceback" not in "".join(lines)
    return line


# ---------------------------------------------------------------------------------------------------- what comes out


def test_architecture_and_preprocessing_are_the_sources(source, recordings, capsys):
    capsys.readouterr()
    assert finetune(source, recordings) == 0
    out = capsys.readouterr().out
    before, after = BCPolicy.from_pretrained(source), BCPolicy.from_pretrained("runs/finetune")
    assert type(after) is BCPolicy and after.config == before.config
    assert (after.config["resize"], after.config["window"], after.config["thinking_tokens"]) == ("bilinear", 6, 2)
    assert re.search(r"(\d+) of \1 weights carried over", out)
    assert "the recordings fit the policy" in out and "differ" not in out
    changed = {n.split(".")[0] for n, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[n])}
    assert changed == {"transformer", "decoder", "tokens", "action_embedding"}  # the encoder is frozen for 200 steps
    record = json.loads(Path("runs/finetune/record.json").read_text())
    assert record["init_from"] == str(source) and record["training"]["steps"] == 4
    assert bczoo("export", "runs/finetune", "mine") == 0
    assert f"started from `{source}`" in Path("mine/README.md").read_text()
    assert same(BCPolicy.from_pretrained("mine").state_dict(), after.state_dict())


def test_only_what_was_asked_for_is_another(source, recordings):
    assert finetune(source, recordings, *WITH_R, "--model.window", 4, steps=1) == 0
    before, after = BCPolicy.from_pretrained(source), BCPolicy.from_pretrained("runs/finetune")
    assert {k for k in before.config if before.config[k] != after.config[k]} == {"action_space", "window"}
    assert after.config["window"] == 4 and after.action_space.groups[0].names[-1] == "r"


def test_every_kind_of_source_is_the_same_policy(run, source):
    sources = [FineTune(str(s)) for s in (source, run, run / "checkpoints", run / "checkpoints" / "last.ckpt")]
    for policy in sources[1:]:
        assert policy.config == sources[0].config and same(policy.state_dict(), sources[0].state_dict())


def test_evaluation_of_a_fine_tuned_policy(source, recordings, capsys):
    """validate, test and predict take the same options as fit, and the last checkpoint."""
    assert finetune(source, recordings, *WITH_R, "--model.lora.rank", 2, steps=2) == 0
    trained = json.loads(Path("runs/finetune/record.json").read_text())["metrics"]
    common = [
        "--config", "finetune", "--model.init_from", source, "--data.root", recordings, "--data.num_workers", 0,
        "--data.batch_size", 4, *QUIET, *WITH_R, "--model.lora.rank", 2,
    ]  # fmt: skip
    assert bczoo("validate", *common) == 0
    again = json.loads(Path("runs/finetune/record.json").read_text())
    assert again["metrics"] == trained and again["init_from"] == str(source)
    assert bczoo("test", *common) == 0
    assert json.loads(Path("runs/finetune/record.json").read_text())["test_metrics"]["test/loss"] == trained["val/loss"]
    assert bczoo("predict", *common) == 0
    assert Path("runs/finetune/predictions.safetensors").is_file()


def test_evaluation_under_another_scale_is_refused(source, recordings, capsys):
    """The scale of the matrices is no weight, so it has to be given again; another one would be another policy."""
    assert finetune(source, recordings, "--model.lora.rank", 2, steps=2) == 0
    before = Path("runs/finetune/record.json").read_text()
    common = ["--config", "finetune", "--model.init_from", source, "--data.root", recordings, *QUIET]
    common += ["--data.num_workers", 0, "--model.lora.rank", 2]
    capsys.readouterr()
    assert bczoo("validate", *common, "--model.lora.alpha", 32) == 1
    assert "alpha: 16 -> 32" in one_line(capsys)
    assert Path("runs/finetune/record.json").read_text() == before
    assert bczoo("validate", *common, "--model.freeze", "null") == 0  # which changes nothing about the policy


@pytest.mark.parametrize("lora", [["--model.lora.rank", 2], ["--model.lora", "{rank: 2, alpha: 4}"]], ids=len)
def test_lora(source, recordings, lora):
    assert finetune(source, recordings, *lora, steps=2) == 0
    held = weights()
    assert {len(v) for n, v in held.items() if ".lora_A." in n} == {2}
    before, after = BCPolicy.from_pretrained(source), BCPolicy.from_pretrained("runs/finetune")
    assert after.config == before.config
    name = "transformer.blocks.0.attention.qkv"
    a, b = (held[f"{name}.lora_{x}.default.weight"] for x in "AB")
    scale = 8 if "rank" in lora[0] else 2  # alpha is 16 unless it is given
    assert b.abs().max() > 0
    merged = before.state_dict()[f"{name}.weight"] + scale * (b @ a)
    torch.testing.assert_close(after.state_dict()[f"{name}.weight"], merged)


def test_a_new_key_is_learned(source, tmp_path, capsys):
    for i in range(3):
        record(tmp_path / "data" / f"rec_{i}", key="r")
    capsys.readouterr()
    assert finetune(source, "data", *WITH_R) == 0
    out = capsys.readouterr().out
    assert "20 of 21 choices carried over; fresh: r" in out and "the recordings fit the policy" in out
    before, after = BCPolicy.from_pretrained(source), BCPolicy.from_pretrained("runs/finetune")
    head, table = (after.state_dict()[n] for n in ("decoder.heads.keys.weight", "action_embedding.tables.keys.weight"))
    assert len(head) == len(table) == 21
    start = FineTune(str(source), action_space={"name": "keyboard_mouse", "extra_keys": ["r"]}).state_dict()
    assert torch.equal(start["decoder.heads.keys.weight"][:20], before.state_dict()["decoder.heads.keys.weight"])
    # the bias of what was pressed grows and those of what never was shrink
    moved = after.state_dict()["decoder.heads.keys.bias"] - start["decoder.heads.keys.bias"]
    never = [i for i, k in enumerate(after.action_space.groups[0].names) if k not in ("r", "_no_key")]
    assert (moved[:20] != 0).all() and (moved[never] < 0).all()
    decision = after.agent().step(np.zeros((96, 96, 3), np.uint8))
    assert len(decision.probabilities["keys"][0]) == 21


class Words(TextEncoder):
    """Embeddings without a language model."""

    def __init__(self, width: int = 16) -> None:
        self.width = width

    def __call__(self, texts):
        return torch.full((len(texts), self.width), 0.5)


def test_an_instruction_from_the_command_line(source, recordings):
    words = ["--model.text_encoder", f"{__name__}.Words", "--model.instruction", "go to the red door"]
    assert finetune(source, recordings, *words, steps=1) == 0
    before, after = BCPolicy.from_pretrained(source), BCPolicy.from_pretrained("runs/finetune")
    assert after.config == before.config | {"text_encoder": Words().spec}
    name = "tokens.text_projection.weight"  # which no recording has anything to teach
    assert not torch.equal(after.state_dict()[name], before.state_dict()[name])


# ---------------------------------------------------------------------------------------------------- what is told


def table(out) -> dict[str, list[str]]:
    """Rows of the table of differences by their first cell."""
    lines = out.split("the recordings and the policy differ:\n")[1].splitlines()
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| ") and "---" not in line
    ]
    return {row[0]: row[1:] for row in cells}


def test_what_does_not_fit_is_told_before_training(source, tmp_path, capsys):
    root = tmp_path / "data"
    for i in range(4):
        record(root / f"small_{i}", size=64)
    record(root / "fits")
    record(root / "slow", fps=10.0)
    record(root / "other_keys", key="LeftControl")
    record(root / "spoken", text="go")
    capsys.readouterr()
    with pytest.raises(crash.PowerCut), pytest.warns(UserWarning, match="LeftControl"):
        finetune(source, root, "--trainer.callbacks+=crash.CrashAt", "--trainer.callbacks.step=0")
    rows = table(capsys.readouterr().out)
    assert rows.pop("") == ["policy", "recordings", "what happens"]
    assert rows == {
        "frame size": ["96x96", "64x64 (4 recordings)", "resized (bilinear)"],
        "rate": ["20 a second", "10 a second (1 recordings)", "resampled"],
        "keys": ["not known", "keys:LeftControl (26 steps)", "not learned; model.action_space can add them"],
        "text": ["16 values", "1 instructions without", "not seen"],
    }


def test_what_differs_does_not_hinder(source, tmp_path, capsys):
    root = tmp_path / "data"
    for i in range(3):
        record(root / f"small_{i}", size=64)
    assert finetune(source, root, steps=1) == 0
    assert list(table(capsys.readouterr().out)) == ["", "frame size"]


def test_recordings_too_slow_to_be_resampled_alone_end_it(source, tmp_path, capsys):
    record(tmp_path / "data" / "slow", fps=1.0)
    with pytest.warns(UserWarning, match="recorded at 1 frames per second"):
        assert finetune(source, "data") == 1
    assert "no recording is usable" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.freeze", "{encodr: 3}"], ["freeze", "'encodr'", "encoder, transformer, decoder, embeddings"]),
        (["--model.freeze.encodr", "3"], ["freeze", "'encodr'", "encoder, transformer, decoder, embeddings"]),
        (["--model.learning_rate", "{heads: 1e-3}"], ["learning_rate", "'heads'", "encoder, transformer"]),
        (["--model.lora", "{rank: 2, layers: [qvk]}"], ["layers", "'qkv'", "qvk"]),
        (["--model.lora.rank", "0"], ["rank of at least 1"]),
        (["--model.freeze", "{transformer: true}", "--model.lora.rank", "2"], ["freeze names the transformer"]),
        (["--model.action_space", "gamepat"], ["'gamepat'", "gamepad"]),
        (["--model.text_dim", "24"], ["tokens.text_projection.weight"]),
        (["--model.instruction", "go"], ["'go'", "text_encoder"]),
    ],
    ids=lambda v: " ".join(v) if v[0].startswith("--") else "",
)
def test_what_cannot_be_is_told_in_one_line(options, told, source, recordings, capsys):
    assert finetune(source, recordings, *options) == 1
    line = one_line(capsys)
    assert all(words in line for words in told), line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--model.init_form", "init_from"), ("--model.lora.rnk", "rank"), ("--model.learning_rates", "learning_rate")],
)
def test_unknown_options_get_a_suggestion(option, meant, source, recordings, capsys):
    with pytest.raises(SystemExit) as exit:
        finetune(source, recordings, option, "1")
    assert exit.value.code == 2 and re.search(f"Did you mean '.*{meant}'", capsys.readouterr().err)


def test_without_a_source_the_option_is_named(recordings, capsys):
    assert bczoo("fit", "--config", "finetune", "--data.root", recordings, *QUIET) == 1
    assert "--model.init_from" in one_line(capsys)


def test_a_source_that_is_not_there_is_told(source, recordings, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.ckpt").write_text("no checkpoint")
    typo = source.with_name("soruce")
    for name, told in {
        "nowhere.ckpt": ["'nowhere.ckpt'", "a .ckpt file"],
        "runs/nowhere": ["'runs/nowhere'", "a run"],
        str(typo): [str(typo), f"did you mean {source}?"],
        str(tmp_path / "empty"): ["empty holds no policy", "config.json", "checkpoints/last.ckpt"],
        "notes.ckpt": ["notes.ckpt"],
    }.items():
        assert finetune(name, recordings) == 1
        line = one_line(capsys)
        assert all(words in line for words in told), line
    assert not Path("runs").exists()


# ---------------------------------------------------------------------------------------------------- interruptions

EVERY_TWO = ["--trainer.callbacks.every_n_train_steps", 2]
THAWING = ["--model.freeze", "{encoder: 3}"]


def interrupted(source, root, *options, at, steps=6):
    with pytest.raises(crash.PowerCut):
        finetune(
            source, root, *options, "--trainer.callbacks+=crash.CrashAt", f"--trainer.callbacks.step={at}", steps=steps
        )


@pytest.fixture(scope="module")
def uninterrupted(source, recordings, tmp_path_factory):
    """Final weights by the options of a run that nothing interrupted."""
    known = {}

    def of(options):
        key = tuple(map(str, options))
        if key not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            assert finetune(source, recordings, *options, "--trainer.default_root_dir", folder, steps=6) == 0
            known[key] = weights(folder / "checkpoints" / "last.ckpt")
        return known[key]

    return of


@pytest.mark.parametrize(
    ("options", "at", "moved"),
    [(THAWING, 3, False), (THAWING, 5, True), (["--model.lora.rank", 2, "--model.lora.dropout", 0.1], 5, False)],
    ids=["before thawing", "after thawing", "lora"],
)
def test_an_interrupted_one_ends_as_if_it_had_not_been(
    options, at, moved, source, recordings, uninterrupted, capsys
):  # fmt: skip
    """The last checkpoint is the one before the interruption: of step 2, or of step 4. Dropout is on."""
    options, name = [*options, *EVERY_TWO], "encoder.project.weight"
    expected = uninterrupted(options)
    interrupted(source, recordings, *options, at=at)
    assert torch.load(LAST, weights_only=True)["global_step"] == at - 1
    assert torch.equal(weights()[name], BCPolicy.from_pretrained(source).state_dict()[name]) != moved
    capsys.readouterr()
    assert finetune(source, recordings, *options, steps=6) == 0
    assert "resuming the interrupted run" in capsys.readouterr().out
    assert same(weights(), expected)
    assert torch.equal(expected[name], BCPolicy.from_pretrained(source).state_dict()[name]) == ("lora" in options[0])


def test_a_finished_fine_tuning_starts_from_its_source_again(source, recordings, capsys):
    assert finetune(source, recordings, steps=2) == 0
    first = weights()
    capsys.readouterr()
    assert finetune(source, recordings, steps=2) == 0
    assert "has finished; a new one starts" in capsys.readouterr().out
    assert same(weights(), first)  # the same seed from the same weights
    (kept,) = Path("runs/finetune/checkpoints").glob("before-*.ckpt")
    assert same(weights(kept), first)


def test_a_fine_tuned_policy_can_be_fine_tuned_again(source, recordings):
    """In two stages, the second from the run of the first, LoRA merged."""
    assert finetune(source, recordings, "--model.lora.rank", 2, steps=1) == 0
    first = BCPolicy.from_pretrained("runs/finetune").state_dict()
    second = ["--trainer.default_root_dir", "runs/second", "--model.freeze", "{transformer: true, encoder: true}"]
    assert finetune("runs/finetune", recordings, *second, steps=1) == 0
    after = BCPolicy.from_pretrained("runs/second").state_dict()
    kept = {n for n in first if n.startswith(("transformer.", "encoder."))}
    assert same({n: first[n] for n in kept}, {n: after[n] for n in kept}) and not same(first, after)


TWO_RANKS = ["--model.lora.rank", 2]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([], ["--model.lora.rank", 4]),
        (TWO_RANKS, []),
        (TWO_RANKS, [*TWO_RANKS, "--model.lora.alpha", 32]),
        ([], ["--model.freeze", "{encoder: true}"]),
        ([], ["--model.learning_rate", "{decoder: 1e-3}"]),
        ([], WITH_R),
        ([], ["--model.init_from", "another"]),
    ],
    ids=["lora", "no lora", "scale", "freeze", "groups", "keys", "source"],
)
def test_an_interrupted_one_is_not_resumed_as_another(first, then, source, run, recordings, capsys):
    """What is trained, or from what, is another thing, so the checkpoint does not fit; what differs is told."""
    if "another" in then:
        policy = BCPolicy.from_pretrained(source)
        policy.decoder.heads["keys"].bias.data += 1
        policy.save_pretrained("another")
    interrupted(source, recordings, *EVERY_TWO, *first, at=3)
    capsys.readouterr()
    assert finetune(source, recordings, *EVERY_TWO, *then) == 1
    line = one_line(capsys)
    assert LAST in line and "()" not in line and "--ckpt_path null" in line
    assert finetune(source, recordings, *EVERY_TWO, *then, "--ckpt_path", "null", steps=1) == 0
    assert len(list(Path("runs/finetune/checkpoints").glob("before-*.ckpt"))) == 1


# ---------------------------------------------------------------------------------------------------- the YAML


def printed(capsys, *options):
    with pytest.raises(SystemExit) as exit:
        bczoo("fit", "--config", "finetune", "--model.init_from", "x", *options, "--print_config")
    assert exit.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]


def test_parts_are_set_one_by_one_or_together(capsys):
    assert printed(capsys)["freeze"] == {"encoder": 200}
    assert printed(capsys, "--model.freeze", "{transformer: true}")["freeze"] == {"transformer": True}
    assert printed(capsys, "--model.freeze", "null")["freeze"] is None
    one_step = printed(capsys, "--model.freeze.encoder", "1")["freeze"]["encoder"]
    assert one_step == 1 and one_step is not True  # which would be for ever
    assert printed(capsys, "--model.freeze.encoder", "true")["freeze"]["encoder"] is True
    assert printed(capsys, "--model.freeze.decoder", "true")["freeze"] == {"encoder": 200, "decoder": True}
    assert printed(capsys, "--model.lora.rank", "4")["lora"]["rank"] == 4


def test_a_record_stays_json_when_no_action_ever_changes(source, tmp_path):
    """Without change points there is no perplexity of them; the record must be readable elsewhere all the same."""
    for i in range(3):
        record(tmp_path / "data" / f"rec_{i}", changes=False)
    assert finetune(source, "data", "--data.val_fraction", 0.4, steps=2) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    metrics = json.loads(Path("runs/finetune/record.json").read_text(), parse_constant=refuse)["metrics"]
    assert metrics["val/perplexity/keys"] > 1
    assert bczoo("export", "runs/finetune", "mine") == 0
    json.loads(Path("mine/training.json").read_text(), parse_constant=refuse)
