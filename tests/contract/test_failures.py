"""Sub-envs that raise: what reaches the caller, what is lost and what is not, and how it goes on.

Types, arguments and the fate of the other sub-envs are rules of the conformance kit; here is what it cannot ask of every
engine: causes, notes, log messages, errors and values that resist pickling, and what becomes of the env that raised.
"""

from __future__ import annotations

import builtins
import re
import sys
import threading
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engines import ENGINES, FEW, ONE_EACH, START_METHODS, Engine, each
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from world import notes_of

from rayvec import QuotedEnvError
from rayvec.testing import (
    CountingEnv,
    PlainLoop,
    RaisingEnv,
    UnbuildableError,
    UnpicklableError,
    assert_same,
    read_log,
)

NUM_ENVS = 5
ACTIONS = np.zeros(NUM_ENVS, np.int64)


def env_fns(**troubled: Any) -> list[Any]:
    """Five counting envs, of which sub-env ``i`` is ``env{i}`` where given: a partial that lacks its index."""
    fns: list[Any] = [partial(CountingEnv, index=index, episode_length=50) for index in range(NUM_ENVS)]
    for name, env_fn in troubled.items():
        index = int(name.removeprefix("env"))
        fns[index] = partial(env_fn, index=index, episode_length=50)
    return fns


def mask(*indices: int) -> npt.NDArray[np.bool_]:
    """True for those sub-envs."""
    return np.isin(np.arange(NUM_ENVS), indices)


# What reaches the caller


@each(ENGINES)
def test_error_tells_where_it_was_raised(engine: Engine) -> None:
    """It comes with the worker's traceback as its cause, and with a note that names the sub-env and the call."""
    error = ZeroDivisionError("the pole broke", 3)
    with closing(engine.make(env_fns(env4=partial(RaisingEnv, error=error)))) as envs:
        envs.reset(seed=1)
        with pytest.raises(ZeroDivisionError) as caught:
            envs.step(ACTIONS)
        assert caught.value.args == ("the pole broke", 3)
        assert re.search(r"sub-env 4\b.*\bstep\b", notes_of(caught.value))
        told = str(caught.value.__cause__) if engine.in_processes else "".join(str(entry) for entry in caught.traceback)
        assert "_happen" in told
        assert "trouble.py" in told
        if engine.in_processes:
            assert "ZeroDivisionError: ('the pole broke', 3)" in told


@each(ONE_EACH)
@pytest.mark.parametrize(
    "text",
    ["100% of %s and %(name)d", "{0} {name!r}", "no \u20ac, \x1b[31mred\x1b[0m\nnext line", ""],
    ids=["percent", "braces", "controls", "empty"],
)
def test_gymnasium_messages_are_logged(engine: Engine, text: str) -> None:
    """Gymnasium's three messages come through its logger, in their order, whatever characters they hold."""
    with closing(engine.make(env_fns(env3=partial(RaisingEnv, error=ValueError(text))))) as envs:
        envs.reset()
        with warnings.catch_warnings(record=True) as logged:
            warnings.simplefilter("always")
            with pytest.raises(ValueError) as caught:
                envs.step(ACTIONS)
    assert caught.value.args == (text,)
    told = [str(record.message) for record in logged]
    assert len(told) == 3
    assert "Received the following error from Worker-3 - Shutting it down" in told[0]
    assert text in told[1]
    assert "Traceback (most recent call last)" in told[1]
    assert "Raising the last exception back to the main process." in told[2]


@each(FEW)
def test_own_error_comes_where_warnings_are_errors(engine: Engine) -> None:
    """Gymnasium's logger speaks through warnings; a filter that turns those into errors does not hide the env's own."""
    with closing(engine.make(env_fns(env1=partial(RaisingEnv, error=ValueError("own"))))) as envs:
        envs.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="own"):
                envs.step(ACTIONS)
        with pytest.raises(ResetNeeded):
            envs.step(ACTIONS)
        envs.reset()
        assert envs.call("where")[1][2:] == (0, 0)


@each(ENGINES)
def test_lowest_is_raised_and_others_are_noted(engine: Engine) -> None:
    """Of several errors the lowest sub-env's is raised; the notes name each other sub-env, its error's type and text."""
    troubled = {f"env{index}": partial(RaisingEnv, error=LookupError(f"number {index}")) for index in (1, 2, 4)}
    with closing(engine.make(env_fns(**troubled))) as envs:
        envs.reset()
        with pytest.raises(LookupError, match="number 1") as caught:
            envs.step(ACTIONS)
        lines = notes_of(caught.value).splitlines()
        for index in (2, 4):
            assert [line for line in lines if f"sub-env {index}" in line and f"LookupError: number {index}" in line]
        with pytest.raises(ResetNeeded, match=r"1, 2, 4"):
            envs.step(ACTIONS)


