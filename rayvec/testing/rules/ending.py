"""Closing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.duel import MakeVectorEnv, close_quietly, duel
from rayvec.testing.envs import CountingEnv, read_log
from rayvec.testing.rules.common import assert_all_closed, counting
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_close(make: MakeVectorEnv) -> None:
    """Each env_fn is called once, where its env lives; ``close()`` closes every sub-env once and may be called again."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        env_fns = [partial(CountingEnv, index=index, log=log) for index in range(3)]
        envs = make(env_fns, autoreset_mode=AutoresetMode.NEXT_STEP)
        try:
            envs.reset(seed=0)
            built = sorted(line.env_index for line in read_log(log) if line.event == "built")
            assert_same([0, 1, 2], built, "indices of the sub-envs built")
            envs.close()
            assert_same(True, envs.closed, "closed")
            envs.close()
        finally:
            close_quietly(envs)
        assert_all_closed(log)


@rule
def check_use_after_close(make: MakeVectorEnv) -> None:
    """Every call after ``close()`` raises ClosedEnvironmentError."""
    with duel(make, counting(3)) as both:
        both.reset(seed=0)
        actions = both.actions()
        both.ask("close")
        calls: Mapping[str, tuple[Any, ...]] = {
            "reset": (),
            "step": (actions,),
            "call": ("where",),
            "get_attr": ("level",),
            "set_attr": ("level", 1),
            "render": (),
        }
        for name, args in calls.items():
            both.ask_to_raise(ClosedEnvironmentError, name, *args)


@rule
def check_close_while_pending(make: MakeVectorEnv) -> None:
    """``close()`` works while a call is pending."""
    with duel(make, counting(3)) as both:
        both.reset(seed=0)
        both.ask("step_async", both.actions())
        both.ask("close")


@rule
def check_context_manager(make: MakeVectorEnv) -> None:
    """It is a context manager that gives itself and closes at the end."""
    envs = make(counting(2), autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        with envs as entered:
            if entered is not envs:
                raise ConformanceError(f"__enter__ gave {entered!r}, expected the vector env itself")
            envs.reset(seed=0)
        assert_same(True, envs.closed, "closed")
    except (AttributeError, TypeError) as error:
        raise ConformanceError(f"got {error!r}, expected a context manager") from error
    finally:
        close_quietly(envs)
