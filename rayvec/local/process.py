"""The caller's side of a worker process: start it, talk to it, notice its death, end it."""

from __future__ import annotations

import contextlib
import os
import socket
from abc import abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
from gymnasium.vector import AutoresetMode

from rayvec import serialise
from rayvec.batch import Batch
from rayvec.local.channel import CallerChannel
from rayvec.local.endings import told_ending
from rayvec.local.line import ChannelLine
from rayvec.local.memory import SharedBlock
from rayvec.local.seeding import WorkerSeeds
from rayvec.local.serve import WorkerPlan, work
from rayvec.local.starting import own, starting_quietly
from rayvec.protocol import Verb
from rayvec.sub_envs import EnvFn
from rayvec.worker import BareLine, Reply, Worker

__all__ = ["CarriedEnvFns", "ChildProcess", "ChildWorker", "ProcessWorker", "wait_readable"]

_KILL_GRACE = 5.0
"""Seconds that the system has to end a process after SIGKILL, which nothing can refuse."""
_EXIT_GRACE = 0.5
"""Seconds between the end of a connection and the end of the process behind it."""


_START_METHOD = ("this start method", ", or use context='fork'")


class CarriedEnvFns:
    """The env_fns of one worker on their way into it: by value where they cannot be inherited.

    Args:
        env_fns: the functions.
        first: the index of the first one.
        inherited: the worker is forked off the caller; nothing has to be pickled.
        reason: why they are pickled, and what else might be done, in words for an error.

    Raises:
        TypeError: one of them cannot be pickled and has to be.
    """

    def __init__(self, env_fns: Sequence[EnvFn], first: int, inherited: bool, reason: tuple[str, str] = _START_METHOD) -> None:
        self._env_fns: Sequence[EnvFn] | None = env_fns
        self._pickled = b"" if inherited else _pickled_env_fns(env_fns, first, reason)

    def __call__(self) -> Sequence[EnvFn]:
        if self._env_fns is None:
            self._env_fns = serialise.loads(self._pickled)
        assert self._env_fns is not None
        return self._env_fns

    def __getstate__(self) -> bytes:
        return self._pickled

    def __setstate__(self, state: bytes) -> None:
        self._env_fns, self._pickled = None, state


def _pickled_env_fns(env_fns: Sequence[EnvFn], first: int, reason: tuple[str, str]) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(list(env_fns))
        return pickled
    except Exception as whole:
        for index, env_fn in enumerate(env_fns):
            try:
                cloudpickle.dumps(env_fn)
            except Exception as error:
                raise TypeError(
                    f"env_fns[{first + index}] cannot be pickled, which {reason[0]} needs: {error}. Build what cannot "
                    f"be pickled inside the function{reason[1]}."
                ) from error
        raise TypeError(f"the env_fns cannot be pickled together: {whole}") from whole


class ChildProcess:
    """A process of ``multiprocessing`` that can be watched by descriptor and ended within a known time.

    Args:
        context: how to start it.
        target: its main function.
        args: that function's arguments.
        name: of the process.
        daemon: its ``daemon`` flag.

    Attributes:
        process: the process.
        pid: its process id, once it was started.
    """

    def __init__(
        self, context: BaseContext, target: Callable[..., None], args: tuple[Any, ...], *, name: str, daemon: bool
    ) -> None:
        self.process: BaseProcess = context.Process(target=target, name=name, args=args, daemon=daemon)  # type: ignore[attr-defined]
        self.pid = 0
        self._pidfd: int | None = None
        own(self.process)

    def start(self) -> None:
        """Starts it, within :func:`starting_quietly`."""
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def descriptor(self) -> int:
        """Becomes readable when it has ended."""
        if self._pidfd is None:
            self._pidfd = -1
            # One that has ended already may have left its id to another.
            if self.process.exitcode is None:
                with contextlib.suppress(AttributeError, OSError):
                    self._pidfd = os.pidfd_open(self.pid)
        # Not every platform has the former; the latter stays silent while a process forked off the worker lives on.
        return self._pidfd if self._pidfd >= 0 else self.process.sentinel

    def is_alive(self) -> bool:
        """Whether it still runs; does not wait."""
        return not wait_readable(self.descriptor, 0.0)

    def exitcode(self) -> int | None:
        """Its exit code, minus the signal's number if a signal ended it; None while it runs."""
        if not wait_readable(self.descriptor, _EXIT_GRACE):
            return None
        self.process.join(_EXIT_GRACE)
        return self.process.exitcode

    def describe(self) -> str:
        """Who it is, and how it ended if it did."""
        return f"process {self.pid}" + told_ending(None if self.is_alive() else self.exitcode())

    def release(self) -> None:
        """Frees what the caller holds of it, once it has ended."""
        wait_readable(self.descriptor, _KILL_GRACE)
        self.process.join(_KILL_GRACE)
        if self._pidfd is not None and self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self.process.exitcode is not None:
            self.process.close()