@each(FEW)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_error_in_an_autoreset(engine: Engine, mode: AutoresetMode) -> None:
    """A reset that fails within a step fails that step."""
    fns = env_fns()
    fns[2] = partial(RaisingEnv, on="reset", at=2, error=OSError(5, "no reset"), index=2, episode_length=2)
    with closing(engine.make(fns, autoreset_mode=mode)) as envs:
        envs.reset(seed=3)
        num_good = 2 if mode is AutoresetMode.NEXT_STEP else 1
        for _ in range(num_good):
            envs.step(ACTIONS)
        with pytest.raises(OSError, match="no reset") as caught:
            envs.step(ACTIONS)
        assert caught.value.errno == 5
        assert re.search(r"sub-env 2\b.*\bstep\b", notes_of(caught.value))
        assert [where[3] for where in envs.call("where") if where[0] != 2] == [num_good + 1] * 4
        with pytest.raises(ResetNeeded, match=r"\[2\]"):
            envs.step(ACTIONS)
        envs.reset(options={"reset_mask": mask(2)})
        envs.step(ACTIONS)


# Errors that resist pickling


class KeywordError(Exception):
    """Its ``__init__`` takes a keyword that it does not keep in ``args``."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class StatefulError(Exception):
    """Keeps more than its ``args``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.history = [text]


class SulkingError(Exception):
    """Refuses to be pickled and to say what it is."""

    def __reduce__(self) -> Any:
        raise TypeError("I will not be pickled")

    def __str__(self) -> str:
        raise RuntimeError("I will not say")


def make_local_error() -> Exception:
    """An error whose class no import reaches."""

    class LocalError(Exception):
        pass

    return LocalError("local", 7)


def make_error_with_a_lock() -> Exception:
    """An ordinary error with an argument that cannot be pickled."""
    return ValueError("holds a lock", threading.Lock())


def raise_step_error(error: Any) -> dict[str, Any]:
    """What is wrong: sub-env 2 raises ``error`` at its first step."""
    return {"env2": partial(RaisingEnv, error=error)}


@each([*FEW, *START_METHODS])
def test_error_with_an_init_of_its_own(engine: Engine) -> None:
    """One that can be pickled but not rebuilt by calling its class keeps type, arguments and attributes all the same."""
    with closing(engine.make(env_fns(**raise_step_error(partial(KeywordError, code=7))))) as envs:
        envs.reset()
        with pytest.raises(KeywordError) as caught:
            envs.step(ACTIONS)
        assert caught.value.args == ("code 7",)
        assert caught.value.code == 7


@each(FEW)
def test_error_whose_init_takes_others_than_its_args(engine: Engine) -> None:
    """The same with positional arguments."""
    with closing(engine.make(env_fns(**raise_step_error(UnbuildableError)))) as envs:
        envs.reset()
        with pytest.raises(UnbuildableError, match=r"cannot be rebuilt") as caught:
            envs.step(ACTIONS)
        assert caught.value.args == UnbuildableError().args


@each(FEW)
def test_error_with_a_state(engine: Engine) -> None:
    """Attributes beside the arguments arrive."""
    with closing(engine.make(env_fns(**raise_step_error(partial(StatefulError, "kept"))))) as envs:
        envs.reset()
        with pytest.raises(StatefulError, match="kept") as caught:
            envs.step(ACTIONS)
        assert caught.value.history == ["kept"]


@each([*FEW, *START_METHODS])
def test_error_of_a_local_class(engine: Engine) -> None:
    """One whose class was made inside a function of the worker is quoted: its name and text arrive."""
    with closing(engine.make(env_fns(**raise_step_error(make_local_error)))) as envs:
        envs.reset()
        with pytest.raises(Exception, match="local") as caught:
            envs.step(ACTIONS)
        assert "LocalError" in f"{caught.value!r} {caught.value}"
        assert re.search(r"sub-env 2\b.*\bstep\b", notes_of(caught.value))
        envs.reset()


