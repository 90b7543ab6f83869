"""AttentionMaskCheck: a leak planted anywhere is found and named, and nothing else is disturbed."""

import dataclasses

import lightning as L
import pytest
import tiny
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.data import DataLoader

from bczoo.causality.leaks import (
    AttentionLeakError,
    Leak,
    check_mask,
    find_leak,
    find_leak_end_to_end,
    find_leak_of_layers,
    who_sees_whom,
)
from bczoo.core.errors import UserError
from bczoo.models.bc import masks
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.masks import dense_mask, window_attention
from bczoo.nn.attention import WindowAttention, flex, sdpa
from bczoo.train.callbacks.attention_mask import AttentionMaskCheck

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
STEPS = 5
VARIANTS = [
    "reference",
    "backbone heads",
    "independent heads",
    "sinks, histories, grouped queries",
    "many tokens",
    "no text",
    "no past actions",
]


def policy_of(variant="reference", backend="sdpa", **options):
    options = {**tiny.VARIANTS[variant], **options}
    options["transformer"] = {"layers": 2, **options.get("transformer", {}), "attention": backend}
    return tiny.tiny_policy(**options)


def plant(policy, layer, query, key, steps=STEPS):
    """Turn one entry of one layer's mask over: ``query`` token of the window, ``key`` column (sinks come first)."""
    attends = type(policy.transformer).attends

    def planted(window, layout, device):
        out = attends(policy.transformer, window, layout, device)
        if window != steps:
            return out
        length, run = steps * layout.length, out[layer].run
        keys = length + policy.transformer.sinks
        if run is flex:
            right = out[layer].mask.mask_mod
            wrong = create_block_mask(
                lambda b, h, q, kv: right(b, h, q, kv) ^ ((q == query) & (kv == key)), None, None, length, keys, "cpu"
            )
        else:
            wrong = out[layer].mask.clone()
            wrong[query, key] ^= True
        out[layer] = WindowAttention(wrong, run)
        return out

    policy.transformer.attends = planted


