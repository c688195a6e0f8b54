"""The workers of one vector env, together: asking them, waiting for whichever answers first, ending them.

::

    ask ──▶ owed by the worker ──▶ next_reply: whichever answers first, or LOST, or out of time
     │                                ▲
     └─ over max_concurrency: queued ─┘ sent when another reply comes in

Nothing here knows what a request means.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, Final

from rayvec.batch import Batch
from rayvec.errors import CallTimeoutError
from rayvec.failures import Failure
from rayvec.local import bells
from rayvec.local.memory import SharedBlock
from rayvec.local.starting import hearing_later
from rayvec.local.waiting import usable_cores
from rayvec.protocol import REQUESTS, StepPayload, Verb
from rayvec.stats import count_restart
from rayvec.sub_envs import NOTHING, SETTLED, CallOutcome
from rayvec.worker import InlineWorker, Reply, Worker

__all__ = ["LOST", "Crew"]


class _Lost:
    def __repr__(self) -> str:
        return "LOST"


LOST: Final = _Lost()
"""In place of a reply: the worker has died, and owes nothing any more."""

Answer = tuple[Worker, "Verb | None", Reply]
"""Whose reply, to what, and the reply; to nothing if he has died."""

_STEP = StepPayload(None)
_AT_ONCE = contextlib.nullcontext()

_TERMINATE_GRACE = 0.4
"""Seconds between asking processes to end and ending them."""
_FLUSH_INTERVAL = 0.005
"""Seconds between two attempts to send what a socket would not take."""


class _BareLines:
    """The shortest way to tell workers to step and to hear that they have, in tight loops.

    Attributes:
        tells: the workers that can be told so, and how.
        takes: the same workers, and how to take their replies.
        watches: how to wait for them actively; empty where they have no lamps, or the caller no core for it.
        own: the workers that are the caller itself.
        others: the rest, which have to be listened to at the same time.
    """

    def __init__(self, workers: Sequence[Worker], watches: bool) -> None:
        lines = [(worker, worker.bare_line()) for worker in workers if not isinstance(worker, InlineWorker)]
        self.own = [worker for worker in workers if isinstance(worker, InlineWorker)]
        self.others = [worker for worker, line in lines if line is None]
        self.tells = [(worker, line.tell) for worker, line in lines if line is not None]
        self.takes = [(worker, line.take) for worker, line in lines if line is not None]
        self.watches = [line.watch for _, line in lines if watches and line is not None and line.watch is not None]
        self._selector = selectors.DefaultSelector()
        last: Sequence[int] = ()
        for worker, line in lines:
            if line is not None:
                last = line.descriptors
                descriptor = worker.exit_descriptor()
                if descriptor is not None:
                    self._selector.register(descriptor, selectors.EVENT_READ)
        for descriptor in last:
            self._selector.register(descriptor, selectors.EVENT_READ)

    def wait_for_last(self, timeout: float | None) -> bool:
        """Waits for a reply of the worker that was told last, or the end of any; returns whether one has come."""
        return bool(self._selector.select(timeout))

    def close(self) -> None:
        """Stops listening."""
        self._selector.close()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


class Crew:
    """All workers of a vector env, in the order of their sub-envs.

    Args:
        workers: the workers; none is started yet.
        max_concurrency: how many may be working on a step or reset at a time; None: all.

    Attributes:
        workers: the workers.
        num_owed: how many replies have not been taken yet.
        has_lost: some worker has died and has not been started again.
        is_torn: Ctrl-C came while workers were being told something, so that only some of them do it, or while what they have
            said was being taken, so that some of it is lost.
        has_told: all that was asked has been told, since somebody last denied it.
        settled: the workers whose reply was taken and says that their infos lie in the batch, and nothing else.
        is_waiting: nothing is being told or taken, so that Ctrl-C does no harm.
    """

    def __init__(self, workers: Sequence[Worker], max_concurrency: int | None = None) -> None:
        self.workers = workers
        cores = usable_cores()
        for worker in workers:
            # One that waits does not step: there is a core for it.
            worker.spins = len(workers) <= cores
        self._watches = sum(not worker.is_caller for worker in workers) < cores
        self.num_owed = 0
        self.has_lost = False
        self.is_torn = False
        self.has_told = False
        self.is_waiting = False
        self._blocks = any(worker.blocks for worker in workers)
        self._max_concurrency = max_concurrency
        self._queue: deque[tuple[Worker, Verb, Any]] = deque()
        self._working: dict[Worker, float] = {}
        self._unsure: set[Worker] = set()
        """Workers that may never have been told what they owe, for Ctrl-C came."""
        self._lines: _BareLines | None = None
        self._awaits_lines = False
        self._inline = [worker for worker in workers if worker.is_caller]
        self._turn = 0
        """Which of them works next."""
        self._writers: set[Worker] = set()
        self._ready: dict[Worker, bool] = {}
        self.settled: deque[Worker] = deque()
        self._answer: Answer | None = None
        """That was taken and not given yet."""
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Worker, Sequence[int]] = {}
        self._starting: set[Worker] = set()
        self._owner = os.getpid()
        self._ended = False

    def start(self, *workers: Worker) -> None:
        """Starts some of them."""
        for worker in workers:
            self.forget(worker)
        try:
            for kind, alike in itertools.groupby(workers, lambda worker: worker.__class__):
                kind.start_all(list(alike))
        finally:
            started = [worker for worker in workers if worker.owed]
            self.num_owed += len(started)
            self._starting.update(started)
            for worker in started:
                self._watch(worker)
        self.has_lost = self.has_lost and any(worker.lost for worker in self.workers)

    def _watch(self, worker: Worker) -> None:
        """Listens to what ``worker`` says can be listened to now."""
        if tuple(self._watched.get(worker, ())) == tuple(worker.descriptors()):
            return
        self._unwatch(worker)
        self._watched[worker] = worker.descriptors()
        for descriptor in self._watched[worker]:
            self._selector.register(descriptor, selectors.EVENT_READ, worker)

    def _unwatch(self, worker: Worker) -> None:
        for descriptor in self._watched.pop(worker, ()):
            # Ctrl-C may have come before it was registered.
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)

    def attach(self, worker: Worker, batch: Batch, block: SharedBlock | None) -> None:
        """Gives ``worker`` its memory."""
        owed = len(worker.owed)
        worker.attach(batch, block)
        self._watch(worker)
        self._drop_lines()
        if not worker.is_flushed():
            self._write_later(worker)
        self.num_owed += len(worker.owed) - owed

    def restart(self, worker: Worker, batch: Batch, block: SharedBlock | None) -> None:
        """Starts ``worker`` anew, to go on over the rows that it left."""
        self.start(worker)
        count_restart(batch.tallies[worker.envs.start : worker.envs.stop])
        self.attach(worker, batch, block)

    def ask(self, requests: Iterable[tuple[Worker, Verb, tuple[Any, ...] | None]]) -> None:
        """Sends each request, or queues it where ``max_concurrency`` is reached.

        Raises:
            Exception: a payload cannot be pickled; nothing was sent to anyone then.
        """
        self._awaits_lines = False
        prepared = []
        common: dict[type[Worker], Any] = {}
        for worker, verb, payload in requests:
            if REQUESTS[verb].is_common:
                if type(worker) not in common:
                    common[type(worker)] = worker.prepare(verb, payload)
                prepared.append((worker, verb, common[type(worker)]))
            else:
                prepared.append((worker, verb, worker.prepare(verb, payload)))
        self.num_owed += len(prepared)
        with self._telling():
            for worker, verb, ready in prepared:
                if self._max_concurrency is None or not REQUESTS[verb].limited:
                    self._send(worker, verb, ready)
                else:
                    self._queue.append((worker, verb, ready))
            if self._queue:
                self._send_queued()

    def ask_step(self) -> None:
        """Tells every worker to step its sub-envs with the actions that lie in the batch."""
        if self._writers:
            self._drop_flushed()
        if self._max_concurrency is not None or self._writers or self.num_owed:
            self.ask((worker, Verb.STEP, _STEP) for worker in self.workers)
            return
        lines = self._made_lines()
        # As _telling, which would take longer.
        was_torn, self.is_torn = self.is_torn, True
        if lines.others:
            self.ask((worker, Verb.STEP, _STEP) for worker in lines.others)
        self._awaits_lines = True
        self._tell(lines.tells)
        self.num_owed += len(lines.own)
        for worker in lines.own:
            worker.send(Verb.STEP, _STEP)
        self.is_torn = was_torn

    def run_step(self) -> bool:
        """Has every worker step with the actions in the batch and takes what they say, where :meth:`may_run_step`.

        Whoever calls it has set :attr:`is_torn`; it is False while Ctrl-C does no harm, and at the end.

        Returns:
            Whether all have answered, and none says more than that its infos lie in the batch (:attr:`settled`). If not,
            :meth:`next_reply` gives the rest.
        """
        lines = self._made_lines()
        self._tell(lines.tells)
        for worker in lines.own:
            reply = worker.step()
            if reply is SETTLED:
                self.settled.append(worker)
            elif reply is not NOTHING:
                self._answer = worker, Verb.STEP, reply
        self.is_torn = False
        if self._answer is not None or not lines.watches:
            self._awaits_lines = True
            return False
        # Who is not there by then is waited for asleep.
        all(watch() for watch in lines.watches)
        self.is_torn = True
        self._take(lines.takes)
        self.is_torn = False
        return not self.num_owed

    def may_run_step(self) -> bool:
        """Whether :meth:`run_step` may be called: all can be told the shortest way, and nothing is left to be given or sent."""
        if self._max_concurrency is not None or self._writers or self._answer is not None:
            return False
        lines = self._made_lines()
        return not lines.others and len(lines.own) < 2

    def _made_lines(self) -> _BareLines:
        if self._lines is None:
            self._lines = _BareLines(self.workers, self._watches)
        return self._lines

    def _tell(self, tells: Sequence[tuple[Worker, Callable[[], object]]]) -> None:
        for worker, _ in tells:
            worker.owed.append(Verb.STEP)
        self.num_owed += len(tells)
        # Workers that wake want this core: tell the others quickly.
        for worker, tell in tells:
            try:
                tell()
            except OSError:
                # Its socket is full, or it has died, which is noticed later.
                worker.owed.pop()
                self._send(worker, Verb.STEP, worker.prepare(Verb.STEP, _STEP))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Ctrl-C is heard when everybody has been told; who does not come to the end of it has not told everybody."""
        was_torn, self.is_torn = self.is_torn, True
        with self.hearing_later():
            yield
            self.is_torn = was_torn
            # Within ask_step there are more to tell.
            self.has_told = not was_torn

    def hearing_later(self) -> contextlib.AbstractContextManager[None]:
        """Ctrl-C is heard at the end, or when it comes again; at once where it might have to end what blocks."""
        return _AT_ONCE if self._blocks else hearing_later(patient=False)

    def mend(self) -> None:
        """Goes on after Ctrl-C has torn a call: what has not been told to anybody is dropped."""
        self.is_torn = False
        self._queue.clear()
        self._working.clear()
        self._unsure = {worker for worker in self.workers if worker.owed}

    def _send_queued(self) -> None:
        """Sends what may be sent now; a worker's requests keep their order."""
        assert self._max_concurrency is not None
        position = 0
        while position < len(self._queue):
            worker, verb, prepared = self._queue[position]
            is_at_work = worker in self._working or (bool(worker.owed) and worker not in self._unsure)
            if is_at_work or len(self._working) >= self._max_concurrency:
                position += 1
                continue
            with self._telling():
                self._unsure.discard(worker)
                del self._queue[position]
                self._working[worker] = time.monotonic()
                self._send(worker, verb, prepared)

    def _send(self, worker: Worker, verb: Verb, prepared: Any) -> None:
        if not worker.send(verb, prepared):
            self._write_later(worker)

    def _write_later(self, worker: Worker) -> None:
        """Sees to what has not left yet: being polled, ``worker`` sends more."""
        self._writers.add(worker)
        self._ready.setdefault(worker, False)

    def next_reply(self, deadline: float | None, by_arrival: bool = False) -> Answer | None:
        """Waits for the next reply that says something, of any worker.

        Args:
            deadline: of ``time.monotonic``; None waits for ever.
            by_arrival: replies that are there already go before the caller's own work.

        Returns:
            The worker, the request that it answered, and the reply; :data:`LOST` for the reply of one that has died. None
            when nothing is owed any more: the replies that are missing said nothing but that it is done.

        Raises:
            CallTimeoutError: none came in time. All that is owed stays owed.
        """
        while self.num_owed or self.settled or self._answer is not None:
            if self.settled:
                return self.settled.popleft(), Verb.STEP, SETTLED
            if self._awaits_lines and self._answer is None:
                answer = self._taken_from_lines(deadline)
                if answer is not None:
                    return answer
            if self._answer is None and self._ready:
                worker, has_ended = next(iter(self._ready.items()))
                # Half taken, it would be lost.
                with _AT_ONCE if worker.is_caller else self.hearing_later():
                    self._answer = self._taken(worker, has_ended)
                    self.is_waiting = True
            if self._answer is not None:
                self.is_waiting = False
                answer, self._answer = self._answer, None
                return answer
            if not self._ready and self.num_owed and not self._awaits_lines and not self.settled:
                self._wait(deadline, by_arrival)
        return None

    def _taken(self, worker: Worker, has_ended: bool) -> Answer | None:
        """The next reply of ``worker``, which is struck off; None if it is not here, or if it has died and owes none."""
        reply = self._polled(worker, has_ended)
        if reply is None:
            del self._ready[worker]
            return None
        if reply is LOST:
            owed = self.owes(worker)
            self.dismiss(worker)
            return (worker, None, LOST) if owed else None
        verb = worker.owed.popleft()
        self.num_owed -= 1
        if not worker.owed:
            del self._ready[worker]
        self._working.pop(worker, None)
        if worker.lost:
            self.has_lost = True
        if verb is Verb.START:
            self._starting.discard(worker)
            if not worker.is_flushed():
                self._write_later(worker)
            self._watch(worker)
        if self._queue:
            self._send_queued()
        return worker, verb, reply

    def _polled(self, worker: Worker, has_ended: bool) -> Reply | None:
        try:
            reply = worker.poll()
        except EOFError:
            return LOST
        return LOST if reply is None and has_ended else reply

    def _wait(self, deadline: float | None, by_arrival: bool = False) -> None:
        """Waits until some worker may have something to say."""
        # Ctrl-C may have come between an answer and its being counted.
        self.num_owed = sum(len(worker.owed) for worker in self.workers) + len(self._queue)
        if not self.num_owed:
            return
        for turn in range(self._turn, self._turn + len(self._inline)):
            worker = self._inline[turn % len(self._inline)]
            if worker.owed:
                if by_arrival and len(self.workers) > len(self._inline):
                    self._note_readable(0.0)
                if not self._ready:
                    self._turn = (turn + 1) % len(self._inline)
                    self._ready[worker] = False
                return
        timeout = _left(deadline)
        self._drop_flushed()
        if self._writers:
            timeout = _FLUSH_INTERVAL if timeout is None else min(timeout, _FLUSH_INTERVAL)
        patience = min((worker.patience for worker in self._starting if worker.patience is not None), default=None)
        if patience is not None:
            left = max(patience - time.monotonic(), 0.0)
            timeout = left if timeout is None else min(timeout, left)
        self._note_readable(timeout)
        if self._ready:
            return
        # However short the time is, they send more.
        self._ready.update(dict.fromkeys(self._writers, False))
        if deadline is not None and time.monotonic() >= deadline:
            raise CallTimeoutError("out of time")
        now = time.monotonic()
        self._ready.update(
            (worker, False) for worker in self._starting if worker.patience is not None and worker.patience <= now
        )

    def note_arrivals(self) -> None:
        """Notes who has answered by now; those who answer later stand behind them.

        It also has epoll forget whom it told of last, who would keep their old places in its list otherwise.
        """
        self._note_readable(0.0)

    def _note_readable(self, timeout: float | None) -> None:
        """Notes who may have something to say, first come first: epoll tells of descriptors as they became readable."""
        self.is_waiting = True
        ready = self._selector.select(timeout)
        self.is_waiting = False
        for key, _ in ready:
            worker = key.data
            self._ready[worker] = self._ready.get(worker, False) or key.fd == worker.exit_descriptor()

    def _taken_from_lines(self, deadline: float | None) -> Answer | None:
        """Has the caller step its own share while the others work, then takes the replies that are here: most, as a rule.

        Those that are not here then are listened to as all replies are.

        Returns:
            An answer from the caller's own share that says more than that it is done.
        """
        lines = self._lines
        assert lines is not None
        for worker in lines.own:
            if not worker.owed:
                continue
            try:
                reply = worker.poll()
            except EOFError:
                self._ready[worker] = True
                return None
            worker.owed.popleft()
            self.num_owed -= 1
            if reply is not NOTHING:
                return worker, Verb.STEP, reply
        self._awaits_lines = False
        takes = lines.takes
        if not takes or lines.others:
            return None
        self.is_waiting = True
        if lines.watches:
            # Who is not there by then is waited for asleep, and the rest with it.
            all(watch() for watch in lines.watches)
            may_take = True
        else:
            # Waiting for all at once would wake the caller for each of them, and where there are more workers than cores each
            # of these wakes takes a core from a worker. So it waits for the one that was told last.
            may_take = lines.wait_for_last(_left(deadline))
        self.is_waiting = False
        if may_take:
            self._take(takes)
        return None

    def _take(self, takes: Sequence[tuple[Worker, Callable[[], object]]]) -> None:
        """Takes the replies that are here."""
        for worker, take in takes:
            try:
                said = take()
            except OSError:
                continue
            if not said:
                self._ready[worker] = False
                continue
            worker.owed.popleft()
            self.num_owed -= 1
            if said == bells.SETTLED:
                self.settled.append(worker)

    def _drop_flushed(self) -> None:
        self._writers = {worker for worker in self._writers if not worker.is_flushed()}

    def _drop_lines(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        self._awaits_lines = False

    def owes(self, worker: Worker) -> bool:
        """Whether ``worker`` has yet to answer something."""
        return bool(worker.owed) or any(request[0] is worker for request in self._queue)

    def turn_of(self, worker: Worker) -> float | None:
        """Since when, of ``time.monotonic``, ``worker`` has its turn, if it had to wait for it and has not answered yet."""
        return self._working.get(worker)

    def forget(self, worker: Worker) -> None:
        """Drops what ``worker`` owes and does not listen to it any more."""
        self._drop_lines()
        self._unwatch(worker)
        self._ready.pop(worker, None)
        if self._answer is not None and self._answer[0] is worker:
            self._answer = None
        self.num_owed -= len(worker.owed)
        worker.owed.clear()
        self._unqueue(worker)
        self._working.pop(worker, None)
        self._writers.discard(worker)
        self._starting.discard(worker)

    def dismiss(self, worker: Worker) -> None:
        """Counts ``worker`` as lost: it has died, or ends because it could not build its sub-envs."""
        worker.lost = self.has_lost = True
        self.forget(worker)
        if self._queue:
            self._send_queued()

    def _unqueue(self, worker: Worker) -> None:
        queue = deque(request for request in self._queue if request[0] is not worker)
        self.num_owed -= len(self._queue) - len(queue)
        self._queue = queue

    def find_lost(self) -> list[Worker]:
        """The workers that have died, whether somebody noticed it before or not."""
        return [worker for worker in self.workers if worker.lost or not worker.is_alive()]

    def end(self, timeout: float, forced: bool = False) -> Sequence[Failure]:
        """Ends all workers and frees what the caller held of them; harmless when done before, or in a forked process.

        Args:
            timeout: seconds that they have to close their sub-envs.
            forced: do not ask them to.

        Returns:
            What closing the sub-envs raised.
        """
        if self._ended or os.getpid() != self._owner:
            return ()
        deadline = time.monotonic() + timeout
        failures: list[Failure] = []
        try:
            if not forced:
                failures = self._close_politely(deadline)
        finally:
            # A second Ctrl-C must not keep what does not answer from being ended.
            try:
                self._terminate([worker for worker in self.workers if worker.is_alive()])
            finally:
                self._release()
        return failures

    def _close_politely(self, deadline: float) -> list[Failure]:
        failures: list[Failure] = []
        living = [worker for worker in self.workers if not worker.lost and worker.is_alive()]
        for worker in living:
            self._unqueue(worker)
        self.ask((worker, Verb.CLOSE, None) for worker in living)
        try:
            while (answer := self.next_reply(deadline)) is not None:
                if isinstance(answer[2], CallOutcome):
                    failures.extend(answer[2].failures)
        except CallTimeoutError:
            pass
        self._wait_for_ends(living, deadline)
        return failures

    def _wait_for_ends(self, workers: Iterable[Worker], deadline: float) -> None:
        """Waits for the end of processes that have closed their sub-envs."""
        ends = [worker.exit_descriptor() for worker in workers]
        waiting = {descriptor for descriptor in ends if descriptor is not None}
        while waiting and (left := deadline - time.monotonic()) > 0:
            waiting -= set(connection.wait(waiting, left))

    def _terminate(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.terminate()
        self._wait_for_ends(workers, time.monotonic() + _TERMINATE_GRACE)

    def _release(self) -> None:
        for worker in self.workers:
            if worker.is_alive():
                worker.kill()
        for worker in self.workers:
            self.forget(worker)
            worker.release()
        self._drop_lines()
        self._selector.close()
        self.workers = ()
        self._inline.clear()
        self._ended = True
