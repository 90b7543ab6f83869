"""Which windows there are, who gets them, and in which order.

Place in the pipeline: from the index's frame counts to batches of ``(recording, start)`` pairs that
`dataset.py` turns into tensors. Everything is a function of (names, seed, epoch), so every process computes
the same plan.

A recording of n frames is cut, from its first window's start on, into windows of T steps while ``start + T +
1 <= n`` (step i needs annotation i + 1); what is left, if it has a step at all, is one shorter window.

      frames   0 1 2 3 4 5 6 7 8 9          n = 10, T = 4
      windows  [0 1 2 3][4 5 6 7][8 .]      the last has 1 valid step (frame 8), then shows frame 9

Recordings that lie in packs (archives, or in a store; see `cache.py`) are shuffled in two steps, because not all packs
can be unpacked at once. The packs are dealt, in a random order, into groups of a few; the windows of a group are
shuffled among each other, and one group comes after the other. Recordings in folders are spread over all groups.

Shape legend: R recordings, W windows, P packs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.spec import FILL
from bczoo.data.index import Index, name_hash
from bczoo.data.pseudo import PseudoLabels, of_guesses

Key = tuple[int, int]  # (recording, start)

_SPLIT, _ORDER, _OFFSET, _WINDOW, _PACK = 1, 2, 3, 4, 5  # independent random numbers from one name
OPEN_RECORDINGS = 800  # of packs, that are shuffled together: eight batches of the public dataset


def mix(hashes: np.ndarray, *salt: int) -> np.ndarray:
    """Well-mixed uint64 numbers from hashes and integers (SplitMix64), the same on every machine."""
    with np.errstate(over="ignore"):
        x = np.asarray(hashes, np.uint64)
        for value in salt:
            x = x + np.uint64((0x9E3779B97F4A7C15 * (2 * value + 1)) & (2**64 - 1))
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def split(index: Index, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation recordings, chosen by name, so that adding recordings moves none.

    With two or more recordings and a fraction above 0 both sides get at least one. Recordings with actions that a model
    has read off video are all for training: validation never counts those.
    """
    guessed = np.array([index.has_guesses(int(r)) for r in index.usable], bool)
    usable = index.usable[~guessed]
    chance = mix(index.hashes[usable], _SPLIT)
    validation = chance < np.uint64(min(int(val_fraction * 2.0**64), 2**64 - 1))
    if len(usable) > 1 and val_fraction > 0:
        if not validation.any():
            validation[chance.argmin()] = True
        elif validation.all():
            validation[chance.argmax()] = False
    return np.sort(np.concatenate([usable[~validation], index.usable[guessed]])), usable[validation]


