"""``bczoo attention``: the step mask as a picture, and where the heads of every layer look.

Place in the pipeline: runs a policy over one window of a recording (:mod:`bczoo.data`) and watches its real attention:
every layer's queries and keys are taken from the forward itself and weighed again under the mask in use.

Shape legend: T steps, S tokens of a step, L = T * S, K sinks, C = K + L keys, N heads, M key/value heads, H head dim,
Q queries that are watched, P layers, F kinds of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from bczoo.causality.leaks import require_layout
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_json
from bczoo.core.spec import Batch
from bczoo.core.style import BLUE, DASHES, PAPER, SKY, SMALL, TEXT, saved_figure, shades
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.hub.measurements import results_folder
from bczoo.models.bc.layout import StepLayout
from bczoo.nn.attention import Attend, Sinks, prepend_sinks
from bczoo.nn.text import where_untold
from bczoo.play.open import open_policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

KINDS = ("sinks", "text", "image", "thinking", "actions", "itself")
WORDS = dict(zip(KINDS, ("sinks", "text", "image", "thinking", "past actions", "itself"), strict=True))
DRAWN_STEPS = 2
MOST_WRITTEN = 8  # heads whose shares are written as numbers


@dataclass(frozen=True)
class AttentionShares:
    """Where the queries of a window look; every share is a mean over the watched queries.

    Args:
        kinds: (P, N, F) shares by kind of key, in the order of :data:`KINDS`; they sum to 1.
        ages: (P, N, T) shares by how many steps ago the key was; with the sinks, which have no age, they sum to 1.
    """

    kinds: Tensor
    ages: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: per layer the mean over its heads, and each head."""

        def named(row: Tensor) -> dict[str, float]:
            return dict(zip(KINDS, (round(x, 6) for x in row.tolist()), strict=True))

        return {
            "layers": [
                {
                    "shares": named(kinds.mean(0)),
                    "heads": [named(head) for head in kinds],
                    "by_age": [round(x, 6) for x in ages.mean(0).tolist()],
                }
                for kinds, ages in zip(self.kinds, self.ages, strict=True)
            ]
        }


