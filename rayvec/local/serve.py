"""The worker's side: what runs in a worker process, and in a Ray actor on the caller's node.

::

    caller                                 worker
      │  (starts it)                         builds its sub-envs
      │ ◀──────────────────────────── START  spaces, metadata, or why it failed
      │  ATTACH ───────────────────────────▶ lays its Batch over the shared block (or makes a small one of its own)
      │ ◀─────────────────────────────────
      │  STEP: a bell or a byte ───────────▶ reads its actions' rows, steps, writes its results' rows
      │ ◀──────────────────────────── STEP   the same; infos and failures follow when there are any
      │  ...
      │  CLOSE ────────────────────────────▶ closes its sub-envs and ends
      │ ◀────────────────────────────
"""

from __future__ import annotations

import _thread
import functools
import gc
import os
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode

from rayvec import serialise
from rayvec.batch import Batch
from rayvec.errors import QuotedEnvError
from rayvec.failures import Failure, PackedFailure
from rayvec.local import bells
from rayvec.local.bells import Bells
from rayvec.local.channel import EMPTY, WorkerChannel
from rayvec.local.memory import SharedBlock
from rayvec.protocol import StepPayload, Verb, perform
from rayvec.sub_envs import NOTHING, SETTLED, CallOutcome, EnvFn, Outcome, SubEnvs

__all__ = [
    "AttachPayload",
    "Session",
    "WorkerPlan",
    "converse",
    "decode_parts",
    "decode_reply",
    "encode_request",
    "encode_rows",
    "follow_caller",
    "serve",
    "undecodable_reply",
    "work",
]

_GRACE = 1.0
"""Seconds that a worker has to close its sub-envs once its caller is gone."""

_LENGTH = struct.Struct("<Q")


class WorkerPlan(NamedTuple):
    """What a worker is told when it is started.

    Attributes:
        first: the index of its first sub-env.
        autoreset_mode: the vector env's.
        seed: for its global random generators.
        caller: the process id of the caller.
    """

    first: int
    autoreset_mode: AutoresetMode
    seed: int
    caller: int


class AttachPayload(NamedTuple):
    """What a worker lays its batch over.

    Attributes:
        spaces: the single observation space and the single action space, pickled; None: those that the worker has told.
        num_rows: how many rows the batch has.
        block: the token of the shared block; None: the worker's rows are its own and travel as bytes.
        rows: what such rows hold at first, packed, where they are not all zero: the worker was started again.
        spins: bells follow the descriptor of the block, and the worker waits actively for a moment before it sleeps; None: no
            bells follow.
    """

    spaces: bytes | None
    num_rows: int
    block: tuple[str | None, int] | None
    rows: bytes | None = None
    spins: bool | None = None


def work(plug: list[socket.socket], env_fns: Callable[[], Sequence[EnvFn]], plan: WorkerPlan) -> None:
    """The main function of a worker process.

    Args:
        plug: the end of its connection, alone.
        env_fns: how to build its sub-envs.
        plan: the rest.
    """
    # What was inherited stays shared until somebody writes to it; the collector would write all over it.
    gc.freeze()
    channel = WorkerChannel(plug.pop())
    _mind_signals()
    follow_caller(plan.caller, channel)
    random.seed(plan.seed)
    np.random.seed(plan.seed % 2**32)
    serve(channel, SubEnvs.build(env_fns, plan.first, plan.autoreset_mode))


def serve(channel: WorkerChannel, built: SubEnvs | Failure) -> None:
    """Answers requests about sub-envs until told to close, or until the caller is gone."""
    try:
        if isinstance(built, Failure):
            channel.send(Verb.START, serialise.dumps(built.pack()))
            return
        try:
            channel.send(Verb.START, serialise.dumps(built.describe()))
            converse(channel, built)
        finally:
            built.close()
    except EOFError:
        pass
    finally:
        channel.close()


def follow_caller(caller: int, channel: WorkerChannel) -> None:
    """Ends this process soon after process ``caller`` has ended: politely if the sub-envs let it, else by force.

    End of file on the channel would tell as much, but not if a process forked off the caller has inherited its end.
    """
    wait = _end_of(caller)
    if wait is not None:
        # Not a Thread, whose start is waited for; and what it runs is prepared, for what a new thread touches is dear.
        _thread.start_new_thread(_follow, (wait, channel))


def _end_of(caller: int) -> Callable[[], object] | None:
    """What waits for the end of process ``caller``; None: nobody can, and somebody else sees to it."""
    try:
        descriptor = os.pidfd_open(caller)
    except ProcessLookupError:
        return lambda: None
    except (AttributeError, OSError):
        parent = parent_process()
        # Nobody's child is an actor, which Ray ends with its owner.
        return None if parent is None else parent.join
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    return watch.poll


def _follow(wait: Callable[[], object], channel: WorkerChannel) -> None:
    wait()
    channel.hang_up()
    time.sleep(_GRACE)
    os._exit(1)


