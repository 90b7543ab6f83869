"""``bczoo compare``: runs or exported folders side by side.

Place in the pipeline: reads runs (:mod:`bczoo.compare.runs`), groups them by seed (:mod:`bczoo.compare.groups`), sets
their measures against those of the first (:mod:`bczoo.compare.table`); prints Markdown, writes JSON and CSV.
"""

from __future__ import annotations

from collections.abc import Sequence

from bczoo.compare.groups import group_by_seed
from bczoo.compare.runs import read_run
from bczoo.compare.table import Comparison
from bczoo.core.files import require_file_target, write_json, write_text


def compare(
    runs: list[str], metric: list[str] | str | None = None, json: str | None = None, csv: str | None = None
) -> Comparison:
    """Compare runs: what differs in their configuration, what they cost, what came of them, with intervals.

    Runs that differ in their seed alone form one row, with the mean and its 95 % interval over the seeds. Everything is
    compared with the first; where both have the same seeds, seed by seed.

    Args:
        runs: runs such as runs/quickstart, or exported folders; the first is what the others are compared with.
        metric: what to compare, with commas between: val/loss, or val for all that begins with val/; all if left out.
        json: file to write the whole comparison to.
        csv: file to write a row per measure and row of the table to.
    """
    for path, option in ((json, "--json"), (csv, "--csv")):
        if path is not None:
            require_file_target(path, option, f"compared.{option.removeprefix('--')}")
    comparison = Comparison.of(group_by_seed([read_run(run) for run in runs]), metric_names(metric))
    print(comparison.markdown())
    if json is not None:
        write_json(json, comparison.to_dict(), allow_nan=False, default=str)
        print(f"\n{json}")
    if csv is not None:
        write_text(csv, comparison.to_csv())
        print(f"\n{csv}")
    return comparison


def metric_names(metric: Sequence[str] | str | None) -> list[str]:
    """Names of metrics, given with commas between or as a list; empty for all."""
    listed = metric.split(",") if isinstance(metric, str) else list(metric or ())
    return [name for name in (word.strip() for word in listed) if name]
