"""What the causality score costs: all T scores of a window in one pass, against a plain validation pass.

    python benchmarks/causality.py                         # the 150m transformer, T = 200
    python benchmarks/causality.py --window 50 --width 256 --layers 4

Prints seconds per batch and ratios, measured in one run in turn: the validation pass (encode the frames, one backbone
pass, decoder), the score's own pass, which reuses the image tokens of the validation and has T short streams beside the
window's tokens, and action reliance, one more backbone pass. ``bczoo.CausalityScore`` adds both by default, and encodes
the windows that it swaps with once per validation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from bczoo import ActionDecoder, BCPolicy, ImageEncoder, PolicyTransformer
from bczoo.causality.donors import DONORS
from bczoo.causality.metrics import evaluate
from bczoo.train.loss import bc_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frame-size", type=int, default=192)
    parser.add_argument("--backbone", default="efficientnet_b0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    policy, batch = build(options)
    encoded, times = {}, {"validation": [], "score": [], "reliance": [], "encode": []}
    with torch.no_grad():
        for _ in range(options.rounds + 1):
            times["validation"].append(timed(lambda: encoded.update(validate(policy, batch)), options.device))
            times["score"].append(timed(lambda: evaluate(policy, batch, reliance=False, **encoded), options.device))
            times["reliance"].append(timed(lambda: evaluate(policy, batch, (), **encoded), options.device))
            times["encode"].append(timed(lambda: policy.encode(batch["frames"]), options.device))
    plain, score, reliance, encode = (min(seconds[1:]) for seconds in times.values())  # the first round warms up
    where = options.device if options.device != "cpu" else f"{torch.get_num_threads()} threads"
    parameters = policy.parameter_counts()["total"] / 1e6
    print(f"{parameters:.0f} M parameters, T = {options.window}, batch {options.batch}, {where}")
    print("| | seconds a batch | x validation |\n|---|---:|---:|")
    rows = {
        "validation": plain,
        "the score of all steps": score,
        "action reliance": reliance,
        "validation with the score": plain + score,
        "validation with both": plain + score + reliance,
        "the score by one forward per step, estimated from one": plain * options.window,
        f"encoding {DONORS} donors, once per validation": encode * DONORS / options.batch,
    }
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.2f} | {seconds / plain:.2f} |")


def build(options: argparse.Namespace) -> tuple[BCPolicy, dict]:
    encoder = partial(ImageEncoder, backbone=options.backbone, frame_size=options.frame_size, pretrained=False)
    transformer = PolicyTransformer(options.width, options.layers, options.heads, dropout=0.0)
    policy = BCPolicy(transformer, encoder, ActionDecoder, window=options.window).eval().to(options.device)
    shape = (options.batch, options.window)
    size = options.frame_size
    batch = {
        "frames": torch.randint(0, 256, (*shape, 3, size, size), dtype=torch.uint8),
        "actions": {g.name: torch.randint(0, g.choices, (*shape, g.tokens)) for g in policy.action_space.groups},
        "text": torch.zeros(*shape, policy.input_spec.text_dim or 0),
        "user": torch.ones(shape, dtype=torch.bool),
        "valid": torch.ones(shape, dtype=torch.bool),
        "recording": torch.arange(options.batch),
        "start": torch.zeros(options.batch, dtype=torch.long),
    }
    moved = {k: v.to(options.device) for k, v in batch.items() if k != "actions"}
    return policy, moved | {"actions": {k: v.to(options.device) for k, v in batch["actions"].items()}}


def validate(policy: BCPolicy, batch: dict) -> dict:
    """A validation step, and what it hands on."""
    images = policy.encode(batch["frames"])
    logits = policy.logits(images, batch["actions"], batch["text"])
    bc_loss(logits, batch["actions"], batch["user"] & batch["valid"])
    return {"images": images, "logits": logits}


def timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
