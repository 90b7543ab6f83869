"""``bczoo data import`` and ``bczoo data formats``.

Place in the pipeline: before training, once for every collection of recordings that another program made.
``bczoo data check`` looks at what came out.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, HeldGroup, SwitchGroup
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, require_folder_target, sweep, write_json
from bczoo.core.progress import Progress
from bczoo.data.errors import printable
from bczoo.data.index_build import start_method
from bczoo.imports.convert import STALE_S, Imported, Wanted, convert
from bczoo.imports.format import Format, all_formats, open_format
from bczoo.record.episode import Fit
from bczoo.record.instruction import EncoderOrName, embed

LARGEST_PX = 4096  # height and width of stored frames
SHOWN = 20  # names in a line of the report
NO_FRAME_RATE = (0.5, 1000.0)


@dataclass
class ImportReport:
    """What became of a collection.

    Args:
        out: the folder.
        action_space: name of the action space that the names are held against.
        space: the action space itself, as plain data.
        recordings: one by one.
    """

    out: str
    action_space: str
    space: dict[str, Any]
    recordings: list[Imported] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 1 if a recording was not imported."""
        return int(any(one.problem for one in self.recordings))

    @property
    def held(self) -> Counter[str]:
        """How many steps hold which name, as ``group:name``."""
        return sum((one.held for one in self.recordings), Counter())

    def outside(self) -> list[str]:
        """Names that were held and that the action space lacks, as ``group:name``, the most frequent first."""
        known = {
            f"{group.name}:{name}"
            for group in ActionSpace.from_dict(self.space).groups
            if isinstance(group, HeldGroup | SwitchGroup)
            for name in group.names
        } | {group.name for group in ActionSpace.from_dict(self.space).groups}
        return [name for name, _ in self.held.most_common() if name not in known]

    def __str__(self) -> str:
        done = [one for one in self.recordings if not one.problem and not one.there]
        there, broken = [r for r in self.recordings if r.there], [r for r in self.recordings if r.problem]
        steps, hours = sum(r.steps for r in done), sum(r.seconds for r in done) / 3600
        lines = [
            f"{self.out}: {len(done):,} recordings imported, {hours:.2f} h, {steps:,} steps"
            + (f"; {len(there):,} were there already" if there else "")
        ]
        if unknown := sum(r.unknown for r in done):
            lines.append(f"  unknown  the action of {unknown:,} steps ({unknown / steps:.1%}), not learned from")
        if texts := sum(r.texts for r in done):
            without = sum(r.unembedded for r in done)
            lines.append(
                f"  texts    in {texts:,} steps ({texts / steps:.1%})"
                + (
                    f", {without:,} without an embedding, from which no policy learns: --text_encoder"
                    if without
                    else ""
                )
            )
        if copied := sum(r.copied for r in done):
            lines.append(f"  videos   {copied:,} of {len(done):,} copied as they are")
        if stale := sum(r.stale for r in done):
            lines.append(
                f"  frames   {stale:,} steps ({stale / steps:.1%}) show a frame of more than {STALE_S:g} s before"
            )
        lines += self._names(steps)
        notes = [f"  {r.name}: {note}" for r in done for note in r.notes]
        lines += notes
        if broken:
            lines.append(f"{len(broken)} not imported:")
            lines += [f"  {r.name}: {r.problem}" for r in broken]
        return "\n".join(lines)

    def _names(self, steps: int) -> list[str]:
        """What became of the names of keys and buttons."""
        held, outside = self.held, self.outside()
        renamed = sum((r.renamed for r in self.recordings), Counter[tuple[str, str]]())
        dropped = sum((r.dropped for r in self.recordings), Counter[str]())
        lines = []
        if kept := [f"{name} {held[name] / steps:.1%}" for name, _ in held.most_common() if name not in outside]:
            lines.append(f"  kept     {_listed(kept)}")
        if renamed:
            lines.append(f"  renamed  {_listed([f'{a} to {b} {n:,}' for (a, b), n in renamed.most_common()])} (events)")
        if dropped:
            lines.append(f"  dropped  {_listed([f'{name} {n:,}' for name, n in dropped.most_common()])} (events)")
        if outside:
            beyond = _listed([f"{name} {held[name]:,}" for name in outside])
            lines.append(
                f"  beyond   {beyond} (steps): recorded, but not in the action space {self.action_space}, so training "
                "leaves them out"
            )
        keys = [name.removeprefix("keys:") for name in outside if name.startswith("keys:")]
        if keys and self.action_space == "keyboard_mouse":
            space = f"{{name: keyboard_mouse, extra_keys: [{', '.join(keys)}]}}"
            lines.append(f"           to learn them: --model.action_space '{space}'")
        return lines


