"""The crew asks workers, takes whichever reply comes first, and notices who is late and who has died."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rayvec import AsyncVectorEnv, WorkerLostError
from rayvec.batch import Batch
from rayvec.crew import LOST, Crew
from rayvec.errors import CallTimeoutError
from rayvec.failures import Failure
from rayvec.local.memory import SharedBlock
from rayvec.protocol import CallPayload, ResetPayload, SetAttrPayload, StepPayload, Verb
from rayvec.sub_envs import CallOutcome, Description, Outcome
from rayvec.testing.envs import CountingEnv
from rayvec.worker import InlineWorker, Reply, Worker, shares

RESET = ResetPayload([None], None, None)
STEP = StepPayload(None)
CALL = CallPayload("name", (), {})


class FakeWorker(Worker):
    """A worker that answers when the test says so: ``answer`` lets it, ``die`` ends it.

    Attributes:
        sent: the requests that have reached it.
        ignores: what cannot end it: "close", "terminate".
    """

    def __init__(self, index: int, ignores: Sequence[str] = ()) -> None:
        super().__init__(range(index, index + 1))
        self.sent: list[tuple[Verb, Any]] = []
        self.asked: deque[Verb] = deque()
        self.prepared: list[Any] = []
        self.ignores = ignores
        self.events: list[str] = []
        self.is_full = False
        self._replies: deque[Reply] = deque()
        self._runs = False
        self._sockets: tuple[socket.socket, ...] = ()

    def __repr__(self) -> str:
        return f"FakeWorker({self.envs.start})"

    def start(self) -> None:
        self.release()
        self._sockets = (*socket.socketpair(), *socket.socketpair())
        self._runs, self.lost = True, False
        self.asked.clear()
        self._tell(Verb.START)

    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        self._tell(Verb.ATTACH)

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Any:
        if isinstance(payload, CallPayload) and payload.name == "unpicklable":
            raise TypeError("it cannot be pickled")
        self.prepared.append(payload)
        return payload

    def send(self, verb: Verb, prepared: Any) -> bool:
        self.sent.append((verb, prepared))
        self._tell(verb)
        if verb is Verb.CLOSE and "close" not in self.ignores and self._runs:
            self.answer_all()
            self.die()
        return not self.is_full

    def _tell(self, verb: Verb) -> None:
        self.owed.append(verb)
        self.asked.append(verb)

    def answer(self, reply: Reply = None) -> None:
        """It answers the oldest request that it was asked."""
        verb = self.asked.popleft()
        self._replies.append((verb, self.envs.start) if reply is None else reply)
        self._sockets[1].send(b"!")

    def answer_all(self) -> None:
        """It answers all that it was asked."""
        while self.asked:
            self.answer()

    def die(self, silently: bool = False) -> None:
        """It ends; ``silently``: something else keeps its connection open."""
        self._runs = False
        if not silently:
            self._sockets[1].close()
        self._sockets[3].close()

    def poll(self) -> Reply | None:
        self.is_full = False
        if self._replies:
            self._sockets[0].recv(1)
            return self._replies.popleft()
        if not self._sockets or self._sockets[1].fileno() < 0:
            raise EOFError
        return None

    def is_flushed(self) -> bool:
        return not self.is_full

    def descriptors(self) -> Sequence[int]:
        return self._sockets[0].fileno(), self._sockets[2].fileno()

    def exit_descriptor(self) -> int | None:
        return self._sockets[2].fileno() if self._sockets else None

    def is_alive(self) -> bool:
        return self._runs

    def terminate(self) -> None:
        self.events.append("terminate")
        if "terminate" not in self.ignores:
            self.die()

    def kill(self) -> None:
        self.events.append("kill")
        self.die()

    def release(self) -> None:
        self.events.append("release")
        for sock in self._sockets:
            sock.close()
        self._sockets = ()
        self._replies.clear()
        self._runs = False

    def describe(self) -> str:
        return repr(self)


@contextlib.contextmanager
def crew_of(count: int, max_concurrency: int | None = None) -> Iterator[tuple[Crew, list[FakeWorker]]]:
    """A crew of workers that have started."""
    workers = [FakeWorker(index) for index in range(count)]
    crew = Crew(workers, max_concurrency)
    try:
        for worker in workers:
            crew.start(worker)
            worker.answer()
        while crew.next_reply(soon()) is not None:
            pass
        yield crew, workers
    finally:
        crew.end(0.0, forced=True)


def soon() -> float:
    """A deadline that no test should meet."""
    return time.monotonic() + 5.0


def take(crew: Crew) -> tuple[Worker, Verb | None, Reply]:
    """The next reply, which is there."""
    answer = crew.next_reply(soon())
    assert answer is not None
    return answer


def is_silent(crew: Crew) -> bool:
    """Whether no reply is there, though some are owed."""
    with pytest.raises(CallTimeoutError):
        crew.next_reply(time.monotonic())
    return True


# Asking and answering


def test_starting_and_attaching_are_owed() -> None:
    """Both are replies to come; they come in their order."""
    worker = FakeWorker(0)
    crew = Crew([worker])
    crew.start(worker)
    crew.attach(worker, None, None)  # type: ignore[arg-type]
    assert crew.num_owed == 2
    worker.answer_all()
    assert [take(crew)[1], take(crew)[1]] == [Verb.START, Verb.ATTACH]
    assert crew.next_reply(soon()) is None
    crew.end(0.0, forced=True)


def test_replies_come_in_whatever_order_workers_answer() -> None:
    """Each comes with its worker and its request, once; when all are in, there is nothing to wait for."""
    with crew_of(3) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        assert crew.num_owed == 3
        for index in (1, 2, 0):
            assert is_silent(crew)
            workers[index].answer()
            assert take(crew) == (workers[index], Verb.STEP, (Verb.STEP, index))
        assert crew.num_owed == 0
        assert crew.next_reply(None) is None


def test_a_workers_replies_keep_their_order() -> None:
    """Of several requests to one worker the oldest is answered first, and never another's reply taken for it."""
    with crew_of(2) as (crew, workers):
        crew.ask([(workers[0], Verb.STEP, STEP), (workers[0], Verb.RESET, RESET), (workers[1], Verb.RESET, RESET)])
        workers[0].answer_all()
        workers[1].answer_all()
        answers = [take(crew) for _ in range(3)]
        assert [verb for worker, verb, _ in answers if worker is workers[0]] == [Verb.STEP, Verb.RESET]
        assert all(reply == (verb, worker.envs.start) for worker, verb, reply in answers)