@each([*FEW, *START_METHODS])
@pytest.mark.parametrize(
    ("error", "type_name", "text"),
    [
        (UnpicklableError, "UnpicklableError", "cannot be pickled"),
        (SulkingError, "SulkingError", ""),
        (make_error_with_a_lock, "ValueError", "holds a lock"),
    ],
    ids=["holds-a-lock", "refuses", "argument"],
)
def test_error_that_cannot_be_pickled(engine: Engine, error: Any, type_name: str, text: str) -> None:
    """It arrives as itself, or as an error that quotes its type and text; the others complete the step."""
    with closing(engine.make(env_fns(**raise_step_error(error)))) as envs:
        envs.reset()
        with pytest.raises((UnpicklableError, SulkingError, ValueError, QuotedEnvError)) as caught:
            envs.step(ACTIONS)
        if type(caught.value).__name__ != type_name:
            assert isinstance(caught.value, QuotedEnvError)
            assert type_name in str(caught.value)
            assert text in str(caught.value)
        assert re.search(r"sub-env 2\b.*\bstep\b", notes_of(caught.value))
        assert [where[3] for where in envs.call("where") if where[0] != 2] == [1] * 4
        envs.reset()
        assert envs.call("where")[2] == (2, -1, 0, 0)


@each(ENGINES)
def test_exit_of_a_sub_env_is_an_error_like_any_other(engine: Engine) -> None:
    """``sys.exit()`` in an env raises SystemExit in the caller; all other sub-envs complete the step."""
    with closing(engine.make(env_fns(env1=partial(RaisingEnv, at=2, error=SystemExit(3))))) as envs:
        envs.reset()
        envs.step(ACTIONS)
        with pytest.raises(SystemExit) as caught:
            envs.step(ACTIONS)
        assert caught.value.code == 3
        assert [where[3] for where in envs.call("where") if where[0] != 1] == [2] * 4
        with pytest.raises(ResetNeeded, match=r"\[1\]"):
            envs.step(ACTIONS)
        envs.reset()
        envs.step(ACTIONS)


# Values that resist pickling


class LockEnv(CountingEnv):
    """Gives out a lock, which cannot be pickled, at its second reset or its second step, and when asked."""

    def __init__(self, where: str, **kwargs: Any) -> None:
        self._where = where
        self._counts = {"step": 0, "reset": 0}
        super().__init__(**kwargs)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation, {**info, **self._lock("reset")}

    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, **self._lock("step")}

    def lock(self) -> Any:
        return threading.Lock() if self._where == "call" else None

    def _lock(self, call: str) -> dict[str, Any]:
        self._counts[call] += 1
        return {"lock": threading.Lock()} if call == self._where and self._counts[call] == 2 else {}


