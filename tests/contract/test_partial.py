"""Partial batches: the data of every engine, who comes when, what is refused, and what failures leave behind."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINES, ONE_EACH, Engine, each, named
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from partial_loop import LAST, NUM_ENVS, PartialLoop, batch_size_of, counting, go_on, share_of, with_last, zeros

import rayvec
from rayvec import CallTimeoutError, WorkerLostError
from rayvec.testing import EXAMPLE_SPACES, DyingEnv, EchoEnv, GateEnv, PlainLoop, RaisingEnv, assert_same

MODES = list(AutoresetMode)
ALONE = named("async", "async-pipe", "async-caller-each", "async-concurrency", "ray-shared-memory", "ray-object-store")
"""Those whose last sub-env has a worker of its own, or shares it with two others."""


@each(ENGINES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_partial_data(engine: Engine, mode: AutoresetMode) -> None:
    """Whoever comes, it is what a plain loop gives for these sub-envs; afterwards all go on in step."""
    size = batch_size_of(engine)
    with (
        closing(PartialLoop(counting(), mode)) as loop,
        closing(engine.make(counting(), autoreset_mode=mode, batch_size=size)) as envs,
    ):
        envs.async_reset(seed=5)
        loop.async_reset(range(5, 5 + NUM_ENVS), range(NUM_ENVS))
        for _ in range(40):
            ids = loop.check(envs.recv(timeout=20))
            assert len(ids) == size
            assert ids == sorted(ids)
            go_on(envs, loop, ids, engine)
        left = NUM_ENVS
        while left:
            left -= len(loop.check(envs.recv(timeout=20)))
        with pytest.raises(NoAsyncCallError):
            envs.recv()
        assert_same(loop.reset(seed=9)[0], envs.reset(seed=9)[0], "observations")
        assert_same(loop.step(zeros(NUM_ENVS)), envs.step(zeros(NUM_ENVS)), "step")
        envs.send(zeros(NUM_ENVS), np.arange(NUM_ENVS)[::-1])
        loop.send(zeros(NUM_ENVS), range(NUM_ENVS))
        while left < NUM_ENVS:
            left += len(loop.check(envs.recv(timeout=20)))


@each(named("sync", "async", "async-pipe", "async-pipe-workers-2", "ray-object-store"))
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", ["nested", "text", "dict-with-graph-and-sequence", "tuple"])
def test_partial_spaces(engine: Engine, copy: bool, name: str) -> None:
    """Any space, for observations and actions alike; what was handed out as a copy never changes."""
    space = EXAMPLE_SPACES[name]
    env_fns = [partial(EchoEnv, space, episode_length=3)] * NUM_ENVS
    size = batch_size_of(engine)
    some = batch_space(space, size)
    some.seed(3)
    with closing(PartialLoop(env_fns)) as loop, closing(engine.make(env_fns, batch_size=size, copy=copy)) as envs:
        loop.action_space = some
        envs.async_reset(seed=5)
        loop.async_reset(range(5, 5 + NUM_ENVS), range(NUM_ENVS))
        for _ in range(12):
            ids = loop.check(envs.recv(timeout=20))[::-1]
            actions = some.sample()
            envs.send(actions, ids)
            loop.send(actions, ids)


@pytest.mark.parametrize("copy", [True, False])
def test_a_run_of_rows_is_not_copied(copy: bool) -> None:
    """Sub-envs in a row are handed out as they lie there, unless copies are wanted."""
    with closing(rayvec.AsyncVectorEnv(counting(), num_workers=2, batch_size=NUM_ENVS, copy=copy)) as envs:
        envs.async_reset(seed=5)
        observations, *_ = envs.recv()
        assert np.shares_memory(observations, envs._batch.observations.read_all(False)) is not copy
        kept = observations.copy()
        envs.send(zeros(3), [3, 4, 5])
        some, *_ = envs.recv()
        assert np.shares_memory(some, envs._batch.observations.read_all(False)) is not copy
        assert (observations == kept).all() == copy


def gated(tmp_path: Path) -> tuple[list[Any], list[Path]]:
    """Counting envs that wait at each step until their gate opens."""
    gates = [tmp_path / f"gate-{index}" for index in range(NUM_ENVS)]
    return [partial(GateEnv, gate, index=index) for index, gate in enumerate(gates)], gates


def wait_for_answer(envs: Any, index: int) -> None:
    """Waits until that sub-env's worker has answered."""
    assert select.select(envs._worker_of[index].descriptors(), [], [], 10)[0]


