"""What all tests have in common: after each of them the world is as it was before."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from clusters import ensure_cluster, keep_exit_handlers, stop_cluster
from engines import Engine
from world import World

_SETTLING_SECONDS = 3.0
"""A process that was killed takes a moment to go, and so does the fork server to collect it."""

_HERE = Path(__file__).parent
_has_failed = pytest.StashKey[bool]()
_temporary = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much to try."""
    parser.addoption("--rest", action="store_true", help="what is left out without it, six minutes more, and nothing else")
    parser.addoption("--all-engines", action="store_true", help="every test on every configuration: an hour")


def pytest_configure(config: pytest.Config) -> None:
    """Knows what is no mistake of a test, and readies the fork server."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a script; what tests start would ignore Ctrl-C, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "ray: needs a Ray cluster")
    config.addinivalue_line("markers", "xdist_group: runs in the same process as others of its group, with pytest-xdist")
    # Python 3.12 warns of fork in a process with threads; the runner's time limit is one.
    config.addinivalue_line("filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # One process would take the other's files for what its own tests have left.
        os.environ["TMPDIR"] = config.stash[_temporary] = tempfile.mkdtemp(prefix="pytest-")
        tempfile.tempdir = None
    multiprocessing.get_context("forkserver").set_forkserver_preload(["rayvec", "rayvec.testing"])


_SAMPLE = {
    "ray-shared-memory": [
        "test_killed_while_idle",
        "test_dies_in_the_constructor",
        "test_partial_data",
        "test_some_sub_envs",
        "test_selected_frames",
        "test_killed_in_hand",
        "test_what_is_held_never_changes",
    ],
    "ray-object-store": [
        "test_killed_while_idle",
        "test_dies_in_a_reset",
        "test_partial_death",
        "test_there_and_back",
        "test_selected_frames",
        "test_dying",
    ],
    "ray-two-nodes": ["test_what_is_held_never_changes"],
}
_SAMPLED_IN_RULES = (
    "ray-two-nodes",
    "async-workers-1",
    "async-caller-each",
    "async-concurrency",
    "async-forkserver",
    "async-sockets",
    "async-workers-2",
    "async-spawn",
)
_SAMPLE_RULES = [
    "next_step_autoreset",
    "same_step_autoreset",
    "info_layout",
    "space_nested",
    "space_dict_with_graph_and_sequence",
    "actions_are_the_envs",
    "attributes",
    "several_errors",
    "odd_errors",
    "timed_out_wait",
    "close_while_pending",
]
"""What is tried over Ray, where a worker takes half a second to start, without ``--all-engines``; and test_ray.py. The rules
that are tried on configurations of which every part is tried on others too."""


_PARTED = (_HERE / "contract", _HERE / "test_wrappers.py")
"""What is tried on so many configurations that ten minutes do not suffice."""
_USUAL_SHARE = 0.35
"""Of the cases of each such test, what is tried without ``--rest``."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes long and tells little, unless asked for; what needs Ray shares one process and its cluster."""
    for item in items:
        if _needs_ray(item):
            item.add_marker(pytest.mark.xdist_group("ray"))
    if config.getoption("--all-engines"):
        return
    kept = [item for item in items if _is_sampled(item)]
    if not config.option.keyword and not any("::" in argument for argument in config.args):
        usual = _usual_of(kept)
        kept = [item for item in kept if (item in usual) is not config.getoption("--rest")]
    taken = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = kept
    # What takes longest goes first, so that no process is left with it at the end.
    items.sort(key=lambda item: not _needs_ray(item) and "soak" not in item.name)


def _usual_of(items: list[pytest.Item]) -> set[pytest.Item]:
    """A part of the cases of each test that has many, and all else; a case's id decides, so that all meet all in some test."""
    usual = set()
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        is_cheap = item.get_closest_marker("skip") is not None or not _params_of(item)
        if not is_cheap and any(item.path.is_relative_to(place) for place in _PARTED):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        else:
            usual.add(item)
    for alike in cases.values():
        in_order = sorted(alike, key=lambda item: zlib.crc32(item.nodeid.encode()))
        usual.update(in_order[: math.ceil(_USUAL_SHARE * len(in_order))])
    return usual


def _params_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _needs_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None or any(
        getattr(value, "is_ray", False) for value in _params_of(item).values()
    )


def _is_sampled(item: pytest.Item) -> bool:
    engine = _params_of(item).get("engine")
    if not isinstance(engine, Engine) or item.get_closest_marker("ray"):
        return True
    if item.name.startswith("test_rule[") and engine.id in _SAMPLED_IN_RULES:
        return _params_of(item)["name"] in _SAMPLE_RULES
    return not engine.is_ray or getattr(item, "originalname", "") in _SAMPLE.get(engine.id, ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes which tests have failed."""
    report = yield
    if report.when == "call":
        item.stash[_has_failed] = report.failed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leaves no Ray running, and no folder of this process's own."""
    stop_cluster()
    if _temporary in session.config.stash:
        shutil.rmtree(session.config.stash[_temporary], ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, a descriptor, a thread, a shared block or a temporary file behind.

    One that has failed already holds on to what its traceback refers to, and is left alone.
    """
    if _needs_ray(request.node):
        ensure_cluster()
    before = World.now()
    yield
    if _needs_ray(request.node):
        keep_exit_handlers()
    if request.node.stash.get(_has_failed, False):
        return
    deadline = time.monotonic() + _SETTLING_SECONDS
    while (left := World.now().left_since(before)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert not left, "left behind: " + "; ".join(left)
