"""Worker functions as a user writes them for Gymnasium's AsyncVectorEnv: with its arguments, messages and error queue."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import write_to_shared_memory

from rayvec.testing import CountingEnv

__all__ = ["CustomEnv", "doubling_worker", "older_worker"]


class CustomEnv(CountingEnv):
    """A CountingEnv whose sub-env 1 does what its level says: ``set_attr("level", ...)`` decides when."""

    def step(self, action: np.int64) -> Any:
        """As CountingEnv, after what its level says."""
        self.act("step")
        return super().step(action)

    def reset(self, **kwargs: Any) -> Any:
        """As CountingEnv, after what its level says."""
        self.act("reset")
        return super().reset(**kwargs)

    def act(self, call: str = "call") -> None:
        """Raises, dies or waits for a file."""
        if not isinstance(self.level, tuple) or self.level[0] != call:
            return
        what, *args = self.level[1:]
        if what == "raise":
            raise args[0]
        if what == "die":
            os._exit(args[0])
        if what == "wait":
            Path(f"{args[0]}.entered").touch()
            while not Path(args[0]).exists():
                time.sleep(0.002)

    def close(self) -> None:
        """As CountingEnv."""
        self.act("close")
        super().close()


def doubling_worker(
    index: int,
    env_fn: Callable[[], Any],
    pipe: Any,
    parent_pipe: Any,
    shared_memory: Any,
    error_queue: Any,
    autoreset_mode: AutoresetMode,
    semaphore: Any,
) -> None:
    """Written for Gymnasium 1.4; doubles rewards, and tells the worker's pid in the infos."""
    bound = nullcontext() if semaphore is None else semaphore
    _serve(index, env_fn, pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, bound)


def older_worker(
    index: int,
    env_fn: Callable[[], Any],
    pipe: Any,
    parent_pipe: Any,
    shared_memory: Any,
    error_queue: Any,
    autoreset_mode: AutoresetMode,
) -> None:
    """The same, written for Gymnasium 1.2."""
    _serve(index, env_fn, pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, nullcontext())


def _serve(
    index: int,
    env_fn: Callable[[], Any],
    pipe: Any,
    parent_pipe: Any,
    shared_memory: Any,
    error_queue: Any,
    autoreset_mode: AutoresetMode,
    bound: Any,
) -> None:
    env = env_fn()
    ended = False

    def given(observation: Any) -> Any:
        if not shared_memory:
            return observation
        write_to_shared_memory(env.observation_space, index, observation, shared_memory)
        return None

    parent_pipe.close()
    try:
        while True:
            command, data = pipe.recv()
            if command == "reset":
                with bound:
                    observation, info = env.reset(**data)
                ended = False
                pipe.send(((given(observation), info), True))
            elif command == "step":
                with bound:
                    if ended and autoreset_mode == AutoresetMode.NEXT_STEP:
                        observation, info = env.reset()
                        reward, terminated, truncated = 0.0, False, False
                    else:
                        observation, reward, terminated, truncated, info = env.step(data)
                ended = terminated or truncated
                info = {**info, "pid": os.getpid()}
                pipe.send(((given(observation), 2 * reward, terminated, truncated, info), True))
            elif command == "close":
                pipe.send((None, True))
                break
            elif command == "_call":
                name, args, kwargs = data
                attribute = env.get_wrapper_attr(name)
                pipe.send((attribute(*args, **kwargs) if callable(attribute) else attribute, True))
            elif command == "_setattr":
                env.set_wrapper_attr(*data)
                pipe.send((None, True))
            elif command == "_check_spaces":
                _, observation_space, action_space = data
                pipe.send(((observation_space == env.observation_space, action_space == env.action_space), True))
            else:
                raise RuntimeError(f"unknown command {command!r}")
    except (KeyboardInterrupt, Exception):
        kind, value, _ = sys.exc_info()
        error_queue.put((index, kind, value, traceback.format_exc()))
        pipe.send((None, False))
    finally:
        env.close()