@each(named("async", "async-pipe", "ray-shared-memory", "ray-object-store"))
def test_they_come_in_the_order_of_arrival(engine: Engine, tmp_path: Path) -> None:
    """First come, first served; one that answers again stands behind those that have waited longer."""
    env_fns, gates = gated(tmp_path)
    one_each: dict[str, Any] = {"num_actors": None} if engine.is_ray else {}
    with closing(engine.make(env_fns, batch_size=1, **one_each)) as envs:
        envs.reset(seed=5)
        envs.send(zeros(NUM_ENVS), range(NUM_ENVS))
        for index in (4, 0, 3, 1):
            gates[index].touch()
            wait_for_answer(envs, index)
        assert envs.recv(timeout=10)[4]["env_id"].tolist() == [4]
        envs.send(zeros(1), [4])
        wait_for_answer(envs, 4)
        assert [envs.recv(timeout=10)[4]["env_id"].tolist() for _ in range(4)] == [[0], [3], [1], [4]]
        with pytest.raises(CallTimeoutError, match="sub-env 2"):
            envs.recv(timeout=0.05)
        for gate in gates:
            gate.touch()
        assert sorted(envs.recv(timeout=10)[4]["env_id"].tolist()[0] for _ in range(2)) == [2, 5]


@each(named("sync", "async", "async-caller", "async-caller-each"))
def test_nobody_starves(engine: Engine) -> None:
    """A sub-env that is always sent at once comes no more often than others may."""
    size = max(1, len(share_of(engine, 0)))
    with closing(engine.make(counting(), batch_size=size)) as envs:
        envs.async_reset(seed=5)
        times = np.zeros(NUM_ENVS, int)
        while times.min() < 4:
            ids = envs.recv(timeout=10)[4]["env_id"]
            times[ids] += 1
            assert times.max() < 2000
            if engine.base is rayvec.SyncVectorEnv:
                assert times.max() - times.min() <= 1
            envs.send(zeros(len(ids)), ids)


@each(named("async", "async-pipe", "async-concurrency", "async-workers-3", "ray-shared-memory"))
def test_a_slow_one_delays_nobody(engine: Engine, tmp_path: Path) -> None:
    """All others go on while one is stuck, which comes when it is done."""
    gate = tmp_path / "gate"
    size = batch_size_of(engine)
    with closing(engine.make(with_last(GateEnv, path=gate), batch_size=size)) as envs:
        envs.async_reset(seed=5)
        seen: list[int] = []
        for _ in range(30):
            ids = envs.recv(timeout=20)[4]["env_id"]
            seen += ids.tolist()
            envs.send(zeros(len(ids)), ids)
        assert set(range(NUM_ENVS - size)) <= set(seen)
        assert seen.count(LAST) <= 1
        gate.touch()
        while LAST not in envs.recv(timeout=20)[4]["env_id"]:
            pass


