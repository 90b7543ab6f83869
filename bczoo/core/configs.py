"""Shipped configurations: finding them by name, and building a policy from one.

Place in the pipeline: ``--config 600m`` and ``BCPolicy.from_config("600m")`` come here. The YAML files lie in
``configs/`` of the repository and in ``bczoo/configs/`` of an installed wheel.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bczoo.core.errors import UserError

if TYPE_CHECKING:
    from bczoo.core.parts import Family

Built = TypeVar("Built", bound="Family")

_HERE = Path(__file__).parent.parent
IMPORT = "BCZOO_IMPORT"  # environment variable: modules that --import names, with commas between
FOLDER = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml"))


def find(name: str) -> Path:
    """Path of a configuration given by path or by name (``600m``).

    Raises:
        ValueError: there is neither such a file nor such a name; close names are suggested.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = FOLDER / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    # "configs/600m.yaml" works from anywhere, also without the repository
    if path.parts[:1] == ("configs",) and (FOLDER / Path(*path.parts[1:])).is_file():
        return FOLDER / Path(*path.parts[1:])
    close = difflib.get_close_matches(path.stem, names(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(f"no configuration file {name!r}{hint} Shipped by name: {', '.join(names())}")


def load_model(
    cls: type[Built], config: str | Mapping[str, Any], pretrained: bool, overrides: Mapping[str, Any]
) -> Built:
    """Build a model; see :meth:`bczoo.Model.from_config`."""
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    from bczoo.core.parts import Family, class_path, find_class

    family: type[Any] = cls
    if isinstance(config, Mapping):
        init_args, where = dict(config), "this config"
        if set(init_args) == {"class_path", "init_args"}:  # a spec
            family, init_args = find_class(init_args["class_path"], Family), dict(init_args["init_args"])
    else:
        path = find(config)
        model = (yaml.safe_load(path.read_text()) or {}).get("model", {})
        init_args, where = dict(model.get("init_args", model)), str(path)
        if "class_path" in model:
            family = find_class(model["class_path"], Family)
    if not issubclass(family, cls):
        raise UserError(f"{where} describes a {class_path(family)} and no {class_path(cls)}")
    init_args = merge(init_args, overrides)
    if not pretrained:
        init_args = without_imagenet(init_args, family)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(family, "policy")
    try:
        return parser.instantiate_classes(parser.parse_object({"policy": init_args})).policy
    except ArgumentError as error:
        raise UserError(f"{where} does not describe a {family.kind}: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, dicts merged into each other; another class brings its own defaults."""
    out = dict(base)
    if over.get("class_path", out.get("class_path")) != out.get("class_path"):
        out.pop("init_args", None)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def without_imagenet(init_args: Mapping[str, Any], family: type | None = None) -> dict[str, Any]:
    """A model's arguments with an encoder that loads no ImageNet weights; other encoders stay as they are.

    Args:
        init_args: of the model.
        family: its class, whose default encoder counts where the arguments name none.
    """
    encoder = init_args.get("encoder", _default_encoder(family))
    if not isinstance(encoder, Mapping) or not isinstance(encoder.get("init_args", {}), Mapping):
        return dict(init_args)  # no encoder, or none that its constructor will take
    if "pretrained" not in encoder.get("init_args", {}) and encoder.get("class_path") != "bczoo.ImageEncoder":
        return dict(init_args)
    return {**init_args, "encoder": merge(encoder, {"init_args": {"pretrained": False}})}


def _default_encoder(family: type | None) -> dict[str, Any] | None:
    from bczoo.core.parts import class_path

    argument = None if family is None else inspect.signature(family).parameters.get("encoder")
    return {"class_path": class_path(argument.default)} if argument and inspect.isclass(argument.default) else None


def with_config_paths(argv: list[str]) -> list[str]:
    """The arguments with names of shipped configurations replaced by their paths."""
    out = list(argv)
    for i, argument in enumerate(out):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            out[i] = f"{option}={find(value)}"
        elif i + 1 < len(out):
            out[i + 1] = str(find(out[i + 1]))
    return out
