"""``bczoo scaling run``: train a grid of sizes for a law, several runs at a time.

Place in the pipeline: takes the runs that can start from :class:`bczoo.scaling.grid.Grid`, each a ``bczoo fit`` in a
process of its own, and starts the next ones as these end. ``bczoo scaling fit`` reads the folders. The same command
again goes on: what is finished is skipped, what was interrupted resumes from its checkpoint.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bczoo.compare.seeds import BCZOO, forwarding
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target
from bczoo.core.tables import markdown_table
from bczoo.core.workers import default_workers
from bczoo.scaling.grid import Grid, Job
from bczoo.scaling.law import FLOPS_PER_PARAMETER

TIMED_BATCHES = 3
BYTES = 4 * (3 + 3)  # a parameter: weights and two moments, in last.ckpt and in one that is being written
LOGS_BYTES = 5e6  # a run
POLL_S = 0.5
TABLE_S = 60.0  # between two tables while nothing ends
OUTPUT = "output.txt"  # what a run printed, in its folder


@dataclass(frozen=True)
class Cost:
    """What a run of a size takes.

    Args:
        params: N.
        tokens: D.
        measured: operations of forward and backward passes.
        seconds: of one process here, without reading recordings.
    """

    params: float
    tokens: float
    measured: float
    seconds: float


def run(
    base: str,
    sizes: dict[str, dict[str, Any]],
    out: str,
    rates: list[float],
    sweep: float = 0.2,
    settings: dict[str, Any] | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    print_commands: bool = False,
) -> None:
    """Train a grid of sizes for a scaling law, with a learning rate for each.

    Args:
        base: configuration of bczoo fit that all sizes share, such as bc_cnn_quickstart.
        sizes: by name the options of each size, smallest first, such as {w64: {model.width: 64}}.
        out: folder of the runs; the same command again goes on there.
        rates: learning rates to choose from; one alone is taken without a sweep.
        sweep: steps of a run that tries a rate, as a share of the size's own.
        settings: options of all sizes, such as {model.lr_scheduler: bczoo.WarmupConstant}.
        workers: runs at the same time; one per GPU, or per processor core where there is none.
        dry_run: say what it takes in operations, hours and disk, and stop.
        print_commands: print the commands that can run now, a line each, and stop; for the array of a cluster.
    """
    require_folder_target(out, "--out")
    grid = Grid(base, sizes, out, tuple(rates), sweep, settings or {})
    if print_commands:
        for job in grid.ready()[0]:
            print(shlex.join(["bczoo", *job.command]))
        return
    import torch

    gpus = torch.cuda.device_count()
    workers = workers or gpus or default_workers()
    if workers < 1:
        raise UserError(f"workers is at least 1, got {workers}")
    costs = {size: _cost(grid.config(size)) for size in grid.sizes}
    _tell(grid, costs, workers)
    if not dry_run:
        _prepare_data(grid.config(next(iter(grid.sizes))))
        _train(grid, costs, workers, gpus)


def _cost(config: dict[str, Any]) -> Cost:
    """What a run takes, by a few steps on noise in one thread, or on the GPU."""
    import torch

    from bczoo.models.model import Model
    from bczoo.train.callbacks.scaling import model_sizes
    from bczoo.train.flops import batch_for, flops_per_window

    model: Any = Model.from_config(config["model"], pretrained=False)
    batch, steps = int(config["data"]["init_args"].get("batch_size", 1)), int(config["trainer"]["max_steps"])
    counted, threads = model_sizes(model), torch.get_num_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    model.to(device).train()
    data, seconds = batch_for(model, batch, device), []
    for _ in range(TIMED_BATCHES):
        started = time.perf_counter()
        model.loss(data).total.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    windows = steps * batch
    tokens = windows * model.input_spec.window * counted["tokens_per_frame"]
    return Cost(counted["params"], tokens, windows * flops_per_window(model), steps * statistics.median(seconds))


def _prepare_data(config: dict[str, Any]) -> None:
    """Have recordings made, where the configuration says how: runs that start together would make them twice."""
    import lightning as L
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data.prepare_data()


def _tell(grid: Grid, costs: dict[str, Cost], workers: int) -> None:
    """What the whole grid takes; of the sweep the most that it can come to."""
    head = ["size", "params N", "tokens D", "C = 6 N D", "FLOPs counted", "hours a run", "sweep, at most"]
    rows, seconds, runs, flops, disk = [head], 0.0, 0, 0.0, 0.0
    for size, cost in costs.items():
        trials = len(grid.rates) if len(grid.rates) > 1 else 0
        times = 1 + trials * grid.sweep
        six = FLOPS_PER_PARAMETER * cost.params * cost.tokens
        counts = [f"{x:.3g}" for x in (cost.params, cost.tokens, six, cost.measured)]
        rows.append([size, *counts, f"{cost.seconds / 3600:.2f}", f"{trials} runs of {grid.sweep:.0%}"])
        seconds, runs, flops = seconds + times * cost.seconds, runs + 1 + trials, flops + times * cost.measured
        disk += (1 + trials) * (BYTES * cost.params + LOGS_BYTES)
    print(markdown_table(rows))
    print(
        f"\nat most {runs} runs, {flops:.3g} FLOPs, {disk / 1e9:.2g} GB, and {seconds / workers / 3600:.2g} hours in "
        f"{workers} process{'es' if workers > 1 else ''}, at the speed of this machine now, recordings not counted\n"
    )


def _train(grid: Grid, costs: dict[str, Cost], workers: int, gpus: int) -> None:
    """Start what can run until nothing is left."""
    running: dict[int, tuple[Job, subprocess.Popen]] = {}  # by place: a GPU, or a share of the cores
    children: list[subprocess.Popen] = []
    told = 0.0
    with forwarding(children) as received:
        while True:
            ended = [(place, *one) for place, one in running.items() if one[1].poll() is not None]
            for place, job, child in ended:
                del running[place]
                children.remove(child)
                if child.returncode and not received:
                    for other in children:
                        other.terminate()  # they save their step
                    for other in children:
                        other.wait()
                    raise UserError(
                        f"{job.folder} ended with status {child.returncode}; {job.folder / OUTPUT} says why, and the "
                        "same command goes on"
                    )
            if received and not running:
                raise SystemExit(128 + received[0])
            todo, done = ([], []) if received else grid.ready()
            busy = {job.folder for job, _ in running.values()}
            waiting = [job for job in todo if job.folder not in busy]
            if not received and not todo and not running:
                print(_table(grid, costs, [], done, workers))
                print(f"\nbczoo scaling fit {shlex.join(str(Path(grid.out) / size) for size in grid.sizes)}")
                return
            for place in [p for p in range(workers) if p not in running][: len(waiting)]:
                job = waiting.pop(0)
                child = _start(job, place, workers, gpus)
                running[place] = job, child
                children.append(child)
                ended.append((place, job, child))
            if not received and (ended or time.monotonic() - told > TABLE_S):
                print(_table(grid, costs, [job for job, _ in running.values()], done, workers), "\n", flush=True)
                told = time.monotonic()
            time.sleep(POLL_S)


def _start(job: Job, place: int, workers: int, gpus: int) -> subprocess.Popen:
    """Train in a process of its own, with its output beside it; a Ctrl-C reaches it through this process alone."""
    threads = str(max(1, default_workers() // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
    job.folder.mkdir(parents=True, exist_ok=True)
    group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    with (job.folder / OUTPUT).open("a", encoding="utf-8") as output:
        return subprocess.Popen([*BCZOO, *job.command], env=environment, stdout=output, stderr=output, **group)


def _table(grid: Grid, costs: dict[str, Cost], running: Sequence[Job], done: Sequence[Job], workers: int) -> str:
    """What is done, what runs, and when it ends, by what a run of each size takes."""
    rows = [["run", "params N", "rate", "state", "loss"]]
    for job in done:
        rows.append([str(job.folder), f"{costs[job.size].params:,.0f}", f"{job.rate:g}", "done", f"{job.loss():.4f}"])
    for job in running:
        share = f"{job.share:.0%}"
        rows.append([str(job.folder), f"{costs[job.size].params:,.0f}", f"{job.rate:g}", share, "-"])
    steps = {size: grid.main(size, 1.0).steps for size in costs}
    left = sum((1 - job.share) * costs[job.size].seconds * job.steps / steps[job.size] for job in running)
    whole = {job.size for job in (*done, *running) if job.folder == Path(grid.out) / job.size}
    left += sum(cost.seconds for size, cost in costs.items() if size not in whole)
    ends = time.strftime("%d %b %H:%M", time.localtime(time.time() + left / workers))
    begun = f"{len(whole)} of {len(costs)} sizes begun or done"
    return f"{markdown_table(rows)}\n{begun}; without the rest of the sweep the end is near {ends}"
