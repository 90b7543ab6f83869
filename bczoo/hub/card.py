"""The model card (README.md) of an exported policy, written from what is known of it and from nothing else.

Place in the pipeline: ``save_pretrained`` and ``bczoo export`` call :func:`model_card` with the record that the run
left (:mod:`bczoo.train.run_record`). The head of the card is what the Hugging Face Hub reads: library, tags, licence,
results. A number that was measured on weights of another step says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bczoo.core.actions import BinnedGroup
from bczoo.core.frames import named_size
from bczoo.core.parts import Family, class_path
from bczoo.train.run_record import Record, weights_step

if TYPE_CHECKING:
    import torch


MEASURED_HEADING = "## Measured"
TAGS = ["bczoo", "behavior-cloning", "imitation-learning", "video-games", "game-playing"]


def model_card(
    name: str,
    policy: Family,
    record: Record,
    license: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Text of README.md.

    Args:
        name: of the policy.
        policy: the policy.
        record: what its run recorded; may be empty.
        license: of the weights, by its name on the Hub; the record's if left out.
        dtype: type that the weights are saved in, if it is not the policy's own.
    """
    license = license or record.get("license")
    parts = [
        _head(name, record, license),
        f"# {name}",
        _introduction(policy, dtype),
        _use(name, policy),
        measured_section(rounded_record(policy, record, dtype)),
        _replay(record),
        _training(record),
        _flaws(record),
        f"## Licence\n\n{license}" if license else "## Licence\n\nNo licence was stated for these weights.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rounded_record(policy: Family, record: Record, dtype: torch.dtype | None) -> Record:
    """The record of weights that are saved in another type than that of the policy, if they are."""
    if dtype in (None, _own_dtype(policy)):
        return record
    return {**record, "rounded_to": str(dtype).removeprefix("torch.")}


def _own_dtype(policy: Family) -> torch.dtype:
    return next(policy.parameters()).dtype


def _head(name: str, record: Record, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="playing",
            dataset_type=env,
            dataset_name=env,
            metric_type="mean_return",
            metric_name="mean return",
            metric_value=round(played["players"]["policy"]["mean"], 2),
        )
        for env, played in _of_these_weights(record).items()
    ]
    data = ModelCardData(
        library_name="bczoo",
        license=license,
        tags=TAGS,
        base_model=record.get("base_model"),
        model_name=name if results else None,
        eval_results=results or None,
        inference=False,  # no widget: the Hub has none that plays games
    )
    return f"---\n{data.to_yaml()}\n---"


def _of_these_weights(record: Record) -> dict[str, Any]:
    """Returns in play that were measured on the weights of the last step."""
    step = weights_step(record)
    return {env: p for env, p in record.get("play", {}).items() if p["step"] == step and "policy" in p["players"]}


def _introduction(policy: Family, dtype: torch.dtype | None) -> str:
    spec, counts = policy.input_spec, policy.parameter_counts()
    groups = [
        f"| `{g.name}` | {g.tokens} | {g.choices} | "
        + (f"{g.low:g} to {g.high:g}" if isinstance(g, BinnedGroup) else ", ".join(g.names))
        + " |"
        for g in (spec.action_space.groups if spec.action_space else ())
    ]
    table = ["", "| group | tokens | choices | what |", "|---|---:|---:|---|", *groups] if groups else []
    title = policy.title
    if policy.kind == "policy":
        words = "pixels and an optional instruction" if spec.text_dim else "pixels"
        title = f"A behaviour cloning policy for video games, for the Python package `bczoo`: {words} in, actions out."
    return "\n".join(
        [
            f"{title} {_architecture(policy)}",
            "",
            f"- {counts.pop('total'):,} parameters: {', '.join(f'{part} {n:,}' for part, n in counts.items())}; saved "
            f"as {str(dtype or _own_dtype(policy)).removeprefix('torch.')}",
            f"- frames: {named_size(spec.frame_size)} pixels, RGB, brought to this size with the filter "
            f"`{spec.resize}`{' (the agent does it)' if policy.kind == 'policy' else ''}",
            *(f"- {fact}" for fact in policy.card_facts()),
            f"- text: {'embeddings of ' + str(spec.text_dim) + ' values' if spec.text_dim else 'none'}",
            f"- action space `{spec.action_space.name}`:" if spec.action_space else "- no actions",
            *table,
        ]
    )


def _architecture(policy: Family) -> str:
    family = class_path(type(policy))
    if policy.reference is None:
        return f"Its family is `{family}`, which has to be imported before it is loaded."
    return f"The architecture (`{family}`) is that of {policy.reference}."


def _use(name: str, policy: Family) -> str:
    if policy.kind != "policy":
        return f"""## How to use

```python
import bczoo

model = bczoo.Model.from_pretrained("{name}")  # path of this folder, or org/{name} on the Hub
{policy.card_example()}```"""
    size = named_size(policy.input_spec.frame_size)
    text = ', text="go to the red door"' if policy.input_spec.text_dim else ""
    space = policy.input_spec.action_space
    values = ", ".join(f"decision.{group.name}" for group in space.groups[:3]) if space else "decision"
    return f"""## How to use

```python
import bczoo

policy = bczoo.from_pretrained("{name}")  # path of this folder, or org/{name} on the Hub
agent = policy.agent(temperature=1.0, seed=0)
# a frame is uint8 (height, width, 3) of any size; it is brought to {size}
decision = agent.step(frame{text})
print({values})  # what to press and how far to move
```

Fine-tune it on your own recordings:

```bash
bczoo fit --config finetune --model.init_from {name} --data.root my_game
```"""


