"""Sub-envs that raise."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import ConformanceError
from rayvec.testing.duel import Duel, MakeVectorEnv, close_quietly, duel
from rayvec.testing.envs import CountingEnv
from rayvec.testing.oracle import EnvFn
from rayvec.testing.rules.common import MODES, assert_all_closed, assert_names, counting, mask_of, text_of
from rayvec.testing.table import rule
from rayvec.testing.trouble import RaisingEnv, TroubleCall, UnbuildableError, UnpicklableError

__all__: list[str] = []


@rule
def check_error_of_sub_env(make: MakeVectorEnv) -> None:
    """An exception in ``step`` or ``reset`` arrives with its own type and arguments and names the sub-env and the call."""
    error = ZeroDivisionError("boom", 77)
    calls: list[TroubleCall] = ["step", "reset"]
    for on in calls:
        with duel(make, [*counting(8), partial(RaisingEnv, on=on, at=2, error=error, index=8)]) as both:
            both.reset(seed=0)
            both.step()
            came = both.ask_to_raise(Exception, on, *([both.actions()] if on == "step" else []))
            both.compare_error(came, error)
            assert_names(came, 8)
            if on not in text_of(came):
                raise ConformanceError(f"got an error whose text and notes do not name the call {on!r}: {text_of(came)!r}")


@rule
def check_error_spares_others(make: MakeVectorEnv) -> None:
    """When one sub-env raises, all others complete the call; ``step`` raises ResetNeeded until ``reset`` has built it anew."""
    calls: list[TroubleCall] = ["step", "reset"]
    for mode in MODES:
        for on in calls:
            env_fns = counting(3, infos="numbers", lengths=(30,))
            env_fns[1] = partial(RaisingEnv, on=on, at=2, error=ValueError("boom"), index=1, episode_length=30)
            with duel(make, env_fns, mode) as both:
                both.reset(seed=0)
                both.step()
                _fail_both(both, on)
                for _ in range(2):
                    assert_names(both.ask_to_raise(ResetNeeded, "step", both.actions()), 1)
                both.reset(options={"reset_mask": mask_of(0, 1, 0)})
                both.call("call", "where")
                both.step()
                if on == "step":
                    _fail_both(both, on)
                    both.reset(seed=4)
                    both.call("call", "where")
                    both.step()


def _fail_both(both: Duel, on: str) -> None:
    """Makes the call that raises in the loop and in the vector env."""
    both.num_calls += 1
    actions = both.actions()
    kwargs = {"actions": actions} if on == "step" else {"seed": 3}
    try:
        getattr(both.loop, on)(**kwargs)
    except Exception as expected:
        both.compare_error(both.ask_to_raise(Exception, on, **kwargs), expected)


@rule
def check_several_errors(make: MakeVectorEnv) -> None:
    """If several sub-envs raise in one call, the lowest one's error is raised, and a note tells of the others."""
    env_fns = counting(4)
    env_fns[1] = partial(RaisingEnv, at=2, error=ValueError("the lower one"), index=1)
    env_fns[3] = partial(RaisingEnv, at=2, error=KeyError("the higher one"), index=3)
    with duel(make, env_fns) as both:
        both.reset(seed=0)
        both.step()
        error = both.ask_to_raise(Exception, "step", both.actions())
        both.compare_error(error, ValueError("the lower one"))
        assert_names(error, 1, 3)


@rule
def check_odd_errors(make: MakeVectorEnv) -> None:
    """An exception that cannot be pickled or rebuilt still arrives, as itself or as an error that quotes it."""
    for error_type in (UnpicklableError, UnbuildableError):
        with duel(make, [*counting(2), partial(RaisingEnv, at=1, error=error_type, index=2)]) as both:
            both.reset(seed=0)
            error = both.ask_to_raise(Exception, "step", both.actions())
            if str(error_type()) not in str(error):
                raise ConformanceError(f"got {error!r}, expected an error that quotes {str(error_type())!r}")


@rule
def check_failing_constructor(make: MakeVectorEnv) -> None:
    """If an env_fn raises, so does the constructor, with that error, and the sub-envs that were built are closed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        fine: list[EnvFn] = [partial(CountingEnv, index=index, log=log) for index in range(2)]
        error = LookupError("no such simulator", 3)
        try:
            envs = make([*fine, partial(RaisingEnv, on="init", error=error, index=2)], autoreset_mode=AutoresetMode.NEXT_STEP)
        except Exception as came:
            if type(came) is not LookupError or came.args != error.args:
                raise ConformanceError(f"got {came!r}, expected the env_fn's own {error!r}") from came
        else:
            close_quietly(envs)
            raise ConformanceError("the vector env was made, expected its constructor to raise what an env_fn raised")
        assert_all_closed(log)
