"""``rayvec bench``: which engine steps an env fastest on this machine.

All engines are built, then take turns with each other and with a bare loop, round after round
(:mod:`rayvec.measuring`): what slows the machine down for a while slows all of them, so the ratios hold. An engine that
cannot take the env is reported with its reason and left out; the others go on. Whatever happens, Ctrl-C too, every vector
env that was built is closed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np

import rayvec
from rayvec.cli.targets import Target, build
from rayvec.local.waiting import usable_cores
from rayvec.measuring import BareLoop, Rated, Turn, random_actions, ratio_of, spread_of, take_turns
from rayvec.sub_envs import EnvFn

__all__ = ["ENGINES", "Engine", "Report", "Row", "advise", "chosen", "measure"]

_ROUNDS, _FEWEST_ROUNDS = 10, 3
_SHORTEST_TURN = 0.02
"""Seconds below which a turn measures the clock."""
_MOST_PROCESSES = 64
"""An engine with a process for each sub-env is not tried with more, unless it is asked for."""
_AS_GOOD = 0.95
"""A simpler engine is advised where it is as fast as this share of the best."""
_NOISY = 0.5
"""A spread above which the table is to be taken with care."""
_CLOSING_SECONDS = 5.0
_NUM_ACTIONS = 499
_CODE_WIDTH = 88


@dataclass(frozen=True)
class Engine:
    """An engine with options.

    Attributes:
        key: what ``--engines`` calls it.
        name: what the table calls it.
        mode: rayvec's ``vectorization_mode``; None for Gymnasium's own.
        options: of the engine.
        processes: how many it starts, given the number of sub-envs and of usable cores.
    """

    key: str
    name: str
    mode: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    processes: Callable[[int, int], int] = lambda num_envs, cores: 0

    def make(self, env_fns: Sequence[EnvFn]) -> Any:
        """The vector env."""
        if self.mode is None:
            theirs: dict[str, Any] = {"gymnasium-sync": gymnasium.vector.SyncVectorEnv, "gymnasium-async": _gymnasium_async}
            return theirs[self.key](env_fns)
        ours: dict[str, Callable[[], Any]] = {
            "sync": lambda: rayvec.SyncVectorEnv,
            "async": lambda: rayvec.AsyncVectorEnv,
            "ray": lambda: rayvec.RayVectorEnv,
        }
        return ours[self.mode]()(env_fns, **self.options)

    def code(self, target: Target, num_envs: int) -> str:
        """Python that makes the vector env; :func:`advise` puts the imports before it."""
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        if target.function is not None:
            env_fn = target.function[1]
            if target.kwargs:
                env_fn = f"partial({', '.join([env_fn, *_keywords(target.kwargs)])})"
            name = {"sync": "SyncVectorEnv", "async": "AsyncVectorEnv", "ray": "RayVectorEnv"}[self.mode or "sync"]
            return _call(f"rayvec.{name}", [f"[{env_fn}] * {num_envs}", *options])
        arguments = [f'"{target.name}"', f"num_envs={num_envs}", f'vectorization_mode="{self.mode}"']
        if self.options:
            arguments.append(f"vector_kwargs={_quoted(dict(self.options))}")
        return _call("rayvec.make_vec", [*arguments, *_keywords(target.kwargs)])


def _call(function: str, arguments: Sequence[str]) -> str:
    line = f"envs = {function}({', '.join(arguments)})"
    if len(line) <= _CODE_WIDTH:
        return line
    return "\n".join([f"envs = {function}(", *(f"    {argument}," for argument in arguments), ")"])


def _one_each(num_envs: int, cores: int) -> int:
    return num_envs


def _one_a_core(num_envs: int, cores: int) -> int:
    return min(num_envs, cores)


_LISTED = (
    Engine("gymnasium-sync", "Gymnasium sync", None),
    Engine("gymnasium-async", "Gymnasium async", None, processes=_one_each),
    Engine("sync", "rayvec sync", "sync"),
    Engine("async", "rayvec async", "async", processes=_one_each),
    Engine(
        "async-2",
        "rayvec async, num_workers=2",
        "async",
        {"num_workers": 2},
        processes=lambda num_envs, cores: min(2, num_envs),
    ),
    Engine("async-auto", "rayvec async, num_workers=auto", "async", {"num_workers": "auto"}, processes=_one_a_core),
    Engine(
        "async-caller",
        "rayvec async, auto + step_in_caller",
        "async",
        {"num_workers": "auto", "step_in_caller": True},
        processes=lambda num_envs, cores: min(num_envs, cores) - 1,
    ),
    Engine("ray", "rayvec ray, num_actors=cores", "ray", {"num_actors": usable_cores()}, processes=_one_a_core),
)
ENGINES = {engine.key: engine for engine in _LISTED}
"""All that can be asked for, from the simplest on."""

BASELINES = ("gymnasium-sync", "gymnasium-async")


@dataclass(frozen=True)
class Row:
    """What an engine did.

    Attributes:
        key: of the engine.
        engine: its name.
        rates: env steps a second, one for each round; none if it failed.
        median: of the rates.
        spread: from the lowest to the highest, as a share of the median.
        of_ideal: the median of the rounds' ratios to the bare loop times the cores.
        to_sync: the same to Gymnasium's SyncVectorEnv; None where that failed.
        to_async: the same to Gymnasium's AsyncVectorEnv; None where that failed.
        failure: why there is nothing else.
    """

    key: str
    engine: str
    rates: tuple[float, ...] = ()
    median: float = 0.0
    spread: float = 0.0
    of_ideal: float = 0.0
    to_sync: float | None = None
    to_async: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        target: the env's name.
        num_envs: how many of it.
        cores: that this process may use.
        bare: env steps a second of a bare loop in this process, the median.
        rows: of the engines that were tried, from the simplest on.
        left_out: names of engines that were not, and why.
    """

    target: str
    num_envs: int
    cores: int
    bare: float
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]

    @property
    def ideal(self) -> float:
        """Env steps a second if every core stepped envs and did nothing else."""
        return self.bare * self.cores

    def as_json(self) -> dict[str, Any]:
        """All of it, with what one needs to know to compare it with another."""
        circumstances = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "gymnasium": gymnasium.__version__,
            "rayvec": rayvec.__version__,
            "system": f"{platform.system()} {platform.machine()}",
        }
        return {**asdict(self), "ideal": self.ideal, "circumstances": circumstances}


