"""The conformance kit judged: a right engine passes every check, and for each check a wrong one is caught by it.

``RightEngine`` is a vector env around the plain loop. Each mutant breaks one rule of it and nothing else that matters;
``CAUGHT_BY`` says which checks have to catch it. A check that no mutant breaks fails a test of its own.
"""

# ruff: noqa: D103, D106 - the name of a test says what it tests

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_differing_spaces

from rayvec import testing
from rayvec.testing import (
    BAD_REWARD_FORMS,
    CHECKS,
    EXAMPLE_SPACES,
    GOOD_REWARD_FORMS,
    WRONG_OBSERVATIONS,
    BufferEnv,
    ConformanceError,
    CountingEnv,
    EchoEnv,
    GateEnv,
    PlainLoop,
    RaisingEnv,
    RandomStateEnv,
    RewardEnv,
    SlowEnv,
    SpaceEnv,
    StubbornEnv,
    UnbuildableError,
    UnpicklableError,
    WrongObservationEnv,
    assert_same,
    batch_infos,
    check_vector_env,
    counting_info,
    counting_observation,
    counting_reward,
    read_log,
    reward_value,
    wait_for_path,
)

# A right engine


class RightEngine(VectorEnv[Any, Any, Any]):
    """A vector env around a plain loop, as straightforward as it can be."""

    loop_type: ClassVar[type[PlainLoop]] = PlainLoop

    def __init__(
        self,
        env_fns: Sequence[Any],
        copy: bool = True,
        observation_mode: Any = "same",
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.copy = copy
        self.loop = self.loop_type(env_fns, autoreset_mode)
        self.num_envs = self.loop.num_envs
        single = [env.observation_space for env in self.loop.envs]
        self.single_observation_space = single[0]
        self.single_action_space = self.loop.single_action_space
        self.action_space = self.loop.action_space
        if observation_mode == "same":
            if any(space != single[0] for space in single):
                raise RuntimeError("the observation spaces differ")
            self.observation_space = self.loop.observation_space
        elif observation_mode == "different":
            self.observation_space = batch_differing_spaces(single)
        else:
            self.observation_space, self.single_observation_space = observation_mode
        self.metadata = {**self.loop.envs[0].metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = self.loop.envs[0].render_mode
        self.pending: tuple[str, Any] | None = None

    def begin(self, name: str, call: Any) -> None:
        if self.closed:
            raise ClosedEnvironmentError("closed")
        if self.pending is not None:
            raise AlreadyPendingCallError("another call is pending", self.pending[0])
        self.pending = name, call

    def finish(self, name: str) -> Any:
        if self.pending is None or self.pending[0] != name:
            raise NoAsyncCallError("no such call is pending", name)
        call = self.pending[1]
        self.pending = None
        return call()

    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        self.begin("reset", lambda: self.loop.reset(seed=seed, options=options))

    def reset_wait(self, timeout: float | None = None) -> Any:
        return self.finish("reset")

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.reset_async(seed, options)
        return self.reset_wait()

    def step_async(self, actions: Any) -> None:
        actions = copy.deepcopy(actions)
        self.begin("step", lambda: self.loop.step(actions))

    def step_wait(self, timeout: float | None = None) -> Any:
        return self.finish("step")

    def step(self, actions: Any) -> Any:
        self.step_async(actions)
        return self.step_wait()

    def call_async(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.begin("call", lambda: self.loop.call(name, *args, **kwargs))

    def call_wait(self, timeout: float | None = None) -> Any:
        return self.finish("call")

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def get_attr(self, name: str) -> Any:
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        self.begin("set_attr", lambda: self.loop.set_attr(name, values))
        self.finish("set_attr")

    def render(self) -> Any:
        return self.call("render")

    @property
    def np_random_seed(self) -> Any:
        return self.get_attr("np_random_seed")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        return self.get_attr("np_random")

    def close_extras(self, **kwargs: Any) -> None:
        self.loop.close()

    def __enter__(self) -> RightEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Gymnasium 1.2's would close what was never built.
        pass


# Mutants: each is right but for one thing


class SwapsRows(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, *rest = super().step_wait()
        if isinstance(observations, np.ndarray):
            observations = np.roll(observations, 1, axis=0)
        return observations, *rest


class SqueezesOne(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, *rest = super().step_wait()
        return np.squeeze(observations) if self.num_envs == 1 else observations, *rest


class Float32Rewards(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, rewards, *rest = super().step_wait()
        return observations, rewards.astype(np.float32), *rest


class Float32RewardsInside(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, rewards, *rest = super().step_wait()
        return observations, rewards.astype(np.float32).astype(np.float64), *rest


class MixesUpFlags(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, rewards, terminations, truncations, infos = super().step_wait()
        return observations, rewards, terminations | truncations, np.zeros_like(truncations), infos


class ReturnsViews(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, *rest = super().step_wait()
        if not hasattr(self, "buffer"):
            self.buffer = observations
        self.buffer[...] = observations
        return self.buffer, *rest


class ReturnsStaleObservations(RightEngine):
    last: Any = None

    def step_wait(self, timeout: float | None = None) -> Any:
        observations, *rest = super().step_wait()
        stale, self.last = self.last, observations
        return observations if self.copy or stale is None else stale, *rest


class ReusesRewards(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        observations, rewards, *rest = super().step_wait()
        if not hasattr(self, "buffer"):
            self.buffer = rewards
        self.buffer[...] = rewards
        return observations, self.buffer, *rest


class RemembersWhatItReturned(RightEngine):
    returned: Any = None

    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        self.mask = (options or {}).get("reset_mask")
        super().reset_async(seed, options)

    def reset_wait(self, timeout: float | None = None) -> Any:
        observations, infos = super().reset_wait()
        if self.mask is not None and isinstance(self.returned, np.ndarray):
            observations[~self.mask] = self.returned[~self.mask]
        return observations, infos

    def step_wait(self, timeout: float | None = None) -> Any:
        result = super().step_wait()
        self.returned = result[0]
        return result


class CutsPromotedNumbers(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        *rest, infos = super().step_wait()
        if "number" in infos:
            infos["number"] = infos["number"].astype(np.int64)
        return *rest, infos


class ForgetsMasksOfNestedInfos(RightEngine):
    def step_wait(self, timeout: float | None = None) -> Any:
        *rest, infos = super().step_wait()
        infos.get("nested", {}).pop("_step", None)
        return *rest, infos


class PopsMask(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        super().reset_async(seed, None if options is None else dict(options))
        (options or {}).pop("reset_mask", None)


class FillsSeeds(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        if isinstance(seed, list):
            for index, own in enumerate(seed):
                seed[index] = 0 if own is None else own
        super().reset_async(seed, options)


class SeedsAllAlike(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        super().reset_async([seed] * self.num_envs if isinstance(seed, int) else seed, options)


class PadsSeeds(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        if isinstance(seed, list):
            seed = (seed + [None] * self.num_envs)[: self.num_envs]
        super().reset_async(seed, options)


class ResetsAllUnderAMask(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        if options and "reset_mask" in options:
            options = {**options, "reset_mask": np.ones_like(options["reset_mask"])}
        super().reset_async(seed, options)


class TakesAnyMask(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        if options and "reset_mask" in options:
            options = {**options, "reset_mask": np.array(options["reset_mask"], np.bool_)}
        super().reset_async(seed, options)


class ResetsBeforeItLooksAtTheMask(RightEngine):
    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        if options and not np.any(options.get("reset_mask", True)):
            self.loop.reset()
        super().reset_async(seed, options)


class ShowsGarbageBeforeTheFirstReset(RightEngine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop._observations = [self.single_observation_space.sample() for _ in range(self.num_envs)]


class StepsBeforeItCountsActions(RightEngine):
    def step_async(self, actions: Any) -> None:
        if isinstance(actions, np.ndarray) and len(actions) != self.num_envs:
            for env, action in zip(self.loop.envs, actions, strict=False):
                env.step(action)
        super().step_async(actions)


class LimitsBroadcastActions(RightEngine):
    def step_async(self, actions: Any) -> None:
        super().step_async(actions if isinstance(actions, dict) else np.resize(actions, self.num_envs))


class GivesTheCallersActions(RightEngine):
    def step_async(self, actions: Any) -> None:
        super().step_async(actions)
        if isinstance(actions, np.ndarray) and actions.dtype == np.float32:
            actions += 1


class KeepsTheCallersActionsUntilItSteps(RightEngine):
    def step_async(self, actions: Any) -> None:
        self.begin("step", lambda: self.loop.step(actions))


class ForgetsPendingCalls(RightEngine):
    def begin(self, name: str, call: Any) -> None:
        self.pending = None
        super().begin(name, call)


class WaitsForNothing(RightEngine):
    def reset_wait(self, timeout: float | None = None) -> Any:
        return None if self.pending is None else super().reset_wait()


class HandsALateReplyToTheNext(RightEngine):
    late: Any = None

    def step_wait(self, timeout: float | None = None) -> Any:
        result = super().step_wait()
        if timeout is not None:
            self.late = result
            raise multiprocessing.TimeoutError("too late")
        return result


class ReturnsALateReply(RightEngine):
    late: list[Any]

    def step_wait(self, timeout: float | None = None) -> Any:
        if timeout is not None:
            self.late = [self.pending and self.pending[1]()]
            raise multiprocessing.TimeoutError("too late")
        if getattr(self, "late", None):
            self.pending = None
            late = self.late.pop()
            return late[0] * 0, *late[1:]
        return super().step_wait()


class StepsAfterClose(RightEngine):
    def step(self, actions: Any) -> Any:
        return self.loop.reset() if self.closed else super().step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.loop.envs:
            env.close()


class LeavesEnvsOpen(RightEngine):
    def close_extras(self, **kwargs: Any) -> None:
        pass


class ClosesTwice(RightEngine):
    def close(self, **kwargs: Any) -> None:
        for env in self.loop.envs:
            env.close()
        self.closed = True


class BuildsAnEnvForItself(RightEngine):
    def __init__(self, env_fns: Sequence[Any], **kwargs: Any) -> None:
        env_fns[0]().close()
        super().__init__(env_fns, **kwargs)


class RefusesToCloseWhilePending(RightEngine):
    def close(self, **kwargs: Any) -> None:
        if self.pending is not None:
            self.pending = None
            raise RuntimeError("a call is pending")
        super().close()


class StaysOpenBehindItsContext(RightEngine):
    def __exit__(self, *_: object) -> None:
        pass


class NoContextManager(RightEngine):
    __enter__ = None  # type: ignore[assignment]


class WrapsConstructorErrors(RightEngine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except LookupError as error:
            raise RuntimeError(str(error)) from error


class LeavesEnvsOpenWhenItsConstructorFails(RightEngine):
    class loop_type(PlainLoop):  # noqa: N801
        def close(self) -> None:
            if hasattr(self, "_failed"):
                super().close()


class ChangesClassMetadata(RightEngine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = self.loop.envs[0].metadata
        self.metadata["autoreset_mode"] = self.loop.autoreset_mode


class DoesNotTellItsMode(RightEngine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata = dict(self.loop.envs[0].metadata)


class DoesNotBatchItsActionSpace(RightEngine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_space = self.single_action_space


class IgnoresObservationMode(RightEngine):
    def __init__(self, env_fns: Sequence[Any], observation_mode: Any = "same", **kwargs: Any) -> None:
        super().__init__(env_fns, observation_mode="different" if observation_mode == "same" else "same", **kwargs)


class RendersAList(RightEngine):
    def render(self) -> Any:
        return list(super().render())


class HasOneRandomGenerator(RightEngine):
    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        return super().np_random[0]


class CallsWithTheCallersArguments(RightEngine):
    def call_async(self, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "append":
            self.begin("call", lambda: tuple(env.get_wrapper_attr(name)(*args) for env in self.loop.envs))
        else:
            super().call_async(name, *args, **kwargs)


class SetsListsWhole(RightEngine):
    def set_attr(self, name: str, values: Any) -> None:
        super().set_attr(name, [values] * self.num_envs)


class SetsSomeBeforeItCounts(RightEngine):
    def set_attr(self, name: str, values: Any) -> None:
        if isinstance(values, list) and len(values) == 2:
            self.loop.envs[0].set_wrapper_attr(name, values[0])
        super().set_attr(name, values)


class FailsForGoodAfterAFailedCall(RightEngine):
    def call_wait(self, timeout: float | None = None) -> Any:
        try:
            return super().call_wait()
        except Exception:
            self.loop._failed[0] = True
            raise


class WrapsErrors(RightEngine):
    def finish(self, name: str) -> Any:
        try:
            return super().finish(name)
        except ZeroDivisionError as error:
            raise RuntimeError(f"sub-env 8 raised in {name}") from error


class DropsNotes(RightEngine):
    def finish(self, name: str) -> Any:
        try:
            return super().finish(name)
        except Exception as error:
            vars(error).pop("__notes__", None)
            raise


class SwallowsOddErrors(RightEngine):
    def finish(self, name: str) -> Any:
        try:
            return super().finish(name)
        except (UnbuildableError, UnpicklableError):
            raise EOFError from None


class WithLoop(RightEngine):
    """Made by :func:`around` over a plain loop that is wrong in one thing."""


def around(loop: type[PlainLoop]) -> type[RightEngine]:
    return type(loop.__name__, (WithLoop,), {"loop_type": loop})


class AliasesObservations(PlainLoop):
    def _checked_observation(self, index: int, call: str, observation: Any) -> Any:
        super()._checked_observation(index, call, observation)
        return observation


class BroadcastsObservations(PlainLoop):
    def _checked_observation(self, index: int, call: str, observation: Any) -> Any:
        if isinstance(observation, np.ndarray | np.number) and isinstance(self.single_observation_space, spaces.Box):
            observation = np.broadcast_to(observation, self.single_observation_space.shape)
        return super()._checked_observation(index, call, observation)


class NamesNoSubEnv(PlainLoop):
    def _checked_observation(self, index: int, call: str, observation: Any) -> Any:
        try:
            return super()._checked_observation(index, call, observation)
        except ValueError:
            raise ValueError("wrong observation") from None

    def _raise(self, errors: Mapping[int, Exception], call: str, failed: bool = True) -> None:
        try:
            super()._raise(errors, call, failed)
        except ValueError as error:
            vars(error).pop("__notes__", None)
            raise


class AliasesInfos(PlainLoop):
    """Gives the lists that envs put into their infos as they are."""

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        for index, env in enumerate(self.envs):
            if isinstance(env, BufferEnv) and "history" in result[4]:
                result[4]["history"][index] = env._history
        return result


class KeepsAutoresetFlags(PlainLoop):
    def reset(self, **kwargs: Any) -> Any:
        ended = list(self._ended)
        result = super().reset(**kwargs)
        self._ended = ended
        return result


class ForgetsAutoresetOfOthers(PlainLoop):
    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        self._ended = [False] * self.num_envs
        return result


class StepsOnAfterTheEnd(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        result = super()._step_env(index, action)
        self._ended[index] = False
        return result


class RewardsTheReset(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        resets = self._ended[index]
        _, *rest = result = super()._step_env(index, action)
        return (1.0, *rest) if resets else result


class ForgetsFinalInfo(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        *rest, info = super()._step_env(index, action)
        return *rest, {key: value for key, value in info.items() if key != "final_info"}


class FinalInfoOverwritesTheResets(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        *rest, info = super()._step_env(index, action)
        return *rest, {**info, **info.get("final_info", {})}


class DisabledResetsAnyway(PlainLoop):
    def _is_over(self, index: int) -> bool:
        return False


class DisabledStepsThemAnyway(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        self._ended[index] = False
        return super()._step_env(index, action)

    def _is_over(self, index: int) -> bool:
        return False


class StepsOthersBeforeItRefuses(PlainLoop):
    def step(self, actions: Any) -> Any:
        if any(self._is_over(index) for index in range(self.num_envs)):
            self.envs[0].step(actions[0])
        return super().step(actions)


class SharesOptions(PlainLoop):
    shared: Any = None

    def _reset_env(self, index: int, **kwargs: Any) -> Any:
        if kwargs.get("options") and "list" in kwargs["options"]:
            self.shared = kwargs["options"] = kwargs["options"] if index == 0 else self.shared
        return super()._reset_env(index, **kwargs)


class PassesTheMaskOn(PlainLoop):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        result = super().reset(seed=seed, options=options)
        for env in self.envs:
            if isinstance(env, CountingEnv) and env.options is not None and options:
                env.options = dict(options)
        return result


class TakesAnyReward(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        try:
            return super()._step_env(index, action)
        except ValueError:
            return 0.0, False, False, {}


class TakesPlainRewardsOnly(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        env = self.envs[index]
        if isinstance(env, RewardEnv) and env._forms[env._step % len(env._forms)] == "list-of-one":
            raise ValueError("no number")
        return super()._step_env(index, action)


class StopsAtTheFirstError(PlainLoop):
    def _step_env(self, index: int, action: Any) -> Any:
        if index == 0:
            self.stopped = False
        if self.stopped:
            return 0.0, False, False, {}
        self.stopped = True
        result = super()._step_env(index, action)
        self.stopped = False
        return result


class StepsFailedEnvs(PlainLoop):
    def _raise(self, errors: Mapping[int, Exception], call: str, failed: bool = True) -> None:
        super()._raise(errors, call, failed=False)


class KeepsFailedEnvs(PlainLoop):
    def _build_anew(self, index: int) -> None:
        self._failed[index] = False


class RaisesTheHighest(PlainLoop):
    def _raise(self, errors: Mapping[int, Exception], call: str, failed: bool = True) -> None:
        super()._raise(dict(list(errors.items())[-1:]), call, failed)


class CutsTexts(PlainLoop):
    def _checked_observation(self, index: int, call: str, observation: Any) -> Any:
        checked = super()._checked_observation(index, call, observation)
        return checked[:1] if isinstance(checked, str) else checked


CAUGHT_BY: dict[type[RightEngine], list[str]] = {
    SwapsRows: ["agreement_of_counting_envs", "next_step_autoreset", "space_box_float32"],
    SqueezesOne: ["one_sub_env"],
    Float32Rewards: ["rewards", "agreement_of_counting_envs"],
    Float32RewardsInside: ["agreement_of_counting_envs"],
    MixesUpFlags: ["next_step_autoreset", "same_step_autoreset", "disabled_autoreset"],
    ReturnsViews: ["copies_never_change"],
    ReturnsStaleObservations: ["without_copy"],
    ReusesRewards: ["copies_never_change", "infos_never_change"],
    RemembersWhatItReturned: ["returned_is_the_callers"],
    CutsPromotedNumbers: ["info_promotion"],
    ForgetsMasksOfNestedInfos: ["info_layout"],
    PopsMask: ["caller_keeps_mask"],
    FillsSeeds: ["caller_keeps_mask", "reset_seeds"],
    SeedsAllAlike: ["reset_seeds"],
    PadsSeeds: ["wrong_seeds"],
    ResetsAllUnderAMask: ["masked_reset"],
    TakesAnyMask: ["wrong_masks"],
    ResetsBeforeItLooksAtTheMask: ["wrong_masks"],
    ShowsGarbageBeforeTheFirstReset: ["first_masked_reset"],
    StepsBeforeItCountsActions: ["wrong_action_counts"],
    LimitsBroadcastActions: ["wrong_action_counts"],
    GivesTheCallersActions: ["actions_are_the_envs"],
    KeepsTheCallersActionsUntilItSteps: ["async_halves"],
    ForgetsPendingCalls: ["pending_call"],
    WaitsForNothing: ["pending_call"],
    HandsALateReplyToTheNext: ["timed_out_wait"],
    ReturnsALateReply: ["timed_out_wait"],
    StepsAfterClose: ["use_after_close"],
    LeavesEnvsOpen: ["close"],
    ClosesTwice: ["close"],
    BuildsAnEnvForItself: ["close"],
    RefusesToCloseWhilePending: ["close_while_pending"],
    StaysOpenBehindItsContext: ["context_manager"],
    NoContextManager: ["context_manager"],
    WrapsConstructorErrors: ["failing_constructor"],
    LeavesEnvsOpenWhenItsConstructorFails: ["failing_constructor"],
    ChangesClassMetadata: ["metadata_of_class"],
    DoesNotTellItsMode: ["spaces_and_attributes"],
    DoesNotBatchItsActionSpace: ["spaces_and_attributes"],
    IgnoresObservationMode: ["observation_mode"],
    RendersAList: ["render"],
    HasOneRandomGenerator: ["np_random"],
    CallsWithTheCallersArguments: ["call"],
    SetsListsWhole: ["attributes"],
    SetsSomeBeforeItCounts: ["attributes"],
    FailsForGoodAfterAFailedCall: ["failing_call"],
    WrapsErrors: ["error_of_sub_env"],
    DropsNotes: ["error_of_sub_env", "several_errors"],
    SwallowsOddErrors: ["odd_errors"],
    around(AliasesObservations): ["final_snapshots", "other_rows"],
    around(BroadcastsObservations): ["wrong_observations"],
    around(NamesNoSubEnv): ["wrong_observations"],
    around(AliasesInfos): ["infos_never_change", "copies_never_change"],
    around(KeepsAutoresetFlags): ["step_after_manual_reset"],
    around(ForgetsAutoresetOfOthers): ["step_after_manual_reset"],
    around(StepsOnAfterTheEnd): ["next_step_autoreset"],
    around(RewardsTheReset): ["next_step_autoreset"],
    around(ForgetsFinalInfo): ["same_step_autoreset"],
    around(FinalInfoOverwritesTheResets): ["same_step_autoreset"],
    around(DisabledResetsAnyway): ["disabled_refuses_to_step"],
    around(DisabledStepsThemAnyway): ["disabled_refuses_to_step"],
    around(StepsOthersBeforeItRefuses): ["disabled_refuses_to_step"],
    around(SharesOptions): ["reset_options"],
    around(PassesTheMaskOn): ["reset_options"],
    around(TakesAnyReward): ["bad_rewards"],
    around(TakesPlainRewardsOnly): ["rewards"],
    around(StopsAtTheFirstError): ["error_spares_others"],
    around(StepsFailedEnvs): ["error_spares_others"],
    around(KeepsFailedEnvs): ["error_spares_others"],
    around(RaisesTheHighest): ["several_errors"],
    around(CutsTexts): ["space_text"],
}


def spoiling() -> type[RightEngine]:
    """A mutant that spoils observations of any space: the first sub-env sees the last one's."""

    class Spoils(PlainLoop):
        def _step_env(self, index: int, action: Any) -> Any:
            result = super()._step_env(index, action)
            if index == self.num_envs - 1:
                self._observations[0] = self._observations[index]
            return result

    return around(Spoils)


@pytest.mark.parametrize("name", CHECKS)
def test_a_right_engine_passes_every_check(name: str) -> None:
    CHECKS[name](RightEngine)


@pytest.mark.parametrize(
    ("mutant", "name"),
    [pytest.param(mutant, name, id=f"{mutant.__name__}-{name}") for mutant, names in CAUGHT_BY.items() for name in names],
)
def test_the_check_catches_the_mutant(mutant: type[RightEngine], name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        CHECKS[name](mutant)
    assert caught.value.rule is not None
    assert caught.value.rule.startswith(f"{name}: ")


@pytest.mark.parametrize("name", [name for name in CHECKS if name.startswith("space_")])
def test_the_check_of_each_space_catches_rows_that_are_mixed_up(name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        CHECKS[name](spoiling())
    assert caught.value.env_index == 0


def test_every_check_catches_some_mutant() -> None:
    caught = set(itertools.chain.from_iterable(CAUGHT_BY.values()))
    assert {name for name in CHECKS if not name.startswith("space_")} <= caught


def test_every_check_tells_its_rule_in_one_line() -> None:
    for name, check in CHECKS.items():
        rule = (check.__doc__ or "").strip()
        assert rule.endswith("."), name
        assert "\n" not in rule, name


# check_vector_env


def test_all_checks_run_by_default_and_only_some_when_named() -> None:
    check_vector_env(RightEngine)
    check_vector_env(Float32Rewards, checks=["attributes", "close"])
    with pytest.raises(ConformanceError, match="float32"):
        check_vector_env(Float32Rewards)
    with pytest.raises(KeyError, match="no_such_check"):
        check_vector_env(RightEngine, checks=["no_such_check"])


def test_own_envs_are_compared_with_a_plain_loop() -> None:
    env_fns = [partial(gym.make, "CartPole-v1", max_episode_steps=20)] * 3
    check_vector_env(RightEngine, env_fns=env_fns, num_steps=80, seed=4)
    with pytest.raises(ConformanceError, match="observations"):
        check_vector_env(SwapsRows, env_fns=env_fns, num_steps=5)


def test_the_error_says_rule_mode_call_sub_env_key_what_came_and_what_was_due() -> None:
    with pytest.raises(ConformanceError) as caught:
        CHECKS["same_step_autoreset"](around(FinalInfoOverwritesTheResets))
    error = caught.value
    assert error.mode == AutoresetMode.SAME_STEP.value
    assert error.step == 2
    assert error.env_index == 0
    assert error.key == "infos['step']"
    text = str(error)
    for part in ("same_step_autoreset", "SameStep", "call 2", "sub-env 0", "infos['step']", "got", "expected"):
        assert part in text
    assert str(pickle.loads(pickle.dumps(error))) == text


def test_what_a_vector_env_raises_out_of_turn_is_told_with_its_cause() -> None:
    class Raises(RightEngine):
        def step_wait(self, timeout: float | None = None) -> Any:
            raise OSError("disk full")

    with pytest.raises(ConformanceError, match="step raised OSError: disk full") as caught:
        CHECKS["next_step_autoreset"](Raises)
    assert isinstance(caught.value.__cause__, OSError)


# assert_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (1, np.int64(1)),
        (0.0, -0.0),
        ("a", "b"),
        (None, 0),
        ((1, 2), [1, 2]),
        ((1, 2), (1, 2, 3)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), -np.zeros(2)),
        (np.zeros(2), [0.0, 0.0]),
        (np.array([np.nan, 1]), np.array([1, np.nan])),
        (np.array([1, None], object), np.array([1.0, None], object)),
        (np.array([[1], None], object), np.array([[2], None], object)),
        (np.array(["a"]), np.array(["b"])),
        (np.array([1j]), np.array([1 + 1j])),
        (spaces.GraphInstance(np.zeros(2), None, None), (np.zeros(2), None, None)),
        (
            spaces.GraphInstance(np.zeros(2), None, None),
            spaces.GraphInstance(np.zeros(2), np.zeros(1), np.zeros((1, 2))),
        ),
        (np.random.default_rng(1), np.random.default_rng(2)),
    ],
)
def test_different_values_are_not_the_same(one: Any, other: Any) -> None:
    assert_same(one, copy.deepcopy(one), "value")
    assert_same(other, copy.deepcopy(other), "value")
    for expected, actual in ((one, other), (other, one)):
        with pytest.raises(ConformanceError, match="value"):
            assert_same(expected, actual, "value")


def test_nan_is_the_same_as_nan_and_scalars_as_arrays_without_axes() -> None:
    assert_same(float("nan"), float("nan"), "value")
    assert_same(np.array([np.nan, 1]), np.array([np.nan, 1]), "value")
    assert_same(np.float32(2), np.array(2, np.float32), "value")


def test_the_path_leads_to_the_difference() -> None:
    expected = {"nested": {"list": [0, np.array([[1, 2], [3, 4]])]}}
    actual = copy.deepcopy(expected)
    actual["nested"]["list"][1][1, 0] = 9  # type: ignore[index]
    with pytest.raises(ConformanceError) as caught:
        assert_same(expected, actual, "infos")
    assert caught.value.key == "infos['nested']['list'][1]"
    assert caught.value.position == (1, 0)
    assert "got np.int64(9) at [1, 0]" in str(caught.value) or "got 9 at [1, 0]" in str(caught.value)


# The plain loop


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("kind", ["none", "numbers", "rich", "alternating"])
def test_counting_envs_answer_by_formula(ends: Any, kind: Any) -> None:
    env = CountingEnv(3, episode_length=2, ends=ends, infos=kind)
    for episode, seed in enumerate((5, 5, 8)):
        observation, info = env.reset(seed=seed)
        assert_same(counting_observation(3, seed, episode, 0), observation, "observation")
        assert_same(counting_info(kind, 3, episode, 0), info, "info")
        for step in (1, 2, 3):
            observation, reward, terminated, truncated, info = env.step(np.int64(0))
            assert_same(np.array([3, seed, episode, step]), observation, "observation")
            assert reward == counting_reward(3, episode, step) == 3 + episode / 10 + step / 1000
            assert terminated == (step >= 2 and ends != "truncated")
            assert truncated == (step >= 2 and ends != "terminated")
            assert_same(counting_info(kind, 3, episode, step), info, "info")


def test_the_plain_loop_autoresets_on_the_next_step() -> None:
    loop = PlainLoop([partial(CountingEnv, 0, 2), partial(CountingEnv, 1, 3)])
    rows = [loop.reset(seed=10)[0].tolist()]
    flags = []
    for _ in range(4):
        observations, rewards, terminations, truncations, infos = loop.step(np.zeros(2, np.int64))
        rows.append(observations.tolist())
        flags.append((terminations.tolist(), truncations.tolist(), rewards.tolist()))
        assert infos == {}
    assert [row[0] for row in rows] == [[0, 10, 0, 0], [0, 10, 0, 1], [0, 10, 0, 2], [0, 10, 1, 0], [0, 10, 1, 1]]
    assert [row[1] for row in rows] == [[1, 11, 0, 0], [1, 11, 0, 1], [1, 11, 0, 2], [1, 11, 0, 3], [1, 11, 1, 0]]
    assert [ended for ended, _, _ in flags] == [[False, False], [True, False], [False, True], [False, False]]
    assert flags[2][2] == [0.0, counting_reward(1, 0, 3)]
    assert not any(any(truncated) for _, truncated, _ in flags)


def test_the_plain_loop_autoresets_in_the_same_step() -> None:
    loop = PlainLoop([partial(CountingEnv, 0, 1, infos="numbers"), partial(CountingEnv, 1, 3)], AutoresetMode.SAME_STEP)
    loop.reset(seed=10)
    observations, rewards, terminations, _, infos = loop.step(np.zeros(2, np.int64))
    assert observations.tolist() == [[0, 10, 1, 0], [1, 11, 0, 1]]
    assert rewards.tolist() == [counting_reward(0, 0, 1), counting_reward(1, 0, 1)]
    assert terminations.tolist() == [True, False]
    final_obs = np.array([None, None], object)
    final_obs[0] = np.array([0, 10, 0, 1])
    assert_same(final_obs, infos["final_obs"], "final_obs")
    assert infos["final_info"]["step"].tolist() == [1, 0]
    assert infos["final_info"]["_step"].tolist() == [True, False]
    assert infos["step"].tolist() == [0, 0]
    for key in ("final_obs", "final_info", "step"):
        assert infos[f"_{key}"].tolist() == [True, False]


def test_the_plain_loop_without_autoreset_waits_for_a_reset() -> None:
    loop = PlainLoop([partial(CountingEnv, 0, 1), partial(CountingEnv, 1, 3)], "Disabled")
    loop.reset(seed=0)
    loop.step(np.zeros(2, np.int64))
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        loop.step(np.zeros(2, np.int64))
    assert loop.call("where") == ((0, 0, 0, 1), (1, 1, 0, 1))
    options = {"reset_mask": np.array([True, False]), "level": 2}
    observations, _ = loop.reset(options=options)
    assert observations.tolist() == [[0, 0, 1, 0], [1, 1, 0, 1]]
    assert loop.get_attr("options") == ({"level": 2}, None)
    assert options.keys() == {"reset_mask", "level"}


def test_infos_are_laid_out_as_the_contract_says() -> None:
    array = np.array([1, 2], np.int32)
    infos = batch_infos(
        [
            {"number": 1, "flag": True, "array": array, "object": np.bool_(True), "nested": {"a": 1}, "mixed": 1},
            {},
            {"number": 2.5, "array": array / 2, "text": "x", "nested": {"b": "y"}, "mixed": {"a": 1}, "big": 2**70},
        ]
    )
    both, first, last = [True, False, True], [True, False, False], [False, False, True]
    expected = {
        "number": np.array([1.0, 0.0, 2.5]),
        "flag": np.array(first),
        "array": np.array([[1, 2], [0, 0], [0.5, 1]]),
        "object": np.array([np.bool_(True), None, None], object),
        "nested": {
            "a": np.array([1, 0, 0]),
            "_a": np.array(first),
            "b": np.array([None, None, "y"], object),
            "_b": np.array(last),
        },
        "mixed": np.array([1, None, {"a": 1}], object),
        "text": np.array([None, None, "x"], object),
        "big": np.array([None, None, 2**70], object),
    }
    masks = {
        "number": both,
        "flag": first,
        "array": both,
        "object": first,
        "nested": both,
        "mixed": both,
        "text": last,
        "big": last,
    }
    assert_same({**expected, **{f"_{key}": np.array(mask) for key, mask in masks.items()}}, infos, "infos")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], np.int64),
        ([True, 2], np.int64),
        ([1, 2.5], np.float64),
        ([np.float32(1), np.float32(2)], np.float32),
        ([np.float32(1), 2], np.float64),
        ([np.int8(-1), np.uint8(255)], np.int16),
        ([np.float16(1), np.int8(1)], np.float16),
        ([np.array([1], np.int32), np.array([0.5], np.float32)], np.float64),
        ([np.array(["a"]), np.array(["abc"])], np.dtype("<U3")),
        ([1, np.array([1])], object),
        ([1, "a"], object),
        ([1, None], object),
        ([1, 2**63], object),
        ([np.array([1]), np.array([1, 2])], object),
        ([np.array([1]), np.array(["a"])], object),
        ([[1], [2]], object),
        ([np.bool_(True), np.bool_(False)], object),
    ],
)
def test_infos_are_promoted_or_kept(values: list[Any], dtype: Any) -> None:
    for order in (values, values[::-1]):
        column = batch_infos([{"key": value} for value in order])["key"]
        assert column.dtype == dtype
        for value, came in zip(order, column, strict=True):
            if dtype is object:
                assert_same(value, came, "value")
            else:
                np.testing.assert_array_equal(value, came)


def test_the_plain_loop_gives_only_copies() -> None:
    loop = PlainLoop([BufferEnv, BufferEnv], AutoresetMode.SAME_STEP)
    kept: list[Any] = [loop.reset(seed=0)]
    actions = np.full((2, 2), 0.5, np.float32)
    for _ in range(5):
        kept.append(loop.step(actions))
    was = copy.deepcopy(kept)
    loop.step(actions)
    assert_same(was, kept, "what was returned")
    assert (actions == 0.5).all()


@pytest.mark.parametrize("kind", WRONG_OBSERVATIONS)
def test_the_plain_loop_refuses_wrong_observations(kind: str) -> None:
    case = WRONG_OBSERVATIONS[kind]
    assert case.space.contains(case.right)
    loop = PlainLoop([partial(WrongObservationEnv, kind, at=None), partial(WrongObservationEnv, kind, at=2)])
    loop.reset(seed=0)
    loop.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="sub-env 1: the observation of step"):
        loop.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("form", GOOD_REWARD_FORMS)
def test_the_plain_loop_takes_rewards_of_one_number(form: str) -> None:
    loop = PlainLoop([partial(RewardEnv, form)])
    loop.reset(seed=0)
    rewards = [loop.step(np.zeros(1, np.int64))[1] for _ in range(2)]
    assert_same([np.array([reward_value(form, step)]) for step in (1, 2)], rewards, "rewards")


@pytest.mark.parametrize("form", BAD_REWARD_FORMS)
def test_the_plain_loop_refuses_other_rewards(form: str) -> None:
    loop = PlainLoop([RewardEnv, partial(RewardEnv, form)])
    loop.reset(seed=0)
    with pytest.raises(ValueError, match="sub-env 1"):
        loop.step(np.zeros(2, np.int64))


# The envs


@pytest.mark.parametrize("name", EXAMPLE_SPACES)
def test_echo_and_space_envs_work_for_every_space(name: str) -> None:
    space = EXAMPLE_SPACES[name]
    other = pickle.loads(pickle.dumps(space))
    for make in (partial(EchoEnv, space), partial(SpaceEnv, space)):
        observation, _ = make().reset(seed=3)
        assert space.contains(observation)
        assert_same(observation, make().reset(seed=3)[0], "observation")
    env = SpaceEnv(space, other, episode_length=2)
    env.reset(seed=3)
    action = other.sample()
    assert_same(env.observation_at(3, 0, 1), env.step(action)[0], "observation")
    assert env.step(action)[2]
    echo = EchoEnv(other, episode_length=1, infos=True)
    echo.reset(seed=1)
    assert_same((action, 1.0, False, True, {"action": action}), echo.step(action), "step")


def test_envs_and_their_factories_can_be_pickled() -> None:
    for env_fn in (CountingEnv, BufferEnv, RandomStateEnv, RewardEnv, partial(RaisingEnv, error=UnpicklableError), SlowEnv):
        assert isinstance(pickle.loads(pickle.dumps(env_fn))(), gym.Env)


def test_the_buffer_env_reuses_its_buffers() -> None:
    env = BufferEnv(episode_length=2)
    observation, info = env.reset(seed=0)
    action = np.zeros(2, np.float32)
    later, _, _, _, later_info = env.step(action)
    assert later is observation
    assert later_info is info
    assert info["kept"] is action
    assert action.tolist() == [100, 100]
    env.step(np.zeros(2, np.float32))
    assert action.tolist() == [200, 200]


def test_the_random_state_env_draws_from_the_global_states() -> None:
    env = RandomStateEnv()
    states = random.getstate(), np.random.get_state()
    try:
        random.seed(1)
        np.random.seed(1)
        expected = [random.random(), np.random.random()]
        random.seed(1)
        np.random.seed(1)
        assert env.reset(seed=5)[0].tolist() == expected
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@pytest.mark.parametrize("on", ["init", "reset", "step", "close", "call", "get", "set"])
def test_the_raising_env_raises_at_its_call(on: Any) -> None:
    def use(env: RaisingEnv, call: str) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "reset": env.reset,
            "step": lambda: env.step(np.int64(0)),
            "close": env.close,
            "call": env.answer,
            "get": lambda: env.mood,
            "set": lambda: env.set_wrapper_attr("mood", 1),
        }
        calls[call]()

    if on == "init":
        with pytest.raises(ValueError, match="boom"):
            RaisingEnv(on=on, error=ValueError("boom"))
        return
    env = RaisingEnv(on=on, at=2, error=ValueError("boom"))
    for other in ("reset", "step", "close", "call", "get", "set"):
        use(env, other)
    with pytest.raises(ValueError, match="boom"):
        use(env, on)
    use(env, on)


def test_odd_errors_are_odd() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(UnpicklableError())
    pickled = pickle.dumps(UnbuildableError())
    with pytest.raises(TypeError):
        pickle.loads(pickled)
    assert str(UnbuildableError()) == "cannot be rebuilt"


def test_the_gate_env_waits_for_its_file(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    env = GateEnv(gate, at=1)
    env.reset(seed=0)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(env.step(np.int64(0))), daemon=True)
    thread.start()
    wait_for_path(GateEnv.marker_of(gate))
    assert not results
    gate.touch()
    thread.join(10)
    assert results[0][0].tolist() == [0, 0, 0, 1]
    with pytest.raises(TimeoutError, match="missing"):
        wait_for_path(tmp_path / "missing", timeout=0.01)


def test_the_log_tells_of_building_and_closing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_log(log) == []
    for index in (4, 5):
        CountingEnv(index, log=log).close()
    pid = os.getpid()
    assert read_log(log) == [("built", 4, pid), ("closed", 4, pid), ("built", 5, pid), ("closed", 5, pid)]


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"from rayvec.testing import *\nimport numpy\n{code}"])


@pytest.mark.parametrize(("how", "code"), [("sigkill", -signal.SIGKILL), ("exit", 7)])
def test_the_dying_env_ends_its_process(how: str, code: int) -> None:
    process = start(f"env = DyingEnv(at=2, how={how!r})\nenv.reset()\nwhile True: env.step(0)")
    assert process.wait(30) == code


def test_the_stubborn_env_ignores_sigterm(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    process = start(f"env = StubbornEnv(on='close', marker={os.fspath(marker)!r})\nenv.close()")
    try:
        wait_for_path(marker, 30)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


def test_building_a_stubborn_env_changes_nothing() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    StubbornEnv().close()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_every_public_name_is_there() -> None:
    for name in testing.__all__:
        assert hasattr(testing, name)
