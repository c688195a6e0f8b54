"""What holds while worker processes are started, and in every process that is forked off the caller.

A forked process begins with a copy of the caller: its signal handlers, its children as it thinks, and all of its memory,
the garbage in it included, which it must not collect. What is finalized there (a file, a connection, a client of gRPC with
threads that the fork has left behind) is the caller's, and the pages it lies on would be copied for nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's own functions make enums of handlers, which takes ten times as long
import atexit
import contextlib
import gc
import multiprocessing.process
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from gymnasium.vector.utils import clear_mpi_env_vars

__all__ = ["HandlerKeeper", "hearing_later", "own", "starting_quietly"]

_SIGINT = int(signal.SIGINT)

_owned: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
_paused: list[bool] = []
"""For each caller of :func:`starting_quietly` within it: whether the collector ran before."""
_handlers: list[Callable[[int, FrameType | None], object]] = []
"""That of Ctrl-C, while it is held back."""
_kept: list[HandlerKeeper] = []
"""Keepers of the caller's handlers, which a forked process forgets, with all that only they hold."""
_inherited: list[HandlerKeeper] = []
"""The same, in such a process, for ever: as a whole, for each handler that is touched copies a page."""


class HandlerKeeper:
    """Holds on to this process's handlers, of signals and of ``atexit``: it equals none, and keeps what it is compared with."""

    def __init__(self) -> None:
        self._handlers: list[object] = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
        # From Python 3.13 on multiprocessing clears what atexit has registered, which has no other way to be listed.
        atexit.unregister(self)

    def __call__(self) -> None:
        """Nothing; atexit takes only what can be called."""

    def __eq__(self, other: object) -> bool:
        self._handlers.append(other)
        return False

    __hash__ = None  # type: ignore[assignment]


def own(process: BaseProcess) -> None:
    """Notes that ``process`` is this process's, and of none that is forked off it by hand, whose exit would end it."""
    _owned.add(process)


@contextlib.contextmanager
def starting_quietly() -> Iterator[None]:
    """Processes started within begin with Ctrl-C blocked, which they have to undo, and without MPI's environment variables.

    Ctrl-C is heard at the end: raised between a fork and its note, it would leave a process behind that nobody knows of. The
    collector rests meanwhile, until a forked process has put all that it has inherited out of its reach; and what only the
    caller's handlers hold, which that process forgets, is held here.
    """
    collects = gc.isenabled()
    _paused.append(collects)
    try:
        gc.disable()
        _kept.append(HandlerKeeper())
        with clear_mpi_env_vars() if _is_under_mpi() else contextlib.nullcontext(), hearing_later(), _blocking_interrupts():
            yield
    finally:
        _paused.remove(collects)
        if not _paused:
            _kept.clear()
        if collects:
            gc.enable()


class hearing_later:  # noqa: N801 - used as a function is
    """Calls the handler of Ctrl-C at the end, if it came: the mask of one thread keeps nothing from the others.

    Args:
        patient: also where it came twice; else the second one is heard at once.
    """

    __slots__ = ("_handler", "_heard", "_patient")

    def __init__(self, patient: bool = True) -> None:
        self._patient = patient
        self._handler: Any = None
        self._heard: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        handler = _signal.getsignal(_SIGINT)
        if callable(handler) and threading.get_ident() == threading.main_thread().ident:
            self._handler = handler
            _signal.signal(_SIGINT, self._hear)
            _handlers.append(handler)

    def __exit__(self, *_: object) -> None:
        handler = self._handler
        if handler is not None:
            _handlers.remove(handler)
            _signal.signal(_SIGINT, handler)
            if self._heard is not None:
                handler(*self._heard)

    def _hear(self, *arguments: Any) -> None:
        if self._heard is None or self._patient:
            self._heard = arguments
        else:
            self._heard = None
            self._handler(*arguments)


@contextlib.contextmanager
def _blocking_interrupts() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_under_mpi() -> bool:
    return any(name.startswith(("OMPI_", "PMI_")) for name in os.environ)


def _in_forked_process() -> None:
    children: set[BaseProcess] = getattr(multiprocessing.process, "_children", set())
    children.difference_update(_owned)
    if _paused:
        gc.freeze()
        _inherited.extend(_kept)
        _kept.clear()
        if any(_paused):
            gc.enable()
        _paused.clear()
    if _handlers:
        # The first is the caller's; others hear later for each other.
        signal.signal(signal.SIGINT, _handlers[0])
        _handlers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_process)
