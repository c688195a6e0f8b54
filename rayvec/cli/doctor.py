"""``rayvec doctor``: what this machine and this process offer to vector envs. It looks, and starts nothing.

Each function tells of one thing, from what it is given or what the system says; where the system does not say, it tells that.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayvec import __version__
from rayvec.local.waiting import usable_cores

__all__ = ["Fact", "examine"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MODEST_FILES, _MODEST_PROCESSES = 1024, 512
_FILES_A_WORKER = 7
"""Descriptors that a worker takes in the caller, about."""
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Fact:
    """One line.

    Attributes:
        about: what.
        value: how it is here.
        meaning: what that means for vector envs.
        is_well: whether there is nothing to do about it.
    """

    about: str
    value: str
    meaning: str
    is_well: bool = True


def examine() -> list[Fact]:
    """All that there is to tell."""
    cores = usable_cores()
    return [
        versions(),
        count_cores(cores, os.cpu_count() or 1, cpu_quota()),
        start_methods(multiprocessing.get_all_start_methods(), multiprocessing.get_start_method(allow_none=True)),
        shared_memory(),
        ray_store(),
        memory_limit(cgroup_memory()),
        open_files(*_limit("RLIMIT_NOFILE")),
        processes(*_limit("RLIMIT_NPROC")),
        thread_variables(os.environ, cores),
        torch_threads(),
        ray_version(),
        ray_cluster(os.environ),
    ]


# --- Python and its packages --------------------------------------------------------------------------------


def versions() -> Fact:
    """Of Python and what rayvec stands on."""
    found = {name: installed(name) or "missing" for name in ("gymnasium", "numpy", "cloudpickle")}
    value = ", ".join(
        [
            f"Python {platform.python_version()}",
            f"rayvec {__version__}",
            *(f"{name} {version}" for name, version in found.items()),
        ]
    )
    gymnasium = found["gymnasium"]
    known = gymnasium.startswith(("1.2", "1.3", "1.4"))
    if known:
        meaning = f"Gymnasium {gymnasium} is one that rayvec supports (1.2.2 to 1.4)."
    else:
        meaning = f"rayvec supports Gymnasium 1.2.2 to 1.4: pip install 'gymnasium>=1.2.2,<1.5' in place of {gymnasium}."
    return Fact("versions", value, meaning, known)


def installed(package: str) -> str | None:
    """The version of a package; None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def start_methods(offered: list[str], chosen: str | None) -> Fact:
    """Of multiprocessing."""
    default = chosen or offered[0]
    value = f"{default} by default; {', '.join(offered)} offered"
    if default == "fork":
        meaning = "Workers inherit the caller: env_fns need no pickling. With threads at work (CUDA, JAX) pass context='spawn'."
    else:
        meaning = 'Workers start afresh: env_fns are pickled, and scripts need `if __name__ == "__main__":`.'
    return Fact("start methods", value, meaning)


# --- cores and threads --------------------------------------------------------------------------------------


