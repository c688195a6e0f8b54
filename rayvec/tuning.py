"""Which engine steps an env fastest on this machine: ``rayvec.tune``, and ``"auto"`` for ``make_vec`` and ``register``.

::

    tune(env_fn, 64)            a process of its own, gone afterwards
      │  probe                 ┌───────────────────────────────────────────────────────────────┐
      ├──────────────────────▶ │ builds one env, resets it, steps it for a while               │
      │ ◀──── time, CPU, bytes │                                                               │
      │  which choices could win?                                                              │
      │  compare               │ builds each of them as a whole vector env; they take turns    │
      ├──────────────────────▶ │                                                               │
      │ ◀──────────────  rates └───────────────────────────────────────────────────────────────┘
      ▼
    TuningReport: the choice, what was measured, and why

Nothing is built or stepped in the caller: its random state stays as it is, and an env that crashes takes nothing with it.
Where building the choices would take too long, or measuring them fails, what the probe has said decides alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rayvec import serialise
from rayvec.errors import CallTimeoutError, WorkerLostError
from rayvec.local.async_vector_env import AsyncVectorEnv, checked_num_workers
from rayvec.local.sync_vector_env import SyncVectorEnv
from rayvec.local.waiting import usable_cores
from rayvec.measuring import Turn, random_actions, ratio_of, take_turns
from rayvec.sub_envs import EnvFn

__all__ = ["RAY_OPTIONS", "Choice", "Measurement", "Probe", "TuningReport", "tune"]

RAY_OPTIONS = (
    "num_actors",
    "num_cpus",
    "num_gpus",
    "resources",
    "scheduling_strategy",
    "runtime_env",
    "transport",
    "placement_timeout",
)
"""What only the Ray engine has: given, it is chosen. Named here so that Ray need not be imported to know them."""

_SHARED_OPTIONS = ("copy", "observation_mode", "autoreset_mode")
"""What every engine has."""
_CALLER_OPTIONS = ("num_workers", "step_in_caller", "shared_memory", "context", "daemon", "max_concurrency")
"""What does not forbid to step in the caller. Bounds on waits and policies for failures do: they need a process to end."""

_PROBE_SECONDS = 0.05
"""How long one env is stepped."""
_LEAST_STEPS = 3
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 15
_MOST_CHOICES = 6
_CLOSING = 2.0
"""Seconds that what was built for measuring has to close."""
_CLOSE_TO_BEST = 0.97
"""A choice with fewer processes is taken if it is as fast as this share of the best."""
_SURPRISING = 1.3
"""A choice that was the fastest though it should take so many times what another does is looked at again, for longer."""
_WAITS = 1.5
"""A step that lasts so many times its CPU time waits for something."""
_WAKE, _PROCESS, _ROW = 60e-6, 12e-6, 2e-6
"""Seconds that waking the first worker, a further process and a sub-env add to a vector step, roughly, where the probe alone
decides."""


class Choice(NamedTuple):
    """An engine and the options that tuning gave it.

    Attributes:
        engine: "sync", "async" or "ray".
        options: chosen ones, without those that were given.
    """

    engine: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join([self.engine, *(f"{name}={value!r}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Probe:
    """What one env does alone.

    Attributes:
        build: seconds to build and reset it.
        step: seconds of a step.
        cpu: seconds of CPU that a step takes of its process, all threads together.
        steps: how many it was.
        error: what it raised while it was stepped with random actions; None: nothing.
        observation_bytes: of one observation.
        resident_bytes: by how much its process grew when it was built; 0 where the system does not tell.
    """

    build: float
    step: float
    cpu: float
    steps: int
    error: str | None = None
    observation_bytes: int = 0
    resident_bytes: int = 0

    @property
    def waits(self) -> bool:
        """Whether a step is spent waiting, for the most part: more of them than cores can then be under way."""
        return self.step > _WAITS * self.cpu and self.step - self.cpu > 20e-6

    def predict(self, choice: Choice, num_envs: int, cores: int) -> float:
        """Seconds that a vector step takes, roughly."""
        if choice.engine == "sync":
            return num_envs * (self.step + _ROW)
        workers: int = choice.options["num_workers"]
        processes = workers - bool(choice.options["step_in_caller"])
        longest = math.ceil(num_envs / workers) * (self.step + _ROW)
        return max(longest, num_envs * (self.cpu + _ROW) / min(cores, workers)) + _PROCESS * processes + _WAKE * bool(processes)


@dataclass(frozen=True)
class Measurement:
    """What a choice did, or why it was not measured.

    Attributes:
        choice: which.
        rates: env steps a second, one for each round.
        note: why there are none.
    """

    choice: Choice
    rates: Sequence[float] = ()
    note: str = ""

    @property
    def rate(self) -> float:
        """Their median; 0 without any."""
        return statistics.median(self.rates) if self.rates else 0.0

    def share_of(self, best: Measurement) -> float:
        """Of the rate of another, as the median of the rounds' ratios, which a machine of changing speed changes least."""
        return ratio_of(self.rates, best.rates) if self.rates else 0.0


