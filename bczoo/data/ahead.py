"""Brings packs before their windows are wanted: a thread beside the loader.

Place in the pipeline: `loader.py` tells an :class:`Ahead` which batch is planned; it brings the packs of that batch's
group and then, as far as the cache has room, those of the next group. Workers that want a pack before it is there wait
for it, or bring it themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from bczoo.core.errors import UserError
from bczoo.data.windows import Key, Plan


def require_room(plan: Plan) -> None:
    """Raise unless the packs that are open together fit in the cache; otherwise every window would bring one anew."""
    groups = plan.groups(0)
    if not groups:
        return
    count = max(map(len, groups))
    sizes = np.sort(plan.index.pack_sizes()[1][np.concatenate(groups)])[::-1]
    need, cache = int(sizes[:count].sum()), plan.index.cache
    if need > cache.n_bytes:
        what = f"the {count} archives or folders of a store that are open together take" if count > 1 else "one takes"
        raise UserError(
            f"{what} up to {need / 1e9:.3g} GB unpacked, but the cache {cache.folder} holds {cache.n_bytes / 1e9:g} "
            "GB; raise data.cache_gb (or BCZOO_CACHE_GB), or lower data.open_recordings"
        )


class Ahead:
    """Brings the packs of one epoch in the background. Ends with the ``with`` block, or after the pack at hand.

    Args:
        plan: of the batches.
        epoch: number of the epoch.
    """

    def __init__(self, plan: Plan, epoch: int) -> None:
        self._index = plan.index
        self._groups = plan.groups(epoch)
        self._group_of = {int(pack): number for number, packs in enumerate(self._groups) for pack in packs}
        self._change = threading.Condition()
        self._group = -1  # which the planned batches have reached
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="bczoo-ahead", daemon=True)

    def reach(self, keys: Sequence[Key]) -> None:
        """Say that a batch of windows is planned."""
        packs = self._index.pack_of[[recording for recording, _ in keys if recording >= 0]].tolist()
        group = max((self._group_of[pack] for pack in packs if pack >= 0), default=-1)
        if group > self._group:
            with self._change:
                self._group = group
                self._change.notify()

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._ended = True
            self._change.notify()

    def _run(self) -> None:
        reached = -1
        while not self._ended:
            with self._change:
                while not self._ended and self._group == reached:
                    self._change.wait()
                reached = self._group
            for pack in self._wanted(reached):
                if self._ended or self._group > reached:
                    break
                try:
                    with self._index.cache.hold(self._index.packs[pack]):
                        pass
                except UserError:  # is raised again where a window of it is wanted
                    break

    def _wanted(self, group: int) -> Iterator[int]:
        """The packs of a group, and those of the next one as long as all of them fit in the cache."""
        sizes = self._index.pack_sizes()[1]
        following = np.concatenate(self._groups[group : group + 2])
        together = accumulate(int(sizes[pack]) for pack in following)
        for number, (pack, size) in enumerate(zip(following.tolist(), together, strict=True)):
            if number >= len(self._groups[group]) and size > self._index.cache.n_bytes:
                return
            yield pack
