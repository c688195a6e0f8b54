"""What the rows of a vector env hold after a worker of several sub-envs was started again."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from engines import Engine, each, named

from rayvec import WorkerLostError
from rayvec.testing import CountingEnv, counting_observation


@each(named("async-workers-2", "async-pipe-workers-2"))
def test_masked_reset_after_a_death_keeps_the_other_rows(engine: Engine) -> None:
    """A worker that was started again without shared memory once sent zeros for the rows that were not reset."""
    with closing(engine.make([partial(CountingEnv, index=index) for index in range(4)])) as envs:
        envs.reset(seed=5)
        envs.step(np.zeros(4, np.int64))
        before, *_ = envs.step(np.zeros(4, np.int64))
        os.kill(envs.processes[1].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            envs.step(np.zeros(4, np.int64))
        observations, _ = envs.reset(seed=9, options={"reset_mask": np.array([False, False, True, False])})
    np.testing.assert_array_equal(observations[2], counting_observation(index=2, seed=11, episode=0, step=0))
    np.testing.assert_array_equal(observations[3], before[3])
