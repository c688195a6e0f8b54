"""Workers that run a function written for Gymnasium's AsyncVectorEnv, over its pickled messages.

The function is given what Gymnasium 1.4 gives it (1.2: the same without the semaphore)::

    worker(index, env_fn, pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, semaphore)

and is sent ``("reset", kwargs)``, ``("step", action)``, ``("_call", (name, args, kwargs))``, ``("_setattr", (name,
value))``, ``("_check_spaces", (mode, observation_space, action_space))`` and ``("close", None)``. It answers ``(result,
True)``, or puts ``(index, type, value, trace)`` into the error queue, answers ``(None, False)`` and ends.
"""

from __future__ import annotations

import contextlib
import inspect
import queue
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from time import perf_counter
from typing import Any, NamedTuple

from gymnasium import Space, spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper, create_shared_memory, read_from_shared_memory

from rayvec import infos as info_columns
from rayvec.batch import Batch
from rayvec.columns import Mismatch
from rayvec.errors import InvalidObservationError, QuotedEnvError, WorkerTraceback
from rayvec.failures import Failure
from rayvec.local.memory import SharedBlock
from rayvec.local.process import ChildProcess, ChildWorker
from rayvec.local.starting import starting_quietly
from rayvec.protocol import (
    CallPayload,
    GetStatePayload,
    ResetPayload,
    SetAttrPayload,
    SetStatePayload,
    StepPayload,
    Verb,
)
from rayvec.spaces import ObservationMode, join_spaces
from rayvec.stats import Tally
from rayvec.sub_envs import CallOutcome, Description, EnvFn, Outcome, reward_as_float
from rayvec.worker import Reply

__all__ = ["CustomWorker", "custom_workers"]

_ERROR_GRACE = 5.0
"""Seconds between a worker's word that it has failed and the error itself, which comes through another pipe."""


class _Setup(NamedTuple):
    """What the custom workers of one vector env have in common."""

    function: Callable[..., None]
    takes_semaphore: bool
    context: BaseContext
    daemon: bool
    autoreset_mode: AutoresetMode
    observation_mode: str
    description: Description
    single_observation_space: Space[Any]
    memory: Any
    num_envs: int
    is_bounded: bool


def custom_workers(
    function: Callable[..., None],
    env_fns: Sequence[EnvFn],
    *,
    context: BaseContext,
    daemon: bool,
    shared_memory: bool,
    observation_mode: ObservationMode,
    autoreset_mode: AutoresetMode,
    max_concurrency: int | None,
) -> list[CustomWorker]:
    """A worker for each sub-env that runs ``function``.

    Their memory has to be there before they are, so the first env is built once more, here, to learn the spaces.
    """
    first = env_fns[0]()
    try:
        pair = (first.observation_space, first.action_space)
        description = Description([pair], [0], dict(first.metadata), first.render_mode)
    finally:
        first.close()
    mode = observation_mode if isinstance(observation_mode, str) else "custom"
    single = join_spaces([pair], observation_mode).single_observation_space
    memory = None
    if shared_memory:
        try:
            memory = create_shared_memory(single, n=len(env_fns), ctx=context)  # type: ignore[arg-type]
        except (CustomSpaceError, TypeError) as error:
            raise ValueError(
                f"shared_memory=True, but Gymnasium's shared memory, which a custom worker writes to, cannot hold {single}: "
                "pass shared_memory=False."
            ) from error
    setup = _Setup(
        function,
        len(inspect.signature(function).parameters) != 7,
        context,
        daemon,
        autoreset_mode,
        mode,
        description,
        single,
        memory,
        len(env_fns),
        max_concurrency is not None,
    )
    return [CustomWorker(setup, env_fn, index) for index, env_fn in enumerate(env_fns)]


