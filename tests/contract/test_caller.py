"""The end of the caller: however it comes, its workers go with it, without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from engines import Engine, each, named
from scripts import run_script, running_script
from world import descendants_of, wait_until_gone

from rayvec.testing import read_log, wait_for_path

METHODS = ["fork", "forkserver", "spawn"]

OPTIONS = {
    "fork": "context='fork'",
    "forkserver": "context='forkserver', num_workers=2",
    "spawn": "context='spawn', num_workers=2",
    "pipe": "context='fork', shared_memory=False",
    "caller": "context='fork', num_workers=2, step_in_caller=True",
    "not-daemon": "context='fork', daemon=False",
}
"""What AsyncVectorEnv is given in a script."""


def worker_pids(folder: Path) -> list[int]:
    """The processes in which a script's sub-envs were built."""
    return sorted({line.pid for line in read_log(folder / "log")})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("state", ["idle", "stepping", "starting"])
def test_killed(options: str, state: str, tmp_path: Path) -> None:
    """SIGKILL to the caller alone ends all its workers within 3 s, whatever they do; none prints anything."""
    if state == "starting" and options in ("pipe", "not-daemon", "caller"):
        pytest.skip("starting is the same as for fork")
    main = f"""
    if {state == "stepping"}:
        FNS[3] = partial(StubbornEnv, index=3, log=LOG, marker=FOLDER / "ready")
    if {state == "starting"}:
        FNS[3] = partial(StubbornEnv, on="init", index=3, log=LOG, marker=FOLDER / "ready")
    envs = rayvec.AsyncVectorEnv(FNS, {OPTIONS[options]})
    envs.reset()
    envs.step_async(ACTIONS)
    envs.step_wait()
    say("ready")
    time.sleep(60)
    """
    with running_script(tmp_path, main) as process:
        wait_for_path(tmp_path / "ready", 20)
        pids = [pid for pid in worker_pids(tmp_path) if pid != process.pid]
        pids += [found.pid for found in descendants_of(process.pid) if found.pid not in pids]
        assert pids
        process.kill()
        killed = time.monotonic()
        wait_until_gone(pids, 3)
        assert time.monotonic() - killed < 3
        _, stderr = process.communicate(timeout=5)
    if state != "starting":
        assert "Traceback" not in stderr


@pytest.mark.parametrize("num_descriptors", [0, 1030])
def test_killed_lets_envs_close(num_descriptors: int, tmp_path: Path) -> None:
    """Workers that can still close their sub-envs do so, also those of a caller with more descriptors than select takes."""
    main = f"""
    held = [os.dup(0) for _ in range({num_descriptors})]
    envs = rayvec.AsyncVectorEnv(FNS)
    envs.reset()
    say("ready")
    time.sleep(60)
    """
    with running_script(tmp_path, main) as process:
        wait_for_path(tmp_path / "ready", 20)
        pids = worker_pids(tmp_path)
        process.kill()
        wait_until_gone(pids, 3)
    assert sorted(line.env_index for line in read_log(tmp_path / "log") if line.event == "closed") == [0, 1, 2, 3]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("state", ["idle", "stepping"])
