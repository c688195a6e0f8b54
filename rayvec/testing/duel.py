"""A vector env and a plain loop side by side: the same calls to both, the same answers due from both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode

from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.oracle import EnvFn, PlainLoop

__all__ = ["Duel", "MakeVectorEnv", "duel"]

MakeVectorEnv = Callable[..., Any]
"""``make(env_fns, **kwargs)`` gives a vector env; ``kwargs``: ``autoreset_mode`` always, and at times ``copy`` and
``observation_mode``."""

_STEP_PARTS = ("observations", "rewards", "terminations", "truncations", "infos")


class Duel:
    """Two that are given the same calls.

    Args:
        envs: the vector env that is judged.
        loop: the plain loop over envs of the same kind.
        seed: of the random actions.

    Attributes:
        envs: the vector env.
        loop: the plain loop.
        num_calls: how many resets and steps there were.
        ended: bool ``(num_envs,)``: which sub-envs ended their episodes in the last step and were not reset since.
    """

    def __init__(self, envs: Any, loop: PlainLoop, seed: int = 0) -> None:
        self.envs = envs
        self.loop = loop
        self.num_calls = 0
        self.ended = np.zeros(loop.num_envs, np.bool_)
        self._action_space = copy.deepcopy(loop.action_space)
        self._action_space.seed(seed)

    def actions(self) -> Any:
        """Random valid actions."""
        return self._action_space.sample()

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the vector env that must not raise."""
        method = self._method(name)
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise ConformanceError(f"{name} raised {type(error).__name__}: {error}") from error

    def ask_to_raise(self, error_type: type[Exception], name: str, *args: Any, **kwargs: Any) -> Exception:
        """Calls a method of the vector env that has to raise, and returns what it raised."""
        method = self._method(name)
        try:
            result = method(*args, **kwargs)
        except error_type as error:
            return error
        except Exception as error:
            raise ConformanceError(f"{name} raised {type(error).__name__}: {error}, expected {error_type.__name__}") from error
        raise ConformanceError(f"{name} returned {_shortened(result)}, expected it to raise {error_type.__name__}")

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self.envs, name, None)
        if method is None:
            raise ConformanceError(f"{type(self.envs).__name__} has no {name!r}")
        return method

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[Any, Any]]:
        """Resets both and compares; returns what the vector env gave."""
        result = self.ask("reset", seed=copy.deepcopy(seed), options=copy.deepcopy(options))
        return self.compare_reset(result, seed=seed, options=options)

    def step(self, actions: Any = None) -> tuple[Any, ...]:
        """Steps both (with random actions if None are given) and compares; returns what the vector env gave."""
        actions = self.actions() if actions is None else actions
        return self.compare_step(self.ask("step", copy.deepcopy(actions)), actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Calls a method of both and compares."""
        expected = getattr(self.loop, name)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        assert_same(expected, self.ask(name, *args, **kwargs), f"{name}{args}")

    def compare_reset(
        self, result: Any, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[Any, Any]]:
        """Resets the loop and compares with what the vector env's reset gave."""
        self.num_calls += 1
        observations, infos = self.loop.reset(seed=seed, options=copy.deepcopy(options))
        mask = (options or {}).get("reset_mask", True)
        self.ended &= ~np.asarray(mask, np.bool_)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ConformanceError(f"reset returned {_shortened(result)}, expected a pair (observations, infos)")
        self._compare_observations(observations, result[0])
        _compare_rows(infos, result[1], "infos")
        return result

    def compare_step(self, result: Any, actions: Any) -> tuple[Any, ...]:
        """Steps the loop and compares with what the vector env's step gave."""
        self.num_calls += 1
        expected = self.loop.step(actions)
        self.ended = expected[2] | expected[3]
        if not isinstance(result, tuple) or len(result) != 5:
            raise ConformanceError(f"step returned {_shortened(result)}, expected a tuple {_STEP_PARTS}")
        # The flags first: where they differ, the rest does too, and says less.
        for position in (2, 3, 1, 4):
            _compare_rows(expected[position], result[position], _STEP_PARTS[position])
        self._compare_observations(expected[0], result[0])
        return result

    def compare_error(self, error: Exception, expected_error: Exception) -> None:
        """Checks that an env's own exception arrived with its type and arguments."""
        if type(error) is not type(expected_error) or error.args != expected_error.args:
            raise ConformanceError(f"got {error!r}, expected the env's own {expected_error!r}")

    def _compare_observations(self, expected: Any, actual: Any) -> None:
        try:
            assert_same(expected, actual, "observations")
        except ConformanceError as error:
            error.locate(env_index=_differing_row(self.loop.single_observation_space, expected, actual, self.loop.num_envs))
            raise


@contextmanager
def duel(
    make: MakeVectorEnv,
    env_fns: Sequence[EnvFn],
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    *,
    seed: int = 0,
    **kwargs: Any,
) -> Iterator[Duel]:
    """Builds both over their own envs, and closes both afterwards.

    Args:
        make: makes the vector env.
        env_fns: a function for each sub-env.
        autoreset_mode: of both.
        seed: of the random actions.
        **kwargs: for ``make``.
    """
    loop = PlainLoop(env_fns, autoreset_mode)
    try:
        envs = make(list(env_fns), autoreset_mode=autoreset_mode, **kwargs)
    except Exception as error:
        loop.close()
        problem = f"making the vector env raised {type(error).__name__}: {error}"
        raise ConformanceError(problem, mode=autoreset_mode.value) from error
    both = Duel(envs, loop, seed)
    try:
        yield both
        if not envs.closed:
            both.ask("close")
    except ConformanceError as error:
        error.locate(mode=autoreset_mode.value, step=both.num_calls)
        raise
    finally:
        if not loop.closed:
            loop.close()
        if not envs.closed:
            close_quietly(envs)


def close_quietly(envs: Any) -> None:
    """Closes a vector env that has failed its check already, so that what else it raises is no news."""
    try:
        envs.close()
    except Exception:
        pass


def _compare_rows(expected: Any, actual: Any, where: str) -> None:
    """Compares data whose every array has a row for each sub-env."""
    try:
        assert_same(expected, actual, where)
    except ConformanceError as error:
        if error.position:
            error.locate(env_index=error.position[0])
        raise


def _differing_row(space: Space[Any], expected: Any, actual: Any, num_envs: int) -> int | None:
    for index in range(num_envs):
        try:
            assert_same(_row(space, expected, index), _row(space, actual, index), "row")
        except ConformanceError:
            return index
        except Exception:
            return None
    return None


def _row(space: Space[Any], batch: Any, index: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _row(part, batch[key], index) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_row(part, item, index) for part, item in zip(space.spaces, batch, strict=True))
    row: npt.NDArray[Any] = batch[index]
    return row


def _shortened(value: Any, limit: int = 120) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
