"""An exception of a sub-env reaches the caller as it was raised, or is quoted where it cannot travel."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

from rayvec.errors import QuotedEnvError, WorkerTraceback
from rayvec.failures import Failure, add_note, log_failures, raise_failures
from rayvec.serialise import dumps, loads


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


class TwoArgumentsError(Exception):
    """Its ``__init__`` takes other arguments than it keeps."""

    def __init__(self, part: str, number: int) -> None:
        super().__init__(f"{part} has failed {number} times")
        self.part = part
        self.number = number


class SentenceError(Exception):
    """Its ``__init__`` makes a sentence of the one argument that it takes."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no joint is called {name}")
        self.name = name


class KeywordError(ValueError):
    """Its ``__init__`` takes keywords only."""

    def __init__(self, *, limit: float) -> None:
        super().__init__("beyond the limit", limit)
        self.limit = limit


class NoArgumentsError(RuntimeError):
    """Its ``__init__`` takes nothing."""

    def __init__(self) -> None:
        super().__init__("it has failed")


class DiskError(OSError):
    """An OSError with an ``__init__`` of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(2, "no such file", path)


class ShortDecodeError(UnicodeDecodeError):
    """A UnicodeDecodeError with an ``__init__`` of its own."""

    def __init__(self, reason: str) -> None:
        super().__init__("utf-8", b"\xff\xfe", 0, 1, reason)


class LeavingError(SystemExit):
    """A SystemExit with an ``__init__`` of its own."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(error: BaseException) -> Failure:
    """What is recorded when sub-env 3 raises ``error`` in a step."""
    try:
        raise error
    except BaseException as caught:
        return Failure.caught(3, "step", caught)


def across(failure: Failure) -> Failure:
    """The failure as another process gets it."""
    arrived: Failure = loads(dumps(failure.pack())).unpack()
    return arrived


ERRORS: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("bad value", 3),
    "no-arguments": ValueError,
    "key": lambda: KeyError("missing"),
    "os": lambda: FileNotFoundError(2, "No such file or directory", "/a"),
    "os-two-files": lambda: OSError(18, "Invalid cross-device link", "/a", None, "/b"),
    "decode": lambda: UnicodeDecodeError("utf-8", b"\xff\xfe", 0, 1, "invalid start byte"),
    "encode": lambda: UnicodeEncodeError("ascii", "é", 0, 1, "not in range"),
    "exit": lambda: SystemExit(3),
    "interrupt": lambda: KeyboardInterrupt(),
    "stop": lambda: StopIteration(7),
    "import": lambda: ImportError("no module", name="m", path="/m"),
    "attribute": lambda: AttributeError("no attribute", name="x"),
    "text-with-percent": lambda: RuntimeError("100 %s %d %"),
    "surrogates": lambda: RuntimeError("\ud800 é 𝄞 \0"),
    "gymnasium": lambda: gymnasium.error.ResetNeeded("reset it"),
    "two-arguments": lambda: TwoArgumentsError("arm", 3),
    "sentence": lambda: SentenceError("elbow"),
    "keyword": lambda: KeywordError(limit=0.5),
    "takes-nothing": NoArgumentsError,
    "os-subclass": lambda: DiskError("/a"),
    "decode-subclass": lambda: ShortDecodeError("it is bad"),
    "exit-subclass": lambda: LeavingError(1, 2),
}
FIELDS = ["errno", "strerror", "filename", "filename2", "encoding", "object", "start", "end", "reason", "code", "value"]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_arrives_as_it_was_raised(name: str) -> None:
    """Type, arguments, text and attributes are those of the error that was raised, however odd its ``__init__`` is."""
    error = ERRORS[name]()
    failure = across(raised(error))
    assert (failure.env_index, failure.call) == (3, "step")
    arrived = failure.error
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)
    assert str(arrived) == str(error)
    for field in FIELDS:
        assert getattr(arrived, field, "none") == getattr(error, field, "none"), field


@pytest.mark.parametrize("name", ERRORS)
def test_it_may_travel_twice(name: str) -> None:
    """An error that comes from a worker of a worker (a vector env within an env) is the same still."""
    error = ERRORS[name]()
    arrived = across(raised(across(raised(error)).error)).error
    assert (type(arrived), arrived.args, str(arrived)) == (type(error), error.args, str(error))


def test_the_workers_traceback_is_the_cause() -> None:
    """The traceback says where the error was raised, in the words that Python itself would print, earlier causes included."""

    def deep_down() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    try:
        deep_down()
    except ValueError as error:
        failure = Failure.caught(0, "reset", error)
    cause = across(failure).error.__cause__
    assert isinstance(cause, WorkerTraceback)
    for told in ["KeyError: 'first'", "direct cause", "in deep_down", "ValueError: second"]:
        assert told in str(cause)
    assert failure.trace in str(cause)