@each(ONE_EACH)
def test_mixing_up_is_refused(engine: Engine) -> None:
    """Wrong calls and arguments raise and change nothing."""
    with closing(PartialLoop(counting())) as loop, closing(engine.make(counting(), batch_size=NUM_ENVS)) as envs:
        with pytest.raises(NoAsyncCallError, match="recv"):
            envs.recv()
        envs.reset(seed=3)
        loop.reset(seed=3)
        envs.step_async(zeros(NUM_ENVS))
        for call in (lambda: envs.send(zeros(NUM_ENVS), range(NUM_ENVS)), envs.async_reset):
            with pytest.raises(AlreadyPendingCallError):
                call()
        with pytest.raises(NoAsyncCallError):
            envs.recv()
        envs.step_wait()
        envs.async_reset(seed=5)
        loop.async_reset(range(5, 5 + NUM_ENVS), range(NUM_ENVS))
        refused: list[Callable[[], Any]] = [
            lambda: envs.step(zeros(NUM_ENVS)),
            lambda: envs.reset(seed=7),
            lambda: envs.call("where"),
            lambda: envs.set_attr("index", 7),
            lambda: envs.async_reset(seed=7),
            lambda: envs.async_reset(options={"reset_mask": np.arange(NUM_ENVS) == 2}),
            lambda: envs.send(zeros(NUM_ENVS), range(NUM_ENVS)),
        ]
        for call in refused:
            with pytest.raises(AlreadyPendingCallError):
                call()
        with pytest.raises(NoAsyncCallError):
            envs.step_wait()
        ids = loop.check(envs.recv(timeout=20))
        assert ids == list(range(NUM_ENVS))
        wrong: list[tuple[Any, Any, type[Exception]]] = [
            (zeros(NUM_ENVS), [0.0] * NUM_ENVS, TypeError),
            (zeros(NUM_ENVS), [ids], ValueError),
            (zeros(0), zeros(0), ValueError),
            (zeros(NUM_ENVS), [0, 1, 2, 3, 4, 6], ValueError),
            (zeros(NUM_ENVS), [-1, 1, 2, 3, 4, 5], ValueError),
            (zeros(NUM_ENVS), [0, 0, 2, 3, 4, 5], ValueError),
            (zeros(NUM_ENVS - 1), ids, ValueError),
            (zeros(NUM_ENVS + 1), ids, ValueError),
        ]
        if len(share_of(engine, LAST)) > 1:
            wrong.append((zeros(NUM_ENVS - 1), ids[:-1], ValueError))
        for actions, env_ids, error in wrong:
            with pytest.raises(error):
                envs.send(actions, env_ids)
        for replay in ([[0.5]], [[0, 9]], 3):
            with pytest.raises((TypeError, ValueError)):
                envs.async_reset(replay=replay)
        envs.send(zeros(NUM_ENVS), ids)
        loop.send(zeros(NUM_ENVS), ids)
        loop.check(envs.recv(timeout=20))
    for call in (envs.recv, envs.async_reset, lambda: envs.send(zeros(1), [0]), envs.stats):
        with pytest.raises(ClosedEnvironmentError):
            call()


@each(named("sync", "async", "async-workers-3"))
def test_disabled_autoreset_refuses_those_that_ended(engine: Engine) -> None:
    """A send that names one of them steps none."""
    with closing(engine.make(counting(), autoreset_mode="Disabled", batch_size=NUM_ENVS)) as envs:
        envs.reset(seed=3)
        for _ in range(3):
            envs.step(zeros(NUM_ENVS))
        with pytest.raises(ResetNeeded, match=r"\[0, 3\]"):
            envs.send(zeros(NUM_ENVS), range(NUM_ENVS))
        with pytest.raises(NoAsyncCallError):
            envs.recv()


def test_batch_size_is_checked() -> None:
    """It has to be a number of whole workers; what is told instead works."""
    for wrong, error in ((0, ValueError), (7, ValueError), (2.0, TypeError), (True, TypeError)):
        for base in (rayvec.SyncVectorEnv, rayvec.AsyncVectorEnv):
            with pytest.raises(error, match="batch_size"):
                base(counting(), batch_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"multiple of 3: use batch_size=3"):
        rayvec.AsyncVectorEnv(counting(), num_workers=2, batch_size=4)
    with pytest.raises(ValueError, match=r"1 or 2 sub-envs each.*Use batch_size=6"):
        rayvec.AsyncVectorEnv(counting(), num_workers=4, batch_size=3)
    for num_workers, batch_size in ((2, 3), (4, 6)):
        rayvec.AsyncVectorEnv(counting(), num_workers=num_workers, batch_size=batch_size).close()


def rounds(envs: Any, count: int, until: type[BaseException]) -> Any:
    """Receives and sends until ``until`` is raised, which it gives."""
    try:
        for _ in range(count):
            ids = envs.recv(timeout=20)[4]["env_id"]
            envs.send(zeros(len(ids)), ids)
    except until as error:
        return error
    pytest.fail(f"no {until.__name__} in {count} rounds")


def collect(envs: Any) -> list[int]:
    """Receives all that are at work."""
    ids: list[int] = []
    while True:
        try:
            ids += envs.recv(timeout=20)[4]["env_id"].tolist()
        except NoAsyncCallError:
            return sorted(ids)