def test_what_all_are_told_is_prepared_once() -> None:
    """A call's arguments are pickled once; what differs from worker to worker, once each."""
    with crew_of(3) as (crew, workers):
        crew.ask((worker, Verb.CALL, CALL) for worker in workers)
        assert [len(worker.prepared) for worker in workers] == [1, 0, 0]
        assert [worker.sent for worker in workers] == [[(Verb.CALL, CALL)]] * 3
        crew.ask((worker, Verb.SET_ATTR, SetAttrPayload("name", [1])) for worker in workers)
        assert [len(worker.prepared) for worker in workers] == [2, 1, 1]


def test_nothing_is_sent_where_something_cannot_be() -> None:
    """A payload of the last worker that cannot be pickled keeps the first one from hearing anything."""
    with crew_of(2) as (crew, workers):
        requests = [(workers[0], Verb.RESET, RESET), (workers[1], Verb.CALL, CallPayload("unpicklable", (), {}))]
        with pytest.raises(TypeError, match="cannot be pickled"):
            crew.ask(requests)
        assert workers[0].sent == workers[1].sent == []
        assert crew.num_owed == 0
        assert not crew.is_torn


def test_an_interrupt_between_two_workers_is_noted() -> None:
    """Ctrl-C while some had been told and others not leaves the truth about what is owed."""
    with crew_of(3) as (crew, workers):
        sent = workers[1].send

        def interrupt(verb: Verb, prepared: Any) -> bool:
            raise KeyboardInterrupt

        workers[1].send = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        workers[1].send = sent  # type: ignore[method-assign]
        assert crew.is_torn
        workers[0].answer()
        assert take(crew)[0] is workers[0]
        assert crew.next_reply(None) is None


@pytest.mark.parametrize("is_full", [False, True])
def test_all_are_told_to_step(is_full: bool) -> None:
    """``ask_step`` tells every worker once, also those whose sockets are full."""
    with crew_of(3) as (crew, workers):
        workers[2].is_full = is_full
        for count in (1, 2):
            crew.ask_step()
            assert crew.num_owed == 3
            assert [worker.sent for worker in workers] == [[(Verb.STEP, STEP)] * count] * 3
            for worker in workers:
                worker.answer()
            assert {take(crew)[0] for _ in workers} == set(workers)
            assert crew.num_owed == 0