def _mind_signals() -> None:
    """Ctrl-C is the caller's to handle; SIGTERM ends the worker even where the caller had a handler for it."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def converse(channel: WorkerChannel, sub_envs: SubEnvs) -> None:
    """Answers requests that come over ``channel`` until told to close. Raises EOFError when the caller is gone."""
    session = Session(sub_envs, channel)
    while not session.is_closed:
        code, data = channel.receive(session.step)
        channel.send(code, *session.answer(code, data))


class Session:
    """Answers one caller's requests, however they come.

    Args:
        sub_envs: that they are about.
        channel: over which the descriptor of shared memory comes, if there is any.

    Attributes:
        is_closed: the last request was to close.
    """

    def __init__(self, sub_envs: SubEnvs, channel: WorkerChannel | None = None) -> None:
        self.is_closed = False
        self._channel = channel
        self._sub_envs = sub_envs
        self._batch: Batch
        self._shared = False
        self._is_bare = False
        """Whether rows say everything when a step gives neither infos nor failures."""
        self._outcome: Outcome | None = None
        self._step: Callable[[], Outcome]

    def step(self) -> bytes | None:
        """Steps with the actions that lie in shared rows.

        Returns:
            The ring that says all there is to say; None where :meth:`answer` has to say it.
        """
        outcome = self._step()
        if self._is_bare:
            if outcome is NOTHING:
                return bells.STEP
            if outcome is SETTLED:
                return bells.SETTLED
        self._outcome = outcome
        return None

    def answer(self, code: int, data: memoryview | None) -> Sequence[bytes | memoryview]:
        """The payload of the reply, in parts; none where it says but that it is done."""
        if code == _STEP:
            outcome, self._outcome = self._outcome, None
            if outcome is None:
                outcome = self._sub_envs.step(None if data is None else self._actions(data))
            if self._is_bare:
                if outcome is NOTHING:
                    return ()
                if outcome is SETTLED:
                    return EMPTY
            return self._told(Verb.STEP, outcome)
        verb = Verb(code)
        if verb is Verb.CLOSE:
            self.is_closed = True
            return self._told(verb, CallOutcome([], self._sub_envs.close()))
        assert data is not None
        payload = serialise.loads(data)
        if verb is Verb.ATTACH:
            self._attach(AttachPayload(*payload))
            return ()
        return self._told(verb, perform(self._sub_envs, verb, payload))

    def _attach(self, payload: AttachPayload) -> None:
        spaces, num_rows, block, rows, spins = payload
        self._shared = block is not None
        buffer = None
        if block is not None:
            descriptor, pair = None, []
            if block[0] is None:
                assert self._channel is not None
                if not self._channel.descriptors:
                    # This process may have no more.
                    raise EOFError
                descriptor, *pair = self._channel.descriptors
            buffer = SharedBlock.attach(block, descriptor)
        observation_space, action_space = self._sub_envs.spaces() if spaces is None else serialise.loads(spaces)
        self._batch = Batch(observation_space, action_space, num_rows, buffer)
        if rows is not None:
            self._batch.unpack_results(0, num_rows, [memoryview(rows)])
        if spins is not None:
            assert self._channel is not None
            self._channel.listen_to(Bells(*pair), _STEP, self._batch.lamps(self._sub_envs.first) if spins else None)
        self._is_bare = self._shared and not self._batch.has_objects
        self._sub_envs.attach(self._batch, self._sub_envs.first if self._shared else 0, settles=self._shared)
        self._step = self._sub_envs.step_alone if len(self._sub_envs) == 1 else self._sub_envs.step

    def _actions(self, data: memoryview) -> Sequence[Any] | None:
        """The actions that came with a STEP: bytes, put into the rows, or one by one."""
        if data[0] == _ACTION_BYTES[0]:
            self._batch.unpack_actions(data[1:])
            return None
        actions: Sequence[Any] = serialise.loads(data[1:])
        return actions

    def _told(self, verb: Verb, outcome: Outcome | CallOutcome) -> Sequence[bytes | memoryview]:
        has_rows = isinstance(outcome, Outcome)
        objects = self._batch.take_objects() if has_rows else None
        extra = b""
        if objects or outcome.failures or outcome[0] or (isinstance(outcome, Outcome) and outcome.is_settled):
            extra = self._pickled(verb, outcome, objects)
        if has_rows and not self._shared:
            return (_LENGTH.pack(len(extra)), extra, *self._batch.pack_results(0, self._batch.num_rows))
        return (_LENGTH.pack(len(extra)), extra) if extra else ()

    def _pickled(self, verb: Verb, outcome: Outcome | CallOutcome, objects: list[dict[int, Any]] | None) -> bytes:
        packed = [failure.pack() for failure in outcome.failures]
        try:
            return serialise.dumps((outcome[0], packed, objects, *outcome[2:]))
        except Exception as error:
            return serialise.dumps((*self._without_unpicklable(verb, outcome, objects, packed, error), *outcome[2:]))

    def _without_unpicklable(
        self,
        verb: Verb,
        outcome: Outcome | CallOutcome,
        objects: list[dict[int, Any]] | None,
        packed: list[PackedFailure],
        error: Exception,
    ) -> tuple[Any, list[PackedFailure], list[dict[int, Any]] | None]:
        """Drops what cannot be sent; the sub-envs that gave it count as having raised."""
        first = self._sub_envs.first
        blamed: dict[int, str] = {}
        if isinstance(outcome, CallOutcome):
            results = list(outcome.results)
            for index, result in enumerate(results):
                if not _can_pickle(result):
                    blamed[index], results[index] = f"returned {type(result).__name__}, which cannot be pickled", None
            kept: Any = results
        else:
            kept = {}
            for key, column in outcome.infos.items():
                if _can_pickle(column):
                    kept[key] = column
                else:
                    blamed.update((index, f"info[{key!r}] cannot be pickled") for index in column.rows)
        for values in objects or ():
            for row in [row for row, value in values.items() if not _can_pickle(value)]:
                blamed[row - (first if self._shared else 0)] = "its observation cannot be pickled"
                del values[row]
        for index, told in blamed.items():
            if isinstance(outcome, Outcome):
                self._sub_envs.fail(first + index)
            told_whole = f"sub-env {first + index}: {told}: {error}"
            packed.append(Failure(first + index, verb.name.lower(), TypeError(told_whole), told_whole).pack())
        return kept, packed, objects


_STEP = int(Verb.STEP)
_ACTION_BYTES = b"\0"
_ACTION_LIST = b"\1"


def encode_request(payload: tuple[Any, ...] | None, batch: Batch | None, envs: range) -> Sequence[bytes | memoryview]:
    """The payload of a request, in parts. The actions of a step are taken from ``batch``, unless they lie in shared rows."""
    if isinstance(payload, StepPayload):
        if payload.actions is not None:
            return (_ACTION_LIST, serialise.dumps(payload.actions))
        return encode_rows(batch.pack_actions(envs.start, envs.stop)) if batch is not None else ()
    return () if payload is None else (serialise.dumps(tuple(payload)),)


def encode_rows(rows: Sequence[memoryview]) -> Sequence[bytes | memoryview]:
    """The payload of a STEP with the actions of the worker's rows."""
    return (_ACTION_BYTES, *rows)


