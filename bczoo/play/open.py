"""The beginning of every command that takes a trained policy: find it, load it, know its instruction.

Place in the pipeline: ``bczoo play``, ``record --policy``, ``serve``, ``bench latency``, ``causality``, ``attention``
and ``gap`` call :func:`open_policy`; those that play then ask for :meth:`OpenedPolicy.for_play`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bczoo.core.devices import DTYPES, Precision, play_threads, usable_device
from bczoo.core.errors import UserError
from bczoo.hub.source import Source, locate
from bczoo.models.policy import Policy
from bczoo.nn.sampling import check_sampling


@dataclass(frozen=True)
class OpenedPolicy:
    """A loaded policy and what belongs to it.

    Args:
        policy: in evaluation mode, on its device.
        source: where it came from, as the user named it.
        text: the instruction that it follows; None for none.
        record: what is known of its training; empty if nothing is.
        found: where it lies; None for a policy that was never saved.
    """

    policy: Policy
    source: str
    text: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    found: Source | None = None

    def embedding(self) -> Tensor | None:
        """The embedded instruction (E,), float32 on the CPU; None without one.

        Raises:
            UserError: the policy can follow no instruction in words; says why.
        """
        if self.text is None:
            return None
        if self.policy.why_no_text is not None:
            raise UserError(f"{self.source} cannot follow the instruction {self.text!r}: {self.policy.why_no_text}")
        return self.policy.embed(self.text)

    def for_play(self, threads: int | None = None) -> Policy:
        """The policy as it plays fastest; sets the processor threads of torch.

        Args:
            threads: how many; if left out, one for a small policy and torch's choice for others.
        """
        play_threads(self.policy, threads)
        return self.policy.for_play()


def open_policy(
    source: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: Precision | None = None,
    text: str | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    say: Callable[[str], object] = print,
) -> OpenedPolicy:
    """Load a trained policy of any family.

    Args:
        source: an exported folder, ``org/name`` on the Hugging Face Hub, a run or a ``.ckpt`` file.
        revision: branch, tag or commit on the Hub.
        device: cpu or cuda.
        dtype: numbers that it computes with; those of its weights if left out.
        text: the instruction, empty for none; if left out, the one it was fine-tuned under, which is printed.
        temperature: of its sampling; checked before anything is loaded.
        top_p: of its sampling.
        say: prints a line.

    Raises:
        UserError: there is no such policy or device, or a setting is out of its range.
    """
    check_sampling(temperature, top_p)
    found = locate(source, revision)
    policy = found.load(Policy, device=usable_device(str(device)), dtype=DTYPES[dtype] if dtype else None)
    record = found.record
    if chosen := found.chosen:
        say(chosen)
    if text is None and (text := record.get("instruction")):
        say(f"instruction: {text}")
    return OpenedPolicy(policy, source, text or None, record, found)
