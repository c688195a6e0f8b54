"""What can be wrong with an env: a probe for each, which looks at envs of its own and says what would go wrong.

A probe takes a function that makes an env, and gives findings; none where all is well. Its docstring's first line is what
it looks at. What an env raises in a probe that looks at something else is no finding of that probe: it lets it through, and
``check.py`` turns it into one.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from rayvec import serialise
from rayvec.columns import snapshot
from rayvec.infos import gather, merge
from rayvec.sub_envs import EnvFn
from rayvec.testing.comparison import ConformanceError, assert_same

__all__ = ["PROBES", "Finding", "Probe", "rollout"]

Env: TypeAlias = gymnasium.Env[Any, Any]

_STEPS = 50
_SECONDS = 2.0
"""An env that steps slowly is stepped for so long at most, in each rollout."""
_SLOW_CLOSE, _STUCK_CLOSE = 1.0, 15.0
_RESERVED = ("final_obs", "final_info", "restarted", "reset_mask")


@dataclass(frozen=True)
class Finding:
    """What is wrong with an env.

    Attributes:
        name: of the fault.
        what: was seen.
        consequence: what goes wrong.
        remedy: how to mend it.
    """

    name: str
    what: str
    consequence: str
    remedy: str


Probe = Callable[[EnvFn], list[Finding]]


# --- how it is built and carried ----------------------------------------------------------------------------


def pickling(env_fn: EnvFn) -> list[Finding]:
    """It can be sent to another process."""
    try:
        serialise.loads(serialise.dumps(env_fn))
    except Exception as error:
        return [
            Finding(
                "not picklable",
                f"the function that makes the env cannot be pickled: {_told(error)}",
                "it runs under fork alone: spawn, forkserver and Ray refuse it",
                "build what cannot be pickled (locks, files, connections, GPU handles) inside the function or in the env's "
                "__init__, and pass names or paths instead",
            )
        ]
    return []


def children(env_fn: EnvFn) -> list[Finding]:
    """It starts no processes of its own."""
    before = set(multiprocessing.active_children())
    with _built(env_fn) as env:
        _start(env)
        started = set(multiprocessing.active_children()) - before
    if not started:
        return []
    return [
        Finding(
            "starts processes",
            f"the env has started {len(started)} process{'es' * (len(started) != 1)} of multiprocessing",
            "workers are daemonic, and Python forbids those to have children: the env raises AssertionError in its worker",
            "pass daemon=False to AsyncVectorEnv, or start a plain subprocess instead",
        )
    ]


def same_spaces(env_fn: EnvFn) -> list[Finding]:
    """Its spaces are the same each time it is built."""
    with _built(env_fn) as one, _built(env_fn) as other:
        pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("observation_space", "action_space")}
    return [
        Finding(
            "differing spaces",
            f"two envs differ in their {name}: {a} and {b}",
            "a vector env over them refuses to start, since their data cannot be batched",
            "decide the spaces by the arguments of the env alone; bounds may differ with observation_mode='different'",
        )
        for name, (a, b) in pairs.items()
        if a != b
    ]


def plain_reset(env_fn: EnvFn) -> list[Finding]:
    """Reset works without a seed and with one."""
    with _built(env_fn) as env:
        try:
            given: Any = env.reset()
        except Exception as error:
            with _built(env_fn) as another:
                another.reset(seed=0)  # where that raises as well, it is no matter of the seed
            return [
                Finding(
                    "needs a seed",
                    f"reset() raised {_told(error)}, reset(seed=0) did not",
                    "autoreset calls reset() without a seed: the first episode to end raises",
                    "let seed=None mean: go on with self.np_random as it is (super().reset(seed=seed) does that)",
                )
            ]
        takes = inspect.signature(env.unwrapped.reset).parameters
        if not any(takes[name].kind is inspect.Parameter.VAR_KEYWORD for name in takes):
            missing = [name for name in ("seed", "options") if name not in takes]
            if missing:
                return [
                    Finding(
                        "reset without its arguments",
                        f"reset takes no {' and no '.join(missing)}",
                        "vector envs pass seed and options by name: reset(seed=...) raises TypeError",
                        "def reset(self, *, seed=None, options=None): super().reset(seed=seed)",
                    )
                ]
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        return [
            Finding(
                "reset returns no pair",
                f"reset() returned {_shown(given)}",
                "a vector env unpacks (observation, info) and raises",
                "return observation, {}",
            )
        ]
    return []


# --- what it gives ------------------------------------------------------------------------------------------


def observations(env_fn: EnvFn) -> list[Finding]:
    """Observations lie in their space, in its dtype."""
    with _built(env_fn) as env:
        faults: dict[str, Finding] = {}
        for call, observation, *_ in rollout(env):
            for finding in _misfits(env.observation_space, observation, f"the observation of {call}"):
                faults.setdefault(finding.name, finding)
        return list(faults.values())


def _misfits(space: Space[Any], value: Any, where: str) -> Iterator[Finding]:
    """What of an observation its space does not allow, part by part."""
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and space.spaces.keys() <= value.keys():
        for key, part in space.spaces.items():
            yield from _misfits(part, value[key], f"{where}, key {key!r},")
        return
    if isinstance(space, spaces.Tuple) and isinstance(value, tuple) and len(value) == len(space.spaces):
        for index, part in enumerate(space.spaces):
            yield from _misfits(part, value[index], f"{where}, part {index},")
        return
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        yield from _misfitting_array(space, value, where)
    elif not space.contains(value):
        yield Finding(
            "observation outside its space",
            f"{where} is {_shown(value)}; the space is {space}",
            "the step raises InvalidObservationError where it does not fit the memory that holds it",
            "return what the space allows, or describe in the space what is returned",
        )


def _misfitting_array(space: Space[Any], value: Any, where: str) -> Iterator[Finding]:
    due = np.dtype(space.dtype)
    try:
        came = np.asarray(value)
    except ValueError:
        came = np.empty(0, object)
    shape = tuple(space.shape or ())
    if came.shape != shape or came.dtype.kind not in "biufc":
        yield Finding(
            "observation of another shape",
            f"{where} has shape {came.shape} and dtype {came.dtype}; the space has {shape} and {due}",
            "every engine raises InvalidObservationError: nothing is broadcast or cut",
            f"return an array of shape {shape}, or give the space the shape of what is returned",
        )
        return
    if isinstance(value, np.ndarray | np.generic) and came.dtype != due:
        fits = np.can_cast(came.dtype, due, "same_kind")
        # An integer of another width is what Discrete spaces get from everywhere, and nothing is lost.
        if not (fits and came.dtype.kind in "iu" and came.ndim == 0):
            yield Finding(
                "observation of another dtype",
                f"{where} is of dtype {came.dtype}; the space says {due}",
                "it is cast at each step, which costs time and precision"
                if fits
                else "every engine raises InvalidObservationError: it cannot be cast safely",
                f"return it as np.asarray(observation, dtype=np.{due}), or give the space dtype=np.{came.dtype}",
            )
    elif not isinstance(value, np.ndarray) and came.ndim:
        yield Finding(
            "observation is no array",
            f"{where} is a {type(value).__name__}; the space is {space}",
            "it is made into an array at each step, which costs time",
            f"return np.asarray(observation, dtype=np.{due})",
        )
    outside = _outside(space, came)
    if outside:
        yield Finding(
            "observation outside its bounds",
            f"{where} {outside}; the space is {space}",
            "no engine looks at bounds: wrappers and learners that scale by them get wrong numbers",
            "widen low and high of the space, or clip what is returned",
        )


def _outside(space: Space[Any], came: np.ndarray[Any, Any]) -> str:
    if isinstance(space, spaces.Box):
        if np.isnan(came).any():
            return "holds NaN"
        if (came < space.low).any() or (came > space.high).any():
            return f"reaches from {came.min():g} to {came.max():g}"
        return ""
    return "" if space.contains(came.astype(space.dtype)[()]) else f"is {_shown(came)}"


def rewards(env_fn: EnvFn) -> list[Finding]:
    """Rewards are numbers, flags are True or False."""
    found: dict[str, Finding] = {}
    with _built(env_fn) as env:
        for call, _, reward, flags, _ in rollout(env):
            if reward is not None or call != "reset":
                number = np.asarray(reward)
                if number.size != 1 or number.dtype.kind not in "biufO" or not hasattr(number.reshape(-1)[0], "__float__"):
                    found["reward"] = Finding(
                        "reward is no number",
                        f"{call} returned the reward {_shown(reward)}",
                        "every engine raises InvalidRewardError",
                        "return float(reward)",
                    )
                elif not np.isfinite(float(number.reshape(-1)[0])):
                    found["reward"] = Finding(
                        "reward is not finite",
                        f"{call} returned the reward {_shown(reward)}",
                        "returns and gradients turn into NaN, in all sub-envs at once",
                        "bound the reward, or end the episode before",
                    )
            odd = [flag for flag in flags if not isinstance(flag, bool | np.bool_)]
            if odd:
                found["flags"] = Finding(
                    "flags are not bool",
                    f"{call} returned {_shown(odd[0])}, a {type(odd[0]).__name__}, for terminated or truncated",
                    "it is taken for what Python holds to be true or false, which may not be meant",
                    "return bool(terminated), bool(truncated)",
                )
    return list(found.values())


def infos(env_fn: EnvFn) -> list[Finding]:
    """Info values batch, and can be sent to another process."""
    seen: list[dict[Any, Any]] = []
    for seed in (0, 1):
        with _built(env_fn) as env:
            seen += [info for *_, info in rollout(env, seed=seed)]
    findings = []
    for info in seen:
        if not isinstance(info, dict):
            return [
                Finding(
                    "info is no dict",
                    f"the info was {_shown(info)}",
                    "a vector env cannot merge it with those of other sub-envs",
                    "return a dict, {} where there is nothing to tell",
                )
            ]
        try:
            serialise.dumps(info)
        except Exception as error:
            findings.append(
                Finding(
                    "info cannot be pickled",
                    f"an info with the keys {list(info)} cannot be pickled: {_told(error)}",
                    "it never arrives from a worker process: the step raises",
                    "put plain values and arrays into infos",
                )
            )
            break
    for key in sorted({key for info in seen for key in info if key in _RESERVED}, key=repr):
        findings.append(
            Finding(
                "info key taken",
                f"the env gives an info {key!r}",
                "vector envs use that key themselves: one overwrites the other",
                f"call it something else, as 'my_{key}'",
            )
        )
    return findings + list(_ragged(seen))


def _ragged(seen: list[dict[Any, Any]], path: str = "infos") -> Iterator[Finding]:
    """Keys whose values are numbers or arrays, and do not fit into one array of numbers."""
    merged = merge([(0, gather(enumerate(seen)))], len(seen))
    for key in dict.fromkeys(key for info in seen for key in info):
        values = [info[key] for info in seen if key in info]
        where = f"{path}[{key!r}]"
        if all(isinstance(value, dict) for value in values):
            yield from _ragged(values, where)
        elif _is_object_array(merged[key]) and any(isinstance(v, int | float | np.ndarray) for v in values):
            forms = list(dict.fromkeys(map(_form, values)))
            if len(forms) > 1:
                yield Finding(
                    "info does not batch",
                    f"{where} is {', '.join(forms[:3])}{' and more' * (len(forms) > 3)}",
                    "where two of these meet in a step, it arrives as an object array, at other times as numbers",
                    "give it one shape and type at each step (pad it), or leave the key out where there is no value",
                )


def _is_object_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "O"


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


# --- what it keeps ------------------------------------------------------------------------------------------


def observation_buffer(env_fn: EnvFn) -> list[Finding]:
    """Observations are not changed after they were returned."""
    with _built(env_fn) as env:
        held, copies = [], []
        for call, observation, *_ in rollout(env, until_end=False):
            held.append((call, observation))
            copies.append(snapshot(observation))
            for (earlier, kept), was in zip(held[:-1], copies, strict=False):
                if not _are_same(was, kept):
                    return [
                        Finding(
                            "reuses its observation buffer",
                            f"the observation of {earlier} changed when {call} was called",
                            "rayvec copies it in time; a replay buffer, a wrapper that stacks frames or Gymnasium's final_obs "
                            "keep the later values",
                            "return self.buffer.copy()",
                        )
                    ]
    return []


def action_kept(env_fn: EnvFn) -> list[Finding]:
    """The actions it is given are neither changed nor kept."""
    with _built(env_fn) as env:
        env.action_space.seed(0)
        env.reset(seed=0)
        action = snapshot(env.action_space.sample())
        arrays = list(_arrays(action))
        before = [array.copy() for array in arrays]
        counts = [sys.getrefcount(array) for array in arrays]
        result = env.step(action)  # held on to: an info may refer to the action
        counts_after = [sys.getrefcount(array) for array in arrays]
        del result
        if any(not np.array_equal(array, was) for array, was in zip(arrays, before, strict=True)):
            return [
                Finding(
                    "changes its action",
                    "step has changed the array of its action in place",
                    "rayvec gives each env a copy; a plain loop or another library sees its actions change, in the replay "
                    "buffer too",
                    "begin step with action = np.array(action), or clip with np.clip(action, low, high), without out=",
                )
            ]
        if counts_after != counts:
            return [
                Finding(
                    "keeps its action",
                    "after step something still refers to the array of its action",
                    "rayvec gives each env a copy; with other vector envs the array is filled with the next action, and what "
                    "was kept (self.last_action, an info) changes with it",
                    "keep a copy: self.last_action = action.copy()",
                )
            ]
    return []


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _arrays(part)


# --- what decides it ----------------------------------------------------------------------------------------


def global_random_state(env_fn: EnvFn) -> list[Finding]:
    """It draws from its own np_random, not from global random state."""
    with _global_states_restored(), _built(env_fn) as env:
        used: dict[str, str] = {}
        before = _global_states()
        for call, *_ in rollout(env):
            after = _global_states()
            for name in before:  # torch may have been imported meanwhile
                if not _are_same(before[name], after[name]):
                    used.setdefault(name, call)
            before = after
    if not used:
        return []
    told = " and ".join(f"{name} (in {call})" for name, call in used.items())
    return [
        Finding(
            "uses global random state",
            f"the env has drawn from {told}, or seeded it",
            "reset(seed=...) does not decide its episodes: results depend on how sub-envs are grouped into processes",
            "call super().reset(seed=seed) in reset and draw from self.np_random, as self.np_random.random()",
        )
    ]


def determinism(env_fn: EnvFn) -> list[Finding]:
    """The same seed and actions give the same episode."""
    with _global_states_restored():
        runs = []
        for _ in range(2):
            _seed_global_states(0)
            with _built(env_fn) as env:
                runs.append([snapshot(row) for row in rollout(env)])
                _seed_global_states(0)
                again, _ = env.reset(seed=0)
    one, other = runs
    for (call, *due), (_, *came) in zip(one, other, strict=False):
        for name, a, b in zip(("observation", "reward", "flags", "infos"), due, came, strict=True):
            try:
                assert_same(a, b, name)
            except ConformanceError as error:
                return [
                    _undecided(
                        f"two envs, both reset with seed=0 and given the same actions, differ in {call}: {error.problem}"
                    )
                ]
    if not _are_same(other[0][1], again):
        return [_undecided("an env that has been used gives another first observation for seed=0 than a new one")]
    return []


def _undecided(what: str) -> Finding:
    return Finding(
        "not decided by its seed",
        what,
        "runs cannot be repeated, and nothing can tell a fault of a vector env from chance",
        "draw from self.np_random alone, reset everything in reset(), and keep clocks, sets and ids out of what is returned",
    )


# --- how it ends --------------------------------------------------------------------------------------------


def closing(env_fn: EnvFn) -> list[Finding]:
    """Close is quick, does not raise, and may be called twice."""
    env = env_fn()
    with contextlib.suppress(Exception):  # another probe's matter; what has begun can be closed
        _start(env)
    taken, error = _timed_close(env)
    if taken is None:
        return [
            Finding(
                "close hangs",
                f"close() has not returned within {_STUCK_CLOSE:g} s",
                "the vector env's close() waits for its timeout (30 s unless told), then kills the worker and all envs in it",
                "give every join(), wait() and recv() in close() a timeout",
            )
        ]
    if error is not None:
        return [
            Finding(
                "close raises",
                f"close() raised {_told(error)}",
                "the vector env's close() raises too, or logs it, and what was left open stays open",
                "let close() work from every state, also right after __init__",
            )
        ]
    if taken > _SLOW_CLOSE:
        return [
            Finding(
                "slow close",
                f"close() took {taken:.1f} s",
                "sub-envs in one worker close one after the other: with 16 of them that is "
                f"{16 * taken:.0f} s, and after close(timeout=...) they are killed",
                "ask everything to stop first, then wait for it once, with a timeout",
            )
        ]
    _, error = _timed_close(env)
    if error is not None:
        return [
            Finding(
                "closes only once",
                f"the second close() raised {_told(error)}",
                "wrappers and vector envs may close an env again on the way out of an error",
                "set what was closed to None and look at it first",
            )
        ]
    return []


def _timed_close(env: Env) -> tuple[float | None, Exception | None]:
    """Seconds that it took, None if it hangs; and what it raised."""
    raised: list[Exception] = []

    def close() -> None:
        try:
            env.close()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=close, name="close", daemon=True)
    started = time.perf_counter()
    thread.start()
    thread.join(_STUCK_CLOSE)
    taken = time.perf_counter() - started
    return None if thread.is_alive() else taken, raised[0] if raised else None


PROBES: tuple[Probe, ...] = (
    pickling,
    children,
    same_spaces,
    plain_reset,
    observations,
    rewards,
    infos,
    observation_buffer,
    action_kept,
    global_random_state,
    determinism,
    closing,
)
"""All of them, in the order of an env's life."""


