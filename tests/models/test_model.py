"""The policy: sizes, options, frozen encoder, rebuilding from plain JSON, text."""

import json

import pytest
import tiny
import torch

from bczoo import ActionDecoder, ActionSpace, BackboneHeads, BCPolicy, GemmaTextEncoder, ImageEncoder, IndependentHeads
from bczoo.core.errors import UserError
from bczoo.train.loss import bc_loss

DECODERS = [ActionDecoder, BackboneHeads, IndependentHeads]
SIZES = {  # millions of parameters: total, backbone, decoder, image
    "150m": (183.21, 126.03, 38.88, 17.37),
    "300m": (309.24, 252.07, 38.88, 17.37),
    "600m": (644.25, 453.21, 155.30, 33.89),
    "1.2b": (1298.88, 1107.84, 155.30, 33.89),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size):
    with torch.device("meta"):
        policy = BCPolicy.from_config(size, pretrained=False)
    counts = policy.parameter_counts()
    assert tuple(round(counts[k] / 1e6, 2) for k in ("total", "backbone", "decoder", "image")) == SIZES[size]


def test_tiny_is_tiny_and_the_quick_start_as_large_as_told():
    assert BCPolicy.from_config("tiny").parameter_counts()["total"] < 1_000_000
    assert BCPolicy.from_config("quickstart").parameter_counts()["total"] == 905_136


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("space", ["keyboard_mouse", "gamepad"])
def test_logits_have_the_documented_shapes(decoder, space):
    policy = tiny.tiny_policy(decoder=decoder, action_space=space, thinking_tokens=2, encoder={"tokens": 3})
    batch = tiny.tiny_batch(policy)
    logits = policy(batch["frames"], batch["actions"])
    for group in policy.action_space.groups:
        assert logits[group.name].shape == (2, 5, group.tokens, group.choices)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_learns(decoder):
    """Nothing is left without a gradient, so that DDP needs no search for unused parameters."""
    policy = tiny.tiny_policy(decoder=decoder, transformer={"sinks": 1})
    batch = tiny.tiny_batch(policy)
    for text in (batch["text"], None):
        policy.zero_grad()
        logits = policy(batch["frames"], batch["actions"], text)
        bc_loss(logits, batch["actions"], batch["user"]).total.backward()
        assert [n for n, p in policy.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [96, 128, 192, 224, 256])
def test_frame_sizes(size):
    policy = tiny.tiny_policy(encoder={"backbone": "efficientnet_b0", "frame_size": size})
    frames = torch.zeros(1, 1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        assert policy.encode(frames).shape == (1, 1, 1, 32)
        with pytest.raises(ValueError, match=f"3, {size}, {size}.*frame_size"):
            policy.encode(frames[..., :-1])


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "densenet121"])
def test_any_timm_backbone_with_feature_maps(backbone):
    policy = tiny.tiny_policy(encoder={"backbone": backbone, "stage": 2})
    assert policy.encode(tiny.tiny_batch(policy)["frames"]).shape == (2, 5, 1, 32)


def test_unknown_backbone_is_named_with_similar_ones():
    with pytest.raises(ValueError, match=r"no model 'resnet99'.*resnet"):
        tiny.tiny_policy(encoder={"backbone": "resnet99"})


def test_a_backbone_of_another_frame_size_is_told():
    with pytest.raises(UserError, match=r"swin_tiny.* does not take frames of 64 pixels"):
        tiny.tiny_policy(encoder={"backbone": "swin_tiny_patch4_window7_224", "stage": 2})


def test_torchvision_weights_load_exactly():
    import torchvision

    theirs = torchvision.models.efficientnet_b0(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    encoder = tiny.tiny_policy(encoder={"backbone": "efficientnet_b0", "frame_size": 96}).encoder.eval()
    encoder.load_torchvision(theirs.state_dict())
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder.backbone(x)[0], theirs.features[:6](x), atol=1e-5, rtol=1e-4)
    weights = theirs.state_dict()
    del weights["features.3.0.block.1.0.weight"]
    with pytest.raises(ValueError, match=r"blocks\.2\.0\.conv_dw\.weight"):
        encoder.load_torchvision(weights)


def test_memory_order_changes_nothing_but_the_speed():
    frames = tiny.tiny_batch(tiny.tiny_policy())["frames"].flatten(0, 1)
    tokens = [
        tiny.tiny_policy(encoder={"backbone": "efficientnet_b0", "channels_last": order}).encoder.eval()(frames)
        for order in (False, True)
    ]
    torch.testing.assert_close(*tokens, atol=2e-5, rtol=0)


def test_stochastic_depth_reaches_an_eighth():
    policy = tiny.tiny_policy(encoder={"backbone": "efficientnet_b0", "drop_path": 0.2})
    rates = [m.drop_prob for m in policy.encoder.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.125)


def train(policy, steps=3):
    policy.train()
    optimizer = policy.configure_optimizers()
    for i in range(steps):
        batch = tiny.tiny_batch(policy, seed=i)
        optimizer.zero_grad()
        logits = policy(batch["frames"], batch["actions"], batch["text"])
        bc_loss(logits, batch["actions"], batch["user"]).total.backward()
        optimizer.step()


