"""``rayvec check``: findings reach the screen and the exit code; engines are compared where that means something."""

from __future__ import annotations

from typing import Any

import bad_envs
import pytest

pytest.importorskip("click", reason="the command line needs the extra cli")
from click.testing import CliRunner

from rayvec.cli.check import ENGINES, check
from rayvec.cli.commands import cli
from rayvec.cli.probes import PROBES
from rayvec.cli.targets import Target

LOCAL = "sync,async,async-2,async-caller,async-pipe"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for several episodes of the envs here."""
    monkeypatch.setattr("rayvec.cli.check._MOST_STEPS", 40)


def run(*arguments: str) -> Any:
    """The command, in this process."""
    return CliRunner().invoke(cli, ["check", *arguments])


def skipped(report: Any) -> dict[str, str]:
    """Why engines were left out."""
    return {outcome.about.partition(" ")[0]: outcome.skipped for outcome in report.outcomes if outcome.skipped}


@pytest.mark.parametrize("name", ["CartPole-v1", "bad_envs:SoundEnv"])
def test_a_sound_env_passes(name: str) -> None:
    """Exit code 0, and every line says so."""
    ran = run(name, "--engines", LOCAL)
    assert ran.exit_code == 0, ran.output
    assert "No findings" in ran.output
    assert ran.output.count("as a plain loop") == 5


def test_it_is_sent_into_a_new_process() -> None:
    """Over spawn too, where nothing is inherited."""
    assert check(Target("env", bad_envs.SoundEnv), ["async-spawn"]).findings == []


@pytest.mark.ray
def test_it_is_sent_to_actors() -> None:
    """Over Ray too, and that is tried unless other engines are asked for."""
    assert "ray" in ENGINES
    assert run("CartPole-v1", "--engines", "ray").exit_code == 0


def test_findings_are_told_with_remedies() -> None:
    """Exit code 1; what, then, mend."""
    ran = run("bad_envs:ReusesBuffer", "--engines", "sync,async-2")
    assert ran.exit_code == 1, ran.output
    assert "1. reuses its observation buffer" in ran.output
    assert "return self.buffer.copy()" in ran.output
    assert "1 finding." in ran.output
    assert "skipped" not in ran.output


def test_a_fault_that_several_probes_meet_is_told_once() -> None:
    """An env that raises is met by nearly all of them."""
    report = check(Target("env", bad_envs.Raises), ["sync"])
    assert [finding.name for finding in report.findings] == ["raises"]
    assert "off the edge" in report.findings[0].what
    assert skipped(report) == {"sync": "because of: raises"}


def test_engines_are_not_blamed_for_what_is_known() -> None:
    """An env that chance decides is compared nowhere; one that cannot be pickled, where it need not be."""
    report = check(Target("env", bad_envs.Undecided), ["sync", "async"])
    assert [finding.name for finding in report.findings] == ["not decided by its seed"]
    assert list(skipped(report)) == ["sync", "async"]
    report = check(Target("env", bad_envs.with_lock()), ["async", "async-spawn", "ray"])
    assert [finding.name for finding in report.findings] == ["not picklable"]
    assert skipped(report) == dict.fromkeys(["async-spawn", "ray"], "because of: not picklable")


def test_an_env_that_depends_on_its_process_is_a_finding() -> None:
    """What no probe can see, the comparison over the engines does."""
    report = check(Target("env", bad_envs.DiffersInProcess), ["sync", "async-2"])
    assert [finding.name for finding in report.findings] == ["differs in async-2"]
    assert "observations" in report.findings[0].what


def test_all_that_is_tried_is_told() -> None:
    """One line for each probe and engine."""
    started: list[str] = []
    report = check(Target("env", bad_envs.SoundEnv), ["sync"], started.append)
    assert started == [outcome.about for outcome in report.outcomes]
    assert len(started) == len(PROBES) + 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["CartPol-v1"], "Did you mean: `CartPole`?"),
        (["bad_envs:LacksDependency"], "engine3d is not installed"),
        (["CartPole-v1", "--engines", "spawn"], "did you mean async-spawn?"),
    ],
)
def test_wrong_input_is_told_in_a_line(arguments: list[str], told: str) -> None:
    """Exit code 2, which no finding has."""
    ran = run(*arguments)
    assert ran.exit_code == 2
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1