def wait_readable(descriptor: int, timeout: float) -> bool:
    """Waits for a descriptor to become readable, ``timeout`` seconds at most; returns whether it is."""
    return bool(connection.wait([descriptor], max(timeout, 0.0)))


class ChildWorker(Worker):
    """A worker that is a child process: what there is to it whatever is said to it."""

    def __init__(self, envs: range) -> None:
        super().__init__(envs)
        self._child: ChildProcess | None = None

    @abstractmethod
    def _disconnect(self) -> None:
        """Closes the connection to the process."""

    def exit_descriptor(self) -> int | None:
        return self._child.descriptor if self._child is not None else None

    def is_alive(self) -> bool:
        return self._child is not None and self._child.is_alive()

    def terminate(self) -> None:
        if self._child is not None:
            self._child.process.terminate()

    def kill(self) -> None:
        if self._child is not None:
            self._child.process.kill()

    def release(self) -> None:
        if self._child is not None:
            self._child.release()
            self._child = None
        self._disconnect()
        self.owed.clear()

    def describe(self) -> str:
        if self._child is None:
            return "a process that has ended"
        if self.lost:
            # Its connection has ended, which comes a little before its own end.
            self._child.exitcode()
        return self._child.describe()

    def start_hint(self) -> str:
        return (
            "An env_fn may have ended its process; under spawn and forkserver a script must also guard its main code with "
            "`if __name__ == '__main__':`."
        )

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def exitcode(self) -> int | None:
        return self._child.exitcode() if self._child is not None else None

    @property
    def process(self) -> BaseProcess | None:
        """The process that it runs in, if it runs."""
        return self._child.process if self._child is not None else None


class ProcessWorker(ChildWorker):
    """A process of its own for some sub-envs.

    Args:
        env_fns: how to build them.
        first: the index of the first one.
        autoreset_mode: the vector env's.
        context: how to start the process.
        daemon: the process's ``daemon`` flag.
        seeds: where its seed comes from.
        name: of the process.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        first: int,
        autoreset_mode: AutoresetMode,
        context: BaseContext,
        daemon: bool,
        seeds: WorkerSeeds,
        name: str,
    ) -> None:
        super().__init__(range(first, first + len(env_fns)))
        self._env_fns = CarriedEnvFns(env_fns, first, inherited=context.get_start_method() == "fork")
        self._autoreset_mode = autoreset_mode
        self._context = context
        self._daemon = daemon
        self._seeds = seeds
        self._name = name
        self._num_starts = 0
        self._plug: list[socket.socket] = []
        """The worker's end of the connection while it is started, for the arguments are made before."""
        self._line: ChannelLine | None = None

    def start(self) -> None:
        self.start_all([self])

    @classmethod
    def start_all(cls, workers: Sequence[Worker]) -> None:
        alike = [worker for worker in workers if isinstance(worker, cls)]
        children = [worker._prepare_start() for worker in alike]
        sockets: list[socket.socket] = []
        try:
            # Under fork, each page of memory that is written to between two of these is copied once more.
            with starting_quietly():
                for worker, child in zip(alike, children, strict=True):
                    sockets.append(worker._launch(child))
        finally:
            for worker, sock in zip(alike, sockets, strict=False):
                worker._finish_start(sock)

    def _prepare_start(self) -> ChildProcess:
        self.kill()
        self.release()
        seed = self._seeds.seed(self.envs.start, self._num_starts)
        self._num_starts += 1
        args = (self._plug, self._env_fns, WorkerPlan(self.envs.start, self._autoreset_mode, seed, os.getpid()))
        return ChildProcess(self._context, work, args, name=self._name, daemon=self._daemon)

    def _launch(self, child: ChildProcess) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._plug.append(theirs)
        try:
            child.start()
        except BaseException:
            ours.close()
            raise
        finally:
            self._plug.pop().close()
        self._child = child
        return ours

    def _finish_start(self, sock: socket.socket) -> None:
        self._line = ChannelLine(CallerChannel(sock), self.envs)
        self.lost = False
        self.owed.append(Verb.START)

    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        self.owed.append(Verb.ATTACH)
        if self._line is not None:
            self._line.attach(batch, block, self._num_starts > 1, self.spins)

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Sequence[bytes | memoryview]:
        return self._line.prepare(verb, payload) if self._line is not None else ()

    def send(self, verb: Verb, prepared: Sequence[bytes | memoryview]) -> bool:
        self.owed.append(verb)
        return self._line is None or self._line.post(verb, prepared)

    def bare_line(self) -> BareLine | None:
        return self._line.bare_line() if self._line is not None else None

    def poll(self) -> Reply | None:
        if self._line is None:
            raise EOFError
        return self._line.poll(self.owed)

    def is_flushed(self) -> bool:
        return self._line is None or self._line.is_flushed

    def descriptors(self) -> Sequence[int]:
        if self._line is None or self._child is None:
            return ()
        return (*self._line.descriptors(), self._child.descriptor)

    def _disconnect(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