@dataclass(frozen=True)
class TuningReport:
    """The engine and options for an env, and why. Printed, it is a table.

    Attributes:
        num_envs: how many sub-envs it is for.
        cores: how many this process may use.
        choice: the engine, and the options that were chosen.
        options: all options: those chosen, and those given.
        reason: why, in a sentence.
        probe: what one env does alone; None: it was not asked, or did not answer.
        measurements: of the choices that could win.
        seconds: that tuning took.
    """

    num_envs: int
    cores: int
    choice: Choice
    options: Mapping[str, Any]
    reason: str
    probe: Probe | None = None
    measurements: Sequence[Measurement] = field(default=())
    seconds: float = 0.0

    @property
    def engine(self) -> str:
        """The engine: "sync", "async" or "ray"."""
        return self.choice.engine

    def build(self, env_fns: Sequence[EnvFn]) -> VectorEnv[Any, Any, Any]:
        """The vector env that was chosen, of these env_fns."""
        return _build(self.engine, env_fns, self.options)

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        lines = [f"{self.num_envs} sub-env{'s'[: self.num_envs != 1]} on {cores}: {self.choice}"]
        if self.probe is not None and self.probe.steps:
            probe = self.probe
            lines.append(
                f"a step takes {_time(probe.step)} ({_time(probe.cpu)} of CPU), building one env {_time(probe.build)}; "
                f"an observation has {probe.observation_bytes:,} bytes"
            )
        if self.measurements:
            best = _best_of(self.measurements)
            table = [("", "choice", "env steps/s", "of the best")]
            for measured in sorted(self.measurements, key=lambda measured: -measured.share_of(best)):
                rate = f"{measured.rate:,.0f}" if measured.rates else measured.note
                share = f"{min(measured.share_of(best), 1.0):.2f}" if measured.rates else ""
                table.append(("*" if measured.choice == self.choice else "", str(measured.choice), rate, share))
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += [
                f"{mark:{widths[0]}}  {choice:{widths[1]}}  {rate:>{widths[2]}}  {share:>{widths[3]}}".rstrip()
                for mark, choice, rate, share in table
            ]
        lines.append(f"because {self.reason} (tuned in {self.seconds:.1f} s)")
        return "\n".join(lines)