def chosen(keys: Sequence[str] | None, num_envs: int, cores: int) -> tuple[list[Engine], dict[str, str]]:
    """The engines to try and those that are not worth it, with the reason. Gymnasium's are always there, to compare with.

    Args:
        keys: those asked for; None: whatever is worth trying.
        num_envs: how many sub-envs.
        cores: that may be used.
    """
    if keys is not None:
        wanted = {*BASELINES, *keys}
        return [engine for key, engine in ENGINES.items() if key in wanted], {}
    engines, left_out, seen = [], {}, set()
    for key, engine in ENGINES.items():
        processes = engine.processes(num_envs, cores)
        alike = (processes, "step_in_caller" in engine.options)
        if key == "ray":
            left_out[engine.name] = "only when asked for: --engines ray"
        elif processes > _MOST_PROCESSES:
            left_out[engine.name] = f"{processes} processes; --engines {key} tries it"
        elif key.startswith("async") and (processes == 0 or alike in seen):
            left_out[engine.name] = f"the same as another with {num_envs} sub-envs and {cores} cores"
        else:
            engines.append(engine)
            if key.startswith("async"):
                seen.add(alike)
    return engines, left_out


def measure(
    target: Target,
    num_envs: int,
    engines: Sequence[Engine],
    seconds: float,
    on_start: Callable[[str], None] = lambda name: None,
    on_rounds: Callable[[int], None] = lambda rounds: None,
    on_round: Callable[[], None] = lambda: None,
    left_out: Mapping[str, str] | None = None,
) -> Report:
    """Measures engines in turns.

    Args:
        target: the env.
        num_envs: how many of it.
        engines: which engines.
        seconds: for each engine, about.
        on_start: called with an engine's name before it is built.
        on_rounds: called with the number of rounds before the first one.
        on_round: called after each round.
        left_out: for the report.

    Raises:
        TargetError: the env cannot be built.
        Exception: what the env raises in a bare loop: no engine can do better.
    """
    env_fns = [target.env_fn] * num_envs
    with closing(build(target)) as env:
        action_space = env.action_space
    actions = random_actions(action_space, num_envs, _NUM_ACTIONS)
    attempts: dict[str, _Attempt] = {}
    with ExitStack() as stack:
        for engine in sorted(engines, key=_building_order):
            on_start(engine.name)
            attempts[engine.key] = stack.enter_context(_attempt(engine, env_fns, actions))
        bare = BareLoop(env_fns)
        stack.callback(bare.close)
        bare.reset(seed=0)
        bare_turn = Turn(bare.step, random_actions(action_space, num_envs, _NUM_ACTIONS, bare=True), num_envs)
        rounds = _rounds(bare_turn, num_envs, seconds)
        on_rounds(rounds)
        started = {engine.key: attempts[engine.key] for engine in engines if not attempts[engine.key].failure}
        turns: dict[str, Rated] = {"bare": bare_turn, **started}
        rates = take_turns(turns, rounds, max(seconds / rounds, _SHORTEST_TURN), on_round)
    cores = usable_cores()
    ideal = [rate * cores for rate in rates["bare"]]
    for key, attempt in attempts.items():
        if attempt.failure:
            rates.pop(key, None)
    rows = tuple(_row(engine, rates, ideal, attempts[engine.key].failure) for engine in engines)
    return Report(target.name, num_envs, cores, statistics.median(rates["bare"]), rows, dict(left_out or {}))


