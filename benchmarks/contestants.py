"""Who takes part in the benchmarks, and the process that each of them has to itself.

``run.py`` starts this file as a program, once for each contestant in each row, and tells it on its standard input how
long to step; it answers with a line for each turn ::

    run.py                                     contestants.py
      | {"contestant": ..., "work": ..., "num_envs": ...} ->    builds, resets, warms up
      |                                        <- {"start": 0.31}
      | 0.4 ->                                                  steps for 0.4 s
      |                                        <- {"rate": 181234.5}     one with stopwatches: {"rate": ..., "parts": ...}
      | end of file ->                                          closes, ends

While one steps, the others sleep in a read.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import mmap
import multiprocessing
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, cast

import gymnasium
import numpy as np
from accounting import Accounted
from works import EnvFn, Work

from rayvec.local import bells
from rayvec.measuring import BareLoop, Turn, random_actions

STEPS = 499
"""Steps until actions are repeated."""

BARE = "bare loop"
LOCKSTEP = "bare loops that meet after each step"
RUNG_FOR = "bare steps, a process each, rung for by eventfd"
COPIES = "bare copies, into rows and out"
GYMNASIUM_SYNC, GYMNASIUM_ASYNC = "Gymnasium sync", "Gymnasium async"
SYNC, ASYNC = "rayvec sync", "rayvec async, one process each"
WORKERS, CALLER = "rayvec async, a process a core", "rayvec async, with the caller"
TUNED = "rayvec auto"
ACCOUNTED = "rayvec async, with the caller and stopwatches"
RAY, RAY_STORE = "rayvec Ray, an actor a core", "rayvec Ray, the same, object store"
RAY_EACH, RAY_PLAIN = "rayvec Ray, an actor each", "plain Ray calls, an actor each"

OURS = (SYNC, ASYNC, WORKERS, CALLER)
"""The engines that one chooses from without Ray; ``TUNED`` is one of them."""


class Stepped(Protocol):
    """Whatever steps a number of envs."""

    def reset(self, *, seed: int) -> Any:
        """Resets all."""

    def step(self, actions: Any, /) -> Any:
        """Steps each env once, and resets those that have ended, now or at the next step."""

    def close(self) -> Any:
        """Closes them."""


Build = Callable[[Work, int], Stepped]


# --- peers --------------------------------------------------------------------------------------------------


class SB3:
    """A VecEnv of stable-baselines3, whose ``reset`` takes no seed."""

    def __init__(self, envs: Any) -> None:
        self._envs = envs
        self.step, self.close = envs.step, envs.close

    def reset(self, *, seed: int) -> None:
        """Resets all."""
        self._envs.seed(seed)
        self._envs.reset()


class Tianshou:
    """A vector env of tianshou, which leaves it to the caller to reset what has ended."""

    def __init__(self, envs: Any) -> None:
        self._envs = envs
        self.close = envs.close

    def reset(self, *, seed: int) -> None:
        """Resets all."""
        self._envs.reset(seed=seed)

    def step(self, actions: Any) -> None:
        """Steps all, then resets those that have ended, as tianshou's collector does."""
        _, _, terminations, truncations, _ = self._envs.step(actions)
        ended = np.flatnonzero(terminations | truncations)
        if len(ended):
            self._envs.reset(ended)


class EnvPool:
    """EnvPool's envs in C++, whose ``reset`` takes no seed."""

    def __init__(self, envs: Any) -> None:
        self._envs = envs
        self._dtype = envs.action_space.dtype
        self.close = envs.close

    def reset(self, *, seed: int) -> None:
        """Resets all."""
        self._envs.reset()

    def step(self, actions: Any) -> None:
        """Steps all."""
        self._envs.step(actions.astype(self._dtype, copy=False))


