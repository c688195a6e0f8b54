"""The command line: ``rayvec bench``, ``rayvec check`` and ``rayvec doctor``.

::

    commands.py   what is typed, and what is printed when      (click)
        │
        ├── targets.py    "CartPole-v1", "module:Env-v0", "module:function"  ──▶ a function that makes an env
        ├── bench.py      measures            ─┐
        ├── check.py      judges, by probes.py ├─▶ plain values ──▶ screens.py (rich), plot.py (matplotlib), JSON
        └── doctor.py     looks around        ─┘

Importing this package imports none of the libraries that it prints with: :func:`main` says what to install where they are
missing.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_PRINTS_WITH = ("click", "rich")


def main() -> None:
    """The command ``rayvec``; ends the process with its exit code."""
    try:
        from rayvec.cli.commands import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _PRINTS_WITH:
            raise
        print(f'rayvec: the command line needs {error.name}; run: pip install "rayvec[cli]"', file=sys.stderr)
        sys.exit(2)
    cli(prog_name="rayvec")
