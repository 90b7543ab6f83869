"""The Hugging Face Hub: fetching an exported folder and pushing one, with errors that say what to do.

Place in the pipeline: ``org/name`` becomes a folder in the download cache (:func:`fetch`) that
``bczoo.hub.folder`` reads; a folder becomes a repository (:func:`push`). Downloads that break off go on where they
stopped as long as the process lives, whole files are never fetched twice, and what is in the cache works offline: all
of this is huggingface_hub's doing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError
from bczoo.hub.folder import CARD, CONFIG, INDEX, WEIGHTS, read_config, read_folder
from bczoo.train.run_record import EXPORTED_RECORD

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
REPLACED = [WEIGHTS, INDEX, "model-*-of-*.safetensors", EXPORTED_RECORD]  # by a later download
FILES = [CONFIG, CARD, *REPLACED]


def is_repository(name: str) -> bool:
    """Whether ``name`` could be a repository on the Hub, ``org/name``."""
    return bool(REPOSITORY.fullmatch(name)) and ".." not in name


def require_repository(name: str) -> None:
    """Raise unless ``name`` could be a repository."""
    if not is_repository(name):
        raise UserError(f"{name!r} is no repository name; give org/name")


def fetch(
    repository: str,
    revision: str | None = None,
    token: str | bool | None = None,
    out: str | Path | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download a policy, or what is missing of it, and return its folder.

    Args:
        repository: ``org/name``.
        revision: branch, tag or commit; main if left out.
        token: access token; the one that ``hf auth login`` stored if left out.
        out: folder to download to; huggingface_hub's cache if left out.
        cache_dir: another cache.
        local_files_only: use the cache alone, without a look at the network.

    Raises:
        UserError: no such repository or revision, no access, no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    with told(repository, revision):
        given: Any = {"revision": revision, "token": token, "local_files_only": local_files_only}
        where: Any = {"local_dir": out, "cache_dir": cache_dir}
        # the config first: many repositories have weights of these names, and not everyone's are wanted
        read_config(Path(snapshot_download(repository, allow_patterns=[CONFIG], **given, **where)) / CONFIG)
        if out is not None and not local_files_only:
            _remove_others(Path(out), HfApi(token=token).list_repo_files(repository, revision=revision))
        return Path(
            snapshot_download(
                repository,
                allow_patterns=FILES,
                **given,
                **where,
            )
        )


def _remove_others(folder: Path, wanted: list[str]) -> None:
    """Remove what an older download left: weights in another number of files would be taken for today's."""
    for path in folder.iterdir():
        if path.name not in wanted and any(fnmatch(path.name, pattern) for pattern in REPLACED):
            path.unlink()


def push(
    folder: str | Path,
    repository: str,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str | None = None,
) -> str:
    """Upload an exported folder; the repository is created if there is none.

    Args:
        folder: a folder that was exported; it is checked first.
        repository: ``org/name``.
        revision: branch to push to, created if there is none; main if left out.
        private: whether a new repository is private; the organisation's default if left out.
        token: access token; the one that ``hf auth login`` stored if left out.
        message: of the commit.

    Returns:
        address of the commit.
    """
    from huggingface_hub import HfApi

    require_repository(repository)
    exported = read_folder(folder)
    api = HfApi(token=token)
    with told(repository, revision, writing=True):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=exported.path,
            repo_id=repository,
            revision=revision,
            allow_patterns=FILES,
            delete_patterns=[f for f in FILES if f not in (CONFIG, CARD)],  # what older weights left behind
            commit_message=message or "Upload a bczoo policy",
        )
    return commit.commit_url


@contextmanager
def told(repository: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """huggingface_hub's errors in words that say what to do."""
    from huggingface_hub import errors

    where = f"{repository}@{revision}" if revision else repository
    no_connection: Any = errors.HfHubHTTPError.__bases__[0]  # the base of all errors of its HTTP library
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{where} is open only to those who accepted its terms: do so on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {where} on the Hub, or it is private and your token does not open it; "
            "check the name, or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no branch, tag or commit {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{where} is not in the download cache, and the Hub cannot be reached") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("no access token is stored; `hf auth login` stores one, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        right = " The token needs the right to write." if writing else ""
        raise UserError(f"the Hub refused {where}: {_line(error)}.{right}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repository!r} is no repository name on the Hub: {_line(error)}") from error
    except UserError:
        raise
    except ValueError as error:  # a file name that leads out of the folder
        raise UserError(f"{where} is refused: {_line(error)}") from error
    except (OSError, no_connection) as error:
        raise UserError(f"the connection to the Hub failed at {where}: {_line(error)}; try again") from error


def _line(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())
