"""What can be said to a worker, and which of its answers a caller may wait for: two tables, no pipes.

:data:`REQUESTS` has a row for each request. The worker's side dispatches through it (:func:`perform`), the caller's side
takes the codes of the wire from it, and the docs print it. A new request is a new row and a method of ``SubEnvs``.

:class:`PendingCall` is the caller's state: at most one ``*_async`` call is in flight, and only its own ``*_wait`` ends it.

::

                 reset_async / step_async / call_async
        idle ───────────────────────────────────────────▶ pending "reset" / "step" / "call"
         ▲                                                   │            │ *_wait runs out of time: still pending
         └───────────────────────────────────────────────────┘ ◀──────────┘
            the matching *_wait has a result, or an error

                 async_reset / send
        idle ───────────────────────▶ pending "recv": async_reset, send and recv in any order
         ▲                                │
         └────────────────────────────────┘ recv has handed out all that was at work
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError

from rayvec.restarts import RestartOrder
from rayvec.states import SubEnvState
from rayvec.sub_envs import CallOutcome, Description, Outcome, SubEnvs

__all__ = [
    "REQUESTS",
    "CallPayload",
    "GetStatePayload",
    "PendingCall",
    "Request",
    "ResetPayload",
    "RestartPayload",
    "SetAttrPayload",
    "SetStatePayload",
    "StepPayload",
    "Verb",
]


class Verb(IntEnum):
    """A request, and on the wire the first byte of it and of its reply."""

    START = 1
    ATTACH = 2
    RESET = 3
    STEP = 4
    CALL = 5
    SET_ATTR = 6
    CLOSE = 7
    RESTART = 8
    GET_STATE = 9
    SET_STATE = 10


class ResetPayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.reset`, one entry for each of the worker's sub-envs."""

    seeds: Sequence[int | None]
    options: dict[str, Any] | None
    mask: Sequence[bool] | None


class StepPayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.step`: None where the actions lie in the batch."""

    actions: Sequence[Any] | None


class CallPayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.call`; the indices are the vector env's."""

    name: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    indices: Sequence[int] | None = None


class SetAttrPayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.set_attr`, one value for each of the worker's sub-envs."""

    name: str
    values: Sequence[Any]


class RestartPayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.restart`."""

    orders: Sequence[RestartOrder]
    options: dict[str, Any] | None


class GetStatePayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.get_state`, one entry for each of the worker's sub-envs."""

    mask: Sequence[bool]


class SetStatePayload(NamedTuple):
    """Arguments of :meth:`SubEnvs.set_state`, one entry for each of the worker's sub-envs."""

    states: Sequence[SubEnvState | None]


@dataclass(frozen=True)
class Request:
    """A row of the table.

    Attributes:
        verb: its name and its byte.
        payload: what goes with it; None: nothing, or something that depends on the transport.
        reply: what comes back besides rows of the batch.
        handler: the method of ``SubEnvs`` that answers it; None where the transport itself does.
        limited: whether ``max_concurrency`` counts it.
        is_common: whether all workers are told the same, so that it need be pickled only once.
    """

    verb: Verb
    payload: type[tuple[Any, ...]] | None
    reply: type
    handler: str | None
    limited: bool = False
    is_common: bool = False


REQUESTS: dict[Verb, Request] = {
    row.verb: row
    for row in (
        Request(Verb.START, None, Description, None),
        Request(Verb.ATTACH, None, CallOutcome, None),
        Request(Verb.RESET, ResetPayload, Outcome, "reset", limited=True),
        Request(Verb.STEP, StepPayload, Outcome, "step", limited=True),
        Request(Verb.CALL, CallPayload, CallOutcome, "call", is_common=True),
        Request(Verb.SET_ATTR, SetAttrPayload, CallOutcome, "set_attr"),
        Request(Verb.CLOSE, None, CallOutcome, None),
        Request(Verb.RESTART, RestartPayload, Outcome, "restart", limited=True),
        Request(Verb.GET_STATE, GetStatePayload, CallOutcome, "get_state"),
        Request(Verb.SET_STATE, SetStatePayload, Outcome, "set_state"),
    )
}


def perform(sub_envs: SubEnvs, verb: Verb, payload: tuple[Any, ...]) -> Any:
    """Answers a request with the method that the table names."""
    handler = REQUESTS[verb].handler
    if handler is None:
        raise ValueError(f"the transport answers {verb.name} itself")
    return getattr(sub_envs, handler)(*payload)


class PendingCall:
    """Which ``*_async`` call is in flight, and what may be called meanwhile.

    Attributes:
        name: ``"reset"``, ``"step"``, ``"call"``, ``"recv"``, or None when nothing is pending.
        closed: whether ``close()`` was called.
    """

    def __init__(self, owner: str) -> None:
        self.name: str | None = None
        self.closed = False
        self._owner = owner

    @property
    def is_busy(self) -> bool:
        """Whether :meth:`check_idle` would raise."""
        return self.closed or self.name is not None

    def check_open(self) -> None:
        """Raises ClosedEnvironmentError after ``close()``."""
        if self.closed:
            raise ClosedEnvironmentError(f"{self._owner} was closed: make a new one to go on.")

    def check_idle(self, asked: str) -> None:
        """Raises unless ``asked`` may be called now: ClosedEnvironmentError or AlreadyPendingCallError."""
        self.check_open()
        if self.name == "recv":
            raise AlreadyPendingCallError(
                f"Calling `{asked}` while sub-envs are at work for `recv`: call `recv` until all have been received.", self.name
            )
        if self.name is not None:
            raise AlreadyPendingCallError(
                f"Calling `{asked}` while a call to `{self.name}` is pending: call `{self.name}_wait` for its result first.",
                self.name,
            )

    def check_may_send(self, asked: str) -> None:
        """Raises unless ``asked`` may add to what is in flight for ``recv``, or be the first to."""
        if self.name != "recv":
            self.check_idle(asked)
        self.check_open()

    def check_may_receive(self) -> None:
        """Raises unless something is in flight for ``recv``: ClosedEnvironmentError or NoAsyncCallError."""
        self.check_open()
        if self.name != "recv":
            pending = f"a call to `{self.name}` is pending" if self.name else "no sub-env is at work"
            raise NoAsyncCallError(f"Calling `recv` without `async_reset` or `send` before it: {pending}.", "recv")

    def begin(self, name: str) -> None:
        """``name`` is in flight from now on; :meth:`check_idle` has allowed it."""
        self.name = name

    def check_pending(self, name: str) -> None:
        """Raises unless ``name`` is in flight: ClosedEnvironmentError or NoAsyncCallError."""
        self.check_open()
        if self.name != name:
            pending = f"a call to `{self.name}` is pending" if self.name else "no call is pending"
            raise NoAsyncCallError(f"Calling `{name}_wait` without `{name}_async` before it: {pending}.", name)

    def end(self) -> None:
        """Nothing is in flight any more."""
        self.name = None
