"""The table of a comparison: options that differ, compute, measures, differences to the first.

Place in the pipeline: :func:`bczoo.compare.command.compare` prints it. Every number that is missing is ``-``, with a
note below that says why.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bczoo.compare.groups import Group, differing_options
from bczoo.compare.intervals import (
    Estimate,
    difference_of_intervals,
    mean_over_seeds,
    paired_difference,
    welch_difference,
)
from bczoo.compare.runs import Measure
from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table

MISSING = "-"
MOST_COLUMNS = 4  # of options in the table of runs; more of them get a table of their own


@dataclass(frozen=True)
class Compared:
    """One measure of one group.

    Args:
        measure: its name.
        group: whose it is.
        estimate: the number; None where no run of the group has it.
        difference: to the first group; None for the first, and where one of the two is missing.
    """

    measure: str
    group: Group
    estimate: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side.

    Args:
        groups: the first is what the others are compared with.
        options: those that differ, by name a value per group.
        rows: measure by measure, group by group.
        notes: what has to be known to read it.
    """

    groups: list[Group]
    options: dict[str, list[Any]]
    rows: list[Compared]
    notes: list[str]

    @classmethod
    def of(cls, groups: list[Group], metric: Sequence[str] = ()) -> Comparison:
        """Compare groups.

        Args:
            groups: at least one.
            metric: names of measures, or their beginnings up to a slash; all if empty.

        Raises:
            UserError: a metric is not known of any of them.
        """
        names = chosen(metric, {name: None for g in groups for run in g.runs for name in run.measures}, "measured")
        rows = [_compared(name, group, groups[0]) for name in names for group in groups]
        return cls(groups, differing_options(groups), rows, [*_notes_on_groups(groups), *_notes_on_rows(rows)])

    # ------------------------------------------------------------------ Markdown

    def markdown(self) -> str:
        """Tables and notes, as they are printed."""
        parts = [self._runs()]
        if self.rows:
            parts.append(self._measures())
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts)

    def _runs(self) -> str:
        beside = self.options if len(self.options) <= MOST_COLUMNS else {}
        rows = [["run", "seeds", *beside, "steps", "training", "device"]]
        for i, group in enumerate(self.groups):
            seeds = ", ".join(MISSING if seed is None else str(seed) for seed in group.seeds)
            options = [_option(values[i]) for values in beside.values()]
            rows.append([group.name, seeds, *options, _steps(group), _duration(mean_seconds(group)), _device(group)])
        table = markdown_table(rows, left=len(rows[0]))
        if len(beside) == len(self.options):
            return table
        below = [[name, *map(_option, values)] for name, values in self.options.items()]
        return f"{table}\n\n{markdown_table([['option', *(g.name for g in self.groups)], *below], left=len(rows[0]))}"

    def _measures(self) -> str:
        several = len(self.groups) > 1
        first = self.groups[0].name
        rows = [
            ["measure", "run", "mean", "95 % interval", *((f"to {first}", "95 % interval", "apart") if several else ())]
        ]
        for row in self.rows:
            shown = [row.measure, row.group.name, *_cells(row.estimate)]
            if several:
                side = row.difference.side if row.difference is not None else ""
                shown += [*_cells(row.difference, signed=True), side or MISSING]
            rows.append(shown)
        return markdown_table(rows, left=2)

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        groups = [
            {
                "name": group.name,
                "runs": [run.name for run in group.runs],
                "seeds": group.seeds,
                "options": dict(group.options),
                "differing": {name: row[i] for name, row in self.options.items()},
                "steps": [run.steps for run in group.runs],
                "seconds": [run.training.get("seconds") for run in group.runs],
                "device": [run.training.get("device") for run in group.runs],
                "measures": {name: _values(group, name) for name in dict.fromkeys(row.measure for row in self.rows)},
            }
            for i, group in enumerate(self.groups)
        ]
        rows = [
            {
                "measure": row.measure,
                "group": row.group.name,
                "estimate": None if row.estimate is None else vars(row.estimate),
                "difference": None if row.difference is None else vars(row.difference) | {"apart": row.difference.side},
            }
            for row in self.rows
        ]
        return {"compared_with": self.groups[0].name, "groups": groups, "rows": rows, "notes": self.notes}

    def to_csv(self) -> str:
        """A line per measure and group, what is missing left blank."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        ends = ["low", "high", "n", "over"]
        head = ["measure", "run", "seeds", *self.options, "steps", "seconds", "mean", *ends]
        table.writerow([*head, "difference", *(f"difference_{end}" for end in ends), "apart"])
        for row in self.rows:
            i = next(i for i, group in enumerate(self.groups) if group is row.group)
            seeds = " ".join("" if seed is None else str(seed) for seed in row.group.seeds)
            options = [values[i] for values in self.options.values()]
            steps = row.group.runs[0].steps
            cells = [row.measure, row.group.name, seeds, *options, steps, mean_seconds(row.group)]
            for estimate in (row.estimate, row.difference):
                cells += [None] * 5 if estimate is None else list(vars(estimate).values())
            table.writerow([*cells, row.difference.side if row.difference is not None else None])
        return out.getvalue()


def chosen(wanted: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """Names out of those that are known, in their order, or in that of ``wanted`` if there are any.

    Args:
        wanted: names, or their beginnings up to a slash; all if empty.
        known: the names there are.
        what: how they came to be known, for the error.

    Raises:
        UserError: there is no such name; close ones are suggested.
    """
    names = sorted(dict.fromkeys(known), key=_order)
    out: dict[str, None] = {}
    for word in wanted:
        found = [name for name in names if name == word or name.startswith(f"{word.rstrip('/')}/")]
        if not found:
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"{word!r} was not {what} in these runs{hint} There is: {', '.join(names) or 'nothing'}")
        out |= dict.fromkeys(found)
    return list(out) if wanted else names


def _order(name: str) -> tuple[bool, bool, bool, str]:
    """Losses first, then play, then what is logged per action group."""
    return not name.endswith("/loss"), not name.startswith("play/"), name.count("/") > 1, name


# ---------------------------------------------------------------------------------------------------- numbers


def _values(group: Group, measure: str) -> list[float | None]:
    found = (run.measures.get(measure) for run in group.runs)
    return [None if one is None else one.value for one in found]


def _estimate(group: Group, measure: str) -> Estimate | None:
    found = [run.measures[measure] for run in group.runs if measure in run.measures]
    if not found:
        return None
    return mean_over_seeds([one.value for one in found]) if len(found) > 1 else _of_one(measure, found[0])


def _of_one(measure: str, found: Measure) -> Estimate:
    over = "" if found.low is None else "games" if measure.startswith("play/") else "recordings"
    return Estimate(found.value, found.low, found.high, 1, over)


def _compared(measure: str, group: Group, first: Group) -> Compared:
    estimate, base = _estimate(group, measure), _estimate(first, measure)
    if group is first or estimate is None or base is None:
        return Compared(measure, group, estimate, None)
    return Compared(measure, group, estimate, _difference(measure, group, first, estimate, base))


def _difference(measure: str, group: Group, first: Group, estimate: Estimate, base: Estimate) -> Estimate:
    """To the first group: seed by seed where at least two seeds are the same, else between the means."""
    ours, theirs = (
        {run.seed: run.measures[measure].value for run in g.runs if measure in run.measures} for g in (group, first)
    )
    shared = [seed for seed in ours if seed is not None and seed in theirs]
    if len(shared) > 1:
        return paired_difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared])
    if min(estimate.n, base.n) > 1:
        return welch_difference(list(ours.values()), list(theirs.values()))
    if estimate.n == base.n == 1:
        return difference_of_intervals(estimate, base)
    return Estimate(estimate.value - base.value)  # of a single run no spread over seeds is known


def mean_seconds(group: Group) -> float | None:
    """Mean time of training over the runs that know it."""
    known = [run.training["seconds"] for run in group.runs if "seconds" in run.training]
    return round(float(np.mean(known)), 1) if known else None


# ---------------------------------------------------------------------------------------------------- words


def _notes_on_groups(groups: list[Group]) -> list[str]:
    notes = []
    for run in (run for group in groups for run in group.runs):
        if not run.record:
            notes.append(f"{run.name} has no record: its compute and its returns in play are not known")
        elif not run.complete:
            notes.append(f"{run.name} has no config.yaml: of its options those of the policy alone are compared")
        planned = run.options.get("trainer.max_steps")
        trained = run.training.get("steps")
        if isinstance(planned, int) and trained is not None and 0 < trained < planned:
            notes.append(f"{run.name} is at step {trained} of {planned}: it has not finished")
        late = sorted(k for k, m in run.measures.items() if m.step is not None and m.step != run.policy_step)
        if late and run.policy_step is not None:
            at = run.measures[late[0]].step
            more = f" and {len(late) - 1} more" if len(late) > 1 else ""
            notes.append(f"{run.name}: {late[0]}{more} measured at step {at}, its policy is of step {run.policy_step}")
    for i, group in enumerate(groups):
        for other in groups[i + 1 :]:
            if group.complete and other.complete and group.options == other.options:
                notes.append(
                    f"{group.name} and {other.name} are of one configuration; they have rows of their own since "
                    "they differ in their steps or repeat a seed"
                )
    return notes


def _notes_on_rows(rows: list[Compared]) -> list[str]:
    notes = []
    lacking: dict[str, list[str]] = {}
    for row in rows:
        for run in row.group.runs:
            if row.measure not in run.measures:
                lacking.setdefault(run.name, []).append(row.measure)
    for of, names in lacking.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        notes.append(f"`{MISSING}`: {of} did not measure {', '.join(names[:3])}{more}")
    if any(row.estimate is not None and row.estimate.low is None for row in rows):
        notes.append(
            f"`{MISSING}` for an interval: one run does not tell the spread of seeds; `bczoo fit --seeds 3` trains more"
        )
    estimates = [estimate for row in rows for estimate in (row.estimate, row.difference) if estimate is not None]
    if kinds := dict.fromkeys(estimate.over for estimate in estimates if estimate.over):
        within = _WITHIN if kinds.keys() & {"games", "recordings"} else ""
        notes.append(f"intervals are over {', '.join(kinds)}{within}")
    judged = sum(row.difference is not None and row.difference.low is not None for row in rows)
    if judged:
        chance = f"; of {judged} such comparisons about {judged / 20:.1f} are apart by chance" if judged > 9 else ""
        notes.append(f"{_APART}{chance}")
    return notes


_WITHIN = "; of a single run they say how well this policy is known, and not how another seed would do"
_APART = (
    "apart: higher or lower than the first where the interval of the difference leaves out zero, no where it does not"
)


def _cells(estimate: Estimate | None, signed: bool = False) -> list[str]:
    if estimate is None:
        return [MISSING, MISSING]
    value = f"{estimate.value:{'+' if signed else ''}.4g}"
    return [value, MISSING if estimate.low is None else f"{estimate.low:.4g} to {estimate.high:.4g}"]


def _option(value: Any) -> str:
    return MISSING if value is None else str(value)


def _steps(group: Group) -> str:
    steps = dict.fromkeys(run.steps for run in group.runs)
    return ", ".join(MISSING if step is None else str(step) for step in steps)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _device(group: Group) -> str:
    def named(training: Mapping[str, Any]) -> str:
        count = training.get("devices", 1)
        return f"{f'{count} x ' if count != 1 else ''}{training.get('device', MISSING)}"

    return "; ".join(dict.fromkeys(named(run.training) for run in group.runs))
