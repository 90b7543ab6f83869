"""The order of tokens inside a step, in one place.

Place in the pipeline: everything that needs to know where a token lies (embedding, mask, memory, decoder) asks a
:class:`StepLayout`. A step of the sequence is (paper 2601.04575, section 3)::

    [ text x0..1 | image x1..4 | thinking xn | action_out | action xA ]

``action_out`` is the position whose output the decoder turns into the action; the action tokens after it hold the
action that was really taken.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepLayout:
    """Counts of the tokens of a step.

    Args:
        text: text tokens, 0 or 1.
        image: image tokens.
        thinking: thinking tokens.
        actions: action tokens.
        causal_actions: action tokens see only earlier action tokens of their step (a backbone that predicts the
            action itself); otherwise they see each other in both directions.
        past_actions: later steps see the actions of earlier ones.
    """

    text: int
    image: int
    thinking: int
    actions: int
    causal_actions: bool = False
    past_actions: bool = True

    @property
    def action_out(self) -> int:
        """Slot of ``action_out``, which is also the number of observation tokens before it."""
        return self.text + self.image + self.thinking

    @property
    def length(self) -> int:
        """Tokens of one step (12 in the reference)."""
        return self.action_out + 1 + self.actions

    @property
    def action_slots(self) -> range:
        return range(self.action_out + 1, self.length)
