"""``rayvec doctor`` and the command line itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from world import child_environment

import rayvec
from rayvec.cli import doctor

pytest.importorskip("click", reason="the command line needs the extra cli")
from click.testing import CliRunner

from rayvec.cli.commands import cli


def test_every_line_says_what_it_means() -> None:
    """It looks at everything, and starts nothing (which the fixture of all tests looks at)."""
    ran = CliRunner().invoke(cli, ["doctor"])
    assert ran.exit_code == 0, ran.output
    facts = doctor.examine()
    for fact in facts:
        assert fact.value
        assert fact.meaning.endswith(".")
        assert fact.about in ran.output
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized() or fact.is_well


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """In both versions of cgroups."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor.cpu_quota(tmp_path) == quota


def test_the_memory_of_a_container(tmp_path: Path) -> None:
    """The bound of its cgroup, if that has one."""
    assert doctor.cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{3 * 2**20}\n")
    assert doctor.cgroup_memory(tmp_path) == 3 * 2**20
    assert doctor.memory_limit(3 * 2**20).value == "3 MiB (cgroup)"


def test_cores() -> None:
    """A quota below the cores is what 'auto' does not know of."""
    assert doctor.count_cores(4, 8, None).value == "4 usable of 8"
    assert doctor.count_cores(4, 8, None).is_well
    bounded = doctor.count_cores(4, 8, 1.5)
    assert not bounded.is_well
    assert "num_workers=1" in bounded.meaning
    assert not doctor.count_cores(1, 8, None).is_well


def test_limits() -> None:
    """Few descriptors and few processes are told with what to do."""
    assert doctor.open_files(float("inf"), float("inf")).is_well
    few = doctor.open_files(256, 4096)
    assert not few.is_well
    assert "some 36 workers; ulimit -n 4096" in few.meaning
    assert doctor.processes(30000, 30000).is_well
    assert not doctor.processes(100, 100).is_well
    assert doctor.open_files(None, None).value == "unknown here"


def test_little_shared_memory(tmp_path: Path) -> None:
    """A folder that is not there is no error."""
    assert not doctor.ray_store(tmp_path / "none").is_well


def test_threads() -> None:
    """One thread a worker is well; what is not set is as many as there are cores."""
    assert doctor.thread_variables({"OMP_NUM_THREADS": "1"}, 8).is_well
    unset = doctor.thread_variables({}, 8)
    assert not unset.is_well
    assert "64 in all for 8 cores" in unset.meaning


def test_start_methods() -> None:
    """What is not forked is pickled."""
    assert "no pickling" in doctor.start_methods(["fork", "spawn"], None).meaning
    assert "are pickled" in doctor.start_methods(["fork", "spawn"], "spawn").meaning


def test_a_cluster_that_answers_and_one_that_does_not() -> None:
    """An address is tried, and nothing is started or joined."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.ray_cluster({"RAY_ADDRESS": f"127.0.0.1:{port}"}).is_well
    gone = doctor.ray_cluster({"RAY_ADDRESS": f"127.0.0.1:{port}"})
    assert not gone.is_well
    assert "unset RAY_ADDRESS" in gone.meaning


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 0, "bench"),
        (["--version"], 0, rayvec.__version__),
        (["bench", "--help"], 0, "--num-envs"),
        (["bnch"], 2, "rayvec: no command 'bnch'; did you mean bench? (rayvec --help tells more)"),
        (["frobnicate"], 2, "there are bench, check, doctor"),
        (["doctor", "now"], 2, "unexpected extra argument"),
    ],
)
def test_the_command_itself(arguments: list[str], code: int, told: str) -> None:
    """Help, version and typing mistakes."""
    ran = CliRunner().invoke(cli, arguments, prog_name="rayvec")
    assert ran.exit_code == code
    assert told in ran.output


def test_what_to_install_is_told(tmp_path: Path) -> None:
    """Without the libraries that it prints with: one line, exit code 2, no traceback."""
    script = "import sys; sys.modules['rich'] = None; import rayvec.cli; rayvec.cli.main()"
    ran = subprocess.run(
        [sys.executable, "-c", script, "doctor"],
        capture_output=True,
        text=True,
        timeout=50,
        env=child_environment(),
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("rayvec: the command line needs rich")
    assert 'pip install "rayvec[cli]"' in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_as_a_module() -> None:
    """``python -m rayvec`` is the same."""
    ran = subprocess.run(
        [sys.executable, "-m", "rayvec", "--version"],
        capture_output=True,
        text=True,
        timeout=50,
        env=child_environment(),
    )
    assert ran.returncode == 0
    assert ran.stdout == f"rayvec, version {rayvec.__version__}\n"
