"""Every Python block of every page runs, and the figures show what the engines do.

Blocks of a page run in order as one program, so a later one may use what an earlier one has made. A comment before a block
names what it needs beyond rayvec and its tests, and blocks with the same needs are a program of their own::

    <!-- needs: torch, stable_baselines3 -->

Modules that are not installed skip it. The word ``cluster`` gives it the Ray cluster of the tests: two nodes of three CPUs
each, one of which other tests may hold.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clusters import address_of_cluster
from engines import ONE_EACH, Engine, each
from gymnasium.vector import AutoresetMode
from world import child_environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- needs: (?P<needs>[^\n]+) -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


_LIMIT = 150
"""Seconds for the slowest program. Most take two; one that starts RLlib, which only some environments have, a minute."""


class Program(NamedTuple):
    """Blocks of a page that run together.

    Attributes:
        page: where they are.
        needs: modules, or ``cluster``.
        code: theirs, each line with the number that it has in the page.
    """

    page: Path
    needs: tuple[str, ...]
    code: str

    @property
    def id(self) -> str:
        """For test ids."""
        return "-".join([self.page.stem.lower(), *self.needs])

    @property
    def lacks(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if name != "cluster" and importlib.util.find_spec(name) is None]


def programs_of(page: Path) -> list[Program]:
    """Those of a page, by their needs."""
    text = page.read_text(encoding="utf-8")
    lines: dict[tuple[str, ...], list[str]] = {}
    for block in BLOCK.finditer(text):
        needs = tuple(block["needs"].split(", ")) if block["needs"] else ()
        program = lines.setdefault(needs, [])
        program += [""] * (text.count("\n", 0, block.start("code")) - len(program))
        program += block["code"].splitlines()
    return [Program(page, needs, "\n".join(code) + "\n") for needs, code in lines.items()]


def run(program: Program, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it as a script of a user's."""
    script = folder / f"{program.page.stem.lower()}.py"
    script.write_text(program.code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=child_environment(**{"PYTHONIOENCODING": "utf-8", "MPLBACKEND": "agg", **environment}),
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )


PROGRAMS = [program for page in PAGES for program in programs_of(page)]


@pytest.mark.timeout(_LIMIT + 10)
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=program.id, marks=[pytest.mark.ray] if "cluster" in program.needs else [])
        for program in PROGRAMS
    ],
)
def test_blocks_run(program: Program, tmp_path: Path) -> None:
    """As they stand in the page, one after the other."""
    if program.lacks:
        pytest.skip(f"needs {' and '.join(program.lacks)}")
    environment = {"RAY_ADDRESS": address_of_cluster()} if "cluster" in program.needs else {}
    ran = run(program, tmp_path, **environment)
    assert ran.returncode == 0, f"{program.page.name} (lines as in the page)\n{ran.stderr[-4000:]}"


def test_no_block_is_passed_over() -> None:
    """Each fence that says Python is one that the tests run."""
    for page in PAGES:
        fences = re.findall(r"^ *```py.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(BLOCK.findall(page.read_text(encoding="utf-8"))), page.name
    assert len(PROGRAMS) >= 6


def test_a_block_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    """Else the other tests could not fail."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```python\nvalue = 1\n```\n\ntext\n\n```python\nvalue += 1\nraise RuntimeError(value)\n```\n"
        "<!-- needs: no_such_module -->\n```python\nfine = True\n```\n"
    )
    failing, lacking = programs_of(page)
    ran = run(failing, tmp_path)
    assert ran.returncode == 1
    assert 'page.py", line 11' in ran.stderr
    assert "RuntimeError: 2" in ran.stderr
    assert lacking.lacks == ["no_such_module"]


def _figures() -> Any:
    # Not entered into sys.modules, so that its env is pickled by value, and found in Ray actors too.
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    return figures


@each(ONE_EACH)
@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.name.lower())
def test_figures_show_what_engines_return(engine: Engine, mode: AutoresetMode) -> None:
    """Cell by cell, the same from each engine as in the page."""
    figures = _figures()
    assert figures.draw(figures.story(engine.make, mode)) == figures.file_of(mode).read_text()
