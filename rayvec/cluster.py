"""The Ray cluster that actors are placed on: joining it, starting a small one where there is none, what it has.

Importing this module imports Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import ray
from ray._private import services
from ray._private import worker as ray_worker
from ray.util.client import ray as client
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rayvec.errors import PlacementError, TransportError

__all__ = ["ActorResources", "ClusterUse", "caller_node", "check_cluster", "describe_cluster"]

_REACH_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 3.0
"""Seconds that Ray has to say which nodes there are."""
_ANEW = "Call close() and ray.shutdown(), start Ray or join a cluster that runs, and make a new vector env."
_NAMED_STRATEGIES = ("DEFAULT", "SPREAD")


class ActorResources(NamedTuple):
    """What each actor asks the cluster for, in Ray's terms.

    Attributes:
        num_cpus: logical CPUs; None: none.
        num_gpus: GPUs; None: none.
        resources: custom resources.
        runtime_env: what its process needs to have.
        scheduling_strategy: where it may be placed.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] | None = None
    runtime_env: Mapping[str, Any] | None = None
    scheduling_strategy: Any = None

    def check(self) -> None:
        """Raises TypeError or ValueError where one of them cannot be."""
        for name in ("num_cpus", "num_gpus"):
            _check_amount(name, getattr(self, name))
        if self.resources is not None:
            if not isinstance(self.resources, Mapping):
                raise TypeError(f"resources: expected a dict of names and amounts, got {self.resources!r}")
            for name, amount in self.resources.items():
                if name in ("CPU", "GPU"):
                    raise ValueError(f"resources: {name} is asked for with num_{name.lower()}s")
                _check_amount(f"resources[{name!r}]", amount)
        if self.runtime_env is not None and not isinstance(self.runtime_env, Mapping):
            raise TypeError(f"runtime_env: expected a dict as Ray defines it, got {self.runtime_env!r}")
        strategy = self.scheduling_strategy
        if isinstance(strategy, str) and strategy not in _NAMED_STRATEGIES:
            raise ValueError(
                f"scheduling_strategy: expected one of {_NAMED_STRATEGIES}, a placement group or one of Ray's scheduling "
                f"strategies, got {strategy!r}"
            )

    def as_options(self, node_id: str | None) -> dict[str, Any]:
        """Options of a Ray actor; where no strategy is given, one on ``node_id`` if that is not None."""
        strategy = self.scheduling_strategy
        if isinstance(strategy, PlacementGroup):
            strategy = PlacementGroupSchedulingStrategy(strategy)
        if strategy is None and node_id is not None:
            strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        options = {
            "num_cpus": self.num_cpus or 0,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources) if self.resources else None,
            "runtime_env": dict(self.runtime_env) if self.runtime_env else None,
            "scheduling_strategy": strategy,
        }
        return {name: value for name, value in options.items() if value is not None}

    def __str__(self) -> str:
        asked = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": self.resources}
        told = [f"{name}={value!r}" for name, value in asked.items() if value]
        if self.scheduling_strategy is not None:
            told.append(f"scheduling_strategy={self.scheduling_strategy!r}")
        return ", ".join(told) or "no resources"


def _check_amount(name: str, amount: Any) -> None:
    if amount is None:
        return
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f"{name}: expected None or a number, got {amount!r}")
    if not 0 <= amount < float("inf"):
        raise ValueError(f"{name}: expected 0 or more, got {amount!r}")


class _Session:
    """One time that this process is joined to a cluster.

    Attributes:
        identity: what no other session has.
        is_ours: it was started here.
        num_uses: how many use it.
    """

    def __init__(self, is_ours: bool) -> None:
        self.identity = _identity()
        self.is_ours = is_ours
        self.num_uses = 0


def _identity() -> tuple[str, str]:
    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_job_id())


