"""``bczoo evaluate``: a perfect world scores perfectly, one that learned nothing does not follow its actions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
import toy_world
from command_line import bczoo
from command_line import here as here

from bczoo import InverseDynamics, MotionEncoder
from bczoo.worlds import networks
from bczoo.worlds.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return str(toy_world.write_recordings(tmp_path_factory.mktemp("held_out"), 3, 40))


def test_a_world_that_has_learned_its_game(world_folder, held_out, here, capsys):
    options = ("--clips", 12, "--steps", 8, "--temperature", 0, "--json", "measures.json")
    assert bczoo("evaluate", world_folder, "--data", held_out, *options) == 0
    told, kept = capsys.readouterr().out, json.loads((here / "measures.json").read_text())
    assert kept["clips"] == 12 and kept["context"] == 1 and kept["steps"] == 8
    assert kept["by_horizon"]["token_accuracy"] == [1.0] * 8
    assert kept["by_horizon"]["psnr"] == kept["by_horizon"]["psnr_floor"]  # as good as the tokenizer
    assert np.mean(kept["by_horizon"]["ssim"]) > 0.9
    overall = kept["overall"]
    assert overall["frechet_tokens_32d_8f_12"] == pytest.approx(0, abs=1e-6)
    assert overall["frechet_tokens_32d_8f_6_floor"] > 0.01
    assert overall["action_effect"] > 0.05 and overall["action_following"] == pytest.approx(overall["action_effect"])
    assert "| token_accuracy |" in told and "12 clips, 1 real step, 8 dreamt" in told and "are too large" in told


def test_one_that_learned_nothing(held_out, tmp_path):
    tokenizer = {"rows": 1, "columns": toy_world.COLUMNS, "levels": 2, "frame_size": toy_world.SIZE}
    world = tiny.tiny_world(tokenizer={"class_path": "tiny.Brightness", "init_args": tokenizer})
    with torch.no_grad():
        world.transformer.table.weight[2:] = 0  # actions are nothing to it
    folder = str(world.save_pretrained(tmp_path / "untrained"))
    measured = evaluate(folder, held_out, clips=6, steps=4, context=2)
    assert measured.overall["action_effect"] == measured.overall["action_following"] == 0
    assert np.mean(measured.by_horizon["token_accuracy"]) < 0.8
    assert np.mean(measured.by_horizon["psnr"]) < np.mean(measured.by_horizon["psnr_floor"])
    assert measured.overall["frechet_tokens_32d_4f_6"] > 0


class Reader(InverseDynamics):
    """Reads the keys off the motion of the toy's square, and everything else as nothing."""

    def logits(self, frames, shown):
        columns = frames[:, :, 0, 0].float().unflatten(-1, (toy_world.COLUMNS, -1)).mean(-1).argmax(-1)
        moved = columns.diff(dim=1, append=columns[:, -1:])
        ids = torch.stack([toy_world.action_ids((m < 0) + 2 * (m > 0)) for m in moved])
        return {
            g.name: torch.nn.functional.one_hot(ids[..., part], g.choices).float()
            for g, part in zip(self.action_space.groups, self.action_space.slices.values(), strict=True)
        }


def test_actions_are_read_off_the_dream(world_folder, held_out, tmp_path, capsys):
    encoder = {"class_path": "bczoo.MotionEncoder", "init_args": {"frame_size": 66, "channels": [4, 8], "blocks": 1}}
    reader = Reader(encoder, 32, 1, 2, window=5)
    folder = str(reader.save_pretrained(tmp_path / "reader"))
    assert isinstance(reader.encoder, MotionEncoder)
    measured = evaluate(world_folder, held_out, clips=6, steps=9, temperature=0, idm=folder).overall
    assert measured["idm/mouse_dx"] == measured["idm_real/mouse_dx"] == 1.0
    # all but keys at an edge, which nobody could see
    assert measured["idm/keys"] == measured["idm_real/keys"] > 0.9
    other = InverseDynamics(encoder, 32, 1, 2, window=5, fps=10).save_pretrained(tmp_path / "other")
    assert bczoo("evaluate", world_folder, "--data", held_out, "--idm", other) == 1
    assert "has the fps 10" in capsys.readouterr().err


def test_clips_that_are_dreamt_one_after_the_other_are_those_side_by_side(world_folder, held_out):
    one, other = (evaluate(world_folder, held_out, clips=5, steps=3, parallel=n).overall for n in (1, 5))
    assert one == other


def test_what_cannot_be_measured(world_folder, held_out, capsys, monkeypatch):
    assert bczoo("evaluate", world_folder, "--data", held_out, "--steps", 60) == 1
    assert "no recording holds 61 steps with known actions in a row" in capsys.readouterr().err
    assert bczoo("evaluate", world_folder, "--data", held_out, "--clips", 2) == 1
    assert "clips must be a whole number from 4 on" in capsys.readouterr().err

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchmetrics.functional.image.learned_perceptual_image_patch_similarity", unreachable)
    options = ("--clips", 4, "--steps", 8, "--networks", "true")
    assert bczoo("evaluate", world_folder, "--data", held_out, *options) == 1
    assert "the weights of AlexNet cannot be downloaded (no route to host)" in capsys.readouterr().err


def test_measures_of_downloaded_networks_have_the_right_form(monkeypatch):
    """With random weights in the place of the downloaded ones."""
    from torchvision.models import video

    plain = video.r3d_18
    monkeypatch.setattr(video, "r3d_18", lambda weights: plain())
    features = networks.r3d18_features(torch.randint(0, 256, (2, 8, 3, 66, 66), dtype=torch.uint8))
    assert features.shape == (2, 512) and np.isfinite(features).all()
