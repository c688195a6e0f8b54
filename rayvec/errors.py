"""Every error that rayvec raises on its own account.

::

    RayvecError
    ├── the env gave what its spaces do not allow
    │   ├── InvalidObservationError   (also a ValueError and a TypeError)
    │   └── InvalidRewardError        (also a ValueError and a TypeError)
    ├── the env raised what cannot cross a process border
    │   └── QuotedEnvError            (also a RuntimeError)
    ├── a worker is gone
    │   └── WorkerLostError           (also an EOFError, as Gymnasium's pipes raise)
    ├── the env's state can neither be had from it nor pickled, or cannot be put back
    │   └── SnapshotError             (also a TypeError)
    ├── a Ray actor cannot be had as asked for
    │   ├── PlacementError            (also a RuntimeError)
    │   └── TransportError            (also a RuntimeError)
    └── time ran out
        └── CallTimeoutError          (also a multiprocessing.TimeoutError)

An env's own exceptions keep their own type. Misuse by the caller raises what Gymnasium raises:
``gymnasium.error.AlreadyPendingCallError``, ``NoAsyncCallError``, ``ClosedEnvironmentError`` and ``ResetNeeded``, or
``ValueError`` and ``TypeError`` for arguments.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable

__all__ = [
    "CallTimeoutError",
    "InvalidObservationError",
    "InvalidRewardError",
    "PlacementError",
    "QuotedEnvError",
    "RayvecError",
    "SnapshotError",
    "TransportError",
    "WorkerLostError",
    "WorkerTraceback",
]


class RayvecError(Exception):
    """The root of all errors below."""


class InvalidObservationError(RayvecError, ValueError, TypeError):
    """An observation whose shape, dtype or structure is not its space's. The sub-env counts as having raised it."""


class InvalidRewardError(RayvecError, ValueError, TypeError):
    """A reward that is not one number. The sub-env counts as having raised it."""


class QuotedEnvError(RayvecError, RuntimeError):
    """Stands for an exception of a sub-env that could not be pickled or rebuilt; its text quotes type and message."""


class SnapshotError(RayvecError, TypeError):
    """A sub-env of which no state can be taken, or that cannot take the one it is given."""


class WorkerLostError(RayvecError, EOFError):
    """A process or actor that holds sub-envs has died; ``reset()`` starts it again.

    Attributes:
        env_indices: the sub-envs that were in it.
        pid: its process id, if it had one.
        exitcode: its exit code; minus the signal's number where a signal ended it; None where nobody knows.
        actor_id: its id, if it was a Ray actor.
        node_id: the id of the Ray node that it was on, if it was an actor.
    """

    def __init__(
        self,
        message: str,
        *,
        env_indices: Iterable[int] = (),
        pid: int | None = None,
        exitcode: int | None = None,
        actor_id: str | None = None,
        node_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.env_indices = tuple(env_indices)
        self.pid = pid
        self.exitcode = exitcode
        self.actor_id = actor_id
        self.node_id = node_id


class PlacementError(RayvecError, RuntimeError):
    """The Ray cluster has not placed an actor in time: it tells what was asked for, and what there is."""


class TransportError(RayvecError, RuntimeError):
    """A Ray actor cannot be talked to in the way that was asked for."""


class CallTimeoutError(RayvecError, multiprocessing.TimeoutError):
    """A wait has run out of time. The call is still pending: wait again for its result, or ``close()``."""


class WorkerTraceback(Exception):  # noqa: N818 - it is no error of its own: it shows, as a cause, where one was raised
    """The traceback of a worker, as text: the ``__cause__`` of an exception that was raised in another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
