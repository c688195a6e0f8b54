"""How an exception of a sub-env reaches the caller: caught, packed, unpacked, told, raised.

A :class:`Failure` is made where the sub-env lives. In the caller's own process it travels as it is. Out of another
process it travels as a :class:`PackedFailure`, plain strings and bytes that can always be sent; what cannot be pickled
or rebuilt is quoted by a :class:`~rayvec.errors.QuotedEnvError` instead.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gymnasium import logger

from rayvec.errors import QuotedEnvError, WorkerTraceback

__all__ = ["Failure", "PackedFailure", "add_note", "log_failures", "raise_failures"]


@dataclass(frozen=True)
class Failure:
    """One sub-env's exception.

    Attributes:
        env_index: the sub-env's index in the vector env.
        call: what it was doing, in words that fit behind "in": ``"step"``, ``"reset"``, ``"call of 'render'"``.
        error: the exception.
        trace: its traceback as text, from where it was raised.
    """

    env_index: int
    call: str
    error: BaseException
    trace: str

    @classmethod
    def caught(cls, env_index: int, call: str, error: BaseException) -> Failure:
        """Records ``error``, which is being handled now."""
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(env_index, call, error, trace)

    def summary(self) -> str:
        """What was raised, and in what, in a line or so."""
        text = _text(self.error)
        return f"{type(self.error).__name__}{': ' if text else ''}{text} (in {self.call})"

    def pack(self) -> PackedFailure:
        """What another process can be sent."""
        kind = type(self.error)
        return PackedFailure(
            self.env_index,
            self.call,
            kind.__module__,
            kind.__qualname__,
            _text(self.error),
            self.trace,
            _pickled(self.error),
            _pickled((self.error.args, vars(self.error), _fields(self.error))),
        )


class PackedFailure(NamedTuple):
    """A :class:`Failure` made of strings and bytes."""

    env_index: int
    call: str
    module: str
    qualname: str
    message: str
    trace: str
    pickled: bytes | None
    parts: bytes | None

    def unpack(self) -> Failure:
        """The failure, its error rebuilt with its own type and arguments, the worker's traceback as its cause."""
        error = self._rebuilt()
        error.__cause__ = WorkerTraceback(self.trace)
        return Failure(self.env_index, self.call, error, self.trace)

    def _rebuilt(self) -> BaseException:
        kind = _find_class(self.module, self.qualname)
        parts = _unpickled(self.parts)
        error = _unpickled(self.pickled)
        if isinstance(error, BaseException) and kind in (None, type(error)) and self._is_same(error, parts):
            return error
        if kind is not None and isinstance(parts, tuple):
            try:
                return _put_together(kind, *parts)
            except Exception:
                pass
        note = "the exception itself cannot be brought over from the worker"
        return QuotedEnvError(f"{self.module}.{self.qualname}: {self.message} ({note})")

    def _is_same(self, error: BaseException, parts: Any) -> bool:
        """Whether ``error``, which its own __init__ has made anew, says what the original said."""
        if not isinstance(parts, tuple):
            return True
        try:
            return repr(error.args) == repr(parts[0]) and _text(error) == self.message
        except Exception:
            return _text(error) == self.message


def _put_together(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any], fields: dict[str, Any]
) -> BaseException:
    """An exception of these parts, without calling its __init__, which may take other arguments than it keeps."""
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def _fields(error: BaseException) -> dict[str, Any]:
    """What exceptions written in C keep outside their ``__dict__``: OSError's errno, SystemExit's code, ..."""
    names = {name for kind in type(error).__mro__ for name, slot in vars(kind).items() if inspect.ismemberdescriptor(slot)}
    values = {name: getattr(error, name, None) for name in names if not name.startswith("__")}
    return {name: value for name, value in values.items() if value is not None}


def raise_failures(failures: Sequence[Failure]) -> None:
    """Raises the failure of the lowest sub-env, with notes on it and on the others; returns if there is none.

    Ctrl-C in the caller's own share goes first, whatever its index.
    """
    if not failures:
        return
    ordered = sorted(failures, key=lambda failure: (not isinstance(failure.error, KeyboardInterrupt), failure.env_index))
    first = ordered[0]
    add_note(first.error, f"raised by sub-env {first.env_index} in {first.call}")
    for other in ordered[1:]:
        if other.error is not first.error:
            told = f"{type(other.error).__name__}: {_text(other.error)}"
            add_note(first.error, f"sub-env {other.env_index} raised too, in {other.call}: {told}")
    raise first.error


def log_failures(failures: Sequence[Failure], raised: bool) -> None:
    """Tells Gymnasium's logger of ``failures`` in Gymnasium's three messages; the third where one is ``raised``."""
    for failure in failures:
        _log(f"Received the following error from Worker-{failure.env_index} - Shutting it down")
        _log(failure.trace)
    if failures and raised:
        _log("Raising the last exception back to the main process.")


def _log(message: str) -> None:
    try:
        logger.error("%s", message)
    except Warning:
        # Gymnasium's logger speaks through `warnings`; where those are errors, the env's own error matters more.
        pass


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} whose text cannot be had>"


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an exception, on Python 3.10 as well."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]


class _ErrorPickler(pickle.Pickler):
    """Pickles exception classes that no import reaches (local to a function) by their name alone."""

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        if isinstance(obj, type) and issubclass(obj, BaseException) and "<locals>" in obj.__qualname__:
            return obj.__module__, obj.__qualname__
        return None


class _ErrorUnpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> type[BaseException]:
        kind = _find_class(*pid)
        if kind is None:
            raise pickle.UnpicklingError(f"no exception class {pid} here")
        return kind


def _pickled(value: Any) -> bytes | None:
    stream = io.BytesIO()
    try:
        _ErrorPickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:
        return None
    return stream.getvalue()


def _unpickled(pickled: bytes | None) -> Any:
    if pickled is None:
        return None
    try:
        return _ErrorUnpickler(io.BytesIO(pickled)).load()
    except Exception:
        return None


def _find_class(module: str, qualname: str) -> type[BaseException] | None:
    """The exception class of that name in this process: an importable one, or the newest living local one."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    alive = [kind for kind in _subclasses(BaseException) if (kind.__module__, kind.__qualname__) == (module, qualname)]
    return alive[-1] if alive else None


def _subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for sub in type.__subclasses__(kind):
        yield sub
        yield from _subclasses(sub)