def advise(report: Report, target: Target) -> tuple[str, str]:
    """One line of advice, and the Python that acts on it.

    The simplest of rayvec's engines that is about as fast as the fastest.
    """
    ours = [row for row in report.rows if ENGINES[row.key].mode is not None and not row.failure]
    if not ours:
        return "None of rayvec's engines was measured: see the reasons above.", ""
    # Shares of the ideal come from the same rounds, so they hold where the rates themselves go up and down.
    best = max(row.of_ideal for row in ours)
    row = next(row for row in ours if row.of_ideal >= _AS_GOOD * best)
    engine = ENGINES[row.key]
    compared = {"sync": row.to_sync, "async": row.to_async}
    ratios = [f"{ratio:.2g} times Gymnasium's {name}" for name, ratio in compared.items() if ratio is not None]
    line = f"Use {row.engine}: {row.median:,.0f} env steps/s" + (f", {' and '.join(ratios)}." if ratios else ".")
    if row.key == "sync" and len(ours) > 1:
        line += " Processes do not pay here."
    spread = max(row.spread for row in ours)
    if spread > _NOISY:
        line += f" Rates differed by up to {spread:.0%} between rounds: quieten the machine or measure longer (--seconds)."
    imports = ["import rayvec"]
    if target.function is not None:
        module, attribute = target.function
        imports.append(f"from {module} import {attribute.partition('.')[0]}")
        if target.kwargs:
            imports.insert(0, "from functools import partial")
    return line, "\n".join([*imports, "", engine.code(target, report.num_envs)])


# --- one engine's part --------------------------------------------------------------------------------------


class _Attempt:
    """An engine's turns, until it fails: then the reason is kept, and its rates are no numbers.

    Attributes:
        failure: why it has none; empty while it has.
    """

    def __init__(self) -> None:
        self.turn: Turn | None = None
        self.failure = ""

    def rate(self, seconds: float) -> float:
        """As :class:`~rayvec.measuring.Turn` has it."""
        if self.turn is not None and not self.failure:
            try:
                return self.turn.rate(seconds)
            except Exception as error:
                self.failure = _told(error)
        return float("nan")


@contextmanager
def _attempt(engine: Engine, env_fns: Sequence[EnvFn], actions: Sequence[Any]) -> Iterator[_Attempt]:
    attempt = _Attempt()
    envs = None
    try:
        try:
            envs = engine.make(env_fns)
            envs.reset(seed=0)
            attempt.turn = Turn(envs.step, actions, len(env_fns))
        except Exception as error:
            attempt.failure = _told(error)
        yield attempt
    finally:
        if envs is not None:
            _close(envs)


def _building_order(engine: Engine) -> int:
    """Those that fork come first, before envs are built in this process, and Ray last, since it starts threads."""
    return {"sync": 1, "gymnasium-sync": 1, "ray": 2}.get(engine.key, 0)


def _close(envs: Any) -> None:
    """Closes a vector env in whatever state an interrupt has left it; nothing that it raises is news."""
    with contextlib.suppress(Exception):
        if isinstance(envs, rayvec.AsyncVectorEnv):
            envs.close(timeout=_CLOSING_SECONDS)
        elif isinstance(envs, gymnasium.vector.AsyncVectorEnv):
            _end(envs)
        else:
            envs.close()


def _end(envs: gymnasium.vector.AsyncVectorEnv) -> None:
    """Ends Gymnasium's processes, also where a call is pending or one of them is gone, when its own close raises or waits."""
    for process in envs.processes:
        process.terminate()
    for process in envs.processes:
        process.join(_CLOSING_SECONDS)
    for pipe in envs.parent_pipes:
        if pipe is not None:
            pipe.close()
    envs.closed = True


def _gymnasium_async(env_fns: Sequence[EnvFn]) -> Any:
    """Gymnasium's, whose workers leave Ctrl-C to the caller as rayvec's do, rather than print their tracebacks."""
    return gymnasium.vector.AsyncVectorEnv([partial(_without_interrupts, os.getpid(), env_fn) for env_fn in env_fns])


def _without_interrupts(caller: int, env_fn: EnvFn) -> gymnasium.Env[Any, Any]:
    if os.getpid() != caller:  # Gymnasium calls the first function in the caller, too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return env_fn()


def _rounds(bare: Turn, num_envs: int, seconds: float) -> int:
    """As many as fit, since each has one step of all sub-envs at least."""
    bare.rate(0.0)  # the first one is slower
    started = time.perf_counter()
    bare.rate(0.0)
    step = time.perf_counter() - started
    return max(_FEWEST_ROUNDS, min(_ROUNDS, int(seconds / max(step, _SHORTEST_TURN))))


def _row(engine: Engine, rates: Mapping[str, Sequence[float]], ideal: Sequence[float], failure: str) -> Row:
    if failure:
        return Row(engine.key, engine.name, failure=failure)
    own = rates[engine.key]
    to_sync, to_async = (ratio_of(own, rates[base]) if base in rates else None for base in BASELINES)
    return Row(
        engine.key,
        engine.name,
        tuple(own),
        statistics.median(own),
        spread_of(own),
        ratio_of(own, ideal),
        to_sync,
        to_async,
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _keywords(kwargs: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_quoted(value)}" for name, value in kwargs.items()]


def _quoted(value: Any) -> str:
    """Python for a value, with the double quotes that formatters prefer where it makes no difference."""
    text = repr(value)
    return text if '"' in text or "\\" in text else text.replace("'", '"')
