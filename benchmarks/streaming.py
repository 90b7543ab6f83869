"""What a step of play costs: streaming against recomputing the window, one pass against two, many games at once.

    python benchmarks/streaming.py [--sizes 150m 1.2b] [--games 1 2 4 8 16 32 64] [--dtype bfloat16] [--device cuda]

For each size, variants take turns in one run, so that a machine whose speed drifts slows all of them; medians and
ratios are printed. Weights are random and frames are noise, which changes no shape. The variants:

    streaming            as bczoo plays: one backbone pass over the memory
    before the window is full   the same in the first steps of a game (cost should not depend on time)
    two passes           as in the reference: one for the decision, another to write the action into the memory; never
                         in CUDA graphs, so on a GPU to be compared with one pass without
    token by token       the decoder's eight small passes instead of passes over all tokens behind a guess (CPU)
    matrices not packed  the policy itself instead of ``policy.for_play()`` (CPU)
    recomputing          the last window of steps from the start, image tokens kept; a few turns only
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bczoo import BCPolicy
from bczoo.core.threads import tune_for_cpu
from bczoo.models.bc import session
from bczoo.models.bc.session import BCSession
from bczoo.play.agent import Agent
from bczoo.play.bench import weight_bytes

FRAMES = np.random.default_rng(0).integers(0, 256, (16, 192, 192, 3), dtype=np.uint8)


class TwoPasses(BCSession):
    """The reference's way: the observation first, then the chosen action in a pass of its own."""

    def observe(self, images: Tensor, text: Tensor, rows: Tensor | None = None) -> Tensor:
        seen = self.policy.tokens.observation(images[:, None], text[:, None])[:, 0]
        slots = torch.arange(self.layout.action_out + 1, device=self.device)
        steps = self.steps[:, None].expand(-1, len(slots))
        return self.memory.run(seen, rows, self.steps, steps, slots)[:, -1]

    def decode(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        now = self.steps.clone()
        ids, p = super().decode(*arguments)
        taken = self.policy.tokens.actions(self.policy.action_embedding.of(ids))
        self.memory.run(taken, None, now, now[:, None].expand(-1, taken.shape[1]), self.action_slots)
        return ids, p


class Player:
    """Steps of one variant."""

    def __init__(
        self, policy: BCPolicy, games: int, two_passes: bool = False, guess: bool = True, graphs: bool | None = None
    ) -> None:
        self.agent = Agent(policy, games, cuda_graphs=False if two_passes else graphs)
        self.games, self.guess, self.steps = games, guess, 0
        if two_passes:
            self.agent.session = TwoPasses(policy, games, self.agent.sampler)
        self.rows = list(range(games))

    def __call__(self) -> float:
        """Seconds of one step."""
        shown = [FRAMES[(self.steps + row) % len(FRAMES)] for row in self.rows]
        most, session.MOST_GUESSED = session.MOST_GUESSED, session.MOST_GUESSED if self.guess else 0
        started = time.perf_counter()
        self.agent.step_many(self.rows, shown)
        took = time.perf_counter() - started
        session.MOST_GUESSED = most
        self.steps += 1
        return took


class Recomputing:
    """The decision of the last step of a full window, from the window's image tokens and actions."""

    def __init__(self, policy: BCPolicy) -> None:
        self.policy, window = policy, policy.input_spec.window
        first = policy.transformer.blocks[0].attention_norm.scale
        self.images = torch.randn(1, window, policy.encoder.tokens, policy.transformer.width).to(first)
        self.frame = torch.zeros(1, 1, 3, policy.encoder.frame_size, policy.encoder.frame_size, dtype=torch.uint8)
        self.frame = self.frame.to(first.device)
        self.actions = {
            g.name: torch.randint(0, g.choices, (1, window, g.tokens), device=first.device)
            for g in policy.action_space.groups
        }

    @torch.no_grad()
    def __call__(self) -> float:
        started = time.perf_counter()
        images = torch.cat([self.images[:, 1:], self.policy.encode(self.frame)], dim=1)
        embedded = self.policy.action_embedding(self.actions)
        last = self.policy.latents(images, embedded)[:, -1:]
        float(self.policy.decoder(last, embedded[:, -1:])["keys"].sum())  # looks at the result, as play does
        return time.perf_counter() - started


def take_turns(variants: dict[str, Callable[[], float]], rounds: int, sometimes: dict[str, int]) -> dict[str, float]:
    """Median milliseconds of each variant; those named in ``sometimes`` only have so many turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name, variant in variants.items():
            if turn < sometimes.get(name, rounds):
                seconds[name].append(variant())
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def ways(original: BCPolicy, policy: BCPolicy, options: argparse.Namespace) -> None:
    """Streaming beside the other ways to come to the same decision."""
    window = policy.input_spec.window
    full, two, chain = Player(policy, 1), Player(policy, 1, two_passes=True), Player(policy, 1, guess=False)
    begun, loose = Player(policy, 1), Player(original, 1)
    for player in (full, two, chain, loose):  # a memory that is full costs no more, but let nobody take our word for it
        player.agent.session.steps.fill_(10 * window)
        player.agent.session.memory.held.copy_(10 * window - 1 - torch.arange(window + 1).flip(0))
        for _ in range(options.warm_up):
            player()
    begun()

    def early() -> float:
        if begun.steps > options.rounds:
            begun.agent.reset()
        return begun()

    variants: dict[str, Callable[[], float]] = {
        "streaming": full,
        "before the window is full": early,
        "two passes": two,
    }
    if options.device != "cpu":  # what two passes are to be compared with there
        variants["one pass without CUDA graphs"] = Player(policy, 1, graphs=False)
    else:
        variants["token by token"] = chain
        variants["matrices not packed"] = loose
    variants["recomputing the window"] = Recomputing(policy)
    variants["recomputing the window"]()  # what is compiled is compiled now
    took = take_turns(variants, options.rounds, {"recomputing the window": options.recomputed})
    print(f"{'':28}{'ms a step':>12}{'ratio':>8}")
    for name, median in took.items():
        print(f"{name:28}{median:12.1f}{median / took['streaming']:8.2f}")


def many(policy: BCPolicy, options: argparse.Namespace) -> None:
    """Several games in one forward."""
    one = Player(policy, 1)
    each = one.agent.session.memory_bytes
    weights = weight_bytes(policy)
    print(f"\n{'games':>6}{'ms a step':>12}{'ms a game':>12}{'speed-up':>10}")
    alone = 0.0
    for games in options.games:
        if weights + games * each > options.memory_gb * 1e9:
            print(f"{games:6}  not run: takes more than {options.memory_gb:g} GB")
            continue
        player = Player(policy, games)
        player()
        both = take_turns({"one": one, "many": player}, max(3, options.rounds // 3), {})
        alone = both["one"]
        print(f"{games:6}{both['many']:12.1f}{both['many'] / games:12.2f}{games * alone / both['many']:10.2f}")
        del player


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["150m", "300m", "600m", "1.2b"])
    parser.add_argument("--games", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--recomputed", type=int, default=2, help="turns of recomputing the window")
    parser.add_argument("--warm_up", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--memory_gb", type=float, default=16.0, help="numbers of games that take more are left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    for size in options.sizes:
        original = BCPolicy.from_config(size, pretrained=False).to(options.device, getattr(torch, options.dtype)).eval()
        policy = original.for_play()
        print(f"\n{size}, {options.device}, {options.dtype}, window of {policy.input_spec.window} steps\n")
        ways(original, policy, options)
        del original
        many(policy, options)
        del policy


if __name__ == "__main__":
    tune_for_cpu()
    main()
