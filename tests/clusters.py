"""One small Ray cluster for all tests of a session: two nodes on this machine, started when a test first needs it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayvec.local.starting import HandlerKeeper

__all__ = [
    "add_node",
    "address_of_cluster",
    "ensure_cluster",
    "keep_exit_handlers",
    "living_actors",
    "on_two_nodes",
    "stop_cluster",
]

_NODE: dict[str, Any] = {"num_cpus": 4, "num_gpus": 0, "object_store_memory": 200 * 2**20}
_kept: dict[str, Any] = {}
_keepers: list[HandlerKeeper] = []


def ensure_cluster() -> None:
    """Joins the cluster, which is started first if need be."""
    import ray
    from ray.cluster_utils import Cluster

    if not _kept:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = dict(os.environ)
        # What tests define is found in the actors too.
        tests = Path(__file__).parent
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (tests, tests / "contract", tests / "unit", tests.parent)))
        try:
            _kept["cluster"] = cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
            cluster.add_node(**_NODE)
        finally:
            os.environ.clear()
            os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if not ray.is_initialized():
        ray.init(address=_kept["cluster"].address, logging_level=logging.ERROR, log_to_driver=False)
        _kept.pop("group", None)


def address_of_cluster() -> str:
    """For other processes to join it."""
    ensure_cluster()
    return str(_kept["cluster"].address)


def stop_cluster() -> None:
    """Ends it, if it was started."""
    if _kept:
        import ray

        ray.shutdown()
        _kept.pop("cluster").shutdown()
        _kept.clear()


def keep_exit_handlers() -> None:
    """Of nodes that have ended, which only ``atexit`` refers to.

    From Python 3.13 on a process that ``multiprocessing`` forks drops what is registered there. Dropping a node ends it by
    SIGSEGV, whoever forks it: Gymnasium, or a test by hand.
    """
    _keepers[:] = [HandlerKeeper()]


class ExtraNode:
    """One more node of the cluster.

    Attributes:
        id: its id.
    """

    def __init__(self, resources: dict[str, float]) -> None:
        import ray

        self._node = _kept["cluster"].add_node(**{**_NODE, "num_cpus": 1, "resources": resources})
        self.id: str = self._node.node_id
        deadline = time.monotonic() + 20
        while self.id not in {node["NodeID"] for node in ray.nodes() if node["Alive"]} and time.monotonic() < deadline:
            time.sleep(0.05)

    def remove(self) -> None:
        """Takes it out of the cluster; harmless when done before."""
        if self._node is not None:
            node, self._node = self._node, None
            _kept["cluster"].remove_node(node)


@contextmanager
def add_node(resources: dict[str, float]) -> Iterator[ExtraNode]:
    """A further node for a while, which has these custom resources."""
    node = ExtraNode(resources)
    try:
        yield node
    finally:
        node.remove()


def living_actors() -> set[str]:
    """The ids of all actors that have not ended; none where no Ray runs."""
    if not _kept:
        return set()
    import ray
    from ray._private.state import actors

    return {name for name, actor in actors().items() if actor["State"] != "DEAD"} if ray.is_initialized() else set()


def on_two_nodes(env_fns: Sequence[Callable[[], Any]], **options: Any) -> Any:
    """A RayVectorEnv with two actors, one on each node of the cluster."""
    import ray
    from ray.util.placement_group import placement_group

    import rayvec

    if "group" not in _kept:
        _kept["group"] = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        ray.get(_kept["group"].ready())
    return rayvec.RayVectorEnv(env_fns, **{"num_cpus": 1, "scheduling_strategy": _kept["group"], **options})
