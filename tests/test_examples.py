"""The examples do what they say."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from world import child_environment

import rayvec

Console = pytest.importorskip("rich.console", reason="the examples need the extra of that name").Console

NEEDED = {"train_ppo": "torch", "train_sb3": "stable_baselines3", "train_torchrl": "torchrl"}
"""What each example with a learner needs beside rayvec; they are tried where it is installed."""

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str | Path, limit: float = 55) -> subprocess.CompletedProcess[str]:
    """An example, run as a user runs it; the package is found wherever the tests found it."""
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        capture_output=True,
        text=True,
        timeout=limit,
        env=child_environment(),
    )


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Any:
    """``train_cartpole.py`` as a module."""
    return load("train_cartpole")


@pytest.fixture(scope="module")
def ray_example() -> Any:
    """``ray_cluster.py`` as a module."""
    return load("ray_cluster")


def test_it_learns_and_draws(tmp_path: Path) -> None:
    """With its defaults it reaches the goal, says so, and saves its picture."""
    picture = tmp_path / "curve.png"
    pytest.importorskip("matplotlib", reason="the examples need the extra of that name")
    ran = run("train_cartpole.py", "--seed", "3", "--plot", picture)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert "generation  1 | population mean" in ran.stdout
    assert "(goal of 475 reached)" in ran.stdout
    assert "env steps a second" in ran.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_too_little_time_is_a_failure() -> None:
    """Where the goal is not reached, output and exit code say so."""
    ran = run("train_cartpole.py", "--vectorization-mode", "sync", "--num-envs", "16", "--max-seconds", "0.001")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "(goal of 475 not reached)" in ran.stdout


def test_a_seed_gives_one_curve_with_every_engine_and_number_of_envs(example: Any) -> None:
    """Not a bit of the curve depends on where and how many at a time the sub-envs are stepped."""
    curves = []
    for num_envs, mode, options in [
        (64, "sync", {}),
        (64, "async", {"num_workers": 2}),
        (24, "async", {"num_workers": 2, "step_in_caller": True, "shared_memory": False}),
    ]:
        with closing(rayvec.make_vec(example.ENV_ID, num_envs, mode, options)) as envs:
            curves.append(example.train(example.Player(envs), seed=1, max_seconds=40.0, max_generations=2).curve)
    assert len(curves[0]) == 2
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-envs", "0"], "--num-envs: a whole number from 1 on is needed, not '0'"),
        (["--num-workers", "many"], "--num-workers: a whole number from 1 on is needed, not 'many'"),
        (["--seed", "-1"], "--seed: "),
        (["--max-seconds", "nan"], "--max-seconds: a number of seconds above 0 is needed, not 'nan'"),
        (
            ["--vectorization-mode", "sync", "--num-workers", "2"],
            "--num-workers needs --vectorization-mode async",
        ),
        (["--vectorization-mode", "thread"], "invalid choice: 'thread'"),
        (["--plot", "no/such/folder/curve.png"], "--plot: there is no folder"),
        (["--plot", "curve.zip"], "--plot: cannot draw a '.zip' file"),
    ],
)
def test_wrong_options_are_told(example: Any, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that cannot be are named, before anything is started."""
    with pytest.raises(SystemExit) as caught:
        example.parse(arguments)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_training_that_was_killed_ends_as_training_that_was_not(tmp_path: Path) -> None:
    """Killed between two checkpoints, resumed on another engine: the same digest of all data and of the weights."""
    options = ["--steps", "240", "--every", "50", "--num-envs", "5", "--seed", "4", "--checkpoint"]
    whole = run("resume_training.py", *options, tmp_path / "whole.ckpt")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert whole.stdout.startswith("began at step 0, sync\n")
    killed = run("resume_training.py", *options, tmp_path / "killed.ckpt", "--kill-after", "130")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert "digest" not in killed.stdout
    resumed = run("resume_training.py", *options, tmp_path / "killed.ckpt", "--vectorization-mode", "async")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.startswith("resumed at step 100, async\n")
    *_, digest = whole.stdout.splitlines()
    assert digest.startswith("digest ")
    assert resumed.stdout.splitlines()[-1] == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.ckpt", "whole.ckpt"]


