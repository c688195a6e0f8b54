"""Waits that run out of time: the call stays pending, and its result is never taken for another's."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, FEW, Engine, each
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError

from rayvec import CallTimeoutError
from rayvec.testing import CountingEnv, GateEnv, PlainLoop, RaisingEnv, assert_same, wait_for_path

NUM_ENVS = 4
ACTIONS = np.zeros(NUM_ENVS, np.int64)
LAST = NUM_ENVS - 1
"""The sub-env that is held up: in no engine that can time out does it live in the caller."""


def gated(gate: Path, on: Any = "step", at: int | None = 1) -> list[Any]:
    """Env_fns of which the last one waits for ``gate`` at that call."""
    fns: list[Any] = [partial(CountingEnv, index=index, infos="rich", episode_length=3) for index in range(LAST)]
    return [*fns, partial(GateEnv, gate, on=on, at=at, index=LAST, infos="rich", episode_length=3)]


def make_loop(num_steps: int = 0, seed: int = 1) -> PlainLoop:
    """What is due."""
    loop = PlainLoop([partial(CountingEnv, index=index, infos="rich", episode_length=3) for index in range(NUM_ENVS)])
    loop.reset(seed=seed)
    for _ in range(num_steps):
        loop.step(ACTIONS)
    return loop


def open_gate(gate: Path) -> None:
    """Lets the env go on."""
    gate.touch()


def assert_refuses_all_but(envs: Any, pending: str) -> None:
    """Checks that while ``pending`` is in flight no other call is taken."""
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("reset", ()),
        ("reset_async", ()),
        ("step", (ACTIONS,)),
        ("step_async", (ACTIONS,)),
        ("call", ("where",)),
        ("call_async", ("where",)),
        ("get_attr", ("level",)),
        ("set_attr", ("level", 1)),
        ("render", ()),
    ]
    for name, args in calls:
        with pytest.raises(AlreadyPendingCallError):
            getattr(envs, name)(*args)
    for name in {"reset", "step", "call"} - {pending}:
        with pytest.raises(NoAsyncCallError):
            getattr(envs, f"{name}_wait")()


@each(ENGINES, needs="can_time_out")
def test_step(engine: Engine, tmp_path: Path) -> None:
    """A timed-out step is still pending; waiting again gives its result; so it is the next time."""
    gate = tmp_path / "gate"
    with closing(make_loop()) as loop, closing(engine.make(gated(gate, at=None))) as envs:
        envs.reset(seed=1)
        for _ in range(2):
            envs.step_async(ACTIONS)
            for timeout in (0.02, 0, 0.01):
                with pytest.raises(CallTimeoutError, match="step") as caught:
                    envs.step_wait(timeout=timeout)
                assert isinstance(caught.value, multiprocessing.TimeoutError)
                assert_refuses_all_but(envs, "step")
            open_gate(gate)
            assert_same(loop.step(ACTIONS), envs.step_wait(), "step")
            gate.unlink()
        open_gate(gate)
        for _ in range(6):
            assert_same(loop.step(ACTIONS), envs.step(ACTIONS), "step")


@each(ENGINES, needs="can_time_out")
@pytest.mark.parametrize("masked", [False, True])
def test_the_first_reset_is_polled_for(engine: Engine, masked: bool) -> None:
    """However short the waits are, it comes to its end: workers are still given their memory then."""
    fns = [partial(CountingEnv, index=index, infos="rich", episode_length=3) for index in range(NUM_ENVS)]
    options = {"reset_mask": np.array([True, False, False, True])} if masked else None
    with closing(PlainLoop(fns)) as loop, closing(engine.make(fns)) as envs:
        envs.reset_async(seed=1, options=options)
        end = time.monotonic() + 30
        while True:
            try:
                result = envs.reset_wait(timeout=0)
                break
            except CallTimeoutError:
                assert time.monotonic() < end
        assert_same(loop.reset(seed=1, options=options), result, "reset")


@each(FEW, needs="can_time_out")
def test_reset(engine: Engine, tmp_path: Path) -> None:
    """So does a reset; a masked one stays masked."""
    gate = tmp_path / "gate"
    with closing(make_loop(2)) as loop, closing(engine.make(gated(gate, "reset", at=2))) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        envs.step(ACTIONS)
        options: dict[str, Any] = {"reset_mask": np.array([True, False, False, True])}
        envs.reset_async(seed=9, options=options)
        with pytest.raises(CallTimeoutError, match="reset"):
            envs.reset_wait(timeout=0.02)
        assert_refuses_all_but(envs, "reset")
        open_gate(gate)
        assert_same(loop.reset(seed=9, options=options), envs.reset_wait(timeout=20), "reset")
        for _ in range(3):
            assert_same(loop.step(ACTIONS), envs.step(ACTIONS), "step")


@each(FEW, needs="can_time_out")
def test_call(engine: Engine, tmp_path: Path) -> None:
    """So does a call."""
    gate = tmp_path / "gate"
    fns: list[Any] = [partial(RaisingEnv, at=0, index=index) for index in range(LAST)]
    with closing(make_loop()) as loop, closing(engine.make([*fns, partial(GateEnv, gate, on="call", index=LAST)])) as envs:
        envs.reset(seed=1)
        envs.call_async("answer")
        with pytest.raises(CallTimeoutError, match="call"):
            envs.call_wait(timeout=0.02)
        assert_refuses_all_but(envs, "call")
        open_gate(gate)
        assert envs.call_wait(timeout=20) == (42, 43, 44, 45)
        assert loop.call("where") == envs.call("where")


@each(FEW, needs="can_time_out")
def test_bounds_of_the_constructor_hold_for_whole_calls(engine: Engine, tmp_path: Path) -> None:
    """``step_timeout``, ``reset_timeout`` and ``call_timeout`` bound ``step()``, ``reset()``, ``call()`` and attributes."""
    gate = tmp_path / "gate"
    bounds = {"step_timeout": 0.05, "reset_timeout": 0.05, "call_timeout": 0.05}
    ons: list[Any] = ["step", "reset", "call", "get", "set"]
    for on in ons:
        fns: list[Any] = [partial(RaisingEnv, at=0, index=index) for index in range(LAST)]
        fns.append(partial(GateEnv, gate, on=on, at=2 if on == "reset" else 1, index=LAST))
        calls = {
            "step": ("step", (ACTIONS,)),
            "reset": ("reset", ()),
            "call": ("call", ("answer",)),
            "get": ("get_attr", ("mood",)),
            "set": ("set_attr", ("mood", [1, 2, 3, 4])),
        }
        name, args = calls[on]
        with closing(engine.make(fns, **bounds)) as envs:
            envs.reset_async(seed=1)
            envs.reset_wait(timeout=20)
            begin = time.monotonic()
            with pytest.raises(CallTimeoutError, match=r"0\.05 s"):
                getattr(envs, name)(*args)
            assert time.monotonic() - begin < 1.0
            pending = "call" if on in ("get", "set") else on
            assert_refuses_all_but(envs, pending)
            open_gate(gate)
            result = getattr(envs, f"{pending}_wait")(timeout=20)
            if on == "get":
                assert result == (0, 0, 0, 0)
            envs.call_async("where")
            assert [place[0] for place in envs.call_wait(timeout=20)] == [0, 1, 2, 3]
            envs.call_async("mood")
            assert envs.call_wait(timeout=20) == ((1, 2, 3, 4) if on == "set" else (0, 0, 0, 0))
        gate.unlink()


@each(ENGINES, needs="can_time_out")
def test_error_names_who_is_waited_for(engine: Engine, tmp_path: Path) -> None:
    """It tells the call, the bound, and the sub-envs of the workers that have not answered; no others."""
    gate = tmp_path / "gate"
    with closing(engine.make(gated(gate))) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        text = ""
        while text.count("sub-env") != 1:
            # The others may take their time.
            with pytest.raises(CallTimeoutError) as caught:
                envs.step_wait(timeout=0.2)
            text = str(caught.value)
        wait_for_path(GateEnv.marker_of(gate))
        assert "step" in text
        assert "0.2 s" in text
        share = engine.together_with(LAST, NUM_ENVS)
        assert (f"sub-env {LAST} " if len(share) == 1 else f"sub-envs {share[0]} to {share[-1]} ") in text
        open_gate(gate)
        envs.step_wait()


@each(ENGINES, needs="can_time_out")
@pytest.mark.parametrize("on", ["step", "reset", "call"])
def test_close_after_a_timed_out_wait(engine: Engine, on: Any, tmp_path: Path) -> None:
    """It works while the env is still held up, and in time."""
    gate = tmp_path / "gate"
    fns: list[Any] = [partial(RaisingEnv, at=0, index=index) for index in range(LAST)]
    envs = engine.make([*fns, partial(GateEnv, gate, on=on, at=2 if on == "reset" else 1, index=LAST)])
    envs.reset(seed=1)
    args: dict[str, tuple[Any, ...]] = {"step": (ACTIONS,), "reset": (), "call": ("answer",)}
    getattr(envs, f"{on}_async")(*args[on])
    with pytest.raises(CallTimeoutError):
        getattr(envs, f"{on}_wait")(timeout=0.02)
    begin = time.monotonic()
    envs.close(timeout=0.3)
    assert time.monotonic() - begin < 1.3
    assert envs.closed


@each(FEW, needs="can_time_out")
def test_error_of_a_call_that_timed_out_before(engine: Engine, tmp_path: Path) -> None:
    """What another sub-env raised is not lost by the timed-out wait, and is raised by the one that ends the call."""
    gate = tmp_path / "gate"
    fns = gated(gate)
    fns[2] = partial(RaisingEnv, at=2, error=KeyError("early"), index=2)
    fns[LAST] = partial(GateEnv, gate, at=2, index=LAST)
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step(ACTIONS)
        envs.step_async(ACTIONS)
        for _ in range(2):
            with pytest.raises(CallTimeoutError):
                envs.step_wait(timeout=0.05)
        open_gate(gate)
        with pytest.raises(KeyError, match="early"):
            envs.step_wait()
        assert envs.call("where")[LAST] == (LAST, 1 + LAST, 0, 2)
        envs.reset(seed=2)
        envs.step(ACTIONS)


@each(FEW)
def test_wait_that_is_long_enough(engine: Engine) -> None:
    """A bound that is not reached changes nothing."""
    with closing(engine.make([partial(CountingEnv, index=index) for index in range(NUM_ENVS)])) as envs:
        envs.reset_async(seed=3)
        observations, _ = envs.reset_wait(timeout=30)
        assert observations[:, 1].tolist() == [3, 4, 5, 6]
        envs.step_async(ACTIONS)
        observations, *_ = envs.step_wait(timeout=30)
        assert observations[:, 3].tolist() == [1, 1, 1, 1]
        envs.call_async("add", 1)
        assert envs.call_wait(timeout=30) == (1, 2, 3, 4)
