"""The engines that the contract is tried on: a row for each configuration, with what it can and cannot do.

A test takes the rows it needs through :func:`each`; rows that lack a capability are skipped, and say why::

    @each(ENGINES, needs="in_processes")
    def test_something(engine: Engine) -> None:
        with closing(engine.make([CountingEnv] * 4)) as envs:
            ...

An engine joins by a row in :data:`ENGINES` (and in the smaller tables below it, where it belongs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import context
from typing import Any
from unittest import mock

import pytest
from clusters import ensure_cluster, on_two_nodes

import rayvec
from rayvec import batch
from rayvec.local.bells import Bells

__all__ = ["ENGINES", "FEW", "ONE_EACH", "START_METHODS", "Engine", "each", "named"]


@dataclass(frozen=True)
class Engine:
    """A way to make a vector env.

    Attributes:
        id: its name in test ids.
        base: the class.
        options: what the class is given besides the env_fns.
        in_processes: at least some sub-envs live in processes of their own, which can die, be killed and be watched.
        can_time_out: waits can end before all sub-envs have answered.
        num_workers: how many workers share the sub-envs; None: one for each.
        in_caller: the first worker is the calling process itself.
        start_method: how its processes are started; None: it has none.
        is_ray: its sub-envs live in Ray actors.
        start_seconds: what starting a worker may take more than elsewhere.
        can_fork_caller: a process forked off the caller does no harm (to a caller that has joined a Ray cluster it may).
    """

    id: str
    base: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    in_processes: bool = True
    can_time_out: bool = True
    num_workers: int | None = None
    in_caller: bool = False
    start_method: str | None = "fork"
    is_ray: bool = False
    start_seconds: float = 0.0
    can_fork_caller: bool = True

    def make(self, env_fns: Sequence[Callable[[], Any]], **kwargs: Any) -> Any:
        """The vector env over ``env_fns``."""
        if self.is_ray:
            ensure_cluster()
        return self.base(env_fns, **{**self.options, **kwargs})

    def shares(self, num_envs: int) -> list[list[int]]:
        """The sub-envs of each worker, as the contract says: consecutive runs, as even as they can be."""
        workers = min(self.num_workers or num_envs, num_envs)
        share, longer = divmod(num_envs, workers)
        indices = iter(range(num_envs))
        return [[next(indices) for _ in range(share + (worker < longer))] for worker in range(workers)]

    def together_with(self, index: int, num_envs: int) -> list[int]:
        """The sub-envs that share a worker with sub-env ``index``, itself included."""
        return next(share for share in self.shares(num_envs) if index in share)

    def in_caller_of(self, num_envs: int) -> list[int]:
        """The sub-envs that the calling process steps itself."""
        return self.shares(num_envs)[0] if self.in_caller else []


def _async(name: str, *, num_workers: int | None = None, in_caller: bool = False, **options: Any) -> Engine:
    start_method = options.setdefault("context", "fork")
    if num_workers is not None:
        options["num_workers"] = num_workers
    if in_caller:
        options["step_in_caller"] = True
    return Engine(name, rayvec.AsyncVectorEnv, options, num_workers=num_workers, in_caller=in_caller, start_method=start_method)


def _over_sockets(env_fns: Sequence[Callable[[], Any]], **options: Any) -> Any:
    """What a platform without bells does; a worker that is started again may have them."""
    with mock.patch.object(Bells, "make", return_value=None):
        return rayvec.AsyncVectorEnv(env_fns, **options)


class _OutputsProcess(context.ForkProcess):
    def run(self) -> None:
        with mock.patch.object(batch, "LARGE_SHARE", 1):
            super().run()


class _OutputsContext(context.ForkContext):
    Process = _OutputsProcess


def _with_outputs(env_fns: Sequence[Callable[[], Any]], **options: Any) -> Any:
    """Observations of any size are handed out as large ones are."""
    with mock.patch.object(batch, "LARGE_SHARE", 1):
        return rayvec.AsyncVectorEnv(env_fns, **{"context": _OutputsContext(), **options})


def _ray(name: str, *, num_actors: int | None = None, base: Callable[..., Any] | None = None, **options: Any) -> Engine:
    if num_actors is not None:
        options["num_actors"] = num_actors
    return Engine(
        name,
        base or _make_ray,
        options,
        num_workers=num_actors,
        start_method=None,
        is_ray=True,
        start_seconds=5.0,
        can_fork_caller=False,
    )


def _make_ray(env_fns: Sequence[Callable[[], Any]], **options: Any) -> Any:
    return rayvec.RayVectorEnv(env_fns, **options)


ENGINES = {
    engine.id: engine
    for engine in (
        Engine(
            "sync",
            rayvec.SyncVectorEnv,
            in_processes=False,
            can_time_out=False,
            num_workers=1,
            in_caller=True,
            start_method=None,
        ),
        _async("async"),
        _async("async-pipe", shared_memory=False),
        _async("async-workers-1", num_workers=1),
        _async("async-workers-2", num_workers=2),
        _async("async-workers-3", num_workers=3),
        _async("async-pipe-workers-2", num_workers=2, shared_memory=False),
        _async("async-caller", num_workers=2, in_caller=True),
        _async("async-caller-each", in_caller=True),
        _async("async-concurrency", max_concurrency=2),
        _async("async-forkserver", num_workers=2, context="forkserver"),
        _async("async-spawn", num_workers=2, context="spawn"),
        Engine("async-outputs", _with_outputs, {"num_workers": 3, "step_in_caller": True}, num_workers=3, in_caller=True),
        Engine("async-sockets", _over_sockets, {"num_workers": 2, "context": "fork"}, num_workers=2),
        _ray("ray"),
        _ray("ray-actors-2", num_actors=2),
        _ray("ray-actors-3", num_actors=3),
        _ray("ray-shared-memory", num_actors=2, transport="shared_memory"),
        _ray("ray-object-store", num_actors=2, transport="object_store"),
        _ray("ray-two-nodes", num_actors=2, base=on_two_nodes),
    )
}
"""Every configuration, by its id."""


def named(*names: str) -> list[Engine]:
    """Those configurations."""
    return [ENGINES[name] for name in names]


ONE_EACH = named(
    "sync",
    "async",
    "async-pipe",
    "async-pipe-workers-2",
    "async-workers-3",
    "async-caller",
    "async-concurrency",
    "ray-shared-memory",
    "ray-object-store",
)
"""One for each way that data and errors can travel; cheap to start."""

FEW = named("sync", "async", "async-pipe-workers-2", "async-caller", "ray-shared-memory", "ray-object-store")
"""As different as they can be, where a test is slow."""

START_METHODS = named("async-workers-2", "async-forkserver", "async-spawn")
"""One for each start method."""


def each(engines: Sequence[Engine] | Mapping[str, Engine], needs: str | None = None) -> pytest.MarkDecorator:
    """Runs a test with ``engine`` being each of ``engines``; those without the capability ``needs`` are skipped."""
    rows = list(engines.values()) if isinstance(engines, Mapping) else list(engines)
    params = []
    for engine in rows:
        lacks = needs is not None and not getattr(engine, needs)
        marks = [pytest.mark.skip(reason=f"{engine.id} is not {needs}")] if lacks else []
        if engine.is_ray:
            # Nine actors, started for each of a dozen cases, take more than a minute on two cores.
            marks.append(pytest.mark.timeout(240))
        params.append(pytest.param(engine, id=engine.id, marks=marks))
    return pytest.mark.parametrize("engine", params)
