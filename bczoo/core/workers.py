"""Worker processes that leave nothing behind and wait for nobody.

Place in the pipeline: whatever is spread over processes. :func:`in_processes` shares out tasks (episodes that are
played or recorded); :mod:`bczoo.play.envs` runs one game per process. Both start, feed and end them as
:class:`Workers`.

Every process has a pipe of its own and shares nothing else, neither queues nor locks: one that is killed, at whatever
moment, closes its pipe, and that is all that anybody waits for. What runs in a worker may have started processes of its
own (games run engines), so every way to end, short of SIGKILL, has to reach its ``finally`` blocks: SIGTERM becomes
SystemExit, and a worker whose parent has died ends too.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

import cloudpickle

from bczoo.core.errors import UserError

Result = TypeVar("Result")
CLOSING_S = 10.0  # time that a worker has to end before it is stopped, and then killed
PR_SET_PDEATHSIG = 1  # of Linux's prctl
UNGUARDED = 93  # status of a worker that would have started workers of its own while it imported a script


class WorkerError(UserError):
    """A worker process failed, or has ended; the message holds its traceback, as this process's says nothing."""


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


@dataclass(frozen=True)
class Parcel:
    """What is sent to worker processes, for the messages.

    Args:
        name: what it is.
        instead: argument that does without other processes.
        hint: one more way out.
    """

    name: str = "a task"
    instead: str = "workers=1"
    hint: str = ""

    @property
    def ways_out(self) -> str:
        return f"{self.hint}; or use {self.instead}" if self.hint else f"use {self.instead}"


def pack(what: Any, parcel: Parcel) -> bytes:
    """Something on its way to another process; :func:`unpack` is the inverse.

    What modules define goes by its name. Lambdas, functions within functions and all that was typed into a notebook go
    by value, with cloudpickle; a script's own classes do not, since its workers import the script and would have two of
    each.
    """
    try:
        if not _main_is_importable():
            return cloudpickle.dumps(what)
        try:
            return pickle.dumps(what)
        except Exception:
            return cloudpickle.dumps(what)
    except Exception as error:
        raise UserError(
            f"cannot send {parcel.name} to other processes ({error}). Locks, open files and the like have to be made "
            f"where they are used: {parcel.ways_out}"
        ) from error


def unpack(packed: bytes, parcel: Parcel) -> Any:
    """Inverse of :func:`pack`, in the other process."""
    try:
        return pickle.loads(packed)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a worker process cannot make {parcel.name} ({type(error).__name__}: {error}). Put what it is made of "
            f"into a module that can be imported, or use {parcel.instead}"
        ) from error


