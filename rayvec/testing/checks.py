"""Holding any vector env against the contract: all of its rules, some, or your own envs against a plain loop.

Each check, in :mod:`rayvec.testing.rules`, raises where one rule is broken. It takes ``make``, builds vector envs over
sub-envs of known answers and compares them, call by call, with a :class:`~rayvec.testing.oracle.PlainLoop`. The first
line of its docstring is the rule. :data:`CHECKS` has them all by name, for a test suite to parametrise over::

    @pytest.mark.parametrize("name", CHECKS)
    def test_conformance(name):
        CHECKS[name](MyVectorEnv)

``make(env_fns, **kwargs)`` gives a vector env; ``kwargs`` hold ``autoreset_mode`` always, ``copy`` and
``observation_mode`` at times. The checks have no time limit of their own: a vector env that hangs hangs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gymnasium.vector import AutoresetMode

from rayvec.testing import rules  # noqa: F401 - they enter themselves into the table
from rayvec.testing.duel import MakeVectorEnv
from rayvec.testing.oracle import EnvFn
from rayvec.testing.rules.common import MODES, check_agreement
from rayvec.testing.rules.data import check_space
from rayvec.testing.table import CHECKS, Check

__all__ = ["CHECKS", "Check", "check_agreement", "check_space", "check_vector_env"]


def check_vector_env(
    make: MakeVectorEnv,
    *,
    env_fns: Sequence[EnvFn] | None = None,
    num_steps: int = 200,
    seed: int = 0,
    checks: Iterable[str] | None = None,
    autoreset_modes: Iterable[AutoresetMode] = MODES,
) -> None:
    """Holds a vector env against the contract, and raises at the first rule that it breaks.

    Args:
        make: ``make(env_fns, autoreset_mode=..., ...)`` gives the vector env.
        env_fns: a function for each sub-env, to compare your own envs instead of running the checks: the vector env and a
            plain loop over envs of their own take the same random actions and have to give the same. The envs must be
            decided by their seeds and actions.
        num_steps: how many steps to compare over ``env_fns``, in each autoreset mode.
        seed: for ``env_fns`` and their actions.
        checks: names out of :data:`CHECKS`; None: all, or none beside the comparison if ``env_fns`` is given.
        autoreset_modes: for the comparison over ``env_fns``.

    Raises:
        ConformanceError: a rule is broken; its text says which, in which mode, at which call, for which sub-env and key,
            what came and what was due.
        KeyError: there is no check of that name.
    """
    names = (list(CHECKS) if env_fns is None else []) if checks is None else list(checks)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise KeyError(f"no checks named {unknown}; there are {list(CHECKS)}")
    if env_fns is not None:
        check_agreement(make, env_fns, num_steps=num_steps, seed=seed, autoreset_modes=autoreset_modes)
    for name in names:
        CHECKS[name](make)