def tune(env_fn: EnvFn, num_envs: int, *, seconds: float = 0.5, timeout: float = 10.0, **vector_kwargs: Any) -> TuningReport:
    """Finds the engine and options that step ``num_envs`` of an env fastest on this machine.

    Args:
        env_fn: makes an env. It is called in processes that end before this returns.
        num_envs: how many sub-envs.
        seconds: about how long choices are compared, once they are built.
        timeout: seconds after which tuning is broken off, and what was measured until then decides.
        **vector_kwargs: options that the engine will have. They restrict the choice to what has them.

    Returns:
        The choice and why; its ``build(env_fns)`` builds it.

    Raises:
        ValueError: ``num_envs``, ``seconds`` or ``timeout`` is not above 0.
        TypeError: no engine has all of the options.
        Exception: what ``env_fn`` raised.

    Example:
        >>> import gymnasium as gym
        >>> import rayvec
        >>> report = rayvec.tune(lambda: gym.make("CartPole-v1"), num_envs=1)
        >>> print(report)  # doctest: +ELLIPSIS
        1 sub-env on ...: sync
        because one sub-env has nobody to share the work with (tuned in 0.0 s)
        >>> envs = report.build([lambda: gym.make("CartPole-v1")])
        >>> envs.close()
    """
    for name, value in (("num_envs", num_envs), ("seconds", seconds), ("timeout", timeout)):
        if not value > 0:
            raise ValueError(f"{name}: expected more than 0, got {value!r}")
    started = time.perf_counter()
    cores = usable_cores()
    engine = engine_with(vector_kwargs)

    def report(choice: Choice, reason: str, probe: Probe | None = None, measured: Sequence[Measurement] = ()) -> TuningReport:
        options = {**vector_kwargs, **choice.options}
        return TuningReport(num_envs, cores, choice, options, reason, probe, measured, time.perf_counter() - started)

    if engine == "ray":
        given = ", ".join(name for name in vector_kwargs if name in RAY_OPTIONS)
        return report(Choice("ray", {}), f"only the Ray engine has {given}")
    if vector_kwargs.get("worker") is not None:
        return report(Choice("async", {}), "a custom worker steps one sub-env in a process of its own")
    if engine is None and multiprocessing.current_process().daemon:
        return report(Choice("sync", {}), "a daemonic process may have no processes of its own")
    choices = _choices(engine, vector_kwargs, num_envs, cores)
    if len(choices) == 1:
        alone = "one sub-env has nobody to share the work with" if num_envs == 1 else "the options leave one choice"
        return report(choices[0], alone)

    cautious = _with_workers(choices, cores)
    tuner = partial(_Tuner, env_fn, num_envs, dict(vector_kwargs))
    deadline = time.monotonic() + timeout
    probe: Probe | None = None
    measured: Sequence[Measurement] = ()
    patience = 0.0
    # Not a daemon: it has workers of its own, which end when it does.
    envs = AsyncVectorEnv([tuner], context=vector_kwargs.get("context"), daemon=False)
    try:
        envs.call_async("probe", _PROBE_SECONDS)
        (probe,) = envs.call_wait(timeout)
        assert probe is not None
        patience = _CLOSING
        if probe.steps < _LEAST_STEPS:
            return report(cautious, f"one env, stepped with random actions, raised {probe.error}", probe)
        promising = _promising(choices, probe, num_envs, cores)
        if len(promising) == 1:
            return report(promising[0], _clear(probe, cores), probe)
        obstacle = _obstacle(promising, probe, num_envs, cores, seconds, timeout)
        if obstacle is None:
            rounds = _num_rounds(promising, probe, num_envs, cores, seconds)
            for times in (1, 2):
                envs.call_async("compare", promising, times * seconds, rounds)
                (measured,) = envs.call_wait(max(0.0, deadline - time.monotonic()))
                if not _is_surprising(measured, probe, num_envs, cores):
                    break
            if not any(of_one.rates for of_one in measured):
                obstacle = measured[0].note
    except CallTimeoutError:
        patience = 0.0
        if probe is None:
            return report(cautious, f"one env was not built and stepped within timeout={timeout:g} s, so that nothing is known")
        obstacle = f"the choices were not built and compared within timeout={timeout:g} s"
    except WorkerLostError as error:
        return report(cautious, f"the process that measured died, and a worker may: {error}", probe)
    finally:
        envs.close(timeout=patience)
    assert probe is not None
    if obstacle is not None:
        best = min(promising, key=lambda choice: probe.predict(choice, num_envs, cores))
        return report(best, f"{_clear(probe, cores)}; not compared: {obstacle}", probe, measured)
    return report(*_fastest(measured), probe, measured)


