"""The benchmarks run, and say what they are meant to say; how fast anything is, no test can tell."""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from world import child_environment

import rayvec

pytest.importorskip("rich", reason="the benchmarks print with it")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ENGINES = {
    "bare loop",
    "Gymnasium sync",
    "Gymnasium async",
    "rayvec sync",
    "rayvec async, one process each",
    "rayvec async, a process a core",
    "rayvec async, with the caller",
    "rayvec auto",
}


def run(script: str, *arguments: str | Path, timeout: float = 55) -> subprocess.CompletedProcess[str]:
    """A benchmark, run as a user runs it; the package is found wherever the tests found it."""
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=child_environment(PYTHONIOENCODING="utf-8"),
    )


def test_it_measures_every_engine_and_writes_the_page(tmp_path: Path) -> None:
    """Tables, command, data, page and plot, in numbers that agree with each other; rows of an earlier run stay."""
    pytest.importorskip("matplotlib", reason="the plot is drawn with it")
    quick = ["--quick", "--rounds", "2", "--seconds", "0.01", "--out", str(tmp_path)]
    for arguments in (
        ["--only", "cartpole-8", "--contestants", *sorted(ENGINES - {"bare loop"}), *quick],
        ["--only", "busy-0", "busy-3", "busy-10", "--contestants", "rayvec sync", "rayvec async, with the caller", *quick],
    ):
        ran = run("run.py", *arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stderr == ""
        assert ran.stdout.splitlines()[-1] == shlex.join(["python", "benchmarks/run.py", *arguments])

    told = json.loads((tmp_path / "performance.json").read_text())
    assert told["circumstances"]["rayvec"] == rayvec.__version__
    assert list(told["rows"]) == ["cartpole-8", "busy-0", "busy-3", "busy-10"]
    cart_pole = told["rows"]["cartpole-8"]
    assert set(cart_pole["rates"]) == ENGINES
    assert all(len(rates) == 2 and min(rates) > 0 for rates in cart_pole["rates"].values())
    assert cart_pole["choice"].split(",")[0] in ("sync", "async")

    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    for name in (ENGINES - {"bare loop"}) | {"ideal: bare loop × cores"}:
        assert f"\n| {name} | " in page
    medians = {name: statistics.median(rates) for name, rates in cart_pole["rates"].items()}
    best = max(
        (name for name in ENGINES if name.startswith("rayvec") and name != "rayvec auto"), key=lambda name: medians[name]
    )
    rounds = zip(cart_pole["rates"][best], cart_pole["rates"]["bare loop"], strict=True)
    share = statistics.median(rate / (cart_pole["cores"] * bare) for rate, bare in rounds)
    assert f"| CartPole-v1 × 8 | best of rayvec ÷ ideal | ≥ 0.8 | {share:.2f} | " in page
    assert "| cartpole-64 | best of rayvec ÷ Gymnasium sync | ≥ 2 | not measured |  |" in page
    assert "(performance.png)" in page
    assert (tmp_path / "performance.png").stat().st_size > 10_000


def test_it_tells_where_the_time_goes(tmp_path: Path) -> None:
    """The parts that stopwatches find make up the whole, and each is something."""
    stopwatches = "rayvec async, with the caller and stopwatches"
    options = ["--only", "busy-20", "--contestants", stopwatches, "--rounds", "3", "--seconds", "0.05", "--out", str(tmp_path)]
    ran = run("run.py", *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    row = json.loads((tmp_path / "performance.json").read_text())["rows"]["busy-20"]
    assert len(row["parts"]) == 3
    for parts in row["parts"]:
        assert sum(parts.values()) == pytest.approx(1)
        assert 0 < parts["rows"] < parts["envs"] < 1
        assert 0 < parts["caller"] < 1
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    shares = [
        statistics.median(
            rate / (row["cores"] * bare) for rate, bare in zip(*(row["rates"][name] for name in row["rates"]), strict=True)
        ),
        statistics.median(parts["rows"] for parts in row["parts"]),
    ]
    (line,) = [
        line for line in page.splitlines() if line.startswith("| busy env, 20 µs a step × 64 | ") and line.count("%") == 5
    ]
    cells = line.split(" | ")
    assert [cells[1], cells[3]] == [f"{share:.0%}" for share in shares]


def test_it_compares_over_ray(tmp_path: Path) -> None:
    """A Ray of its own for each contestant that needs one."""
    name = "rayvec Ray, an actor a core"
    ran = run("run.py", "--quick", "--only", "ray-64", "--contestants", name, "--rounds", "1", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = json.loads((tmp_path / "performance.json").read_text())["rows"].values()
    assert set(row["rates"]) == {"bare loop", name}


def test_it_measures_where_which_engine_is_to_be_taken(tmp_path: Path) -> None:
    """Numbers for each square and a picture; a second run keeps the better of both, and draws all that is there."""
    pytest.importorskip("matplotlib", reason="the picture is drawn with it")
    quick = ["--numbers", "1", "4", "--rounds", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    ran = run("choosing.py", "--costs", "1", *quick)
    assert ran.returncode == 0, ran.stderr
    first = json.loads((tmp_path / "choosing.json").read_text())
    assert [(cell["cost"], cell["num_envs"]) for cell in first["cells"]] == [(1, 1), (1, 4)]
    assert [set(cell["rates"]) for cell in first["cells"]] == [
        {"bare", "sync", "a process each"},
        {"bare", "sync", "a process each", "workers + caller"} | ({"workers"} if first["cores"] < 4 else set()),
    ]
    ran = run("choosing.py", "--costs", "1", "50", *quick)
    assert ran.returncode == 0, ran.stderr
    second = json.loads((tmp_path / "choosing.json").read_text())
    assert len(second["cells"]) == 4
    assert second["loops_in_a_microsecond"] == first["loops_in_a_microsecond"] > 0
    for before, after in zip(first["cells"], second["cells"], strict=False):
        assert all(after["rates"][name] >= rate > 0 for name, rate in before["rates"].items())
    assert (tmp_path / "choosing.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["halfcheetah-16", "breakout-16", "wide-16"])
def test_rows_that_need_more_are_known(name: str) -> None:
    """Where what they step is not installed they are left out, and that is told; else they run."""
    ran = run("run.py", "--quick", "--only", name, "--contestants", "bare loop", "--rounds", "1", "--seconds", "0.01")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{name}: " in ran.stdout


def test_it_predicts_over_ray(tmp_path: Path) -> None:
    """Constants of a transport, and a prediction beside a measurement; how near they are, no test can tell."""
    file = tmp_path / "report.json"
    ran = run("cost_model.py", "--quick", "--json", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[-1] == f"python benchmarks/cost_model.py --quick --json {file}"
    report = json.loads(file.read_text())
    assert list(report["constants"]) == ["shared_memory"]
    assert max(report["constants"]["shared_memory"].values()) > 0
    (verdict,) = report["verdicts"]
    assert verdict["predicted"] > 0
    assert verdict["measured"] > 0
    assert " shared_memory " in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rounds", "0"], "--rounds: a whole number from 1 on is needed, not '0'"),
        (["--seconds", "inf"], "--seconds: a number above 0 is needed, not 'inf'"),
        (["--only", "cartpole-9"], "--only: there is no row 'cartpole-9'; there are cartpole-8, "),
        (["--contestants", "nobody"], "--contestants: there is no 'nobody'; there are bare loop, "),
        (["--out", "no/such/folder"], "--out: there is no folder"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], told: str) -> None:
    """Options that cannot be are named, before anything is measured."""
    ran = run("run.py", *arguments)
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
