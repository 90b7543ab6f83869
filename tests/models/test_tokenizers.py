"""Image tokenizers: ids and pictures, what is learned, measures, saving, going on, several processes."""

from __future__ import annotations

from functools import partial
from urllib.error import URLError

import lightning as L
import pytest
import tiny
import torch
from PIL import Image
from processes import several
from recordings import write_moving

from bczoo import VQGAN, VQVAE, Model, Policy, Reconstructions, RecordingDataModule, ResumableCheckpoint, ViTVQGAN
from bczoo.core.errors import UserError
from bczoo.core.spec import FILL, window_batch
from bczoo.models.tokenizer.discriminator import PatchDiscriminator, hinge
from bczoo.models.tokenizer.losses import Perceptual, pixel_distance
from bczoo.models.tokenizer.metrics import ReconstructionMetrics
from bczoo.train.flops import flops_per_window

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU|in eval mode)"),
]

TINY = {
    "vqvae": tiny.tiny_vqvae,
    "vqgan": partial(
        VQGAN,
        frame_size=16,
        codebook_size=32,
        channels=32,
        multipliers=[1, 1],
        blocks=1,
        code_width=8,
        perceptual="ssim",
    ),
    "vit": partial(
        ViTVQGAN,
        frame_size=[20, 30],
        patch=5,
        codebook_size=32,
        width=16,
        layers=1,
        heads=2,
        code_width=8,
        perceptual="none",
    ),
}


@pytest.fixture(params=TINY)
def make(request):
    def seeded(**arguments):
        torch.manual_seed(0)
        return tiny.filled(TINY[request.param](**arguments))

    return seeded


def frames_of(model, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *model.input_spec.shape), dtype=torch.uint8, generator=generator)


def batch_of(model, windows=3, steps=2, seed=0):
    return window_batch(frames_of(model, windows * steps, seed).unflatten(0, (windows, steps)), {})


@pytest.mark.parametrize(
    ("build", "millions", "grid"),
    [(VQGAN, 25.8, (16, 16)), (ViTVQGAN, 153, (18, 30))],
    ids=["256 tokens (the paper: 28M)", "540 tokens (the paper: 150M)"],
)
def test_the_sizes_that_are_stated(build, millions, grid):
    with torch.device("meta"):
        model = build()
    total = model.parameter_counts()["total"] / 1e6
    assert abs(total - millions) < 0.005 * millions and model.grid == grid and model.codebook_size == 4096


@pytest.mark.parametrize("tokens", [16, 36, 64, 100, 256])
def test_any_square_number_of_tokens(tokens):
    model = VQVAE(128, tokens, codebook_size=32, channels=8, code_width=4).eval()
    ids = model.encode(frames_of(model, 2))
    assert ids.shape == (2, tokens) and model.decode(ids).shape == (2, 3, 128, 128)


def test_ids_and_pictures(make):
    model = make()
    frames = frames_of(model)
    ids = model.encode(frames)
    assert ids.dtype == torch.int64 and ids.shape == (6, model.tokens)
    assert ids.min() >= 0 and ids.max() < model.codebook_size and len(ids.unique()) > 8
    pictures = model.decode(ids)
    assert pictures.dtype == torch.uint8 and pictures.shape == frames.shape
    made = model.reconstruct(frames, torch.ones(6, dtype=torch.bool))
    assert torch.equal(made.ids, ids)
    assert (model.to_frames(made.pixels).int() - pictures.int()).abs().max() <= 1


def test_a_picture_has_the_same_ids_alone_and_in_a_batch_and_while_training(make):
    model = make()
    frames = frames_of(model)
    together = model.encode(frames)
    assert torch.equal(torch.cat([model.encode(one) for one in frames.split(1)]), together)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert torch.equal(model.encode(frames), together) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(frames), together)


def test_tokens_lie_row_by_row():
    """18 x 30 and not 30 x 18: a picture that changes in one patch changes one token, where it should."""
    model = TINY["vit"](layers=1).eval()
    model.encoder.transformer.blocks = torch.nn.ModuleList()  # nothing is mixed between patches
    frames = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    frames[1, :, 5:10, 20:25] = 255  # second row of four, fifth column of six
    vectors = model._vectors(model.to_pixels(frames)).unflatten(0, (2, 24))
    assert (vectors[0] != vectors[1]).any(-1).nonzero().flatten().tolist() == [1 * 6 + 4]
    codes = model.quantiser.lookup(torch.zeros(2, 24, dtype=torch.long))
    codes[1, 10] += 1
    model.decoder.transformer.blocks = torch.nn.ModuleList()
    one, other = model._decoded(codes.flatten(0, 1))
    changed = (one != other).any(0).nonzero()
    assert changed.amin(0).tolist() == [5, 20] and changed.amax(0).tolist() == [9, 24]


