"""AsyncVectorEnv: worker processes step the sub-envs, and the caller too if asked.

::

                          ┌────────────── shared Batch (actions, observations, rewards, flags) ─────────────┐
    step(actions) ─ write ▶                                                                                 ▶ results
          │               └──▲──────────────────────────▲─────────────────────────────▲─────────────────────┘
          │ 1 byte           │ rows 0..k                │ rows k..m                   │ rows m..n
          ├───────────▶ process 0: SubEnvs              │                             │
          ├──────────────────────────────────▶ process 1: SubEnvs                     │
          └─ (step_in_caller) ─────────────────────────────────────────────▶ the caller: SubEnvs

One step: the caller writes all actions into the batch and sends each process one byte down its socket. Each process reads
its rows' actions, steps its sub-envs, writes their rows and sends one byte back; infos and failures follow it where there
are any. Meanwhile the caller steps its own share, then waits for the bytes of the others, with a deadline if there is one
and an eye on the end of each process. Without shared memory the rows travel behind the bytes, still unpickled.
"""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode

from rayvec.columns import custom_space_in
from rayvec.contract import Timeouts, check_autoreset_mode, check_env_fns
from rayvec.local.custom import CustomWorker, custom_workers
from rayvec.local.memory import SharedBlock
from rayvec.local.process import ProcessWorker
from rayvec.local.seeding import WorkerSeeds
from rayvec.local.waiting import usable_cores
from rayvec.partial import PartialVectorEnv, check_batch_size
from rayvec.restarts import FailurePolicy
from rayvec.spaces import ObservationMode, check_observation_mode
from rayvec.sub_envs import EnvFn
from rayvec.worker import InlineWorker, Worker, shares

__all__ = ["AsyncVectorEnv", "checked_num_workers"]


