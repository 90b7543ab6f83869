"""Fine-tuning from Python: carrying over by name, LoRA, freezing, instructions, change points."""

import copy
import math
import sys
import zlib
from functools import partial

import lightning as L
import pytest
import tiny
import torch
from processes import several
from torch.utils.data import DataLoader

from bczoo import (
    ActionDecoder,
    ActionSpace,
    BackboneHeads,
    BCPolicy,
    FineTune,
    IndependentHeads,
    LoRA,
    TextEncoder,
    WarmupCosine,
)
from bczoo.core.errors import UserError
from bczoo.train.finetune.transfer import carry_over
from bczoo.train.metrics import change_points

DECODERS = [ActionDecoder, BackboneHeads, IndependentHeads]
PARTS = ["encoder", "transformer", "decoder", "embeddings"]
PLAIN_DECODER = partial(ActionDecoder, layers=1, heads=4, dropout=0.0)
QUIET = tiny.QUIET | {"num_sanity_val_steps": 0}


pytestmark = pytest.mark.usefixtures("one_thread")


class Words(TextEncoder):
    """Embeddings by formula instead of a language model."""

    def __init__(self, width: int = 16) -> None:
        self.width = width

    def __call__(self, texts):
        return torch.stack(
            [torch.randn(self.width, generator=torch.Generator().manual_seed(zlib.crc32(t.encode()))) for t in texts]
        )


@pytest.fixture
def save(tmp_path):
    """Writes a policy as a published folder and returns where."""
    return lambda policy, name="source": str(policy.save_pretrained(tmp_path / name))


def logits_of(policy, batch):
    with torch.no_grad():
        return policy.eval()(batch["frames"], batch["actions"], batch.get("text"))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copied(state):
    return {k: v.clone() for k, v in state.items()}


def batches(policy, count=8):
    return [tiny.tiny_batch(policy, seed=seed) for seed in range(count)]


def trained(policy, steps, *callbacks, data=None, val=None, **options) -> L.Trainer:
    """Train for some optimiser steps on batches that need no recordings."""
    trainer = L.Trainer(max_steps=steps, callbacks=list(callbacks), **(QUIET | options))
    loader = DataLoader(data or batches(policy, steps), batch_size=None)
    trainer.fit(policy, loader, None if val is None else DataLoader(val, batch_size=None))
    return trainer


# ---------------------------------------------------------------------------------------------------- carrying over

KEYBOARD = ActionSpace.keyboard_mouse().to_dict()
HELD, BUTTONS, DX, DY = KEYBOARD["groups"]
SOME_KEYS = ["nothing", "w", "z", "r", "Space", "a"]
SOME_BINS = [-500.1, -144.1, 0.0, 1.0, 3.0, 500.0]


def space(*groups, name="mine"):
    return {"name": name, "groups": list(groups)}


def rows(count):
    return {i: i for i in range(count)}