def measured_section(record: Record) -> str:
    """The section of the card with what was measured, heading included.

    Args:
        record: what is known of the policy.
    """
    steps, rounded = weights_step(record), record.get("rounded_to")
    lines: list[str] = []
    for env, played in record.get("play", {}).items():
        how = "".join(f", {name} {value}" for name, value in played.get("settings", {}).items())
        where = f"unseen games from seed {played['seed']}{how}"
        lines += ["", f"Return in `{env}`, {where}{_at(played, steps)}:", ""]
        lines += ["| player | mean return | 95 % interval | games |", "|---|---:|---:|---:|"]
        lines += [
            f"| {who} | {p['mean']:.1f} | {interval_of(p['low'], p['high'])} | {p['episodes']} |"
            for who, p in played["players"].items()
        ]
    for what, title in (("metrics", "validation recordings"), ("test_metrics", "test recordings")):
        values = {k: v for k, v in record.get(what, {}).items() if k != "step"}
        if values:
            lines += ["", f"On the {title}{_at(record[what], steps)}:", "", "| metric | value |", "|---|---:|"]
            lines += [f"| `{k}` | {v:.4f} |" for k, v in values.items()]
    lines += _causality(record, steps) + _latency(record, steps)
    if not lines:
        return f"{MEASURED_HEADING}\n\nNothing was measured when this folder was written."
    if not record.get("causality") and not any("causality" in k for k in record.get("metrics", {})):
        lines += ["", "The causality score was not measured."]
    if rounded:
        rest = "All of this" if f"on {rounded}" not in "".join(lines) else "What does not say otherwise"
        lines += ["", f"{rest} was measured before the weights were rounded to the type that they are saved in."]
    return "\n".join([MEASURED_HEADING, *lines])


def _causality(record: Record, steps: int | None) -> list[str]:
    lines: list[str] = []
    for folder, scored in record.get("causality", {}).items():
        held_out = "validation recordings of " if scored["part"] == "val" else ""
        size = f"{scored['recordings']} recordings, {scored['windows']} windows"
        lines += ["", f"Causality on {held_out}`{folder}` ({size}{_at(scored, steps, ', ')}):", ""]
        lines += ["| metric | value | 95 % interval |", "|---|---:|---:|"]
        lines += [
            f"| `{name}` | {_number(m['value'])} | {interval_of(m['low'], m['high'], 3)} |"
            for name, m in scored["metrics"].items()
        ]
    return lines


def _latency(record: Record, steps: int | None) -> list[str]:
    if not record.get("latency"):
        return []
    lines = ["", "Latency of a step, in milliseconds:", ""]
    lines += ["| device | numbers | games | threads | p50 | p99 | budget |", "|---|---|---:|---:|---:|---:|---:|"]
    for device, timed in record["latency"].items():
        columns = [device + _at(timed, steps), timed["dtype"], timed["games"], timed["threads"] or "n/a"]
        columns += [f"{timed[k]:.2f}" for k in ("p50", "p99", "budget")]
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return lines


def interval_of(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval as it is printed; one game or one recording has none."""
    return "n/a" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _at(measured: Mapping[str, Any], steps: int | None, before: str = " ") -> str:
    """What has to be said of the weights that a number was measured on, if they are not simply these."""
    said = [f"measured on {measured['on']}"] if "on" in measured else []
    if measured["step"] != steps:
        said = [f"measured at step {measured['step']}, not on these weights of step {steps}"]
    if not said:
        return ""
    return f"{before}({said[0]})" if before == " " else f"{before}{said[0]}"


def _replay(record: Record) -> str:
    if (shown := record.get("replay")) is None:
        return ""
    at = _at(shown, weights_step(record))
    return (
        f"## Replay\n\n[{shown['video']}]({shown['video']}): `{shown['env']}`, the game of seed {shown['seed']}{at}, "
        f"with the keys and the mouse motion of the policy; return {shown['return']:.1f} up to the end of the video."
    )


def _training(record: Record) -> str:
    training, data = record.get("training"), record.get("data", {})
    if record.get("converted_from"):
        return f"## Training\n\nConverted from `{record['converted_from']}`; see there how it was trained."
    if not training:
        return ""
    lines = ["## Training", ""]
    if record.get("init_from"):
        lines.append(f"- started from `{record['init_from']}`")
    for what in ("freeze", "learning_rate", "lora"):
        if record.get(what):
            lines.append(f"- {what.replace('_', ' ')}: {record[what]}")
    if record.get("instruction"):
        lines.append(f"- instruction, where a step had none of its own: {record['instruction']!r}")
    if record.get("command"):
        lines.append(f"- command: `{record['command']}`")
    if "train" in data:
        lines.append(
            f"- data: {data['train']['recordings']} recordings, {data['train']['hours']:.2f} hours "
            f"({', '.join(data['root'])}), batches of {data['batch_size']} windows"
        )
    source = {k: v for k, v in data.get("source", {}).items() if k != "class" and v is not None}
    if source:
        said = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in source.items()}
        lines.append(f"- recorded: {'; '.join(f'{k} {v}' for k, v in said.items())}")
    step, steps = weights_step(record), training.get("steps")
    took = f"{step} steps" if step == steps else f"weights of step {step}, from a run that was recorded at step {steps}"
    if step == steps and "seconds" in training:
        took += f" in {training['seconds']:.0f} s"
    if "device" in training:
        took += f" on {training.get('devices', 1)} x {training['device']}"
    lines.append("- " + ", ".join([took, *(f"{k} {training[k]}" for k in ("precision", "seed") if k in training)]))
    lines.append(f"- bczoo {record.get('bczoo', 'of unknown version')}, torch {training.get('torch', '?')}")
    return "\n".join(lines)


def _flaws(record: Record) -> str:
    flaws = record.get("flaws")
    return "## Known flaws\n\n" + "\n".join(f"- {flaw}" for flaw in flaws) if flaws else ""
