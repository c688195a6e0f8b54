"""What happens at the end of an episode, in each autoreset mode."""

from __future__ import annotations

from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from rayvec.testing.duel import MakeVectorEnv, duel
from rayvec.testing.rules.common import assert_names, counting, take_steps
from rayvec.testing.table import rule

__all__: list[str] = []


@rule
def check_next_step_autoreset(make: MakeVectorEnv) -> None:
    """NEXT_STEP: the step after an episode's end resets, with reward 0 and no flags, and ignores the action."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, counting(4, infos="rich", lengths=(1, 2, 3, 5), ends=ends)) as both:
            both.reset(seed=3)
            take_steps(both, 12)


@rule
def check_same_step_autoreset(make: MakeVectorEnv) -> None:
    """SAME_STEP: the step that ends an episode resets, and gives the last observation and info as final_obs and final_info."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, counting(4, infos="rich", lengths=(1, 2, 3, 5), ends=ends), AutoresetMode.SAME_STEP) as both:
            both.reset(seed=3)
            take_steps(both, 12)
    with duel(make, counting(3, lengths=(2, 3, 4)), AutoresetMode.SAME_STEP) as both:
        both.reset(seed=3)
        take_steps(both, 6)


@rule
def check_disabled_autoreset(make: MakeVectorEnv) -> None:
    """DISABLED: a sub-env stays at its episode's end until a masked reset names it."""
    for ends in ("terminated", "truncated", "both"):
        with duel(make, counting(3, infos="rich", lengths=(2, 3, 4), ends=ends), AutoresetMode.DISABLED) as both:
            both.reset(seed=3)
            for _ in range(10):
                both.step()
                if both.ended.any():
                    both.reset(options={"reset_mask": both.ended.copy()})


@rule
def check_disabled_refuses_to_step(make: MakeVectorEnv) -> None:
    """DISABLED: stepping a finished sub-env raises ResetNeeded, which names it, and advances none."""
    with duel(make, counting(6, lengths=(9, 9, 9, 9, 9, 2)), AutoresetMode.DISABLED) as both:
        both.reset(seed=3)
        take_steps(both, 2)
        for _ in range(2):
            assert_names(both.ask_to_raise(ResetNeeded, "step", both.actions()), 5)
            both.call("call", "where")
        both.reset(options={"reset_mask": both.ended.copy()})
        both.step()