# --- what they share ----------------------------------------------------------------------------------------


def rollout(
    env: Env, seed: int = 0, steps: int = _STEPS, until_end: bool = True
) -> Iterator[tuple[str, Any, Any, tuple[Any, ...], Any]]:
    """Random steps of an env: for each call its name, observation, reward, flags and info.

    Args:
        env: is reset, and again after an episode, without a seed.
        seed: of the env and the actions.
        steps: how many, unless they take too long.
        until_end: go on after an episode has ended; else stop there.
    """
    env.action_space.seed(seed)
    deadline = time.monotonic() + _SECONDS
    observation, info = env.reset(seed=seed)
    yield "reset", observation, None, (), info
    for number in range(1, steps + 1):
        if number > 2 and time.monotonic() > deadline:
            return
        result: tuple[Any, ...] = env.step(env.action_space.sample())
        observation, reward, terminated, truncated, info = result
        yield f"step {number}", observation, reward, (terminated, truncated), info
        if terminated or truncated:
            if not until_end:
                return
            observation, info = env.reset()
            yield "reset", observation, None, (), info


@contextmanager
def _built(env_fn: EnvFn) -> Iterator[Env]:
    env = env_fn()
    try:
        yield env
    finally:
        with contextlib.suppress(Exception):  # how it closes is another probe's matter
            env.close()


def _start(env: Env) -> None:
    env.reset(seed=0)
    env.action_space.seed(0)
    env.step(env.action_space.sample())


def _global_states() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": np.random.get_state()}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().copy()
    return states


def _seed_global_states(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


@contextmanager
def _global_states_restored() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _are_same(one: Any, other: Any) -> bool:
    try:
        assert_same(one, other, "")
    except ConformanceError:
        return False
    return True


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _shown(value: Any, limit: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
