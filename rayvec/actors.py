"""Sub-envs in Ray actors: what runs inside the actor, and the worker that drives it from the caller.

::

    caller                                                  actor
      │ create ─────────────────────────────────────────────▶ placed somewhere
      │ place() ────────────────────────────────────────────▶
      │ ◀──────────────────────────────────────────────────── its node, pid
      │ open() ─────────────────────────────────────────────▶ builds its sub-envs; on the caller's node, connects
      │ ◀──────────────────────────────────────────────────── spaces, metadata, or why it failed
      │
      │ on the caller's node:  serve() ─────────────────────▶ from here on the local engine's own worker loop
      │                        a bell each way, rows in shared memory, the rest over a Unix socket
      │ on another:            ask() ───────────────────────▶ one actor call for each request; one object comes back
                                                              with all rows of the actor's sub-envs

Importing this module imports Ray.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from gymnasium.vector import AutoresetMode
from ray.exceptions import ActorDiedError, RayError, RayTaskError, RuntimeEnvSetupError

from rayvec import serialise
from rayvec.batch import Batch
from rayvec.cluster import ActorResources, ClusterUse, check_cluster, describe_cluster
from rayvec.errors import PlacementError, TransportError
from rayvec.failures import Failure, PackedFailure, add_note
from rayvec.local.channel import CallerChannel, WorkerChannel
from rayvec.local.endings import exit_code_of, told_ending
from rayvec.local.line import ChannelLine, attach_payload
from rayvec.local.meeting import Invitation, MeetingPoint, accept_invitation, can_meet
from rayvec.local.memory import SharedBlock
from rayvec.local.process import CarriedEnvFns, wait_readable
from rayvec.local.seeding import WorkerSeeds
from rayvec.local.serve import Session, converse, decode_parts, encode_request, encode_rows, follow_caller, undecodable_reply
from rayvec.protocol import StepPayload, Verb
from rayvec.sub_envs import EnvFn, SubEnvs
from rayvec.worker import BareLine, Reply, Worker

__all__ = ["ActorPlan", "ActorWorker", "EnvActor", "StoredActions"]

_LARGE = 100 * 1024
"""Bytes from which on Ray keeps a value in the object store; the actions of all sub-envs go there once if they are more."""
_CAUSE_GRACE = 0.6
"""Seconds to wait for Ray to say why an actor has died."""
_STATUS_GRACE = 0.2
"""Seconds to wait for the system to say how its process has ended."""
_END_GRACE = 2.0
"""Seconds to wait for an actor's end once it was killed."""