def test_the_caller_is_a_worker_too() -> None:
    """An inline worker answers when it is polled, whatever the others do."""
    inline = InlineWorker([CountingEnv], 0, AutoresetMode.NEXT_STEP)
    other = FakeWorker(1)
    crew = Crew([inline, other])
    for worker in (inline, other):
        crew.start(worker)
    first, verb, description = take(crew)
    assert (first, verb) == (inline, Verb.START)
    assert isinstance(description, Description)
    assert is_silent(crew)
    other.answer()
    assert take(crew)[0] is other
    for worker in (inline, other):
        crew.attach(worker, Batch(*description.spaces[0], 2), None)
    other.answer()
    assert take(crew)[:2] == (other, Verb.ATTACH)
    crew.ask([(inline, Verb.RESET, RESET), (other, Verb.RESET, RESET)])
    assert isinstance(take(crew)[2], Outcome)
    crew.end(0.0, forced=True)
    assert inline.sub_envs is None


# max_concurrency


def test_no_more_workers_than_allowed_are_at_work() -> None:
    """Requests beyond ``max_concurrency`` wait, oldest first; each reply sends the next."""
    with crew_of(5, max_concurrency=2) as (crew, workers):
        crew.ask((worker, Verb.RESET, RESET) for worker in workers)
        assert crew.num_owed == 5
        assert [len(worker.sent) for worker in workers] == [1, 1, 0, 0, 0]
        assert all(crew.owes(worker) for worker in workers)
        workers[1].answer()
        assert take(crew)[0] is workers[1]
        assert [len(worker.sent) for worker in workers] == [1, 1, 1, 0, 0]
        assert not crew.owes(workers[1])
        workers[0].answer()
        workers[2].answer()
        assert {take(crew)[0], take(crew)[0]} == {workers[0], workers[2]}
        assert [len(worker.sent) for worker in workers] == [1, 1, 1, 1, 1]
        workers[3].answer()
        workers[4].answer()
        assert {take(crew)[0], take(crew)[0]} == {workers[3], workers[4]}
        assert crew.next_reply(None) is None


def test_calls_do_not_wait() -> None:
    """Only steps and resets count."""
    with crew_of(3, max_concurrency=1) as (crew, workers):
        crew.ask((worker, Verb.CALL, CALL) for worker in workers)
        assert [len(worker.sent) for worker in workers] == [1, 1, 1]


def test_a_step_keeps_to_the_limit() -> None:
    """``ask_step`` queues as ``ask`` does."""
    with crew_of(3, max_concurrency=1) as (crew, workers):
        crew.ask_step()
        assert [len(worker.sent) for worker in workers] == [1, 0, 0]
        assert crew.num_owed == 3


@pytest.mark.parametrize("seed", range(15))
def test_random_work_under_a_limit(seed: int) -> None:
    """Whatever order workers answer in, the limit holds, every request is answered once, and a worker's own in order."""
    rng = np.random.default_rng(seed)
    count, limit = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    with crew_of(count, max_concurrency=limit) as (crew, workers):
        asked: dict[Worker, list[Verb]] = {worker: [] for worker in workers}
        answered: dict[Worker, list[Verb | None]] = {worker: [] for worker in workers}
        for _ in range(6):
            verb, payload = [(Verb.STEP, STEP), (Verb.RESET, RESET)][rng.integers(2)]
            crew.ask((worker, verb, payload) for worker in workers)
            for worker in workers:
                asked[worker].append(verb)
        while crew.num_owed:
            busy = [worker for worker in workers if worker.asked]
            assert 1 <= len(busy) <= limit
            assert all(len(worker.asked) == 1 for worker in busy)
            for index in rng.permutation(len(busy))[: rng.integers(1, len(busy) + 1)]:
                busy[index].answer()
                answerer, verb_answered, _ = take(crew)
                answered[answerer].append(verb_answered)
        assert answered == asked


# Time


