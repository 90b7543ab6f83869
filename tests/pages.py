"""The marked blocks of README.md and the pages in docs/, as tests take them.

A block stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``, and is indented.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def marked(page: str, name: str) -> str:
    """What stands between the markers of a name, which have to be there once."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert len(found) == 1, f"{page} has to have one pair of markers {name}:begin and {name}:end"
    return found[0]


def blocks(page: str) -> dict[str, str]:
    """The marked blocks of a page by name, in order, without their indentation."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.findall(r"<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->", text, re.DOTALL)
    return {name: textwrap.dedent(code).strip() + "\n" for name, code in found}


def block(page: str, name: str) -> str:
    """A marked block of a page, without its indentation."""
    return textwrap.dedent(marked(page, name)).strip() + "\n"
