"""Which policies there are: weights, ready to play, and architectures, ready to train.

Place in the pipeline: ``bczoo zoo list``, ``bczoo zoo info`` and :func:`bczoo.list_models` read the folder
``checkpoints/``, of the repository or of an installed wheel::

    zoo.yaml              which weights there are, of this project and of others
    architectures.json    what the shipped configurations build; written by `bczoo zoo table`
    <weights>/            exported folders, with the record of their training

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bczoo.core import configs
from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table
from bczoo.train.run_record import EXPORTED_RECORD, Record, read_record

_PACKAGE = Path(__file__).parents[1]
CHECKPOINTS = _PACKAGE / "checkpoints" if (_PACKAGE / "checkpoints").is_dir() else _PACKAGE.parent / "checkpoints"
ZOO, ARCHITECTURES = "zoo.yaml", "architectures.json"
WEIGHTS, ARCHITECTURE, CONVERTIBLE = "weights", "architecture", "to convert"
PLURAL = {ARCHITECTURE: "architectures", CONVERTIBLE: "sets of weights to convert"}
UNKNOWN = "-"
# those that train or contain another model, and those that do not act
NO_POLICIES = ("FineTune", "InverseDynamics", "VQVAE", "VQGAN", "TokenPolicy", "WorldModel")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|)\s*")


@dataclass(frozen=True)
class Entry:
    """A policy of the zoo.

    Args:
        name: what ``bczoo.from_pretrained`` takes (weights) or ``from_config`` (an architecture).
        kind: weights; architecture; or to convert, weights of others that a command turns into a policy.
        architecture: name of the configuration that builds it.
        parameters: in all.
        get: command that fetches or uses it.
        license: of the weights; empty for an architecture.
        record: of the training, of weights that ship.
        about: a few words.
        flaws: that are known.
    """

    name: str
    kind: str
    architecture: str
    parameters: int
    get: str
    license: str = ""
    record: Record = field(default_factory=dict)
    about: str = ""
    flaws: tuple[str, ...] = ()

    @property
    def games(self) -> list[str]:
        """Games that its returns are known in."""
        return list(self.record.get("play", {}))

    @property
    def latency(self) -> Mapping[str, Any]:
        """Milliseconds of a step for one game, p50 and p99, by the device they were measured on."""
        return self.record.get("latency", {})


def list_models(pretrained: bool = False) -> list[str]:
    """Names of the policies that ship with bczoo.

    Args:
        pretrained: only those with weights, which ``bczoo.from_pretrained`` takes; else also architectures, which
            ``from_config`` of a family and ``--config`` take.
    """
    kinds = {WEIGHTS} if pretrained else {WEIGHTS, ARCHITECTURE}
    return [entry.name for entry in entries() if entry.kind in kinds]


def shipped_weights(name: str | Path) -> Path | None:
    """The exported folder of ``checkpoints/<name>``, wherever bczoo is installed; None if there is none."""
    parts = Path(name).parts
    if len(parts) != 2 or parts[0] != "checkpoints" or parts[1] == "..":
        return None
    folder = CHECKPOINTS / parts[1]
    return folder if (folder / "config.json").is_file() else None


def entries() -> list[Entry]:
    """All policies of the zoo: weights that ship, architectures, weights of others.

    Raises:
        UserError: the installation lacks the zoo's data.
    """
    for name in (ZOO, ARCHITECTURES):
        if not (CHECKPOINTS / name).is_file():
            raise UserError(f"{CHECKPOINTS / name} is missing; install bczoo anew, or run this in the repository")
    zoo = yaml.safe_load((CHECKPOINTS / ZOO).read_text(encoding="utf-8"))
    architectures = json.loads((CHECKPOINTS / ARCHITECTURES).read_text(encoding="utf-8"))
    rows = [_trained(row, architectures) for row in zoo["trained"]]
    rows += [_architecture(name, about) for name, about in architectures.items()]
    return rows + [_reference(row, architectures) for row in zoo["reference"]]


def _trained(row: Mapping[str, Any], architectures: Mapping[str, Any]) -> Entry:
    record = read_record(CHECKPOINTS / row["folder"] / EXPORTED_RECORD)
    name = f"checkpoints/{row['folder']}"
    return Entry(
        name,
        WEIGHTS,
        row["architecture"],
        architectures[row["architecture"]]["parameters"]["total"],
        f"bczoo play {name}",
        record.get("license", ""),
        record,
        row["description"],
        tuple(record.get("flaws", ())),
    )


def _architecture(name: str, about: Mapping[str, Any]) -> Entry:
    words = f"{about['family']}: frames of {about['frame_size']} pixels, {about['fps']:g} steps a second, memory of "
    text = "text of an instruction" if about["text_dim"] else "no text"
    return Entry(
        name,
        ARCHITECTURE,
        name,
        about["parameters"]["total"],
        f"bczoo fit --config {name}",
        about=f"{words}{about['window']} steps, {text}, actions {about['action_space']}",
    )


def _reference(row: Mapping[str, Any], architectures: Mapping[str, Any]) -> Entry:
    return Entry(
        row["name"],
        CONVERTIBLE,
        row["architecture"],
        architectures[row["architecture"]]["parameters"]["total"],
        "; ".join(convert_commands(row)),
        row["license"],
        about=f"Pixels2Play weights of {row['hub']}; trained: {row['training']}",
        flaws=tuple(row["flaws"]),
    )


def convert_commands(row: Mapping[str, Any]) -> list[str]:
    """What fetches weights of the paper and turns them into a policy, from an entry of zoo.yaml."""
    return [
        f"hf download {row['hub']} --include '{row['folder']}/*' --local-dir open-p2p",
        f"bczoo convert open-p2p open-p2p/{row['folder']} {row['name']}",
    ]


# ---------------------------------------------------------------------------------------------------- commands


def zoo_list(game: str | None = None, max_latency: str | None = None) -> None:
    """List the policies there are: weights, architectures, and weights of others.

    Args:
        game: only weights whose returns are known in such games: doom, or doom/basic.
        max_latency: only policies that answer 99 of 100 frames within this time, such as 10ms, where it was measured.
    """
    found = entries()
    notes = []
    if game is not None:
        fitting = [e for e in found if any(g == game or g.startswith(f"{game.rstrip('/')}/") for g in e.games)]
        notes += _left_out([e for e in found if not e.games], "no returns in games are known")
        if not fitting:
            known = sorted({g for e in found for g in e.games})
            raise UserError(f"no weights are known in the game {game!r}; there are some for {', '.join(known)}")
        found = fitting
    if max_latency is not None:
        limit = milliseconds(max_latency)
        unmeasured = [entry for entry in found if not entry.latency]
        notes += _left_out(unmeasured, "no latency is known; `bczoo bench latency NAME` measures it")
        found = [e for e in found if any(timed["p99"] <= limit for timed in e.latency.values())]
        if not found:
            print(f"no policy is known to answer within {limit:g} ms")
    if found:
        print(
            markdown_table([["name", "what", "parameters", "games", "p50 / p99, ms", "licence"], *map(_row, found)], 2)
        )
    measured = {device for entry in found for device in entry.latency}
    notes += [f"latency: a step of one game, on {'; '.join(sorted(measured))}"] if measured else []
    if found:
        notes.append("`bczoo zoo info NAME` says more, and how to get those to convert")
    print("\n".join(["", *(f"* {note}" for note in notes)]) if notes else "")


def zoo_info(name: str) -> None:
    """Say what is known of a policy of the zoo: how to get it, cost, returns, latency, causality, flaws.

    Args:
        name: of a row of `bczoo zoo list`.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"the zoo has no policy {name!r}{hint} There are: {', '.join(known)}")
    entry = known[name]
    lines = [f"{name}: {entry.kind}, {entry.parameters:,} parameters"]
    if entry.kind != ARCHITECTURE:
        lines.append(f"architecture {entry.architecture}, licence {entry.license or 'not stated'}")
    lines += ["", entry.about, "", *(f"    {command}" for command in entry.get.split("; "))]
    if beside := [e.name for e in known.values() if e.kind == WEIGHTS and e.architecture == name]:
        lines += ["", f"weights of this architecture: {', '.join(beside)}"]
    lines += [*_cost(entry.record), *_returns(entry.record), *_latency(entry), *_causality(entry.record)]
    if entry.flaws:
        lines += ["", "known flaws:", *(f"- {flaw}" for flaw in entry.flaws)]
    print("\n".join(lines))