class AsyncVectorEnv(PartialVectorEnv):
    """Steps sub-envs in worker processes.

    Args:
        env_fns: functions that each make an env; each is called once, in its worker.
        shared_memory: whether workers write into memory that the caller reads; else rows travel through sockets.
        copy: whether observations are handed out as copies; else as views, valid until the next call.
        context: a start method ("fork", "forkserver", "spawn") or a context of ``multiprocessing``; None: its default.
        daemon: the ``daemon`` flag of the processes; a daemonic one may not have child processes of its own.
        worker: a worker function written for Gymnasium's AsyncVectorEnv: 8 arguments (1.4), or 7 (1.2).
        observation_mode: "same"; "different" for spaces of one shape and dtype with other bounds; or a pair
            (observation_space, single_observation_space).
        autoreset_mode: what happens at the end of an episode.
        max_concurrency: how many sub-envs may be in ``reset`` or ``step`` at a time; None: as many as there are workers.
        num_workers: processes that step sub-envs: None, one for each sub-env; a number, which share them in consecutive
            runs as even as they can be; "auto", the cores that this process may use.
        step_in_caller: whether the calling process is one of the workers: it steps the first share itself while it waits
            for the others.
        batch_size: how many sub-envs ``recv`` hands out; None: all. See ``docs/partial_batches.md``.
        start_timeout: seconds that the constructor may take; None: no bound.
        reset_timeout: seconds that ``reset`` may take; None: no bound.
        step_timeout: seconds that ``step`` may take; None: no bound.
        call_timeout: seconds that ``call``, ``get_attr``, ``set_attr`` and ``render`` may take; None: no bound.
        on_failure: what becomes of a sub-env that fails in ``reset`` or ``step``: "raise", the caller is told by an exception;
            "restart", it is built anew and the call goes on (docs/failures.md).
            Not with a custom ``worker``.
        max_restarts: under "restart", how often each sub-env may be restarted within ``restart_window`` before its failure
            is raised; None: as often as it fails.
        restart_window: seconds.

    Raises:
        ValueError, TypeError: an argument is wrong, or a custom space cannot be shared.
        RuntimeError: the spaces of the sub-envs cannot be batched.
        CallTimeoutError: out of ``start_timeout``.
        WorkerLostError: a worker died while it built its sub-envs.
        Exception: what an env_fn raised. Whatever is raised, nothing is left behind.

    Example:
        >>> import gymnasium as gym
        >>> import rayvec
        >>> envs = rayvec.AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4, num_workers=2)
        >>> observations, infos = envs.reset(seed=7)
        >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        >>> rewards
        array([1., 1., 1., 1.])
        >>> envs.close()
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        shared_memory: bool = True,
        copy: bool = True,
        context: str | BaseContext | None = None,
        daemon: bool = True,
        worker: Callable[..., None] | None = None,
        observation_mode: ObservationMode = "same",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_concurrency: int | None = None,
        *,
        num_workers: int | str | None = None,
        step_in_caller: bool = False,
        batch_size: int | None = None,
        start_timeout: float | None = None,
        reset_timeout: float | None = None,
        step_timeout: float | None = None,
        call_timeout: float | None = None,
        on_failure: str = "raise",
        max_restarts: int | None = 10,
        restart_window: float = 60.0,
    ) -> None:
        policy = FailurePolicy(on_failure, max_restarts, restart_window)
        self.env_fns = check_env_fns(env_fns)
        self.shared_memory = shared_memory
        self.context = context
        self.daemon = daemon
        self.worker = worker
        batch_size = check_batch_size(batch_size, len(self.env_fns))
        self.max_concurrency = _checked_max_concurrency(max_concurrency)
        autoreset_mode = check_autoreset_mode(autoreset_mode)
        check_observation_mode(observation_mode)
        process_context = _checked_context(context)
        if worker is not None:
            if num_workers is not None or step_in_caller:
                raise ValueError(
                    "worker: a custom worker steps one sub-env in a process of its own; it goes with neither num_workers="
                    f"{num_workers!r} nor step_in_caller={step_in_caller!r}"
                )
            if policy.restarts:
                raise ValueError(
                    "on_failure='restart' does not go with a custom worker, whose messages cannot say how a restarted sub-env "
                    "goes on: leave on_failure='raise', or use rayvec's own workers."
                )
            _check_arguments(worker, self.max_concurrency)
            workers: Sequence[Worker] = custom_workers(
                worker,
                self.env_fns,
                context=process_context,
                daemon=daemon,
                shared_memory=shared_memory,
                observation_mode=observation_mode,
                autoreset_mode=autoreset_mode,
                max_concurrency=self.max_concurrency,
            )
        else:
            seeds = WorkerSeeds()
            envs_of_workers = shares(len(self.env_fns), checked_num_workers(num_workers, len(self.env_fns)))
            workers = [
                InlineWorker([self.env_fns[index] for index in envs], envs.start, autoreset_mode)
                if step_in_caller and envs.start == 0
                else ProcessWorker(
                    [self.env_fns[index] for index in envs],
                    envs.start,
                    autoreset_mode,
                    process_context,
                    daemon,
                    seeds,
                    name=f"Worker<{type(self).__name__}>-{number}",
                )
                for number, envs in enumerate(envs_of_workers)
            ]
        shares_rows = shared_memory and worker is None
        super().__init__(
            workers,
            batch_size=batch_size,
            copy=copy,
            observation_mode=observation_mode,
            autoreset_mode=autoreset_mode,
            max_concurrency=self.max_concurrency,
            timeouts=Timeouts(start_timeout, reset_timeout, step_timeout, call_timeout),
            failure_policy=policy,
            make_block=SharedBlock if shares_rows else None,
            check_spaces=_check_shareable if shares_rows else None,
        )

    @property
    def processes(self) -> list[BaseProcess | None]:
        """The worker processes, in the order of their sub-envs; None in place of one that has ended."""
        return [worker.process for worker in self._workers if isinstance(worker, ProcessWorker | CustomWorker)]


def checked_num_workers(num_workers: int | str | None, num_envs: int) -> int:
    """How many workers an option ``num_workers`` means for so many sub-envs; raises TypeError or ValueError."""
    if num_workers is None:
        return num_envs
    if num_workers == "auto":
        return min(usable_cores(), num_envs)
    if isinstance(num_workers, bool) or not isinstance(num_workers, int | np.integer):
        raise TypeError(f"num_workers: expected None, 'auto' or a number of processes, got {num_workers!r}")
    if num_workers < 1:
        raise ValueError(f"num_workers: expected 1 or more, got {num_workers}")
    return min(int(num_workers), num_envs)


def _checked_max_concurrency(max_concurrency: Any) -> int | None:
    if max_concurrency is None:
        return None
    if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int | np.integer):
        raise ValueError(f"max_concurrency: expected None or a number of sub-envs, got {max_concurrency!r}")
    if max_concurrency < 1:
        raise ValueError(f"max_concurrency: expected 1 or more, got {max_concurrency}")
    return int(max_concurrency)


def _checked_context(context: str | BaseContext | None) -> BaseContext:
    if isinstance(context, BaseContext):
        return context
    try:
        return multiprocessing.get_context(context)
    except (TypeError, ValueError, AttributeError):
        known = multiprocessing.get_all_start_methods()
        raise ValueError(f"context: expected None, one of {known} or a context of multiprocessing, got {context!r}") from None


def _check_arguments(worker: Callable[..., None], max_concurrency: int | None) -> None:
    if not callable(worker):
        raise TypeError(f"worker: expected a function, got {worker!r}")
    counts = [count for count in (8, 7) if _accepts(worker, count)]
    if not counts:
        raise ValueError(
            "worker: expected a function of 8 arguments (index, env_fn, pipe, parent_pipe, shared_memory, error_queue, "
            f"autoreset_mode, semaphore), or of 7 without the last, got the signature {inspect.signature(worker)}"
        )
    if 8 not in counts and max_concurrency is not None:
        raise ValueError(
            f"max_concurrency={max_concurrency} needs a worker of 8 arguments: the semaphore that bounds it is the last, and "
            f"{inspect.signature(worker)} does not take it"
        )


def _accepts(function: Callable[..., None], count: int) -> bool:
    try:
        inspect.signature(function).bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _check_shareable(space: Space[Any]) -> None:
    custom = custom_space_in(space)
    if custom is not None:
        raise ValueError(
            f"shared_memory=True, but the layout of the custom space {custom} ({type(custom).__name__}) is not known: pass "
            "shared_memory=False, or derive it from one of Gymnasium's spaces."
        )