def import_recordings(
    format: str,
    source: str,
    out: str,
    fps: float | None = None,
    size: int = 192,
    fit: Fit = "squash",
    rename: dict[str, str] | None = None,
    action_space: str | dict[str, Any] = "keyboard_mouse",
    options: dict[str, Any] | None = None,
    crf: int = 23,
    keep_video: bool = False,
    text_encoder: EncoderOrName | None = None,
    processes: int | None = None,
    json: str | None = None,
) -> ImportReport:
    """Turn recordings of another recorder into recordings to train on.

    What is in the folder already is kept, so the same command goes on with an import that was interrupted, and takes in
    what the source got since. A recording that cannot be used is named with the reason, and the others are imported;
    the exit status is then 1.

    Args:
        format: one of those that `bczoo data formats` lists, or the import path of a class of yours.
        source: folder that holds the recordings, at any depth, or one of their files.
        out: folder to write recordings to.
        fps: steps per second; if left out, those of the format where it holds one action a frame, else 20.
        size: height and width of the stored frames in pixels.
        fit: squash the picture into the square, or letterbox, which keeps its proportions between black bars.
        rename: other names for keys and buttons, such as {"LeftControl": "LeftShift"}; an empty one drops them.
        action_space: whose names the report holds those of the recordings against; they are recorded all the same.
        options: what the format takes, such as {"invalid": true}.
        crf: quality of the video, 0 (lossless) to 51.
        keep_video: copy .mp4 files as they are where every frame of theirs is a step, whatever their size; those that
            have the wanted size are copied anyway.
        text_encoder: embeds the recordings' instructions, such as bczoo.GemmaTextEncoder, or its class_path and
            init_args; policies learn from embedded instructions only.
        processes: recordings that are imported at the same time; as many as there are processor cores if left out.
        json: file to write the report to as JSON.
    """
    arguments.whole("size", size, 16, LARGEST_PX)
    arguments.whole("crf", crf, 0, 51)
    if fps is not None:
        arguments.number("fps", fps, *NO_FRAME_RATE)
    if size % 2:
        arguments.refuse("size", size, "even")
    if processes is not None:
        arguments.whole("processes", processes, 1)
    require_folder_target(out, "OUT")
    if json is not None:
        require_file_target(json, "--json", "report.json")
    space = ActionSpace.of(action_space)
    reader = open_format(format, options or {})
    todo = _named(reader, Path(source), Path(out))
    embeddings = {} if text_encoder is None else embed(_texts(reader, todo), text_encoder)
    wanted = Wanted(fps, size, fit == "letterbox", rename or {}, crf, keep_video, embeddings)
    sweep(out)
    report = ImportReport(printable(out), space.name, space.to_dict())
    for result in _convert_all(reader, todo, wanted, processes or os.cpu_count() or 1):
        report.recordings.append(result)
    print(report)
    if json is not None:
        sweep(Path(json).parent)
        write_json(json, _plain(report), indent=1)
    return report


def formats() -> list[str]:
    """List the formats that `bczoo data import` reads.

    Returns:
        Their names.
    """
    found = all_formats()
    width = max(len(one.name) for one in found)
    for one in found:
        print(f"{one.name:<{width}}  {one.description}")
    print(
        "\nOne of your own is a class with find and read, which --import makes known: "
        "bczoo data import my_format.MyFormat SOURCE OUT --import my_format"
    )
    return [one.name for one in found]


def _named(reader: Format, source: Path, out: Path) -> list[tuple[Path, Path]]:
    """What there is to import: what the format found, and the folder that it becomes."""
    if not source.exists():
        raise UserError(f"SOURCE {source} does not exist; give the folder of the recordings")
    within = out.resolve()
    found = [path for path in reader.find(source) if not path.resolve().is_relative_to(within)]
    if not found:
        others = [
            one.name for one in all_formats() if one.name != reader.name and any(True for _ in one().find(source))
        ]
        hint = f"; what is there may be {' or '.join(others)}" if others else ""
        raise UserError(f"SOURCE {source} holds no recordings of the format {reader.name} ({reader.description}){hint}")
    names = [_name(path, source, whole=False) for path in found]
    count = Counter(names)
    names = [
        _name(path, source, whole=True) if count[name] > 1 else name for path, name in zip(found, names, strict=True)
    ]
    if same := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f"SOURCE {source}: several recordings would be named {same[0]!r}; import a folder at a time")
    return [(path, out / name) for path, name in zip(found, names, strict=True)]


def _name(path: Path, source: Path, whole: bool) -> str:
    """The folder's name: the path below the source, in one word, without the suffix unless two differ in that alone."""
    below = path.relative_to(source) if path != source and path.is_relative_to(source) else Path(path.resolve().name)
    if path.is_file() and not whole:
        below = below.with_suffix("")
    return "-".join(below.parts)


def _texts(reader: Format, todo: Sequence[tuple[Path, Path]]) -> list[str]:
    """The instructions of all recordings that are not there yet, each once; what cannot be read is named later."""
    texts: dict[str, None] = {}
    for source, folder in todo:
        if not folder.exists():
            with suppress(Exception):
                texts |= dict.fromkeys(text for _, text in reader.read(source).texts if text)
    return list(texts)


def _convert_all(
    reader: Format, todo: Sequence[tuple[Path, Path]], wanted: Wanted, processes: int
) -> Iterator[Imported]:
    """Import all, in order."""
    with Progress(total=len(todo), desc="Importing", unit="recording", disable=None) as bar:
        if processes < 2 or len(todo) < 2:
            for source, folder in todo:
                yield convert(reader, source, folder, wanted)
                bar.update()
            return
        context = multiprocessing.get_context(start_method())
        with ProcessPoolExecutor(min(processes, len(todo)), mp_context=context) as pool:
            running = [pool.submit(convert, reader, source, folder, wanted) for source, folder in todo]
            try:
                for one in running:
                    yield one.result()
                    bar.update()
            finally:
                for one in running:
                    one.cancel()


def _plain(report: ImportReport) -> dict[str, Any]:
    recordings = [
        vars(one) | {"renamed": {f"{a} to {b}": n for (a, b), n in one.renamed.items()}} for one in report.recordings
    ]
    return {"out": report.out, "status": report.status, "beyond": report.outside(), "recordings": recordings}


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
