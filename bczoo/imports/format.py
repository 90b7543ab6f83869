"""What a recorder's format is: a class that finds its recordings and reads one.

Place in the pipeline: ``bczoo data import FORMAT SOURCE OUT`` gets its format here, by name or, for one of your own, by
import path. A format knows files and fields; rates, names of keys, writing and reports are the same for all
(:mod:`bczoo.imports.convert`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.parts import find_class
from bczoo.imports.session import Session

FORMATS = {  # name -> where its class is
    "owamcap": "bczoo.imports.owamcap:OwaMcap",
    "owl": "bczoo.imports.owl:Owl",
    "vpt": "bczoo.imports.vpt:Vpt",
    "csgo": "bczoo.imports.csgo:CounterStrike",
    "lerobot": "bczoo.imports.lerobot:LeRobot",
    "video": "bczoo.imports.video:Video",
}


class Format:
    """Base class of formats. Options of a format are arguments of its constructor, plain values with defaults.

    Attributes:
        name: what it is called on the command line.
        description: a line about it, for ``bczoo data formats``.
    """

    template = True
    name: ClassVar[str]
    description: ClassVar[str]

    def find(self, source: Path) -> Iterator[Path]:
        """What :meth:`read` takes of every recording at ``source``: a file or a folder, broken ones too.

        Args:
            source: what the user named, a folder or a file.
        """
        raise NotImplementedError(f"{type(self).__name__} must define find")

    def read(self, path: Path) -> Session:
        """One recording.

        Args:
            path: as :meth:`find` gave it.

        Raises:
            RecordingError: it cannot be used; says why. It is reported, and the others are imported.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")


def open_format(name: str, options: Mapping[str, Any]) -> Format:
    """A format by its name, or by the import path of its class.

    Raises:
        UserError: there is none, or it has no such option.
    """
    cls = _class_of(name)
    arguments.check_call(f"format {name}", cls, **options)
    return cls(**options)


def all_formats() -> list[type[Format]]:
    """The formats that ship."""
    return [_class_of(name) for name in FORMATS]


def _class_of(name: str) -> type[Format]:
    if name in FORMATS:
        module, _, own = FORMATS[name].partition(":")
        found: type[Format] = getattr(import_module(module), own)
        return found
    if "." not in name:
        raise UserError(
            f"there is no format {arguments.shown(name)}; there are {', '.join(FORMATS)}, and classes of your own, "
            "such as my_format.MyFormat with --import my_format"
        )
    return find_class(name, Format)


def files_below(source: Path, *suffixes: str) -> Iterator[Path]:
    """Files with one of some suffixes, in order, or ``source`` itself if it is one; hidden ones are left out."""
    if source.is_file():
        if source.suffix.lower() in suffixes:
            yield source
        return
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield Path(folder, name)


def needed(module: str) -> Any:
    """A module that reads the files of a format, which the extra ``import`` installs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"this format needs {package}, which is not installed: pip install 'bczoo[import]'") from error