def engine_with(options: Mapping[str, Any]) -> str | None:
    """The engine that options leave; None: more than one.

    Raises:
        TypeError: none has all of them.
    """
    asynchronous = [name for name in options if name not in _SHARED_OPTIONS and name not in RAY_OPTIONS]
    ray = [name for name in options if name in RAY_OPTIONS]
    own = [name for name in asynchronous if name in _CALLER_OPTIONS or name == "worker"]
    if ray and own:
        raise TypeError(f"no engine has both {own[0]!r}, which is of processes, and {ray[0]!r}, which is of Ray actors")
    return "ray" if ray else "async" if asynchronous else None


# --- which choices there are --------------------------------------------------------------------------------


def _choices(engine: str | None, options: Mapping[str, Any], num_envs: int, cores: int) -> list[Choice]:
    """All that the options leave, those with fewer processes first."""
    choices = [] if engine == "async" else [Choice("sync", {})]
    if num_envs == 1 and choices:
        return choices
    given = "num_workers" in options
    counts = [checked_num_workers(options["num_workers"], num_envs)] if given else _counts(num_envs, cores)
    callers = (True, False) if all(name in (*_SHARED_OPTIONS, *_CALLER_OPTIONS) for name in options) else (False,)
    if "step_in_caller" in options:
        callers = (bool(options["step_in_caller"]),)
    for count in counts:
        for in_caller in callers:
            # Where steps wait, one worker more or less is all that the caller would change.
            if in_caller and count > cores and "step_in_caller" not in options:
                continue
            choices.append(Choice("async", {"num_workers": count, "step_in_caller": in_caller}))
    return choices


def _counts(num_envs: int, cores: int) -> list[int]:
    """Numbers of workers that could be best: as many as cores where steps work, more where they wait."""
    doublings = {2**power for power in range(1, 20)}
    counts = {cores, num_envs, *(count for count in doublings if count < cores), *(cores * count for count in doublings)}
    return sorted(count for count in counts if count <= num_envs and (count > 1 or num_envs == 1))


def _with_workers(choices: Sequence[Choice], cores: int) -> Choice:
    """The one to take when nothing is known: as many processes as cores, none of them the caller."""
    processes = [choice for choice in choices if choice.engine != "sync"]
    apart = [choice for choice in processes if not choice.options["step_in_caller"]]
    return min(apart or processes, key=lambda choice: abs(choice.options["num_workers"] - cores))


def _promising(choices: Sequence[Choice], probe: Probe, num_envs: int, cores: int) -> list[Choice]:
    """Those that could be the fastest by what the probe has said, which is not exact: within twice the best."""
    if not probe.waits:
        # More processes than cores change nothing but what they cost.
        limit = max(cores, min(choice.options["num_workers"] for choice in choices if choice.engine != "sync"))
        choices = [choice for choice in choices if choice.engine == "sync" or choice.options["num_workers"] <= limit]
        if cores == 1 and choices[0].engine == "sync":
            return [choices[0]]
    predicted = {str(choice): probe.predict(choice, num_envs, cores) for choice in choices}
    # What a vector step costs besides the envs is known badly; what the envs cost is known.
    bound = 2 * min(predicted.values()) + 200e-6
    kept = [choice for choice in choices if predicted[str(choice)] <= bound]
    return sorted(kept, key=lambda choice: predicted[str(choice)])[:_MOST_CHOICES]


def _obstacle(choices: Sequence[Choice], probe: Probe, num_envs: int, cores: int, seconds: float, timeout: float) -> str | None:
    """Why the choices cannot be compared; None: they can."""
    if probe.error is not None:
        return f"the env raised {probe.error}"
    workers = [1 if choice.engine == "sync" else min(cores, choice.options["num_workers"]) for choice in choices]
    building = sum(num_envs / count * probe.build for count in workers)
    if building > timeout / 4:
        return f"building them takes about {_time(building)}"
    once = sum(probe.predict(choice, num_envs, cores) for choice in choices)
    if (_FEWEST_ROUNDS + 1) * once > max(4 * seconds, timeout / 4):
        return f"a step of each takes about {_time(once)} in all"
    needed = num_envs * probe.resident_bytes * len(choices)
    if needed > _available_bytes() / 4:
        return f"they need about {needed / 1e9:.1f} GB of memory in all"
    return None


