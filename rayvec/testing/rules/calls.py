"""Calls of methods and attributes, and calls in two halves."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError

from rayvec.testing.comparison import assert_same
from rayvec.testing.duel import MakeVectorEnv, duel
from rayvec.testing.envs import EchoEnv
from rayvec.testing.rules.common import counting
from rayvec.testing.table import rule
from rayvec.testing.trouble import RaisingEnv, SlowEnv, TroubleCall

__all__: list[str] = []


@rule
def check_call(make: MakeVectorEnv) -> None:
    """``call`` calls a method of every sub-env, or reads an attribute, and gives a tuple; arguments are the callee's own."""
    with duel(make, counting(3)) as both:
        both.reset(seed=2)
        both.step()
        both.call("call", "where")
        both.call("call", "add", 3, times=2)
        both.call("call", "index")
        items = [7]
        assert_same(([7, 0], [7, 1], [7, 2]), both.ask("call", "append", items), "call('append', [7])")
        assert_same([7], items, "the caller's argument after call")


@rule
def check_attributes(make: MakeVectorEnv) -> None:
    """``set_attr`` takes a value for all, or a list or tuple of one for each; ``get_attr`` gives a tuple."""
    with duel(make, counting(3)) as both:
        good: list[Any] = [5, [1, 2, 3], ("a", None, 2.5), "text", [[1], [2], [3]], {"key": 1}, np.arange(3)]
        wrong: list[Any] = [[1, 2], (1, 2, 3, 4), []]
        for values in good:
            both.ask("set_attr", "level", values)
            both.loop.set_attr("level", values)
            both.call("get_attr", "level")
        for values in wrong:
            both.ask_to_raise(Exception, "set_attr", "level", values)
            both.call("get_attr", "level")


@rule
def check_failing_call(make: MakeVectorEnv) -> None:
    """A ``call``, ``get_attr`` or ``set_attr`` that fails raises the sub-env's error and leaves everything usable."""
    error = KeyError("sulking", 3)
    cases: list[tuple[TroubleCall, str, tuple[Any, ...]]] = [
        ("call", "call", ("answer",)),
        ("get", "get_attr", ("mood",)),
        ("set", "set_attr", ("mood", 1)),
    ]
    for on, name, args in cases:
        quiet = [partial(RaisingEnv, at=0, index=index) for index in (0, 2)]
        with duel(make, [quiet[0], partial(RaisingEnv, on=on, error=error, index=1), quiet[1]]) as both:
            both.reset(seed=0)
            for _ in range(2):
                try:
                    getattr(both.loop, name)(*args)
                except KeyError as expected:
                    both.compare_error(both.ask_to_raise(Exception, name, *args), expected)
                else:
                    both.ask(name, *args)
                both.step()
            both.call("call", "answer")
            both.call("get_attr", "mood")
            both.ask_to_raise(AttributeError, "call", "no_such_method")
            both.step()


@rule
def check_async_halves(make: MakeVectorEnv) -> None:
    """``reset``, ``step`` and ``call`` come in two halves as well: ``step_async`` and ``step_wait``, and so on."""
    with duel(make, [partial(EchoEnv, episode_length=length) for length in (2, 3, 9)]) as both:
        both.ask("reset_async", seed=5)
        both.compare_reset(both.ask("reset_wait"), seed=5)
        for _ in range(5):
            actions = both.actions()
            given = copy.deepcopy(actions)
            both.ask("step_async", given)
            given[...] = 0
            both.compare_step(both.ask("step_wait"), actions)
        both.ask("call_async", "np_random_seed")
        assert_same(both.loop.call("np_random_seed"), both.ask("call_wait"), "call('np_random_seed')")


@rule
def check_pending_call(make: MakeVectorEnv) -> None:
    """While a call is pending any other raises AlreadyPendingCallError; without one, waiting raises NoAsyncCallError."""
    with duel(make, counting(3)) as both:
        for name in ("reset_wait", "step_wait", "call_wait"):
            both.ask_to_raise(NoAsyncCallError, name)
        both.reset(seed=1)
        actions = both.actions()
        both.ask("step_async", actions)
        others: Mapping[str, tuple[Any, ...]] = {
            "step_async": (actions,),
            "reset_async": (),
            "call_async": ("where",),
            "set_attr": ("level", 1),
        }
        for name, args in others.items():
            both.ask_to_raise(AlreadyPendingCallError, name, *args)
        both.ask_to_raise(NoAsyncCallError, "reset_wait")
        both.compare_step(both.ask("step_wait"), actions)
        both.call("get_attr", "level")
        both.step()


@rule
def check_timed_out_wait(make: MakeVectorEnv) -> None:
    """A wait that times out leaves the call pending: waiting again gives that very call's result, which no other takes."""
    with duel(make, [partial(SlowEnv, 0.25, index=index, infos="numbers") for index in range(2)]) as both:
        both.reset(seed=1)
        for _ in range(2):
            actions = both.actions()
            both.ask("step_async", actions)
            try:
                result = both.envs.step_wait(timeout=0.01)
            except multiprocessing.TimeoutError:
                both.ask_to_raise(AlreadyPendingCallError, "step_async", actions)
                result = both.ask("step_wait")
            both.compare_step(result, actions)
        both.call("call", "where")