ALL_ROWS = {"keys": rows(20), "mouse_buttons": rows(4), "mouse_dx": rows(23), "mouse_dy": rows(17)}
# from, to, per group {row there: row here}, {action token there: action token here}, what is told
SPACES = {
    "more keys": (
        "keyboard_mouse",
        {"name": "keyboard_mouse", "extra_keys": ["r", "LeftControl"]},
        ALL_ROWS,
        rows(8),
        {"keys": "20 of 22 choices carried over; fresh: r, LeftControl", "mouse_dx": "23 of 23 choices carried over"},
    ),
    "other keys in another order": (
        "keyboard_mouse",
        space(HELD | {"names": SOME_KEYS}, BUTTONS, DX, DY),
        ALL_ROWS | {"keys": {0: 0, 1: 11, 2: 13, 4: 1, 5: 6}},
        rows(8),
        {"keys": "5 of 6 choices carried over; fresh: r; 15 of the source are not used"},
    ),
    "fewer held at once": (
        "keyboard_mouse",
        {"name": "keyboard_mouse", "max_keys": 2, "max_mouse_buttons": 1},
        ALL_ROWS,
        {0: 0, 1: 1, 2: 4, 3: 6, 4: 7},
        {"keys": "20 of 20 choices carried over"},
    ),
    "more held at once": (
        {"name": "keyboard_mouse", "max_keys": 2},
        "keyboard_mouse",
        ALL_ROWS,
        {0: 0, 1: 1, 4: 2, 5: 3, 6: 4, 7: 5},
        {"keys": "20 of 20 choices carried over"},
    ),
    "other bins": (
        "keyboard_mouse",
        space(HELD, BUTTONS, DX | {"edges": SOME_BINS}, DY),
        ALL_ROWS | {"mouse_dx": {0: 0, 1: 1, 3: 12, 4: 13, 6: 22}},
        rows(8),
        {"mouse_dx": "5 of 7 choices carried over; 18 of the source are not used"},
    ),
    "a wider mouse": (
        "keyboard_mouse",
        space(HELD, BUTTONS, DX | {"low": -1000, "high": 1000}, DY),
        ALL_ROWS | {"mouse_dx": {i: i for i in range(1, 22)}},
        rows(8),
        {"mouse_dx": "21 of 23 choices carried over; 2 of the source are not used"},
    ),
    "groups dropped and in another order": (
        "keyboard_mouse",
        space(DY, HELD),
        {"mouse_dy": rows(17), "keys": rows(20)},
        {0: 7, 1: 0, 2: 1, 3: 2, 4: 3},
        {"mouse_dy": "17 of 17 choices carried over", "keys": "20 of 20 choices carried over"},
    ),
    "a group of another kind": (
        "keyboard_mouse",
        space(HELD, {"kind": "switch", "name": "mouse_buttons", "names": ["0", "1"]}, DX, DY),
        ALL_ROWS | {"mouse_buttons": {}},
        {0: 0, 1: 1, 2: 2, 3: 3, 6: 6, 7: 7},
        {"mouse_buttons": "new, 2 choices start fresh"},
    ),
    "gamepad from keyboard": (
        "keyboard_mouse",
        "gamepad",
        {},
        {},
        {"buttons": "new, 2 choices start fresh", "left_stick_x": "new, 11 choices start fresh"},
    ),
    "keyboard from gamepad": ("gamepad", "keyboard_mouse", {}, {}, {"keys": "new, 20 choices start fresh"}),
    "some of a gamepad": (
        "gamepad",
        space(
            {"kind": "switch", "name": "buttons", "names": ["start", "south", "turbo"]},
            ActionSpace.gamepad().to_dict()["groups"][2],
        ),
        {"buttons": rows(2), "left_stick_y": rows(11)},
        {0: 8, 1: 0, 3: 13},
        {"buttons": "2 of 2 choices carried over", "left_stick_y": "11 of 11 choices carried over"},
    ),
}


def expected_entry(name, fresh, weights, groups, tokens, source_tokens):
    """What an entry must hold after carrying over, row by row."""
    for prefix in ("action_embedding.tables.", "decoder.heads."):
        if name.startswith(prefix):
            pairs = groups.get(name.removeprefix(prefix).split(".")[0], {})
            break
    else:
        if name not in ("tokens.action_positions", "decoder.positions"):
            return weights[name]
        lead = len(weights[name]) - source_tokens
        assert lead == int(name == "decoder.positions" and "decoder.project.weight" in fresh)
        pairs = {i: i for i in range(lead)} | {to + lead: of + lead for to, of in tokens.items()}
    out = fresh[name].clone()
    for to, of in pairs.items():
        out[to] = weights[name][of]
    return out


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("case", SPACES)
def test_rows_go_to_their_names(case, decoder):
    source, target, groups, tokens, _ = SPACES[case]
    before = tiny.tiny_policy(seed=1, decoder=decoder, action_space=source)
    after = tiny.tiny_policy(seed=2, decoder=decoder, action_space=target)
    weights, fresh = before.state_dict(), copied(after.state_dict())
    carried = carry_over(weights, before, fresh, after)
    assert carried.state.keys() == fresh.keys()
    count = before.action_space.tokens
    for name, tensor in carried.state.items():
        assert torch.equal(tensor, expected_entry(name, fresh, weights, groups, tokens, count)), name
    after.load_state_dict(carried.state)
    assert same(fresh, tiny.tiny_policy(seed=2, decoder=decoder, action_space=target).state_dict())
    assert set(carried.left) == weights.keys() - fresh.keys()


@pytest.mark.parametrize("case", SPACES)
def test_what_was_carried_over_is_told(case):
    source, target, _, _, told = SPACES[case]
    before, after = (tiny.tiny_policy(seed=s, action_space=a) for s, a in ((1, source), (2, target)))
    fresh = {name: torch.full_like(tensor, 123) for name, tensor in after.state_dict().items()}
    carried = carry_over(before.state_dict(), before, fresh, after)
    assert list(carried.groups) == [g.name for g in after.action_space.groups]
    assert {name: carried.groups[name] for name in told} == told
    lines = str(carried).splitlines()
    taken = sum(bool((tensor != 123).any()) for tensor in carried.state.values())
    assert lines[0] == f"{taken} of {len(fresh)} weights carried over; actions:"
    assert [line.split() for line in lines[1:]] == [[name, *what.split()] for name, what in carried.groups.items()]


