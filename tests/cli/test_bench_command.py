"""``rayvec bench``: what is tried, how it is measured, what it advises; never how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import bad_envs
import pytest
from world import child_environment, descendants_of, wait_until, wait_until_gone

import rayvec
from rayvec.cli.bench import ENGINES, Report, Row, advise, chosen, measure
from rayvec.cli.targets import Target, TargetError, find_target

pytest.importorskip("click", reason="the command line needs the extra cli")
from click.testing import CliRunner

from rayvec.cli.commands import cli

SHORT = ["--num-envs", "3", "--seconds", "0.06"]


def run(*arguments: str) -> Any:
    """The command, in this process."""
    return CliRunner().invoke(cli, ["bench", *arguments])


def names(num_envs: int, cores: int) -> list[str]:
    """Keys of what is tried."""
    return [engine.key for engine in chosen(None, num_envs, cores)[0]]


def test_what_is_worth_trying() -> None:
    """Neither twins, nor hundreds of processes, nor Ray, unless they are asked for."""
    both = ["gymnasium-sync", "gymnasium-async"]
    assert names(16, cores=2) == [*both, "sync", "async", "async-2", "async-caller"]
    assert names(16, cores=8) == [*both, "sync", "async", "async-2", "async-auto", "async-caller"]
    assert names(1, cores=2) == [*both, "sync", "async"]
    assert names(500, cores=2) == ["gymnasium-sync", "sync", "async-2", "async-caller"]
    engines, left_out = chosen(["ray", "async"], 500, 2)
    assert [engine.key for engine in engines] == [*both, "async", "ray"]
    assert left_out == {}


def test_it_measures_and_tells(tmp_path: Path) -> None:
    """Screen and file hold every engine, in numbers that agree with each other."""
    file = tmp_path / "report.json"
    ran = run("CartPole-v1", *SHORT, "--json", str(file))
    assert ran.exit_code == 0, ran.output
    assert "CartPole-v1, 3 sub-envs" in ran.output
    report = json.loads(file.read_text())
    assert [row["key"] for row in report["rows"]] == names(3, report["cores"])
    for row in report["rows"]:
        assert f" {row['engine']} " in ran.output
        assert row["failure"] == ""
        assert 0 < min(row["rates"]) <= row["median"] <= max(row["rates"])
    assert report["rows"][0]["to_sync"] == report["rows"][1]["to_async"] == 1
    assert report["ideal"] == report["bare"] * report["cores"]
    assert report["circumstances"]["rayvec"] == rayvec.__version__
    names_told: dict[str, Any] = {}
    exec(report["code"], names_told)
    assert names_told["envs"].num_envs == 3
    names_told["envs"].close()


def test_it_draws(tmp_path: Path) -> None:
    """A picture of what was measured; in a process of its own, since Matplotlib keeps its fonts open."""
    pytest.importorskip("matplotlib", reason="plots need it")
    picture = tmp_path / "plot.png"
    arguments = ["CartPole-v1", *SHORT, "--engines", "sync", "--plot", str(picture)]
    subprocess.run([sys.executable, "-m", "rayvec", "bench", *arguments], timeout=50, check=True, env=child_environment())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["sync", "async", "async-2", "async-auto", "async-caller"])
@pytest.mark.parametrize(("name", "kwargs"), [("CartPole-v1", {}), ("bad_envs:SoundEnv", {"size": 2}), ("bad_envs:sound", {})])
def test_the_code_makes_what_was_measured(key: str, name: str, kwargs: dict[str, Any]) -> None:
    """The Python of the advice runs and makes that engine, with the env's arguments."""
    target = find_target(name, kwargs)
    rows = (Row(key, ENGINES[key].name, (2.0,), 2.0, 0.0, 0.5, 1.5, 2.5),)
    line, code = advise(Report(name, 2, 2, 2.0, rows, {}), target)
    assert "1.5 times Gymnasium's sync and 2.5 times Gymnasium's async" in line
    told: dict[str, Any] = {}
    exec(code, told)
    envs = told["envs"]
    try:
        assert isinstance(envs, rayvec.SyncVectorEnv if key == "sync" else rayvec.AsyncVectorEnv)
        if kwargs:
            assert envs.get_attr("size") == (2, 2)
    finally:
        envs.close()


def test_the_simplest_of_equals_is_advised() -> None:
    """A few in a hundred are not worth a process; Gymnasium's are what it is compared with."""
    rows = (
        Row("gymnasium-sync", "Gymnasium sync", (9.0,), 9.0, of_ideal=0.9, to_sync=1.0),
        Row("sync", "rayvec sync", (4.9,), 4.9, of_ideal=0.49, to_sync=0.5),
        Row("async-2", "rayvec async, num_workers=2", (5.0,), 5.0, of_ideal=0.5, to_sync=0.51),
    )
    line, code = advise(Report("CartPole-v1", 4, 2, 5.0, rows, {}), find_target("CartPole-v1", {}))
    assert line.startswith("Use rayvec sync: ")
    assert 'vectorization_mode="sync"' in code


@pytest.mark.parametrize(
    ("env_fn", "told"), [(bad_envs.RaisesInWorker, "no display"), (bad_envs.RaisesLater, "lost the display")]
)
def test_an_engine_that_cannot_is_told_and_the_others_go_on(env_fn: Any, told: str) -> None:
    """Whether it fails at the start or in the midst of the rounds."""
    engines, _ = chosen(["sync", "async-2"], 3, 2)
    report = measure(Target("env", env_fn), 3, engines, 0.06)
    rows = {row.key: row for row in report.rows}
    assert list(rows) == ["gymnasium-sync", "gymnasium-async", "sync", "async-2"]
    for key in ("gymnasium-async", "async-2"):
        assert rows[key].failure
        assert rows[key].rates == ()
    assert told in rows["async-2"].failure  # Gymnasium's may say no more than that a pipe was closed
    for key in ("gymnasium-sync", "sync"):
        assert rows[key].failure == ""
        assert rows[key].to_sync is not None
        assert rows[key].to_async is None


