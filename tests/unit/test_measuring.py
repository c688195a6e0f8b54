"""What measures speed steps what it should, in the order in which it should."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rayvec.measuring import BareLoop, Turn, random_actions, ratio_of, spread_of, take_turns
from rayvec.testing import PlainLoop


def test_a_bare_loop_steps_what_an_engine_would() -> None:
    """The same seeds and actions lead the envs of a bare loop where they lead those of a plain one, over episodes' ends."""
    env_fns = [partial(gymnasium.make, "CartPole-v1")] * 3
    bare, plain = BareLoop(env_fns), PlainLoop(env_fns)
    bare.reset(seed=7)
    plain.reset(seed=7)
    space = bare.envs[0].action_space
    batches, singles = (random_actions(space, 3, 60, bare=which) for which in (False, True))
    for batch, actions in zip(batches, singles, strict=True):
        observations, *_ = plain.step(batch)
        bare.step(actions)
    states = [env.get_wrapper_attr("state") for env in bare.envs]
    np.testing.assert_array_equal(observations, np.array(states, np.float32))
    bare.close()
    plain.close()


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=2), spaces.Box(-1, 1, (2,)), spaces.Dict(a=spaces.Discrete(2))])
def test_random_actions_are_the_spaces_own(space: spaces.Space[object]) -> None:
    """Single ones lie in the space, and are those of the batches; the space's own generator is left alone."""
    space.seed(3)
    singles = random_actions(space, 2, 5, bare=True)
    assert [len(actions) for actions in singles] == [2] * 5
    assert all(action in space for actions in singles for action in actions)
    assert repr(random_actions(space, 2, 5, bare=True)) == repr(singles)
    sample = space.sample()
    space.seed(3)
    assert repr(space.sample()) == repr(sample)


def test_turns_go_there_and_back() -> None:
    """Each has a turn to warm up and one in each round; a turn is of one step at least, and actions begin anew."""
    taken: list[str] = []
    rounds: list[int] = []

    def turn(name: str) -> Turn:
        return Turn(lambda action: taken.append(f"{name}{action}"), [1, 2], 4)

    rates = take_turns({"a": turn("a"), "b": turn("b")}, 2, 1e-9, lambda: rounds.append(len(taken)))
    assert taken == ["a1", "b1", "a2", "b2", "b1", "a1"]
    assert rounds == [4, 6]
    assert [len(of_one) for of_one in rates.values()] == [2, 2]
    assert min(min(of_one) for of_one in rates.values()) > 0


def test_ratios_and_spreads() -> None:
    """A ratio is taken within rounds; a spread from the lowest to the highest."""
    assert ratio_of([2.0, 8.0, 30.0], [1.0, 2.0, 10.0]) == 3.0
    assert spread_of([1.0, 2.0, 4.0]) == 1.5