class Lockstep:
    """A bare loop in each of some processes, this one among them, which meet after each step: no data moves.

    What keeps these from the ideal keeps every engine from it.

    Args:
        work: what is stepped.
        num_envs: how many of it.
        cores: how many processes.
    """

    NAP = 1e-3
    """Seconds that a process sleeps at a time once there was no step in a while."""
    LOOKS = 20_000
    """That a while is, in looks."""

    def __init__(self, work: Work, num_envs: int, cores: int) -> None:
        self._work = work
        self._shares = np.array_split(np.arange(num_envs), cores)
        space = work.env_fn().action_space
        self._table = random_actions(space, num_envs, STEPS, bare=True)
        self._turn = self._turn_of(0)
        # Steps that each has made, or begun in the case of this process: on cache lines of their own.
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        fork = multiprocessing.get_context("fork")
        self._others = [fork.Process(target=self._follow, args=(rank,), daemon=True) for rank in range(1, cores)]
        for process in self._others:
            process.start()

    def reset(self, *, seed: int) -> None:
        """Waits for the others, whose envs are reset by then, as these are."""
        self.step(None)

    def step(self, _: object) -> None:
        """Steps the own share while the others step theirs, and waits for them."""
        counts, due = self._counts, self._counts[0] + 1
        counts[0] = due
        self._turn.rate(0.0)
        for rank in range(1, len(self._shares)):
            while counts[8 * rank] != due:
                pass

    def close(self) -> None:
        """Ends the other processes."""
        for process in self._others:
            process.kill()
            process.join()

    def _follow(self, rank: int) -> None:
        turn = self._turn_of(rank)
        counts, done = self._counts, 0
        while True:
            looks = self.LOOKS
            while counts[0] == done:
                looks -= 1
                if looks < 0:
                    time.sleep(self.NAP)
            turn.rate(0.0)
            done += 1
            counts[8 * rank] = done

    def _turn_of(self, rank: int) -> Turn:
        share = self._shares[rank]
        loop = BareLoop([self._work.env_fn] * len(share))
        loop.reset(seed=int(share[0]))
        return Turn(loop.step, [[actions[index] for index in share] for actions in self._table], len(share))


class RungFor:
    """A process for each env, which takes a step when its eventfd is rung and rings another: no data moves.

    Args:
        work: what is stepped.
        num_envs: how many of it.
    """

    def __init__(self, work: Work, num_envs: int) -> None:
        fork = multiprocessing.get_context("fork")
        self._asked = [os.eventfd(0) for _ in range(num_envs)]
        self._done = [os.eventfd(0) for _ in range(num_envs)]
        self._processes = [fork.Process(target=self._follow, args=(work, row), daemon=True) for row in range(num_envs)]
        for process in self._processes:
            process.start()

    def reset(self, *, seed: int) -> None:
        """Each has reset its env already."""
        self.step(None)

    def step(self, _: object) -> None:
        """Rings for all, and waits for all."""
        for descriptor in self._asked:
            os.write(descriptor, bells.STEP)
        for descriptor in self._done:
            os.read(descriptor, 8)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def _follow(self, work: Work, row: int) -> None:
        loop = BareLoop([work.env_fn])
        loop.reset(seed=row)
        table = random_actions(loop.envs[0].action_space, 1, STEPS, bare=True)
        asked, done = self._asked[row], self._done[row]
        for actions in itertools.cycle(table):
            os.read(asked, 8)
            loop.step(actions)
            os.write(done, bells.STEP)


class Copies:
    """Puts observations into the rows of an array and copies that: what ``copy=True`` takes at least, without any step.

    Args:
        work: whose observations.
        num_envs: how many rows.
    """

    def __init__(self, work: Work, num_envs: int) -> None:
        env = work.env_fn()
        self._observations = [env.reset(seed=row)[0].copy() for row in range(num_envs)]
        self._rows = np.stack(self._observations)
        self._out = self._rows.copy()
        self.close = env.close

    def reset(self, *, seed: int) -> None:
        """Nothing to do."""

    def step(self, _: object) -> None:
        """In and out once."""
        for row, observation in zip(self._rows, self._observations, strict=True):
            row[...] = observation
        self._out[...] = self._rows


class PlainActors:
    """An actor for each env and a call for each step of it: what one writes with Ray alone."""

    def __init__(self, env_fns: Sequence[EnvFn]) -> None:
        import ray

        self._ray: Any = ray
        actor: Any = ray.remote(BareLoop)
        self._actors = [actor.options(num_cpus=0).remote([env_fn]) for env_fn in env_fns]

    def reset(self, *, seed: int) -> None:
        """Resets all."""
        self._ray.get([handle.reset.remote(seed=seed + row) for row, handle in enumerate(self._actors)])

    def step(self, actions: Any) -> None:
        """Asks all, then waits for all."""
        self._ray.get([handle.step.remote(actions[row : row + 1]) for row, handle in enumerate(self._actors)])

    def close(self) -> None:
        """Ends the actors."""
        for handle in self._actors:
            self._ray.kill(handle)


def _of_class(name: str, **options: Any) -> Build:
    """Builds what is called like a vector env of Gymnasium's."""
    return lambda work, num_envs: pkgutil.resolve_name(name)([work.env_fn] * num_envs, **options)


def _sb3(name: str, **options: Any) -> Build:
    return lambda work, num_envs: SB3(_of_class(f"stable_baselines3.common.vec_env:{name}", **options)(work, num_envs))


def _tianshou(name: str) -> Build:
    return lambda work, num_envs: Tianshou(_of_class(f"tianshou.env:{name}")(work, num_envs))


