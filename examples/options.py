"""What the command lines of the examples have in common: nothing here has to do with envs."""

from __future__ import annotations

import argparse
import math

__all__ = ["add_engine_options", "check_engine_options", "natural", "number", "positive"]


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 on."""
    return 0 if text == "0" else positive(text)


def number(text: str) -> float:
    """A number that something can reach."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a number is needed, not {text!r}")
    return value


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Which engine a learner steps its sub-envs with."""
    add = parser.add_argument
    add("--vectorization-mode", choices=["sync", "async", "ray"], default="async", help="the engine (default: async)")
    add("--num-envs", type=positive, default=8, metavar="N", help="sub-envs (default: %(default)s)")
    add("--num-workers", type=positive, metavar="N", help="processes or actors (default: 2, or 1 for a single sub-env)")


def check_engine_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where they do not go together."""
    if options.vectorization_mode == "sync" and options.num_workers is not None:
        parser.error("--num-workers needs --vectorization-mode async or ray: the sync engine has no workers")
    if options.num_workers is not None and options.num_workers > options.num_envs:
        parser.error(f"--num-workers: {options.num_workers} workers cannot share {options.num_envs} sub-envs")
