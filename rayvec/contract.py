"""The contract that every rayvec engine keeps: Gymnasium's vector API over a list of workers.

An engine chooses its workers and where its batch lies; all else is here: checking a call whole before anything is sent,
the pending call, collecting replies under a deadline, failures, deaths, restarts, handing out the batch.

::

    step(actions) ── check ── actions into the Batch ── ask the crew ─┐
                                                                      ▼
    obs, rewards, terminations, ◀── hand out the Batch ◀── collect replies until all are in, time is out,
    truncations, infos               merge infos            or a worker is lost
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.util
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv

from rayvec import infos as info_columns
from rayvec.batch import Batch
from rayvec.columns import snapshot
from rayvec.crew import LOST, Crew
from rayvec.errors import CallTimeoutError, WorkerLostError
from rayvec.failures import Failure, add_note, log_failures, raise_failures
from rayvec.local.memory import SharedBlock
from rayvec.protocol import (
    CallPayload,
    GetStatePayload,
    PendingCall,
    ResetPayload,
    SetAttrPayload,
    SetStatePayload,
    StepPayload,
    Verb,
)
from rayvec.recovery import Recovery
from rayvec.recycling import Outputs
from rayvec.restarts import FailurePolicy
from rayvec.settled import InfoRows, Layout
from rayvec.spaces import ObservationMode, check_observation_mode, join_spaces
from rayvec.states import VERSION, VectorEnvState, check_env_ids, check_state, layout_of
from rayvec.stats import Stats, read_stats
from rayvec.sub_envs import NOTHING, SETTLED, CallOutcome, Description, EnvFn, Outcome
from rayvec.worker import InlineWorker, Reply, Worker

if TYPE_CHECKING:
    from typing_extensions import Self

    from rayvec.tuning import TuningReport

__all__ = ["ContractVectorEnv", "Timeouts", "check_autoreset_mode", "check_env_fns"]

logger = logging.getLogger("rayvec")

_CLOSE_TIMEOUT = 25.0
"""Seconds that sub-envs have to close when ``close()`` is given no timeout."""
_ABANDON_TIMEOUT = 1.0
"""The same when the vector env was dropped, or the script ends, without ``close()``."""
_MORE_FAILURES = 1.0
"""Seconds to wait for other constructors once one has failed, so that the lowest index is raised."""
_RESERVED = ("reset", "step", "close", "_setattr", "_check_spaces")

_NOTHING = CallOutcome([])

StepResult = tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]


class Timeouts(NamedTuple):
    """Bounds on the waits of a vector env in seconds; None: no bound.

    Attributes:
        start: the constructor's.
        reset: ``reset`` and ``reset_wait`` when they are given none.
        step: ``step`` and ``step_wait`` when they are given none.
        call: ``call``, ``call_wait``, ``get_attr``, ``set_attr`` and ``render`` when they are given none.
    """

    start: float | None = None
    reset: float | None = None
    step: float | None = None
    call: float | None = None


def check_env_fns(env_fns: Any) -> list[EnvFn]:
    """The env_fns as a list. Raises TypeError or ValueError unless they are callables, one at least."""
    if callable(env_fns):
        raise TypeError(f"env_fns: expected a sequence of functions that each make an env, got one callable, {env_fns!r}")
    functions = list(env_fns)
    if not functions:
        raise ValueError("env_fns: expected at least one function that makes an env, got none")
    for index, function in enumerate(functions):
        if not callable(function):
            raise TypeError(
                f"env_fns[{index}]: expected a function that makes an env, got {function!r}. "
                "Pass `lambda: env` or, better, a function that builds one."
            )
    return functions


def check_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode that ``mode`` is or names. Raises ValueError where it is none."""
    try:
        return AutoresetMode(mode)
    except ValueError:
        names = [known.value for known in AutoresetMode]
        raise ValueError(f"autoreset_mode: expected an AutoresetMode or one of {names}, got {mode!r}") from None


