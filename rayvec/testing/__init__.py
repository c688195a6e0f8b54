"""The conformance kit: envs of known answers, a plain loop over them, and checks that hold any vector env against it.

::

    make(env_fns, autoreset_mode=...) ──▶ the vector env ──┐
                                                           ├──▶ the same, down to dtypes and bits?  ConformanceError
    PlainLoop(env_fns, autoreset_mode) ──▶ what is due ────┘

It shares no code with rayvec's engines, and needs Gymnasium and NumPy alone, so that it can judge any engine::

    from rayvec.testing import CHECKS, check_vector_env

    check_vector_env(MyVectorEnv)                                # every rule, with the kit's own envs
    check_vector_env(MyVectorEnv, env_fns=[make_my_env] * 4)     # your own envs, against a plain loop over them

    @pytest.mark.parametrize("name", CHECKS)                     # or one test for each rule
    def test_rule(name):
        CHECKS[name](MyVectorEnv)
"""

from rayvec.testing.checks import CHECKS, Check, check_agreement, check_space, check_vector_env
from rayvec.testing.comparison import ConformanceError, assert_same
from rayvec.testing.duel import Duel, MakeVectorEnv, duel
from rayvec.testing.envs import (
    BAD_REWARD_FORMS,
    EXAMPLE_SPACES,
    GOOD_REWARD_FORMS,
    WRONG_OBSERVATIONS,
    BufferEnv,
    CountingEnv,
    EchoEnv,
    LogLine,
    RandomStateEnv,
    RewardEnv,
    SpaceEnv,
    WrongObservationEnv,
    counting_info,
    counting_observation,
    counting_reward,
    read_log,
    reward_value,
)
from rayvec.testing.oracle import PlainLoop, batch_infos, batch_observations
from rayvec.testing.restarted import RestartedLoop
from rayvec.testing.trouble import (
    DyingEnv,
    GateEnv,
    RaisingEnv,
    SlowEnv,
    StubbornEnv,
    UnbuildableError,
    UnpicklableError,
    wait_for_path,
)

__all__ = [
    "BAD_REWARD_FORMS",
    "CHECKS",
    "EXAMPLE_SPACES",
    "GOOD_REWARD_FORMS",
    "WRONG_OBSERVATIONS",
    "BufferEnv",
    "Check",
    "ConformanceError",
    "CountingEnv",
    "DyingEnv",
    "Duel",
    "EchoEnv",
    "GateEnv",
    "LogLine",
    "MakeVectorEnv",
    "PlainLoop",
    "RaisingEnv",
    "RandomStateEnv",
    "RestartedLoop",
    "RewardEnv",
    "SlowEnv",
    "SpaceEnv",
    "StubbornEnv",
    "UnbuildableError",
    "UnpicklableError",
    "WrongObservationEnv",
    "assert_same",
    "batch_infos",
    "batch_observations",
    "check_agreement",
    "check_space",
    "check_vector_env",
    "counting_info",
    "counting_observation",
    "counting_reward",
    "duel",
    "read_log",
    "reward_value",
    "wait_for_path",
]
