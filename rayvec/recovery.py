"""``on_failure="restart"``, on the caller's side: what becomes of a reply that tells of a failure, or of none in time.

::

    a sub-env raised            its worker builds it anew ───────────────────────┐
    a worker died               it is started anew, with all of its sub-envs ────┤ RESTART: an order for each
    a worker took too long      it is killed, and as above ──────────────────────┘ │
                                                                                   ▼
                                       rows and infos as docs/failures.md says, and the call goes on

Each order holds all that its sub-env needs: a seed, how to go on, and the observation that was handed out last, of which a
copy is kept here, out of the workers' reach. More restarts than :class:`~rayvec.restarts.FailurePolicy` allows are
refused, and the contract goes on as under ``"raise"``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from gymnasium.vector import AutoresetMode

from rayvec import infos as info_columns
from rayvec.batch import Batch
from rayvec.columns import Rows
from rayvec.crew import LOST, Crew
from rayvec.failures import Failure, add_note
from rayvec.local.memory import SharedBlock
from rayvec.protocol import ResetPayload, RestartPayload, Verb
from rayvec.restarts import Bound, FailurePolicy, Goal, RestartOrder, restart_seed
from rayvec.sub_envs import Outcome
from rayvec.worker import Reply, Worker

__all__ = ["Recovery"]

logger = logging.getLogger("rayvec")


class Recovery:
    """Restarts what fails in one vector env.

    Args:
        policy: how often.
        crew: the workers.
        batch: that is handed out.
        block: that it lies in, if it is shared.
        autoreset_mode: the vector env's.
        limits: seconds for each of ``"step"`` and ``"reset"``, and for the ``"restart"`` of a worker; None: no bound.

    Attributes:
        num_restarts: how often each sub-env was restarted.
    """

    def __init__(
        self,
        policy: FailurePolicy,
        crew: Crew,
        batch: Batch,
        block: SharedBlock | None,
        autoreset_mode: AutoresetMode,
        limits: Mapping[str, float | None],
    ) -> None:
        self._crew = crew
        self._batch = batch
        self._block = block
        self._mode = autoreset_mode
        self._limits = limits
        self._bound = Bound(policy, batch.num_rows)
        self.num_restarts: Sequence[int] = self._bound.counts
        self._kept = Batch(batch.observation_space, batch.action_space, batch.num_rows)
        self._has_begun = np.zeros(batch.num_rows, np.bool_)
        self._seeds: list[int | None] = [None] * batch.num_rows
        self._since_seed = [0] * batch.num_rows
        self._resets: dict[Worker, ResetPayload] = {}
        """What each worker was told that has been asked for a reset."""
        self._groups: dict[Worker, list[info_columns.Columns]] = {}
        self._due: dict[Worker, float] = {}
        """Until when workers have to answer that are being restarted or are at work for ``recv``; the others have the call's
        own deadline."""
        self._refusal: str | None = None

    # what a call begins and ends with

    def begin_call(self) -> None:
        """A call begins: what an earlier one that ended in an error has left is forgotten."""
        self._groups.clear()
        self._resets.clear()
        self._refusal = None
        self._due = {worker: due for worker, due in self._due.items() if _is_restarting(worker)}

    def begin_reset(self, payloads: Mapping[Worker, ResetPayload]) -> None:
        """These workers have been asked for a reset."""
        self._resets.update(payloads)
        for worker, payload in payloads.items():
            for place, index in enumerate(worker.envs):
                if payload.mask is not None and not payload.mask[place]:
                    continue
                self._has_begun[index] = True
                if payload.seeds[place] is not None:
                    self._seeds[index], self._since_seed[index] = payload.seeds[place], 0

    def begin_work(self, workers: Iterable[Worker], verb: Verb) -> None:
        """These workers are asked for what ``recv`` will hand out: the time of each begins now."""
        for worker in workers:
            self._groups.pop(worker, None)
            if not worker.is_caller and not _is_restarting(worker):
                self._set_due(worker, self._limits[_call_of(verb)])

    def begin_recv(self) -> None:
        """Forgets why something was refused in an earlier one."""
        self._refusal = None

    def keep(self, rows: Rows | None = None) -> None:
        """Keeps what is handed out now, of these rows (None: all): a worker that dies may leave half a row behind."""
        self._kept.take_over(self._batch, slice(0, self._batch.num_rows) if rows is None else rows)

    def seeds_of(self, indices: Sequence[int]) -> tuple[tuple[int | None, int], ...]:
        """The last seed of each of these sub-envs, and how often it was restarted since."""
        return tuple((self._seeds[index], self._since_seed[index]) for index in indices)

    def go_on_from(self, indices: Sequence[int], seeds: Sequence[tuple[int | None, int]] | None) -> None:
        """These sub-envs are where a snapshot has them, with what :meth:`seeds_of` gave then; None: nobody knows."""
        for index, (seed, count) in zip(indices, seeds or [(None, 0)] * len(indices), strict=True):
            self._seeds[index], self._since_seed[index], self._has_begun[index] = seed, count, True
        self.keep()

    def take_infos(self) -> list[tuple[int, info_columns.Columns]]:
        """The infos of sub-envs that were restarted in this call, and of those that share a worker with one that raised."""
        groups = [(worker.envs.start, columns) for worker, parts in self._groups.items() for columns in parts]
        self._groups.clear()
        return groups

    def take_infos_of(self, worker: Worker) -> list[info_columns.Columns]:
        """The same of one worker's sub-envs."""
        return self._groups.pop(worker, [])

    def release(self) -> None:
        """Lets go of the batch, whose memory is given back."""
        self._batch = self._block = None  # type: ignore[assignment]

    # replies

    def handle(self, worker: Worker, verb: Verb | None, reply: Reply, call: str) -> Sequence[Failure] | None:
        """Deals with a reply if it tells of a failure, or is a restart's.

        Args:
            worker: whose it is.
            verb: what it answers.
            reply: what came, as :meth:`Crew.next_reply` gives it.
            call: what is pending, of this worker at least: ``"step"``, ``"reset"``, ``"call"``.

        Returns:
            What has to be raised all the same when the call ends, as a rule nothing; None: this is no matter for a restart.
        """
        if verb is Verb.RESTART:
            self._due.pop(worker, None)
            if self._crew.owes(worker):
                # It was restarted before this call began; what it is asked in this call comes now.
                self._set_due(worker, self._limits.get(call))
                return ()
        if call == "call":
            return None
        if reply is LOST:
            return self._replaced(worker, call, f"{worker.name()} has died in {call}")
        if isinstance(reply, Failure):
            handled = self._replaced(worker, call, f"{reply.summary()}, for {worker.name()}")
            if self._refusal is not None:
                add_note(reply.error, self._refusal)
            return handled
        if not isinstance(reply, Outcome) or self._crew.owes(worker):
            return None
        if not reply.failures and verb is not Verb.RESTART:
            return None
        if worker.is_caller and any(isinstance(failure.error, KeyboardInterrupt) for failure in reply.failures):
            return None
        if reply.infos:
            self._groups.setdefault(worker, []).append(reply.infos)
        return self._rebuilt(worker, call, reply.failures)

    def _rebuilt(self, worker: Worker, call: str, failures: Sequence[Failure]) -> Sequence[Failure]:
        """Has ``worker`` build sub-envs that raised anew; returns the failures for which this is refused."""
        refused = []
        orders = []
        for failure in failures:
            index = failure.env_index
            refusal = self._bound.refuses(index)
            if refusal is not None:
                add_note(failure.error, refusal)
                refused.append(failure)
                continue
            self._bound.add([index])
            reason = failure.summary()
            orders.append(self._order(index, self._goal(worker, index, call), reason, is_new=False))
            logger.warning("sub-env %d is built anew after %s: %s\n%s", index, reason, self._counted([index]), failure.trace)
        if orders:
            self._ask(worker, orders, call)
        return refused

    def _replaced(self, worker: Worker, call: str, reason: str) -> Sequence[Failure] | None:
        """Starts ``worker`` anew, unless that is refused."""
        self._refusal = self._refused(worker)
        if self._refusal is not None:
            return None
        self._replace(worker, call, reason)
        return ()

    def _refused(self, worker: Worker) -> str | None:
        return next((refusal for index in worker.envs if (refusal := self._bound.refuses(index)) is not None), None)

    def _replace(self, worker: Worker, call: str, reason: str) -> None:
        self._bound.add(worker.envs)
        self._groups.pop(worker, None)
        logger.warning("sub-envs %s are built anew: %s: %s", list(worker.envs), reason, self._counted(worker.envs))
        orders = [self._order(index, self._goal(worker, index, call), reason, is_new=True) for index in worker.envs]
        try:
            self._crew.restart(worker, self._batch, self._block)
            self._ask(worker, orders, call)
        except BaseException:
            # Ctrl-C has come in between.
            self._crew.dismiss(worker)
            self._crew.is_torn = True
            raise

    def _ask(self, worker: Worker, orders: Sequence[RestartOrder], call: str) -> None:
        reset = self._resets.get(worker) if call == "reset" else None
        options = reset.options if reset is not None else None
        self._crew.ask([(worker, Verb.RESTART, RestartPayload(orders, options))])
        self._set_due(worker, self._limits["restart"])

    def _goal(self, worker: Worker, index: int, call: str) -> Goal:
        """How a sub-env goes on that has failed in ``call``."""
        reset = self._resets.get(worker) if call == "reset" else None
        if reset is not None and (reset.mask is None or reset.mask[index - worker.envs.start]):
            return Goal.BEGIN
        has_ended = self._kept.terminations[index] or self._kept.truncations[index]
        has_ended = has_ended and self._mode is not AutoresetMode.SAME_STEP
        if call == "step":
            return Goal.BEGIN if has_ended else Goal.END
        return Goal.WAIT if has_ended else Goal.END_LATER

    def _order(self, index: int, goal: Goal, reason: str, is_new: bool) -> RestartOrder:
        self._since_seed[index] += 1
        seed = restart_seed(self._seeds[index], self._since_seed[index])
        observation = self._kept.observations.read(index) if self._has_begun[index] and goal is not Goal.BEGIN else None
        return RestartOrder(index, goal, seed, observation, reason, is_new)

    def _counted(self, indices: Sequence[int]) -> str:
        """How often these were restarted, for a message."""
        counts = [self._bound.counts[index] for index in indices]
        own = "of this sub-env" if len(counts) == 1 else "of each of these sub-envs"
        told = counts[0] if len(set(counts)) == 1 else counts
        return f"restart {told} {own}, {sum(self._bound.counts)} in all"

    # workers that were found dead, or are late

    def replace_lost(self, is_bounded: bool, among: Iterable[Worker] | None = None) -> bool:
        """Starts workers anew that have died before this call; their sub-envs do what the call asks behind that.

        Args:
            is_bounded: whether it may be refused.
            among: which workers the call is for; None: all.

        Returns:
            False where it was refused.
        """
        if not self._crew.has_lost:
            return True
        for worker in [worker for worker in (self._crew.workers if among is None else among) if worker.lost]:
            if is_bounded:
                self._refusal = self._refused(worker)
                if self._refusal is not None:
                    return False
            self._replace(worker, "", f"{worker.name()} has died")
        return True

    def next_deadline(self, deadline: float | None) -> float | None:
        """Until when to wait for the next reply, where ``deadline`` is the call's own."""
        if not self._due:
            return deadline
        owing = [worker for worker in self._crew.workers if self._crew.owes(worker)]
        dues = [self._due.get(worker, float("inf") if deadline is None else deadline) for worker in owing]
        first = min(dues, default=float("inf"))
        return None if first == float("inf") else first

    def next_due(self, at_work: Iterable[Worker]) -> float | None:
        """When the time of the first of these workers is over."""
        first = min((self._due[worker] for worker in at_work if worker in self._due), default=float("inf"))
        return None if first == float("inf") else first

    def replace_late(self, call: str, deadline: float | None) -> bool:
        """Time is out for some worker: kills those for which it is, and starts them anew; False where that is refused."""
        if call == "call":
            return False
        return self._replace_late(dict.fromkeys(self._crew.workers, call), deadline)

    def replace_late_at_work(self, at_work: Mapping[Worker, Verb]) -> bool:
        """The same for workers that are at work for ``recv``, each of which has its own time."""
        return self._replace_late({worker: _call_of(verb) for worker, verb in at_work.items()}, None)

    def _replace_late(self, calls: Mapping[Worker, str], deadline: float | None) -> bool:
        now = time.monotonic()
        late = [worker for worker, call in calls.items() if self._is_late(worker, call, deadline, now)]
        is_refused = False
        for worker in late:
            call = calls[worker]
            seconds = self._limit(worker, call)
            refusal = self._refused(worker)
            if refusal is not None:
                # It stays at work, and is looked at again when that time has passed once more.
                self._refusal, is_refused = refusal, True
                self._set_due(worker, seconds)
                continue
            bound = "start_timeout and reset_timeout together" if _is_restarting(worker) else f"{call}_timeout"
            self._replace(worker, call, f"{worker.name()} took longer than {bound}, {seconds:g} s, in {call}")
        return not is_refused

    def _is_late(self, worker: Worker, call: str, deadline: float | None, now: float) -> bool:
        """Whether the time of a worker is over; notes until when it has time where it had to wait for its turn."""
        if worker.is_caller or not self._crew.owes(worker):
            return False
        due = self._due.get(worker, deadline)
        if due is None or due > now:
            return False
        limit = self._limit(worker, call)
        if not worker.owed:
            # It waits for its turn.
            self._set_due(worker, limit)
            return False
        turn = self._crew.turn_of(worker)
        if turn is not None and limit is not None and turn + limit > now:
            self._due[worker] = turn + limit
            return False
        return True

    def _limit(self, worker: Worker, call: str) -> float | None:
        return self._limits["restart" if _is_restarting(worker) else call]

    def _set_due(self, worker: Worker, seconds: float | None) -> None:
        self._due[worker] = float("inf") if seconds is None else time.monotonic() + seconds

    def explain(self, error: BaseException) -> None:
        """Notes on ``error`` why what it tells of was not restarted, if it was that."""
        if self._refusal is not None:
            add_note(error, self._refusal)


def _is_restarting(worker: Worker) -> bool:
    return Verb.START in worker.owed or Verb.RESTART in worker.owed


def _call_of(verb: Verb) -> str:
    return verb.name.lower()