def milliseconds(duration: str) -> float:
    """A duration such as ``10ms`` or ``0.01s`` in milliseconds; a number alone is milliseconds.

    Raises:
        UserError: it is none.
    """
    match = _DURATION.fullmatch(str(duration))
    if match is None:
        raise UserError(f"a latency is a time such as 10ms or 0.01s, got {duration!r}")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def _left_out(left: list[Entry], why: str) -> list[str]:
    """A note on what a filter cannot judge: weights by name, the others by how many they are."""
    named = [entry.name for entry in left if entry.kind == WEIGHTS]
    kinds = Counter(entry.kind for entry in left if entry.kind != WEIGHTS)
    words = [*named, *(f"{count} {PLURAL[kind]}" for kind, count in kinds.items())]
    return [f"left out: {', '.join(words)}, of which {why}"] if left else []


def _row(entry: Entry) -> list[str]:
    games = (
        entry.games[0] + (f" and {len(entry.games) - 1} more" if len(entry.games) > 1 else "") if entry.games else ""
    )
    latency = "; ".join(f"{timed['p50']:.1f} / {timed['p99']:.1f}" for timed in entry.latency.values())
    parameters = f"{entry.parameters / 1e6:.2f} M"
    return [entry.name, entry.kind, parameters, games or UNKNOWN, latency or UNKNOWN, entry.license or UNKNOWN]


