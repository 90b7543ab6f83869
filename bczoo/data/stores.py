"""Recordings that lie elsewhere: ``hf://datasets/org/name``, ``s3://bucket/path``, every URL that fsspec knows.

Place in the pipeline: `listing.py` asks here what lies under a URL, `cache.py` has archives and folders brought from
here. fsspec and the file systems that it finds (huggingface_hub's for ``hf://``, s3fs for ``s3://``) do the work; this
module asks them for three things and says what they refuse in words that tell what to do.

Libraries that stream training data (litdata, MosaicML's streaming, webdataset) are not used. Their shards are a format
of their own, into which the 8,300 hours would have to be converted first: chunks of serialised samples, or tar files in
which the files of a sample share a name. litdata also streams files as they are, but whole ones, one a sample; a sample
here is a few seconds out of a video, with actions from another file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bczoo.core.errors import UserError

Root = Path | str  # a folder or archive of this computer, or a URL
TAGS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "Last-Modified", "mtime", "modified", "created")


class StoreError(UserError):
    """A store did not answer as it should; it may the next time."""


class StoredFile(NamedTuple):
    """A file of a store: path below the URL that was listed, bytes, and what changes with its content."""

    path: str
    size: int
    tag: str


def is_url(root: object) -> bool:
    """Whether a root is a URL, not a path of this computer."""
    return isinstance(root, str) and "://" in root


def file_at(url: str) -> StoredFile:
    """The file that a URL names.

    Raises:
        UserError: there is nothing, no access, no network, or a library is missing.
    """
    with told(url):
        fs, path = _open_store(url)
        return _stored(url.rpartition("/")[2], fs.info(path))


def files_of(url: str) -> list[StoredFile]:
    """All files under a URL, by path.

    Raises:
        UserError: as of :func:`file_at`.
    """
    with told(url):
        fs, top = _open_store(url)
        # By default web pages that do not answer are left out; other stores have no such option, and always raise.
        options = {"on_error": "raise"} if url.startswith("http") else {}
        found = fs.find(top, detail=True, **options)
        below = top.rstrip("/") + "/"
        files = []
        for path, info in found.items():
            if info.get("size") is None or not any(info.get(tag) for tag in TAGS):
                info = fs.info(path)  # listings of web servers say neither size nor date
            files.append(_stored(str(path).removeprefix(below), info))
    return sorted(files)


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """A file of a store, for reading from begin to end."""
    with told(url):
        fs, path = _open_store(url)
        file = fs.open(path, "rb")
    with file:
        yield _Told(file, url)


def copy(url: str, target: Path) -> None:
    """Copy a file of a store to a file of this computer."""
    with told(url):
        fs, path = _open_store(url)
        fs.get_file(path, str(target))


class _Told:
    """A file whose reading raises errors that name the URL."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        with told(self._url):
            data: bytes = self._file.read(size)
            return data


def _open_store(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _stored(path: str, info: dict[str, Any]) -> StoredFile:
    tag = next((str(info[tag]) for tag in TAGS if info.get(tag)), "")
    return StoredFile(path, int(info.get("size") or 0), tag)


@contextmanager
def told(url: str) -> Iterator[None]:
    """The errors of fsspec's many file systems, in words that say what to do."""
    scheme = urlsplit(url).scheme
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        extra = "pip install 'bczoo[s3]'" if scheme in ("s3", "s3a") else str(error)
        raise UserError(f"{url} needs another library: {extra}") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no {url}, or it is private; check the address, or log in{_login(scheme)}") from error
    except PermissionError as error:
        raise UserError(f"{url} is refused ({_line(error)}); log in{_login(scheme)}") from error
    except Exception as error:  # every file system has its own: botocore's, aiohttp's, httpx's
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # of this computer's disk
            raise
        raise StoreError(f"{url} cannot be read ({_line(error)}); check the address and the connection") from error


def _login(scheme: str) -> str:
    return {"hf": " (hf auth login)", "s3": " (credentials as of the AWS command line)"}.get(scheme, "")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")