def test_the_policy_holds_what_was_carried_over(save):
    """The way through FineTune: space by name and as data, preprocessing kept."""
    source = tiny.tiny_policy(seed=1, resize="bilinear", fps=10.0, thinking_tokens=2, z_loss=1e-3)
    where, weights = save(source), source.state_dict()
    pad = FineTune(where, action_space="gamepad")
    outside = {n for n in weights if not n.startswith(("action_embedding.", "decoder.", "tokens.action_positions"))}
    outside |= {n for n in weights if n.startswith(("decoder.blocks.", "decoder.project."))}
    state = pad.state_dict()
    assert all(torch.equal(state[n], weights[n]) for n in outside)
    assert torch.equal(state["decoder.positions"][0], weights["decoder.positions"][0])
    assert not (state["decoder.positions"][1:9] == weights["decoder.positions"][1:]).any()
    assert pad.config == source.config | {"action_space": ActionSpace.gamepad().to_dict()}
    more = FineTune(where, action_space={"name": "keyboard_mouse", "extra_keys": ["r"]})
    for name in ("action_embedding.tables.keys.weight", "decoder.heads.keys.weight", "decoder.heads.keys.bias"):
        assert torch.equal(more.state_dict()[name][:20], weights[name]) and len(more.state_dict()[name]) == 21
    shorter = FineTune(where, window=3)
    assert shorter.config == source.config | {"window": 3} and same(shorter.state_dict(), weights)


def test_a_frozen_encoder_of_the_source_is_thawed(save):
    """In fine-tuning ``freeze`` alone says what is frozen; the exported policy is not marked as frozen either."""
    source = tiny.tiny_policy(encoder={"frozen": True})
    policy = FineTune(save(source))
    assert all(p.requires_grad for p in policy.parameters())
    assert policy.config["encoder"]["init_args"] == source.config["encoder"]["init_args"] | {"frozen": False}


def carried_between(before, after, without=(), more=None):
    weights = {k: v for k, v in before.state_dict().items() if k not in without} | (more or {})
    return carry_over(weights, before, after.state_dict(), after)