def subset(index: Index, recordings: np.ndarray, fraction: float) -> np.ndarray:
    """The first recordings, in an order chosen by name, that hold ``fraction`` of the frames.

    Subsets are nested: a smaller fraction's recordings are all among a larger one's.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is a share of the training recordings above 0 and up to 1, got {fraction}")
    order = recordings[np.argsort(mix(index.hashes[recordings], _ORDER), kind="stable")]
    frames = np.cumsum(index.n_frames[order])
    enough = int(np.searchsorted(frames, fraction * frames[-1] * (1 - 1e-12))) + 1 if len(order) else 0
    return np.sort(order[:enough])


def cut(n_frames: np.ndarray, window: int, first: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All windows of recordings.

    Args:
        n_frames: (R,) frames.
        window: steps T.
        first: (R,) start of each recording's first window; 0 if left out.

    Returns:
        (W,) positions in ``n_frames`` and (W,) first frames.
    """
    first = np.zeros(len(n_frames), np.int64) if first is None else first
    steps = np.maximum(n_frames - 1 - first, 0)
    count = -(-steps // window)
    which = np.repeat(np.arange(len(n_frames)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return which, first[which] + number * window


def first_starts(n_frames: np.ndarray, window: int, hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A random start of the first window in 0 .. T-1, as far as one full window still fits; (R,)."""
    most = np.minimum(np.maximum(n_frames - (window + 1), 0), window - 1)
    return (mix(hashes, _OFFSET, seed, epoch) % (most + 1).astype(np.uint64)).astype(np.int64)


def list_windows(
    index: Index,
    recordings: np.ndarray,
    window: int,
    first: np.ndarray | None = None,
    drop_system: bool = True,
    pseudo: PseudoLabels | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(W,) recordings and (W,) first frames of all windows, in order.

    Args:
        index: of the recordings.
        recordings: (R,) numbers.
        window: steps T.
        first: (R,) start of each recording's first window.
        drop_system: leave out full windows of nothing but the policy's own actions.
        pseudo: which guesses are learned from; leaves out windows of which less than half is.
    """
    which, start = cut(index.n_frames[recordings], window, first)
    recording = recordings[which]
    if drop_system:
        # Runs end with their recording, so a window that is padded never lies within one.
        keep = ~index.system_only(recording, start + 1, window)
        recording, start = recording[keep], start[keep]
    if pseudo is not None:
        keep = pseudo.half_kept(index, recording, start, window)
        recording, start = recording[keep], start[keep]
    return recording, start


def window_hashes(hashes: np.ndarray, start: np.ndarray, *salt: int) -> np.ndarray:
    """(W,) random uint64 from the hashes of the windows' recordings and the windows' first frames."""
    return mix(np.asarray(hashes, np.uint64) ^ start.astype(np.uint64), _WINDOW, *salt)


@dataclass(frozen=True)
class Plan:
    """The batches of every epoch, for one of several processes.

    Args:
        index: of the recordings.
        recordings: (R,) numbers.
        window: steps T.
        batch_size: windows per batch and process.
        shuffle: training: random first windows and order, and the incomplete last batch is dropped. Otherwise
            all windows come in order, and batches are filled up at their end.
        seed: of the shuffle.
        rank: number of this process.
        world_size: number of processes.
        spread: without shuffle, take the windows in a random order that names and starts fix, so that the first ones
            come from everywhere. Which ones they are depends on their number, not on how it is cut into batches.
        drop_system: leave out full windows of nothing but the policy's own actions.
        open_recordings: of packs, that are shuffled together; their packs are unpacked at the same time.
        pseudo: which guesses are learned from; leaves out windows of which less than half is.
    """

    index: Index
    recordings: np.ndarray
    window: int
    batch_size: int
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    spread: bool = False
    drop_system: bool = True
    open_recordings: int = OPEN_RECORDINGS
    pseudo: PseudoLabels | None = None

    def n_windows(self) -> int:
        """Windows of an epoch before any are dropped or filled in (of epoch 0 where shuffled)."""
        return len(self._windows(0)[0])

    def __len__(self) -> int:
        """Batches per epoch and process; the same for every process and epoch."""
        together = self.batch_size * self.world_size
        return self.n_windows() // together if self.shuffle else -(-self.n_windows() // together)

    def batches(self, epoch: int, first_batch: int = 0) -> Iterator[list[Key]]:
        """The batches of an epoch from ``first_batch`` on."""
        recording, start = self.epoch(epoch)
        for r, s in zip(recording[first_batch:], start[first_batch:], strict=True):
            yield list(zip(r.tolist(), s.tolist(), strict=True))

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Recordings and first frames of an epoch, each (batches, batch_size)."""
        recording, start = self._windows(epoch)
        shape = (len(self), self.world_size, self.batch_size)
        wanted = shape[0] * shape[1] * shape[2]
        if self.shuffle:
            # Random first windows make epochs differ by a few windows. All get as many as epoch 0, because
            # trainers fix the length of an epoch at the start; where windows are missing, some come twice.
            order = np.random.default_rng((self.seed, epoch)).permutation(len(start))
            if self.pseudo is None:
                drawn = np.resize(order, wanted)
            else:
                drawn = self.pseudo.shared(of_guesses(self.index, recording), order, wanted)
            pick = self._by_group(recording, drawn, self.groups(epoch))
            recording, start = recording[pick], start[pick]
        else:
            if self.spread:
                order = np.argsort(window_hashes(self.index.hashes[recording], start), kind="stable")
                order = self._by_group(recording, order, self.groups(epoch))
                recording, start = recording[order], start[order]
            fill = wanted - len(start)
            recording = np.concatenate([recording, np.full(fill, FILL)])
            start = np.concatenate([start, np.zeros(fill, np.int64)])
        return recording.reshape(shape)[:, self.rank], start.reshape(shape)[:, self.rank]

    def groups(self, epoch: int) -> list[np.ndarray]:
        """The packs that are open together, a group after the other: numbers, each (P of the group,)."""
        if not self.index.packs:
            return []
        used = np.unique(self.index.pack_of[self.recordings])
        used = used[used >= 0]
        if not self.shuffle and not self.spread:
            return [used[i : i + 1] for i in range(len(used))]  # in order, one by one
        hashes = np.array([name_hash(self.index.packs[pack].path) for pack in used], np.uint64)
        used = used[np.argsort(mix(hashes, _PACK, *((self.seed, epoch) if self.shuffle else ())), kind="stable")]
        count = self.index.pack_sizes()[0][used]
        group = (np.cumsum(count) - count) // self.open_recordings
        return [used[group == number] for number in np.unique(group)]

    def _by_group(self, recording: np.ndarray, order: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
        """(W,) an order of windows, with those of a group's packs in its turn and those in folders all over."""
        if len(groups) < 2:
            return order
        group_of = np.full(len(self.index.packs) + 1, -1)  # the last one is pack number -1
        for number, packs in enumerate(groups):
            group_of[packs] = number
        turn = group_of[self.index.pack_of[recording[order]]]
        anywhere = np.arange(len(order)) * len(groups) // len(order)
        return order[np.argsort(np.where(turn < 0, anywhere, turn), kind="stable")]

    def _windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        n_frames, hashes = self.index.n_frames[self.recordings], self.index.hashes[self.recordings]
        first = first_starts(n_frames, self.window, hashes, self.seed, epoch) if self.shuffle else None
        return list_windows(self.index, self.recordings, self.window, first, self.drop_system, self.pseudo)
