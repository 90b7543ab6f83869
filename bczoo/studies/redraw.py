"""``bczoo study redraw``: the pictures of a study once more, from the results that it left.

Place in the pipeline: reads toy.json, characters.json, labels.json, report.json or gap.json, as the studies of this
package and ``bczoo gap`` write them, and draws with their own functions. Nothing is trained, played or measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError

RESULTS = ("toy.json", "characters.json", "labels.json", "report.json", "gap.json")


def redraw(results: str, out: str | None = None) -> list[Path]:
    """Draw the pictures of a study again, without measuring anything.

    Args:
        results: what the study wrote: toy.json, characters.json, labels.json, report.json (of the study of confusion)
            or gap.json, or its folder.
        out: folder of the pictures; the one that the results are in if left out.
    """
    path = _find(Path(results))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); name what a study wrote, such as runs/toy/toy.json") from error
    draw = next((one for keys, one in DRAWN.items() if isinstance(content, dict) and keys <= content.keys()), None)
    if draw is None:
        known = "; ".join(", ".join(sorted(keys)) for keys in DRAWN)
        raise UserError(
            f"{path} holds the results of no study that has pictures: they have the entries {known}. "
            "What an older version wrote is completed by running the study again with the same --out"
        )
    written = draw(content, path.parent if out is None else Path(out))
    print(", ".join(map(str, written)))
    return written


def _find(path: Path) -> Path:
    """The file of results at a path, or the only one in a folder."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no {path}; name what a study wrote, such as runs/toy/toy.json")
        return path
    found = [path / name for name in RESULTS if (path / name).exists()]
    if len(found) != 1:
        there = "none of them" if not found else " and ".join(one.name for one in found)
        raise UserError(f"of {', '.join(RESULTS)}, {path} has {there}; name a file of results")
    return found[0]


def _toy(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from bczoo.studies.toy import drawn_from, plot

    plot(*drawn_from(content), folder / "toy.png")
    return [folder / "toy.png"]


def _characters(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from bczoo.studies.characters_report import plot

    plot(content["runs"], content["exponents"], folder / "characters.png")
    return [folder / "characters.png"]


def _labels(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from bczoo.studies.labels_report import plot

    plot(content, folder / "labels.png")
    return [folder / "labels.png"]


def _gap(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from bczoo.studies.gap import plot

    plot(content["game"], content["policies"], folder / "gap.png")
    return [folder / "gap.png"]


def _confusion(content: Mapping[str, Any], folder: Path) -> list[Path]:
    from bczoo.studies.confusion_report import Kind, draw

    return draw([Kind(**kind) for kind in content["kinds"]], content["baselines"], content["findings"], folder)


DRAWN: dict[frozenset[str], Callable[[Mapping[str, Any], Path], list[Path]]] = {  # by the entries that are drawn
    frozenset({"settings", "steps", "correctness"}): _toy,
    frozenset({"runs", "exponents"}): _characters,
    frozenset({"compared", "readers"}): _labels,
    frozenset({"game", "policies"}): _gap,
    frozenset({"kinds", "findings", "baselines"}): _confusion,
}
