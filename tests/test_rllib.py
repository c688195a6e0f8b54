"""RLlib as a client: its env runners step rayvec's vector envs, in whichever process they are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from world import child_environment

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_rllib.py"
_LIMIT = 120
_NEEDED = ("ray", "rich", "torch", "tree")
"""What the extra ``rllib`` brings. They are looked for rather than imported: importing RLlib takes seconds, and warns."""

pytestmark = [
    pytest.mark.skipif(not all(map(importlib.util.find_spec, _NEEDED)), reason="needs the extra rllib"),
    pytest.mark.timeout(_LIMIT + 20),
]

ENVS_MODULE = """
import rayvec

rayvec.register("CartPole-v1", engine="async", num_workers=2)
"""

# The id as Gymnasium understands it with a module before the colon; or RLlib's own registry of functions.
OTHER_WAYS = {
    "module": 'env = "cartpoles:rayvec/CartPole-v1"',
    "function": """
def make_envs(context):
    import cartpoles
    return gymnasium.make_vec("rayvec/CartPole-v1", context["num_envs"])

env = "cartpoles"
register_env(env, make_envs)
""",
}
SCRIPT = """
import gymnasium, ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env
{env}
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
config = PPOConfig().environment(env).training(train_batch_size_per_learner=256, minibatch_size=64, num_epochs=1)
config.env_runners(gym_env_vectorize_mode="vector_entry_point", num_envs_per_env_runner=4, num_env_runners=1)
algorithm = config.build_algo()
print(algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.env and type(runner.env.unwrapped).__name__))
print(algorithm.train()["num_env_steps_sampled_lifetime"] >= 256)
algorithm.stop()
ray.shutdown()
"""


def run(*arguments: str | Path, path: Path = EXAMPLE.parent) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which finds rayvec where the tests found it, and what is in ``path``."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        env=child_environment(path),
    )


@pytest.mark.parametrize(
    ("engine", "num_env_runners", "name"),
    [
        ("async", 1, "rayvec.local.async_vector_env.AsyncVectorEnv"),
        ("ray", 1, "rayvec.vector.RayVectorEnv"),
        ("ray", 0, "rayvec.vector.RayVectorEnv"),
        ("sync", 0, "rayvec.local.sync_vector_env.SyncVectorEnv"),
    ],
)
def test_it_learns_over_every_engine(engine: str, num_env_runners: int, name: str) -> None:
    """The vector env of each env runner is rayvec's, and policies get better on it."""
    options = ["--engine", engine, "--num-env-runners", str(num_env_runners), "--iterations", "4", "--goal", "25"]
    ran = run(EXAMPLE, *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"an env runner steps 8 sub-envs of rayvec/CartPole-v1 in a {name}\n" in ran.stdout
    assert "iteration  1 |" in ran.stdout
    assert "(goal of 25 reached)" in ran.stdout


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_register(way: str, tmp_path: Path) -> None:
    """What an env runner imports registers the env there."""
    (tmp_path / "cartpoles.py").write_text(ENVS_MODULE)
    ran = run("-c", SCRIPT.format(env=OTHER_WAYS[way]), path=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-2:] == ["[None, 'AsyncVectorEnv']", "True"], ran.stdout


def test_an_unreached_goal_is_a_failure() -> None:
    """Output and exit code say so."""
    ran = run(EXAMPLE, "--engine", "sync", "--num-env-runners", "0", "--iterations", "1", "--goal", "501")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "(goal of 501 not reached)" in ran.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "thread"], "invalid choice: 'thread'"),
        (["--num-envs", "0"], "--num-envs: a whole number from 1 on is needed, not '0'"),
        (["--num-env-runners", "-1"], "--num-env-runners: "),
        (["--goal", "nan"], "--goal: a number is needed, not 'nan'"),
        (["--engine", "sync", "--num-workers", "2"], "--num-workers needs --engine async or ray"),
    ],
)
def test_wrong_options_are_told(options: list[str], told: str) -> None:
    """Options that cannot be are named, before anything is started."""
    ran = run(EXAMPLE, *options)
    assert ran.returncode == 2
    assert told in ran.stderr