def _envpool(work: Work, num_envs: int) -> EnvPool:
    assert work.envpool is not None
    env_id, options = work.envpool
    make: Any = importlib.import_module("envpool").make_gymnasium
    return EnvPool(make(env_id, num_envs=num_envs, **options))


def _tuned(work: Work, num_envs: int) -> Stepped:
    import rayvec

    report = rayvec.tune(work.env_fn, num_envs)
    envs: Any = report.build([work.env_fn] * num_envs)
    envs.tuning = report
    return cast(Stepped, envs)


def _with_ray(build: Build) -> Build:
    """Builds over a small Ray of its own, which the end of the process ends."""

    def built(work: Work, num_envs: int) -> Stepped:
        import ray

        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return build(work, num_envs)

    return built


def _plain_actors(work: Work, num_envs: int) -> Stepped:
    return PlainActors([work.env_fn] * num_envs)


@dataclass(frozen=True)
class Contestant:
    """What takes its turn.

    Attributes:
        build: makes it.
        module: that has to be there.
    """

    build: Build
    module: str = "rayvec"


def contestants(cores: int) -> dict[str, Contestant]:
    """All of them, in the order in which they are shown; those with workers have one for each of ``cores``."""
    return {
        BARE: Contestant(lambda work, num_envs: BareLoop([work.env_fn] * num_envs)),
        LOCKSTEP: Contestant(lambda work, num_envs: Lockstep(work, num_envs, cores)),
        ACCOUNTED: Contestant(lambda work, num_envs: Accounted(work, num_envs, max(2, cores))),
        RUNG_FOR: Contestant(RungFor),
        COPIES: Contestant(Copies),
        GYMNASIUM_SYNC: Contestant(_of_class("gymnasium.vector:SyncVectorEnv")),
        GYMNASIUM_ASYNC: Contestant(_of_class("gymnasium.vector:AsyncVectorEnv")),
        SYNC: Contestant(_of_class("rayvec:SyncVectorEnv")),
        ASYNC: Contestant(_of_class("rayvec:AsyncVectorEnv")),
        WORKERS: Contestant(_of_class("rayvec:AsyncVectorEnv", num_workers=cores)),
        CALLER: Contestant(_of_class("rayvec:AsyncVectorEnv", num_workers=max(2, cores), step_in_caller=True)),
        TUNED: Contestant(_tuned),
        "SB3 DummyVecEnv": Contestant(_sb3("DummyVecEnv"), "stable_baselines3"),
        "SB3 SubprocVecEnv": Contestant(_sb3("SubprocVecEnv", start_method="fork"), "stable_baselines3"),
        "tianshou DummyVectorEnv": Contestant(_tianshou("DummyVectorEnv"), "tianshou"),
        "tianshou ShmemVectorEnv": Contestant(_tianshou("ShmemVectorEnv"), "tianshou"),
        "EnvPool (C++)": Contestant(_envpool, "envpool"),
        RAY: Contestant(_with_ray(_of_class("rayvec:RayVectorEnv", num_actors=cores)), "ray"),
        RAY_STORE: Contestant(_with_ray(_of_class("rayvec:RayVectorEnv", num_actors=cores, transport="object_store")), "ray"),
        RAY_EACH: Contestant(_with_ray(_of_class("rayvec:RayVectorEnv")), "ray"),
        RAY_PLAIN: Contestant(_with_ray(_plain_actors), "ray"),
    }


# --- the process --------------------------------------------------------------------------------------------


def serve(told: dict[str, Any], requests: TextIO, answers: TextIO) -> None:
    """Builds the contestant that was told, and steps it as often and as long as it is asked to."""
    name, work, num_envs = told["contestant"], Work(**told["work"]), told["num_envs"]
    started = time.perf_counter()
    with closing(contestants(told["cores"])[name].build(work, num_envs)) as stepped:
        stepped.reset(seed=0)
        report = getattr(stepped, "tuning", None)
        answer: dict[str, Any] = {"start": time.perf_counter() - started, "choice": report and str(report.choice)}
        env = work.env_fn()
        turn = Turn(stepped.step, random_actions(env.action_space, num_envs, STEPS, bare=name == BARE), num_envs)
        env.close()
        while True:
            print(json.dumps(answer), file=answers, flush=True)
            request = requests.readline()
            if not request:
                return
            if isinstance(stepped, Accounted):
                rate, parts = stepped.account(turn, float(request))
                answer = {"rate": rate, "parts": parts._asdict()}
            else:
                answer = {"rate": turn.rate(float(request))}


def main() -> None:
    """Serves on standard input and output; what envs print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    try:
        serve(json.loads(sys.stdin.readline()), sys.stdin, answers)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        raise


if __name__ == "__main__":
    main()