def test_an_env_that_raises_everywhere_is_an_error() -> None:
    """One line, with the command that looks for the reason."""
    ran = run("bad_envs:Raises", *SHORT, "--engines", "sync")
    assert ran.exit_code == 2
    assert (
        ran.stderr
        == "rayvec: bad_envs:Raises raised RuntimeError: off the edge; rayvec check bad_envs:Raises looks for what is wrong\n"
    )


def test_interrupted_between_rounds_all_is_closed() -> None:
    """What was built is gone (which the fixture of all tests looks at), and the interrupt goes on."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Target("env", bad_envs.SoundEnv), 3, chosen(None, 3, 2)[0], 0.06, on_round=interrupt)


def test_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    """Pressed in a terminal, where every process gets it: no traceback, no process left, exit code 130."""
    marker = tmp_path / "stepped"
    process = subprocess.Popen(
        [sys.executable, "-m", "rayvec", "bench", "bad_envs:TellsOfSteps", "-k", f"path={marker}", "--seconds", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(Path(__file__).parent),
        start_new_session=True,
    )
    with process:
        wait_until(marker.exists, "envs are stepped", 40)
        workers = [worker.pid for worker in descendants_of(process.pid)]
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, output + errors
    # In a line of its own, below the ^C that a terminal shows.
    assert errors == "\nrayvec: interrupted; every env that was built has been closed\n"
    assert len(workers) > 16
    wait_until_gone(workers, 3)


@pytest.mark.ray
def test_ray_is_measured_when_asked_for(tmp_path: Path) -> None:
    """Beside the baselines, over the cluster that runs."""
    file = tmp_path / "report.json"
    ran = run("CartPole-v1", *SHORT, "--engines", "ray", "--json", str(file))
    assert ran.exit_code == 0, ran.output
    rows = json.loads(file.read_text())["rows"]
    assert [row["key"] for row in rows] == ["gymnasium-sync", "gymnasium-async", "ray"]
    assert rows[-1]["failure"] == ""
    assert 'vectorization_mode="ray"' in ran.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["CartPol-v1"], "Did you mean: `CartPole`?"),
        (["CartPole-v7"], "CartPole"),
        (["ALE/Pong-v5"], "pip install ale-py, then ask for ale_py:ALE/Pong-v5"),
        (["Whatever/Env-v0"], "module:Env-v0"),
        (
            ["no_such_module:Env-v0"],
            "there is no module 'no_such_module': pip install no-such-module, or run where no_such_module.py",
        ),
        (["bad_envs:no_such"], "module 'bad_envs' has no function or class 'no_such'"),
        (["bad_envs:SoundEmv"], "registers no such id; did you mean bad_envs:SoundEnv?"),
        (["bad_envs:no_env"], "bad_envs:no_env gives a int; a function that returns a gymnasium.Env is needed"),
        (["bad_envs:LacksDependency"], 'engine3d is not installed, run `pip install "engine3d"`'),
        (["bad_envs:LacksModule"], "pip install engine3d"),
        (["bad_envs:SoundEnv", "-k", "sise=3"], "cannot be built with sise (-k, --env-kwargs)"),
        (["CartPole-v1", "-k", "size"], "-k: key=value is needed, such as size=3, not 'size'"),
        (["CartPole-v1", "--env-kwargs", "{size: 3}"], "--env-kwargs: a JSON object is needed"),
        (["CartPole-v1", "--env-kwargs", "[3]"], "--env-kwargs: a JSON object is needed"),
        (["CartPole-v1", "--engines", "asinc"], "no engine 'asinc'; did you mean async?"),
        (["CartPole-v1", "--num-envs", "0"], "Invalid value for '--num-envs'"),
        (["CartPole-v1", "--seconds", "0"], "Invalid value for '--seconds'"),
        (["CartPole-v1", "--plot", "no/such/folder/a.png"], "there is no folder"),
        (["CartPole-v1", "--plot", "a.zip"], "cannot draw a '.zip'; use .png or .pdf or .svg"),
        (["CartPole-v1", "--json", "."], "is a folder"),
        ([], "Missing argument 'ID'"),
        (["CartPole-v1", "--num-env", "3"], "--num-envs"),
    ],
)
def test_wrong_input_is_told_in_a_line(arguments: list[str], told: str) -> None:
    """What is wrong and what to do, before anything is measured; exit code 2."""
    ran = run(*arguments)
    assert ran.exit_code == 2, ran.output
    assert told in ran.stderr
    assert ran.stderr.startswith("rayvec: ")
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""


def test_arguments_of_the_env() -> None:
    """JSON, pairs, and Python's own words; a pair goes before the object."""
    from rayvec.cli.targets import parse_kwargs

    given = parse_kwargs('{"a": [1], "b": 2}', ("b=3", "c=True", "d=human", "e=null", "f=1.5", "g=a=b"))
    assert given == {"a": [1], "b": 3, "c": True, "d": "human", "e": None, "f": 1.5, "g": "a=b"}


def test_an_id_of_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the current folder is imported, registers its env, and is named in what is told."""
    (tmp_path / "arcade_of_mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
        "def broken():\n    import there_is_none_of_this\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    target = find_target("arcade_of_mine:Mine-v0", {})
    env = target.env_fn()
    assert env.spec is not None
    assert env.spec.id == "Mine-v0"
    env.close()
    with pytest.raises(TargetError, match="pip install there-is-none-of-this"):
        measure(find_target("arcade_of_mine:broken", {}), 1, [], 0.1)