def _main_is_importable() -> bool:
    """Whether a spawned process runs the same ``__main__``; it cannot where that was typed in."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (file is not None and os.path.exists(file))


@dataclass(frozen=True)
class Failure:
    """Why a worker ends: the error where it speaks to the user, and what Python says of any other."""

    error: UserError | None
    traceback: str


class Workers:
    """Spawned processes, each at the other end of a pipe; ``with`` starts and ends them.

    The thread that starts them has to outlive them, since Linux ends them with it.

    Args:
        count: how many.
        name: of what they do.
        work: a function with a name, called in every process as ``work(pipe, *arguments)``. An exception in it is
            raised here by :meth:`receive`.
        arguments: picklable.
    """

    failure: type[WorkerError] = WorkerError

    def __init__(self, count: int, name: str, work: Callable[..., None], *arguments: Any) -> None:
        self.count, self.name = count, name
        self._work = (work, arguments)
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []

    def __enter__(self) -> Any:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
            sys.stdout.flush()
            os._exit(UNGUARDED)  # an exception would go through the script, which may go on; its parent says why
        try:
            for worker in range(self.count):
                self._start(worker)
            self._started()
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self._end(at_once=kind is not None)

    def send(self, worker: int, order: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what is received next says why
            self.pipes[worker].send(order)

    def ready(self, workers: Iterable[int]) -> list[int]:
        """Those of ``workers`` that have a message; waits for one."""
        by_pipe = {self.pipes[worker]: worker for worker in workers}
        return sorted(by_pipe[pipe] for pipe in wait(list(by_pipe)))  # type: ignore[index]

    def receive(self, worker: int) -> Any:
        """The next message of a worker; its failure is raised here."""
        try:
            message = self.pipes[worker].recv()
        except (EOFError, OSError):  # also in the middle of a message
            raise self.ended(worker) from None
        return self.checked(worker, message)

    def checked(self, worker: int, message: Any) -> Any:
        """A message, if it is no failure."""
        if not isinstance(message, Failure):
            return message
        if message.error is not None:
            raise message.error
        raise self.failure(f"{self._label(worker)} failed in its process:\n{message.traceback}")

    def ended(self, worker: int) -> WorkerError:
        """The error for a process that ended without a word."""
        self.processes[worker].join(CLOSING_S)
        status = self.processes[worker].exitcode
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        if status == UNGUARDED:
            script = getattr(sys.modules["__main__"], "__file__", None) or "the script"
            return self.failure(
                f"worker processes import {os.path.basename(script)}, which starts workers itself as soon as it is "
                'imported; put what it does under `if __name__ == "__main__":`, or do without workers (workers=1)'
            )
        killed = status is not None and -status == getattr(signal, "SIGKILL", None)
        return self.failure(
            f"the process of {self._label(worker)} has ended ({how})"
            + ("; if the computer ran out of memory, run fewer at once" if killed else "")
        )

    def _label(self, worker: int) -> str:
        return f"{self.name} ({worker + 1} of {self.count})"

    def _started(self) -> None:
        """Called when all processes have been started."""

    def _start(self, worker: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.pipes.append(ours)
        process = context.Process(target=_be_worker, args=(theirs, *self._work), name=f"{self.name} {worker}")
        self.processes.append(process)
        resource_tracker.ensure_running()  # it would unblock Ctrl-C
        try:
            with _interrupts_held_back():
                process.start()
        finally:
            theirs.close()

    def _end(self, at_once: bool) -> None:
        started = [process for process in self.processes if process.pid is not None]
        for worker in range(len(started)):
            if at_once:
                started[worker].terminate()
            else:
                self.send(worker, None)
        for process in started:
            for stop in (process.terminate, process.kill):
                process.join(CLOSING_S)
                if process.is_alive():
                    stop()
            process.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def next_order(pipe: Connection) -> Any:
    """The next order in a worker process; ends the process if there will be none."""
    try:
        order = pipe.recv()
    except (EOFError, OSError):
        order = None
    if order is None:
        raise SystemExit(0)
    return order


def in_processes(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    workers: int | None = None,
    on_result: Callable[[Result], object] | None = None,
    parcel: Parcel | None = None,
) -> list[Result]:
    """Call ``function(*task)`` for every task in spawned processes.

    Args:
        function: what is called.
        tasks: its arguments; they and the function are sent as by :func:`pack`, the results by pickle.
        workers: processes; None takes one per core. With 1 everything runs in this process.
        on_result: called here with every result as soon as it is there.
        parcel: what errors call a task.

    Warnings of all processes are given here, each text once.

    Returns:
        The results, in the order of the tasks.

    Raises:
        WorkerError: a task failed in another process (a UserError is raised as it is), or the process has ended. The
            other processes are stopped.
    """
    report = on_result or (lambda result: None)
    workers = min(default_workers() if workers is None else workers, len(tasks))
    with closing_on_sigterm():
        if workers > 1:
            return _spread(function, tasks, workers, report, parcel or Parcel())
        results = []
        for task in tasks:
            results.append(function(*task))
            report(results[-1])
        return results


def _spread(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    report: Callable[[Result], object],
    parcel: Parcel,
) -> list[Result]:
    waiting = iter(list(enumerate([pack((function, task), parcel) for task in tasks])))
    current: dict[int, int] = {}  # worker -> task
    results: dict[int, Result] = {}
    with Workers(workers, "worker", _do_tasks, parcel) as pool:

        def feed(worker: int) -> None:
            if (one := next(waiting, None)) is not None:
                current[worker], order = one
                pool.send(worker, order)

        for worker in range(workers):
            feed(worker)
        while current:
            for worker in pool.ready(current):
                result, warned = pool.receive(worker)
                warn_again(warned)
                results[current.pop(worker)] = result
                report(result)
                feed(worker)
    return [results[i] for i in range(len(tasks))]


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """In a worker process: keep the texts of warnings, for :func:`warn_again` where the user's process is."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield texts
        finally:
            texts += dict.fromkeys(str(one.message) for one in caught)


def warn_again(texts: Iterable[str]) -> None:
    """Give warnings of other processes here; of equal texts the first is shown."""
    for text in texts:
        warnings.warn(text, stacklevel=1)


def _do_tasks(pipe: Connection, parcel: Parcel) -> None:
    while True:
        function, task = unpack(next_order(pipe), parcel)
        with warnings_kept() as warned:
            result = function(*task)
        pipe.send((result, warned))


def _be_worker(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """A worker process from its beginning to its end."""
    end_with_parent()
    os.set_inheritable(pipe.fileno(), False)  # an engine that outlives this process must not hold it open
    try:
        work(pipe, *arguments)
    except Exception as error:
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(_failure(error))


def _failure(error: Exception) -> Failure:
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, UserError):
        return Failure(None, text)
    try:
        return Failure(pickle.loads(pickle.dumps(error)), text)
    except Exception:
        return Failure(UserError(str(error)), text)


def end_with_parent() -> None:
    """Called first in a worker process: SIGTERM closes it, also sent when the parent dies, and Ctrl-C does not."""
    signal.signal(signal.SIGTERM, exit_on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then ends its workers
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no worker process"

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(CLOSING_S)  # and there is nobody left who would kill a worker that does not end
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    # The watch ends when a pipe of the parent closes, which what was forked from it meanwhile may hold open.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent.pid:  # it died before
            os.kill(os.getpid(), signal.SIGTERM)


def exit_on_signal(signum: int, frame: object) -> None:
    """Handler of a signal that lets ``finally`` blocks run."""
    signal.signal(signum, signal.SIG_IGN)  # a second one must not cut the cleaning up short
    raise SystemExit(128 + signum)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: it must not meet one that cannot ignore it yet."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
