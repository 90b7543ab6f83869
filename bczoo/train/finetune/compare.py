"""What of the data does not fit a policy, reported before training.

Place in the pipeline: :class:`bczoo.train.finetune.policy.FineTune` prints the table when training starts, from the
index of the recordings and without reading videos.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from bczoo.core.frames import named_size
from bczoo.core.spec import InputSpec
from bczoo.core.tables import markdown_table
from bczoo.data.index import Index
from bczoo.data.video import SIZED_NAME

Line = tuple[str, str, str, str]  # what, policy, data, what happens


def comparison(spec: InputSpec, data: Any) -> str:
    """A table of what differs between a policy and the recordings it is going to learn from.

    Args:
        spec: what the policy asks for.
        data: the data module; others than RecordingDataModule cannot be compared.
    """
    indexes: list[Index] = getattr(data, "indexes", [])
    if not indexes:
        return "the data was not compared with the policy: it comes from no index of recordings"
    lines = [line for index in indexes for line in _differences(spec, index)]
    if not lines:
        return "the recordings fit the policy: frame size, rate, keys and text"
    head: Line = ("", "policy", "recordings", "what happens")
    return f"the recordings and the policy differ:\n{markdown_table([head, *lines], left=len(head))}"


def _differences(spec: InputSpec, index: Index) -> list[Line]:
    size = named_size(spec.frame_size, "x")
    stored = Counter(index.video_name(int(r), spec.frame_size) for r in index.usable)
    sizes = {f"{m[1]}x{m[2]}" if (m := SIZED_NAME.fullmatch(name)) else "any": n for name, n in stored.items()}
    lines: list[Line] = [
        ("frame size", size, f"{found} ({n} recordings)", f"resized ({spec.resize})")
        for found, n in sizes.items()
        if found != size
    ]
    rates = Counter(fps for fps in index.recorded_fps.tolist() if fps)
    wanted = f"{spec.fps:g} a second"
    lines += [("rate", wanted, f"{fps:g} a second ({n} recordings)", "resampled") for fps, n in rates.items()]
    if index.unknown:
        most = ", ".join(f"{name} ({steps} steps)" for name, steps in index.unknown.most_common(5))
        more = f" and {len(index.unknown) - 5} more" if len(index.unknown) > 5 else ""
        lines.append(("keys", "not known", most + more, "not learned; model.action_space can add them"))
    if index.without_embedding:
        lines.append(("text", f"{spec.text_dim} values", f"{index.without_embedding} instructions without", "not seen"))
    return lines