@each(ONE_EACH)
@pytest.mark.parametrize("way", ["mask", "reset", "async_reset"])
def test_partial_failure(engine: Engine, way: str) -> None:
    """What a sub-env raises is raised by the recv that meets it; the others come, and a reset makes all good."""
    env_fns = with_last(RaisingEnv, at=3, error=KeyError("three"))
    share = share_of(engine, LAST)
    with closing(engine.make(env_fns, batch_size=batch_size_of(engine))) as envs:
        envs.async_reset(seed=5)
        error = rounds(envs, 2000, KeyError)
        assert error.args == ("three",)
        assert "sub-env 5 in step" in "\n".join(error.__notes__)
        with pytest.raises(AlreadyPendingCallError):
            envs.step(zeros(NUM_ENVS))
        with pytest.raises(ResetNeeded, match=r"\[5\]"):
            envs.send(zeros(len(share)), share)
        if way == "mask":
            envs.async_reset(seed=7, options={"reset_mask": np.arange(NUM_ENVS) == LAST})
            assert collect(envs) == list(range(NUM_ENVS))
        elif way == "reset":
            observations, _ = envs.reset(seed=5)
            with closing(PlainLoop(env_fns)) as loop:
                assert_same(loop.reset(seed=5)[0][:, [0, 1, 3]], observations[:, [0, 1, 3]], "observations")
        else:
            envs.async_reset(seed=5)
            assert collect(envs) == list(range(NUM_ENVS))
        envs.step(zeros(NUM_ENVS))


@each(ALONE)
@pytest.mark.parametrize("way", ["mask", "reset"])
def test_partial_death(engine: Engine, way: str) -> None:
    """A worker that dies is told of at once; the others come, and a reset starts it again."""
    env_fns = with_last(DyingEnv, at=3)
    share = share_of(engine, LAST)
    with closing(engine.make(env_fns, batch_size=batch_size_of(engine))) as envs:
        envs.async_reset(seed=5)
        error = rounds(envs, 2000, WorkerLostError)
        assert error.env_indices == tuple(share)
        with pytest.raises((ResetNeeded, WorkerLostError)):
            envs.send(zeros(len(share)), share)
        if way == "mask":
            envs.async_reset(seed=7, options={"reset_mask": np.isin(np.arange(NUM_ENVS), share)})
            assert collect(envs) == list(range(NUM_ENVS))
        else:
            observations, _ = envs.reset(seed=5)
            assert observations[:, 1].tolist() == list(range(5, 5 + NUM_ENVS))
        envs.step(zeros(NUM_ENVS))
        assert [told.restarts for told in envs.stats().sub_envs] == [index in share for index in range(NUM_ENVS)]


@each(named("async", "async-pipe"))
def test_death_in_a_reset_is_made_good(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An async_reset that is the first to meet a death starts the worker again, as reset() does."""
    with closing(engine.make(with_last(DyingEnv, on="reset", at=2), batch_size=NUM_ENVS)) as envs:
        envs.reset(seed=1)
        envs.async_reset(seed=5)
        observations, *_ = envs.recv(timeout=20)
        assert observations[:, 1].tolist() == list(range(5, 5 + NUM_ENVS))
        assert "has died and is started again" in caplog.text


@each(named("sync", "async", "async-pipe-workers-2", "async-caller", "ray-object-store"))
def test_replay(engine: Engine) -> None:
    """A recorded order gives the same data on any engine, whoever is ready first."""
    size = batch_size_of(engine)

    def run(envs: Any, replay: Any, count: int) -> list[Any]:
        batches = []
        envs.async_reset(seed=5, replay=replay)
        for turn in range(count):
            batches.append(envs.recv(timeout=20))
            ids = batches[-1][4]["env_id"]
            envs.send((ids + turn) % 2, ids)
        return batches

    with closing(engine.make(counting(), batch_size=size)) as envs:
        recorded = run(envs, None, 20)
    order = [batch[4]["env_id"] for batch in recorded]
    with closing(rayvec.SyncVectorEnv(counting(), batch_size=1)) as envs:
        assert_same(recorded, run(envs, order, 20), "batches")
        assert len(envs.recv()[4]["env_id"]) == 1
    with closing(engine.make(counting(), batch_size=size)) as envs:
        assert_same(recorded, run(envs, order, 20), "batches")
    share = share_of(engine, 0)
    with closing(engine.make(counting(), batch_size=size)) as envs:
        envs.async_reset(seed=5, replay=[share, share])
        assert envs.recv(timeout=20)[4]["env_id"].tolist() == share
        if len(share) < NUM_ENVS:
            with pytest.raises(ValueError, match="not at work"):
                envs.recv(timeout=20)