def test_a_deadline_is_kept() -> None:
    """Out of time the wait ends, within some tens of milliseconds; everything owed stays owed and can be waited for again."""
    with crew_of(3, max_concurrency=2) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        workers[0].answer()
        assert take(crew)[0] is workers[0]
        begin = time.monotonic()
        with pytest.raises(CallTimeoutError):
            crew.next_reply(begin + 0.1)
        assert 0.1 <= time.monotonic() - begin < 0.5
        assert crew.num_owed == 2
        assert not workers[1].lost
        workers[2].answer()
        workers[1].answer()
        assert {take(crew)[0], take(crew)[0]} == {workers[1], workers[2]}


def test_what_is_there_is_taken_even_out_of_time() -> None:
    """A deadline in the past still gives the replies that are here."""
    with crew_of(2) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        for worker in workers:
            worker.answer()
        taken = {crew.next_reply(time.monotonic() - 1)[0] for _ in workers}  # type: ignore[index]
        assert taken == set(workers)


def test_a_full_socket_is_tried_again() -> None:
    """A request that did not leave is pushed on while the caller waits, until its reply is there."""
    with crew_of(2) as (crew, workers):
        workers[0].is_full = True
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        with pytest.raises(CallTimeoutError):
            crew.next_reply(time.monotonic() + 0.05)
        assert not workers[0].is_full
        workers[0].answer()
        assert take(crew)[0] is workers[0]


# Losses


@pytest.mark.parametrize("silently", [False, True])
def test_a_death_is_noticed_while_others_work(silently: bool) -> None:
    """Who dies owing something is LOST, once, and owes nothing more; so too where another process holds its connection."""
    with crew_of(3) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        workers[1].die(silently)
        assert take(crew) == (workers[1], None, LOST)
        assert repr(LOST) == "LOST"
        assert workers[1].lost
        assert not workers[1].owed
        assert crew.num_owed == 2
        assert crew.find_lost() == [workers[1]]
        assert is_silent(crew)
        workers[0].answer()
        workers[2].answer()
        assert {take(crew)[0], take(crew)[0]} == {workers[0], workers[2]}


@pytest.mark.parametrize("silently", [False, True])
def test_last_words_are_heard(silently: bool) -> None:
    """Replies that a worker gave before it died count; the first one that is missing is LOST."""
    with crew_of(2) as (crew, workers):
        crew.ask([(workers[0], Verb.STEP, STEP), (workers[0], Verb.RESET, RESET), (workers[1], Verb.STEP, STEP)])
        workers[0].answer()
        workers[0].die(silently)
        assert take(crew) == (workers[0], Verb.STEP, (Verb.STEP, 0))
        assert take(crew) == (workers[0], None, LOST)


def test_who_owes_nothing_dies_unnoticed() -> None:
    """It is no reply of the call that is waited for; but it is found when somebody looks."""
    with crew_of(3) as (crew, workers):
        workers[0].die()
        crew.ask([(workers[1], Verb.STEP, STEP)])
        assert is_silent(crew)
        workers[1].answer()
        assert take(crew)[0] is workers[1]
        assert crew.next_reply(None) is None
        workers[2].die(silently=True)
        assert crew.find_lost() == [workers[0], workers[2]]


def test_a_lost_worker_makes_room() -> None:
    """With ``max_concurrency`` the place of one that died is taken by the next, and its own queued requests are gone."""
    with crew_of(3, max_concurrency=1) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        crew.ask([(workers[0], Verb.RESET, RESET)])
        assert crew.num_owed == 4
        workers[0].die()
        assert take(crew) == (workers[0], None, LOST)
        assert crew.num_owed == 2
        for worker in workers[1:]:
            with contextlib.suppress(CallTimeoutError):
                crew.next_reply(time.monotonic() + 0.02)
            assert worker.asked, "it was told to step"
            worker.answer()
            assert take(crew)[0] is worker


def test_a_lost_worker_starts_again() -> None:
    """Started anew it is listened to as before, and what it owed before is forgotten."""
    with crew_of(2) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        workers[0].die()
        assert take(crew)[2] is LOST
        crew.start(workers[0])
        crew.ask([(workers[0], Verb.RESET, RESET)])
        assert crew.num_owed == 3
        workers[0].answer_all()
        workers[1].answer()
        answers = [take(crew) for _ in range(3)]
        assert [verb for worker, verb, _ in answers if worker is workers[0]] == [Verb.START, Verb.RESET]
        assert crew.find_lost() == []


# The end