@each(ONE_EACH, needs="in_processes")
@pytest.mark.parametrize("where", ["reset", "step"])
def test_info_that_cannot_be_pickled(engine: Engine, where: str) -> None:
    """It is an error of its sub-env, which says what it was; the others complete the call."""
    with closing(engine.make(env_fns(env4=partial(LockEnv, where)))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        kwargs: dict[str, Any] = {"actions": ACTIONS} if where == "step" else {"seed": 1}
        with pytest.raises(TypeError, match="lock") as caught:
            getattr(envs, where)(**kwargs)
        assert "sub-env 4" in f"{caught.value} {notes_of(caught.value)}"
        assert [place[3] for place in envs.call("where")[:4]] == [2 if where == "step" else 0] * 4
        with pytest.raises(ResetNeeded, match=r"\[4\]"):
            envs.step(ACTIONS)
        envs.reset(options={"reset_mask": mask(4)})
        envs.step(ACTIONS)


def test_info_that_cannot_be_pickled_stays_at_home() -> None:
    """Where nothing is pickled there is nothing wrong with it."""
    with closing(ENGINES["sync"].make(env_fns(env4=partial(LockEnv, "step")))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        *_, infos = envs.step(ACTIONS)
        assert hasattr(infos["lock"][4], "acquire")


@each(ONE_EACH, needs="in_processes")
def test_result_that_cannot_be_pickled(engine: Engine) -> None:
    """``call`` raises, names the sub-env, and everything is as usable as before."""
    fns = [partial(LockEnv, "call" if index == 4 else "", index=index) for index in range(NUM_ENVS)]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        with pytest.raises(TypeError, match="lock") as caught:
            envs.call("lock")
        assert "sub-env 4" in f"{caught.value} {notes_of(caught.value)}"
        envs.step(ACTIONS)
        assert [place[3] for place in envs.call("where")] == [1] * NUM_ENVS


@each(ONE_EACH, needs="in_processes")
def test_argument_that_cannot_be_pickled(engine: Engine) -> None:
    """Arguments, values and options that cannot be sent raise before anything is sent."""
    with closing(engine.make(env_fns())) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        before = envs.call("where")
        lock = threading.Lock()
        with pytest.raises(TypeError, match="pickle"):
            envs.call("add", lock)
        with pytest.raises(TypeError, match="pickle"):
            envs.set_attr("level", [1, 2, 3, 4, lock])
        with pytest.raises(TypeError, match="pickle"):
            envs.reset(options={"lock": lock})
        assert envs.call("where") == before
        if not engine.in_caller:
            assert envs.get_attr("level") == (0,) * NUM_ENVS
        envs.step(ACTIONS)
        assert [place[3] for place in envs.call("where")] == [2] * NUM_ENVS


# Rejected calls


@each(ENGINES)
def test_rejected_call_changes_nothing(engine: Engine) -> None:
    """Seeds, masks, actions and values that are wrong for one sub-env are refused before any sub-env hears of them."""
    wrong_resets: list[dict[str, Any]] = [
        {"seed": [1, 2, 3, 4, -5]},
        {"seed": -1},
        {"seed": [1, 2, 3, 4, "five"]},
        {"seed": [1, 2, 3, 4, 0.5]},
        {"seed": 0.5},
        {"seed": [1, 2, 3, 4]},
        {"seed": "seed"},
        {"options": {"reset_mask": mask()}},
        {"options": {"reset_mask": mask(1).tolist()}},
        {"options": {"reset_mask": mask(1)[:4]}},
        {"options": {"reset_mask": mask(1)[None]}},
        {"options": {"reset_mask": None}},
        {"seed": [1, 2, 3, 4], "options": {"reset_mask": mask(0)}},
    ]
    wrong_actions: list[Any] = [ACTIONS[:4], np.zeros(6, np.int64), np.zeros((1, 5), np.int64), 0, None, [], [[0] * 5]]
    with closing(engine.make(env_fns())) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        before = envs.call("where")
        for wrong in wrong_resets:
            with pytest.raises((ValueError, TypeError)):
                envs.reset(**wrong)
            with pytest.raises((ValueError, TypeError)):
                envs.reset_async(**wrong)
        for actions in wrong_actions:
            with pytest.raises((ValueError, TypeError)):
                envs.step(actions)
        with pytest.raises(ValueError, match="values"):
            envs.set_attr("level", [1, 2, 3, 4])
        for name in ("reset", "step", "close"):
            with pytest.raises(ValueError, match=name):
                envs.call(name)
        assert envs.call("where") == before
        assert envs.get_attr("level") == (0,) * NUM_ENVS
        envs.step(ACTIONS)
        assert [place[3] for place in envs.call("where")] == [2] * NUM_ENVS


# What becomes of the env that raised


@each(ONE_EACH)
def test_env_that_raised_is_closed_and_built_anew(engine: Engine, tmp_path: Path) -> None:
    """At the next reset that names it, once, in the same worker; the others live on."""
    log = tmp_path / "log"
    fns = [partial(env_fn, log=log) for env_fn in env_fns(env3=partial(RaisingEnv, at=2))]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        built = read_log(log)
        assert [line.event for line in built] == ["built"] * NUM_ENVS
        with pytest.raises(RuntimeError):
            envs.step(ACTIONS)
        envs.reset(options={"reset_mask": mask(0, 1)})
        with pytest.raises(ResetNeeded, match=r"\[3\]"):
            envs.step(ACTIONS)
        assert read_log(log) == built
        _, infos = envs.reset(seed=[None, None, None, 9, None], options={"reset_mask": mask(3)})
        assert infos == {}
        pid = next(line.pid for line in built if line.env_index == 3)
        assert read_log(log)[NUM_ENVS:] == [("closed", 3, pid), ("built", 3, pid)]
        assert envs.call("where") == ((0, 1, 1, 0), (1, 2, 1, 0), (2, 3, 0, 2), (3, 9, 0, 0), (4, 5, 0, 2))
        envs.reset()
        assert len(read_log(log)) == NUM_ENVS + 2
    closed = [line.env_index for line in read_log(log)[NUM_ENVS + 2 :] if line.event == "closed"]
    assert sorted(closed) == list(range(NUM_ENVS))


class FlagEnv(CountingEnv):
    """Cannot be built while a file exists, and raises at each step and close."""

    def __init__(self, flag: Path, **kwargs: Any) -> None:
        if flag.exists():
            raise FileExistsError("flagged")
        super().__init__(**kwargs)

    def step(self, action: np.int64) -> Any:
        raise RuntimeError("never steps")

    def close(self) -> None:
        raise RuntimeError("never closes in peace")


@each(ONE_EACH)
def test_env_that_cannot_be_built_anew(engine: Engine, tmp_path: Path) -> None:
    """The reset raises the env_fn's own error and resets the others; a later reset tries again."""
    flag = tmp_path / "flag"
    envs = engine.make(env_fns(env3=partial(FlagEnv, flag)))
    try:
        envs.reset(seed=1)
        with pytest.raises(RuntimeError, match="never steps"):
            envs.step(ACTIONS)
        flag.touch()
        for _ in range(2):
            with pytest.raises(FileExistsError, match="flagged") as caught:
                envs.reset(seed=2)
            assert re.search(r"sub-env 3\b.*\breset\b", notes_of(caught.value))
            with pytest.raises(ResetNeeded, match=r"\[3\]"):
                envs.step(ACTIONS)
            # There is no env to call, and the others still answer.
            with pytest.raises(RuntimeError, match="built") as caught_call:
                envs.call("where")
            assert "sub-env 3" in notes_of(caught_call.value)
        flag.unlink()
        envs.reset(seed=3)
        assert envs.call("where") == tuple((index, 3 + index, 0 if index == 3 else 3, 0) for index in range(5))
    finally:
        with pytest.raises(RuntimeError, match="never closes") as caught_close:
            envs.close()
    assert re.search(r"sub-env 3\b.*\bclose\b", notes_of(caught_close.value))


@each(ENGINES)
def test_error_in_close(engine: Engine, tmp_path: Path) -> None:
    """``close()`` closes every sub-env, frees everything, and then raises what one of them raised."""
    log = tmp_path / "log"
    fns = [partial(env_fn, log=log) for env_fn in env_fns(env1=partial(RaisingEnv, on="close", error=OSError("stuck door")))]
    envs = engine.make(fns)
    envs.reset()
    with pytest.raises(OSError, match="stuck door") as caught:
        envs.close()
    assert re.search(r"sub-env 1\b.*\bclose\b", notes_of(caught.value))
    assert envs.closed
    assert sorted(line.env_index for line in read_log(log) if line.event == "closed") == list(range(NUM_ENVS))
    envs.close()


@each(ONE_EACH)
def test_everything_goes_on_as_in_a_plain_loop(engine: Engine) -> None:
    """After an error and a reset every datum is what a plain loop gives, for long."""
    fns: list[Any] = [
        partial(CountingEnv, index=0, episode_length=3, infos="rich"),
        partial(RaisingEnv, at=4, index=1, episode_length=7, infos="rich"),
        partial(CountingEnv, index=2, episode_length=4, infos="rich"),
        partial(RaisingEnv, at=6, index=3, episode_length=5, infos="rich", error=KeyError),
        partial(CountingEnv, index=4, episode_length=5, infos="rich"),
    ]
    loop = PlainLoop(fns, AutoresetMode.NEXT_STEP)
    num_errors = 0
    with closing(loop), closing(engine.make(fns)) as envs:
        assert_same(loop.reset(seed=1), envs.reset(seed=1), "reset")
        for step in range(20):
            try:
                due = loop.step(ACTIONS)
            except Exception as expected:
                num_errors += 1
                with pytest.raises(type(expected)):
                    envs.step(ACTIONS)
                options = {"reset_mask": mask(*([1, 3] if step % 2 else [0, 1, 3]))}
                assert_same(loop.reset(options=dict(options)), envs.reset(options=dict(options)), "reset")
            else:
                assert_same(due, envs.step(ACTIONS), f"step {step}")
    assert num_errors > 3


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has neither notes nor groups")
@each(FEW)
def test_notes_and_group_of_the_env_arrive(engine: Engine) -> None:
    """An exception group keeps its parts, and notes that the env added stay."""
    with closing(engine.make(env_fns(**raise_step_error(make_group)))) as envs:
        envs.reset()
        with pytest.raises(Exception, match="several") as caught:
            envs.step(ACTIONS)
        assert type(caught.value).__name__ == "ExceptionGroup"
        assert [type(part) for part in caught.value.exceptions] == [ValueError, TypeError]  # type: ignore[attr-defined]
        assert "added by the env" in notes_of(caught.value)


def make_group() -> Exception:
    """An exception group with a note."""
    group: Exception = builtins.ExceptionGroup("several", [ValueError(1), TypeError("two")])  # type: ignore[attr-defined]
    group.add_note("added by the env")  # type: ignore[attr-defined]
    return group
