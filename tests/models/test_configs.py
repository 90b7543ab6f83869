"""Every shipped configuration of a model builds and takes a step at reduced size; the sizes that are stated."""

import lightning as L
import pytest
import tiny
import torch
import yaml
from torch.utils.data import DataLoader

from bczoo import (
    VQGAN,
    VQVAE,
    BCPolicy,
    CNNPolicy,
    ConvNeXtEncoder,
    InverseDynamics,
    Model,
    Tokenizer,
    TokenPolicy,
    ViTVQGAN,
    WorldModel,
)
from bczoo.core import configs
from bczoo.core.configs import merge
from bczoo.models.cnn.encoder import count_without_projection
from bczoo.train.flops import random_batch

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = {"experiments/frozen_encoder": "150m"}  # laid over
LAID = {name: yaml.safe_load((configs.FOLDER / f"{name}.yaml").read_text()).get("model") for name in configs.names()}
FAMILIES = (CNNPolicy, BCPolicy, InverseDynamics, TokenPolicy, WorldModel, VQVAE, VQGAN, ViTVQGAN)
TRAINED_FROM_ANOTHER = {"finetune"}  # tests of fine-tuning build it
WITH_MODEL = [name for name, model in LAID.items() if model and name not in TRAINED_FROM_ANOTHER]


def reduced(family, init_args):
    """Overrides under which a model of this configuration is tiny; what else it says stays."""
    if family in (TokenPolicy, WorldModel):
        return tiny.TOKENS | {"window": 5}
    if family is VQVAE:
        return {"frame_size": tiny.SIZE, "tokens": 16, "codebook_size": 32, "channels": 8, "code_width": 4, "window": 5}
    if family is VQGAN:
        sizes = {"frame_size": tiny.SIZE, "codebook_size": 32, "channels": 32, "multipliers": [1, 1], "blocks": 1}
        return sizes | {"code_width": 4, "perceptual": "none", "window": 5}
    if family is ViTVQGAN:
        sizes = {"frame_size": tiny.SIZE, "patch": 16, "codebook_size": 32, "width": 16, "layers": 1, "heads": 2}
        return sizes | {"code_width": 4, "perceptual": "none", "window": 5}
    if family is InverseDynamics:
        sizes = {"frame_size": tiny.SIZE, "channels": [4, 8], "blocks": 1}
        encoder = {"class_path": "bczoo.MotionEncoder", "init_args": sizes}
        return {"width": 32, "layers": 2, "heads": 4, "window": 5, "encoder": encoder}
    if family is CNNPolicy:
        sizes = {"frame_size": tiny.SIZE, "channels": [4, 8, 8], "blocks": 1, "embedding": 16}
        encoder = {"class_path": "bczoo.ConvNeXtEncoder", "init_args": sizes}
        return {"width": 32, "layers": 2, "heads": 4, "window": 5, "encoder": encoder}
    encoder = {"init_args": {"backbone": "test_efficientnet", "frame_size": tiny.SIZE, "pretrained": False}}
    transformer = {"init_args": {"width": 32, "layers": 2, "heads": 4, "kv_heads": None, "checkpointing": False}}
    decoder = {"init_args": {"layers": 1, "heads": 4}} if "decoder" in init_args else None
    small = {"window": 5, "encoder": encoder, "transformer": transformer}
    return small if decoder is None else small | {"decoder": decoder}


@pytest.mark.parametrize("name", WITH_MODEL)
def test_it_builds_and_takes_a_step(name, tmp_path):
    model = merge(LAID.get(BASE.get(name, "")) or {}, LAID[name])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model}))
    family = {f"bczoo.{cls.__name__}": cls for cls in FAMILIES}[model["class_path"]]
    policy = Model.from_config(str(path), pretrained=False, **reduced(family, model["init_args"]))
    assert type(policy) is family
    before = {k: v.clone() for k, v in policy.named_parameters()}
    batch = random_batch(policy.input_spec, 2) if isinstance(policy, Tokenizer) else tiny.tiny_batch(policy)
    batches = DataLoader([batch], batch_size=None)
    L.Trainer(max_steps=1, **tiny.QUIET).fit(policy, batches)
    learned = {k for k, v in policy.named_parameters() if v.requires_grad}
    moved = {k for k, v in policy.named_parameters() if not torch.equal(v, before[k])}
    assert moved <= learned and len(moved) > 0.5 * len(learned)
    images = {BCPolicy: "encoder.backbone", ViTVQGAN: "encoder.transformer"}
    images |= {TokenPolicy: "transformer", WorldModel: "transformer"}
    at_least_one = any(k.startswith(images.get(family, "encoder.layers")) for k in moved)
    assert at_least_one == (name != "experiments/frozen_encoder")


def test_the_encoder_has_the_size_of_the_paper():
    """0.6 M parameters up to the embedding (paper 2411.04434, section 3.2), without the linear map to the width."""
    assert round(count_without_projection(ConvNeXtEncoder(512)) / 1e6, 3) == 0.600


def test_bc_cnn_has_the_size_of_the_paper():
    """25 M parameters in the blocks of its transformer."""
    with torch.device("meta"):
        policy = CNNPolicy.from_config("bc_cnn")
    blocks = sum(p.numel() for p in policy.transformer.blocks.parameters())
    assert round(blocks / 1e6, 1) == 25.2 and policy.input_spec.frame_size == 128 and policy.input_spec.window == 100