def test_other_misfits_are_named():
    policy = tiny.tiny_policy()
    gone = "transformer.blocks.1.ffn.down.weight"
    with pytest.raises(UserError, match=rf"{gone} is missing"):
        carried_between(policy, policy, without=[gone])
    with pytest.raises(UserError, match=r"value_head.weight has no place"):
        carried_between(policy, policy, more={"value_head.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"tokens.image_positions is \[1, 32\] in the source and \[3, 32\] here"):
        carried_between(policy, tiny.tiny_policy(encoder={"tokens": 3}))
    with pytest.raises(UserError, match=r"transformer.blocks.2.*has no place"):
        carried_between(tiny.tiny_policy(transformer={"layers": 3}), policy)


def test_misfits_of_entries_with_rows_are_named():
    policy = tiny.tiny_policy()
    heads = {"decoder.heads.keys.weight": torch.zeros(20, 48)}
    with pytest.raises(UserError, match=r"decoder.heads.keys.weight is \[20, 48\] in the source and \[20, 32\] here"):
        carried_between(policy, policy, more=heads)
    with pytest.raises(UserError, match=r"\w+\.\w+.* is \[.*32.*\] in the source and \[.*48.*\] here"):
        carried_between(policy, tiny.tiny_policy(transformer={"width": 48}))


def test_text_of_another_width_is_named(save):
    with pytest.raises(UserError, match=r"tokens.text_projection.weight is \[32, 16\] .* \[32, 24\]"):
        FineTune(save(tiny.tiny_policy()), text_dim=24)


@pytest.mark.parametrize("decoder", DECODERS)
def test_before_training_it_decides_like_its_source(decoder, save):
    source = tiny.tiny_policy(decoder=decoder, transformer={"sinks": 1})
    batch = tiny.tiny_batch(source)
    assert same(logits_of(FineTune(save(source)), batch), logits_of(source, batch))


@pytest.mark.parametrize("decoder", DECODERS)
def test_new_keys_change_nothing_about_the_old_ones(decoder, save):
    """All that goes into the heads is the same; heads of another size may sum in another order."""
    source = tiny.tiny_policy(decoder=decoder)
    policy = FineTune(save(source), action_space={"name": "keyboard_mouse", "extra_keys": ["r", "LeftControl"]})
    batch, inputs = tiny.tiny_batch(source), {}

    def note(name, head, args):
        inputs.setdefault(name, []).append(args[0])

    for either in (source, policy):
        for name, head in either.decoder.heads.items():
            head.register_forward_pre_hook(partial(note, name))
    before, after = logits_of(source, batch), logits_of(policy, batch)
    assert after["keys"].shape[-1] == 22
    for name, (ours, theirs) in inputs.items():
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(after[name][..., : before[name].shape[-1]], before[name], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------- LoRA

QUICK = partial(torch.optim.AdamW, lr=1e-2)


def test_lora_changes_nothing_before_training(save):
    source = tiny.tiny_policy()
    batch = tiny.tiny_batch(source)
    policy = FineTune(save(source), lora=LoRA(rank=2, dropout=0.5))
    assert same(logits_of(policy, batch), logits_of(source, batch))
    assert policy.config == source.config


def test_lora_trains_the_matrices_and_the_other_parts(save):
    source = tiny.tiny_policy(transformer={"sinks": 1})
    policy = FineTune(save(source), lora=LoRA(rank=2), optimizer=QUICK)
    before = copied(policy.state_dict())
    matrices = {n for n in before if ".lora_" in n}
    layers = {"attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"}
    expected = {
        f"transformer.blocks.{i}.{layer}.lora_{x}.default.weight" for i in (0, 1) for layer in layers for x in "AB"
    }
    assert matrices == expected and all(min(before[n].shape) == 2 for n in matrices)
    trained(policy, 3)
    changed = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in changed if n.startswith("transformer.")} == matrices
    others = {n for n, _ in policy.named_parameters() if not n.startswith("transformer.")}
    assert others <= changed


def test_lora_only_on_the_layers_asked_for(save):
    policy = FineTune(save(tiny.tiny_policy()), lora=LoRA(rank=3, layers=["qkv"]))
    trainable = {n for n, p in policy.transformer.named_parameters() if p.requires_grad}
    assert trainable == {f"blocks.{i}.attention.qkv.lora_{x}.default.weight" for i in (0, 1) for x in "AB"}


def test_lora_is_merged_on_export(save, tmp_path):
    source = tiny.tiny_policy()
    policy = FineTune(save(source), lora=LoRA(rank=2, alpha=6, dropout=0.1), optimizer=QUICK)
    trainer = trained(policy, 4)
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    batch = tiny.tiny_batch(policy, seed=9)
    ours = logits_of(policy, batch)
    exported = BCPolicy.from_pretrained(save(policy, "tuned"))
    assert type(exported) is BCPolicy and exported.config == source.config
    merged = logits_of(exported, batch)
    for name in ours:
        torch.testing.assert_close(merged[name], ours[name], atol=1e-5, rtol=0)
    loaded = BCPolicy.from_pretrained(tmp_path / "lora.ckpt")
    assert same(loaded.state_dict(), exported.state_dict()) and loaded.config == exported.config
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    without = logits_of(policy, batch)
    assert any((without[name] - ours[name]).abs().max() > 1e-3 for name in ours)  # or merging would show nothing


def test_a_second_fine_tuning_goes_on_from_the_merged_weights(save, tmp_path):
    policy = FineTune(save(tiny.tiny_policy()), lora=LoRA(rank=2), optimizer=QUICK)
    trained(policy, 2).save_checkpoint(tmp_path / "lora.ckpt")
    merged = BCPolicy.from_pretrained(tmp_path / "lora.ckpt").state_dict()
    assert same(FineTune(str(tmp_path / "lora.ckpt")).state_dict(), merged)
    again = FineTune(str(tmp_path / "lora.ckpt"), lora=LoRA(rank=4))
    base = {n.replace(".base_layer.", "."): v for n, v in again.state_dict().items() if ".lora_" not in n}
    assert same(base, merged)


def test_the_agent_plays_a_policy_with_lora(save):
    policy = FineTune(save(tiny.tiny_policy()), lora=LoRA(rank=2), optimizer=QUICK)
    trained(policy, 2)
    exported = BCPolicy.from_pretrained(save(policy, "tuned"))
    agents = [p.agent(greedy=True) for p in (policy, exported)]
    frames = tiny.tiny_batch(policy)["frames"][0].permute(0, 2, 3, 1).numpy()
    for frame in frames:
        ours, theirs = (agent.step(frame) for agent in agents)
        for name in ours.probabilities:
            torch.testing.assert_close(*map(torch.from_numpy, (ours.probabilities[name], theirs.probabilities[name])))


def test_lora_without_peft_says_what_to_install(save, monkeypatch):
    where = save(tiny.tiny_policy())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'bczoo\[lora\]'"):
        FineTune(where, lora=LoRA())
    FineTune(where)  # nothing else needs it


@pytest.mark.parametrize(
    "lora", [LoRA(layers=["qkv", "kqv"]), LoRA(layers=[]), LoRA(rank=0)], ids=["unknown", "none", "rank"]
)
def test_lora_that_cannot_be(lora, save):
    with pytest.raises(UserError, match=r"rank of at least 1 .*\['down', 'gate_up', 'out', 'qkv'\]"):
        FineTune(save(tiny.tiny_policy()), lora=lora)


def test_lora_and_a_frozen_transformer_contradict_each_other(save):
    where = save(tiny.tiny_policy())
    with pytest.raises(UserError, match="freeze names the transformer"):
        FineTune(where, lora=LoRA(), freeze={"transformer": 5})
    FineTune(where, lora=LoRA(), freeze={"transformer": False, "encoder": True})


# ---------------------------------------------------------------------------------------------------- freezing


def part_of(policy, part) -> dict[str, torch.Tensor]:
    prefixes = ("tokens.", "action_embedding.") if part == "embeddings" else (f"{part}.",)
    return {n: v for n, v in policy.state_dict().items() if n.startswith(prefixes)}


class Snapshots(L.Callback):
    """The weights after every batch, with the optimiser steps made until then; optionally written at the end."""

    def __init__(self, folder=None):
        self.states, self.steps, self.folder = [], [], folder

    def on_train_start(self, trainer, pl_module):
        self.states, self.steps = [copied(pl_module.state_dict())], [0]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append(copied(pl_module.state_dict()))
        self.steps.append(trainer.global_step)

    def on_train_end(self, trainer, pl_module):
        if self.folder is not None:
            torch.save(self.states, self.folder / f"rank{trainer.global_rank}.pt")


def only(state, part_names):
    return {n: state[n] for n in part_names}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_frozen_for_exactly_so_many_steps(part, save):
    """With weight decay and BatchNorm, and with a validation after every step."""
    policy = FineTune(save(tiny.tiny_policy(decoder=PLAIN_DECODER)), freeze={part: 2}, optimizer=QUICK)
    names, parameters = list(part_of(policy, part)), {n for n, _ in policy.named_parameters()}
    if part == "encoder":
        assert any("running_mean" in n for n in names)
    seen = Snapshots()
    trained(policy, 4, seen, val=batches(policy, 1), val_check_interval=1)
    start, first, second, third, _ = seen.states
    assert seen.steps == [0, 1, 2, 3, 4]
    assert same(only(first, names), only(start, names)) and same(only(second, names), only(start, names))
    assert [n for n in names if torch.equal(third[n], second[n])] == []
    others = parameters - set(names)
    assert [n for n in others if torch.equal(first[n], start[n])] == []


def test_steps_of_the_optimiser_count_not_batches(save):
    policy = FineTune(save(tiny.tiny_policy()), freeze={"encoder": 2}, optimizer=QUICK)
    names = list(part_of(policy, "encoder"))
    seen = Snapshots()
    trained(policy, 3, seen, data=batches(policy, 6), accumulate_grad_batches=2)
    assert seen.steps == [0, 0, 1, 1, 2, 2, 3]
    assert all(same(only(state, names), only(seen.states[0], names)) for state in seen.states[:5])
    assert not same(only(seen.states[6], names), only(seen.states[0], names))


def test_another_training_of_the_same_policy_counts_anew(save):
    policy = FineTune(save(tiny.tiny_policy()), freeze={"encoder": 2}, optimizer=QUICK)
    names = list(part_of(policy, "encoder"))
    trained(policy, 1)  # ends while the encoder is frozen
    seen = Snapshots()
    trained(policy, 3, seen)
    start, _, second, third = seen.states
    assert same(only(second, names), only(start, names))
    assert [n for n in names if torch.equal(third[n], second[n])] == []


@pytest.mark.parametrize("frozen", [["encoder"], ["encoder", "transformer", "embeddings"]], ids=len)
def test_frozen_for_ever(frozen, save):
    policy = FineTune(save(tiny.tiny_policy()), freeze=dict.fromkeys(frozen, True), optimizer=QUICK)
    before = copied(policy.state_dict())
    trainer = trained(policy, 3, val=batches(policy, 1), val_check_interval=1, gradient_clip_val=1.0)
    after = policy.state_dict()
    for part in PARTS:
        changed = [n for n in part_of(policy, part) if not torch.equal(after[n], before[n])]
        assert bool(changed) == (part not in frozen), part
    learned = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for part in frozen:
        assert not any(id(p) in learned or p.requires_grad for p in policy._parameters_of(part))
    policy.train()
    assert not policy.encoder.training and policy.decoder.training


def test_zero_and_false_freeze_nothing(save):
    policy = FineTune(save(tiny.tiny_policy()), freeze={"encoder": 0, "transformer": False}, optimizer=QUICK)
    seen = Snapshots()
    trained(policy, 1, seen)
    first, start = seen.states[1], seen.states[0]
    assert [n for n, _ in policy.named_parameters() if torch.equal(first[n], start[n])] == []


def test_dropout_rests_in_a_frozen_part(save):
    """A frozen part is in evaluation mode, which a decoder shows by deciding the same twice."""
    source = tiny.tiny_policy(decoder=partial(ActionDecoder, layers=1, heads=4, dropout=0.5))
    batch = tiny.tiny_batch(source)
    for freeze, equal in (({"decoder": True}, True), ({}, False)):
        policy = FineTune(save(source), freeze=freeze).train()
        policy.encoder.eval()
        a, b = (policy(batch["frames"], batch["actions"]) for _ in range(2))
        assert same(a, b) == equal


def two_processes(policy, data, folder, **options):
    """Weights after every step of each process, of a policy that was trained in two."""
    trained(policy, 4, Snapshots(folder), data=data, **several(2), **options)
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(states) for states in ranks] == [5, 5]
    return ranks


FROZEN = {"freeze": {"encoder": 2, "embeddings": True}, "optimizer": partial(torch.optim.SGD, lr=0.1)}


def test_freezing_in_two_processes(save, tmp_path):
    """Each process sees batches of its own; what they learn is the same all the same."""
    source = tiny.tiny_policy(decoder=PLAIN_DECODER, text_dim=None)
    policy = FineTune(save(source), **FROZEN)
    ranks = two_processes(policy, batches(source, 8), tmp_path)
    parameters = [n for n, _ in policy.named_parameters()]
    assert same(only(ranks[0][-1], parameters), only(ranks[1][-1], parameters))
    assert not same(ranks[0][-1], ranks[1][-1])  # statistics of their own batches
    encoder, embeddings = (list(part_of(policy, part)) for part in ("encoder", "embeddings"))
    rest = [n for n in parameters if n not in encoder + embeddings]
    for start, first, second, third, last in ranks:
        assert same(only(second, encoder), only(start, encoder))
        assert [n for n in encoder if torch.equal(third[n], second[n])] == []
        assert [n for n in rest if torch.equal(first[n], start[n])] == []
        assert same(only(last, embeddings), only(start, embeddings))
    assert same(policy.state_dict(), ranks[0][-1])


def test_two_processes_learn_what_one_learns(save, tmp_path):
    """With the same batches in both; the norm to which gradients are clipped leaves out the frozen part in both."""
    source = tiny.tiny_policy(decoder=PLAIN_DECODER, text_dim=None)
    where, data = save(source), batches(source, 4)
    alone = FineTune(where, **FROZEN)
    trained(alone, 4, data=data, gradient_clip_val=0.1)
    ranks = two_processes(
        FineTune(where, **FROZEN), data, tmp_path, gradient_clip_val=0.1, use_distributed_sampler=False
    )
    assert same(ranks[0][-1], ranks[1][-1])
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(ranks[0][-1][name], tensor, atol=1e-5, rtol=0, msg=name)


class Rates(L.Callback):
    """Learning rates of every step by the name of their group."""

    def on_train_start(self, trainer, pl_module):
        self.steps = []

    def on_train_batch_start(self, trainer, *_):
        self.steps.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


def test_every_part_has_its_learning_rate_under_a_schedule(save):
    rates = {"encoder": 3e-5, "decoder": 1e-2}
    policy = FineTune(
        save(tiny.tiny_policy()),
        learning_rate=rates,
        freeze={"encoder": 2},
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        lr_scheduler=partial(WarmupCosine, warmup=0.5),
    )
    seen = Rates()
    trainer = trained(policy, 6, seen)
    groups = {g["name"]: {id(p) for p in g["params"]} for g in trainer.optimizers[0].param_groups}
    own = {part: {id(p) for n, p in policy.named_parameters() if n.startswith(f"{part}.")} for part in rates}
    assert groups == own | {"rest": {id(p) for p in policy.parameters()} - own["encoder"] - own["decoder"]}
    factors = [1 / 3, 2 / 3, 1, *(0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3))]
    for step, factor in zip(seen.steps, factors, strict=True):
        assert step == pytest.approx({k: v * factor for k, v in (rates | {"rest": 1e-4}).items()})


