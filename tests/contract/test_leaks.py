"""A hundred vector envs and a thousand resets later nothing has grown."""

from __future__ import annotations

import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import FEW, Engine, each, named
from world import World, descendants_of, wait_until

from rayvec.testing import CountingEnv, RaisingEnv

ACTIONS = np.zeros(4, np.int64)
MEGABYTE = 2**20


def resident_bytes(pid: int | None = None) -> int:
    """The memory of a process that is its own, and not shared."""
    pages = [int(word) for word in Path(f"/proc/{pid or 'self'}/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


@each(named("sync", "async-workers-2", "async-pipe-workers-2", "async-caller"))
def test_a_hundred_vector_envs(engine: Engine) -> None:
    """They leave no process, descriptor, thread or memory."""
    fns = [partial(CountingEnv, index=index, infos="numbers") for index in range(4)]

    def cycle() -> None:
        envs = engine.make(fns)
        envs.reset(seed=1)
        envs.step(ACTIONS)
        envs.close()

    for _ in range(10):
        cycle()
    gc.collect()
    before, memory = World.now(), resident_bytes()
    for _ in range(100):
        cycle()
    gc.collect()
    wait_until(lambda: not World.now().left_since(before), "nothing is left behind", 3)
    assert resident_bytes() - memory < 8 * MEGABYTE


@each(FEW)
def test_a_thousand_resets(engine: Engine) -> None:
    """Neither the caller nor its workers grow."""
    envs: Any = engine.make([partial(CountingEnv, index=index, infos="rich", episode_length=3) for index in range(4)])
    try:

        def resets(count: int) -> None:
            for number in range(count):
                envs.reset(seed=number if number % 2 else None)
                if number % 10 == 0:
                    envs.step(ACTIONS)
                    envs.reset(options={"reset_mask": np.array([True, False, True, False])})
                    envs.call("where")

        resets(300)
        gc.collect()
        before = World.now()
        workers = (actor.pid for actor in envs.actors) if engine.is_ray else (p.pid for p in descendants_of(os.getpid()))
        pids = [os.getpid(), *workers]
        memory = {pid: resident_bytes(pid) for pid in pids}
        resets(1000)
        gc.collect()
        assert not World.now().left_since(before)
        for pid in pids:
            assert resident_bytes(pid) - memory[pid] < 6 * MEGABYTE
    finally:
        envs.close()


@each(named("async", "async-pipe-workers-2", "async-caller"))
@pytest.mark.parametrize("what", ["constructor", "rebuild"])
def test_failures_leave_nothing(engine: Engine, what: str) -> None:
    """Thirty failing constructors, or thirty sub-envs built anew."""
    fns: list[Any] = [partial(CountingEnv, index=index) for index in range(4)]
    fns[2] = partial(RaisingEnv, on="init" if what == "constructor" else "step", error=KeyError, index=2)

    def failures(count: int) -> None:
        if what == "constructor":
            for _ in range(count):
                with pytest.raises(KeyError):
                    engine.make(fns)
            return
        envs = engine.make(fns)
        for _ in range(count):
            envs.reset()
            with pytest.raises(KeyError):
                envs.step(ACTIONS)
        envs.close()

    failures(2)
    gc.collect()
    before = World.now()
    failures(30 if what == "rebuild" else 8)
    gc.collect()
    wait_until(lambda: not World.now().left_since(before), "nothing is left behind", 3)
