"""``checkpoints.md``, written from a data file and from the records that lie beside the weights.

Place in the pipeline: ``bczoo zoo table``, which also writes what the shipped configurations build
(``checkpoints/architectures.json``), so that :mod:`bczoo.hub.models` lists them without building them. The data file
(``checkpoints/zoo.yaml``) says which weights there are, how they are made and what is wrong with them; numbers come
from the policies themselves and from their ``training.json``, so that nobody copies a number by hand. A test fails when
a page is not what the command writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, write_text
from bczoo.core.parts import class_path
from bczoo.hub.card import interval_of
from bczoo.hub.folder import read_folder
from bczoo.hub.models import ARCHITECTURES, architecture_names, convert_commands
from bczoo.models.policy import Policy

SECTIONS = {"trained", "reference"}
ENTRIES = {
    "trained": {"folder", "architecture", "recipe", "description"},
    "reference": {"name", "architecture", "hub", "folder", "license", "training", "flaws"},
}


def table(data: str = "checkpoints/zoo.yaml", out: str = "checkpoints.md", check: bool = False) -> None:
    """Write the table of checkpoints from its data file, and the list of architectures beside that file.

    Args:
        data: the data file; folders in it are relative to the folder that it lies in.
        out: the page.
        check: write nothing; an error if the page is not up to date.
    """
    require_file_target(out, "--out", "checkpoints.md")
    written = {out: page(Path(data)), str(Path(data).parent / ARCHITECTURES): architectures()}
    for path, text in written.items():
        if not check:
            write_text(path, text)
        elif not Path(path).is_file() or Path(path).read_text(encoding="utf-8") != text:
            raise UserError(f"{path} is stale; `bczoo zoo table` writes it")
        print(f"{path} is up to date" if check else path)


def architectures() -> str:
    """What the shipped configurations build, as JSON."""
    found = {}
    for name in architecture_names():
        policy: Any = _blueprint(name)
        spec = policy.input_spec
        found[name] = {
            "family": class_path(type(policy)),
            "parameters": policy.parameter_counts(),
            **{k: getattr(spec, k) for k in ("frame_size", "window", "fps", "text_dim")},
            "action_space": spec.actions.name,
        }
    return json.dumps(found, indent=1) + "\n"


@cache
def _blueprint(name: str) -> Policy:
    """A policy of a shipped configuration, without memory."""
    with torch.device("meta"):
        return Policy.from_config(name, pretrained=False)


def page(path: Path) -> str:
    """The page's text.

    Raises:
        UserError: the data file is missing, or an entry of it is unknown or incomplete.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; run this in the repository, or name the file with --data")
    zoo = yaml.safe_load(path.read_text(encoding="utf-8"))
    if set(zoo) != SECTIONS:
        raise UserError(f"{path} needs the sections {sorted(SECTIONS)}, it has {sorted(zoo)}")
    for section, rows in zoo.items():
        for i, row in enumerate(rows):
            if differing := sorted(ENTRIES[section] ^ set(row)):
                raise UserError(f"{path}: {section}[{i}] has unknown or missing entries: {differing}")
    return "\n".join([*_head(), *_trained(zoo["trained"], path.parent), *_reference(zoo["reference"])]) + "\n"


def _head() -> list[str]:
    return [
        "# Checkpoints",
        "",
        "<!-- written by `bczoo zoo table` from checkpoints/zoo.yaml; do not edit -->",
        "",
        "An architecture (`600m`) and a set of weights are different things: the configurations in `configs/` are",
        "architectures, ready to train; here are weights. Parameters are counted as in the paper: in all, and those of",
        "the image encoder, the backbone and the action decoder.",
    ]


def _trained(rows: list[dict[str, Any]], root: Path) -> list[str]:
    lines = ["", "## Trained with bczoo, in this repository", ""]
    lines += ["| weights | architecture | parameters | data | training | licence |", "|---|---|---|---|---|---|"]
    details: list[str] = []
    for row in rows:
        exported = read_folder(root / row["folder"])
        policy: Any = exported.model
        record, name = exported.record, f"{root.name}/{row['folder']}"
        if lacking := sorted({"training", "data", "license", "flaws"} - record.keys()):
            raise UserError(f"{exported.path} was exported without {', '.join(lacking)}; export it from its run")
        training, data = record["training"], record["data"]
        lines.append(
            f"| `{name}` | `{row['architecture']}` | {_parameters(policy)} | {data['train']['hours']:.2f} h, "
            f"{data['train']['recordings']} recordings | {training['steps']} steps, {training['seconds'] / 60:.1f} min "
            f"({training['device']}) | {record['license']} |"
        )
        details += ["", f"### {name}", "", row["description"], ""]
        details += [f"    {line}" for line in row["recipe"].strip().splitlines()]
        details += ["", *_returns(record), *_perplexities(record, policy)]
        details += [*_causality(record), *_latency(record), *_replay(record, name)]
        details += ["", "Known flaws:", "", *(f"- {flaw}" for flaw in record["flaws"])]
    return [*lines, *details]


