"""What a parser says of a wrong option, in one line: what is wrong, where, and what was meant.

Place in the pipeline: :class:`bczoo.cli.parser.SuggestingParser` hands the messages of jsonargparse here. They nest: a
key, what is wrong with the class given for it, a key of that class, and so on, once for every type that was allowed.
The first plain statement in such a message is the reason; the keys before it are the way there.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)'")
_SUBTYPES = re.compile(r"Subtypes: \[(?P<types>.*)\]")
_GOT = re.compile(r"G(?:ot|iven) value: (?P<value>.*)")
_REASONS = {
    "unknown": re.compile(
        r"(?:does not accept option|Option|Key) '(?P<what>[\w.\-]+)'(?: is not (?:accepted|expected))?|"
        r"[Uu]nrecognized arguments: (?P<words>.*)"
    ),
    "missing": re.compile(r"the following arguments are required: (?P<what>.*)"),
    "valueless": re.compile(r"argument (?P<what>\S+): expected (?:one|at least one) argument"),
    "no_class": re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<what>\w+)'"),
    "no_module": re.compile(r"No module named '(?P<what>[\w.]+)'"),
    "no_subclass": re.compile(r"Expected '(?P<what>[\w.]+)' to be a subclass of <class '(?P<base>[\w.]+)'>"),
    "type": re.compile(
        r"Expected an? (?P<what><class '(?!NoneType')[\w.]+'>|typing\.Literal\[.*?\]|(?!path)\w[\w.\[\], ]*)"
    ),
    "yaml": re.compile(r"Problems parsing config|Unexpected config|Unable to load config"),
    "choice": re.compile(r"argument (?P<option>\S+): invalid choice: (?P<what>\S+) \(choose from (?P<choices>.*)\)"),
}  # fmt: skip
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


@dataclass(frozen=True)
class Typed:
    """What the user gave: the words of the command line, the configurations among them, and which options there are.

    Args:
        command: as it is typed, such as ``bczoo fit``.
        argv: the words behind it.
        options: all that the parser knows, dotted, without dashes.
        texts: per argument without a name what it is.
    """

    command: str
    argv: Sequence[str]
    options: Sequence[str]
    texts: dict[str, str]

    def configs(self) -> list[Path]:
        """Configuration files of the command line, the last one first, as it overrides the others."""
        from bczoo.core.configs import find

        named = []
        for i, word in enumerate(self.argv):
            option, equals, value = word.partition("=")
            if option in ("--config", "-c") and (equals or i + 1 < len(self.argv)):
                named.append(value if equals else self.argv[i + 1])
        found = []
        for name in reversed(named):
            try:
                found.append(find(name))
            except ValueError:
                continue
        return found

    def place(self, keys: Sequence[str]) -> str:
        """Where a value came from: the option as it was typed, or the key and the file that it is in."""
        last, dotted = keys[-1].split(".")[-1], ".".join(keys)
        typed = [word.partition("=")[0].rstrip("+") for word in self.argv if word.startswith("--")]
        if exact := next((word for word in reversed(typed) if word.split(".")[-1].lstrip("-") == last), None):
            return exact
        for path in self.configs():
            if re.search(rf"\b{re.escape(last)}\s*:", path.read_text(encoding="utf-8", errors="replace")):
                return f"{path}: {dotted}"
        option = f"--{keys[0]}"
        return next((word for word in reversed(typed) if word == option or word.startswith(f"{option}.")), option)


def explain(message: str, typed: Typed) -> str:
    """One line for what a parser says.

    Args:
        message: of jsonargparse, of any length.
        typed: what the user gave.
    """
    matches = [(m.start(), kind, m) for kind, reason in _REASONS.items() if (m := reason.search(message))]
    if not matches:
        return " ".join(message.split())[:300]
    at, kind, match = min(matches, key=lambda found: found[0])
    keys = [m["key"] for m in _KEY.finditer(message, 0, at)]
    classes = [m["name"] for m in _CLASS.finditer(message, 0, at)]
    return _SAY[kind](match, keys, classes, message, typed)


def _unknown(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    if match["words"]:
        words = match["words"].split()
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            named = ", ".join(repr(word) for word in words)
            if typed.command.split()[-1] in ("validate", "test", "predict"):
                return f"what is {named} for? A policy comes first: {typed.command} POLICY [options]"
            if "config" in typed.options and not typed.texts:
                return f"what is {named} for? A configuration is named by --config, a folder by --data.root"
            return (
                f"what is {named} for? {typed.command} takes {_listed(map(str.upper, typed.texts)) or 'options only'}"
            )
        name = option.partition("=")[0].lstrip("-")
        return f"--{name} is no option of {typed.command}.{_meant(name, typed.options)}"
    name = match["what"]
    mentioned = re.findall(r"class_path='([\w.]+)'", message)
    owner = classes[-1] if classes else None
    if keys and mentioned and (owner is None or len(keys) > 1):
        owner = mentioned[0]
    of = _parameters(owner) if owner else []
    place = typed.place([*keys, name])
    who = owner or typed.command
    near = of if owner else typed.options
    meant = _meant(name, near, prefix=place) or _meant(name, [*near, *_part_options()], prefix=place)
    return f"{place} is no option of {who}.{meant}"


def _missing(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    wanted = [name.strip() for name in match["what"].split(",")]
    if classes:
        return f"{typed.place(keys)}: {classes[-1]} needs {_listed(wanted)}"
    known = [f"{n.upper()}, {typed.texts[n].rstrip('.')}" if n in typed.texts else f"--{n}" for n in wanted]
    return f"missing: {_listed(known)}"


def _valueless(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    return f"{match['what'].split('/')[-1]} needs a value behind it"


def _no_class(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    wrong = f"{match['module']}.{match['what']}"
    known = [f"bczoo.{name}" for name in _exported()] if match["module"] == "bczoo" else []
    return f"{typed.place(keys or ['class_path'])}: there is no {wrong}.{_meant(wrong, known, whole=True)}"


def _no_module(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    return (
        f"{typed.place(keys or ['class_path'])}: there is no module {match['what']!r}; a module is found in the "
        "current folder, on PYTHONPATH or installed"
    )


def _no_subclass(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    base = match["base"].split(".")[-1]
    there = _subclasses(base)
    instead = f"; there are {_listed(there)}, and classes of your own" if there else ""
    return f"{typed.place(keys or ['class_path'])}: {match['what']} is no {base}{instead}"


def _type(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    got = _GOT.search(message, match.end())
    value = re.split(r"\. Got value: ", got["value"])[0] if got else None
    before = list(_SUBTYPES.finditer(message, 0, match.start()))
    within = list(_KEY.finditer(message, 0, match.start()))
    union = before[-1]["types"] if before and (not within or before[-1].start() > within[-1].start()) else match["what"]
    shown = "" if value is None else f", got {_short(value)}"
    return f"{typed.place(keys or ['?'])} must be {_allowed(union)}{shown}"


def _yaml(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    import yaml

    for path in typed.configs():
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
            at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            return f"{path}{at} is not YAML: {' '.join(str(problem).split())}"
        if not isinstance(content, dict | None):
            return f"{path} holds {_short(str(content))}; a configuration is a mapping of options to values"
    return " ".join(message.split())[:300]


def _choice(match: re.Match[str], keys: list[str], classes: list[str], message: str, typed: Typed) -> str:
    choices = re.findall(r"[\w.-]+", match["choices"])
    return f"{match['option'].split('/')[-1]} must be one of {', '.join(choices)}, got {match['what']}"


_SAY = {
    "unknown": _unknown,
    "missing": _missing,
    "valueless": _valueless,
    "no_class": _no_class,
    "no_module": _no_module,
    "no_subclass": _no_subclass,
    "type": _type,
    "yaml": _yaml,
    "choice": _choice,
}


def _allowed(types: str) -> str:
    """Python's notation of a type, or of several with commas between, in words."""
    literals = re.findall(r"typing\.Literal\[(.*?)\]", types)
    words = ["one of " + text.replace("'", "") for text in literals]
    rest = re.sub(r"typing\.Literal\[.*?\],? ?", "", types)
    for part in re.split(r", (?![^\[]*\])", rest):
        name = re.sub(r"<class '([\w.]+)'>", r"\1", part.strip()).split("[")[0]
        if name:
            words.append(_WORDS.get(name, f"a {name.split('.')[-1]}"))
    return " or ".join(dict.fromkeys(words))


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _meant(name: str, options: Iterable[str], prefix: str | None = None, whole: bool = False) -> str:
    """A sentence with the option that was probably meant; empty if there is none.

    Args:
        name: what was given, with dots.
        options: what there is.
        prefix: the option as it was typed, whose last word is replaced by the one that was meant.
        whole: names are compared as a whole and not by their last word.
    """
    options = list(dict.fromkeys(options))
    if whole:
        close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
        return f" Did you mean {close[0]!r}?" if close else ""
    if full := difflib.get_close_matches(name, options, n=1, cutoff=0.85):
        found = full[0]
    else:
        last, by_last = name.split(".")[-1], {option.split(".")[-1]: option for option in options}
        close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
        first = difflib.get_close_matches(name.split(".")[0], options, n=1, cutoff=0.7)
        if not close and not first:
            return ""
        found = by_last[close[0]] if close else ".".join([first[0], *name.split(".")[1:]])
    key = (prefix or "--").rpartition(": ")[2]  # without the file that it is in
    if "." not in found and "." in key:
        found = f"{key.rpartition('.')[0]}.{found}"
    elif key.startswith("-"):
        found = f"--{found}"
    return f" Did you mean {found!r}?"


def _exported() -> list[str]:
    import bczoo

    return [name for name in bczoo.__all__ if not name.startswith("_")]


def _classes() -> list[type]:
    import bczoo

    found = (getattr(bczoo, name) for name in _exported())
    return [c for c in found if inspect.isclass(c)]


def _subclasses(base: str) -> list[str]:
    """Classes that bczoo offers with a base class of this name."""
    return [f"bczoo.{c.__name__}" for c in _classes() if base in [b.__name__ for b in c.__mro__[1:]]]


def _parameters(path: str) -> list[str]:
    """Arguments of the class at a path; empty where there is none."""
    from importlib import import_module

    module, _, name = path.rpartition(".")
    try:
        found: Any = getattr(import_module(module), name)
        return [p for p in inspect.signature(found).parameters if p not in ("args", "kwargs")]
    except Exception:  # a module of the user's, which may fail in any way; this is for a hint alone
        return []


def _part_options() -> list[str]:
    """Arguments of the classes that YAML names; they are not options of the parser itself."""
    constructors = [vars(c)["__init__"] for c in _classes() if "__init__" in vars(c)]
    return sorted({p for constructor in constructors for p in inspect.signature(constructor).parameters})