# --- in the actor -------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where an actor is.

    Attributes:
        node_id: the Ray node.
        pid: its process id.
        machine: within which that means something; empty where that is not known.
        started: when the process began, as the system counts it; empty where that is not known.
    """

    node_id: str
    pid: int
    machine: str
    started: str


class Opened(NamedTuple):
    """How an actor has begun.

    Attributes:
        description: of its sub-envs, or the failure of their construction, pickled.
        is_connected: it has connected to the caller's meeting point.
        obstacle: what kept it from connecting, if it tried.
    """

    description: bytes
    is_connected: bool
    obstacle: str


class ActorPlan(NamedTuple):
    """What an actor is told.

    Attributes:
        first: the index of its first sub-env.
        autoreset_mode: the vector env's.
        seed: for its global random generators.
        invitation: to the caller, for an actor on the caller's node.
    """

    first: int
    autoreset_mode: AutoresetMode
    seed: int
    invitation: Invitation | None


class ActorEnvFns:
    """The env_fns of one actor on their way into it.

    Args:
        env_fns: the functions.
        first: the index of the first one.

    Raises:
        TypeError: one of them cannot be pickled.
    """

    def __init__(self, env_fns: Sequence[EnvFn], first: int) -> None:
        reason = ("an actor", ", in a module that the actors have (see runtime_env)")
        self._carried = CarriedEnvFns(env_fns, first, inherited=False, reason=reason)
        self._envs = range(first, first + len(env_fns))

    def __call__(self) -> Sequence[EnvFn]:
        """Raises ModuleNotFoundError where what they are made of is not there."""
        try:
            return self._carried()
        except ImportError as error:
            raise ModuleNotFoundError(f"{error}: {_missing(error, self._envs)}", name=error.name) from error


def _missing(error: ImportError, envs: range) -> str:
    """What to do about a module that the node of an actor does not have."""
    name = f"the module {error.name!r}" if error.name else "a module"
    return (
        f"the env_fns of sub-envs {list(envs)} need {name}, which is not there on node {_node_id()}, where their actor is. "
        "Install it on every node, or send it along: runtime_env={'pip': [...]}, {'py_modules': [...]} or {'working_dir': ...}."
    )


def _node_id() -> str:
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def _machine() -> str:
    """Names the running system and the processes that this one can see: several Ray nodes may share it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, which tells it from an earlier one of the same id."""
    try:
        # Behind the name, which may hold anything, comes the third field; this is the 22nd.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _follow_process(place: Place) -> int:
    """A descriptor that tells of the end of the process at ``place``; -1 where it cannot be seen from here, or is gone."""
    if not place.machine or place.machine != _machine():
        return -1
    try:
        pidfd = os.pidfd_open(place.pid)
    except (AttributeError, OSError):
        return -1
    # Asked after the descriptor was opened: its process can end, but no other can take its place.
    if place.started and _start_of(place.pid) == place.started:
        return pidfd
    os.close(pidfd)
    return -1


class EnvActor:
    """Holds some sub-envs of a vector env."""

    def __init__(self) -> None:
        self._built: SubEnvs | Failure
        self._session: Session
        self._channel: WorkerChannel

    def place(self) -> Place:
        """Says where it is."""
        return Place(_node_id(), os.getpid(), _machine(), _start_of(os.getpid()))

    def open(self, env_fns: ActorEnvFns, plan: ActorPlan) -> Opened:
        """Builds the sub-envs, and connects to the caller if that is on the same node."""
        if threading.current_thread() is threading.main_thread():
            # Ray would raise SystemExit in the middle of a step, as if the env had.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        random.seed(plan.seed)
        np.random.seed(plan.seed % 2**32)
        built = SubEnvs.build(env_fns, plan.first, plan.autoreset_mode)
        if isinstance(built, Failure):
            if isinstance(built.error, ImportError) and "runtime_env" not in str(built.error):
                add_note(built.error, _missing(built.error, range(built.env_index, built.env_index + 1)))
            return Opened(serialise.dumps(built.pack()), False, "")
        self._built = built
        self._session = Session(built)
        is_connected, obstacle = False, ""
        if plan.invitation is not None:
            is_connected, obstacle = self._connect(plan.invitation)
        return Opened(serialise.dumps(built.describe()), is_connected, obstacle)

    def _connect(self, invitation: Invitation) -> tuple[bool, str]:
        if _node_id() != invitation.node_id:
            return False, f"it is on node {_node_id()}, not on the caller's, {invitation.node_id}"
        try:
            sock = accept_invitation(invitation)
        except OSError as error:
            return False, f"the caller's socket cannot be reached: {error}"
        self._channel = WorkerChannel(sock)
        follow_caller(_peer_of(sock), self._channel)
        return True, ""

    def serve(self) -> None:
        """Answers requests over the connection until told to close, or until the caller is gone; then ends the actor."""
        assert isinstance(self._built, SubEnvs)
        try:
            converse(self._channel, self._built)
        except EOFError:
            pass
        finally:
            self._built.close()
            self._channel.close()
        ray.actor.exit_actor()

    def ask(self, code: int, data: bytes) -> list[Any]:
        """Answers one request; large arrays of the reply stay arrays, so that they are read without a copy."""
        parts = self._session.answer(code, memoryview(data) if data else None)
        # Without the first part, a length.
        return [bytes(parts[1]), *(np.frombuffer(part, np.uint8) for part in parts[2:])] if parts else []

    def step(self, actions: Sequence[Any], start: int, stop: int) -> list[Any]:
        """Steps with rows ``start`` to ``stop`` of actions out of the object store."""
        rows = [np.ascontiguousarray(array[start:stop]).reshape(-1).view(np.uint8).data for array in actions]
        return self.ask(Verb.STEP, b"".join(encode_rows(rows)))


def _peer_of(sock: socket.socket) -> int:
    """The process id of the one at the other end, as this process sees it; its own parent's where that is not known."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getppid()
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little") or os.getppid()