def test_two_nodes_give_the_data_of_a_plain_loop(ray_example: Any) -> None:
    """Its table shows an actor on each of two nodes; its checksum is that of envs which never left the process."""
    arguments = ["--nodes", "2", "--num-envs", "4", "--num-actors", "2", "--num-cpus", "2", "--steps", "30", "--seed", "5"]
    ran = run("ray_cluster.py", *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "actors: 2, nodes: 2" in ran.stdout
    for told in ("(the caller's)", "0 to 1", "2 to 3", "shared_memory", "object_store", "env steps a second"):
        assert told in ran.stdout
    with closing(rayvec.make_vec("CartPole-v1", 4, "sync")) as envs:
        checksum, _ = ray_example.step(envs, 30, 5, Console())
    assert f"checksum of the data: {checksum} (the same for seed 5" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nodes", "0"], "--nodes: a whole number from 1 on is needed, not '0'"),
        (["--num-cpus", "-1"], "--num-cpus: a number from 0 on is needed, not '-1'"),
        (["--num-envs", "2", "--num-actors", "3"], "--num-actors: 3 actors cannot share 2 sub-envs"),
        (["--env", "NoSuchEnv-v0"], "--env: Environment `NoSuchEnv` doesn't exist"),
    ],
)
def test_wrong_options_of_the_cluster_are_told(
    ray_example: Any, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that cannot be are named, before a cluster is started or joined."""
    with pytest.raises(SystemExit) as caught:
        ray_example.parse(arguments)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def learner(name: str) -> Any:
    """An example with a learner, as a module, where what it needs is installed; torch's threads would only wait here."""
    pytest.importorskip(NEEDED[name], reason=f"{name}.py needs it")
    pytest.importorskip("torch").set_num_threads(1)
    return load(name)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train_ppo", ["--goal", "40", "--max-steps", "6000"]),
        ("train_sb3", ["--goal", "40", "--max-steps", "4096", "--seconds", "0"]),
        ("train_torchrl", ["--goal", "40", "--max-steps", "6000"]),
    ],
)
def test_learners_learn(script: str, options: list[str]) -> None:
    """A goal that is near is reached, over worker processes."""
    if importlib.util.find_spec(NEEDED[script]) is None:
        pytest.skip(f"{script}.py needs {NEEDED[script]}")
    ran = run(f"{script}.py", *options, limit=140)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "mean return" in ran.stdout
    assert "(goal of 40 reached)" in ran.stdout


@pytest.mark.parametrize("script", ["train_ppo", "train_sb3"])
def test_wrong_options_of_learners_are_told(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that cannot be are named, before anything is started."""
    parse = learner(script).parse
    for arguments, told in (
        (["--num-envs", "0"], "--num-envs: a whole number from 1 on is needed, not '0'"),
        (["--max-steps", "-5"], "--max-steps: a whole number from 1 on is needed, not '-5'"),
        (["--goal", "nan"], "--goal: a number is needed, not 'nan'"),
        (["--vectorization-mode", "sync", "--num-workers", "2"], "--num-workers needs --vectorization-mode async or ray"),
        (["--num-envs", "2", "--num-workers", "3"], "--num-workers: 3 workers cannot share 2 sub-envs"),
    ):
        with pytest.raises(SystemExit) as caught:
            parse(arguments)
        assert caught.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("torchrl") is None, reason="train_torchrl.py needs it")
def test_wrong_options_of_torchrl_learners_are_told() -> None:
    """In a process of its own: to import TorchRL changes the start method of all that follow."""
    ran = run("train_torchrl.py", "--num-envs", "2", "--num-workers", "3")
    assert ran.returncode == 2
    assert "--num-workers: 3 workers cannot share 2 sub-envs" in ran.stderr


def test_ppo_learns_the_same_with_every_engine() -> None:
    """A seed gives one policy, bit by bit, wherever the sub-envs are stepped."""
    example = learner("train_ppo")
    import torch

    policies = []
    for mode, options in [("sync", {}), ("async", {"num_workers": 2, "copy": False})]:
        with closing(rayvec.make_vec(example.ENV_ID, 4, mode, options)) as envs:
            policies.append(example.train(envs, seed=3, goal=500.0, max_steps=256).state_dict())
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])


def test_ppo_bootstraps_where_an_episode_was_cut() -> None:
    """Advantages are those of a plain sum over each episode's own steps; a reset's are worth nothing to any of them."""
    example = learner("train_ppo")
    import torch

    steps = example.ROLLOUT_STEPS
    rollout = example.Rollout.empty(3, 1)
    generator = torch.Generator().manual_seed(4)
    rollout.rewards.copy_(torch.rand(steps, 3, generator=generator))
    values = torch.rand(steps + 1, 3, generator=generator)
    rollout.terminations[5, 0] = rollout.truncations[9, 1] = True  # the third one goes on
    rollout.resets[6, 0] = rollout.resets[10, 1] = True
    actual = example.advantages_of(rollout, values)

    def due(step: int, index: int) -> float:
        total, weight = 0.0, 1.0
        for later in range(step, steps):
            following = 0.0 if rollout.terminations[later, index] else float(values[later + 1, index])
            error = float(rollout.rewards[later, index]) + example.GAMMA * following - float(values[later, index])
            total += weight * error
            weight *= example.GAMMA * example.GAE_LAMBDA
            if rollout.terminations[later, index] or rollout.truncations[later, index]:
                break
        return total

    for index in range(3):
        for step in range(steps):
            if not rollout.resets[step, index]:
                assert float(actual[step, index]) == pytest.approx(due(step, index), abs=1e-5)