def test_pictures_that_do_not_count_change_no_loss(make):
    model = make()
    batch = batch_of(model)
    batch["valid"] = batch["valid"].clone()
    batch["valid"][1, 1] = False
    loss = model.loss(batch)
    batch["frames"] = batch["frames"].clone()
    batch["frames"][1, 1] = 0
    assert loss.total.item() == pytest.approx(model.loss(batch).total.item(), rel=1e-6)
    shown = {**batch, "frames": batch["frames"][:1], "valid": batch["valid"][:1]}
    other = {**batch, "frames": batch["frames"][2:], "valid": batch["valid"][2:]}
    third = {**batch, "frames": batch["frames"][1:2, :1], "valid": batch["valid"][1:2, :1]}
    mean = (2 * model.loss(shown).total + 2 * model.loss(other).total + model.loss(third).total) / 5
    assert loss.total.item() == pytest.approx(mean.item(), rel=1e-5)
    batch["valid"][:] = False
    assert model.loss(batch).total == 0


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_pictures_are_learned(make, learning):
    """Eight pictures of two flat halves."""
    model = make(learning=learning).train()
    colours = torch.randint(0, 256, (8, 2, 3, 1, 1), dtype=torch.uint8, generator=torch.manual_seed(0))
    frames = colours[:, :1].repeat(1, 1, 1, *model.input_spec.shape)
    half = frames.shape[-1] // 2
    frames[..., half:] = colours[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(window_batch(frames, {}))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.parts[model.pixel].item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("kind", "said"), [("l1", 0.25), ("l2", 0.0625)])
def test_distances_of_pixels(kind, said):
    one = torch.zeros(2, 3, 4, 4)
    assert pixel_distance(one, one + 0.25, kind).tolist() == [said] * 2


def test_lpips_that_cannot_be_downloaded_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", offline)
    model = TINY["vqvae"](perceptual="lpips")
    with pytest.raises(UserError, match=r"no network.*--model\.perceptual ssim --model\.perceptual_weight 0\.1"):
        model.loss(batch_of(model))


def test_lpips_is_a_distance_and_in_no_checkpoint(monkeypatch):
    """With a random VGG16 in the place of the one that is downloaded."""
    from torchmetrics.functional.image import lpips

    build = lpips._get_tv_model_features
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: build(net, pretrained=False))
    model = TINY["vqgan"](frame_size=32, perceptual="lpips")
    names = set(model.state_dict())
    loss = model.loss(batch_of(model))
    loss.total.backward()
    assert loss.parts["lpips"] > 0 and set(model.state_dict()) == names
    one = torch.rand(2, 3, 32, 32)
    same = model.perceptual(one, one.clone())
    assert same.shape == (2,) and same.abs().max() < 1e-6


def test_measures():
    metrics = ReconstructionMetrics(8, Perceptual("none"))
    target = torch.rand(3, 3, 16, 16, generator=torch.manual_seed(0)) * 0.5
    ids = torch.tensor([[0, 1], [2, 3], [7, 7]])
    metrics.update(target + 0.1, target, ids, torch.tensor([True, True, False]))
    values = metrics.compute()
    assert values["psnr"].item() == pytest.approx(20, abs=1e-3)
    assert values["perplexity"].item() == pytest.approx(4) and values["codes_used"] == 0.5
    assert 0 < values["ssim"] < 1 and "lpips" not in values
    metrics.reset()
    metrics.update(target, target, ids, torch.ones(3, dtype=torch.bool))
    values = metrics.compute()
    assert values["psnr"].item() == pytest.approx(60) and values["ssim"].item() == pytest.approx(1)


# ---------------------------------------------------------------------- adversarial


def test_neither_side_learns_from_the_loss_of_the_other():
    torch.manual_seed(0)
    judge = PatchDiscriminator()
    made = torch.rand(2, 3, 32, 32, requires_grad=True)
    judge.judge(made).sum().backward()
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())
    hinge(judge, torch.rand(2, 3, 32, 32), made.detach()).sum().backward()
    assert all(p.grad is not None for p in judge.parameters())


def test_a_discriminator_counts_from_its_start_on(monkeypatch):
    model = TINY["vqgan"](frame_size=32, adversarial=0.8, adversarial_start=5).eval()
    plain = TINY["vqgan"](frame_size=32).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("discriminator")})
    batch = batch_of(model)
    before = model.loss(batch)
    assert before.total.item() == pytest.approx(plain.loss(batch).total.item())
    before.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.discriminator.parameters())
    monkeypatch.setattr(type(model), "global_step", 5)
    after = model.loss(batch)
    parts = after.parts
    assert after.total.item() == pytest.approx(
        (before.total + 0.8 * parts["adversarial"] + parts["discriminator"]).item(), rel=1e-5
    )
    with torch.no_grad():
        model.loss(batch)  # validation asks for no gradient


