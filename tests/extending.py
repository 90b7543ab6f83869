"""The examples of docs/extending.md, as tests take them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def block(name: str) -> str:
    """A marked block of the page, without its indentation."""
    found = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return textwrap.dedent(found[0]).strip() + "\n"
