"""The arguments of a function or class, read from its source without importing it.

Place in the pipeline: help pages and shell completion, which answer at once, take options, defaults and texts from
here; importing a command takes torch along. What is read is the signature and the docstring that the real parser is
made of, so the two cannot say different things.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Argument:
    """One argument.

    Args:
        name: of it.
        type: its annotation, as written.
        default: as written, constants replaced by their values; None if it has to be given.
        help: its text in the docstring.
        choices: what a ``Literal`` allows.
    """

    name: str
    type: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()

    @property
    def shown_default(self) -> str:
        """The default as YAML would write it; empty where there is none worth a word."""
        if self.default in (None, "None"):
            return ""
        plain = {"True": "true", "False": "false"}.get(self.default or "", self.default or "").strip("\"'")
        return re.sub(r"^\((.*?),?\)$", r"[\1]", plain)  # a tuple is a list there


@dataclass(frozen=True)
class Described:
    """A function or class: the first line of its docstring, and its arguments in order."""

    summary: str
    arguments: tuple[Argument, ...]

    def named(self, name: str) -> Argument:
        return next(a for a in self.arguments if a.name == name)


@cache
def describe(target: str) -> Described:
    """What ``module:function`` or ``module:Class`` takes; of a class, its constructor.

    Args:
        target: of any installed package; nothing of it is imported.
    """
    module, _, name = target.partition(":")
    tree = _tree(module)
    found = next(
        n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and n.name == name
    )
    doc = ast.get_docstring(found) or ""
    function: ast.AST = found
    if isinstance(found, ast.ClassDef):
        function = next(n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        doc = doc if "Args:" in doc else f"{doc}\n\n{ast.get_docstring(function) or ''}"
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    arguments = function.args.args + function.args.kwonlyargs
    defaults: list[ast.expr | None] = [None] * (len(function.args.args) - len(function.args.defaults))
    defaults += [*function.args.defaults, *function.args.kw_defaults]
    texts = _texts(doc)
    return Described(
        " ".join(doc.strip().partition("\n\n")[0].split()),
        tuple(
            Argument(
                a.arg,
                ast.unparse(a.annotation) if a.annotation else "",
                None if default is None else _written(module, default),
                texts.get(a.arg, ""),
                _choices(module, a.annotation),
            )
            for a, default in zip(arguments, defaults, strict=True)
            if a.arg != "self"
        ),
    )


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _path(module: str) -> Path:
    """The file of a module; only its top-level package is looked for, and not imported either."""
    package, *below = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*below)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _texts(doc: str) -> dict[str, str]:
    """Texts of the ``Args:`` section by name."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(doc), re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): ?(.*?)(?=^ {4}\S|\Z)", section[1], re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in entries}


def _written(module: str, default: ast.expr) -> str:
    """A default as written; that of a constant instead of its name."""
    if isinstance(default, ast.Name) and (value := _constant(module, default.id)) is not None:
        return ast.unparse(value)
    return ast.unparse(default)


def _choices(module: str, annotation: ast.expr | None) -> tuple[str, ...]:
    """What the ``Literal`` in an annotation allows, also one that has a name."""
    for node in ast.walk(annotation) if annotation else ():
        if isinstance(node, ast.Name) and node.id not in ("Literal", "str", "int", "float", "bool", "list", "None"):
            value = _constant(module, node.id)
            if value is not None and ast.unparse(value).startswith("Literal["):
                return _choices(module, value)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Literal", "typing.Literal"):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return tuple(str(item.value) for item in items if isinstance(item, ast.Constant))
    return ()


def _constant(module: str, name: str) -> ast.expr | None:
    """What a name of a module is assigned, there or in the module of bczoo that it is imported from."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bczoo."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    try:
                        return _constant(node.module or "", alias.name)
                    except OSError:  # a name of a package, and not of a module
                        return None
    return None