@pytest.mark.parametrize(
    ("variant", "backend"),
    [*((v, "sdpa") for v in VARIANTS), ("backbone heads", "flex"), ("sinks, histories, grouped queries", "flex")],
)
def test_a_sound_policy_passes(variant, backend):
    policy = policy_of(variant, backend)
    check_mask(policy, tiny.tiny_batch(policy, batch=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_wrong_entry_is_named_in_every_layer_and_both_backends(layer, backend, dtype):
    policy = policy_of(backend=backend, transformer={"layers": 3}).to(dtype)
    query, key = 4 * 12 + 3, 4 * 12 + 6  # action_out of step 4, action token 2 of step 4
    plant(policy, layer, query, key)
    assert find_leak_of_layers(policy, 2, STEPS) == Leak(
        (layer,), "action_out of step 4", "action token 2 (keys) of step 4", sees=True
    )


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_entry_counts(variant, backend):
    """Entries of all kinds turned over, one at a time: each is the one that is found."""
    policy = policy_of(variant, backend)
    layout, sinks = policy.layout, policy.transformer.sinks
    right = who_sees_whom(layout, STEPS, min(policy.transformer.histories[1], STEPS), sinks)
    torch.manual_seed(0)
    for _ in range(12 if backend == "sdpa" else 2):
        query, key = int(torch.randint(len(right), ())), int(torch.randint(right.shape[1], ()))
        plant(policy, 1, query, key)
        leak = find_leak_of_layers(policy, 1, STEPS)
        assert leak is not None and leak.layers == (1,) and leak.others == 0
        assert leak.sees != bool(right[query, key])
        assert leak.query.endswith(f"of step {query // layout.length}")
        assert leak.key == "a sink" if key < sinks else leak.key.endswith(f"step {(key - sinks) // layout.length}")


def test_a_leak_of_one_head_is_found():
    policy = policy_of()
    mask = dense_mask(policy.layout, STEPS, STEPS).repeat(1, 4, 1, 1)  # one for each of 4 heads
    right = [WindowAttention(mask, sdpa)] * 2
    policy.transformer.attends = lambda *window: right
    assert find_leak_of_layers(policy, 2, STEPS) is None
    wrong = mask.clone()
    wrong[0, 2, 3, 13] = True
    policy.transformer.attends = lambda *window: [right[0], WindowAttention(wrong, sdpa)]
    leak = find_leak_of_layers(policy, 2, STEPS)
    assert str(leak) == "layer 1: action_out of step 0 sees image token of step 1"


def test_layers_under_one_wrong_mask_are_named_together():
    policy = policy_of(transformer={"layers": 3, "history": [1, 2, 1]})
    transformer = policy.transformer
    transformer.histories = [1, 2, 2]  # the third layer looks further than it was told
    attends = transformer.attends(STEPS, policy.layout, policy.device)
    transformer.histories = [2, 1, 1]
    transformer.attends = lambda *window: attends
    leak = find_leak_of_layers(policy, 1, STEPS)
    assert leak.layers == (0,) and not leak.sees and leak.others > 0
    transformer.histories = [1, 1, 1]
    leak = find_leak_of_layers(policy, 1, STEPS)
    assert str(leak).startswith("layers 1, 2: text token of step 2 sees text token of step 0 (and ")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("past_actions", [False, True])
def test_the_rules_said_twice_are_the_same(causal, past_actions):
    layout = StepLayout(1, 2, 1, 3, causal_actions=causal, past_actions=past_actions)
    for history in (0, 1, 4):
        assert torch.equal(who_sees_whom(layout, 4, history, sinks=2), dense_mask(layout, 4, history, sinks=2))


def test_a_mistake_in_the_rule_itself_is_found(monkeypatch):
    right = masks.may_attend

    def wrong(layout, history, q_step, q_slot, kv_step, kv_slot):
        """Decisions of the past are seen too."""
        return right(layout, history, q_step, q_slot, kv_step, kv_slot) | (kv_step < q_step)

    monkeypatch.setattr(masks, "may_attend", wrong)
    window_attention.cache_clear()
    try:
        policy = policy_of()
        leak = find_leak_of_layers(policy, 1, STEPS)
    finally:
        window_attention.cache_clear()
    assert leak.layers == (0, 1) and leak.sees and leak.others == 12 * (1 + 2 + 3 + 4) - 1
    assert (leak.query, leak.key) == ("text token of step 1", "action_out of step 0")


KEYS_0 = "the logits of action token 0 (keys) of step 0 depend on"


def decoder_reads_the_wrong_slot(policy):
    forward = policy.transformer.forward
    policy.transformer.forward = lambda x, layout: forward(x, layout).roll(-1, dims=1)


def pictures_come_a_step_early(policy):
    encode = policy.encode
    policy.encode = lambda frames: encode(frames) + 0.01 * encode(frames).roll(-1, dims=1)


def instructions_come_a_step_early(policy):
    observation = policy.tokens.observation
    policy.tokens.observation = lambda images, text: observation(images, text.roll(-1, dims=1))


def decoder_is_told_the_action(policy):
    outputs = policy.decoder.outputs
    policy.decoder.outputs = lambda latents, embedded: outputs(latents + embedded[..., -1:, :], embedded)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (decoder_reads_the_wrong_slot, f"{KEYS_0} action token 0 (keys) of step 0"),
        (pictures_come_a_step_early, f"{KEYS_0} the frame of step 1"),
        (instructions_come_a_step_early, f"{KEYS_0} the text of step 1"),
        (decoder_is_told_the_action, f"{KEYS_0} action token 7 (mouse_dy) of step 0"),
    ],
)
def test_what_leaks_outside_of_the_layers_is_found_end_to_end(mistake, told):
    policy = policy_of().bfloat16()
    mistake(policy)
    leak = find_leak(policy, tiny.tiny_batch(policy, batch=1))
    assert str(leak) == told and leak.layers == ()