def attention_report(
    policy: str,
    data: str,
    recording: str | None = None,
    start: int = 0,
    steps: int | None = None,
    all_queries: bool = False,
    text: str | None = None,
    out: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> AttentionShares:
    """Draw a policy's attention mask, and where its heads look in a window of a recording.

    Prints the shares of every layer, writes attention.json and attention.png. Watched are the queries of action_out,
    from which the action is decided, in the second half of the window, where there is a past to look at.

    Args:
        policy: an exported folder, org/name on the Hugging Face Hub, a run such as runs/quickstart, or a .ckpt file.
        data: folder of recordings, or of one.
        recording: name of the recording; the first that fills the window if left out.
        start: first frame of the window.
        steps: how long the window is; the policy's own if left out.
        all_queries: watch the queries of all tokens.
        text: instruction to the policy at steps that have none; the one it was fine-tuned under if left out.
        out: folder of the results; if left out, attention in the folder of a run, runs/attention for other policies.
        device: where the policy runs, cpu or cuda.
        revision: branch, tag or commit on the Hub.
    """
    out = out or results_folder(policy, "attention")
    require_folder_target(out, "--out")
    opened = open_policy(policy, revision, device, text=text)
    loaded, instruction = opened.policy, opened.embedding()
    require_layout(loaded)
    batch, name = read_window(loaded, data, recording, start, steps)
    if instruction is not None:
        batch["text"] = where_untold(batch["text"], instruction)
    shares = attention_shares(loaded, batch, all_queries)
    length = batch["frames"].shape[1]
    watched = "all tokens" if all_queries else "action_out"
    looks = f"{watched} look" if all_queries else f"{watched} looks"
    print(f"{name}, frames {start} to {start + length - 1}: where {looks}, in % of attention\n")
    print(shares_table(shares))
    folder = Path(out)
    settings = {"policy": policy, "data": data, "recording": name, "start": start, "steps": length}
    settings |= {"queries": watched, "text": opened.text}
    write_json(folder / "attention.json", settings | shares.to_dict(), indent=1)
    plot_attention(loaded, shares, folder / "attention.png")
    print(f"\nwrote {folder / 'attention.json'} and {folder / 'attention.png'}")
    return shares


def read_window(
    policy: Any, data: str, recording: str | None = None, start: int = 0, steps: int | None = None
) -> tuple[Batch, str]:
    """A window of a recording as a batch of one, without padding, and the recording's name.

    Args:
        policy: the policy that reads it.
        data: folder of recordings, or of one.
        recording: name; the first that fills the window if None.
        start: first frame.
        steps: T at most; the policy's window if None.
    """
    spec = policy.input_spec
    index = open_index(data, spec.action_space, spec.fps, spec.text_dim)
    index.report()
    usable = {str(index.names[r]): int(r) for r in index.usable}
    if recording is not None and recording not in usable:
        raise UserError(f"{data} has no usable recording {recording!r}; it has {', '.join([*usable][:5])}, ...")
    name = recording or _long_enough(usable, index.n_frames, start + (steps or spec.window))
    last = int(index.n_frames[usable[name]]) - 2  # the last frame has no action
    if not 0 <= start <= last:
        raise UserError(f"start is a frame of {name} from 0 to {last}, got {start}")
    if steps is not None and steps < 1:
        raise UserError(f"steps is a number from 1 on, got {steps}")
    windows = WindowDataset(index, steps or spec.window, spec.frame_size, resize=spec.resize)
    batch: Any = windows[usable[name], start]
    valid = int(batch["valid"].sum())
    if not valid:
        raise UserError(f"no frame of {name} can be read from {start} on; see bczoo data check {data}")
    short = {k: v[:, :valid] for k, v in batch.items() if isinstance(v, Tensor) and v.ndim > 1}
    return batch | short | {"actions": {k: v[:, :valid] for k, v in batch["actions"].items()}}, name


def _long_enough(usable: dict[str, int], n_frames: np.ndarray, wanted: int) -> str:
    """The first recording of more than ``wanted`` frames; the longest if none is."""
    return next(
        (name for name, r in usable.items() if n_frames[r] > wanted), max(usable, key=lambda n: n_frames[usable[n]])
    )


# ---------------------------------------------------------------------- watching


class Watch:
    """An :data:`~bczoo.nn.attention.Attend` that attends as the one it stands for, and shows queries and keys.

    Args:
        attend: the layer's own, with its mask.
        show: called with q (B, N, L, H), all keys and values (B, M, C, H), and the mask (L, C).
    """

    def __init__(self, attend: Any, show: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> None:
        self.attend, self.show = attend, show

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
        keys, values = prepend_sinks(k, v, sinks)
        self.show(q, keys, values, mask_in_use(self.attend, q.shape[2], keys.shape[2], q.device))
        return self.attend(q, k, v, sinks)


def mask_in_use(attend: Any, queries: int, keys: int, device: torch.device) -> Tensor:
    """The mask of a :class:`~bczoo.nn.attention.WindowAttention` as a boolean tensor (L, C), in both backends."""
    if isinstance(attend.mask, Tensor):
        return attend.mask
    rows, columns = torch.arange(queries, device=device)[:, None], torch.arange(keys, device=device)[None]
    return attend.mask.mask_mod(0, 0, rows, columns)


def attention_weights(q: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """What each query gives to each key: q (N, Q, H), keys (M, C, H), mask (Q, C) to (N, Q, C), rows sum to 1."""
    keys = keys.repeat_interleave(len(q) // len(keys), dim=0)
    scores = q.float() @ keys.float().transpose(1, 2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


@contextmanager
def watching(policy: Any, show: Callable[[int, Tensor, Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """While open, every forward of the backbone shows each layer's (number, q, keys, values, mask)."""

    def hook(layer: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        def watch(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            x, rotate, attend = given
            watched: Attend = Watch(attend, lambda *seen: show(layer, *seen))
            return x, rotate, watched

        return watch

    handles = [block.attention.register_forward_pre_hook(hook(i)) for i, block in enumerate(policy.transformer.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_shares(policy: Any, batch: Batch, all_queries: bool = False) -> AttentionShares:
    """Where the queries in the second half of a window look.

    Args:
        policy: the policy, in evaluation mode.
        batch: one window, as of :func:`read_window`.
        all_queries: of all tokens instead of action_out alone.
    """
    layout, sinks = policy.layout, policy.transformer.sinks
    steps = batch["frames"].shape[1]
    token = torch.arange(steps * layout.length, device=policy.device)
    step, slot = token // layout.length, token % layout.length
    queries = token[(step >= steps // 2) & ((slot == layout.action_out) | all_queries)]
    key_kind = torch.cat([token.new_zeros(sinks), _kind_of_slot(layout).to(token)[slot]])  # (C,)
    kinds, ages = [], []

    def show(layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        by_kind = q.new_zeros(q.shape[1], len(KINDS), dtype=torch.float32)
        by_age = q.new_zeros(q.shape[1], steps, dtype=torch.float32)
        for at in queries.split(layout.length * 8):  # a few at a time, for memory
            weights = attention_weights(q[0, :, at], keys[0], mask[at])  # (N, Q, C)
            by_kind.index_add_(1, key_kind, weights.sum(dim=1))
            by_step = weights[..., sinks:].unflatten(-1, (steps, layout.length)).sum(-1)  # (N, Q, T)
            age = (step[at][:, None] - torch.arange(steps, device=at.device)).clamp(min=0)  # the future weighs 0
            by_age.scatter_add_(1, age.flatten().expand(len(by_age), -1), by_step.flatten(1))
        kinds.append(by_kind / len(queries))
        ages.append(by_age / len(queries))

    given = move_data_to_device(batch, policy.device)
    with torch.no_grad(), watching(policy, show):
        policy(given["frames"], given["actions"], policy.instructions(given))
    return AttentionShares(torch.stack(kinds).cpu(), torch.stack(ages).cpu())


def _kind_of_slot(layout: StepLayout) -> Tensor:
    """Place in :data:`KINDS` of every slot of a step; the only action_out that a query sees is itself."""
    counts = {
        "text": layout.text,
        "image": layout.image,
        "thinking": layout.thinking,
        "itself": 1,
        "actions": layout.actions,
    }
    return torch.tensor([KINDS.index(kind) for kind, count in counts.items() for _ in range(count)])


# ---------------------------------------------------------------------- showing


def shares_table(shares: AttentionShares) -> str:
    """Shares per layer in per cent, the mean over heads and, for the actions, the least and the most of a head."""
    present = _present(shares)
    rows = [["layer", *present, "actions by head", "this step", "1 step ago"]]
    for layer, (kinds, ages) in enumerate(zip(shares.kinds, shares.ages, strict=True)):
        heads = kinds[:, KINDS.index("actions")]
        rows.append(
            [
                str(layer),
                *(f"{100 * kinds[:, KINDS.index(kind)].mean():.1f}" for kind in present),
                f"{100 * heads.min():.1f}-{100 * heads.max():.1f}",
                f"{100 * ages[:, 0].mean():.1f}",
                f"{100 * ages[:, 1].mean():.1f}" if ages.shape[1] > 1 else "-",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def _present(shares: AttentionShares) -> list[str]:
    """Kinds that some query looks at."""
    return [kind for i, kind in enumerate(KINDS) if shares.kinds[..., i].max() > 0]


def plot_attention(policy: Any, shares: AttentionShares, path: Path) -> None:
    """Write the mask, the shares by age, and the shares of every head by kind of key as a picture."""
    layers, present = len(shares.kinds), _present(shares)
    columns = len(present) if len(present) <= 4 else -(-len(present) // 2)
    rows = -(-len(present) // columns)
    above, below = 5.0, 0.5 + rows * (0.75 + max(0.16 * layers, 0.9))  # inches
    with saved_figure(path, height=above + below) as figure:
        grid = figure.add_gridspec(2, 1, height_ratios=(above, below))
        upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
        mask, ages = upper.subplots(1, 2, width_ratios=(5, 3))
        _plot_mask(mask, policy)
        _plot_ages(ages, shares)
        _plot_kinds(lower, lower.subplots(rows, columns, squeeze=False, sharex=True, sharey=True), shares)


def _plot_mask(axes: Axes, policy: Any) -> None:
    """The mask of some steps, in the layer that looks back furthest."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    layout, transformer = policy.layout, policy.transformer
    layer = transformer.histories.index(max(transformer.histories))
    attend, size = transformer.attends(DRAWN_STEPS, layout, policy.device)[layer], DRAWN_STEPS * layout.length
    mask = mask_in_use(attend, size, transformer.sinks + size, policy.device)[:, transformer.sinks :].cpu()
    shade = mask.float()
    for step in range(DRAWN_STEPS):
        shade[step * layout.length + layout.action_out] *= 2  # the decision's row stands out
    colors = (PAPER, SKY, BLUE)
    axes.imshow(shade, cmap=ListedColormap(colors), vmin=0, vmax=2)
    names, places = _runs(layout, policy.action_space)
    ticks = [step * layout.length + place for step in range(DRAWN_STEPS) for place in places]
    axes.set_xticks(ticks, names * DRAWN_STEPS, rotation=90, fontsize=SMALL)
    axes.set_yticks(ticks, names * DRAWN_STEPS, fontsize=SMALL)
    for minor in (axes.set_xticks, axes.set_yticks):
        minor([i + 0.5 for i in range(size - 1)], minor=True)
    axes.grid(visible=False, which="major")
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    for step in range(1, DRAWN_STEPS):
        axes.axhline(step * layout.length - 0.5, color=TEXT, linewidth=1)
        axes.axvline(step * layout.length - 0.5, color=TEXT, linewidth=1)
    title = f"Who may look at whom in two steps (layer {layer}{', sinks left out' * bool(transformer.sinks)})"
    axes.set_title(title, pad=24)
    axes.set_ylabel("token that looks")
    axes.set_xlabel("token that is looked at")
    words = ("hidden", "in view", "in view of the decision")
    patches = [Patch(color=color, label=word) for color, word in zip(colors, words, strict=True)]
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0}
    axes.legend(handles=patches, ncols=len(patches), handlelength=1, columnspacing=1, **above)


def _runs(layout: StepLayout, space: ActionSpace) -> tuple[list[str], list[float]]:
    """Names of the tokens of a step, alike neighbours together, and the middle of each."""
    names = ["text"] * layout.text + ["image"] * layout.image + ["thinking"] * layout.thinking + ["action_out"]
    names += [group.name.replace("_", " ") for group in space.token_groups]
    runs, first = [], 0
    for name, group in groupby(names):
        count = len(list(group))
        runs.append((name if count == 1 else f"{name} × {count}", first + (count - 1) / 2))
        first += count
    return [name for name, _ in runs], [place for _, place in runs]


def _plot_ages(axes: Axes, shares: AttentionShares) -> None:
    """How much of the attention has been given up to so many steps back, a line per layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

    layers, steps = len(shares.ages), shares.ages.shape[-1]
    colors = shades(layers)
    for layer, ages in enumerate(shares.ages):
        dash = DASHES[layer % len(DASHES)] if layers <= len(DASHES) else "-"
        cumulative = 100 * ages.mean(0).cumsum(0)
        axes.plot(range(1, steps + 1), cumulative, color=colors[layer], linestyle=dash, label=f"layer {layer}")
    axes.set_xscale("log")
    marked = (1, 2, 5, 10, 20, 50) if steps <= 50 else (1, 3, 10, 30, 100, 300, 1000)
    axes.xaxis.set_major_locator(FixedLocator([n for n in marked if n <= steps]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0, 102)
    axes.set_xlabel("steps back, this one included")
    axes.set_ylabel("% of attention, up to there")
    axes.set_title("How far back the heads look")
    if layers <= len(DASHES):
        axes.legend(loc="lower right")
    else:
        scale = ScalarMappable(Normalize(-0.5, layers - 0.5), ListedColormap(colors))
        axes.figure.colorbar(scale, ax=axes, label="layer", aspect=30, ticks=MaxNLocator(6, integer=True))


def _plot_kinds(figure: SubFigure, axes: np.ndarray, shares: AttentionShares) -> None:
    """A field per kind of key: its share by layer and head."""
    from matplotlib.ticker import MaxNLocator

    heads, present = shares.kinds.shape[1], _present(shares)
    for area, kind in zip(axes.flat, present, strict=False):
        percent = 100 * shares.kinds[..., KINDS.index(kind)]
        image = area.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        area.grid(visible=False)
        area.spines[:].set_visible(False)
        area.tick_params(length=0)
        area.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        area.yaxis.set_major_locator(MaxNLocator(12, integer=True))
        area.set_title(WORDS[kind])
        if heads <= MOST_WRITTEN:
            for (layer, head), value in np.ndenumerate(percent.numpy()):
                color = "white" if value < 55 else "black"
                area.text(head, layer, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=color)
    for area in axes.flat[len(present) :]:
        area.set_axis_off()
    for area in axes.flat[max(len(present) - axes.shape[1], 0) : len(present)]:  # the lowest of each column
        area.tick_params(labelbottom=True)
        area.set_xlabel("head")
    for area in axes[:, 0]:
        area.set_ylabel("layer")
    figure.suptitle("What each head looks at", x=0.01, ha="left")
    figure.colorbar(image, ax=axes, label="% of its attention", aspect=10 * len(axes) + len(shares.kinds), pad=0.01)
