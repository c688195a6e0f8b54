"""Shared blocks reach the workers by descriptor or by name, and leave nothing behind."""

from __future__ import annotations

import functools
import gc
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import wait_until

from rayvec import AsyncVectorEnv
from rayvec.local.memory import SharedBlock
from rayvec.testing.comparison import assert_same
from rayvec.testing.envs import CountingEnv

FOLDERS = [Path("/dev/shm"), Path(tempfile.gettempdir())]


def leftovers() -> set[str]:
    """Files of rayvec's where shared memory may lie."""
    return {str(path) for folder in FOLDERS if folder.is_dir() for path in folder.glob("rayvec-*")}


def check_nothing_new(before: set[str]) -> None:
    """Nothing lies there that did not before; the files of another test process go in a moment."""
    wait_until(lambda: leftovers() <= before, "no new file", timeout=5.0)


def descriptors() -> set[int]:
    """The open file descriptors of this process, except the one that looks."""
    gc.collect()
    found = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {descriptor for descriptor in found if is_open(descriptor)}


def is_open(descriptor: int) -> bool:
    """Whether it is open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def bytes_of(block: SharedBlock) -> Any:
    """The block's bytes as the caller has them."""
    assert block.buffer is not None
    return block.buffer


def attached(block: SharedBlock) -> Any:
    """The block's bytes as a worker maps them."""
    return SharedBlock.attach(block.token, None if block.descriptor is None else os.dup(block.descriptor))


@pytest.mark.parametrize("by_descriptor", [None, True, False])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_both_sides_see_the_same_bytes(by_descriptor: bool | None, size: int) -> None:
    """A block is zero at first, and what one side writes the other reads, to the last byte."""
    block = SharedBlock(size, by_descriptor)
    there = attached(block)
    assert bytes(bytes_of(block)) == bytes(max(size, 1))
    here = np.frombuffer(bytes_of(block), np.uint8)
    here[-1] = 7
    assert there[-1] == 7
    there[0] = 9
    assert here[0] == 9
    del here
    block.close()


def test_a_block_by_descriptor_has_no_name() -> None:
    """Nothing that could be left behind, from the first moment on."""
    before = leftovers()
    block = SharedBlock(100, by_descriptor=True)
    assert block.token == (None, 100)
    check_nothing_new(before)
    block.close()


def test_a_block_by_name_is_a_file_until_closed() -> None:
    """Its name is what workers get, no descriptor; closing removes it."""
    before = leftovers()
    block = SharedBlock(100, by_descriptor=False)
    path, size = block.token
    assert path is not None
    assert leftovers() - before == {path}
    assert (Path(path).stat().st_size, size) == (100, 100)
    assert Path(path).stat().st_mode & 0o077 == 0
    block.close()
    block.close()
    check_nothing_new(before)


def test_without_anonymous_files_a_name_is_removed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no anonymous files but passes descriptors, the file has lost its name before anybody attaches."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    before = leftovers()
    block = SharedBlock(100, by_descriptor=True)
    check_nothing_new(before)
    there = attached(block)
    there[0] = 5
    assert bytes_of(block)[0] == 5
    block.close()


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_arrays_outlive_the_block(by_descriptor: bool) -> None:
    """What was handed out as a view stays valid after closing, as long as somebody holds it, and only then is memory freed."""
    before = descriptors()
    block = SharedBlock(80, by_descriptor)
    array = np.frombuffer(bytes_of(block), np.float64)
    array[:] = 1.5
    block.close()
    assert array.tolist() == [1.5] * 10
    del array, block
    assert descriptors() == before


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_attaching_keeps_no_descriptor(by_descriptor: bool) -> None:
    """A worker's bytes go with its arrays."""
    block = SharedBlock(80, by_descriptor)
    before = descriptors()
    for _ in range(3):
        attached(block)
    assert descriptors() == before
    block.close()


@pytest.mark.parametrize("by_descriptor", [True, False])
@pytest.mark.parametrize("size", [2**62, 2**70])
def test_a_block_that_cannot_be_had_leaves_nothing(
    by_descriptor: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More memory than there can be raises, and leaves neither a descriptor nor a file."""
    monkeypatch.setattr("rayvec.local.memory._memory_folder", lambda: str(tmp_path))
    before = descriptors()
    with pytest.raises((OSError, OverflowError, ValueError, MemoryError)):
        SharedBlock(size, by_descriptor)
    left = descriptors() - before
    for descriptor in left:
        os.close(descriptor)
    assert not left
    assert list(tmp_path.iterdir()) == []


def by_name(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has AsyncVectorEnv share memory by name, as where no descriptors can be passed; returns the names that come to be."""
    paths: list[str] = []

    def make(size: int) -> SharedBlock:
        block = SharedBlock(size, by_descriptor=False)
        assert block.token[0] is not None
        paths.append(block.token[0])
        return block

    monkeypatch.setattr("rayvec.local.async_vector_env.SharedBlock", make)
    return paths


def rollout(envs: Any) -> list[Any]:
    """Everything that a few steps return."""
    return [envs.reset(seed=5), *(envs.step([0, 1, 0]) for _ in range(8))]


ENV_FNS: list[Callable[[], CountingEnv]] = [functools.partial(CountingEnv, index, 3, infos="rich") for index in range(3)]


def test_envs_share_memory_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable path gives the same data as the other, and the file is gone after closing."""
    with AsyncVectorEnv(ENV_FNS, num_workers=2) as envs:
        due = rollout(envs)
    before = leftovers()
    paths = by_name(monkeypatch)
    with AsyncVectorEnv(ENV_FNS, num_workers=2) as envs:
        assert len(paths) == 1
        assert Path(paths[0]).exists()
        assert_same(due, rollout(envs), "rollout")
    check_nothing_new(before)


def test_a_worker_started_again_finds_the_block_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's name stays as long as its vector env, for workers that have to be started anew."""
    paths = by_name(monkeypatch)
    envs = AsyncVectorEnv(ENV_FNS, num_workers=2)
    with envs:
        due = rollout(envs)
        victim = envs.processes[0]
        assert victim is not None
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(5)
        observations, _ = envs.reset(seed=5)
        assert observations[:, :2].tolist() == due[0][0][:, :2].tolist()
        assert envs.step([0, 1, 0])[0][:, 3].tolist() == [1, 1, 1]
    assert not Path(paths[0]).exists()


def test_a_constructor_that_fails_removes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong behind it."""
    paths = by_name(monkeypatch)
    monkeypatch.setattr("rayvec.contract.Batch.__init__", lambda *_: 1 / 0)
    before = leftovers(), descriptors()
    with pytest.raises(ZeroDivisionError):
        AsyncVectorEnv(ENV_FNS, num_workers=1)
    assert len(paths) == 1
    check_nothing_new(before[0])
    assert descriptors() == before[1]