def count_cores(usable: int, present: int, quota: float | None) -> Fact:
    """How many sub-envs can be stepped at a time."""
    value = f"{usable} usable of {present}"
    if quota is not None:
        value += f", cgroup quota {quota:g}"
    if quota is not None and quota < usable:
        workers = max(1, int(quota))
        meaning = f"The quota is below what affinity allows: num_workers='auto' starts {usable}; pass num_workers={workers}."
        return Fact("cores", value, meaning, False)
    if usable == 1:
        meaning = "Processes cannot make envs that compute any faster; SyncVectorEnv costs least. Envs that wait still gain."
        return Fact("cores", value, meaning, False)
    return Fact("cores", value, f"At best {usable} times the rate of one process; num_workers='auto' starts {usable} workers.")


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that the cgroup (a container's, say) may use on average; None without a bound."""
    told = _read(root / "cpu.max").split()
    if not told:
        told = [_read(root / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = int(told[0]), int(told[1])
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def thread_variables(environment: Mapping[str, str], cores: int) -> Fact:
    """How many threads the libraries in each worker start for themselves."""
    given = {name: environment[name] for name in _THREAD_VARIABLES if name in environment}
    value = ", ".join(f"{name}={number}" for name, number in given.items()) or "OMP_NUM_THREADS not set"
    if given.get("OMP_NUM_THREADS") == "1" or cores == 1:
        return Fact("threads of libraries", value, "One thread a worker: workers do not compete for cores.")
    meaning = (
        f"NumPy, PyTorch or MuJoCo in each worker may start {cores} threads, {cores * cores} in all for {cores} cores. If envs "
        "use them, run with OMP_NUM_THREADS=1."
    )
    return Fact("threads of libraries", value, meaning, False)


def torch_threads() -> Fact:
    """Of PyTorch; it is asked for only where something has imported it, since that takes seconds."""
    version = installed("torch")
    if version is None:
        return Fact("PyTorch", "not installed", "Nothing to look after.")
    torch = sys.modules.get("torch")
    told = f", {torch.get_num_threads()} threads" if torch is not None else ""
    meaning = (
        "Its threads in the learner compete with workers while these step: torch.set_num_threads(1) in env_fns that use it."
    )
    return Fact("PyTorch", version + told, meaning)


# --- memory -------------------------------------------------------------------------------------------------


def shared_memory() -> Fact:
    """Where rayvec's shared block lies."""
    if hasattr(os, "memfd_create"):
        return Fact(
            "shared memory",
            "memfd_create",
            "Observations lie in memory without a name: not bound by the size of /dev/shm, gone with its last user.",
        )
    return Fact(
        "shared memory", "a temporary file", "Observations pass through a file that is mapped; keep the folder on RAM or SSD."
    )


def ray_store(path: Path = Path("/dev/shm")) -> Fact:
    """The size of /dev/shm, which others share memory through."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return Fact(
            "/dev/shm", "not there", "Gymnasium's shared memory and Ray's object store fall back on slower files.", False
        )
    value = f"{_size(usage.free)} free of {_size(usage.total)}"
    if usage.free < 256 * _MEBIBYTE:
        meaning = (
            "Little for Ray's object store, which falls back on the disk: start the container with --shm-size=2g. rayvec's own"
        )
        return Fact("/dev/shm", value, f"{meaning} local engines do not need it.", False)
    return Fact("/dev/shm", value, "Room for Ray's object store; rayvec's local engines do not need it.")


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the cgroup may use; None without a bound."""
    told = _read(root / "memory.max").strip() or _read(root / "memory" / "memory.limit_in_bytes").strip()
    # Version 1 writes a huge number where there is no bound.
    return int(told) if told.isdigit() and int(told) < 2**60 else None


def memory_limit(limit: int | None) -> Fact:
    """How much memory all workers have together."""
    total = _physical_memory()
    known = [number for number in (limit, total) if number is not None]
    if not known:
        return Fact("memory", "unknown", "Each worker process takes what its envs take, and some 30 MiB of its own.")
    bound = min(known)
    value = _size(bound) + (" (cgroup)" if bound == limit else "")
    return Fact("memory", value, "All workers share it; beyond it the system kills one, which raises WorkerLostError.")


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


# --- limits -------------------------------------------------------------------------------------------------


def open_files(soft: float | None, hard: float | None) -> Fact:
    """How many workers the descriptors are enough for."""
    about = "open files"
    if soft is None:
        return Fact(about, "unknown here", f"Each worker takes some {_FILES_A_WORKER} descriptors in the caller.")
    value = f"{_number(soft)} (hard limit {_number(hard)})"
    if soft < _MODEST_FILES:
        more = f"ulimit -n {min(hard, 65536):.0f} raises it" if hard is not None and hard > soft else "ask for more"
        return Fact(
            about,
            value,
            f"Enough for some {int(soft // _FILES_A_WORKER)} workers; {more}, or group sub-envs with num_workers.",
            False,
        )
    return Fact(about, value, f"Each worker takes some {_FILES_A_WORKER} in the caller: enough for {_workers(soft)} workers.")


def processes(soft: float | None, hard: float | None) -> Fact:
    """How many workers the processes are enough for."""
    about = "processes"
    if soft is None:
        return Fact(about, "unknown here", "Each worker is a process.")
    value = f"{_number(soft)} (hard limit {_number(hard)})"
    if soft < _MODEST_PROCESSES:
        meaning = f"All threads and processes of this user count: at most {_number(soft)}. Group sub-envs with num_workers."
        return Fact(about, value, meaning, False)
    return Fact(about, value, "Each worker is one, and its threads count too: enough.")


def _limit(name: str) -> tuple[float | None, float | None]:
    try:
        import resource
    except ImportError:  # Windows has none
        return None, None
    number = getattr(resource, name, None)
    if number is None:
        return None, None
    soft, hard = resource.getrlimit(number)
    return tuple(float("inf") if limit == resource.RLIM_INFINITY else float(limit) for limit in (soft, hard))  # type: ignore[return-value]


# --- Ray ----------------------------------------------------------------------------------------------------


def ray_version() -> Fact:
    """Whether there is Ray."""
    version = installed("ray")
    if version is None:
        return Fact("Ray", "not installed", "RayVectorEnv needs it: pip install ray. The local engines do not.", False)
    return Fact("Ray", version, "RayVectorEnv steps sub-envs in actors, on this machine or on a cluster.")


def ray_cluster(environment: Mapping[str, str]) -> Fact:
    """Whether a cluster runs; none is started, and none is joined."""
    about = "Ray cluster"
    address = environment.get("RAY_ADDRESS")
    if address:
        if address in ("auto", "local") or _answers(address):
            return Fact(about, f"RAY_ADDRESS={address}", "RayVectorEnv joins it, and never shuts it down.")
        meaning = "Nothing answers there, and RayVectorEnv would wait for it: start the cluster, or unset RAY_ADDRESS."
        return Fact(about, f"RAY_ADDRESS={address}", meaning, False)
    if importlib.util.find_spec("ray") is None:
        return Fact(about, "none", "There is no Ray to run one.")
    running = running_clusters()
    if running:
        return Fact(
            about, ", ".join(sorted(running)), "It runs on this machine: RayVectorEnv joins it, and never shuts it down."
        )
    return Fact(about, "none runs here", "RayVectorEnv starts a local one, in some five seconds, and close() ends it.")


def running_clusters() -> set[str]:
    """Addresses of the clusters that have a process on this machine."""
    try:
        from ray._private import services

        return {str(address) for address in services.find_gcs_addresses()}
    except Exception:  # it is Ray's own business how it finds them
        return set()


def _answers(address: str) -> bool:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return False
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


# --- in words -----------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / _MEBIBYTE:.0f} MiB"


def _number(limit: float | None) -> str:
    return "unlimited" if limit is None or limit == float("inf") else f"{limit:,.0f}"


def _workers(limit: float) -> str:
    return "any number of" if limit == float("inf") else f"some {int(limit // _FILES_A_WORKER):,}"