def _returns(record: Mapping[str, Any]) -> list[str]:
    lines = ["| game | policy | expert | random | games each |", "|---|---:|---:|---:|---:|"]
    for env, played in record.get("play", {}).items():
        players = played["players"]
        cells = [
            f"{players[p]['mean']:.1f} ({interval_of(players[p]['low'], players[p]['high'])})" if p in players else ""
            for p in ("policy", "expert", "random")
        ]
        lines.append(f"| `{env}` | {' | '.join(cells)} | {players['policy']['episodes']} |")
    return [*lines, "", "Mean return in games that were not trained on, with its 95 % interval."]


def _perplexities(record: Mapping[str, Any], policy: Policy) -> list[str]:
    metrics = record.get("metrics", {})
    groups = [g.name for g in policy.action_space.groups if f"val/perplexity/{g.name}" in metrics]
    if not groups:
        return []
    lines = ["", "| action group | perplexity | at change points | accuracy |", "|---|---:|---:|---:|"]
    for group in groups:
        values = [metrics.get(f"val/{kind}/{group}") for kind in ("perplexity", "change_perplexity", "accuracy")]
        lines.append(f"| `{group}` | {' | '.join('' if v is None else f'{v:.3f}' for v in values)} |")
    known = record.get("causality") or any("causality" in k for k in metrics)
    return [*lines, "", f"On validation recordings.{'' if known else ' The causality score was not measured.'}"]


def _causality(record: Mapping[str, Any]) -> list[str]:
    if not record.get("causality"):
        return []
    lines = [
        "",
        "| held-out recordings | causality (nats) | action reliance (nats) | recordings |",
        "|---|---:|---:|---:|",
    ]
    for data, scored in record["causality"].items():
        cells = [
            f"{m['value']:.3f} ({interval_of(m['low'], m['high'], 3)})" if (m := scored["metrics"].get(name)) else ""
            for name in ("causality", "action_reliance")
        ]
        lines.append(f"| `{data}` | {' | '.join(cells)} | {scored['recordings']} |")
    return [*lines, "", "How much a decision depends on the picture, and on past actions, with its 95 % interval."]


def _latency(record: Mapping[str, Any]) -> list[str]:
    return [
        line
        for device, timed in record.get("latency", {}).items()
        for line in (
            "",
            f"Latency of a step, on {device}: {timed['p50']:.1f} ms (p50), {timed['p99']:.1f} ms (p99).",
        )
    ]


def _replay(record: Mapping[str, Any], name: str) -> list[str]:
    if (shown := record.get("replay")) is None:
        return []
    return ["", f"A game of `{shown['env']}`: `{name}/{shown['video']}`."]


def _reference(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Pixels2Play policies of the paper, ready to convert",
        "",
        "The weights of [Scaling Behavior Cloning Improves Causal Reasoning](https://arxiv.org/abs/2601.04575). They",
        "are not hosted here; two commands turn them into policies for bczoo. The conversion is tested on reference",
        "values computed with the reference code (logits, and actions streamed over the wrap of the memory). The files",
        "themselves have not been downloaded and converted by this project yet.",
        "",
        "| weights | architecture | parameters | source | training (paper) | licence |",
        "|---|---|---|---|---|---|",
    ]
    commands: list[str] = []
    for row in rows:
        policy = _blueprint(row["architecture"])
        lines.append(
            f"| {row['name']} | `{row['architecture']}` | {_parameters(policy)} | "
            f"[{row['hub']}](https://huggingface.co/{row['hub']}), `{row['folder']}/` | {row['training']} | "
            f"{row['license']} |"
        )
        commands += [*(f"    {command}" for command in convert_commands(row)), ""]
    flaws = {flaw: None for row in rows for flaw in row["flaws"]}  # each once, in order
    return [*lines, "", *commands, "Known flaws:", "", *(f"- {flaw}" for flaw in flaws)]


def _parameters(policy: Policy) -> str:
    counts = policy.parameter_counts()
    total, *parts = (counts[k] / 1e6 for k in ("total", "image", "backbone", "decoder"))
    return f"{total:.2f} M ({' + '.join(f'{p:.2f}' for p in parts)})"