class ContractVectorEnv(VectorEnv[Any, Any, Any]):
    """What all engines share.

    Args:
        workers: what drives the sub-envs, in their order; started here.
        copy: whether observations are handed out as copies.
        observation_mode: how observation spaces are batched.
        autoreset_mode: what happens at the end of an episode.
        max_concurrency: how many workers may be stepping or resetting at a time.
        timeouts: bounds on the waits.
        failure_policy: what becomes of sub-envs that fail.
        make_block: makes the shared block of a given size; None: rows lie on the heap.
        check_spaces: raises where a space does not suit the engine.

    Attributes:
        tuning: why this engine was chosen, where ``"auto"`` has chosen it.
    """

    tuning: TuningReport | None = None

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        copy: bool,
        observation_mode: ObservationMode,
        autoreset_mode: AutoresetMode,
        max_concurrency: int | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - immutable
        failure_policy: FailurePolicy = FailurePolicy(),  # noqa: B008 - immutable
        make_block: Callable[[int], SharedBlock] | None = None,
        check_spaces: Callable[[Any], None] | None = None,
    ) -> None:
        check_observation_mode(observation_mode)
        self.copy = copy
        self.observation_mode = observation_mode
        self.autoreset_mode = autoreset_mode
        self._is_disabled = autoreset_mode is AutoresetMode.DISABLED
        own = type(self).step_async, type(self).step_wait
        self._is_overridden = own != (ContractVectorEnv.step_async, ContractVectorEnv.step_wait)
        self.num_envs = workers[-1].envs.stop
        self._timeouts = timeouts
        self._call = PendingCall(type(self).__name__)
        self._called: Sequence[int] | None = None
        self._everybody = frozenset(workers)
        self._asked: Collection[Worker] = self._everybody
        """In the pending call; what others say belongs to one that has ended without them."""
        self._needs_reset = np.zeros(self.num_envs, np.bool_)
        self._has_failed = False
        self._replies: dict[Worker, Reply] = {}
        self._failures: list[Failure] = []
        self._revived: set[Worker] = set()
        self._layouts: dict[Layout, Layout] = {}
        self._info_rows: dict[Worker, InfoRows] = {}
        self._all_info_rows: InfoRows | None = None
        self._reset_payloads: dict[Worker, ResetPayload] = {}
        self._reset_rows: npt.NDArray[np.bool_] = self._needs_reset
        self._block: SharedBlock | None = None
        self._blocks: list[SharedBlock] = []
        self._recovery: Recovery | None = None
        self._outputs: Outputs | None = None
        self._alone: InlineWorker | None = None
        """The caller, where it is the only worker and fills no copies."""
        self._crew = Crew(workers, max_concurrency)
        # Runs when this object is dropped or the script ends, whichever comes first; in this process only.
        self._finalizer = multiprocessing.util.Finalize(self, _abandon, (self._crew, self._blocks), exitpriority=100)
        try:
            self._open(make_block, check_spaces, failure_policy)
        except BaseException:
            self.closed = self._call.closed = True
            self._free(_ABANDON_TIMEOUT)
            raise

    def _open(
        self,
        make_block: Callable[[int], SharedBlock] | None,
        check_spaces: Callable[[Any], None] | None,
        policy: FailurePolicy,
    ) -> None:
        """Starts the workers, learns the spaces from them, lays out the memory and hands it to them."""
        deadline = self._deadline(None, self._timeouts.start)
        self._crew.start(*self._workers)
        descriptions = self._started(deadline)
        told = [description.spaces[which] for description in descriptions for which in description.which]
        # Nobody else's: neither an env's in this process, nor another vector env's that was told the same.
        own = {key: snapshot(pair) for key, pair in {id(pair): pair for pair in told}.items()}
        pairs = [own[id(pair)] for pair in told]
        (
            self.single_observation_space,
            self.observation_space,
            self.single_action_space,
            self.action_space,
        ) = join_spaces(pairs, self.observation_mode)
        self.metadata = {**snapshot(descriptions[0].metadata), "autoreset_mode": self.autoreset_mode}
        self.render_mode = descriptions[0].render_mode
        if check_spaces is not None:
            check_spaces(self.single_observation_space)
        spaces = (self.single_observation_space, self.single_action_space)
        if make_block is not None:
            self._block = make_block(Batch.size(*spaces, self.num_envs))
            self._blocks.append(self._block)
        self._batch = Batch(*spaces, self.num_envs, self._block.buffer if self._block is not None else None)
        self._outputs = self._batch.outputs_for(len(self._workers)) if self.copy else None
        # Replies of the same bytes are one object: nothing that compares as equal and lies otherwise in memory is among them.
        first = descriptions[0]
        self._batch.is_as_told = (
            self.observation_mode == "same" and len(first.spaces) == 1 and all(other is first for other in descriptions)
        )
        for worker in self._workers:
            self._crew.attach(worker, self._batch, self._block)
        worker = self._workers[0]
        if len(self._workers) == 1 and isinstance(worker, InlineWorker) and self._outputs is None:
            self._alone = worker
        if policy.restarts:
            start, reset, step, _ = self._timeouts
            limits = {"step": step, "reset": reset, "restart": None if start is None or reset is None else start + reset}
            self._recovery = Recovery(policy, self._crew, self._batch, self._block, self.autoreset_mode, limits)

    def _started(self, deadline: float | None) -> list[Description]:
        """What the workers say of their sub-envs. Raises what a constructor raised, of the lowest sub-env if several did."""
        descriptions: dict[Worker, Description] = {}
        failures: list[Failure] = []
        while True:
            try:
                answer = self._crew.next_reply(deadline)
            except CallTimeoutError:
                if failures:
                    break
                waiting = [worker.describe() for worker in self._workers if worker.owed]
                raise CallTimeoutError(
                    f"{len(waiting)} of {len(self._workers)} workers have not built their sub-envs within start_timeout="
                    f"{self._timeouts.start} s: {', '.join(waiting[:8])}"
                ) from None
            if answer is None:
                break
            worker, _, reply = answer
            if reply is LOST:
                if not failures:
                    raise self._lost_error(worker, "building its sub-envs")
            elif isinstance(reply, Failure):
                failures.append(reply)
                self._crew.dismiss(worker)
                deadline = min(time.monotonic() + _MORE_FAILURES, deadline or float("inf"))
            else:
                descriptions[worker] = reply
        raise_failures(failures)
        return [descriptions[worker] for worker in self._workers]

    @property
    def num_restarts(self) -> npt.NDArray[np.int64]:
        """How often each sub-env was restarted under ``on_failure="restart"``: int64 ``(num_envs,)``."""
        counts = self._recovery.num_restarts if self._recovery is not None else [0] * self.num_envs
        return np.array(counts, np.int64)

    @property
    def _workers(self) -> Sequence[Worker]:
        return self._crew.workers

    # reset

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets all sub-envs, or those that ``options["reset_mask"]`` names.

        Args:
            seed: None; or an int for sub-env 0, one more for each next one; or one int or None for each.
            options: for each ``env.reset``, without ``"reset_mask"``: a bool array ``(num_envs,)``, True where to reset.

        Returns:
            Observations of all sub-envs, batched, and the infos of those that were reset.

        Raises:
            ValueError, TypeError: seeds or mask are wrong; nothing was reset.
            AlreadyPendingCallError, ClosedEnvironmentError: not now; nothing was reset.
            CallTimeoutError: out of ``reset_timeout``; ``reset_wait`` goes on waiting.
            WorkerLostError: a worker died twice while resetting.
            Exception: what a sub-env raised.
        """
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def reset_async(self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """Starts a :meth:`reset`; :meth:`reset_wait` gives its result."""
        self._call.check_idle("reset_async")
        seeds = self._checked_seeds(seed)
        mask, options = self._checked_mask(options)
        self._reset_rows = np.ones(self.num_envs, np.bool_) if mask is None else mask
        self._reset_payloads = self._payloads_of_reset(seeds, options, mask)
        self._revived.clear()
        self._note_torn()
        self._asked = self._reset_payloads
        with self._beginning("reset"):
            if self._recovery is not None:
                self._recovery.begin_call()
                self._recovery.replace_lost(is_bounded=False)
            self._ask_reset(self._reset_payloads)
            if self._recovery is not None:
                self._recovery.begin_reset(self._reset_payloads)

    def _payloads_of_reset(
        self, seeds: Sequence[int | None], options: dict[str, Any] | None, mask: npt.NDArray[np.bool_] | None
    ) -> dict[Worker, ResetPayload]:
        """What each worker that has a sub-env to reset is told."""
        payloads: dict[Worker, ResetPayload] = {}
        for worker in self._workers:
            own = slice(worker.envs.start, worker.envs.stop)
            if mask is None or mask[own].any():
                payloads[worker] = ResetPayload(seeds[own], options, None if mask is None else mask[own].tolist())
        return payloads

    def _ask_reset(self, payloads: Mapping[Worker, ResetPayload]) -> None:
        """Tells the workers; those that have died are started anew first."""
        self._crew.ask((worker, Verb.RESET, payload) for worker, payload in payloads.items() if not worker.lost)
        for worker in payloads:
            if worker.lost:
                self._revive(worker)

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Waits for a reset that was started.

        Args:
            timeout: seconds; None: ``reset_timeout``.

        Raises:
            NoAsyncCallError: none was started.
            CallTimeoutError: out of time; the reset is still pending.
            Exception: as :meth:`reset`.
        """
        self._call.check_pending("reset")
        self._collect("reset", self._deadline(timeout, self._timeouts.reset))
        self._call.end()
        self._needs_reset &= ~self._reset_rows
        self._has_failed = bool(self._needs_reset.any())
        if self._recovery is None:
            self._note_lost()
        infos = self._merged_infos()
        self._take_failures()
        if self._recovery is not None:
            self._recovery.keep()
        return self._batch.observations.read_all(self.copy), infos

    def _checked_seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            seeds: list[Any] = [int(seed) + index for index in range(self.num_envs)]
        else:
            try:
                seeds = list(seed)
            except TypeError:
                raise TypeError(f"seed: expected None, an int, or one for each sub-env, got {seed!r}") from None
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected one for each of {self.num_envs} sub-envs, got {len(seeds)}")
        for index, own in enumerate(seeds):
            if own is None:
                continue
            if not isinstance(own, int | np.integer):
                raise TypeError(f"seed: expected an int or None for sub-env {index}, got {own!r}")
            if own < 0:
                raise ValueError(f"seed: expected 0 or more for sub-env {index}, got {own}")
        return [None if own is None else int(own) for own in seeds]

    def _checked_mask(self, options: dict[str, Any] | None) -> tuple[npt.NDArray[np.bool_] | None, dict[str, Any] | None]:
        if options is None or "reset_mask" not in options:
            return None, options
        mask = options["reset_mask"]
        due = f"options['reset_mask']: expected a bool array of shape ({self.num_envs},) with a True in it, got"
        if not isinstance(mask, np.ndarray):
            raise TypeError(f"{due} {type(mask).__name__} {mask!r}")
        if mask.dtype != np.bool_:
            raise TypeError(f"{due} dtype {mask.dtype}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"{due} shape {mask.shape}")
        if not mask.any():
            raise ValueError(f"{due} {mask}")
        return mask.copy(), {key: value for key, value in options.items() if key != "reset_mask"}

    # step

    def step(self, actions: Any) -> StepResult:
        """Steps every sub-env once.

        Args:
            actions: one for each sub-env, batched as :attr:`action_space` has them.

        Returns:
            Observations, batched; rewards, float64 ``(num_envs,)``; terminations and truncations, bool ``(num_envs,)``;
            infos, with a row for each sub-env.

        Raises:
            ValueError: there is not one action for each sub-env; nothing was stepped.
            ResetNeeded: some sub-envs have failed, or have ended under ``AutoresetMode.DISABLED``; nothing was stepped.
            AlreadyPendingCallError, ClosedEnvironmentError: not now; nothing was stepped.
            CallTimeoutError: out of ``step_timeout``; ``step_wait`` goes on waiting.
            WorkerLostError: a worker has died; ``reset()`` starts it again.
            Exception: what a sub-env raised; the others have completed the step.
        """
        if not self._is_unusual():
            if self._alone is not None:
                return self._step_alone(self._alone, actions)
            if self._crew.may_run_step():
                return self._step_shortly(actions)
        self.step_async(actions)
        return self.step_wait()

    def _is_unusual(self) -> bool:
        """Whether a step has more to look at than its actions."""
        call, crew = self._call, self._crew
        return bool(
            call.closed
            or call.name is not None
            or self._has_failed
            or crew.is_torn
            or crew.has_lost
            or crew.num_owed
            or self._replies
            or self._failures
            or self._is_disabled
            or self._recovery is not None
            or self._is_overridden
        )

    def _step_alone(self, worker: InlineWorker, actions: Any) -> StepResult:
        """:meth:`step` where there is nobody to tell and nobody to wait for: what is not touched costs most of all."""
        crew = self._crew
        rest = self._batch.place_actions(actions)
        crew.is_torn = True
        outcome = worker.step(rest)
        crew.is_torn = False
        if outcome is not NOTHING:
            self._note_layout(worker, outcome)
            self._keep_reply(worker, outcome)
        return self._stepped()

    def _step_shortly(self, actions: Any) -> StepResult:
        """:meth:`step` where all are told and waited for the shortest way."""
        call, crew = self._call, self._crew
        rest = self._place(actions)
        if rest is not None:
            self._ask_step(rest)
            return self.step_wait()
        deadline = None if self._timeouts.step is None else self._deadline(None, self._timeouts.step)
        self._asked = self._everybody
        try:
            crew.is_torn = True
            call.begin("step")
            is_done = crew.run_step()
        except BaseException:
            # Else it has come while the caller waited, and the step is pending.
            if crew.is_torn:
                call.end()
            raise
        if not is_done:
            return self._finish_step(deadline)
        if crew.settled:
            # Kept in both until it is whole: Ctrl-C may come at any line.
            self._replies.update(dict.fromkeys(crew.settled, SETTLED))
            crew.settled.clear()
        call.end()
        return self._stepped()

    def step_async(self, actions: Any) -> None:
        """Starts a :meth:`step`; :meth:`step_wait` gives its result."""
        call, crew = self._call, self._crew
        if call.is_busy:
            call.check_idle("step_async")
        if self._replies or self._failures:
            self._drop_replies()
        if self._has_failed or crew.is_torn or crew.has_lost or self._is_disabled:
            self._check_steppable()
        self._ask_step(self._place(actions))

    def _place(self, actions: Any) -> list[Any] | None:
        """Puts the actions where workers find them; returns them where they have to be sent."""
        rest = self._batch.place_actions(actions)
        if self._outputs is not None:
            self._outputs.choose()
        return rest

    def _ask_step(self, rest: list[Any] | None) -> None:
        call, crew = self._call, self._crew
        crew.has_told = False
        self._asked = self._everybody
        try:
            call.begin("step")
            if rest is None:
                crew.ask_step()
            else:
                crew.ask(
                    (worker, Verb.STEP, StepPayload(rest[worker.envs.start : worker.envs.stop])) for worker in self._workers
                )
        except BaseException:
            # Ctrl-C may have come right behind.
            if not crew.has_told:
                call.end()
            raise

    def step_wait(self, timeout: float | None = None) -> StepResult:
        """Waits for a step that was started.

        Args:
            timeout: seconds; None: ``step_timeout``.

        Raises:
            NoAsyncCallError: none was started.
            CallTimeoutError: out of time; the step is still pending.
            ResetNeeded: Ctrl-C has kept some sub-envs from it; it is pending no more.
            Exception: as :meth:`step`.
        """
        self._call.check_pending("step")
        if self._crew.is_torn:
            # Ctrl-C came twice, the second time before the call was ended.
            self._call.end()
            self._check_steppable()
        return self._finish_step(self._deadline(timeout, self._timeouts.step))

    def _finish_step(self, deadline: float | None) -> StepResult:
        self._collect("step", deadline)
        self._call.end()
        return self._stepped()

    def _stepped(self) -> StepResult:
        """What a step gives, whose replies have been taken."""
        infos = {}
        if self._replies or self._failures or self._recovery is not None:
            infos = self._merged_infos()
            self._take_failures()
        if self._recovery is not None:
            self._recovery.keep()
        batch = self._batch
        return (
            batch.take_observations(self.copy),
            batch.rewards.copy(),
            batch.terminations.copy(),
            batch.truncations.copy(),
            infos,
        )

    def _check_steppable(self) -> None:
        self._note_torn()
        if self._has_failed:
            raise ResetNeeded(
                f"sub-envs {_listed(self._needs_reset)} have failed: call reset() before the next step (a reset_mask that "
                "names them is enough)."
            )
        if self._is_disabled:
            ended = self._batch.terminations | self._batch.truncations
            if ended.any():
                raise ResetNeeded(
                    f"sub-envs {_listed(ended)} have ended their episodes and autoreset is disabled: reset them with "
                    "options={'reset_mask': terminations | truncations} before the next step."
                )
        self._check_all_alive("step")

    # call, attributes, render

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls the method ``name`` of every sub-env with copies of the arguments, or reads the attribute of that name.

        Args:
            name: of a method or attribute of the env or any of its wrappers; not reset, step or close.
            *args: for the method.
            **kwargs: for the method.

        Returns:
            One result for each sub-env.

        Raises:
            ValueError: ``name`` is one that the vector env has itself.
            Exception: what a sub-env raised; the vector env is as usable as before.
        """
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Starts a :meth:`call`; :meth:`call_wait` gives its results."""
        self._call.check_idle("call_async")
        if name in _RESERVED:
            raise ValueError(f"call: expected a name that is the sub-envs' own, got {name!r}: use {name}() itself.")
        self._check_all_alive("call")
        payload = CallPayload(name, args, kwargs)
        with self._beginning("call"):
            self._ask_call((worker, Verb.CALL, payload) for worker in self._workers)

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Waits for a call that was started.

        Args:
            timeout: seconds; None: ``call_timeout``.

        Raises:
            NoAsyncCallError: none was started.
            CallTimeoutError: out of time; the call is still pending.
            Exception: as :meth:`call`.
        """
        self._call.check_pending("call")
        return self._finish_call(timeout)

    def _call_at(self, indices: Sequence[int], name: str | Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As :meth:`call`, of the sub-envs ``indices`` alone: one result for each of them, in their order.

        ``name`` may also be a function: it is called where the sub-env lives, with the sub-env before the arguments.
        """
        self._call.check_idle("call")
        self._check_all_alive("call")
        payload = CallPayload(name, args, kwargs, list(indices))
        asked = [worker for worker in self._workers if any(index in worker.envs for index in indices)]
        with self._beginning("call", payload.indices):
            self._ask_call((worker, Verb.CALL, payload) for worker in asked)
        return list(self._finish_call())

    def _ask_call(self, requests: Iterable[tuple[Worker, Verb, tuple[Any, ...]]]) -> None:
        asked = list(requests)
        self._asked = {worker for worker, _, _ in asked}
        self._crew.ask(asked)

    def _finish_call(self, timeout: float | None = None) -> tuple[Any, ...]:
        self._collect("call", self._deadline(timeout, self._timeouts.call))
        self._call.end()
        outcomes: list[CallOutcome] = [self._replies.get(worker, _NOTHING) for worker in self._workers]
        failures = [failure for outcome in outcomes for failure in outcome.failures]
        self._take_failures()
        raise_failures(failures)
        # The first field of either kind of outcome: results, or infos, of which setting a state gives none.
        if self._called is None:
            return tuple(result for outcome in outcomes for result in outcome[0])
        answers = zip(self._workers, outcomes, strict=True)
        results = {index: result for worker, outcome in answers for index, result in zip(worker.envs, outcome[0], strict=False)}
        return tuple(results[index] for index in self._called)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute ``name`` of every sub-env (as :meth:`call` does, a method is called)."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets the attribute ``name`` of every sub-env to a copy of its value.

        Args:
            name: of the attribute.
            values: a list or tuple with one value for each sub-env, or anything else: the value for all.

        Raises:
            ValueError: a list or tuple of another length; nothing was set.
            Exception: what a sub-env raised; the vector env is as usable as before.
        """
        self._call.check_idle("set_attr")
        if not isinstance(values, list | tuple):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                f"values: expected a list or tuple with one value for each of {self.num_envs} sub-envs, or a single value "
                f"of another type, got {len(values)}"
            )
        self._check_all_alive("set_attr")
        with self._beginning("call"):
            self._ask_call(
                (worker, Verb.SET_ATTR, SetAttrPayload(name, list(values[worker.envs.start : worker.envs.stop])))
                for worker in self._workers
            )
        self._finish_call()

    def render(self, env_ids: Sequence[int] | None = None) -> tuple[Any, ...]:
        """What ``render()`` of every sub-env gives, or of those that are selected.

        Args:
            env_ids: the sub-envs to render, different ones, in this order; None: all. No others draw or send anything.

        Returns:
            One result for each of them: frames, with ``render_mode="rgb_array"``. :func:`rayvec.tile_images` makes one picture
            of them.

        Raises:
            TypeError, ValueError: ``env_ids`` are no indices of sub-envs.
            AlreadyPendingCallError, ClosedEnvironmentError: not now.
            WorkerLostError: a worker has died; ``reset()`` starts it again.
            CallTimeoutError: out of ``call_timeout``; ``call_wait`` gives the result.
            Exception: what a sub-env raised; the vector env is as usable as before.
        """
        self._call.check_idle("render")
        if env_ids is None:
            return self.call("render")
        return tuple(self._call_at(check_env_ids(env_ids, self.num_envs), "render"))

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generators of the sub-envs (copies, where these live in another process)."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the sub-envs' random generators; -1 where it is not known."""
        return self.get_attr("np_random_seed")

    def stats(self) -> Stats:
        """What sub-envs and workers have done with their time so far, as they have told until now.

        Asks nobody: it may be called at any time before ``close()``. ``str()`` of it says which worker holds the rest back.

        Raises:
            ClosedEnvironmentError: the vector env was closed.
        """
        self._call.check_open()
        return read_stats(self._batch.tallies, [(worker.envs, worker.describe()) for worker in self._workers])

    # snapshots

    def get_state(self, env_ids: Sequence[int] | None = None) -> VectorEnvState:
        """All that sub-envs need to go on from here: later, in another process, on another engine.

        An env's state is what its own ``get_state()`` gives (ALE's ``clone_state()``) or else its attributes, pickled; that
        of its wrappers, and which sub-envs have ended or failed, go with it.

        Args:
            env_ids: the sub-envs to take it of; None: all.

        Returns:
            What :meth:`set_state` takes. It can be pickled; unpickle none that you do not trust, as that runs code.

        Raises:
            TypeError, ValueError: ``env_ids`` are no indices of sub-envs.
            AlreadyPendingCallError, ClosedEnvironmentError: not now.
            SnapshotError: a sub-env has no such method and cannot be pickled; it names it, and what stands in the way.
            WorkerLostError: a worker has died; ``reset()`` starts it again.
            CallTimeoutError: out of ``call_timeout``; ``call_wait`` waits for the end of it.
            Exception: what a sub-env raised; the vector env is as usable as before.
        """
        self._call.check_idle("get_state")
        chosen = sorted(check_env_ids(env_ids, self.num_envs))
        self._note_torn()
        self._check_all_alive("get_state")
        mask = np.zeros(self.num_envs, np.bool_)
        mask[chosen] = True
        payloads = {worker: mask[worker.envs.start : worker.envs.stop].tolist() for worker in self._workers}
        with self._beginning("call"):
            self._ask_call((worker, Verb.GET_STATE, GetStatePayload(own)) for worker, own in payloads.items() if any(own))
        return VectorEnvState(
            version=VERSION,
            num_envs=self.num_envs,
            autoreset_mode=self.autoreset_mode.value,
            layout=layout_of(self._batch),
            env_ids=tuple(chosen),
            needs_reset=tuple(self._needs_reset[chosen].tolist()),
            sub_envs=tuple(state for state in self._finish_call() if state is not None),
            restarts=self._recovery.seeds_of(chosen) if self._recovery is not None else None,
        )

    def set_state(self, state: VectorEnvState) -> None:
        """Puts the sub-envs that ``state`` is of where they were when it was taken; the steps that follow are the same.

        Args:
            state: of this or another rayvec env, on any engine, with as many sub-envs of the same kind.

        Raises:
            TypeError, ValueError: it is no such state, or of another kind of vector env; nothing has changed.
            AlreadyPendingCallError, ClosedEnvironmentError: not now; nothing has changed.
            SnapshotError: a sub-env cannot take it. That one needs a reset; the others are where the state has them.
            WorkerLostError: a worker has died; ``reset()`` starts it again.
            CallTimeoutError: out of ``call_timeout``; ``call_wait`` waits for the end of it.
            Exception: what a sub-env raised; it needs a reset.
        """
        self._call.check_idle("set_state")
        state = check_state(state, self.num_envs, self.autoreset_mode, layout_of(self._batch))
        self._note_torn()
        self._check_all_alive("set_state")
        found = dict(zip(state.env_ids, state.sub_envs, strict=True))
        payloads = {worker: [found.get(index) for index in worker.envs] for worker in self._workers}
        with self._beginning("call"):
            self._ask_call((worker, Verb.SET_STATE, SetStatePayload(own)) for worker, own in payloads.items() if any(own))
            self._needs_reset[list(state.env_ids)] = state.needs_reset
            self._has_failed = bool(self._needs_reset.any())
        self._finish_call()
        if self._recovery is not None:
            self._recovery.go_on_from(state.env_ids, state.restarts)

    # the end

    def close_extras(self, timeout: float | None = None, terminate: bool = False, **kwargs: Any) -> None:
        """Closes every sub-env that answers, ends the workers, frees everything; :meth:`close` calls it.

        Args:
            timeout: seconds that sub-envs have to finish what they do and close; None: 25.
            terminate: do not wait for them.
            **kwargs: ignored, for Gymnasium's other engines.

        Raises:
            Exception: what closing a sub-env raised, after everything was freed.
        """
        self._call.closed = True
        failures = self._free(_CLOSE_TIMEOUT if timeout is None else timeout, forced=terminate)
        self.closed = True
        raise_failures(failures)

    def _free(self, timeout: float, forced: bool = False) -> Sequence[Failure]:
        # Interrupted, it can be called again, and the finalizer does the rest at the latest.
        failures = self._crew.end(timeout, forced)
        self._finalizer.cancel()
        self._batch = self._outputs = self._all_info_rows = None  # type: ignore[assignment]
        if self._recovery is not None:
            self._recovery.release()
        for kept in (self._reset_payloads, self._replies, self._revived, self._info_rows):
            kept.clear()
        self._asked = self._everybody = frozenset()
        self._alone = None
        _close_all(self._blocks)
        return failures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Gymnasium 1.2's would wait for stuck sub-envs; the finalizer does better.
        pass

    # replies, failures, deaths

    def _deadline(self, timeout: float | None, default: float | None) -> float | None:
        self._has_own_timeout = timeout is not None
        self._waiting_for = timeout if timeout is not None else default
        return _after(self._waiting_for)

    def _collect(self, call: str, deadline: float | None) -> None:
        """Takes every reply that is owed; those of the pending call that say something go into ``_replies``.

        Raises:
            CallTimeoutError: some are not there in time; those that are stay taken.
            WorkerLostError: a worker has died, and this is no reset that could start it again. The call is over; what
                other workers still owe is taken by the next call.
        """
        self._crew.is_waiting = False
        try:
            self._take_replies(call, deadline)
        except KeyboardInterrupt:
            if self._call.name is not None and not self._crew.is_waiting:
                self._crew.is_torn = True
            if self._crew.is_torn:
                # What some sub-envs have done nobody knows: there is no result to wait for.
                self._call.end()
            raise

    def _take_replies(self, call: str, deadline: float | None) -> None:
        crew, recovery = self._crew, self._recovery
        may_kill = recovery is not None and not self._has_own_timeout
        until = deadline
        while True:
            if recovery is not None and may_kill:
                until = recovery.next_deadline(deadline)
            try:
                answer = crew.next_reply(until)
            except CallTimeoutError:
                if recovery is not None and may_kill and recovery.replace_late(call, deadline):
                    continue
                raise self._timeout_error(call) from None
            if answer is None:
                return
            worker, verb, reply = answer
            self._note_layout(worker, reply)
            if recovery is not None:
                refused = recovery.handle(worker, verb, reply, call)
                if refused is not None:
                    self._failures.extend(refused)
                    continue
            if reply is LOST:
                self._lose(worker, call)
            elif isinstance(reply, Failure):
                # Started anew for this reset, and its constructor failed.
                self._failures.append(reply)
                crew.dismiss(worker)
            elif crew.owes(worker) or worker not in self._asked:
                # The start of a worker for this call, or the answer to one that has ended without it.
                if isinstance(reply, Outcome):
                    self._note_failures(reply.failures, raised=False)
            else:
                self._keep_reply(worker, reply)

    def _keep_reply(self, worker: Worker, reply: Reply) -> None:
        self._replies[worker] = reply
        if isinstance(reply, Outcome) and reply.failures:
            self._failures.extend(reply.failures)
            if worker.is_caller:
                self._stop_at_interrupt(worker)

    def _note_layout(self, worker: Worker, reply: Reply) -> None:
        """Notes how the infos of a worker lie in the batch from now on, if its reply tells."""
        if not isinstance(reply, Outcome) or reply.layout is None:
            return
        layout = self._layouts.setdefault(reply.layout, reply.layout)
        self._info_rows[worker] = self._batch.info_rows(layout, worker.envs.start, worker.envs.stop)

    def _merged_infos(self) -> dict[str, Any]:
        """The infos of the replies that were collected."""
        replies = self._replies.items()
        groups = [(worker.envs.start, outcome.infos) for worker, outcome in replies if outcome.infos]
        if self._recovery is not None:
            groups += self._recovery.take_infos()
        settled = [(worker.envs.start, self._info_rows[worker]) for worker, outcome in replies if outcome.is_settled]
        if settled and not groups:
            layout = settled[0][1].layout
            if all(rows.layout is layout for _, rows in settled):
                # All of them at once: nothing is left to do for each worker.
                if self._all_info_rows is None or self._all_info_rows.layout is not layout:
                    self._all_info_rows = self._batch.info_rows(layout, 0, self.num_envs)
                return self._all_info_rows.merged()
        groups += [(start, rows.columns()) for start, rows in settled]
        return info_columns.merge(sorted(groups, key=itemgetter(0)), self.num_envs)

    def _take_failures(self) -> None:
        """Ends a call: forgets its replies, raises what sub-envs raised in a step or reset."""
        self._replies.clear()
        if self._failures:
            failures, self._failures = self._failures, []
            self._note_failures(failures, raised=True)
            raise_failures(failures)

    def _drop_replies(self) -> None:
        """Forgets those of a call that has ended without a result."""
        failures, self._failures = self._failures, []
        self._replies.clear()
        self._note_failures(failures, raised=False)

    def _note_failures(self, failures: Sequence[Failure], raised: bool) -> None:
        for failure in failures:
            self._mark_failed(range(failure.env_index, failure.env_index + 1))
        log_failures(failures, raised)

    def _stop_at_interrupt(self, worker: Worker) -> None:
        """Ctrl-C in the caller's own share ends the call at once: that share is not stepped to its end."""
        last = self._failures[-1]
        if isinstance(last.error, KeyboardInterrupt):
            self._mark_failed(range(last.env_index, worker.envs.stop))
            self._call.end()
            self._take_failures()

    def _lose(self, worker: Worker, call: str) -> None:
        may_revive = self._recovery is None and worker not in self._revived
        if call == "reset" and worker in self._reset_payloads and may_revive:
            logger.warning("%s has died and is started again for this reset", worker.name())
            self._revive(worker)
            return
        if call == "reset" and worker not in self._reset_payloads:
            # It was not asked to do anything; the next reset that names its sub-envs starts it again.
            self._mark_failed(worker.envs)
            return
        error = self._lost_error(worker, call)
        goes_on = self._recovery is not None and call == "call"
        for other in self._crew.find_lost():
            if not goes_on:
                self._mark_failed(other.envs)
            if other is not worker:
                add_note(error, f"{other.name()} has died too")
        for failure in self._failures:
            add_note(error, f"sub-env {failure.env_index} raised in {failure.call}: {failure.error!r}")
        self._drop_replies()
        self._call.end()
        raise error

    def _lost_error(self, worker: Worker, call: str) -> WorkerLostError:
        hint = "reset() starts it again." if call != "building its sub-envs" else worker.start_hint()
        if self._recovery is not None and call == "call":
            hint = "It is started again by what comes next."
        error = WorkerLostError(
            f"{worker.name()} has died in {call}. {hint}",
            env_indices=worker.envs,
            pid=worker.pid,
            exitcode=worker.exitcode,
            actor_id=worker.actor_id,
            node_id=worker.node_id,
        )
        if self._recovery is not None:
            self._recovery.explain(error)
        return error

    def _revive(self, worker: Worker) -> None:
        """Starts a worker that has died anew and passes it its share of the pending reset."""
        self._revived.add(worker)
        self._mark_failed(worker.envs)
        self._crew.restart(worker, self._batch, self._block)
        self._crew.ask([(worker, Verb.RESET, self._reset_payloads[worker])])

    @contextlib.contextmanager
    def _beginning(self, call: str, indices: Sequence[int] | None = None) -> Iterator[None]:
        """The call (of the sub-envs ``indices``) is pending from the first request on, and is not if one could not be sent."""
        with self._crew.hearing_later():
            self._drop_replies()
            try:
                self._call.begin(call)
                self._called = indices
                yield
            except BaseException:
                self._call.end()
                raise

    def _note_torn(self) -> None:
        """Where Ctrl-C has kept some sub-envs from what others did, all need a reset."""
        if self._crew.is_torn:
            self._crew.mend()
            self._mark_failed(range(self.num_envs))

    def _mark_failed(self, envs: range) -> None:
        if self._outputs is not None:
            # What workers fill is not handed out.
            self._outputs.take()
        self._needs_reset[envs.start : envs.stop] = True
        self._has_failed = True

    def _note_lost(self) -> None:
        for worker in self._workers:
            if worker.lost:
                self._mark_failed(worker.envs)

    def _check_all_alive(self, call: str) -> None:
        if self._recovery is not None:
            self._recovery.begin_call()
            if self._recovery.replace_lost(is_bounded=True):
                return
        if self._crew.has_lost:
            self._note_lost()
            raise self._lost_error(next(worker for worker in self._workers if worker.lost), call)

    def _timeout_error(self, call: str) -> CallTimeoutError:
        waiting = [worker.name() for worker in self._workers if self._crew.owes(worker)]
        shown = ", ".join(waiting[:4]) + (f" and {len(waiting) - 4} more" if len(waiting) > 4 else "")
        error = CallTimeoutError(
            f"`{call}` has no result after {self._waiting_for} s: {shown} still at work. The call is pending: wait again "
            "for its result, or close()."
        )
        if self._recovery is not None:
            self._recovery.explain(error)
        return error


def _abandon(crew: Crew, blocks: Sequence[SharedBlock]) -> None:
    try:
        crew.end(_ABANDON_TIMEOUT)
    finally:
        _close_all(blocks)


def _close_all(blocks: Sequence[SharedBlock]) -> None:
    for block in blocks:
        block.close()


def _after(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _listed(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(index) for index in np.flatnonzero(mask)]
