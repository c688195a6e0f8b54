"""What a step, a reset and a call mean for a run of sub-environments. Every engine steps its envs through here.

A :class:`SubEnvs` lives where its envs live: in the caller (sync), in a worker process, in a Ray actor. It writes
results straight into rows of a :class:`~rayvec.batch.Batch` and returns what has no row: infos and failures.

One sub-env's life::

            reset                    step: terminated or truncated
    built ────────▶ in an episode ──────────────────────────────▶ ended
      ▲                   ▲  │ raised                               │ NEXT_STEP: the next step resets it
      │ reset builds      │  ▼                                      │ SAME_STEP: reset at once, within the step
      └─ it anew ───── failed                                       │ DISABLED: only reset() does
                       │  └────────────────────────────────────────┘
                       └─ restart builds it anew as well, and begins or ends an episode, as it is ordered to
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode

from rayvec import infos as info_columns
from rayvec.batch import Batch
from rayvec.columns import Mismatch, snapshot
from rayvec.errors import InvalidObservationError, InvalidRewardError
from rayvec.failures import Failure
from rayvec.restarts import Goal, RestartOrder
from rayvec.settled import InfoRows, Layout, layout_of
from rayvec.states import SubEnvState, restore_env, save_env
from rayvec.stats import Tally

__all__ = ["NOTHING", "SETTLED", "CallOutcome", "Description", "EnvFn", "Outcome", "SubEnvs", "reward_as_float"]

EnvFn = Callable[[], gym.Env[Any, Any]]


class Outcome(NamedTuple):
    """What a step or a reset gives besides the rows of the batch.

    Attributes:
        infos: those that do not lie in the batch.
        failures: what sub-envs raised.
        layout: of infos that lie in the batch, from now on.
        is_settled: some infos lie in the batch.
    """

    infos: info_columns.Columns = {}  # noqa: RUF012 - nobody changes it
    failures: Sequence[Failure] = ()
    layout: Layout | None = None
    is_settled: bool = False


NOTHING = Outcome()
"""The outcome of a step of which the rows of the batch say everything."""
SETTLED = Outcome(is_settled=True)
"""The same, with infos of the layout that was told before."""
_NUMBERS = (float, int)
_ARRAY = np.ndarray


class CallOutcome(NamedTuple):
    """What ``call`` gives: a result for each sub-env (None for one that failed)."""

    results: list[Any]
    failures: Sequence[Failure] = ()


class Description(NamedTuple):
    """What the caller has to know of some sub-envs.

    Attributes:
        spaces: the different pairs (observation space, action space) among them.
        which: for each sub-env, which pair is its.
        metadata: the first one's.
        render_mode: the first one's.
    """

    spaces: list[tuple[Space[Any], Space[Any]]]
    which: list[int]
    metadata: dict[str, Any]
    render_mode: str | None


class SubEnvs:
    """A run of consecutive sub-envs.

    Args:
        env_fns: a function for each of them; each is called once, in order.
        first: the index of the first one in the vector env.
        autoreset_mode: what happens at the end of an episode.

    Attributes:
        first: the index of the first one.
        envs: the envs; None in place of one that could not be built anew.
        stops_at_interrupt: whether a KeyboardInterrupt is the user's, and ends a call at once.
    """

    def __init__(self, env_fns: Sequence[EnvFn], first: int, autoreset_mode: AutoresetMode) -> None:
        self.first = first
        self.envs: list[gym.Env[Any, Any] | None] = []
        self.stops_at_interrupt = False
        self._env_fns = env_fns
        self._resets_next = autoreset_mode is AutoresetMode.NEXT_STEP
        self._resets_at_once = autoreset_mode is AutoresetMode.SAME_STEP
        self._ended = [False] * len(env_fns)
        self._failed = [False] * len(env_fns)
        self._has_flags = False
        self._orders: dict[int, RestartOrder] = {}
        """Of those that were restarted and have not been reset since."""
        self._settled: InfoRows | None = None
        self._candidate: Layout | None = None
        self._has_told = False
        self._batch: Batch
        self._tally: Tally
        self._rows = range(0)

    @classmethod
    def build(cls, env_fns: Callable[[], Sequence[EnvFn]], first: int, autoreset_mode: AutoresetMode) -> SubEnvs | Failure:
        """The sub-envs, or what kept the first bad one from being built; the ones before it are closed then."""
        index = 0
        sub_envs = None
        try:
            sub_envs = cls(env_fns(), first, autoreset_mode)
            for index, env_fn in enumerate(sub_envs._env_fns):  # noqa: B007 - the handler below tells it
                sub_envs.envs.append(env_fn())
            sub_envs.describe()
        except BaseException as error:
            if sub_envs is not None:
                sub_envs.close()
            return Failure.caught(first + index, "its constructor", error)
        return sub_envs

    def __len__(self) -> int:
        return len(self._env_fns)

    def describe(self) -> Description:
        """What the caller has to know of them."""
        pairs: list[tuple[Space[Any], Space[Any]]] = []
        which = []
        for env in self._living():
            pair = (env.observation_space, env.action_space)
            if pair not in pairs:
                pairs.append(pair)
            which.append(pairs.index(pair))
        first = next(self._living())
        return Description(pairs, which, dict(first.metadata), first.render_mode)

    def spaces(self) -> tuple[Space[Any], Space[Any]]:
        """The first one's observation space and action space."""
        first = next(self._living())
        return first.observation_space, first.action_space

    def attach(self, batch: Batch, first_row: int, settles: bool = False) -> None:
        """Tells them where their rows are.

        Args:
            batch: that has them.
            first_row: from which on they are theirs.
            settles: infos may be left there too.
        """
        self._batch = batch
        self._settles = settles
        self._settled = self._candidate = None
        stop = first_row + len(self)
        batch.clear_infos(first_row, stop)
        self._rows = range(first_row, stop)
        # A memoryview takes a number in half the time of an array.
        self._rewards: Any = batch.rewards.data[first_row:stop]
        self._terminations: Any = batch.terminations.data[first_row:stop]
        self._truncations: Any = batch.truncations.data[first_row:stop]
        self._no_flags = np.zeros(len(self), np.bool_).data
        self._quick = batch.observations.quick(first_row, stop)
        self._tally = Tally(batch.tallies[first_row:stop])
        self._outputs = batch.outputs
        self._next_action = batch.action_reader(first_row) if len(self) == 1 else None

    def step_alone(self) -> Outcome:
        """:meth:`step` with the actions in the batch's rows, the shortest way for one sub-env that does nothing unusual.

        Where processes are many each of them finds its memory cold: what is not touched costs most of all.
        """
        next_action = self._next_action
        if next_action is None or self._settled is not None:
            return self.step()
        tally = self._tally
        tally.told[0] = tally.steps = steps = tally.steps + 1.0
        began = perf_counter() if steps >= tally.due else 0.0
        outcome = NOTHING
        try:
            if self._has_flags:
                self._clear_flags()
            if self._ended[0]:
                info = self._begin_next(0)
            else:
                observation, reward, terminated, truncated, info = self.envs[0].step(next_action())  # type: ignore[union-attr]
                (view,), dtype, shape = self._quick
                if type(observation) is _ARRAY and observation.dtype is dtype and observation.shape == shape:
                    view[...] = observation
                else:
                    self._write(0, "step", observation)
                self._rewards[0] = reward if isinstance(reward, _NUMBERS) else reward_as_float(self.first, reward)
                if info or terminated or truncated:
                    info = self._noted(0, terminated, truncated, info)
            if info:
                outcome = self._told([(0, info)], [], 0)
        except BaseException as error:
            outcome = self._told([], [self._fail(0, "step", error)], 0)
        if self._outputs is not None:
            self._outputs.fill(self._rows.start, self._rows.stop)
        if began:
            tally.end_step(began, perf_counter())
        return outcome

    def step(self, actions: Sequence[Any] | None = None) -> Outcome:
        """Steps each of them once.

        Args:
            actions: one for each; None: they lie in the batch's rows.
        """
        tally = self._tally
        tally.told[0] = tally.steps = steps = tally.steps + 1.0
        began = since = 0.0
        times_each = False
        if steps >= tally.due:
            began = since = perf_counter()
            times_each = tally.shares
        if actions is None:
            actions = self._batch.action_rows(self._rows.start, self._rows.stop)
        if self._has_flags:
            self._clear_flags()
        ended, rewards, (views, dtype, shape) = self._ended, self._rewards, self._quick
        settled, num_settled = self._settled, 0
        if settled is not None:
            settled.clear()
        infos: list[tuple[int, Mapping[Any, Any]]] = []
        failures: list[Failure] = []
        index = -1
        for env, view, action in zip(self.envs, views, actions, strict=True):
            index += 1
            try:
                if ended[index]:
                    info = self._begin_next(index)
                else:
                    observation, reward, terminated, truncated, info = env.step(action)  # type: ignore[union-attr]
                    if type(observation) is _ARRAY and observation.dtype is dtype and observation.shape == shape:
                        view[...] = observation
                    else:
                        self._write(index, "step", observation)
                    rewards[index] = reward if isinstance(reward, _NUMBERS) else reward_as_float(self.first + index, reward)
                    if info and settled is not None and not (terminated or truncated) and settled.write(index, info):
                        num_settled += 1
                        info = {}
                    elif info or terminated or truncated:
                        info = self._noted(index, terminated, truncated, info)
                if info:
                    infos.append((index, info))
            except BaseException as error:
                failures.append(self._fail(index, "step", error))
                if self._is_stopped_by(error):
                    break
            if times_each:
                now = perf_counter()
                tally.time_one(index, now - since)
                since = now
        if not infos and not failures and (not num_settled or self._has_told):
            outcome = SETTLED if num_settled else NOTHING
        else:
            outcome = self._told(infos, failures, num_settled)
        if self._outputs is not None:
            self._outputs.fill(self._rows.start, self._rows.stop)
        if began:
            tally.end_step(began, perf_counter())
        return outcome

    def _told(self, infos: list[tuple[int, Mapping[Any, Any]]], failures: list[Failure], num_settled: int) -> Outcome:
        """The outcome of a step that has more to tell than the rows of the batch."""
        settled = self._settled
        if failures and settled is not None:
            # Whoever deals with these need not know of settled infos.
            infos = sorted([*infos, *settled.read()], key=itemgetter(0))
            num_settled = 0
        columns = info_columns.gather(infos)
        if not num_settled:
            if self._settles and columns and not failures:
                self._settle(columns)
            return Outcome(columns, failures)
        assert settled is not None
        layout, self._has_told = None if self._has_told else settled.layout, True
        return Outcome(columns, failures, layout, True)

    def _settle(self, columns: info_columns.Columns) -> None:
        """Has infos left in the batch from now on if those of two steps in a row were of one layout."""
        layout = layout_of(columns, len(self))
        if layout is not None and layout == self._candidate:
            self._settled = self._batch.info_rows(layout, self._rows.start, self._rows.stop)
            self._has_told = False
        self._candidate = layout

    def _begin_next(self, index: int) -> dict[Any, Any]:
        """The step behind the end of an episode; returns its info."""
        self._ended[index] = False
        self._rewards[index] = 0.0
        info = self._go_on(index) if index in self._orders else self._reset_env(index)
        self._tally.count_reset(index, in_step=True)
        return info

    def _noted(self, index: int, terminated: Any, truncated: Any, info: Any) -> dict[Any, Any]:
        """What is to be told of a step that gave an info, or ended an episode."""
        if info:
            info = info_columns.copied(info)
        return self._end_episode(index, bool(terminated), bool(truncated), info) if terminated or truncated else info

    def _end_episode(self, index: int, terminated: bool, truncated: bool, info: dict[Any, Any]) -> dict[Any, Any]:
        """Notes the end of an episode, and begins the next one if the mode says now; returns the step's info."""
        self._terminations[index] = terminated
        self._truncations[index] = truncated
        self._has_flags = True
        if self._resets_at_once:
            ending = {"final_obs": self._batch.observations.read(self._rows[index]), "final_info": info or {}}
            self._tally.count_reset(index)
            return {**ending, **self._reset_env(index)}
        # Under DISABLED the caller lets no step through before a reset.
        self._ended[index] = self._resets_next
        return info

    def _clear_flags(self) -> None:
        self._terminations[:] = self._truncations[:] = self._no_flags
        self._has_flags = False

    def _fail(self, index: int, call: str, error: BaseException) -> Failure:
        """Marks a sub-env as failed by ``error``, and those behind it as well where Ctrl-C has stopped the call."""
        stop = len(self) if self._is_stopped_by(error) else index + 1
        self._failed[index:stop] = [True] * (stop - index)
        return Failure.caught(self.first + index, call, error)

    def _is_stopped_by(self, error: BaseException) -> bool:
        return self.stops_at_interrupt and isinstance(error, KeyboardInterrupt)

    def reset(
        self,
        seeds: Sequence[int | None],
        options: dict[str, Any] | None,
        mask: Sequence[bool] | None,
    ) -> Outcome:
        """Resets those that ``mask`` names (None: all); one that failed is closed and built anew first.

        Args:
            seeds: one for each sub-env, whether it is reset or not.
            options: for each ``env.reset``, a copy each.
            mask: which to reset.
        """
        began = perf_counter()
        infos: list[tuple[int, Mapping[Any, Any]]] = []
        failures: list[Failure] = []
        # Who asks may have missed it.
        self._has_told = False
        for index, row in enumerate(self._rows):
            if mask is not None and not mask[index]:
                continue
            try:
                if self._failed[index] or self.envs[index] is None:
                    self._rebuild(index)
                self._batch.rewards[row] = 0.0
                self._batch.terminations[row] = self._batch.truncations[row] = False
                self._ended[index] = False
                info = self._reset_env(index, seed=seeds[index], options=snapshot(options))
                self._tally.count_reset(index)
                if info:
                    infos.append((index, info))
            except BaseException as error:
                failures.append(self._fail(index, "reset", error))
                if self._is_stopped_by(error):
                    break
        self._tally.end_reset(began, perf_counter())
        return Outcome(info_columns.gather(infos) if infos else {}, failures)

    def restart(self, orders: Sequence[RestartOrder], options: dict[str, Any] | None) -> Outcome:
        """Builds sub-envs that have failed anew and has them go on as ordered.

        Args:
            orders: one for each of them.
            options: for each ``env.reset`` of those that begin an episode, a copy each.
        """
        # The rows may hold the flags of envs that were here before.
        self._has_flags = True
        infos: list[tuple[int, Mapping[Any, Any]]] = []
        failures: list[Failure] = []
        for order in orders:
            index = order.env_index - self.first
            try:
                if not order.is_new:
                    self._rebuild(index)
                info = self._restarted(index, order, options)
                if info:
                    infos.append((index, info))
            except BaseException as error:
                failures.append(self._fail(index, "a restart", error))
                if self._is_stopped_by(error):
                    break
        if self._outputs is not None:
            self._outputs.fill(self._rows.start, self._rows.stop)
        return Outcome(info_columns.gather(infos), failures)

    def _restarted(self, index: int, order: RestartOrder, options: dict[str, Any] | None) -> dict[Any, Any]:
        row = self._rows[index]
        self._orders[index] = order
        if order.goal is Goal.BEGIN:
            self._batch.rewards[row] = 0.0
            self._batch.terminations[row] = self._batch.truncations[row] = False
            self._ended[index] = False
            return self._reset_env(index, options=snapshot(options))
        if order.observation is not None:
            # What failed may have left half of its row.
            self._batch.observations.write(row, order.observation)
        if order.goal is Goal.END:
            return self._cut_short(index, order)
        self._ended[index] = order.goal is Goal.END_LATER or self._resets_next
        return {}

    def _go_on(self, index: int) -> dict[Any, Any]:
        """The step of a restarted sub-env that has not been reset since."""
        order = self._orders[index]
        return self._cut_short(index, order) if order.goal is Goal.END_LATER else self._reset_env(index)

    def _cut_short(self, index: int, order: RestartOrder) -> dict[Any, Any]:
        """Ends the episode that a restarted sub-env has lost: truncated, at the observation that was handed out last."""
        self._batch.rewards[self._rows[index]] = 0.0
        self._orders[index] = order._replace(goal=Goal.END)
        return {**self._end_episode(index, False, True, {}), **order.told()}

    def call(
        self,
        name: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        indices: Sequence[int] | None = None,
    ) -> CallOutcome:
        """Calls the method ``name`` of each, with copies of the arguments, or reads the attribute of that name.

        Args:
            name: of a method or attribute; or a function that is called with the env before the arguments.
            args: for the method.
            kwargs: for the method.
            indices: those of the vector env's sub-envs to call; None: each. The result of any other is None.
        """
        results: list[Any] = []
        failures: list[Failure] = []
        for index in range(len(self)):
            result = None
            if indices is not None and self.first + index not in indices:
                results.append(result)
                continue
            try:
                env = self._env(index)
                found = partial(name, env) if callable(name) else env.get_wrapper_attr(name)
                result = found(*snapshot(args), **snapshot(kwargs)) if callable(found) else found
            except BaseException as error:
                failures.append(Failure.caught(self.first + index, f"call of {name!r}", error))
            results.append(result)
        return CallOutcome(results, failures)

    def set_attr(self, name: str, values: Sequence[Any]) -> CallOutcome:
        """Sets the attribute ``name`` of each to a copy of its value."""
        failures: list[Failure] = []
        for index, value in enumerate(values):
            try:
                self._env(index).set_wrapper_attr(name, snapshot(value))
            except BaseException as error:
                failures.append(Failure.caught(self.first + index, f"setting {name!r}", error))
        return CallOutcome([], failures)

    def get_state(self, mask: Sequence[bool]) -> CallOutcome:
        """The state of each that ``mask`` names, None for the others."""
        states: list[SubEnvState | None] = []
        failures: list[Failure] = []
        for index, is_asked in enumerate(mask):
            state = None
            try:
                if is_asked:
                    state = self._state_of(index)
            except BaseException as error:
                failures.append(Failure.caught(self.first + index, "get_state", error))
            states.append(state)
        return CallOutcome(states, failures)

    def _state_of(self, index: int) -> SubEnvState:
        batch, row = self._batch, self._rows[index]
        return SubEnvState(
            None if self._failed[index] else save_env(self._env(index), f"sub-env {self.first + index}"),
            self._ended[index],
            batch.observations.read(row),
            float(batch.rewards[row]),
            bool(batch.terminations[row]),
            bool(batch.truncations[row]),
            self._orders.get(index),
        )

    def set_state(self, states: Sequence[SubEnvState | None]) -> Outcome:
        """Puts each where its state says, None excepted, and fills its row; one that failed is built anew first."""
        failures: list[Failure] = []
        # The rows may hold flags now that the next step has to clear; and who asks may have missed a layout.
        self._has_flags = True
        self._has_told = False
        for index, state in enumerate(states):
            try:
                if state is not None:
                    self._go_to(index, state)
            except BaseException as error:
                failures.append(self._fail(index, "set_state", error))
                if self._is_stopped_by(error):
                    break
        return Outcome({}, failures)

    def _go_to(self, index: int, state: SubEnvState) -> None:
        if state.env is not None:
            if self._failed[index] or self.envs[index] is None:
                self._rebuild(index)
            self.envs[index] = restore_env(self._env(index), state.env, f"sub-env {self.first + index}")
        batch, row = self._batch, self._rows[index]
        batch.observations.write(row, state.observation)
        batch.rewards[row] = state.reward
        batch.terminations[row] = state.terminated
        batch.truncations[row] = state.truncated
        self._ended[index] = state.ended
        self._failed[index] = state.env is None
        if state.order is None:
            self._orders.pop(index, None)
        else:
            self._orders[index] = state.order

    def close(self) -> Sequence[Failure]:
        """Closes each, whatever the others raise; returns what they raised."""
        failures: list[Failure] = []
        for index, env in enumerate(self.envs):
            if env is None:
                continue
            try:
                env.close()
            except BaseException as error:
                failures.append(Failure.caught(self.first + index, "close", error))
        self.envs = []
        return failures

    def interrupted(self, call: str, error: KeyboardInterrupt) -> Outcome:
        """The outcome of a call that Ctrl-C has ended while none of the envs was at it."""
        return Outcome({}, [self._fail(0, call, error)])

    def fail(self, index: int) -> None:
        """Marks sub-env ``index`` (of the vector env) as failed: its result could not be delivered."""
        self._failed[index - self.first] = True

    def _living(self) -> Any:
        return (env for env in self.envs if env is not None)

    def _env(self, index: int) -> gym.Env[Any, Any]:
        env = self.envs[index]
        if env is None:
            raise RuntimeError("this sub-env could not be built; reset() tries again")
        return env

    def _rebuild(self, index: int) -> None:
        env, self.envs[index] = self.envs[index], None
        if env is not None:
            try:
                env.close()
            except Exception:
                # It has failed already, and that was told; what a broken env says on closing is no news.
                pass
        self.envs[index] = self._env_fns[index]()
        self._failed[index] = False
        self._tally.count_restart(index)

    def _reset_env(self, index: int, **kwargs: Any) -> dict[Any, Any]:
        order = self._orders.pop(index, None)
        if order is not None and kwargs.get("seed") is None:
            kwargs["seed"] = order.seed
        observation, info = self._env(index).reset(**kwargs)
        self._write(index, "reset", observation)
        info = info_columns.copied(info) if info else {}
        if order is not None and order.goal is not Goal.END:
            # Nothing has told of the restart yet.
            info |= order.told()
        return info

    def _write(self, index: int, call: str, observation: Any) -> None:
        try:
            self._batch.observations.write(self._rows[index], observation)
        except Mismatch as mismatch:
            raise InvalidObservationError(
                f"sub-env {self.first + index}: {call} returned an observation that its space does not allow: {mismatch}"
            ) from None


def reward_as_float(index: int, reward: Any) -> float:
    """The one number that sub-env ``index`` gave as its reward, in whatever form.

    Raises:
        InvalidRewardError: it is not one number.
    """
    try:
        array = np.asarray(reward)
        if array.size == 1 and array.dtype.kind in "biufO":
            item = array.reshape(-1)[0]
            if not isinstance(item, str | bytes):
                return float(item)
    except (TypeError, ValueError):
        pass
    raise InvalidRewardError(f"sub-env {index}: step returned the reward {reward!r}, expected one number")
