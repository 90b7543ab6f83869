"""The commands ``bczoo export``, ``push`` and ``pull``.

Place in the pipeline: thin functions around :mod:`bczoo.hub.source`, :mod:`bczoo.hub.folder` and
:mod:`bczoo.hub.remote`; their docstrings are the help.
"""

from __future__ import annotations

from pathlib import Path

from bczoo.core.devices import DTYPES, Precision
from bczoo.core.files import require_folder_target
from bczoo.hub.folder import read_folder
from bczoo.hub.remote import fetch, push, require_repository
from bczoo.hub.source import locate
from bczoo.models.model import Model


def export(
    source: str,
    out: str,
    dtype: Precision | None = None,
    license: str | None = None,
    flaws: list[str] | None = None,
) -> None:
    """Write a trained policy as a folder for the Hub, with a model card of its run.

    Args:
        source: a run such as runs/quickstart, a .ckpt file, or an exported folder (to change its dtype or card).
        out: folder to write to; an older policy there is replaced.
        dtype: type of the saved weights; as they were trained if left out.
        license: of the weights, by its name on the Hub, such as mit.
        flaws: known flaws of these weights, for the card.
    """
    require_folder_target(out, "OUT")
    found = locate(source)
    policy = found.load(Model)
    if chosen := found.chosen:
        print(chosen)
    record = found.record | ({"license": license} if license else {}) | ({"flaws": flaws} if flaws else {})
    policy.save_pretrained(out, DTYPES[dtype] if dtype else None, license, record)
    print(f"{out}: {policy.parameter_counts()['total']:,} parameters; bczoo push {out} org/name uploads it")
    if Path(out).resolve() == Path.cwd():
        print("the folder was replaced as a whole: enter it again with cd . to see the new one")


def push_folder(
    folder: str,
    repository: str,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str | None = None,
) -> None:
    """Upload an exported policy to the Hugging Face Hub.

    Args:
        folder: what `bczoo export` wrote.
        repository: org/name; created if there is none.
        revision: branch to push to; main if left out.
        private: whether a new repository is private.
        token: access token with the right to write; the one that `hf auth login` stored if left out.
        message: of the commit.
    """
    print(push(folder, repository, revision, private, token, message))


def pull(repository: str, revision: str | None = None, out: str | None = None, token: str | None = None) -> None:
    """Download a policy from the Hugging Face Hub, or what is missing of it, and check that it is whole.

    Args:
        repository: org/name.
        revision: branch, tag or commit; main if left out.
        out: folder to download to; the download cache if left out.
        token: access token; the one that `hf auth login` stored if left out.
    """
    require_repository(repository)
    if out is not None:
        require_folder_target(out, "--out")
    folder = fetch(repository, revision, token, out)
    read_folder(folder)
    print(folder)
