"""The benchmarks run, and say what they are meant to say; how fast anything is, no test can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rayvec

pytest.importorskip("rich", reason="the benchmarks print with it")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ENGINES = [
    "Gymnasium sync",
    "Gymnasium async",
    "rayvec sync",
    "rayvec async",
    "rayvec async, 2 workers",
    "rayvec async, 1 worker + caller",
    "ideal: bare loop x cores",
]
OVER_RAY = {
    "AsyncVectorEnv, 2 workers": 4,
    "RayVectorEnv, 2 actors": 4,
    "RayVectorEnv, 2 actors, object store": 4,
    "RayVectorEnv, an actor each": 1,
    "plain actor calls, 1 an env": 1,
    "ideal: bare loop x cores": 4,
}


def run(script: str, *arguments: str | Path, timeout: float = 55) -> subprocess.CompletedProcess[str]:
    """A benchmark, run as a user runs it; the package is found wherever the tests found it."""
    paths = os.pathsep.join([str(Path(rayvec.__file__).parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
    )


def test_it_measures_every_engine_and_tells(tmp_path: Path) -> None:
    """Tables, command and file hold every engine, in numbers that agree with each other."""
    file = tmp_path / "report.json"
    arguments = ["--quick", "--num-envs", "2", "3", "--rounds", "2", "--seconds", "0.01", "--step-cost", "20"]
    ran = run("compare_engines.py", *arguments, "--json", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""

    scenarios = [(env, n) for env in ["CartPole-v1", "busy env, 20 µs a step"] for n in [2, 3]]
    for env, num_envs in scenarios:
        assert f"{env}, {num_envs} envs" in ran.stdout
    for name in ENGINES:
        assert ran.stdout.count(f" {name} ") == len(scenarios)
    command = f"python benchmarks/compare_engines.py {' '.join(arguments)} --json {file}"
    assert ran.stdout.splitlines()[-1] == command

    report = json.loads(file.read_text())
    assert report["circumstances"]["command"] == command
    assert report["circumstances"]["rayvec"] == rayvec.__version__
    assert report["settings"] == {"rounds": 2, "seconds": 0.01, "step_cost": 20.0}
    assert [(result["env"], result["num_envs"]) for result in report["results"]] == scenarios
    for result in report["results"]:
        rows: dict[str, Any] = {row["engine"]: row for row in result["rows"]}
        assert list(rows) == ENGINES
        for row in rows.values():
            assert len(row["rates"]) == 2
            assert min(row["rates"]) > 0
            assert min(row["rates"]) <= row["median"] <= max(row["rates"])
        assert rows["Gymnasium sync"]["to_sync"] == 1
        assert rows["Gymnasium async"]["to_async"] == 1
        assert rows["ideal: bare loop x cores"]["of_ideal"] == 1


def test_it_compares_over_ray(tmp_path: Path) -> None:
    """Table and file hold every way to step in actors, in numbers that agree with each other."""
    file = tmp_path / "report.json"
    arguments = ["--num-envs", "4", "--num-alone", "1", "--rounds", "2", "--seconds", "0.02"]
    ran = run("compare_ray.py", *arguments, "--json", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    for name in OVER_RAY:
        assert f" {name} " in ran.stdout
    assert "Ray itself started in " in ran.stdout

    report = json.loads(file.read_text())
    assert report["circumstances"]["command"] == ran.stdout.splitlines()[-1]
    rows: dict[str, Any] = {row["engine"]: row for row in report["rows"]}
    assert {name: row["num_envs"] for name, row in rows.items()} == OVER_RAY
    for row in rows.values():
        assert len(row["rates"]) == 2
        assert 0 < min(row["rates"]) <= row["median"] <= max(row["rates"])
    assert rows["plain actor calls, 1 an env"]["to_plain"] == 1
    assert rows["AsyncVectorEnv, 2 workers"]["to_local"] == 1


def test_it_predicts_over_ray(tmp_path: Path) -> None:
    """Constants of a transport, and a prediction beside a measurement; how near they are, no test can tell."""
    file = tmp_path / "report.json"
    ran = run("cost_model.py", "--quick", "--json", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[-1] == f"python benchmarks/cost_model.py --quick --json {file}"
    report = json.loads(file.read_text())
    assert list(report["constants"]) == ["shared_memory"]
    assert report["constants"]["shared_memory"]["round_trip"] > 0
    (verdict,) = report["verdicts"]
    assert verdict["predicted"] > 0
    assert verdict["measured"] > 0
    assert " shared_memory " in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-envs", "0"], "--num-envs: a whole number from 1 on is needed, not '0'"),
        (["--step-cost", "inf"], "--step-cost: a number above 0 is needed, not 'inf'"),
        (["--json", "no/such/folder/report.json"], "--json: there is no folder"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], told: str) -> None:
    """Options that cannot be are named, before anything is measured."""
    ran = run("compare_engines.py", *arguments)
    assert ran.returncode == 2
    assert told in ran.stderr
    assert ran.stdout == ""


@pytest.mark.timeout(240)
def test_a_minute_of_the_soak(tmp_path: Path) -> None:
    """Nothing wrong, nothing left, nothing grown on any engine, after trouble of each kind."""
    file = tmp_path / "report.json"
    ran = run("soak.py", "--seconds", "60", "--json", file, timeout=220)
    assert file.exists(), ran.stdout + ran.stderr
    report = json.loads(file.read_text())
    assert [fault for fault in report["faults"] if "a step took" not in fault] == [], ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert len(report["engines"]) == 5
    for engine in report["engines"]:
        assert engine["steps"] > 0
        assert engine["restarts"] > 0
        assert engine["reasons"].keys() <= {"raised", "died", "stuck"}
    assert {kind for engine in report["engines"] for kind in engine["reasons"]} == {"raised", "died", "stuck"}