def test_frozen_encoder_stays_bit_identical_and_keeps_no_graph():
    policy = tiny.tiny_policy(encoder={"frozen": True})
    before = {k: v.clone() for k, v in policy.encoder.backbone.state_dict().items()}
    projection = policy.encoder.project.weight.clone()
    train(policy)
    for name, value in policy.encoder.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(policy.encoder.project.weight, projection)
    assert all(p.grad is None for p in policy.encoder.backbone.parameters())
    assert saved_bytes(policy) < saved_bytes(tiny.tiny_policy()) / 2


def saved_bytes(policy) -> int:
    """Bytes of activations that the encoder keeps for its backward pass."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    policy.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.encode(tiny.tiny_batch(policy)["frames"])
    return total


def test_unfrozen_encoder_changes():
    policy = tiny.tiny_policy()
    before = {k: v.clone() for k, v in policy.encoder.backbone.state_dict().items()}
    train(policy)
    changed = [k for k, v in policy.encoder.backbone.state_dict().items() if not torch.equal(v, before[k])]
    assert any("running_mean" in k for k in changed) and any("conv" in k for k in changed)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_policy_is_rebuilt_from_plain_json(decoder):
    policy = tiny.tiny_policy(decoder=decoder, action_space=ActionSpace.keyboard_mouse(extra_keys=["r"]).to_dict())
    config = json.loads(json.dumps(policy.config))
    for rebuilt in (BCPolicy(**config), BCPolicy.from_config(config)):
        assert rebuilt.config == policy.config
        rebuilt.load_state_dict(policy.state_dict())


def test_a_config_builds_only_known_parts():
    config = tiny.tiny_policy().config
    config["encoder"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    with pytest.raises(ValueError, match=r"'os\.system' is not a known Encoder"):
        BCPolicy(**config)


def test_from_config_names_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean '150m'"):
        BCPolicy.from_config("150")
    with pytest.raises(ValueError, match="windw"):
        BCPolicy.from_config("tiny", windw=3)


class MyEncoder(ImageEncoder):
    """Somebody's own encoder, written the natural way."""

    def __init__(self, width, **options):
        super().__init__(width, **options)


def test_an_encoder_of_ones_own_is_rebuilt_too():
    options = {"backbone": "test_efficientnet", "frame_size": 64, "pretrained": False}
    policy = tiny.tiny_policy()
    config = {**policy.config, "encoder": MyEncoder(32, **options).spec}
    assert isinstance(BCPolicy(**config).encoder, MyEncoder)
    config["encoder"] = {"class_path": "bczoo.ImageEncoder", "init_args": options}
    swapped = BCPolicy.from_config("tiny", decoder={"class_path": "bczoo.BackboneHeads"}, pretrained=False)
    assert isinstance(swapped.decoder, BackboneHeads)


def test_rebuilding_from_a_checkpoint_downloads_nothing(monkeypatch):
    import timm

    asked = []
    real = timm.create_model

    def spy(name, **options):
        asked.append(options.pop("pretrained"))
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", spy)
    policy = tiny.tiny_policy(encoder={"pretrained": True})
    assert True in asked
    asked.clear()
    BCPolicy(**policy.spec["init_args"])
    assert True not in asked and policy.config["encoder"]["init_args"]["pretrained"] is True


def test_loss_without_a_counted_step_is_zero():
    policy = tiny.tiny_policy()
    batch = tiny.tiny_batch(policy)
    loss = bc_loss(
        policy(batch["frames"], batch["actions"]), batch["actions"], torch.zeros(2, 5, dtype=torch.bool)
    ).total
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_wrong_inputs_are_named():
    policy = tiny.tiny_policy()
    batch = tiny.tiny_batch(policy)
    with pytest.raises(ValueError, match=r"actions\['keys'\] must be ids of shape \(2, 5, 4\)"):
        policy(batch["frames"], {**batch["actions"], "keys": batch["actions"]["keys"][..., :3]})
    with pytest.raises(ValueError, match=r"text must be \(2, 5, 16\)"):
        policy(batch["frames"], batch["actions"], torch.zeros(2, 5, 768))
    with pytest.raises(ValueError, match="uint8"):
        policy(batch["frames"].float(), batch["actions"])


def test_gemma_text_encoder_is_the_masked_mean(tmp_path):
    """EmbeddingGemma's classes with random weights and a tiny tokenizer, offline."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3TextConfig, Gemma3TextModel, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "go", "to", "the", "red", "door"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    config = Gemma3TextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, use_bidirectional_attention=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3TextModel(config).save_pretrained(tmp_path)
    encoder = GemmaTextEncoder(str(tmp_path), max_tokens=4)
    alone, padded = encoder(["go to"]), encoder(["go to", "go to the red door"])
    assert alone.shape == (1, 16) and alone.dtype == torch.float32
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=0)  # padding does not leak in
    torch.testing.assert_close(padded[1:], encoder(["go to the red"]), atol=1e-5, rtol=0)  # cut at max_tokens
    agent = tiny.tiny_policy(text_encoder=encoder).agent(greedy=True)
    frame = tiny.tiny_batch(agent.policy)["frames"][0, 0].numpy()
    with_text, without = agent.policy.agent(greedy=True), agent.policy.agent(greedy=True)
    p = with_text.step(frame, text="go to the red door").probabilities["keys"]
    assert abs(p - without.step(frame).probabilities["keys"]).max() > 1e-6


def test_missing_text_encoder_says_what_it_needs(tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        GemmaTextEncoder(str(tmp_path / "nothing"))(["go"])
    with pytest.raises(UserError, match="no text_encoder"):
        tiny.tiny_policy().agent().step(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), text="go")
