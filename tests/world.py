"""What tests see of the world outside: processes, descriptors, threads, shared memory, temporary files."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from clusters import living_actors

import rayvec

__all__ = [
    "Process",
    "World",
    "child_environment",
    "descendants_of",
    "is_running",
    "kill_last",
    "notes_of",
    "wait_until",
    "wait_until_gone",
    "within",
]

_POLL_SECONDS = 0.005
_RAYS_OWN = re.compile(r"ray::|/ray/|raylet|gcs_server")
"""Processes of Ray: whether an actor among them is left over, Ray says."""
_KEPT_BY_MULTIPROCESSING = re.compile(r"/pym-\d+-")
"""Files behind the heap of ``multiprocessing``, which it keeps for its next user (Gymnasium's shared memory is one)."""


def child_environment(*folders: Path, **variables: str) -> dict[str, str]:
    """The environment of a Python process that finds what this one does, the package included, and modules in ``folders``."""
    paths = [*map(str, folders), str(Path(rayvec.__file__).parents[1]), *filter(None, sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Checks that what is done within takes no longer."""
    begin = time.monotonic()
    yield
    taken = time.monotonic() - begin
    assert taken < seconds, f"took {taken:.2f} s"


def notes_of(error: BaseException) -> str:
    """The notes of an error, a line each."""
    return "\n".join(getattr(error, "__notes__", []))


class Process(NamedTuple):
    """A process, as /proc tells of it."""

    pid: int
    parent: int
    state: str
    command: str


def _parents() -> dict[int, tuple[int, str]]:
    """Parent and state of every process there is. This is done before and after each test, so it has to be quick."""
    told = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - paths take three times as long
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123
                    status = file.read()
            except OSError:
                continue
            # The name, in parentheses, may hold anything.
            state, parent = status.rpartition(b")")[2].split(None, 2)[:2]
            told[int(name)] = int(parent), state.decode()
    return told


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether any of its threads still runs; a process that has ended and waits to be collected does not run."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)


def descendants_of(pid: int) -> list[Process]:
    """Its child processes, theirs, and so on."""
    known = _parents()
    found: list[Process] = []
    parents = {pid}
    while parents:
        parents = {child for child, (parent, _) in known.items() if parent in parents}
        found += [Process(child, *known[child], _command_of(child)) for child in sorted(parents)]
    return found


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> None:
    """Waits until ``condition()`` is true.

    Raises:
        TimeoutError: it is not after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout} s: {what}")
        time.sleep(_POLL_SECONDS)


def wait_until_gone(pids: list[int], timeout: float) -> None:
    """Waits until none of the processes runs any more.

    Raises:
        TimeoutError: some do after ``timeout`` seconds.
    """
    wait_until(lambda: not [pid for pid in pids if is_running(pid)], f"processes {pids} have ended", timeout)


def kill_last(envs: Any) -> None:
    """Kills the process of a vector env's last sub-env, and waits for its end."""
    pid = envs.actors[-1].pid if hasattr(envs, "actors") else envs.processes[-1].pid
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid], 5)


class World(NamedTuple):
    """All that a vector env might leave behind."""

    processes: frozenset[Process]
    descriptors: frozenset[str]
    threads: frozenset[threading.Thread]
    files: frozenset[str]
    actors: frozenset[str]

    @classmethod
    def now(cls) -> World:
        """What is there now, helpers of ``multiprocessing`` aside."""
        helpers = {getattr(forkserver._forkserver, "_forkserver_pid", None)}
        helpers.add(getattr(resource_tracker._resource_tracker, "_pid", None))
        kept = {getattr(forkserver._forkserver, "_forkserver_alive_fd", None)}
        kept.add(getattr(resource_tracker._resource_tracker, "_fd", None))
        return cls(
            frozenset(
                process._replace(state="")
                for process in descendants_of(os.getpid())
                if process.pid not in helpers and not _RAYS_OWN.search(process.command)
            ),
            frozenset(_descriptors(kept)),
            frozenset(threading.enumerate()),
            frozenset(_files()),
            frozenset(living_actors()),
        )

    def left_since(self, before: World) -> list[str]:
        """What is here and was not there before, in words."""
        return [
            *(f"process {process.pid}: {process.command}" for process in self.processes - before.processes),
            *(f"descriptor {descriptor}" for descriptor in self.descriptors - before.descriptors),
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"file {file}" for file in self.files - before.files),
            *(f"actor {actor}" for actor in self.actors - before.actors),
        ]


def _descriptors(kept: set[Any]) -> Iterator[str]:
    with_ray = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    unix_sockets = set()
    if with_ray:
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
        unix_sockets = {f"socket:[{line.split()[6]}]" for line in lines}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            # The one that lists them.
            continue
        if int(entry.name) in kept or _KEPT_BY_MULTIPROCESSING.search(target):
            continue
        if with_ray and (target == "anon_inode:[eventfd]" or (target.startswith("socket:") and target not in unix_sockets)):
            # Ray's connections, which come and go as it likes.
            continue
        yield f"{entry.name} -> {target}"


def _files() -> Iterator[str]:
    for folder in {"/dev/shm", tempfile.gettempdir()}:
        for entry in Path(folder).glob("*rayvec*"):
            if not entry.name.startswith("pytest"):
                yield str(entry)