def _num_rounds(choices: Sequence[Choice], probe: Probe, num_envs: int, cores: int, seconds: float) -> int:
    """How many turns each gets: short ones, so that choices are compared under the same circumstances, of some steps each."""
    longest = max(probe.predict(choice, num_envs, cores) for choice in choices)
    return max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(seconds / len(choices) / (4 * longest))))


def _is_surprising(measured: Sequence[Measurement], probe: Probe, num_envs: int, cores: int) -> bool:
    """Whether one is the fastest that should take much longer than another: the machine may have had a bad moment."""
    rated = [of_one.choice for of_one in measured if of_one.rates]
    least = min((probe.predict(choice, num_envs, cores) for choice in rated), default=0.0)
    return bool(rated) and probe.predict(_best_of(measured).choice, num_envs, cores) > _SURPRISING * least


def _best_of(measured: Sequence[Measurement]) -> Measurement:
    """The fastest, by what each did in a round beside what all did in it."""
    rated = [of_one for of_one in measured if of_one.rates]
    together = [sum(rates) for rates in zip(*(of_one.rates for of_one in rated), strict=True)]
    return max(rated, key=lambda of_one: ratio_of(of_one.rates, together), default=measured[0])


def _fastest(measured: Sequence[Measurement]) -> tuple[Choice, str]:
    """The fastest; of those that are as good as it, the one with the fewest processes."""
    best = _best_of(measured)
    good = [of_one for of_one in measured if of_one.share_of(best) >= _CLOSE_TO_BEST]
    chosen = min(good, key=lambda of_one: _processes(of_one.choice))
    if chosen is best:
        return best.choice, "it was the fastest"
    return chosen.choice, f"it was as fast as {best.choice} within {1 - _CLOSE_TO_BEST:.0%}, with fewer processes"


def _processes(choice: Choice) -> int:
    if choice.engine == "sync":
        return 0
    return int(choice.options["num_workers"]) - bool(choice.options["step_in_caller"])


def _clear(probe: Probe, cores: int) -> str:
    if probe.waits:
        return f"a step waits for {1 - probe.cpu / probe.step:.0%} of its {_time(probe.step)}"
    if cores == 1:
        return "there is one core, and steps keep it busy"
    return f"a step keeps a core busy for {_time(probe.step)}"


# --- the process that measures ------------------------------------------------------------------------------


class _Tuner(gymnasium.Env[np.int64, np.int64]):
    """What the measuring process holds in place of an env: it is called, not stepped.

    Args:
        env_fn: makes the env in question.
        num_envs: how many of it.
        options: that the engine will have.
    """

    observation_space = action_space = spaces.Discrete(1)

    def __init__(self, env_fn: EnvFn, num_envs: int, options: dict[str, Any]) -> None:
        self._env_fn = env_fn
        self._num_envs = num_envs
        self._options = options
        self._to_close = ExitStack()
        self._contestants: dict[str, _Contestant] = {}
        if AutoresetMode(options.get("autoreset_mode", AutoresetMode.NEXT_STEP)) is AutoresetMode.DISABLED:
            options["autoreset_mode"] = AutoresetMode.NEXT_STEP
        # What the chosen vector env has to say, it will say itself.
        warnings.simplefilter("ignore")
        gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
        logging.getLogger("rayvec").setLevel(logging.CRITICAL)

    def probe(self, seconds: float) -> Probe:
        """Builds an env and steps it for a while, three times at least."""
        resident = _resident_bytes()
        started = time.perf_counter()
        env = self._env_fn()
        self._to_close.callback(env.close)
        observation, _ = env.reset(seed=0)
        build = time.perf_counter() - started
        grown = max(0, _resident_bytes() - resident)
        return Probe(build, *_stepped(env, seconds), _bytes_of(observation), grown)

    def compare(self, choices: Sequence[Choice], seconds: float, rounds: int) -> list[Measurement]:
        """Builds the choices, the first time, and lets them take turns. What one of them raises excludes it alone."""
        contestants = self._contestants
        for choice in choices if not contestants else ():
            contestant = contestants[str(choice)] = _Contestant(choice)
            with contestant.noting():
                envs = _build(choice.engine, [self._env_fn] * self._num_envs, {**self._options, **choice.options})
                self._to_close.callback(envs.close)
                envs.reset(seed=0)
                contestant.turn = Turn(envs.step, random_actions(envs.single_action_space, self._num_envs, 64), self._num_envs)
        rates = take_turns(contestants, rounds, seconds / rounds / len(choices), lambda: None)
        return [
            Measurement(contestant.choice, () if contestant.note else tuple(rates[name]), contestant.note)
            for name, contestant in contestants.items()
        ]

    def close(self) -> None:
        """Closes what was built."""
        with contextlib.suppress(Exception):
            self._to_close.close()