def test_a_class_local_to_a_function_is_found_again() -> None:
    """A forked worker's exception of a class that no import reaches has the caller's own class, its attributes too."""

    class LocalError(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")
            self.both = (first, second)

    arrived = across(raised(LocalError(1, 2))).error
    assert type(arrived) is LocalError
    assert arrived.args == ("1 and 2",)
    assert arrived.both == (1, 2)


def test_a_local_class_that_is_gone_is_quoted() -> None:
    """Where the class is not to be found (a spawned worker made it), the error tells type and message."""

    def make() -> Failure:
        kind = type("GoneError", (Exception,), {"__qualname__": "somewhere.<locals>.GoneError", "__module__": "some_module"})
        return raised(kind("why not"))

    packed = make().pack()._replace(qualname="somewhere.<locals>.GoneForEverError")
    error = packed._replace(pickled=None).unpack().error
    assert isinstance(error, QuotedEnvError)
    assert "some_module.somewhere.<locals>.GoneForEverError: why not" in str(error)


@pytest.mark.parametrize("where", ["argument", "attribute"])
def test_what_cannot_be_pickled_is_quoted(where: str) -> None:
    """An error that holds a lock is told by its type and message, with the traceback still."""
    error = ValueError("it holds", threading.Lock()) if where == "argument" else ValueError("it holds")
    if where == "attribute":
        error.lock = threading.Lock()  # type: ignore[attr-defined]
    arrived = across(raised(error)).error
    assert isinstance(arrived, QuotedEnvError)
    assert "builtins.ValueError" in str(arrived)
    assert "it holds" in str(arrived)
    assert "cannot be brought over" in str(arrived)
    assert "raise error" in str(arrived.__cause__)


def test_an_error_without_a_text_arrives() -> None:
    """One whose ``str()`` raises has its type and arguments still; where it has to be quoted, that is said."""
    arrived = across(raised(UnprintableError("why"))).error
    assert type(arrived) is UnprintableError
    assert arrived.args == ("why",)
    quoted = across(raised(UnprintableError(threading.Lock()))).error
    assert isinstance(quoted, QuotedEnvError)
    assert "whose text cannot be had" in str(quoted)


def test_a_class_that_cannot_be_put_together_is_quoted() -> None:
    """A ``__new__`` that refuses, or an unpickling that raises, ends in a quotation and not in another error."""
    packed = raised(ValueError("why")).pack()
    error = packed._replace(pickled=b"no pickle", parts=b"no pickle").unpack().error
    assert isinstance(error, QuotedEnvError)
    assert "builtins.ValueError: why" in str(error)


def test_a_pickle_that_makes_something_else_is_not_believed() -> None:
    """``__reduce__`` may say anything: an error of another class is not raised in its place."""

    class OddError(Exception):
        def __reduce__(self) -> Any:
            return KeyError, ("odd",)

    arrived = across(raised(OddError("even"))).error
    assert type(arrived) is OddError
    assert arrived.args == ("even",)


# Notes


def notes(error: BaseException) -> list[str]:
    """The notes of an error, on every Python."""
    return list(getattr(error, "__notes__", ()))


def test_notes_are_added_on_every_python() -> None:
    """Python 3.10 has no ``add_note``; tools that know ``__notes__`` find them all the same."""
    error = ValueError("why")
    add_note(error, "first")
    add_note(error, "second")
    assert notes(error) == ["first", "second"]


@pytest.mark.parametrize("name", ["plain", "two-arguments"])
def test_an_envs_own_notes_travel(name: str) -> None:
    """Notes that the env added arrive with the error, those of the vector env behind them."""
    error = ERRORS[name]()
    add_note(error, "the env's own")
    failure = across(raised(error))
    with pytest.raises(type(error)) as info:
        raise_failures([failure])
    assert notes(info.value) == ["the env's own", "raised by sub-env 3 in step"]


# Raising and telling


def failed(index: int, error: BaseException, call: str = "step") -> Failure:
    """A failure of sub-env ``index``."""
    return Failure(index, call, error, f"traceback of {index}")


def test_nothing_is_raised_where_nothing_failed() -> None:
    """No failures, no error, no message."""
    raise_failures([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_failures([], raised=True)


def test_the_lowest_index_is_raised_and_tells_of_the_others() -> None:
    """Whatever order they came in."""
    first = ValueError("first")
    with pytest.raises(ValueError, match="first") as info:
        raise_failures([failed(5, KeyError("k")), failed(1, first, "reset"), failed(3, UnprintableError("u"))])
    assert info.value is first
    assert notes(first) == [
        "raised by sub-env 1 in reset",
        "sub-env 3 raised too, in step: UnprintableError: <UnprintableError whose text cannot be had>",
        "sub-env 5 raised too, in step: KeyError: 'k'",
    ]


def test_an_interrupt_goes_before_errors() -> None:
    """Ctrl-C is raised even where a sub-env of a lower index has failed."""
    with pytest.raises(KeyboardInterrupt) as info:
        raise_failures([failed(0, ValueError("v")), failed(2, KeyboardInterrupt())])
    assert notes(info.value) == ["raised by sub-env 2 in step", "sub-env 0 raised too, in step: ValueError: v"]


def test_the_same_error_of_two_is_told_once() -> None:
    """Sub-envs in one process may raise one and the same object."""
    error = ValueError("shared")
    with pytest.raises(ValueError, match="shared"):
        raise_failures([failed(0, error), failed(1, error)])
    assert notes(error) == ["raised by sub-env 0 in step"]


@pytest.mark.parametrize("was_raised", [True, False])
def test_failures_are_logged_in_gymnasiums_messages(monkeypatch: pytest.MonkeyPatch, was_raised: bool) -> None:
    """The three messages of Gymnasium's AsyncVectorEnv, whatever characters they hold; the third only before raising."""
    messages: list[str] = []
    monkeypatch.setattr("gymnasium.logger.error", lambda text, *args: messages.append(text % args))
    log_failures([Failure(2, "step", ValueError(), "100 %s é\n"), failed(4, ValueError())], raised=was_raised)
    assert messages == [
        "Received the following error from Worker-2 - Shutting it down",
        "100 %s é\n",
        "Received the following error from Worker-4 - Shutting it down",
        "traceback of 4",
        *(["Raising the last exception back to the main process."] if was_raised else []),
    ]


def test_logging_raises_nothing_of_its_own() -> None:
    """Where warnings are errors, as here, the env's own error is not hidden by one of the logger's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_failures([failed(0, ValueError())], raised=True)
