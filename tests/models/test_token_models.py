"""BC-Token and WM-Token: the sequence, which targets count, sizes, what is held frozen (paper 2411.04434)."""

from __future__ import annotations

import lightning as L
import pytest
import tiny
import torch
from recordings import write_telling
from torch.utils.data import DataLoader

import bczoo
from bczoo import ActionSpace, RecordingDataModule, TokenPolicy, WorldModel
from bczoo.core.errors import UserError
from bczoo.models.model import Model
from bczoo.models.token.layout import TokenLayout
from bczoo.models.tokenizer.command import tokenize
from bczoo.train.callbacks.scaling import model_sizes
from bczoo.train.flops import batch_for, flops_per_window

pytestmark = pytest.mark.usefixtures("one_thread")


def same_weights(policy, world):
    world.transformer.load_state_dict(policy.transformer.state_dict())
    return policy.eval(), world.eval()


def test_the_vocabulary_of_the_paper():
    """12 buttons with a pair each from 4096 on, 4 axes of 11 from 4120 on: 4,164 ids, 16 action tokens."""
    layout = TokenLayout(ActionSpace.gamepad(), 540, 4096)
    assert layout.vocabulary == 4164 and layout.length == 556
    assert layout.offsets == [4096 + 2 * i for i in range(12)] + [4120 + 11 * j for j in range(4)]
    assert layout.legal(0) == layout.legal(539) == slice(0, 4096)
    assert layout.legal(540) == slice(4096, 4098) and layout.legal(555) == slice(4153, 4164)
    keyboard = TokenLayout(ActionSpace.keyboard_mouse(), 256, 4096)
    assert keyboard.vocabulary - 4096 == 4 * 20 + 2 * 4 + 23 + 17 and keyboard.space.tokens == 8


def test_pictures_come_before_the_actions_that_answer_them():
    layout = TokenLayout(ActionSpace.gamepad(), 3, 10)
    pictures, actions = torch.arange(6).view(1, 2, 3), torch.ones(1, 2, 16, dtype=torch.long)
    tokens = layout.steps(pictures, actions)
    assert tokens.shape == (1, 2, 19) and tokens[0, 1, :5].tolist() == [3, 4, 5, 11, 13]
    assert all(torch.equal(a, b) for a, b in zip(layout.apart(tokens), (pictures, actions), strict=True))


SIZES = {"15m": 14.74, "27m": 27.35, "52m": 51.90, "110m": 109.52, "206m": 205.81, "894m": 894.31}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("family", ["wm_token_256", "bc_token_540"])
def test_the_sizes_of_the_paper(name, family):
    """Millions of parameters as nanoGPT counts them, with the gamepad space; the tokenizer is none of them."""
    rows, columns = (16, 16) if family == "wm_token_256" else (18, 30)
    sizes = {"rows": rows, "columns": columns, "levels": 4096, "frame_size": 128}
    with torch.device("meta"):
        model = Model.from_config(
            f"{family}/{name}", tokenizer={"class_path": "tiny.Brightness", "init_args": sizes}, action_space="gamepad"
        )
    assert type(model) is (WorldModel if family == "wm_token_256" else TokenPolicy)
    counted = model_sizes(model)
    assert counted["params"] / 1e6 == pytest.approx(SIZES[name], rel=0.001)
    assert counted["tokens_per_frame"] == model.tokens_per_step == rows * columns + 16


def test_the_losses_of_both_add_up_to_that_of_all_counted_tokens():
    policy, world = same_weights(tiny.tiny_token_policy(), tiny.tiny_world())
    batch = tiny.tiny_batch(policy)
    tokens = policy.sequence(policy.encoded(batch), batch)
    with torch.no_grad():
        logits = policy.transformer.gpt(policy.transformer.table(tokens.flatten(1))) @ policy.transformer.table.weight.T
        nats = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens.flatten(1)[:, 1:].flatten(), reduction="none"
        )
        nats = torch.nn.functional.pad(nats.view(2, -1), (1, 0)).view(2, 5, 12)  # of every token but the first
        ours, theirs = policy.loss(batch), world.loss(batch)
    torch.testing.assert_close(ours.total, nats[:, :, 4:].mean())
    torch.testing.assert_close(theirs.total, nats[:, 1:, :4].mean())
    counted = ours.total * 2 * 5 * 8 + theirs.total * 2 * 4 * 4
    torch.testing.assert_close(counted, nats.sum() - nats[:, 0, :4].sum())
    torch.testing.assert_close(ours.parts["mouse_dx_ce"], nats[:, :, 10].mean())
    torch.testing.assert_close(theirs.parts["first_token_ce"], nats[:, 1:, 0].mean())
    torch.testing.assert_close(theirs.parts["later_tokens_ce"], nats[:, 1:, 1:4].mean())