def _cost(record: Record) -> list[str]:
    training, data = record.get("training"), record.get("data", {}).get("train")
    if not training or not data:
        return []
    took = f"{training['steps']} steps in {training['seconds'] / 60:.1f} min on {training['device']}"
    return ["", f"training: {took}; {data['recordings']} recordings, {data['hours']:.2f} h"]


def _returns(record: Record) -> list[str]:
    if not record.get("play"):
        return []
    who = ("policy", "expert", "random")
    rows = [["mean return", *who, "games"]]
    for env, played in record["play"].items():
        players = played["players"]
        cells = [f"{players[w]['mean']:.1f}" if w in players else UNKNOWN for w in who]
        rows.append([env, *cells, str(played["players"]["policy"]["episodes"]) if "policy" in players else UNKNOWN])
    return ["", markdown_table(rows)]


def _latency(entry: Entry) -> list[str]:
    return [
        f"\nlatency of a step on {device}: {timed['p50']:.2f} ms (p50), {timed['p99']:.2f} ms (p99)"
        for device, timed in entry.latency.items()
    ]


def _causality(record: Record) -> list[str]:
    rows = [["measured on", "causality (nats)", "95 % interval"]]
    for data, scored in record.get("causality", {}).items():
        score = scored["metrics"].get("causality")
        if score is not None and score["value"] is not None:
            ends = UNKNOWN if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
            rows.append([data, f"{score['value']:.3f}", ends])
    return ["", markdown_table(rows)] if len(rows) > 1 else []


def architecture_names() -> list[str]:
    """Shipped configurations that build a policy by themselves."""
    out = []
    for name in configs.names():
        model = (yaml.safe_load(configs.find(name).read_text(encoding="utf-8")) or {}).get("model") or {}
        if "/" not in name and "class_path" in model and not model["class_path"].endswith(NO_POLICIES):
            out.append(name)
    return out