def test_a_rate_of_zero_is_a_rate(save):
    policy = FineTune(save(tiny.tiny_policy()), learning_rate={"transformer": 0.0}, optimizer=QUICK)
    before = copied(policy.state_dict())
    trained(policy, 1)
    kept = {n for n, p in policy.named_parameters() if torch.equal(p, before[n])}
    assert kept == {n for n, _ in policy.named_parameters() if n.startswith("transformer.")}


def test_a_frozen_part_needs_no_group(save):
    policy = FineTune(save(tiny.tiny_policy()), learning_rate={"encoder": 1.0}, freeze={"encoder": True})
    (group,) = policy.parameter_groups()
    assert group["name"] == "rest" and len(group["params"]) == sum(p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("option", ["freeze", "learning_rate"])
def test_unknown_parts_are_told_with_the_known_ones(option, save):
    with pytest.raises(UserError, match=rf"{option}.*'encodr'.*encoder, transformer, decoder, embeddings"):
        FineTune(save(tiny.tiny_policy()), **{option: {"encodr": 3, "decoder": 1}})


# ---------------------------------------------------------------------------------------------------- instructions


def texts_seen(policy):
    """The texts that a policy is given from now on."""
    seen = []

    logits = policy.window_logits

    def note(images, actions, text=None, labels=None):
        seen.append(text)
        return logits(images, actions, text, labels)

    policy.window_logits = note
    return seen


def with_words(**arguments):
    return tiny.tiny_policy(text_encoder=Words(), **arguments)


def test_steps_without_a_text_see_the_instruction(save, capsys):
    policy = FineTune(save(with_words()), instruction="go to the red door")
    embedding = Words()(["go to the red door"])[0]
    (batch,), seen = batches(policy, 1), texts_seen(policy)
    assert (batch["text"] == 0).all(-1).any() and (batch["text"] != 0).any()
    plain = {k: v for k, v in batch.items() if k != "text"}  # as of recordings without any text
    trained(policy, 2, data=[batch, plain], val=[batch])
    expected = torch.where((batch["text"] == 0).all(-1, keepdim=True), embedding, batch["text"])
    assert len(seen) == 3
    for text, wanted in zip(seen, [expected, embedding.expand_as(expected), expected], strict=True):
        assert torch.equal(text, wanted)
    assert "the data was not compared with the policy" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_instruction_holds_in_evaluation_too(stage, save):
    """What a policy learned under an instruction is measured under it."""
    policy = FineTune(save(with_words()), instruction="go to the red door")
    (batch,), seen = batches(policy, 1), texts_seen(policy)
    batch["text"] = torch.zeros_like(batch["text"])
    getattr(L.Trainer(**QUIET), stage)(policy, DataLoader([batch], batch_size=None))
    assert torch.equal(seen[0], Words()(["go to the red door"])[0].expand_as(seen[0]))


def test_without_an_instruction_texts_are_left_alone(save):
    policy = FineTune(save(with_words()))
    (batch,), seen = batches(policy, 1), texts_seen(policy)
    trained(policy, 1, data=[batch])
    assert torch.equal(seen[0], batch["text"])


def test_an_instruction_that_cannot_be_given(save):
    for name, source in {
        "no-text": tiny.tiny_policy(text_dim=None),
        "no-encoder": tiny.tiny_policy(),
        "no-width": tiny.tiny_policy(text_dim=None, text_encoder=Words()),
    }.items():
        with pytest.raises(UserError, match=r"cannot learn under the instruction 'go'.*text_dim and text_encoder"):
            FineTune(save(source, name), instruction="go")
        FineTune(save(source, name), instruction="go", text_dim=16, text_encoder=Words())


def test_an_encoder_of_another_width_is_told(save):
    policy = FineTune(save(with_words()), instruction="go", text_encoder=Words(width=24))
    with pytest.raises(UserError, match=r"24.*16"):
        trained(policy, 1)


def test_text_can_be_added(save):
    """The source knows no text; the new entries start fresh, the rest is carried over, and it saves and loads."""
    source = tiny.tiny_policy(text_dim=None)
    policy = FineTune(
        save(source), instruction="go", text_dim=16, text_encoder=Words(), freeze={"transformer": True}, optimizer=QUICK
    )
    new = {"tokens.text_projection.weight", "tokens.text_position", "tokens.no_text"}
    state = policy.state_dict()
    assert state.keys() - source.state_dict().keys() == new
    assert same({n: v for n, v in state.items() if n not in new}, source.state_dict())
    fresh = copied(state)
    data = [{k: v for k, v in b.items() if k != "text"} for b in batches(policy, 2)]
    trained(policy, 2, data=data)
    assert all(not torch.equal(policy.state_dict()[n], fresh[n]) for n in new - {"tokens.no_text"})
    loaded = BCPolicy.from_pretrained(save(policy, "tuned"))
    assert loaded.config == policy.config and type(loaded.text_encoder) is Words
    assert loaded.config == source.config | {"text_dim": 16, "text_encoder": Words().spec}
    batch = tiny.tiny_batch(policy)
    assert same(logits_of(loaded, batch), logits_of(policy, batch))
    loaded.agent().step(batch["frames"][0, 0].numpy(), text="go")


# ---------------------------------------------------------------------------------------------------- change points


def slow_change_points(actions, counted):
    out = torch.zeros_like(counted)
    for b in range(counted.shape[0]):
        for t in range(1, counted.shape[1]):
            now, before = ([ids[b, i].tolist() for ids in actions.values()] for i in (t, t - 1))
            out[b, t] = bool(counted[b, t]) and bool(counted[b, t - 1]) and now != before
    return out


def sticky_actions(space, batch, steps, seed):
    """Actions that are often repeated, and sometimes change in one group alone."""
    torch.manual_seed(seed)
    actions = tiny.random_actions(space, batch, steps)
    for ids in actions.values():
        for t in range(1, steps):
            again = torch.rand(batch) < 0.8
            ids[again, t] = ids[again, t - 1]
    return actions


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_change_points_against_a_slow_count(steps):
    actions = sticky_actions(ActionSpace.keyboard_mouse(), 4, steps, seed=3)
    counted = torch.rand(4, steps) < 0.8
    points = change_points(actions, counted)
    assert points.dtype == torch.bool and torch.equal(points, slow_change_points(actions, counted))
    if steps == 30:
        everywhere = slow_change_points(actions, torch.ones_like(counted))
        assert points.any() and (everywhere & counted & ~points).any() and (counted & ~everywhere).any()


def changes(policy, batch, changing=True):
    batch = copy.deepcopy(batch)
    space, shape = policy.action_space, batch["user"].shape
    batch["actions"] = sticky_actions(space, *shape, seed=4)
    if not changing:
        batch["actions"] = {k: v[:, :1].expand_as(v).clone() for k, v in batch["actions"].items()}
    return batch


def evaluated(policy, data):
    (metrics,) = L.Trainer(**QUIET).validate(policy, DataLoader(data, batch_size=None), verbose=False)
    return metrics


def slow_change_perplexity(policy, data):
    nats = {g.name: [] for g in policy.action_space.groups}
    for batch in data:
        logits, counted = logits_of(policy, batch), batch["user"] & batch["valid"]
        for b, t in slow_change_points(batch["actions"], counted).nonzero().tolist():
            for name, ids in batch["actions"].items():
                for i, choice in enumerate(ids[b, t].tolist()):
                    nats[name].append(-logits[name][b, t, i].double().log_softmax(-1)[choice].item())
    return {name: math.exp(sum(values) / len(values)) for name, values in nats.items()}


def test_change_perplexity_is_of_the_change_points_alone():
    """Masked steps, a batch without any change, and a batch in which nothing counts."""
    policy = tiny.tiny_policy().eval()
    first, second, third = batches(policy, 3)
    first = changes(policy, first)
    first["user"][0, 2] = False
    first["valid"][1, 3:] = False
    still = changes(policy, second, changing=False)
    uncounted = changes(policy, third)
    uncounted["user"][:] = False
    last = changes(policy, third)
    data = [still, first, uncounted, last]
    metrics = evaluated(policy, data)
    expected = slow_change_perplexity(policy, [first, last])
    for name, value in expected.items():
        assert metrics[f"val/change_perplexity/{name}"] == pytest.approx(value, rel=1e-5)
        assert metrics[f"val/perplexity/{name}"] != pytest.approx(value, rel=1e-3)


def test_without_any_change_there_is_no_number_and_nothing_else_suffers(recwarn):
    """No change in all of the epoch: not a number, which no comparison takes for a good one."""
    policy = tiny.tiny_policy().eval()
    still = changes(policy, batches(policy, 1)[0], changing=False)
    metrics = evaluated(policy, [still])
    for name, value in metrics.items():
        assert math.isnan(value) == ("change_perplexity" in name), name
    assert not [w for w in recwarn if "compute" in str(w.message)]
    again = evaluated(policy, [still, changes(policy, still)])
    assert all(math.isfinite(value) for value in again.values())


def test_a_policy_that_only_repeats_is_shown_up():
    """Logits that repeat the last action look good on average and bad at the change points."""
    policy = tiny.tiny_policy()
    batch = changes(policy, tiny.tiny_batch(policy, batch=4, steps=20))
    batch["actions"] = sticky_actions(policy.action_space, 4, 20, seed=5)
    counted = torch.ones(4, 20, dtype=torch.bool)
    logits = {}
    for g in policy.action_space.groups:
        last = batch["actions"][g.name].roll(1, dims=1)
        logits[g.name] = 3.0 * torch.nn.functional.one_hot(last, g.choices).float()
    metrics = policy.metrics["val"]
    metrics.update(logits, batch["actions"], counted)
    values = metrics.compute()
    for g in policy.action_space.groups:
        assert values[f"change_perplexity/{g.name}"] > 1.2 * values[f"perplexity/{g.name}"]
        # it repeats, whatever it sees; the first step has none before it
        ids = batch["actions"][g.name]
        assert values[f"repeat_accuracy/{g.name}"] == pytest.approx((ids[:, 1:] == ids[:, :-1]).float().mean().item())
        at_changes = values[f"change_accuracy/{g.name}"], values[f"change_repeat_accuracy/{g.name}"]
        assert at_changes[0] == pytest.approx(at_changes[1].item())