# ---------------------------------------------------------------------- training, saving


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_moving(tmp_path_factory.mktemp("recordings") / "my_game", 4, 24, size=64)


def fit(root, model, folder, steps=4, checkpoint=None, callbacks=(), **options):
    torch.manual_seed(3)
    data = RecordingDataModule(str(root), batch_size=4, val_fraction=0.3)
    quiet = tiny.QUIET | {"enable_checkpointing": True, "default_root_dir": folder}
    saver = ResumableCheckpoint(every_n_train_steps=2)
    trainer = L.Trainer(max_steps=steps, callbacks=[saver, *callbacks], **quiet | options)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return trainer


def test_fit_validates_shows_and_is_loaded_again(make, root, tmp_path):
    model = make(window=2)
    trainer = fit(root, model, tmp_path, callbacks=[Reconstructions(count=5, columns=3)], val_check_interval=2)
    values = trainer.callback_metrics
    assert {"val/loss", "val/psnr", "val/ssim", "val/perplexity", "val/codes_used"} <= set(values)
    height, width = model.input_spec.shape
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.size == (3 * (width + 2) + 2, 4 * (height + 2) + 2)  # two rows of each kind
    model.eval().save_pretrained(tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "image tokenizer" in card and f"{model.grid[0]} x {model.grid[1]} tokens" in card
    for source in (tmp_path / "exported", tmp_path):
        again = Model.from_pretrained(source)
        assert type(again) is type(model) and again.digest == model.digest
        assert torch.equal(again.encode(frames_of(model)), model.encode(frames_of(model)))
    with pytest.raises(UserError, match="which does not act"):
        Policy.from_pretrained(tmp_path / "exported")


def test_a_resumed_training_is_the_same_bit_by_bit(root, tmp_path):
    whole = tiny.tiny_vqvae(window=2)
    fit(root, whole, tmp_path / "whole")
    fit(root, tiny.tiny_vqvae(window=2), tmp_path / "half", steps=2)
    rest = tiny.tiny_vqvae(seed=8, window=2)
    fit(root, rest, tmp_path / "half", checkpoint=tmp_path / "half" / "checkpoints" / "last.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.quantiser.counts.sum() > 0


class KeepCodebook(L.Callback):
    """Writes what every process has in the end."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.quantiser.state_dict(), self.folder / str(trainer.global_rank))


@pytest.mark.slow
def test_two_processes_train_one_codebook(root, tmp_path):
    model = tiny.tiny_vqvae(window=2, adversarial=0.5, adversarial_start=2)
    fit(root, model, tmp_path, callbacks=[KeepCodebook(tmp_path)], **several(2))
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first) and first["counts"].sum() > 0


def test_other_weights_have_another_digest(make):
    model, twin = make(), make()
    assert model.digest == twin.digest
    other = make()
    with torch.no_grad():
        other.quantiser.codebook[0, 0] += 1
    assert other.digest != model.digest


def test_what_a_step_costs_is_known(make):
    assert flops_per_window(make(), 2) > 0


def test_an_empty_window_of_validation_counts_nothing(make):
    model = make()
    batch = batch_of(model)
    batch["valid"] = torch.zeros_like(batch["valid"])
    batch["recording"] = torch.full((3,), FILL)
    model.log = lambda *args, **kwargs: None
    model.evaluate(batch, "val")
    assert model.metrics["val"].count == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tokens": 17}, "tokens must be a square number"),
        ({"tokens": [4, 0]}, "tokens must be a whole number"),
        ({"tokens": 25}, "give a map of 4 x 4"),
        ({"frame_size": [32, 30]}, "multiple of 8 pixels on both sides, got 30 x 32"),
        ({"codebook_size": 2**17}, "codebook_size"),
        ({"pixel": "l3"}, "pixel"),
        ({"perceptual": "eyes"}, "perceptual"),
        ({"frame_size": 24, "tokens": 9, "adversarial": 0.8}, "at least 32 pixels"),
        ({"frame_size": [1, 2, 3]}, "frame_size must be a whole number, or a height and a width"),
    ],
)
def test_arguments_that_make_no_sense(wrong, said):
    with pytest.raises(UserError, match=said):
        tiny.tiny_vqvae(**wrong)


def test_frames_and_ids_of_another_shape_are_refused(make):
    model = make()
    with pytest.raises(UserError, match="uint8 frames of"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"ids have the shape \(N, "):
        model.decode(torch.zeros(1, 3, dtype=torch.long))