def test_what_is_unknown_or_padding_does_not_count():
    policy, world = same_weights(tiny.tiny_token_policy(), tiny.tiny_world())
    batch = tiny.tiny_batch(policy)
    batch["user"][0, 2:] = False  # nobody knows these
    batch["system"][1, 1] = True
    batch["user"][1, 1] = False  # a policy's own
    batch["valid"][1, 4] = False
    full = {**batch, "user": torch.ones_like(batch["user"]), "valid": torch.ones_like(batch["valid"])}
    with torch.no_grad():
        all_steps = policy.loss({**full, "weight": torch.zeros(2, 5)}).total
        one_by_one = []
        for b, t in [(0, 0), (0, 1), (1, 0), (1, 2), (1, 3)]:
            weight = torch.zeros(2, 5)
            weight[b, t] = 1
            one_by_one.append(policy.loss({**full, "weight": weight}).total)
        torch.testing.assert_close(policy.loss(batch).total, torch.stack(one_by_one).mean())
    assert all_steps == 0
    assert world.counted(batch).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_a_corrected_step_counts_up_to_the_first_token_that_differs():
    policy = tiny.tiny_token_policy().eval()
    batch = tiny.tiny_batch(policy, batch=1)
    labels = {name: ids.clone() for name, ids in batch["actions"].items()}
    labels["keys"][0, 2, 1] = (labels["keys"][0, 2, 1] + 1) % 20
    with torch.no_grad():
        first = policy.loss({**batch, "labels": labels})
        for later in ("mouse_dx", "mouse_dy", "mouse_buttons"):
            labels[later][0, 2] = 0
        assert torch.equal(policy.loss({**batch, "labels": labels}).total, first.total)
        labels["keys"][0, 2, 1] = (labels["keys"][0, 2, 1] + 1) % 20
        assert not torch.equal(policy.loss({**batch, "labels": labels}).total, first.total)


def test_later_tokens_never_change_earlier_outputs():
    world = tiny.tiny_world().eval()
    tokens = torch.randint(0, 16, (1, 6, 12))
    with torch.no_grad():
        before = world.transformer(tokens).flatten(1, 2)
        for at in (1, 30, 71):
            changed = tokens.flatten(1).clone()
            changed[0, at] += 1
            after = world.transformer(changed.view_as(tokens)).flatten(1, 2)
            assert torch.equal(before[:, :at], after[:, :at]) and not torch.equal(before[:, at:], after[:, at:])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return str(write_telling(tmp_path_factory.mktemp("recordings"), 3, 24))


@pytest.mark.parametrize("make", [tiny.tiny_token_policy, tiny.tiny_world])
def test_the_tokenizer_is_kept_as_it_is_and_goes_with_the_model(make, recordings, tmp_path):
    """Trained for two steps, exported, and loaded where the tokenizer's own folder is gone."""
    tokenizer = tiny.Brightness(levels=8)
    with torch.no_grad():
        tokenizer.levels.mul_(0.5)
    folder = tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = make(tokenizer=str(folder))
    assert model.tokenizer.digest == tokenizer.digest and not any(p.requires_grad for p in model.tokenizer.parameters())
    trainer = L.Trainer(max_steps=2, val_check_interval=1, **tiny.QUIET)
    trainer.fit(model, RecordingDataModule(root=recordings, batch_size=2, val_fraction=0.4))
    assert trainer.callback_metrics["val/loss"].isfinite() and torch.equal(model.tokenizer.levels, tokenizer.levels)
    assert not model.tokenizer.training
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    exported = model.save_pretrained(tmp_path / "out")
    folder.rename(tmp_path / "elsewhere")
    batch = tiny.tiny_batch(model)
    for source in (exported, tmp_path / "model.ckpt"):
        loaded = type(model).from_pretrained(source)
        assert loaded.tokenizer.digest == tokenizer.digest and loaded.spec == model.spec
        torch.testing.assert_close(loaded.loss(batch).total, model.eval().loss(batch).total)


