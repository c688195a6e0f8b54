"""RayVectorEnv: Ray actors step the sub-envs, on this machine or on others.

::

                    ┌───────────── Batch ─────────────┐
    step(actions) ─▶│ rows 0..k │ rows k..m │ rows m..n│─▶ results
                    └─────▲───────────▲───────────▲───┘
          shared memory,  │           │           │  one actor call and one object each step
          a bell each way │           │           │
                     actor 0       actor 1     actor 2
                     on the caller's node      on another node

How an actor is talked to is chosen for each by its node; the data is the same either way.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode

from rayvec.actors import ActorWorker, StoredActions
from rayvec.cluster import ActorResources, ClusterUse, caller_node, check_cluster
from rayvec.contract import Timeouts, check_autoreset_mode, check_env_fns
from rayvec.local.memory import SharedBlock
from rayvec.local.seeding import WorkerSeeds
from rayvec.partial import PartialVectorEnv, check_batch_size
from rayvec.restarts import FailurePolicy
from rayvec.spaces import ObservationMode, check_observation_mode
from rayvec.sub_envs import EnvFn
from rayvec.worker import shares

__all__ = ["ActorInfo", "RayVectorEnv"]

_ABANDON_TIMEOUT = 1.0
"""Seconds that sub-envs have to close when the script ends without ``close()``."""
TRANSPORTS = ("auto", "shared_memory", "object_store")


class ActorInfo(NamedTuple):
    """One actor of a vector env.

    Attributes:
        envs: the indices of its sub-envs.
        handle: Ray's handle; None once it has ended.
        actor_id: its id.
        node_id: of the node that it is on.
        pid: of its process.
        transport: ``"shared_memory"`` or ``"object_store"``.
    """

    envs: range
    handle: Any
    actor_id: str | None
    node_id: str | None
    pid: int | None
    transport: str | None


class RayVectorEnv(PartialVectorEnv):
    """Steps sub-envs in Ray actors.

    Args:
        env_fns: functions that each make an env; each is called once, in its actor, and travels there pickled.
        copy: whether observations are handed out as copies; else as views, valid until the next call.
        observation_mode: "same"; "different" for spaces of one shape and dtype with other bounds; or a pair
            (observation_space, single_observation_space).
        autoreset_mode: what happens at the end of an episode.
        num_actors: actors that share the sub-envs in consecutive runs as even as they can be; None: one for each.
        num_cpus: logical CPUs that each actor asks for, fractions too; None: none, so that any number fits.
        num_gpus: GPUs that each actor asks for.
        resources: custom resources that each actor asks for.
        scheduling_strategy: "DEFAULT", "SPREAD", a placement group, or one of Ray's scheduling strategies.
        runtime_env: what an actor's process needs to have, as Ray defines it.
        transport: "auto", by the node that an actor is on; "shared_memory", all on the caller's node (there they are placed,
            unless a scheduling_strategy is given); "object_store", through Ray wherever they are.
        batch_size: how many sub-envs ``recv`` hands out; None: all. See ``docs/partial_batches.md``.
        placement_timeout: seconds that Ray has to place an actor and to set up its runtime_env; None: no bound.
        start_timeout: seconds that the constructor may take; None: no bound.
        reset_timeout: seconds that ``reset`` may take; None: no bound.
        step_timeout: seconds that ``step`` may take; None: no bound.
        call_timeout: seconds that ``call``, ``get_attr``, ``set_attr`` and ``render`` may take; None: no bound.
        on_failure: what becomes of a sub-env that fails in ``reset`` or ``step``: "raise", the caller is told by an exception;
            "restart", it is built anew and the call goes on (docs/failures.md).
        max_restarts: under "restart", how often each sub-env may be restarted within ``restart_window`` before its failure
            is raised; None: as often as it fails.
        restart_window: seconds.

    Raises:
        ValueError, TypeError: an argument is wrong, or an env_fn cannot be pickled.
        RuntimeError: the spaces of the sub-envs cannot be batched.
        PlacementError: the cluster cannot place the actors within ``placement_timeout``, or has ended.
        TransportError: the actors cannot share the caller's memory, and have to; or this process uses Ray Client.
        ConnectionError: nobody answers at ``RAY_ADDRESS``.
        CallTimeoutError: out of ``start_timeout``.
        WorkerLostError: an actor died while it built its sub-envs.
        Exception: what an env_fn raised. Whatever is raised, nothing is left behind.

    Example:
        >>> import gymnasium as gym
        >>> import rayvec
        >>> envs = rayvec.RayVectorEnv([lambda: gym.make("CartPole-v1")] * 4, num_actors=2)  # doctest: +SKIP
        >>> observations, infos = envs.reset(seed=7)  # doctest: +SKIP
        >>> envs.close()  # doctest: +SKIP
    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        copy: bool = True,
        observation_mode: ObservationMode = "same",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        num_actors: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        resources: Mapping[str, float] | None = None,
        scheduling_strategy: Any = None,
        runtime_env: Mapping[str, Any] | None = None,
        transport: str = "auto",
        batch_size: int | None = None,
        placement_timeout: float | None = 60.0,
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
        mode = check_autoreset_mode(autoreset_mode)
        check_observation_mode(observation_mode)
        batch_size = check_batch_size(batch_size, len(self.env_fns))
        asked = ActorResources(num_cpus, num_gpus, resources, runtime_env, scheduling_strategy)
        asked.check()
        if transport not in TRANSPORTS:
            raise ValueError(f"transport: expected one of {TRANSPORTS}, got {transport!r}")
        num_actors = _checked_num_actors(num_actors, len(self.env_fns))
        self._use = ClusterUse()
        # Behind the finalizer that ends the actors.
        self._use_finalizer = multiprocessing.util.Finalize(self, self._use.release, exitpriority=90)
        try:
            seeds, stored, here = WorkerSeeds(), StoredActions(), caller_node()
            check_cluster(here)
            workers = [
                ActorWorker(
                    [self.env_fns[index] for index in envs],
                    envs.start,
                    mode,
                    resources=asked,
                    transport=transport,
                    placement_timeout=placement_timeout,
                    use=self._use,
                    caller_node=here,
                    seeds=seeds,
                    stored=stored,
                )
                for envs in shares(len(self.env_fns), num_actors)
            ]
            super().__init__(
                workers,
                batch_size=batch_size,
                copy=copy,
                observation_mode=observation_mode,
                autoreset_mode=mode,
                timeouts=Timeouts(start_timeout, reset_timeout, step_timeout, call_timeout),
                failure_policy=policy,
                make_block=None if transport == "object_store" else SharedBlock,
            )
        except BaseException:
            self._release_cluster()
            raise
        _OPEN.add(self)

    @property
    def actors(self) -> list[ActorInfo]:
        """The actors, in the order of their sub-envs."""
        return [
            ActorInfo(worker.envs, worker.handle, worker.actor_id, worker.node_id, worker.pid, worker.transport)
            for worker in self._workers
            if isinstance(worker, ActorWorker)
        ]

    def _free(self, timeout: float, forced: bool = False) -> Any:
        try:
            return super()._free(timeout, forced)
        finally:
            self._release_cluster()

    def _release_cluster(self) -> None:
        self._use_finalizer.cancel()
        self._use.release()


_OPEN: weakref.WeakSet[RayVectorEnv] = weakref.WeakSet()


@atexit.register
def _close_open() -> None:
    """Before Ray ends, which was imported earlier and so ends later, its actors are closed."""
    for envs in list(_OPEN):
        with contextlib.suppress(Exception):
            envs._free(_ABANDON_TIMEOUT)


def _checked_num_actors(num_actors: Any, num_envs: int) -> int:
    if num_actors is None:
        return num_envs
    if isinstance(num_actors, bool) or not isinstance(num_actors, int | np.integer):
        raise TypeError(f"num_actors: expected None or a number of actors, got {num_actors!r}")
    if num_actors < 1:
        raise ValueError(f"num_actors: expected 1 or more, got {num_actors}")
    return min(int(num_actors), num_envs)
