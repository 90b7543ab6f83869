"""Ids of an image tokenizer on disk: written once, read in the place of videos, refused where they are others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from recordings import write_moving
from synthetic import damage

from bczoo import VQVAE
from bczoo.core.errors import UserError
from bczoo.core.spec import InputSpec
from bczoo.data import features_build
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.module import RecordingDataModule
from bczoo.data.tokens import stored_tokens, tokens_of
from bczoo.models.model import Model
from bczoo.models.tokenizer.command import tokenize
from bczoo.train.loss import Loss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU)"),
]


class Counts(Model):
    """A model that reads ids, and sees what it got."""

    supervision = "none"
    fields = ("tokens",)

    def __init__(self, tokenizer, fields=("tokens",), fps=20.0) -> None:
        super().__init__(InputSpec(None, tokenizer.input_spec.frame_size, fps, 5, None))
        self.tokenizer, self.fields, self.batches = tokenizer, fields, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def setup(self, stage):
        pass

    def loss(self, batch):
        self.batches.append(batch)
        return Loss(self.weight * 0, {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "vqvae"
    tiny.tiny_vqvae().save_pretrained(folder)
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_moving(tmp_path / "my_game", 3, 29, size=64)


def rows(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("tokens.npy")}


def fit(root, tokenizer, **options):
    import lightning as L

    model = Counts(tokenizer, **options)
    module = RecordingDataModule(str(root), batch_size=2, val_fraction=0.0)
    L.Trainer(max_epochs=1, limit_val_batches=0, **tiny.QUIET).fit(model, module)
    return model


def test_a_model_reads_the_ids_of_its_frames_and_no_video(root, exported, monkeypatch):
    result = tokenize(str(exported), str(root))
    assert (result.recordings, result.kept, result.frames) == (3, 0, 3 * 30)
    model = VQVAE.from_pretrained(exported)
    index = open_index(root, None, 20.0, None)
    videos = WindowDataset(index, 5, 32)
    monkeypatch.setattr("bczoo.data.dataset.read_into", None)
    batches = fit(root, model).batches
    monkeypatch.undo()
    assert len(batches) > 5
    for batch in batches:
        assert "frames" not in batch and batch["tokens"].dtype == torch.int64 and batch["tokens"].shape == (2, 5, 16)
        keys = list(zip(batch["recording"].tolist(), batch["start"].tolist(), strict=True))
        shown = videos.__getitems__(keys)
        assert torch.equal(shown["valid"], batch["valid"])
        assert torch.equal(model.encode(shown["frames"].flatten(0, 1)).unflatten(0, (2, 5)), batch["tokens"])
    assert len(torch.cat([batch["tokens"].flatten() for batch in batches]).unique()) > 1


def test_a_model_may_ask_for_both(root, exported):
    tokenize(str(exported), str(root))
    model = fit(root, VQVAE.from_pretrained(exported), fields=("frames", "tokens"))
    batch = model.batches[0]
    ids = model.tokenizer.encode(batch["frames"].flatten(0, 1))
    assert torch.equal(ids.unflatten(0, (2, 5)), batch["tokens"])


def test_ids_of_another_tokenizer_are_refused(root, exported):
    tokenize(str(exported), str(root))
    other = tiny.tiny_vqvae(seed=1)
    own = VQVAE.from_pretrained(exported).digest
    message = (
        rf"3 of 3 recordings, such as rec_0, have no ids of this model's tokenizer \({other.digest}\); there are "
        rf"ids of {own} \(bczoo\.VQVAE, 16 tokens\)\. Run: bczoo tokenize TOKENIZER .*my_game$"
    )
    with pytest.raises(UserError, match=message):
        fit(root, other)
    with pytest.raises(UserError, match=r"TOKENIZER .*my_game --fps 10"):
        fit(root, VQVAE.from_pretrained(exported), fps=10.0)
    with pytest.raises(UserError, match="has to hold the tokenizer"):
        tokens_of(open_index(root, None, 20.0, None), np.arange(3), object(), 20.0)
    assert tokenize(str(exported), str(root), fps=10.0).frames == 3 * 15
    fit(root, VQVAE.from_pretrained(exported), fps=10.0)


def test_ids_of_a_video_that_has_changed_are_not_read(root, exported):
    tokenize(str(exported), str(root))
    video = next((root / "rec_0").glob("*.mp4"))
    video.write_bytes(next((root / "rec_1").glob("*.mp4")).read_bytes())
    with pytest.raises(UserError, match=r"1 of 3 recordings, such as rec_0, .*they are new, or their videos"):
        fit(root, VQVAE.from_pretrained(exported))
    result = tokenize(str(exported), str(root))
    assert (result.recordings, result.kept) == (1, 2)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
        (lambda path: np.save(path, np.zeros((30, 15), np.uint16)), r"it holds \(30, 15\)"),
        (lambda path: np.save(path, np.zeros((30, 16), np.int16)), "it holds int16"),
        (lambda path: path.write_bytes(b"no ids"), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["truncated", "another grid", "another type", "foreign", "gone"],
)
def test_a_broken_file_is_named(root, exported, spoil, said):
    tokenize(str(exported), str(root))
    for path in rows(root):
        spoil(path)
    with pytest.raises(UserError, match=rf"the tokens of recording rec_\d in .*{said}.*; remove that folder and run "):
        fit(root, VQVAE.from_pretrained(exported))


def test_an_interrupted_command_goes_on(root, exported, monkeypatch):
    add, calls = features_build.PartialFeatures.add, []

    def dying(self, rows, readable):
        calls.append(len(rows))
        if len(calls) == 8:  # within the third recording, which comes in three pieces
            raise KeyboardInterrupt
        add(self, rows, readable)

    monkeypatch.setattr(features_build, "CHUNK", 10)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features_build.PartialFeatures, "add", dying)
        tokenize(str(exported), str(root))
    kept = rows(root)
    assert len(kept) == 2 and not list(root.rglob(".*writing*"))
    result = tokenize(str(exported), str(root))
    assert (result.recordings, result.kept) == (1, 2) and kept.items() < rows(root).items()


def test_frames_that_cannot_be_read_do_not_count(root, exported):
    damage(next((root / "rec_1").glob("*.mp4")))
    with pytest.warns(UserWarning, match="it has no tokens there"):
        tokenize(str(exported), str(root))
    with pytest.warns(UserWarning, match="not learned from|no readable frame"):
        model = fit(root, VQVAE.from_pretrained(exported))
    assert not all(batch["valid"].all() for batch in model.batches)


def test_a_root_that_cannot_be_written_to_has_its_ids_in_the_cache(root, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "bczoo.data.tokens.os.access", lambda path, mode: tmp_path / "my_game" not in [path, *path.parents]
    )
    tokenize(str(exported), str(root))
    assert not rows(root) and len(rows(tmp_path / "cache")) == 3
    fit(root, VQVAE.from_pretrained(exported))


def test_what_made_the_ids_is_written_beside_them(root, exported):
    tokenize(str(exported), str(root))
    model = VQVAE.from_pretrained(exported)
    about = json.loads(next(root.rglob("about.json")).read_text())
    assert about["digest"] == model.digest and about["tokenizer"] == model.spec
    assert (about["tokens"], about["codebook_size"], about["frame_size"], about["resize"]) == (
        16,
        32,
        [32, 32],
        "hamming",
    )
    features = stored_tokens(open_index(root, None, 20.0, None), model)
    ids = np.load(features.path(0) / "tokens.npy")
    assert ids.shape == (30, 16) and ids.dtype == np.uint16


def test_several_roots_have_their_ids_beside_them(root, exported, tmp_path):
    second = shutil.copytree(root, tmp_path / "second")
    tokenize(str(exported), str(root))
    with pytest.raises(UserError, match=r"3 of 6 recordings.*tokenize TOKENIZER \S*second$"):
        fit_roots([root, second], exported)
    tokenize(str(exported), str(second))
    assert fit_roots([root, second], exported).batches


def fit_roots(roots, exported):
    import lightning as L

    model = Counts(VQVAE.from_pretrained(exported))
    module = RecordingDataModule([str(r) for r in roots], batch_size=2, val_fraction=0.0)
    L.Trainer(max_epochs=1, limit_val_batches=0, **tiny.QUIET).fit(model, module)
    return model