def test_a_wrong_entry_shows_end_to_end_too():
    policy = policy_of().eval()
    plant(policy, 0, 12 + 3, 12 + 11, steps=3)  # action_out of step 1 sees the last action token of step 1
    with torch.no_grad():
        leak = find_leak_end_to_end(policy, tiny.tiny_batch(policy, batch=1))
    assert str(leak) == ("the logits of action token 0 (keys) of step 1 depend on action token 7 (mouse_dy) of step 1")


def test_a_policy_told_to_forget_actions_is_held_to_it():
    policy = policy_of()
    policy.layout = dataclasses.replace(policy.layout, past_actions=False)
    right = policy.transformer.attends
    policy.transformer.attends = lambda steps, layout, device: right(
        steps, dataclasses.replace(layout, past_actions=True), device
    )
    leak = find_leak(policy, tiny.tiny_batch(policy, batch=1))
    assert str(leak).startswith("layers 0, 1: text token of step 1 sees action token 0 (keys) of step 0 (and ")


def test_the_policy_is_left_as_it_was():
    policy = policy_of(encoder={"drop_path": 0.2}, transformer={"dropout": 0.1}).train()
    policy.encoder.eval()
    given = tiny.tiny_batch(policy)
    sum(v.sum() for v in policy(given["frames"], given["actions"], given["text"]).values()).backward()
    modes = [m.training for m in policy.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in policy.parameters()]
    weights = {k: v.clone() for k, v in policy.state_dict().items()}
    before = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    random = torch.get_rng_state()
    plant(policy, 1, 0, 59)
    with pytest.raises(AttentionLeakError, match="layer 1: text token of step 0 sees action token 7"):
        check_mask(policy, given)
    assert modes == [m.training for m in policy.modules()] and torch.is_grad_enabled()
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        assert gradient is None if parameter.grad is None else torch.equal(parameter.grad, gradient)
    assert all(torch.equal(v, weights[k]) for k, v in policy.state_dict().items())
    assert all(torch.equal(v, given[k]) for k, v in before.items())
    assert torch.equal(random, torch.get_rng_state())


def trainer_with(callback, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", callbacks=[callback], enable_checkpointing=False, **({"max_steps": 2} | quiet | options)
    )


def batches_of(policy, count=2):
    return DataLoader([tiny.tiny_batch(policy, seed=n) for n in range(count)], batch_size=None)


def test_a_leak_stops_the_training_before_its_first_step():
    policy = policy_of()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    plant(policy, 1, 3, 12)
    with pytest.raises(AttentionLeakError, match="layer 1: action_out of step 0 sees text token of step 1"):
        trainer_with(AttentionMaskCheck()).fit(policy, batches_of(policy))
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_the_check_changes_nothing_in_a_training_and_runs_in_its_precision():
    trained, seen = [], []
    for callback in (AttentionMaskCheck(every_n_validations=1), L.Callback()):
        policy = policy_of(transformer={"dropout": 0.1})
        attends = policy.transformer.attends

        def watched(*window, attends=attends):
            def wrap(attend):
                return lambda q, k, v, sinks: (seen.append((q.dtype, q.shape[0])), attend(q, k, v, sinks))[1]

            return [wrap(attend) for attend in attends(*window)]

        policy.transformer.attends = watched
        torch.manual_seed(1)
        data = batches_of(policy)
        trainer_with(callback, precision="bf16-mixed", val_check_interval=1).fit(policy, data, data)
        trained.append([p.detach() for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}


@pytest.mark.parametrize(("every", "expected"), [(None, 1), (1, 5), (2, 3)])
def test_it_looks_once_at_the_start_and_every_n_validations(every, expected, monkeypatch):
    looks = []
    monkeypatch.setattr("bczoo.train.callbacks.attention_mask.check_mask", lambda policy, batch: looks.append(batch))
    policy = policy_of()
    data = batches_of(policy, 4)
    trainer_with(AttentionMaskCheck(every), max_steps=4, val_check_interval=1).fit(policy, data, data)
    assert len(looks) == expected


def test_what_the_callback_cannot_do_is_told():
    with pytest.raises(UserError, match="from 1 on"):
        AttentionMaskCheck(0)
