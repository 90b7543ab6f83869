"""Worker processes that leave nothing behind.

Place in the pipeline: :func:`bczoo.games.play.play_in_processes` and :mod:`bczoo.games.record` spread
episodes over processes here, :mod:`bczoo.games.pool` runs one game per process. Games may run engines as processes
of their own, so every way to end, short of SIGKILL, has to reach their ``close()``: SIGTERM becomes SystemExit,
and a worker whose parent has died ends too.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from bczoo.errors import UserError

Result = TypeVar("Result")
ALONE = "workers=1"  # does without other processes


def default_workers() -> int:
    """As many processes as this process may use processor cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def closing_on_sigterm() -> Iterator[None]:
    """Let SIGTERM run ``finally`` blocks, where it would end the process at once.

    Only the main thread can do this, and a handler that somebody else has set stays.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pack(what: Any, instead: str) -> bytes:
    """Something that holds a game, on its way to another process.

    Args:
        what: has to be picklable.
        instead: argument that does without other processes, for the message.
    """
    try:
        return pickle.dumps(what)
    except Exception as error:
        raise UserError(
            f"cannot send the game to other processes ({error}). Name it package.module:function, so that they "
            "make it themselves; or make its Game out of functions, classes or functools.partial instead of "
            f"lambdas; or use {instead}"
        ) from error


def unpack(packed: bytes, instead: str) -> Any:
    """Inverse of :func:`pack`, in the other process."""
    try:
        return pickle.loads(packed)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a worker process cannot make the game ({type(error).__name__}: {error}). Put what it is made of into "
            f"a module that can be imported, or use {instead}"
        ) from error


def end_with_parent(on_sigterm: Callable[[int, Any], None]) -> None:
    """Called first in a worker process: SIGTERM is handled, also sent when the parent dies, and Ctrl-C is not."""
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then ends its workers
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def in_processes(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    workers: int | None = None,
    on_result: Callable[[Result], object] | None = None,
) -> list[Result]:
    """Call ``function(*task)`` for every task in spawned processes.

    Args:
        function: a picklable function.
        tasks: its arguments, picklable.
        workers: processes; None takes one per core. With 1 everything runs in this process.
        on_result: called here with every result as soon as it is there.

    Returns:
        The results, in the order of the tasks.
    """
    tell = on_result or (lambda result: None)
    workers = min(default_workers() if workers is None else workers, len(tasks))
    with closing_on_sigterm():
        if workers > 1:
            return _spread(function, tasks, workers, tell)
        results = []
        for task in tasks:
            results.append(function(*task))
            tell(results[-1])
        return results


def _spread(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    tell: Callable[[Result], object],
) -> list[Result]:
    packed = [pack((function, task), ALONE) for task in tasks]
    others = {process.pid for process in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=end_with_parent, initargs=(_exit_worker,)
    ) as pool:
        try:
            futures = [pool.submit(_run, one) for one in packed]
            for future in as_completed(futures):
                tell(future.result())
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid not in others:
                    process.terminate()
            raise


_in_task = False  # of a worker process


def _run(packed: bytes) -> Any:
    global _in_task
    try:
        try:
            _in_task = True
            function, task = unpack(packed, ALONE)
            return function(*task)
        finally:
            _in_task = False
    except SystemExit as end:  # the pool would take it for the failure of a task, and go on with the next
        atexit._run_exitfuncs()  # as nothing else will: games that were stopped while they opened or closed
        os._exit(end.code if isinstance(end.code, int) else 1)


def _exit_worker(signum: int, frame: object) -> None:
    """Between tasks nothing is open, and an exception would meet the pool while it holds its locks."""
    if not _in_task:
        os._exit(128 + signum)
    exit_on_signal(signum, frame)


def exit_on_signal(signum: int, frame: object) -> None:
    """Handler of a signal that lets ``finally`` blocks run."""
    signal.signal(signum, signal.SIG_IGN)  # a second one must not cut the cleaning up short
    raise SystemExit(128 + signum)
