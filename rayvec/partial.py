"""Partial batches: ``async_reset``, ``send`` and ``recv``, first come, first served.

A sub-env is in one of three hands, and so is its row of the batch::

                     async_reset / send
       the caller's ─────────────────────▶ at work ─────▶ arrived ──┐   in the order of arrival
            ▲                                 │                     │
            │        recv raises its error    ▼                     │ recv: batch_size of them, the first to arrive
            └─────────────────────────────────┴─────────────────────┘

``recv`` gives a batch when the first ``batch_size`` have arrived, whoever else is at work. Whoever answered before is handed
out before, so nobody starves. Within a batch the sub-envs stand in ascending order: where they are a run, rows are handed
out as slices and nothing is copied beyond what ``copy`` asks.

A worker steps its sub-envs one after the other and answers once, so several in a worker arrive together, and are sent
together.

Under ``on_failure="restart"`` a worker that fails stays at work until what was built anew has answered; it has its own time,
from when it was sent, whatever ``recv`` hands out meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import AlreadyPendingCallError, ResetNeeded
from gymnasium.vector import AutoresetMode

from rayvec import infos as info_columns
from rayvec.columns import run_of
from rayvec.contract import ContractVectorEnv, StepResult
from rayvec.crew import LOST
from rayvec.errors import CallTimeoutError
from rayvec.failures import Failure, add_note, raise_failures
from rayvec.protocol import ResetPayload, StepPayload, Verb
from rayvec.sub_envs import Outcome
from rayvec.worker import Reply, Worker

__all__ = ["PartialVectorEnv", "check_batch_size"]

Indices = npt.NDArray[np.int64]


def check_batch_size(batch_size: Any, num_envs: int) -> int | None:
    """``batch_size`` as an int, or None. Raises TypeError or ValueError where it is no number of sub-envs."""
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"batch_size: expected None or a number of sub-envs, got {batch_size!r}")
    if not 1 <= batch_size <= num_envs:
        raise ValueError(f"batch_size: expected 1 to {num_envs}, the number of sub-envs, got {batch_size}")
    return int(batch_size)


def _check_groups(batch_size: int, workers: Sequence[Worker]) -> None:
    """Raises ValueError unless whole workers, whichever come first, make up batches of that size."""
    num_envs = workers[-1].envs.stop
    sizes = sorted({len(worker.envs) for worker in workers})
    if batch_size == num_envs or (len(sizes) == 1 and batch_size % sizes[0] == 0):
        return
    if len(sizes) > 1:
        told = " or ".join(map(str, sizes))
        raise ValueError(
            f"batch_size={batch_size}: the {len(workers)} workers have {told} sub-envs each and answer for all of theirs "
            f"at once, so that batches of one size cannot be had. Use batch_size={num_envs}, or a number of workers that "
            f"divides {num_envs}: one for each sub-env takes any batch_size."
        )
    size = sizes[0]
    best = min(num_envs, max(size, round(batch_size / size) * size))
    raise ValueError(
        f"batch_size={batch_size}: each worker has {size} sub-envs and answers for all of them at once, so a batch is a "
        f"multiple of {size}: use batch_size={best}, or a worker for each sub-env, which takes any batch_size."
    )


class PartialVectorEnv(ContractVectorEnv):
    """Adds partial batches to what all engines share.

    Args:
        workers: as for the base.
        batch_size: how many sub-envs :meth:`recv` hands out; None: all.
        **options: as for the base.

    Attributes:
        batch_size: how many sub-envs :meth:`recv` hands out.
    """

    def __init__(self, workers: Sequence[Worker], *, batch_size: int | None = None, **options: Any) -> None:
        num_envs = workers[-1].envs.stop
        self.batch_size = num_envs if batch_size is None else batch_size
        _check_groups(self.batch_size, workers)
        self._worker_of = [worker for worker in workers for _ in worker.envs]
        self._at_work: dict[Worker, Verb] = {}
        self._arrived: dict[Worker, tuple[Verb, Outcome]] = {}
        self._refused: dict[Worker, list[Failure]] = {}
        """What has to be raised when a worker that restarts others of its sub-envs has done so."""
        self._replay: deque[Indices] = deque()
        self._may_give_up = False
        super().__init__(workers, **options)

    # async_reset, send

    def async_reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        *,
        replay: Iterable[Any] | None = None,
    ) -> None:
        """Starts resetting all sub-envs, or those that ``options["reset_mask"]`` names; :meth:`recv` hands them out.

        With a mask it may be called while others are at work. A sub-env that shares its worker with one that is reset, and is
        not reset itself, is handed out along with it: its observation again, reward 0, no flags, no info.

        Args:
            seed: as for :meth:`reset`.
            options: as for :meth:`reset`.
            replay: arrays of sub-env indices, the ``infos["env_id"]`` that each :meth:`recv` gave in a run before: from now
                on each :meth:`recv` waits for those; after the last one, for whichever come first. None: a replay that has
                begun goes on after a reset by mask, and ends with a full one.

        Raises:
            ValueError, TypeError: seeds, mask or replay are wrong; nothing was reset.
            AlreadyPendingCallError, ClosedEnvironmentError: not now, or some of them are at work; nothing was reset.
        """
        self._call.check_may_send("async_reset")
        seeds = self._checked_seeds(seed)
        mask, options = self._checked_mask(options)
        batches = None if replay is None else [self._checked_indices(ids, f"replay[{n}]") for n, ids in enumerate(replay)]
        payloads = self._payloads_of_reset(seeds, options, mask)
        if mask is None and self._may_give_up:
            self._give_up()
        self._check_in_hand("async_reset", payloads)
        if batches is not None or mask is None:
            self._replay = deque(batches or ())
        self._note_torn()
        self._reset_payloads = {worker: self._reset_payloads[worker] for worker in self._at_work_with(Verb.RESET)}
        self._reset_payloads.update(payloads)
        self._revived.difference_update(payloads)
        self._replace_lost(payloads, is_bounded=False)
        self._begin_work(Verb.RESET, payloads)
        if self._recovery is not None:
            self._recovery.begin_reset(payloads)

    def send(self, actions: Any, env_ids: Any) -> None:
        """Starts a step of some sub-envs; :meth:`recv` hands them out again.

        Args:
            actions: one for each of them, batched as :attr:`action_space` has them.
            env_ids: the index of the sub-env that each action is for: ``infos["env_id"]``, or any of them in any order that
                makes up whole workers. Each must be in the caller's hand: received, or reset or stepped by ``reset`` or
                ``step``.

        Raises:
            ValueError, TypeError: the indices are wrong, or there is not one action for each; nothing was sent.
            ResetNeeded: some of them have failed, or have ended under ``AutoresetMode.DISABLED``; nothing was sent.
            AlreadyPendingCallError, ClosedEnvironmentError: not now, or some of them are at work; nothing was sent.
            WorkerLostError: the worker of some of them has died; nothing was sent.
        """
        self._call.check_may_send("send")
        indices = self._checked_indices(env_ids, "env_ids")
        workers = dict.fromkeys(self._worker_of[index] for index in indices)
        self._check_in_hand("send", workers)
        self._check_may_step(indices)
        rest = self._batch.place_some_actions(actions, indices)
        action_of = None if rest is None else dict(zip(indices.tolist(), rest, strict=True))
        payloads = {
            worker: StepPayload(None if action_of is None else [action_of[index] for index in worker.envs])
            for worker in workers
        }
        if not self._replace_lost(payloads, is_bounded=True):
            self._note_lost()
            raise self._lost_error(next(worker for worker in workers if worker.lost), "send")
        self._begin_work(Verb.STEP, payloads)

    def _replace_lost(self, workers: Iterable[Worker], is_bounded: bool) -> bool:
        """Starts those anew that have died in the caller's hand, if that is what to do; returns whether none is lost now."""
        if self._recovery is None:
            return not any(worker.lost for worker in workers)
        if self._call.name is None:
            self._recovery.begin_call()
        return self._recovery.replace_lost(is_bounded, workers)

    def _begin_work(self, verb: Verb, payloads: Mapping[Worker, Any]) -> None:
        """Asks the workers; whatever happens, those that were asked are at work and no others."""
        self._crew.note_arrivals()
        with self._crew.hearing_later():
            if self._recovery is not None:
                self._recovery.begin_work(payloads, verb)
            is_sent = False
            try:
                if verb is Verb.RESET:
                    self._ask_reset(payloads)
                else:
                    self._crew.ask((worker, verb, payload) for worker, payload in payloads.items())
                is_sent = True
            finally:
                # Ctrl-C may have come when some had been asked; other errors come before anybody is.
                if is_sent or self._crew.is_torn:
                    self._at_work.update((worker, verb) for worker in payloads if self._crew.owes(worker))
                self._note_pending()

    def _checked_indices(self, env_ids: Any, where: str) -> Indices:
        due = f"{where}: expected the indices of sub-envs, whole workers' and each once, got"
        array = np.asarray(env_ids)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{due} {env_ids!r} of dtype {array.dtype}")
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{due} shape {array.shape}")
        indices: Indices = array.astype(np.int64)
        if int(array.min()) < 0 or int(array.max()) >= self.num_envs:
            raise ValueError(f"{due} {_listed(indices)}, of which there are {self.num_envs}")
        chosen = set(indices.tolist())
        if len(chosen) != len(indices):
            raise ValueError(f"{due} {_listed(indices)}")
        for worker in dict.fromkeys(self._worker_of[index] for index in chosen):
            missing = [index for index in worker.envs if index not in chosen]
            if missing:
                raise ValueError(f"{due} {_listed(indices)}: sub-envs {list(worker.envs)} share a worker, and {missing} lack")
        return indices

    def _check_in_hand(self, asked: str, workers: Iterable[Worker]) -> None:
        busy = [index for worker in workers if worker in self._at_work or worker in self._arrived for index in worker.envs]
        if busy:
            raise AlreadyPendingCallError(
                f"Calling `{asked}` for sub-envs {busy}, which were sent and have not been received since: call `recv` until "
                "it hands them out.",
                "recv",
            )

    def _check_may_step(self, indices: Indices) -> None:
        self._note_torn()
        failed = indices[self._needs_reset[indices]]
        if failed.size:
            raise ResetNeeded(
                f"sub-envs {_listed(failed)} have failed: call async_reset() with a reset_mask that names them, or reset(), "
                "before the next step."
            )
        if self.autoreset_mode is AutoresetMode.DISABLED:
            ended = indices[self._batch.terminations[indices] | self._batch.truncations[indices]]
            if ended.size:
                raise ResetNeeded(
                    f"sub-envs {_listed(ended)} have ended their episodes and autoreset is disabled: call async_reset() with "
                    "a reset_mask that names them before the next step."
                )

    # recv

    def recv(self, timeout: float | None = None) -> StepResult:
        """Waits for the ``batch_size`` sub-envs that are ready first; all that are at work, where those are fewer.

        Args:
            timeout: seconds; None: ``step_timeout``, or ``reset_timeout`` while a reset is at work. Under
                ``on_failure="restart"`` these two are the time of each worker, from when it was sent, whatever is given here,
                and None waits for as long as they let it.

        Returns:
            Observations, batched; rewards, float64; terminations and truncations, bool; infos: row ``i`` of each is of
            sub-env ``infos["env_id"][i]`` (int64, ascending). After a reset the rewards are 0 and no flag is set.

        Raises:
            NoAsyncCallError, ClosedEnvironmentError: no sub-env is at work.
            ValueError: the replay asks for a sub-env that is not at work.
            CallTimeoutError: out of time, or a worker was and may not be restarted; nothing is lost, call it again.
            WorkerLostError: a worker has died. The others can still be received; :meth:`async_reset` with a mask starts it
                again, and so does :meth:`reset`, which gives up what is at work.
            Exception: what a sub-env raised; the same holds.
        """
        self._call.check_may_receive()
        default = self._timeouts.reset if self._at_work_with(Verb.RESET) else self._timeouts.step
        deadline = self._deadline(timeout, default)
        recovery = self._recovery
        if recovery is not None:
            recovery.begin_recv()
            deadline = None if timeout is None else deadline
        while True:
            due = recovery.next_due(self._at_work) if recovery is not None else None
            # Where somebody's time is over, his reply is looked for first, whoever else is ready.
            if (due is None or due > time.monotonic()) and (workers := self._first()):
                return self._handed_out(workers)
            try:
                answer = self._crew.next_reply(_earlier(deadline, due), by_arrival=True)
            except CallTimeoutError:
                if recovery is None or not recovery.replace_late_at_work(self._at_work) or _is_over(deadline):
                    raise self._timeout_error("recv") from None
                continue
            if answer is None:
                self._note_interrupted()
                continue
            with self._crew.hearing_later():
                try:
                    self._arrive(*answer)
                except BaseException:
                    self._may_give_up = True
                    raise
                finally:
                    self._note_pending()

    def _first(self) -> list[Worker]:
        """The workers of the next batch, by their sub-envs; none if they have not all arrived."""
        if self._replay:
            wanted = list(dict.fromkeys(self._worker_of[index] for index in self._replay[0]))
            absent = [index for worker in wanted if not self._is_out(worker) for index in worker.envs]
            if absent:
                raise ValueError(f"replay: the next batch is {_listed(self._replay[0])}, of which {absent} are not at work")
            if any(worker not in self._arrived for worker in wanted):
                return []
            self._replay.popleft()
        else:
            wanted = self._first_to_arrive()
        return sorted(wanted, key=lambda worker: worker.envs.start)

    def _first_to_arrive(self) -> list[Worker]:
        size = self.batch_size
        first: list[Worker] = []
        for worker in self._arrived:
            first.append(worker)
            size -= len(worker.envs)
            if size <= 0:
                return first
        # The rest, if nobody else is at work.
        return [] if self._at_work else first

    def _arrive(self, worker: Worker, answered: Verb | None, reply: Reply) -> None:
        """Takes a reply. Raises what it tells of; its worker is in the caller's hand then."""
        verb = self._at_work.get(worker)
        self._note_layout(worker, reply)
        if self._recovery is not None and verb is not None:
            refused = self._recovery.handle(worker, answered, reply, verb.name.lower())
            if refused is not None:
                self._refused.setdefault(worker, []).extend(refused)
                if self._crew.owes(worker):
                    return
                reply = Outcome(failures=self._refused.pop(worker))
        if reply is LOST:
            if self._recovery is None and verb is Verb.RESET and worker not in self._revived:
                self._lose(worker, "reset")
                return
            if self._recovery is None or verb is not None:
                # Otherwise what is asked of it next starts it again.
                self._mark_failed(worker.envs)
            if verb is not None:
                del self._at_work[worker]
                error = self._lost_error(worker, verb.name.lower())
                for failure in self._refused.pop(worker, ()):
                    add_note(error, f"sub-env {failure.env_index} raised in {failure.call}: {failure.error!r}")
                raise error
        elif isinstance(reply, Failure):
            # Started anew for this reset, and its constructor failed.
            self._crew.dismiss(worker)
            self._at_work.pop(worker, None)
            self._raise_failed(worker, [reply])
        elif verb is None or self._crew.owes(worker):
            # The start of a worker, or the answer to a call that has ended without it.
            if isinstance(reply, Outcome):
                self._note_failures(reply.failures, raised=False)
        else:
            del self._at_work[worker]
            if verb is Verb.RESET:
                self._note_reset(worker, self._reset_payloads[worker])
            if reply.failures:
                self._raise_failed(worker, reply.failures)
            self._arrived[worker] = (verb, reply)

    def _note_reset(self, worker: Worker, payload: ResetPayload) -> None:
        own = slice(worker.envs.start, worker.envs.stop)
        self._needs_reset[own] &= np.zeros(len(worker.envs), np.bool_) if payload.mask is None else ~np.array(payload.mask)
        self._has_failed = bool(self._needs_reset.any())

    def _raise_failed(self, worker: Worker, failures: Sequence[Failure]) -> None:
        self._note_failures(failures, raised=True)
        last = failures[-1]
        if worker.is_caller and isinstance(last.error, KeyboardInterrupt):
            self._mark_failed(range(last.env_index, worker.envs.stop))
        raise_failures(failures)

    def _handed_out(self, workers: Sequence[Worker]) -> StepResult:
        indices = np.concatenate([np.arange(worker.envs.start, worker.envs.stop) for worker in workers])
        count, rows, batch = len(indices), run_of(indices), self._batch
        rewards = batch.rewards[rows].copy()
        terminations, truncations = batch.terminations[rows].copy(), batch.truncations[rows].copy()
        observations = batch.observations.read_some(rows, self.copy)
        groups = []
        first = 0
        for worker in workers:
            verb, outcome = self._arrived.pop(worker)
            if outcome.infos:
                groups.append((first, outcome.infos))
            if outcome.is_settled:
                groups.append((first, self._info_rows[worker].columns()))
            if self._recovery is not None:
                groups += [(first, columns) for columns in self._recovery.take_infos_of(worker)]
            if verb is Verb.RESET and (mask := self._reset_payloads[worker].mask) is not None:
                idle = first + np.flatnonzero(~np.array(mask))
                rewards[idle], terminations[idle], truncations[idle] = 0.0, False, False
            first += len(worker.envs)
        infos = info_columns.merge(groups, count) if groups else {}
        infos["env_id"], infos["_env_id"] = indices, np.ones(count, np.bool_)
        if self._recovery is not None:
            self._recovery.keep(rows)
        self._may_give_up = False
        self._note_pending()
        return observations, rewards, terminations, truncations, infos

    # the ends of it

    def reset_async(self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """As for every engine. After an error of :meth:`recv` a full reset gives up what is at work."""
        if self._may_give_up and self._call.name == "recv":
            self._call.check_open()
            self._checked_seeds(seed)
            if self._checked_mask(options)[0] is None:
                self._give_up()
        super().reset_async(seed, options)
        self._replay.clear()

    def _give_up(self) -> None:
        """Nobody waits for what is at work any more: its replies are dropped as they come."""
        self._at_work.clear()
        self._arrived.clear()
        self._refused.clear()
        self._may_give_up = False
        self._note_pending()

    def _note_interrupted(self) -> None:
        """Ctrl-C has kept what is at work from being asked: it has to be reset."""
        for worker in self._at_work:
            self._mark_failed(worker.envs)
        self._at_work.clear()
        self._note_torn()
        self._note_pending()
        if not self._arrived:
            raise ResetNeeded("Ctrl-C has kept sub-envs from being stepped: call reset().")

    def _note_pending(self) -> None:
        if self._at_work or self._arrived:
            self._call.begin("recv")
        else:
            self._call.end()

    def _is_out(self, worker: Worker) -> bool:
        return worker in self._at_work or worker in self._arrived

    def _at_work_with(self, verb: Verb) -> list[Worker]:
        return [worker for worker, asked in self._at_work.items() if asked is verb]

    def _free(self, timeout: float, forced: bool = False) -> Sequence[Failure]:
        self._at_work.clear()
        self._arrived.clear()
        return super()._free(timeout, forced)


def _earlier(first: float | None, second: float | None) -> float | None:
    return second if first is None or (second is not None and second < first) else first


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _listed(indices: Indices) -> list[int]:
    return [int(index) for index in indices]