def test_interrupted(options: str, state: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the caller alone: it closes in peace, and no child prints a traceback."""
    main = f"""
    if {state == "stepping"}:
        FNS[3] = partial(GateEnv, FOLDER / "gate", at=2, index=3, log=LOG)
    envs = rayvec.AsyncVectorEnv(FNS, {OPTIONS[options]})
    try:
        envs.reset()
        envs.step(ACTIONS)
        if {state == "stepping"}:
            envs.step_async(ACTIONS)
            say("ready")
            envs.step_wait()
        else:
            say("ready")
            # A signal may be delivered to a thread of NumPy's: it does not wake a long sleep of the main thread then.
            while True:
                time.sleep(0.01)
    except KeyboardInterrupt:
        print("interrupted")
    envs.close(timeout=0.5)
    print("closed")
    """
    with running_script(tmp_path, main) as process:
        wait_for_path(tmp_path / "ready", 20)
        if state == "stepping":
            wait_for_path(tmp_path / "gate.entered", 20)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
        assert stdout.split() == ["interrupted", "closed"]
        assert stderr == ""
        assert process.returncode == 0
    wait_until_gone(worker_pids(tmp_path), 1)


@pytest.mark.parametrize("options", ["fork", "caller", "spawn"])
def test_goes_on_after_an_interrupted_step(options: str, tmp_path: Path) -> None:
    """After Ctrl-C in step_wait the step is still pending, or a reset is asked for; either way it can go on."""
    main = f"""
    FNS[3] = partial(GateEnv, FOLDER / "gate", at=2, index=3, log=LOG)
    envs = rayvec.AsyncVectorEnv(FNS, {OPTIONS[options]})
    envs.reset(seed=1)
    envs.step(ACTIONS)
    try:
        envs.step_async(ACTIONS)
        say("ready")
        envs.step_wait()
    except KeyboardInterrupt:
        print("interrupted")
    (FOLDER / "gate").touch()
    observations, *_ = envs.step_wait()
    print(*observations[:, 3])
    observations, *_ = envs.step(ACTIONS)
    print(*observations[:, 3])
    envs.close()
    """
    with running_script(tmp_path, main) as process:
        wait_for_path(tmp_path / "ready", 20)
        wait_for_path(tmp_path / "gate.entered", 20)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)
    assert stderr == ""
    assert stdout.split() == ["interrupted", *"2222", *"3333"]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("end", ["exception", "no close", "sys.exit", "pending", "stuck"])
def test_script_ends(options: str, end: str, tmp_path: Path) -> None:
    """A script that ends without close(), by an exception or otherwise, ends soon, and so do its workers."""
    if options in ("forkserver", "spawn") and end in ("sys.exit", "pending"):
        pytest.skip("the way it was started has nothing to do with this")
    main = f"""
    if {end == "stuck"}:
        FNS[3] = partial(StubbornEnv, index=3, log=LOG, marker=FOLDER / "ready")
    envs = rayvec.AsyncVectorEnv(FNS, {OPTIONS[options]})
    envs.reset()
    if {end in ("pending", "stuck")}:
        envs.step_async(ACTIONS)
        if {end == "stuck"}:
            while not (FOLDER / "ready").exists():
                time.sleep(0.01)
    (FOLDER / "ending").write_text(str(time.time()))
    if {end == "exception"}:
        raise RuntimeError("the script's own")
    if {end == "sys.exit"}:
        sys.exit(4)
    """
    ended = run_script(tmp_path, main)
    taken = time.time() - float((tmp_path / "ending").read_text())
    assert taken < 4.0
    assert ended.returncode == {"exception": 1, "sys.exit": 4}.get(end, 0)
    if end == "exception":
        assert ended.stderr.count("Traceback") == 1
        assert ended.stderr.rstrip().endswith("RuntimeError: the script's own")
    else:
        assert ended.stderr == ""
    wait_until_gone(worker_pids(tmp_path), 1)


def test_script_ends_with_a_vector_env_in_a_global_cycle(tmp_path: Path) -> None:
    """References that live until the interpreter goes do no harm."""
    main = """
    envs = rayvec.AsyncVectorEnv(FNS)
    envs.myself = envs
    sys.kept = [envs]
    envs.reset()
    """
    ended = run_script(tmp_path, main)
    assert (ended.returncode, ended.stderr) == (0, "")
    wait_until_gone(worker_pids(tmp_path), 1)


@pytest.mark.parametrize("how", ["os._exit", "sys.exit"])
def test_forked_child_of_the_caller_exits(how: str, tmp_path: Path) -> None:
    """A child that the script forks, and that ends in either way, leaves the workers to the script."""
    main = f"""
    envs = rayvec.AsyncVectorEnv(FNS)
    envs.reset(seed=1)
    envs.step(ACTIONS)
    child = os.fork()
    if not child:
        if {how == "os._exit"}:
            os._exit(0)
        sys.exit(0)
    os.waitpid(child, 0)
    print(*envs.step(ACTIONS)[0][:, 3])
    envs.close()
    """
    ended = run_script(tmp_path, main)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [*"2222"]


def test_killed_while_a_forked_child_lives_on(tmp_path: Path) -> None:
    """A child of the caller that has inherited its descriptors does not keep the workers alive."""
    main = """
    envs = rayvec.AsyncVectorEnv(FNS)
    envs.reset(seed=1)
    if not os.fork():
        (FOLDER / "child").write_text(str(os.getpid()))
        say("ready")
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
    """
    with running_script(tmp_path, main) as process:
        wait_for_path(tmp_path / "ready", 20)
        pids = worker_pids(tmp_path)
        process.kill()
        wait_until_gone(pids, 3)
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_terminated_while_the_script_handles_sigterm(tmp_path: Path) -> None:
    """A handler that the script has for SIGTERM does not keep its workers from being ended by it."""
    main = """
    signal.signal(signal.SIGTERM, lambda *_: print("never in a worker", flush=True))
    FNS[3] = partial(GateEnv, FOLDER / "gate", index=3, log=LOG)
    envs = rayvec.AsyncVectorEnv(FNS)
    envs.reset()
    envs.step_async(ACTIONS)
    begin = time.monotonic()
    envs.close(timeout=0.2)
    print(time.monotonic() - begin < 1.2)
    """
    ended = run_script(tmp_path, main)
    assert (ended.returncode, ended.stderr, ended.stdout.split()) == (0, "", ["True"])


@each(named("async-spawn", "async-forkserver"))
def test_script_without_a_guard(engine: Engine, tmp_path: Path) -> None:
    """A script that builds its vector env at module level under spawn is told what to do about it, and ends."""
    options = OPTIONS[str(engine.start_method)]
    top = f"""
    envs = rayvec.AsyncVectorEnv(FNS, {options})
    envs.reset()
    envs.close()
    """
    ended: subprocess.CompletedProcess[str] = run_script(tmp_path, "pass", top)
    assert ended.returncode != 0
    assert "__main__" in ended.stderr
