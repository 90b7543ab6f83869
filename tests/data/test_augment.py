"""Augmentations: constant over a clip, a function of the clip's key, and really doing something."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchvision.transforms import v2

from bczoo.data.augment import (
    ClipAugment,
    ColorTemperature,
    HorizontalShift,
    IsoNoise,
    MotionBlur,
    ReferenceAugmentations,
    Zoom,
)

SIZE = 32
OWN = [HorizontalShift(0.1), ColorTemperature(0.3), IsoNoise(), MotionBlur(), Zoom()]


@pytest.fixture
def clips():
    """(2, 6, 3, SIZE, SIZE), where frame 4 repeats frame 1."""
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 6, 3, SIZE, SIZE), dtype=torch.uint8)
    frames[:, 4] = frames[:, 1]
    return frames


def test_published_set_is_constant_over_a_clip_and_repeatable(clips):
    augment = ClipAugment([ReferenceAugmentations(erasing=True, resized_crop=True)])
    changed = 0
    for key in range(25):
        out = augment(clips, [(key, 0), (key, 1)])
        assert out.shape == clips.shape
        assert out.dtype == torch.uint8
        assert torch.equal(out[:, 4], out[:, 1])
        assert torch.equal(out, augment(clips, [(key, 0), (key, 1)]))
        assert torch.equal(out[1:], augment(clips[1:], [(key, 1)]))  # other clips of the batch do not matter
        changed += not torch.equal(out, clips)
    assert changed > 20


@pytest.mark.parametrize("transform", OWN, ids=lambda t: type(t).__name__)
def test_own_transforms(clips, transform):
    augment = ClipAugment([transform])
    results = [augment(clips, [(k, 0), (k, 1)]) for k in range(8)]
    for out in results:
        assert torch.equal(out[:, 4], out[:, 1])
    assert sum(not torch.equal(out, clips) for out in results) >= 6
    assert not all(torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_shift_moves_all_frames_alike(clips):
    out = ClipAugment([HorizontalShift(0.2)])(clips, [3, 4])
    for clip, shifted in zip(clips, out, strict=True):
        fits = [d for d in range(-6, 7) if torch.equal(shifted[..., 8:-8], clip.roll(d, -1)[..., 8:-8])]
        assert len(fits) == 1


def test_temperature_moves_red_against_blue():
    grey = torch.full((1, 2, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    means = [ClipAugment([ColorTemperature(0.2)])(grey, [k]).float().mean((0, 1, 3, 4)) for k in range(10)]
    for red, green, blue in means:
        assert green == 100
        assert (red - 100) * (blue - 100) <= 0
    assert min(m[0] for m in means) < 95
    assert max(m[0] for m in means) > 105


def test_motion_blur_keeps_brightness_and_removes_detail(clips):
    out = ClipAugment([MotionBlur(7)])(clips, [1, 2])
    assert abs(out.float().mean() - clips.float().mean()) < 1
    assert out.float().std() < 0.8 * clips.float().std()


def test_training_random_numbers_are_left_alone(clips):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ClipAugment([v2.ColorJitter(0.5)])(clips, [1, 2])
    assert torch.equal(torch.rand(3), expected)


def test_random_numbers_of_accelerators_are_left_alone(clips, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded.append)
    torch.manual_seed(5)
    assert seeded  # or this is no test
    seeded.clear()
    ClipAugment(OWN)(clips, [1, 2])
    assert not seeded


@pytest.mark.parametrize("size", [16, 40])
def test_zoom_takes_the_size_from_the_clip(size):
    clips = torch.arange(size, dtype=torch.uint8).expand(1, 2, 3, size, size)
    out = ClipAugment([Zoom(0.5)])(clips, [1])
    assert out.shape == clips.shape
    assert 0 < out.float().std() < clips.float().std()


def test_wrong_input_is_named(clips):
    with pytest.raises(ValueError, match=r"uint8 clips \(B, T, 3, H, W\)"):
        ClipAugment(OWN)(clips.float(), [1, 2])


def test_configurations_can_name_them(clips, tmp_path):
    from jsonargparse import ArgumentParser

    from bczoo.data.module import RecordingDataModule

    parser = ArgumentParser()
    parser.add_class_arguments(RecordingDataModule, "data")
    config = tmp_path / "config.yaml"
    config.write_text(
        """
data:
  root: recordings
  augment:
  - class_path: bczoo.data.augment.ReferenceAugmentations
    init_args: {erasing: true}
  - class_path: torchvision.transforms.v2.ColorJitter
    init_args: {brightness: 0.2}
  - bczoo.data.augment.MotionBlur
"""
    )
    module = parser.instantiate_classes(parser.parse_path(str(config))).data
    transforms = [ReferenceAugmentations(erasing=True), v2.ColorJitter(0.2), MotionBlur()]
    for key in range(5):
        augmented = module.augment(clips, [key, -key])
        assert torch.equal(ClipAugment(transforms)(clips, [key, -key]), augmented)


def test_the_former_name_of_the_reference_set_still_works():
    import bczoo
    from bczoo.data import augment

    assert bczoo.PublishedAugmentations is augment.PublishedAugmentations is ReferenceAugmentations