def decode_reply(verb: int, data: memoryview | None, batch: Batch | None, envs: range, shared: bool) -> Any:
    """What a worker's reply says; rows and objects that it brings are put into ``batch``."""
    if data is None:
        return _NOTHING[verb]
    if not len(data):
        return SETTLED
    if verb == Verb.START:
        description = _loaded(bytes(data))
        return description.unpack() if isinstance(description, PackedFailure) else description
    (length,) = _LENGTH.unpack_from(data)
    rows = data[_LENGTH.size + length :]
    return decode_parts(verb, data[_LENGTH.size : _LENGTH.size + length], [rows] if len(rows) else (), batch, envs, shared)


@functools.lru_cache(maxsize=1)
def _loaded(data: bytes) -> Any:
    """What was pickled: as a rule the workers of a vector env all say the same when they start."""
    return serialise.loads(data)


def decode_parts(
    verb: int, extra: memoryview, rows: Sequence[memoryview], batch: Batch | None, envs: range, shared: bool
) -> Any:
    """The same, for a reply of which the parts are still apart."""
    if rows:
        assert batch is not None
        batch.unpack_results(envs.start, envs.stop, rows)
    if not len(extra):
        return _NOTHING[verb]
    kept, packed, objects, *settled = serialise.loads(extra)
    if objects:
        assert batch is not None
        batch.put_objects(objects, 0 if shared else envs.start)
    return type(_NOTHING[verb])(kept, [failure.unpack() for failure in packed], *settled)


def undecodable_reply(verb: int, envs: range, error: Exception) -> Any:
    """What stands for a reply that cannot be unpickled here: each of the worker's sub-envs counts as having raised."""
    told = f"what sub-envs {list(envs)} sent cannot be rebuilt in the caller: {type(error).__name__}: {error}"
    failures = [Failure(index, Verb(verb).name.lower(), QuotedEnvError(told), told) for index in envs]
    return (
        failures[0] if verb == Verb.START else type(_NOTHING[verb])([None] * len(envs) if verb == Verb.CALL else {}, failures)
    )


_NOTHING: dict[int, Any] = {
    Verb.ATTACH: CallOutcome([]),
    Verb.RESET: Outcome(),
    Verb.STEP: Outcome(),
    Verb.CALL: CallOutcome([]),
    Verb.SET_ATTR: CallOutcome([]),
    Verb.CLOSE: CallOutcome([]),
    Verb.RESTART: Outcome(),
    Verb.GET_STATE: CallOutcome([]),
    Verb.SET_STATE: Outcome(),
}


def _can_pickle(value: Any) -> bool:
    try:
        serialise.dumps(value)
    except Exception:
        return False
    return True
