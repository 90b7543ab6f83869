"""Runs that differ in their seed alone belong together.

Place in the pipeline: between :mod:`bczoo.compare.runs` and the table and curves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bczoo.compare.runs import Run
from bczoo.core.errors import UserError

SEED_IN_NAME = re.compile(r"[-_./]?seed[-_=]?\d+$", re.IGNORECASE)
UNSET = "unset"  # of an option that only other runs have


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with a seed of its own.

    Args:
        runs: at least one; several have the same options and as many steps.
    """

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The runs' name without the seed, or that of the first one."""
        if len(self.runs) == 1:
            return self.runs[0].name
        stems = {SEED_IN_NAME.sub("", run.name) for run in self.runs}
        return stems.pop() if len(stems) == 1 else f"{self.runs[0].name} and {len(self.runs) - 1} more"

    @property
    def seeds(self) -> list[int | None]:
        return [run.seed for run in self.runs]

    @property
    def options(self) -> Mapping[str, Any]:
        return self.runs[0].options

    @property
    def complete(self) -> bool:
        return self.runs[0].complete


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in their seed alone, together, in the order of the first of each.

    A run whose configuration is not known wholly, whose seed is unknown or there already, stays for itself.

    Raises:
        UserError: a run is given twice.
    """
    places = [run.path.resolve() for run in runs]
    if twice := sorted({run.name for run, place in zip(runs, places, strict=True) if places.count(place) > 1}):
        raise UserError(f"{twice[0]} is given twice; give every run once")
    members: list[list[Run]] = []
    for run in runs:
        fitting = (m for m in members if _same_but_seed(m[0], run) and run.seed not in [r.seed for r in m])
        found = next(fitting, None)
        if found is None:
            members.append([run])
        else:
            found.append(run)
    return [Group(tuple(sorted(m, key=lambda run: -1 if run.seed is None else run.seed))) for m in members]


def _same_but_seed(one: Run, other: Run) -> bool:
    known = one.complete and other.complete and None not in (one.seed, other.seed)
    # a time limit ends trainings of one configuration at different steps
    as_long = one.steps == other.steps or one.options.get("trainer.max_time") is not None
    return known and as_long and one.options == other.options


def differing_options(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """By name the options that are not the same in all groups, with the value in each.

    A value is ``null`` where it was set so, :data:`UNSET` where a group has no such option, and None where that is not
    known, which makes no difference. Arguments of a part whose class differs are left out: they differ with it.
    """
    names = {name: None for group in groups for name in group.options}
    values = {name: [_value(group, name) for group in groups] for name in names}
    differing = {name: row for name, row in values.items() if len({str(v) for v in row if v is not None}) > 1}
    classes = [name for name in differing if any(other.startswith(f"{name}.") for other in names)]
    return {k: row for k, row in differing.items() if not any(k.startswith(f"{name}.") for name in classes)}


def _value(group: Group, name: str) -> Any:
    if name not in group.options:
        return UNSET if group.complete else None
    value = group.options[name]
    return "null" if value is None else value