def test_workers_are_asked_to_close() -> None:
    """Those that do are not forced; all are released, and what closing raised is told."""
    workers = [FakeWorker(0), FakeWorker(1)]
    crew = Crew(workers)
    for worker in workers:
        crew.start(worker)
        worker.answer()
    while crew.next_reply(soon()) is not None:
        pass
    failure = Failure(1, "close", ValueError("why"), "")
    workers[1].answer_all = lambda: workers[1].answer(CallOutcome([], [failure]))  # type: ignore[method-assign]
    assert list(crew.end(5.0)) == [failure]
    assert [worker.events[1:] for worker in workers] == [["release"], ["release"]]
    assert [worker.sent for worker in workers] == [[(Verb.CLOSE, None)]] * 2
    assert crew.end(5.0) == ()


@pytest.mark.parametrize("forced", [False, True])
def test_who_does_not_close_is_ended(forced: bool) -> None:
    """Terminated, then killed, within the timeout and half a second; those that are gone already are left in peace."""
    workers = [FakeWorker(0, ["close"]), FakeWorker(1, ["close", "terminate"]), FakeWorker(2)]
    crew = Crew(workers)
    for worker in workers:
        crew.start(worker)
        worker.answer()
    while crew.next_reply(soon()) is not None:
        pass
    workers[2].die()
    begin = time.monotonic()
    assert list(crew.end(0.2, forced)) == []
    assert time.monotonic() - begin < (0.0 if forced else 0.2) + 0.8
    assert [worker.events[1:] for worker in workers] == [
        ["terminate", "release"],
        ["terminate", "kill", "release"],
        ["release"],
    ]
    assert all(worker.sent == [] for worker in workers) or not forced


def test_closing_goes_before_what_is_queued() -> None:
    """Steps that wait for their turn are dropped, so that no worker has to do them first."""
    with crew_of(3, max_concurrency=1) as (crew, workers):
        crew.ask((worker, Verb.STEP, STEP) for worker in workers)
        crew.end(5.0)
        assert [[verb for verb, _ in worker.sent] for worker in workers] == [
            [Verb.STEP, Verb.CLOSE],
            [Verb.CLOSE],
            [Verb.CLOSE],
        ]


def test_a_forked_process_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are not its children: a copy of the crew in another process lets them be."""
    with crew_of(2) as (crew, workers):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            assert crew.end(5.0) == ()
        assert all(worker.is_alive() for worker in workers)
        crew.ask((worker, Verb.CALL, CALL) for worker in workers)
        assert [len(worker.sent) for worker in workers] == [1, 1]


# Shares


def test_shares_are_consecutive_even_and_never_empty() -> None:
    """Every count of sub-envs and workers up to 40: whole, in order, sizes that differ by one at most, longer first."""
    for num_envs in range(1, 41):
        for num_workers in range(1, 45):
            parts = shares(num_envs, num_workers)
            assert [index for part in parts for index in part] == list(range(num_envs))
            sizes = [len(part) for part in parts]
            assert len(sizes) == min(num_workers, num_envs)
            assert sizes == sorted(sizes, reverse=True)
            assert 0 < min(sizes) <= max(sizes) <= min(sizes) + 1


# A real crew


class KilledOrRaising(CountingEnv):
    """Sub-env 0 kills its process at its first step; any other one raises at its first."""

    def step(self, action: np.int64) -> Any:
        """Ends badly, once."""
        if self._episode == 0:
            if self.index == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"sub-env {self.index} does not want to")
        return super().step(action)


@pytest.mark.parametrize("max_concurrency", [None, 1, 2])
def test_a_step_that_a_death_left_behind_does_not_spoil_the_reset(max_concurrency: int | None) -> None:
    """A reset after a lost worker succeeds, though steps of the call that was cut short fail meanwhile.

    Under ``max_concurrency`` these steps may still have been waiting for their turn when the worker died: what they raise
    belongs to the step that is over, and the reset mends it.
    """
    env_fns: list[Callable[[], gym.Env[Any, Any]]] = [functools.partial(KilledOrRaising, index) for index in range(3)]
    with AsyncVectorEnv(env_fns, max_concurrency=max_concurrency) as envs:
        envs.reset(seed=1)
        with pytest.raises(WorkerLostError):
            envs.step([0, 0, 0])
        observations, _ = envs.reset(seed=2)
        assert observations[:, 1].tolist() == [2, 3, 4]
        assert observations[:, 3].tolist() == [0, 0, 0]
        assert envs.call("where") == tuple(tuple(row) for row in observations.tolist())
