"""The public Pixels2Play recordings on the Hugging Face Hub: ``bczoo data download``.

Place in the pipeline: brings what ``--data.root`` then reads, archives as they are. huggingface_hub brings the files:
what broke off goes on where it stopped, and what is there already is not brought again. To train without a copy of the
whole, name the repository instead: ``--data.root hf://datasets/elefantai/p2p-full-data``.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target
from bczoo.hub.remote import told

BATCH = re.compile(r"dataset/batch_0*(\d+)\.tar\.gz")
PARTS = re.compile(r"(\d+)(?:-(\d+))?")  # of --batches
SPARE = 1.05  # share of the download that has to be free on the disk


@dataclass(frozen=True)
class PublicData:
    """A dataset that can be downloaded by name.

    Args:
        repository: on the Hub.
        what: what it holds, in words.
        files: which of its files are recordings.
    """

    repository: str
    what: str
    files: re.Pattern[str]


# Layout and names as of the datasets' cards; the raw video.mp4 of the toy recordings are of no use to training.
PUBLIC = {
    "p2p-toy": PublicData(
        "elefantai/p2p-toy-examples",
        "a few recordings to look at",
        re.compile(r"dataset/[^/]+/(annotation\.proto|192x192\.mp4)"),
    ),
    "p2p": PublicData("elefantai/p2p-full-data", "8,300 hours in batches of about 100 recordings", BATCH),
}


def download(name: Literal["p2p-toy", "p2p"], batches: str | None = None, out: str | None = None) -> str:
    """Download recordings of the public Pixels2Play dataset, or what is missing of them.

    Args:
        name: p2p-toy, a few recordings, or p2p, 8,300 hours in batches.
        batches: of p2p, which ones, such as 1-5 or 1,7-9; all brings all.
        out: folder to download to; the dataset's name if left out.

    Returns:
        The folder.
    """
    from huggingface_hub import HfApi, snapshot_download

    if name not in PUBLIC:
        raise UserError(f"there is no public dataset {name!r}; there are {', '.join(PUBLIC)}")
    data, folder = PUBLIC[name], Path(out or name)
    require_folder_target(folder, "--out")
    with told(data.repository, None):
        listed = HfApi().dataset_info(data.repository, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in listed if data.files.fullmatch(file.rfilename)}
    if not sizes:
        raise UserError(f"{data.repository} on the Hub no longer holds recordings where they were (dataset/...)")
    wanted = _chosen(name, sizes, batches)
    missing = {path: size for path, size in wanted.items() if not _is_there(folder / path, size)}
    need, free = sum(missing.values()), _free(folder)
    what = f"{len(wanted)} batches" if name == "p2p" else f"{len({Path(p).parent for p in wanted})} recordings"
    print(
        f"{data.repository}: {what}, {_gb(sum(wanted.values()))} to {folder}"
        + (f"; {_gb(need)} of these are missing" if need < sum(wanted.values()) else ""),
        flush=True,
    )
    if need * SPARE > free:
        raise UserError(f"{folder}: the disk has {_gb(free)} free, too little for {_gb(need)}; --out names another one")
    with told(data.repository, None):
        snapshot_download(data.repository, repo_type="dataset", allow_patterns=list(wanted), local_dir=folder)
    print(f"{folder}: look at them with bczoo data check {folder} --decode false, train with --data.root {folder}")
    return str(folder)


def _chosen(name: str, sizes: dict[str, int], batches: str | None) -> dict[str, int]:
    """The files that are wanted, with their sizes."""
    if name != "p2p":
        if batches is not None:
            raise UserError(f"--batches: {name} has no batches; leave it out")
        return sizes
    numbers = {int(_batch(path)[1]): path for path in sizes}
    there = f"there are batches {min(numbers)} to {max(numbers)}, {_gb(sum(sizes.values()))} together"
    if batches is None:
        raise UserError(f"p2p is large: {there}. Name some of them, such as --batches 1-5, or --batches all")
    if batches == "all":
        return sizes
    wanted: list[int] = []
    for part in batches.split(","):
        found = PARTS.fullmatch(part.strip())
        if found is None or int(found[1]) > (last := int(found[2] or found[1])):
            raise UserError(f"--batches {batches}: give numbers such as 1-5 or 1,7-9, or all")
        wanted += range(int(found[1]), min(last, max(numbers) + 1) + 1)
    if unknown := [number for number in wanted if number not in numbers]:
        raise UserError(f"--batches {batches}: there is no batch {unknown[0]}; {there}")
    return {numbers[number]: sizes[numbers[number]] for number in sorted(set(wanted))}


def _batch(path: str) -> Any:
    return BATCH.fullmatch(path)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is to be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