class _Contestant:
    """A choice that takes turns until it raises."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.note = ""
        self.turn: Turn | None = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Notes what is raised."""
        try:
            yield
        except Exception as error:
            self.note = f"raised {_described(error)}"

    def rate(self, seconds: float) -> float:
        """Env steps a second; 0 from the first error on."""
        rate = 0.0
        if self.turn is not None and not self.note:
            with self.noting():
                rate = self.turn.rate(seconds)
        return rate


def _stepped(env: gymnasium.Env[Any, Any], seconds: float) -> tuple[float, float, int, str | None]:
    """Seconds and CPU seconds of a step with random actions, resets included; how many were taken; what it raised."""
    env.action_space.seed(0)
    ended = False
    steps = -1  # the first of all is slower, and is not counted
    error = None
    started = lasted = used = 0.0
    while steps < _LEAST_STEPS or lasted < seconds:
        try:
            if ended:
                env.reset()
                ended = False
            else:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                ended = bool(terminated or truncated)
        except Exception as raised:
            error = _described(raised)
            break
        steps += 1
        if steps == 0:
            started, used = time.perf_counter(), time.process_time()
        lasted = time.perf_counter() - started
    if steps < 1:
        return math.nan, math.nan, 0, error
    return lasted / steps, (time.process_time() - used) / steps, steps, error


def _bytes_of(observation: Any) -> int:
    """Of an observation's arrays and strings."""
    if isinstance(observation, Mapping):
        return sum(map(_bytes_of, observation.values()))
    if isinstance(observation, tuple | list):
        return sum(map(_bytes_of, observation))
    if isinstance(observation, str):
        return len(observation.encode())
    return int(np.asarray(observation).nbytes)


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _available_bytes() -> float:
    """Of memory, that processes can still have; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return math.inf


# --- building, telling, remembering -------------------------------------------------------------------------


def _build(engine: str, env_fns: Sequence[EnvFn], options: Mapping[str, Any]) -> VectorEnv[Any, Any, Any]:
    if engine == "ray":
        from rayvec.vector import RayVectorEnv

        return RayVectorEnv(env_fns, **options)
    return (SyncVectorEnv if engine == "sync" else AsyncVectorEnv)(env_fns, **options)


def _described(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


_REMEMBERED: dict[tuple[bytes, int, int], TuningReport] = {}


def remembered(env_fn: EnvFn, num_envs: int, options: Mapping[str, Any]) -> TuningReport:
    """As :func:`tune`, once for an env, its arguments, ``num_envs``, the options and the cores in this process."""
    try:
        key = (serialise.dumps((env_fn, sorted(options.items()))), num_envs, usable_cores())
    except Exception:  # whatever pickling raises
        return tune(env_fn, num_envs, **options)
    report = _REMEMBERED.get(key)
    if report is None:
        report = tune(env_fn, num_envs, **options)
        _REMEMBERED[key] = report
    return report