# --- in the caller ------------------------------------------------------------------------------------------


class _Bell:
    """Makes a descriptor readable from another thread, as often as it is rung."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def ring(self, *_: Any) -> None:
        # Full: it rings already. Closed: nobody listens any more.
        with contextlib.suppress(OSError):
            self._far.send(b"\0")

    def hush(self) -> None:
        with contextlib.suppress(OSError):
            self._near.recv(65536)

    def fileno(self) -> int:
        return self._near.fileno()

    def close(self) -> None:
        self._far.close()
        self._near.close()


def _called(use: ClusterUse, method: Any, bell: _Bell, *args: Any) -> Future[Any]:
    """Calls a method of an actor; rings ``bell`` when it has answered, or never will."""
    future: Future[Any]
    try:
        if not use.is_alive():
            raise ConnectionError("its cluster is gone: ray.shutdown() was called")
        future = method.remote(*args).future()
    except Exception as error:
        future = Future()
        future.set_exception(error)
    future.add_done_callback(bell.ring)
    return future


class _Grace:
    """Time to wait for Ray to say why actors have ended: the same for all that end together, not one after the other."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def left(self) -> float:
        """Seconds; begins anew where the last time has long passed."""
        now = time.monotonic()
        if now > self._until + _CAUSE_GRACE:
            self._until = now + _CAUSE_GRACE
        return max(self._until - now, 0.0)


_grace = _Grace()


class StoredActions:
    """The actions of the present step in the object store, put there once for all actors."""

    def __init__(self) -> None:
        self._version = -1
        self._reference: Any = None

    def reference(self, batch: Batch) -> Any:
        """A reference to all rows of the actions; None where they are too few to be worth it."""
        if batch.num_action_bytes < _LARGE:
            return None
        if batch.actions_version != self._version:
            self._reference = ray.put([np.array(array) for array in batch.action_arrays()])
            self._version = batch.actions_version
        return self._reference


class _StoreLine:
    """Requests and replies as actor calls: what :class:`ChannelLine` is for an actor on another node."""

    is_flushed = True

    def __init__(self, use: ClusterUse, handle: Any, envs: range, bell: _Bell, ended: _Bell, stored: StoredActions) -> None:
        self._use = use
        self._handle = handle
        self._envs = envs
        self._bell = bell
        self._ended = ended
        self._stored = stored
        self._batch: Batch | None = None
        self._asked: deque[tuple[Verb, Future[Any]]] = deque()

    def attach(self, batch: Batch, block: SharedBlock | None, is_anew: bool, spins: bool) -> None:
        self._batch = batch
        self.post(Verb.ATTACH, (attach_payload(batch, self._envs, None, is_anew),))

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Any:
        if isinstance(payload, StepPayload) and payload.actions is None and self._batch is not None and self._use.is_alive():
            reference = self._stored.reference(self._batch)
            if reference is not None:
                return reference
        return encode_request(payload, self._batch, self._envs)

    def post(self, verb: Verb, prepared: Any) -> bool:
        if isinstance(prepared, ray.ObjectRef):
            future = _called(self._use, self._handle.step, self._bell, prepared, self._envs.start, self._envs.stop)
        else:
            future = _called(self._use, self._handle.ask, self._bell, int(verb), b"".join(prepared))
        self._asked.append((verb, future))
        if verb is Verb.CLOSE:
            # Behind it, so that its failure tells of the actor's end.
            _called(self._use, self._handle.__ray_terminate__, self._ended)
        return True

    def poll(self, owed: deque[Verb]) -> Reply | None:
        self._bell.hush()
        while self._asked and self._asked[0][1].done():
            verb, future = self._asked[0]
            reply = None
            while owed and owed[0] != verb and verb in owed:
                # Ctrl-C kept these from being sent.
                owed.popleft()
            if owed and owed[0] == verb:
                reply = self._decoded(verb, future)
            self._asked.popleft()
            if reply is not None:
                return reply
        return None

    def _decoded(self, verb: Verb, future: Future[Any]) -> Reply:
        error = future.exception()
        if isinstance(error, RayTaskError):
            return undecodable_reply(verb, self._envs, error)
        if error is not None:
            self._ended.ring()
            raise EOFError
        try:
            extra, *rows = future.result() or (b"",)
            return decode_parts(verb, memoryview(extra), [memoryview(row) for row in rows], self._batch, self._envs, False)
        except Exception as problem:
            return undecodable_reply(verb, self._envs, problem)

    def oldest(self) -> Future[Any] | None:
        """What has not been answered for longest: it fails with what ended the actor."""
        return self._asked[0][1] if self._asked else None

    def bare_line(self) -> None:
        return None

    def descriptors(self) -> tuple[int, ...]:
        return (self._bell.fileno(),)

    def close(self) -> None:
        self._asked.clear()
        self._batch = None