class CustomWorker(ChildWorker):
    """A process that runs a user's worker function for one sub-env."""

    blocks = True

    def __init__(self, setup: _Setup, env_fn: EnvFn, index: int) -> None:
        super().__init__(range(index, index + 1))
        self._setup = setup
        self._env_fn = env_fn
        self._index = index
        self._pipe: Connection | None = None
        self._errors: Any = None
        self._batch: Batch
        self._tally: Tally
        self._asked_at = 0.0

    def start(self) -> None:
        self.kill()
        self.release()
        setup = self._setup
        ours, theirs = setup.context.Pipe()
        # A queue for each: one that all share is dead once a worker has died with its lock.
        self._errors = setup.context.Queue()
        args: tuple[Any, ...] = (
            self._index,
            CloudpickleWrapper(self._env_fn),
            theirs,
            ours,
            setup.memory,
            self._errors,
            setup.autoreset_mode,
        )
        if setup.takes_semaphore:
            # The crew bounds how many work at a time. A semaphore that all of them share would do so too, until one of
            # them died with a permit.
            args = (*args, setup.context.BoundedSemaphore(1) if setup.is_bounded else None)
        try:
            name = f"Worker<AsyncVectorEnv>-{self._index}"
            child = ChildProcess(setup.context, setup.function, args, name=name, daemon=setup.daemon)
            with starting_quietly():
                child.start()
                self._child = child
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._pipe = ours
        self.lost = False
        own = setup.description.spaces[0]
        check = (setup.observation_mode, setup.single_observation_space, own[1])
        self.send(Verb.START, ForkingPickler.dumps(("_check_spaces", check)))

    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        self._batch = batch
        self._tally = Tally(batch.tallies[self._index : self._index + 1])

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Any:
        message: tuple[str, Any] = ("close", None)
        if isinstance(payload, ResetPayload):
            message = ("reset", {"seed": payload.seeds[0], "options": payload.options})
        elif isinstance(payload, StepPayload):
            actions = payload.actions
            if actions is None:
                actions = self._batch.action_rows(self._index, self._index + 1)
            message = ("step", actions[0])
        elif isinstance(payload, CallPayload):
            if callable(payload.name):
                raise TypeError("a custom worker calls methods by their names only: it cannot be sent a function to call.")
            message = ("_call", tuple(payload[:3]))
        elif isinstance(payload, SetAttrPayload):
            message = ("_setattr", (payload.name, payload.values[0]))
        elif isinstance(payload, GetStatePayload | SetStatePayload):
            raise NotImplementedError("a custom worker knows Gymnasium's messages only, and none of them is for an env's state")
        return ForkingPickler.dumps(message)

    def send(self, verb: Verb, prepared: Any) -> bool:
        self.owed.append(verb)
        self._asked_at = perf_counter()
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send_bytes(prepared)
        return True

    def poll(self) -> Reply | None:
        if self._pipe is None:
            raise EOFError
        try:
            if not self._pipe.poll():
                return None
            result, succeeded = self._pipe.recv()
        except OSError:
            raise EOFError from None
        verb = self.owed[0]
        if not succeeded:
            return self._failed(verb)
        if verb is Verb.START:
            return self._started(result)
        if verb in (Verb.RESET, Verb.STEP):
            return self._stepped(verb, result)
        return CallOutcome([result] if verb is Verb.CALL else [])

    def _started(self, same: tuple[bool, bool]) -> Reply:
        if not all(same):
            kind = "observation" if not same[0] else "action"
            error = RuntimeError(
                f"the {kind} space of sub-env {self._index} does not match that of sub-env 0: they cannot be batched"
            )
            return Failure(self._index, "its constructor", error, str(error))
        return self._setup.description

    def _stepped(self, verb: Verb, result: tuple[Any, ...]) -> Outcome:
        # The function tells of no times: the way to it and back counts too, and a reset that it makes counts as a step.
        if verb is Verb.RESET:
            self._tally.end_reset(self._asked_at, perf_counter())
            self._tally.count_reset(0)
        else:
            self._tally.steps += 1.0
            self._tally.told[0] = self._tally.steps
            self._tally.end_step(self._asked_at, perf_counter())
        batch, index = self._batch, self._index
        reward, terminated, truncated = (0.0, False, False) if verb is Verb.RESET else result[1:4]
        observation = result[0]
        try:
            if self._setup.memory is not None and observation is None:
                space, memory = self._setup.single_observation_space, self._setup.memory
                observation = _row(space, read_from_shared_memory(space, memory, self._setup.num_envs), index)
            batch.observations.write(index, observation)
            batch.rewards[index] = reward_as_float(index, reward)
            batch.terminations[index] = bool(terminated)
            batch.truncations[index] = bool(truncated)
        except Mismatch as mismatch:
            invalid = InvalidObservationError(
                f"sub-env {index}: its worker gave an observation that its space does not allow: {mismatch}"
            )
            return Outcome({}, [Failure.caught(index, verb.name.lower(), invalid)])
        except Exception as error:
            return Outcome({}, [Failure.caught(index, verb.name.lower(), error)])
        info = result[-1]
        return Outcome(info_columns.gather([(0, info)]) if info else {})

    def _failed(self, verb: Verb) -> Reply:
        """The function has told of an error and ends; the sub-env is built anew at the next reset."""
        failure = self._take_error(verb)
        self.lost = True
        if verb is Verb.START:
            return failure
        if verb in (Verb.RESET, Verb.STEP):
            return Outcome({}, [failure])
        return CallOutcome([None], [failure])

    def _take_error(self, verb: Verb) -> Failure:
        try:
            _, kind, value, trace = self._errors.get(timeout=_ERROR_GRACE)
        except queue.Empty:
            kind, value, trace = QuotedEnvError, "an error that its worker could not send", ""
        except Exception as unpickling:
            kind, value, trace = QuotedEnvError, f"an error that cannot be rebuilt here: {unpickling}", ""
        error = value if isinstance(value, BaseException) else kind(value)
        error.__cause__ = WorkerTraceback(trace)
        return Failure(self._index, verb.name.lower(), error, trace)

    def descriptors(self) -> Sequence[int]:
        if self._pipe is None or self._child is None:
            return ()
        return (self._pipe.fileno(), self._child.descriptor)

    def _disconnect(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._errors = None


def _row(space: Space[Any], batched: Any, index: int) -> Any:
    """One sub-env's observation out of what Gymnasium reads from its shared memory."""
    if isinstance(space, spaces.Dict):
        return {key: _row(part, batched[key], index) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_row(part, item, index) for part, item in zip(space.spaces, batched, strict=True))
    return batched[index]