def test_ids_in_the_place_of_frames():
    for model in (tiny.tiny_token_policy(), tiny.tiny_world()):
        batch = tiny.tiny_batch(model)
        ids = model.encode(batch["frames"])
        without = {k: v for k, v in batch.items() if k != "frames"}
        assert ids.shape == (2, 5, 4) and torch.equal(
            model.loss({**without, "tokens": ids}).total, model.loss(batch).total
        )


@pytest.mark.parametrize("make", [tiny.tiny_token_policy, tiny.tiny_world])
def test_training_reads_the_ids_of_its_own_tokenizer_and_no_others(make, recordings, tmp_path):
    own, other = tiny.Brightness(), tiny.Brightness(levels=8)
    tokenize(str(own.save_pretrained(tmp_path / "own")), recordings)

    def fit(tokenizer, inputs):
        torch.manual_seed(0)
        model = make(tokenizer=tokenizer, inputs=inputs)
        data = RecordingDataModule(root=recordings, batch_size=2, val_fraction=0.4)
        L.Trainer(max_steps=2, val_check_interval=1, **tiny.QUIET).fit(model, data)
        return model.state_dict()

    ours, theirs = fit(own, "tokens"), fit(own, "frames")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("metrics."))
    with pytest.raises(UserError, match="have no ids of this model's tokenizer"):
        fit(other, "tokens")


def test_what_holds_no_tokenizer_is_refused(tmp_path):
    folder = tiny.tiny_cnn().save_pretrained(tmp_path / "cnn")
    with pytest.raises(UserError, match=r"model\.tokenizer .*CNNPolicy"):
        tiny.tiny_world(tokenizer=str(folder))
    with pytest.raises(UserError, match=r"model\.tokenizer runs/nothing: there is no policy.*--config vqvae_small"):
        tiny.tiny_world(tokenizer="runs/nothing")
    with pytest.raises(UserError, match="window"):
        tiny.tiny_world(window=1)


def test_a_world_keeps_starts_from_its_first_batches(tmp_path):
    world = tiny.tiny_world(starts=3)
    with pytest.raises(UserError, match="no starts yet"):
        world.start(0)
    batch = tiny.tiny_batch(world, batch=2)
    batch["user"][1, 0] = False  # its second picture follows from who knows what
    L.Trainer(max_steps=4, **tiny.QUIET).fit(world, DataLoader([batch] * 4, batch_size=None))
    tokens = world.sequence(world.encoded(batch), batch)
    for number in range(4):
        assert torch.equal(world.start(number), tokens[0, :3])
    again = WorldModel.from_pretrained(world.save_pretrained(tmp_path / "world"))
    assert torch.equal(again.start(2), tokens[0, :3])


def test_a_policy_is_found_by_its_folder(tmp_path):
    folder = tiny.tiny_token_policy().save_pretrained(tmp_path / "policy")
    assert type(bczoo.from_pretrained(folder)) is TokenPolicy
    with pytest.raises(UserError, match="WorldModel, which does not act"):
        bczoo.from_pretrained(tiny.tiny_world().save_pretrained(tmp_path / "world"))


def test_operations_are_those_of_training():
    """Without the tokenizer where ids are read."""
    world = tiny.tiny_world(inputs="tokens", width=64)
    batch = batch_for(world, 3)
    assert "frames" not in batch and batch["tokens"].shape == (3, 6, 4) and int(batch["tokens"].max()) < 16
    assert world.loss(batch).total.isfinite()
    counted, sizes = flops_per_window(world), model_sizes(world)
    blocks = sum(p.numel() for p in world.transformer.gpt.blocks.parameters() if p.ndim > 1)
    attention = 12 * 2 * 64 * 72 * 72
    head = 6 * world.transformer.table.weight.numel() * 5 * 4  # of the positions that count alone
    assert counted == pytest.approx(6 * blocks * 72 + attention + head, rel=0.05)
    assert sizes["tokens_per_frame"] == 12
