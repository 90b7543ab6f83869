"""The past of sequences that go on: keys and values of two windows, of which one takes over from the other.

Place in the pipeline: play (:mod:`bczoo.models.token.session`) and generation (:mod:`bczoo.models.token.dream`) feed
tokens as they come; what comes out is what the transformer would say of the whole context at once.

Positions are absolute. When a window is full, something has to be dropped, and every key and value of what stays was
computed at a position that holds no more. To drop the oldest step and compute the rest anew costs a whole window at
every step. Here two windows are kept, begun half a window apart, and each token goes through the transformer twice, at
its position in either. When the older window is full, the younger is half full and answers from then on; the place of
the older is free for the next::

    half windows    |  0  |  1  |  2  |  3  |
    window 0        [=====-----]                    = being filled, - answers
    window 1              [=====-----]
    window 2                    [=====-----]        (window 0 answers from its beginning, for there is none before it)

So the context of an answer is half a window to a whole one, it begins at a multiple of half a window, and an answer is
exactly that of a forward pass over this context. A step costs the same at any time: two rows through the blocks,
attending over buffers of fixed size under a mask.

Tokens of the step that is being sampled go through the answering window alone (:meth:`TokenMemory.draft`); they are fed
to both when the step is over, which writes over the drafts. What was sampled may thus be replaced by what was done.

Shape legend: R sequences, r and L tokens of a call, D width, N heads, H head dim, K tokens of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bczoo.models.token.transformer import TokenTransformer
from bczoo.nn.gpt import Attend


class TokenMemory:
    """The past of R sequences.

    Args:
        transformer: in evaluation mode; never changed.
        sequences: R.
        window: steps that the transformer was built for, at least 2.

    Attributes:
        fed: per sequence, tokens so far.
        positions: positions that went through the transformer so far, by which cost is counted.
    """

    def __init__(self, transformer: TokenTransformer, sequences: int, window: int) -> None:
        self.transformer, self.sequences = transformer, sequences
        self.half = window // 2 * transformer.layout.length  # tokens
        gpt, like = transformer.gpt, transformer.gpt.positions
        shape = (len(gpt.blocks), 2 * sequences, gpt.heads, 2 * self.half, gpt.width // gpt.heads)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)  # (layers, 2 R, N, K, H)
        self.fed = [0] * sequences
        self.positions = 0

    @property
    def memory_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def reset(self, sequence: int | None = None) -> None:
        """Begin a sequence anew, or all of them. What lies in the buffers is behind the mask."""
        for one in range(self.sequences) if sequence is None else [sequence]:
            self.fed[one] = 0

    def context(self, sequence: int) -> int:
        """The token from which on the next answer sees."""
        return self._answering(sequence) * self.half

    def feed(self, sequences: list[int], tokens: Tensor) -> Tensor:
        """Append tokens (r, L) of one step, and give the outputs (r, L, D) of the window that answers behind them."""
        rows, first = [], []
        for place in (0, 1):  # of the two windows; all rows in order where all sequences are fed
            for one in sequences:
                younger = self.fed[one] // self.half
                window = younger if younger % 2 == place else younger - 1  # -1 is none, and harmless
                rows.append(place * self.sequences + one)
                first.append(self.fed[one] - window * self.half)
        outputs = self._run(rows, first, tokens.repeat(2, 1))
        for one in sequences:
            self.fed[one] += tokens.shape[1]
        return outputs[[self._answering(one) % 2 * len(sequences) + i for i, one in enumerate(sequences)]]

    def draft(self, sequences: list[int], tokens: Tensor, ahead: int) -> Tensor:
        """Outputs (r, L, D) of tokens (r, L) that come ``ahead`` tokens behind what was fed, and are not kept."""
        windows = [self._answering(one) for one in sequences]
        rows = [window % 2 * self.sequences + one for window, one in zip(windows, sequences, strict=True)]
        first = [self.fed[one] + ahead - w * self.half for w, one in zip(windows, sequences, strict=True)]
        return self._run(rows, first, tokens)

    def _answering(self, sequence: int) -> int:
        """The window that says what comes next: the older of the two, where there are two."""
        return max(self.fed[sequence] // self.half - 1, 0)

    def _run(self, rows: list[int], first: list[int], tokens: Tensor) -> Tensor:
        """Outputs (b, L, D) of tokens (b, L) at positions from ``first`` on, in rows of the buffers."""
        device, length = tokens.device, tokens.shape[1]
        at = torch.tensor(first, device=device)[:, None] + torch.arange(length, device=device)  # (b, L)
        seen = torch.arange(2 * self.half, device=device) <= at[:, None, :, None]  # (b, 1, L, K)
        self.positions += at.numel()
        attend = [self._attend(layer, rows, at, seen) for layer in range(len(self.keys))]
        return self.transformer.gpt.go_on(self.transformer.table(tokens), at, attend)

    def _attend(self, layer: int, rows: list[int], at: Tensor, seen: Tensor) -> Attend:
        keys, values = self.keys[layer], self.values[layer]
        where = (torch.tensor(rows, device=at.device)[:, None], slice(None), at)
        in_order = rows == list(range(rows[0], rows[0] + len(rows)))  # then the buffers need no copy
        part = slice(rows[0], rows[0] + len(rows)) if in_order else rows

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[where], values[where] = k.transpose(1, 2).to(keys.dtype), v.transpose(1, 2).to(keys.dtype)
            return F.scaled_dot_product_attention(q, keys[part], values[part], seen)

        return attend