class ActorWorker(Worker):
    """A Ray actor for some sub-envs.

    Args:
        env_fns: how to build them.
        first: the index of the first one.
        autoreset_mode: the vector env's.
        resources: what the actor asks the cluster for.
        transport: ``"auto"``, ``"shared_memory"`` or ``"object_store"``.
        placement_timeout: seconds that Ray has to place it; None: no bound.
        use: of the cluster.
        caller_node: the id of the node that the caller is on.
        seeds: where its seed comes from.
        stored: the actions of all workers in the object store.
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        first: int,
        autoreset_mode: AutoresetMode,
        *,
        resources: ActorResources,
        transport: str,
        placement_timeout: float | None,
        use: ClusterUse,
        caller_node: str,
        seeds: WorkerSeeds,
        stored: StoredActions,
    ) -> None:
        super().__init__(range(first, first + len(env_fns)))
        self._env_fns = ActorEnvFns(env_fns, first)
        self._autoreset_mode = autoreset_mode
        self._resources = resources
        self._transport = transport
        self._placement_timeout = placement_timeout
        self._use = use
        self._caller_node = caller_node
        self._seeds = seeds
        self._stored = stored
        self._num_starts = 0
        self._handle: Any = None
        self._bell: _Bell
        self._ended: _Bell
        self._serving: Future[Any] | None = None
        self._place: Place | None = None
        self._cause: BaseException | None = None
        self._pidfd = -1
        self._given_up = 0.0
        self._meeting: MeetingPoint | None = None
        self._line: ChannelLine | _StoreLine | None = None
        self._backlog: list[Callable[[ChannelLine | _StoreLine], Any]] = []

    def start(self) -> None:
        self.kill()
        self.release()
        if not self._use.is_alive():
            raise PlacementError(
                f"the actor of sub-envs {list(self.envs)} cannot be placed: ray.shutdown() was called since this vector env "
                "was made, and its cluster is gone. Make a new vector env."
            )
        if self._num_starts:
            check_cluster(self._caller_node)
        # New ones each time: callbacks of an earlier actor must not ring a later one's.
        self._bell, self._ended = _Bell(), _Bell()
        self._cause = self._place = self._serving = None
        try:
            self._create()
        except BaseException:
            self._close()
            raise
        self.patience = None
        if self._placement_timeout is not None:
            self.patience = time.monotonic() + self._placement_timeout
        self.lost = False
        self.owed.append(Verb.START)

    def _create(self) -> None:
        """Asks for the actor, and what it asks first."""
        invitation = None
        if self._transport != "object_store" and can_meet():
            self._meeting = MeetingPoint(self._caller_node)
            invitation = self._meeting.invitation
        plan = ActorPlan(self.envs.start, self._autoreset_mode, self._seeds.seed(self.envs.start, self._num_starts), invitation)
        self._num_starts += 1
        near = self._caller_node if self._transport == "shared_memory" else None
        options = self._resources.as_options(near)
        self._handle = ray.remote(EnvActor).options(max_restarts=0, max_task_retries=0, **options).remote()
        self._placing = _called(self._use, self._handle.place, self._bell)
        self._opening = _called(self._use, self._handle.open, self._bell, self._env_fns, plan)

    def _opened(self) -> Reply | None:
        """The reply to START, once the actor is placed and has built its sub-envs; opens the line to it."""
        self._bell.hush()
        if self._placing.done():
            self.patience = None
            if self._place is None and self._placing.exception() is None:
                self._place = self._placing.result()
                # Ray does not notice the end of an actor while a process forked off it lives on; the system does.
                self._pidfd = _follow_process(self._place)
        elif self.patience is not None and time.monotonic() >= self.patience:
            self.kill()
            return self._refused(PlacementError(self._unplaced(f"within placement_timeout={self._placement_timeout} s")))
        if not self._opening.done():
            return None
        error = self._opening.exception()
        if error is not None:
            if self._place is None or isinstance(error, RuntimeEnvSetupError | RayTaskError):
                self.kill()
                return self._refused(self._explained(error))
            self._cause = error
            self._ended.ring()
            raise EOFError
        opened: Opened = self._opening.result()
        description = serialise.loads(opened.description)
        if isinstance(description, PackedFailure):
            self.kill()
            return description.unpack()
        connection = None
        if self._meeting is not None:
            connection = self._meeting.accept() if opened.is_connected else None
            self._meeting.close()
            self._meeting = None
        if connection is None and self._transport == "shared_memory":
            self.kill()
            why = opened.obstacle or "this platform has no Unix sockets that carry descriptors"
            return self._refused(
                TransportError(
                    f"transport='shared_memory', but the actor of sub-envs {list(self.envs)} cannot share the caller's "
                    f"memory: {why}. Use transport='auto'."
                )
            )
        self._connect(connection)
        return description

    def _connect(self, connection: socket.socket | None) -> None:
        if connection is not None:
            if self._pidfd >= 0 and _peer_of(connection) != self.pid:
                # Whoever serves, it is not the process of that id here.
                os.close(self._pidfd)
                self._pidfd = -1
            self._serving = _called(self._use, self._handle.serve, self._ended)
            self._line = ChannelLine(CallerChannel(connection), self.envs)
        else:
            self._line = _StoreLine(self._use, self._handle, self.envs, self._bell, self._ended, self._stored)
        backlog, self._backlog = self._backlog, []
        for send in backlog:
            send(self._line)

    def _refused(self, error: BaseException) -> Failure:
        return Failure(self.envs.start, "the start of its actor", error, str(error))

    def _explained(self, error: BaseException) -> BaseException:
        """What Ray says of an actor that it could not start, and what to do about it."""
        if not isinstance(error, RayError) or isinstance(error, RuntimeEnvSetupError | RayTaskError):
            return error
        if isinstance(error, ActorDiedError) and "creation task" in str(error):
            # Its class could not be imported: it has no constructor that could fail in another way.
            told = str(error).strip().splitlines()[-1]
            explained = PlacementError(
                f"the actor of sub-envs {list(self.envs)} could not begin: {told}. rayvec has to be on every node, with the "
                "same versions of Python, Ray, Gymnasium and NumPy: install it there, or send it along with "
                "runtime_env={'pip': [...]} or {'py_modules': [rayvec]}."
            )
        else:
            explained = PlacementError(self._unplaced(f"({' '.join(str(error).split())[:300]})"))
        explained.__cause__ = error
        return explained

    def _unplaced(self, how: str) -> str:
        also = ", which has to do for setting up the runtime_env too" if self._resources.runtime_env else ""
        return (
            f"the actor of sub-envs {list(self.envs)} was not placed {how}. "
            f"Each actor asks for {self._resources}; {describe_cluster()}. Ask for less, let fewer actors share the "
            f"sub-envs (num_actors), add nodes, or wait longer (placement_timeout{also})."
        )

    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        self.owed.append(Verb.ATTACH)
        is_anew = self._num_starts > 1
        if self._line is None:
            self._backlog.append(lambda line: line.attach(batch, block, is_anew, self.spins))
        else:
            self._line.attach(batch, block, is_anew, self.spins)

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Any:
        # Before it is placed it is told of no step, and everything else is the same on every line.
        return self._line.prepare(verb, payload) if self._line is not None else encode_request(payload, None, self.envs)

    def send(self, verb: Verb, prepared: Any) -> bool:
        self.owed.append(verb)
        if self._line is not None:
            return self._line.post(verb, prepared)
        self._backlog.append(lambda line: line.post(verb, prepared))
        return True

    def bare_line(self) -> BareLine | None:
        return self._line.bare_line() if self._line is not None else None

    def poll(self) -> Reply | None:
        if self._handle is None:
            raise EOFError
        return self._line.poll(self.owed) if self._line is not None else self._opened()

    def is_flushed(self) -> bool:
        return self._line is None or self._line.is_flushed

    def descriptors(self) -> Sequence[int]:
        if self._handle is None:
            return ()
        if self._line is None:
            return (self._bell.fileno(),)
        return (*self._line.descriptors(), self._end())

    def exit_descriptor(self) -> int | None:
        return self._end() if self._handle is not None and self._line is not None else None

    def _end(self) -> int:
        return self._pidfd if self._pidfd >= 0 else self._ended.fileno()

    def is_alive(self) -> bool:
        if self._handle is None or self._cause is not None:
            return False
        return self._line is None or not wait_readable(self._end(), 0.0)

    def terminate(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        else:
            self.kill()

    def kill(self) -> None:
        if self._handle is None:
            return
        self._given_up = time.monotonic() + _END_GRACE
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(Exception):
            if self._use.is_alive():
                ray.kill(self._handle, no_restart=True)
                if self._pidfd < 0:
                    _called(self._use, self._handle.place, self._ended)

    def release(self) -> None:
        if self._handle is not None:
            if self._pidfd >= 0 or (self._place is not None and self._use.is_alive()):
                # Many are killed first and then released: all of them have the same time.
                wait_readable(self._end(), max(self._given_up - time.monotonic(), 0.0))
            self._close()
        self.owed.clear()

    def _close(self) -> None:
        """Lets go of it."""
        self._handle = None
        for kept in (self._meeting, self._line, self._bell, self._ended):
            if kept is not None:
                kept.close()
        self._meeting = self._line = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._backlog.clear()

    def describe(self) -> str:
        if self._handle is None:
            return "an actor that has ended"
        told = f"actor {self.actor_id}"
        if self._place is not None:
            told += f", pid {self._place.pid} on node {self._place.node_id}"
        if self.lost:
            told += told_ending(self.exitcode) or ", ended"
            told += f": {self._why()}"
        return told

    def _why(self) -> str:
        """What Ray says of its end, in a line."""
        cause = self._cause
        if cause is None:
            pending = self._line.oldest() if isinstance(self._line, _StoreLine) else self._serving
            with contextlib.suppress(Exception):
                cause = pending.exception(_grace.left()) if pending is not None else None
        if cause is None:
            return "Ray has not said why yet"
        # Ray tells first what has happened, and to whom; then the reason, and what is often behind it.
        reason = str(cause).rpartition("The actor is dead because")[2].partition("Some common causes")[0]
        return " ".join(reason.split())[:300]

    def start_hint(self) -> str:
        return "An env_fn may have ended its process, or its node is gone."

    @property
    def pid(self) -> int | None:
        return self._place.pid if self._place is not None else None

    @property
    def exitcode(self) -> int | None:
        # Ray may tell of the end of its connection a little before the process has ended.
        if self._pidfd < 0 or not wait_readable(self._pidfd, _STATUS_GRACE if self.lost else 0.0):
            return None
        return exit_code_of(self._pidfd, _STATUS_GRACE)

    @property
    def actor_id(self) -> str | None:
        return self._handle._actor_id.hex() if self._handle is not None else None

    @property
    def node_id(self) -> str | None:
        return self._place.node_id if self._place is not None else None

    @property
    def handle(self) -> Any:
        """The actor's handle; None when it has ended."""
        return self._handle

    @property
    def transport(self) -> str | None:
        """How it is talked to: ``"shared_memory"`` or ``"object_store"``; None before it is known."""
        if self._line is None:
            return None
        return "shared_memory" if isinstance(self._line, ChannelLine) else "object_store"
