"""Environments that fail, block or die at a known call, and are :class:`~rayvec.testing.envs.CountingEnv` otherwise.

Calls are counted for each environment by itself, from when it was built: a rebuilt one begins anew.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rayvec.testing.envs import CountingEnv, Step

__all__ = [
    "DyingEnv",
    "GateEnv",
    "RaisingEnv",
    "SlowEnv",
    "StubbornEnv",
    "TroubleCall",
    "UnbuildableError",
    "UnpicklableError",
    "wait_for_path",
]

TroubleCall = Literal["init", "reset", "step", "close", "call", "get", "set"]
_POLL_SECONDS = 0.002


class UnpicklableError(Exception):
    """An exception that cannot be pickled: it holds a lock. Its text is ``"cannot be pickled"``."""

    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.lock = threading.Lock()


class UnbuildableError(Exception):
    """An exception that can be pickled but not rebuilt: its constructor takes other arguments than it keeps.

    Its text is ``"cannot be rebuilt"``.
    """

    def __init__(self, first: str = "cannot", second: str = "be rebuilt", *, third: bool = True) -> None:
        super().__init__(f"{first} {second}", first, second, third)

    def __str__(self) -> str:
        return str(self.args[0])


def wait_for_path(path: str | os.PathLike[str], timeout: float = 10.0) -> None:
    """Waits until a file exists, such as the marker of an env.

    Raises:
        TimeoutError: it does not after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not exist after {timeout} s")
        time.sleep(_POLL_SECONDS)


class _TroubledEnv(CountingEnv):
    """A CountingEnv to which something happens at one call.

    Args:
        on: which call: its constructor, ``reset``, ``step``, ``close``, the method ``answer``, or getting or setting the
            attribute ``mood``.
        at: at which of these calls, from 1; None: at each.
        marker: a file that is written (the pid) right before it happens.
        **kwargs: for :class:`CountingEnv`.
    """

    def __init__(
        self,
        *,
        on: TroubleCall = "step",
        at: int | None = 1,
        marker: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._on = on
        self._at = at
        self._marker = marker
        self._calls: dict[str, int] = {}
        self._mood: Any = 0
        super().__init__(**kwargs)
        self._meet("init")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
        """As CountingEnv, after the trouble."""
        self._meet("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: np.int64) -> Step:
        """As CountingEnv, after the trouble."""
        self._meet("step")
        return super().step(action)

    def close(self) -> None:
        """As CountingEnv, before the trouble, so that the log tells of the call."""
        super().close()
        self._meet("close")

    def answer(self) -> int:
        """``42 + index``, after the trouble; to call from outside."""
        self._meet("call")
        return 42 + self.index

    @property
    def mood(self) -> Any:
        """An attribute to get and set from outside; 0 at first."""
        self._meet("get")
        return self._mood

    @mood.setter
    def mood(self, value: Any) -> None:
        self._meet("set")
        self._mood = value

    def _meet(self, call: TroubleCall) -> None:
        if call != self._on:
            return
        self._calls[call] = self._calls.get(call, 0) + 1
        if self._at is None or self._calls[call] == self._at:
            self._prepare()
            if self._marker is not None:
                # Renamed into place, so that whoever waits for it finds it written.
                draft = Path(f"{self._marker}.{os.getpid()}")
                draft.write_text(str(os.getpid()))
                draft.replace(self._marker)
            self._happen()

    def _prepare(self) -> None:
        """What has to be done before the marker says that it happens."""

    def _happen(self) -> None:
        raise NotImplementedError


class RaisingEnv(_TroubledEnv):
    """Raises.

    Args:
        on: which call: ``"init"``, ``"reset"``, ``"step"``, ``"close"``, ``"call"`` (of the method ``answer``), ``"get"`` or
            ``"set"`` (of the attribute ``mood``).
        at: at which of these calls since it was built, from 1; None: at each.
        error: what to raise: an exception (a copy is raised), or a class or function that makes one.
        **kwargs: ``marker``, a file that is written right before, and CountingEnv's.
    """

    def __init__(
        self,
        on: TroubleCall = "step",
        at: int | None = 1,
        error: BaseException | Callable[[], BaseException] = RuntimeError,
        **kwargs: Any,
    ) -> None:
        self._error = error
        super().__init__(on=on, at=at, **kwargs)

    def _happen(self) -> None:
        raise copy.copy(self._error) if isinstance(self._error, BaseException) else self._error()


class DyingEnv(_TroubledEnv):
    """Ends the process it lives in; with an engine that runs envs in the caller, that is the caller.

    Args:
        on: which call, as for :class:`RaisingEnv`.
        at: at which of these calls since it was built, from 1.
        how: ``"sigkill"``, or ``"exit"``: at once, with ``exit_code``.
        exit_code: for ``"exit"``.
        **kwargs: ``marker``, a file that is written right before, and CountingEnv's.
    """

    def __init__(
        self,
        on: TroubleCall = "step",
        at: int | None = 1,
        how: Literal["sigkill", "exit"] = "sigkill",
        *,
        exit_code: int = 7,
        **kwargs: Any,
    ) -> None:
        self._how = how
        self._exit_code = exit_code
        super().__init__(on=on, at=at, **kwargs)

    def _happen(self) -> None:
        if self._how == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(self._exit_code)


class StubbornEnv(_TroubledEnv):
    """Never returns from a call, and from then on ignores SIGTERM (where there is one): only SIGKILL ends its process.

    Args:
        on: which call, as for :class:`RaisingEnv`.
        at: at which of these calls since it was built, from 1.
        **kwargs: ``marker``, a file that is written right before, and CountingEnv's.
    """

    def __init__(self, on: TroubleCall = "step", at: int | None = 1, **kwargs: Any) -> None:
        super().__init__(on=on, at=at, **kwargs)

    def _prepare(self) -> None:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGTERM"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _happen(self) -> None:
        while True:
            time.sleep(3600)


class GateEnv(_TroubledEnv):
    """Waits at each call until a file exists.

    Before it waits it writes the file :attr:`marker` (``path + ".entered"``), so that a test knows when it has begun, and
    decides when it goes on.

    Args:
        path: the file to wait for.
        on: which call, as for :class:`RaisingEnv`.
        at: at which of these calls since it was built, from 1; None: at each.
        **kwargs: CountingEnv's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        on: TroubleCall = "step",
        at: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._path = Path(path)
        super().__init__(on=on, at=at, marker=self.marker_of(path), **kwargs)

    @staticmethod
    def marker_of(path: str | os.PathLike[str]) -> Path:
        """The file that tells that an env waits for ``path``."""
        return Path(f"{os.fspath(path)}.entered")

    def _happen(self) -> None:
        while not self._path.exists():
            time.sleep(_POLL_SECONDS)


class SlowEnv(CountingEnv):
    """Takes its time.

    Args:
        step_seconds: how long a step sleeps.
        reset_seconds: how long a reset sleeps.
        **kwargs: CountingEnv's.
    """

    def __init__(self, step_seconds: float = 0.01, reset_seconds: float = 0.0, **kwargs: Any) -> None:
        self._step_seconds = step_seconds
        self._reset_seconds = reset_seconds
        super().__init__(**kwargs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
        """As CountingEnv, some time later."""
        time.sleep(self._reset_seconds)
        return super().reset(seed=seed, options=options)

    def step(self, action: np.int64) -> Step:
        """As CountingEnv, some time later."""
        time.sleep(self._step_seconds)
        return super().step(action)
