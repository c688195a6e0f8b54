"""What every benchmark tells besides its figures, and how its options are read."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import rayvec
from rayvec.local.waiting import usable_cores

__all__ = ["circumstances", "command_of", "commit", "open_console", "positive", "positive_int"]


def commit() -> str:
    """The commit that is measured, with "+" where files have changed since; "unknown" outside of a repository."""
    here = Path(rayvec.__file__).parent
    try:
        head = _git("rev-parse", "--short", "HEAD", at=here)
        return head + ("+" if _git("status", "--porcelain", "--", ".", at=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str, at: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True).stdout.strip()


def circumstances() -> dict[str, str]:
    """The machine and the versions: rows that were measured under others cannot stand beside these."""
    packages = ["rayvec", "gymnasium", "numpy", "ray", "stable-baselines3", "tianshou", "envpool", "mujoco", "ale-py"]
    return {
        "processor": f"{processor()}, {usable_cores()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: version for name in packages if (version := version_of(name)) is not None},
    }


def processor() -> str:
    """Its name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def version_of(package: str) -> str | None:
    """Of a package that is installed."""
    if package == "rayvec":
        return rayvec.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def command_of(script: str, argv: Sequence[str] | None) -> str:
    """What to call to get the figures again."""
    return shlex.join(["python", f"benchmarks/{script}", *(sys.argv[1:] if argv is None else argv)])


def open_console() -> Console:
    """Standard output; 110 columns wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
    return value
