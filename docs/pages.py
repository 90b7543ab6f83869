"""What the documentation site needs beyond the Markdown in this folder; mkdocs.yml names this file.

Place in the pipeline: ``mkdocs build`` calls the functions, mkdocstrings calls :class:`PlainRoles`. Pages of the
repository's top folder belong to the site too, and all links are written as they work in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP = {"README.md": "index.md", "checkpoints.md": "checkpoints.md", "CHANGELOG.md": "changelog.md"}  # to site pages
FOLDER = "docs"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")
LITERAL_BLOCK = re.compile(r"::$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder."""
    for source, page in TOP.items():
        path = Path(config.config_file_path).parent / source
        files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that work in the repository into links that work on the site."""
    own = page.file.src_uri
    source = next((top for top, name in TOP.items() if name == own), f"{FOLDER}/{own}")

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = TOP.get(target, target.removeprefix(f"{FOLDER}/"))
        return posixpath.relpath(target, posixpath.dirname(own) or ".")

    return LINK.sub(on_site, markdown)


class PlainRoles(griffe.Extension):
    """Docstrings name modules and classes by Sphinx roles; Markdown shows them as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = LITERAL_BLOCK.sub(":", ROLE.sub(r"`\1`", obj.docstring.value))
