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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from rayvec import infos as info_columns
from rayvec.batch import Batch
from rayvec.crew import LOST, Crew
from rayvec.failures import Failure, add_note
from rayvec.local.memory import SharedBlock
from rayvec.protocol import RestartPayload, Verb
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
        self._reset_rows: npt.NDArray[np.bool_] = self._has_begun
        self._reset_options: dict[str, Any] | None = None
        self._groups: dict[Worker, list[info_columns.Columns]] = {}
        self._due: dict[Worker, float] = {}
        """Until when workers that are being restarted have to answer; the others have the call's own deadline."""
        self._refusal: str | None = None

    # what a call begins and ends with

    def begin_call(self) -> None:
        """A call begins: what an earlier one that ended in an error has left is forgotten."""
        self._groups.clear()
        self._refusal = None
        if not self._crew.num_owed:
            self._due.clear()

    def begin_reset(self, seeds: Sequence[int | None], rows: npt.NDArray[np.bool_], options: dict[str, Any] | None) -> None:
        """A reset of these rows has been asked for, with one entry in ``seeds`` for each sub-env."""
        self._reset_rows, self._reset_options = rows, options
        self._has_begun = self._has_begun | rows
        for index in np.flatnonzero(rows).tolist():
            if seeds[index] is not None:
                self._seeds[index], self._since_seed[index] = seeds[index], 0

    def keep(self) -> None:
        """Keeps what is handed out now: a worker that dies may leave half a row behind."""
        self._kept.take_over(self._batch)

    def seeds_of(self, indices: Sequence[int]) -> tuple[tuple[int | None, int], ...]:
        """The last seed of each of these sub-envs, and how often it was restarted since."""
        return tuple((self._seeds[index], self._since_seed[index]) for index in indices)

    def go_on_from(self, indices: Sequence[int], seeds: Sequence[tuple[int | None, int]] | None) -> None:
        """These sub-envs are where a snapshot has them, with what :meth:`seeds_of` gave then; None: nobody knows."""
        self._has_begun = self._has_begun.copy()
        for index, (seed, count) in zip(indices, seeds or [(None, 0)] * len(indices), strict=True):
            self._seeds[index], self._since_seed[index], self._has_begun[index] = seed, count, True
        self.keep()

    def take_infos(self) -> list[tuple[int, info_columns.Columns]]:
        """The infos of sub-envs that were restarted in this call, and of those that share a worker with one that raised."""
        groups = [(worker.envs.start, columns) for worker, parts in self._groups.items() for columns in parts]
        self._groups.clear()
        return groups

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
            call: what is pending: ``"step"``, ``"reset"``, ``"call"``.

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
            return self._replaced(worker, call, f"{reply.summary()}, for {worker.name()}")
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
            orders.append(self._order(index, self._goal(index, call), reason, is_new=False))
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
        orders = [self._order(index, self._goal(index, call), reason, is_new=True) for index in worker.envs]
        try:
            self._crew.start(worker)
            self._crew.attach(worker, self._batch, self._block)
            self._ask(worker, orders, call)
        except BaseException:
            # Ctrl-C has come in between.
            self._crew.dismiss(worker)
            self._crew.is_torn = True
            raise

    def _ask(self, worker: Worker, orders: Sequence[RestartOrder], call: str) -> None:
        options = self._reset_options if call == "reset" else None
        self._crew.ask([(worker, Verb.RESTART, RestartPayload(orders, options))])
        self._set_due(worker, self._limits["restart"])

    def _goal(self, index: int, call: str) -> Goal:
        """How a sub-env goes on that has failed in ``call``."""
        if call == "reset" and self._reset_rows[index]:
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

    def replace_lost(self, is_bounded: bool) -> bool:
        """Starts workers anew that have died before this call; their sub-envs do what the call asks behind that.

        Args:
            is_bounded: whether it may be refused.

        Returns:
            False where it was refused.
        """
        if not self._crew.has_lost:
            return True
        for worker in [worker for worker in self._crew.workers if worker.lost]:
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

    def replace_late(self, call: str, deadline: float | None) -> bool:
        """Time is out for some worker: kills those for which it is, and starts them anew; False where that is refused."""
        if call == "call":
            return False
        now, limit = time.monotonic(), self._limits[call]
        late: list[Worker] = []
        for worker in self._crew.workers:
            if worker.is_caller or not self._crew.owes(worker):
                continue
            turn = self._crew.turn_of(worker)
            if worker not in self._due and turn is not None and limit is not None:
                self._due[worker] = turn + limit
            due = self._due.get(worker, deadline)
            if due is None or due > now:
                continue
            if worker.owed:
                late.append(worker)
            else:
                # It waits for its turn.
                self._set_due(worker, limit)
        for worker in late:
            self._refusal = self._refused(worker)
            if self._refusal is not None:
                return False
        for worker in late:
            is_restarting = Verb.START in worker.owed or Verb.RESTART in worker.owed
            bound = "start_timeout and reset_timeout together" if is_restarting else f"{call}_timeout"
            seconds = self._limits["restart"] if is_restarting else limit
            self._replace(worker, call, f"{worker.name()} took longer than {bound}, {seconds:g} s, in {call}")
        return True

    def _set_due(self, worker: Worker, seconds: float | None) -> None:
        self._due[worker] = float("inf") if seconds is None else time.monotonic() + seconds

    def explain(self, error: BaseException) -> None:
        """Notes on ``error`` why what it tells of was not restarted, if it was that."""
        if self._refusal is not None:
            add_note(error, self._refusal)
