"""Scripts that are run as processes of their own: callers that are killed, interrupted, or end without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rayvec

__all__ = ["PRELUDE", "run_script", "running_script"]

PRELUDE = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
import numpy as np
import rayvec
from rayvec.testing import CountingEnv, GateEnv, RaisingEnv, SlowEnv, StubbornEnv

FOLDER = Path(sys.argv[1])
LOG = FOLDER / "log"
ACTIONS = np.zeros(4, np.int64)
FNS = [partial(CountingEnv, index=index, log=LOG) for index in range(4)]

def say(name):
    draft = FOLDER / f"{name}.draft"
    draft.touch()
    draft.replace(FOLDER / name)
"""
"""What every script begins with; its main code follows, indented, under ``if __name__ == "__main__"``."""


def _written(folder: Path, main: str, top: str) -> Path:
    script = folder / "script.py"
    body = textwrap.indent(textwrap.dedent(main).strip(), "    ")
    script.write_text(f'{PRELUDE}\n{textwrap.dedent(top)}\n\nif __name__ == "__main__":\n{body}\n')
    return script


@contextmanager
def running_script(folder: Path, main: str, top: str = "") -> Iterator[subprocess.Popen[str]]:
    """A script in a session of its own, while it runs; it is killed at the end if it still does.

    Args:
        folder: where it and what it writes go.
        main: its main code.
        top: code before that, at module level.
    """
    path = os.pathsep.join([str(Path(rayvec.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(_written(folder, main, top)), str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def run_script(folder: Path, main: str, top: str = "", timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end.

    Raises:
        subprocess.TimeoutExpired: it has no end in time.
    """
    with running_script(folder, main, top) as process:
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
