"""``rayvec check``: what would go wrong with an env in vector envs, and how to mend it.

First the probes (:mod:`rayvec.cli.probes`), each on envs of its own; then the conformance kit (:mod:`rayvec.testing`): every
engine over three of the envs has to give what a plain loop over three others gives, in each autoreset mode. Where a finding
says already why the two must differ, the engines are not compared.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import rayvec
from rayvec.cli.probes import PROBES, Finding, Probe, rollout
from rayvec.cli.targets import Target
from rayvec.sub_envs import EnvFn
from rayvec.testing import ConformanceError, check_vector_env

__all__ = ["ENGINES", "CheckReport", "Outcome", "about_of", "check"]

_NUM_ENVS = 3
_SECONDS = 4.0
"""For stepping in each engine, about."""
_FEWEST_STEPS, _MOST_STEPS = 20, 150
_MODES = 3
_BOUNDS: dict[str, Any] = {"start_timeout": 120.0, "reset_timeout": 60.0, "step_timeout": 60.0}


def _over_ray(env_fns: Sequence[EnvFn], **options: Any) -> Any:
    return rayvec.RayVectorEnv(env_fns, **options)


ENGINES: dict[str, Callable[..., Any]] = {
    "sync": rayvec.SyncVectorEnv,
    "async": partial(rayvec.AsyncVectorEnv, context="fork", **_BOUNDS),
    "async-2": partial(rayvec.AsyncVectorEnv, num_workers=2, context="fork", **_BOUNDS),
    "async-caller": partial(rayvec.AsyncVectorEnv, num_workers=2, step_in_caller=True, context="fork", **_BOUNDS),
    "async-pipe": partial(rayvec.AsyncVectorEnv, num_workers=2, shared_memory=False, context="fork", **_BOUNDS),
    "async-spawn": partial(rayvec.AsyncVectorEnv, num_workers=2, context="spawn", **_BOUNDS),
    "ray": partial(_over_ray, num_actors=2, **_BOUNDS),
}
"""Every engine that an env is tried on, by the name that ``--engines`` has for it."""

_CARRIED = ("async-spawn", "ray")
"""Those that pickle the functions."""
_UNDECIDED = ("not decided by its seed", "uses global random state")
_UNSOUND = (
    "raises",
    "needs a seed",
    "reset without its arguments",
    "reset returns no pair",
    "observation of another shape",
    "reward is no number",
    "info is no dict",
    "differing spaces",
)
"""Findings with which an env cannot be stepped in any engine."""


@dataclass(frozen=True)
class Outcome:
    """Of one thing that was looked at.

    Attributes:
        about: what.
        findings: what is wrong with it.
        skipped: why it was not looked at; empty if it was.
    """

    about: str
    findings: tuple[Finding, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        target: the env's name.
        outcomes: of the probes and the engines, in order.
    """

    target: str
    outcomes: tuple[Outcome, ...]

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]


def check(
    target: Target,
    engines: Sequence[str] | None = None,
    on_start: Callable[[str], None] = lambda about: None,
    on_end: Callable[[], None] = lambda: None,
) -> CheckReport:
    """Probes an env and compares the engines over it.

    Args:
        target: the env.
        engines: keys of :data:`ENGINES`; None: all.
        on_start: called before each probe and engine with what it looks at.
        on_end: called after each of them.
    """
    outcomes: list[Outcome] = []
    known: dict[str, Finding] = {}

    def look(about: str, looking: Callable[[], Outcome]) -> None:
        on_start(about)
        outcome = looking()
        # The same fault is met by several probes.
        outcome = Outcome(about, tuple(f for f in outcome.findings if known.setdefault(f.name, f) is f), outcome.skipped)
        outcomes.append(outcome)
        on_end()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, about what is found here
        for probe in PROBES:
            look(about_of(probe), partial(_probed, probe, target.env_fn))
        for key in ENGINES if engines is None else engines:
            look(f"{key} engine: as a plain loop", partial(_compared, key, target.env_fn, known))
    return CheckReport(target.name, tuple(outcomes))


def about_of(probe: Probe) -> str:
    """What a probe looks at."""
    return (probe.__doc__ or "").splitlines()[0].rstrip(".")


def _probed(probe: Probe, env_fn: EnvFn) -> Outcome:
    try:
        return Outcome(about_of(probe), tuple(probe(env_fn)))
    except Exception as error:
        finding = Finding(
            "raises",
            f"with random actions the env raised {type(error).__name__}: {' '.join(str(error).split())}",
            "a vector env raises it too, and builds the sub-env anew at the next reset()",
            "take every action of action_space in every state, or make the space smaller",
        )
        return Outcome(about_of(probe), (finding,))


def _compared(key: str, env_fn: EnvFn, known: Mapping[str, Finding]) -> Outcome:
    about = f"{key} engine"
    obstacles = [name for name in (*_UNDECIDED, *_UNSOUND) if name in known]
    if key in _CARRIED and "not picklable" in known:
        obstacles.append("not picklable")
    if "starts processes" in known and key != "sync":
        obstacles.append("starts processes")
    if obstacles:
        return Outcome(about, skipped=f"because of: {obstacles[0]}")
    try:
        check_vector_env(ENGINES[key], env_fns=[env_fn] * _NUM_ENVS, num_steps=_num_steps(env_fn))
    except ConformanceError as error:
        told = " ".join(str(error).split())
        finding = Finding(
            f"differs in {key}",
            told,
            f"the {key} engine does not give what a plain loop over this env gives",
            "look for what depends on the process: global state, files, the time, other sub-envs. If there is none, it is a "
            "fault of rayvec's: please report it",
        )
        return Outcome(about, (finding,))
    return Outcome(about)


def _num_steps(env_fn: EnvFn) -> int:
    """How many steps of all sub-envs fit into the time, in all modes, twice: in the engine and in the loop."""
    env = env_fn()
    try:
        started = time.perf_counter()
        count = sum(1 for _ in rollout(env, steps=5))
        step = (time.perf_counter() - started) / count
    finally:
        env.close()
    return max(_FEWEST_STEPS, min(_MOST_STEPS, int(_SECONDS / (2 * _MODES * _NUM_ENVS * step))))