class ClusterUse:
    """Somebody's use of Ray, which has to run meanwhile.

    Where this process has not joined a cluster it joins the one that ``RAY_ADDRESS`` names or that ``ray start`` has started
    on this machine. Where there is none it starts a small one, quietly, which ends with its last use. Any other cluster
    is left running, and this process stays joined to it.
    """

    _lock = threading.RLock()
    _latest: _Session | None = None

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._is_released = False
        with self._lock:
            session = ClusterUse._latest
            _check_is_no_client(None)
            if not ray.is_initialized():
                session = _Session(is_ours=_join_or_start())
            elif session is None or session.identity != _identity():
                session = _Session(is_ours=False)
            session.num_uses += 1
            self._session = ClusterUse._latest = session

    def is_alive(self) -> bool:
        """Whether this process is still joined to that cluster; a call of Ray's would join another one, or start one."""
        return os.getpid() == self._owner and ray.is_initialized() and _identity() == self._session.identity

    def release(self) -> None:
        """Ends it; harmless when done before, or in a forked process."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._is_released:
                return
            self._is_released = True
            self._session.num_uses -= 1
            if self._session.is_ours and self._session.num_uses == 0 and self.is_alive():
                ray.shutdown()


def _check_is_no_client(address: str | None) -> None:
    if (address is not None and address.startswith("ray://")) or client.is_connected():
        raise TransportError(
            "this process is connected, or would be, by Ray Client (an address that begins with ray://), which has no node of "
            "its own to receive what actors send. Run the script on a node of the cluster (`ray job submit`, or there with "
            "RAY_ADDRESS=auto), or make the RayVectorEnv in a Ray task or actor."
        )


def _is_reachable(address: str) -> bool:
    """Whether somebody listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACH_TIMEOUT).close()
        except OSError:
            return False
    return True


def _join_or_start() -> bool:
    """Returns whether it had to be started."""
    _check_is_no_client(os.environ.get("RAY_ADDRESS"))
    address = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    if address is not None and not _is_reachable(address):
        if os.environ.get("RAY_ADDRESS"):
            raise ConnectionError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']!r}: no Ray cluster answers at {address}. Start it, correct the "
                "variable, or unset it to have a local Ray started."
            )
        # Ray's own note of one that was killed.
        address = None
    if address is not None:
        # Left to find it by itself, Ray 2.60 loses its actors where several clusters run on one machine.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return False
    with _unheard():
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A Ray that is started here prints nothing here of its services' warnings: that there are many actors, that one died."""
    kept = getattr(ray_worker, "listen_error_messages", None)
    if kept is None:  # pragma: no cover - another Ray than 2.60
        yield
        return
    ray_worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = kept


def caller_node() -> str:
    """The id of the node that this process is on."""
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def describe_cluster() -> str:
    """What the cluster has in all, what of it is free, and on how many nodes; for messages."""
    nodes = _alive_nodes()
    if nodes:
        with contextlib.suppress(Exception):
            return (
                f"the cluster has {_shown(ray.cluster_resources())} in all, of which {_shown(ray.available_resources())} are "
                f"free, on {len(nodes)} node{'s' * (len(nodes) != 1)}"
            )
    return "what the cluster has cannot be learned: no node of it answers"


def check_cluster(node_id: str) -> None:
    """Raises PlacementError where ``node_id``, the caller's own node, or the whole cluster has ended: nothing can be placed."""
    nodes = _alive_nodes()
    if nodes is None:
        raise PlacementError(f"Ray does not answer: its control service (GCS) on the head node is gone or busy. {_ANEW}")
    if node_id not in nodes:
        raise PlacementError(f"the Ray node of this process, {node_id}, has ended: its raylet is gone. {_ANEW}")


def _alive_nodes() -> set[str] | None:
    """Their ids; None where Ray does not say."""
    told: Future[set[str]] = Future()

    def ask() -> None:
        try:
            told.set_result({node["NodeID"] for node in ray.nodes() if node["Alive"]})
        except BaseException as error:
            told.set_exception(error)

    # Without its control service Ray would not return for a minute.
    threading.Thread(target=ask, name="rayvec-ask-ray", daemon=True).start()
    with contextlib.suppress(Exception):
        return told.result(_ANSWER_TIMEOUT)
    return None


def _shown(resources: Mapping[str, float]) -> str:
    hidden = ("node:", "memory", "object_store_memory")
    kept = {name: amount for name, amount in resources.items() if not name.startswith(hidden)}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(kept.items())) or "nothing"
