"""What can be typed, and in which order things are printed. What is measured, judged and looked at is in modules of its own."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rayvec import __version__
from rayvec.cli import bench as benching
from rayvec.cli import check as checking
from rayvec.cli import doctor as examining
from rayvec.cli import screens
from rayvec.cli.probes import PROBES
from rayvec.cli.targets import Target, TargetError, build, find_target, parse_kwargs
from rayvec.local.waiting import usable_cores

__all__ = ["cli"]

_INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""
_FORMATS = (".png", ".pdf", ".svg")


class _Wrong(click.ClickException):
    """Wrong input: one line, and exit code 2."""

    exit_code = 2


class _OneLine(click.Group):
    """Tells what is wrong in one line, and which command has help for it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command, and ends with its exit code."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "rayvec"
            _complain(f"{_sentence(error.format_message())} ({where} --help tells more)")
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _complain(error.format_message())
            sys.exit(error.exit_code)
        except click.Abort:
            _complain("interrupted; every env that was built has been closed")
            sys.exit(_INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Knows commands by what is nearest to them."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _complain(text: str) -> None:
    click.echo(f"rayvec: {text}", err=True)


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


class _Engines(click.ParamType[Any]):
    """Names with commas between them."""

    name = "NAME,..."

    def __init__(self, known: Sequence[str]) -> None:
        self.known = list(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names, in the order of the table."""
        names = value.split(",") if isinstance(value, str) else list(value)
        for name in names:
            if name not in self.known:
                near = difflib.get_close_matches(name, self.known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                self.fail(f"no engine {name!r}; {hint}there are {', '.join(self.known)}", param, ctx)
        return [name for name in self.known if name in names]


class _OutputFile(click.ParamType[Any]):
    """A file to write, in a folder that is there."""

    name = "FILE"

    def __init__(self, endings: Sequence[str] = ()) -> None:
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        path = Path(value)
        if not path.resolve().parent.is_dir():
            self.fail(f"there is no folder {path.resolve().parent}", param, ctx)
        if path.is_dir():
            self.fail(f"{path} is a folder", param, ctx)
        if self.endings and path.suffix not in self.endings:
            self.fail(f"cannot draw a {path.suffix or 'file without an ending'!r}; use {' or '.join(self.endings)}", param, ctx)
        return path


def _env_options(function: Any) -> Any:
    """What all commands about an env take."""
    for decorate in (
        click.option("-k", "pairs", metavar="KEY=VALUE", multiple=True, help="An argument of the env; may be repeated."),
        click.option("--env-kwargs", metavar="JSON", help="Arguments of the env, such as '{\"size\": 3}'."),
        click.argument("env", metavar="ID"),
    ):
        function = decorate(function)
    return function


def _target(env: str, env_kwargs: str | None, pairs: tuple[str, ...], **make_kwargs: Any) -> Target:
    try:
        return find_target(env, parse_kwargs(env_kwargs, pairs), **make_kwargs)
    except TargetError as error:
        raise _Wrong(str(error)) from None


@click.group(cls=_OneLine, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rayvec")
@click.pass_context
def cli(context: click.Context) -> None:
    """Fast and dependable vector environments behind Gymnasium's API."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@_env_options
@click.option("--num-envs", type=click.IntRange(min=1), default=16, show_default=True, help="Sub-envs.")
@click.option("--engines", type=_Engines(list(benching.ENGINES)), help=f"Which to try: {', '.join(benching.ENGINES)}.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=2.0,
    show_default=True,
    help="How long each engine is measured, about.",
)
@click.option("--plot", type=_OutputFile(_FORMATS), help="Draw the table into a picture (.png, .pdf or .svg).")
@click.option("--json", "json_file", type=_OutputFile(), help="Write all that was measured into a file.")
def bench(
    env: str,
    env_kwargs: str | None,
    pairs: tuple[str, ...],
    num_envs: int,
    engines: list[str] | None,
    seconds: float,
    plot: Path | None,
    json_file: Path | None,
) -> None:
    """Measure which engine steps an env fastest on this machine.

    ID is an id that Gymnasium knows (CartPole-v1), one of another package (ale_py:ALE/Pong-v5), or a function of your own
    (my_module:make_env). Ray is measured only when asked for: --engines ray.
    """
    save = _plotter() if plot is not None else None
    target = _target(env, env_kwargs, pairs)
    engines_to_try, left_out = benching.chosen(engines, num_envs, usable_cores())
    console = screens.open_console()
    # Drawn by hand: a thread that draws would not survive the forks in between.
    with _progress(console) as progress:
        task = progress.add_task("starting", total=None)

        def on_start(name: str) -> None:
            progress.update(task, description=f"starting {name}")
            progress.refresh()

        def on_rounds(rounds: int) -> None:
            progress.update(task, description=f"measuring {len(engines_to_try)} engines in turns", total=rounds)
            progress.refresh()

        def on_round() -> None:
            progress.advance(task)
            progress.refresh()

        try:
            report = benching.measure(target, num_envs, engines_to_try, seconds, on_start, on_rounds, on_round, left_out)
        except TargetError as error:
            raise _Wrong(str(error)) from None
        except Exception as error:
            told = f"{type(error).__name__}: {_sentence(str(error))}"
            raise _Wrong(f"{target.name} raised {told}; rayvec check {env} looks for what is wrong") from None
    advice, code = benching.advise(report, target)
    console.print(screens.bench_screen(report, advice, code))
    if json_file is not None:
        json_file.write_text(json.dumps({**report.as_json(), "advice": advice, "code": code}, indent=2) + "\n")
        console.print(f"measurements: {json_file}", highlight=False, soft_wrap=True)
    if plot is not None and save is not None:
        save(report, plot)
        console.print(f"plot: {plot}", highlight=False, soft_wrap=True)


@cli.command()
@_env_options
@click.option("--engines", type=_Engines(list(checking.ENGINES)), help=f"Which to try: {', '.join(checking.ENGINES)}.")
def check(env: str, env_kwargs: str | None, pairs: tuple[str, ...], engines: list[str] | None) -> int:
    """Look for what would go wrong with an env in vector envs.

    ID is an id that Gymnasium knows, one of another package (module:Env-v0), or a function of your own (module:function).
    Ends with 0 if nothing was found, with 1 if something was.
    """
    # Gymnasium's checker would raise at what is looked for here.
    target = _target(env, env_kwargs, pairs, disable_env_checker=True)
    try:
        build(target).close()
    except TargetError as error:
        raise _Wrong(str(error)) from None
    console = screens.open_console()
    with _progress(console) as progress:
        task = progress.add_task("", total=len(PROBES) + len(checking.ENGINES if engines is None else engines))

        def on_start(about: str) -> None:
            progress.update(task, description=about)
            progress.refresh()

        report = checking.check(target, engines, on_start, lambda: progress.advance(task))
    console.print(screens.check_screen(report))
    return 1 if report.findings else 0


@cli.command()
def doctor() -> None:
    """Tell what this machine offers to vector envs. Starts nothing."""
    screens.open_console().print(screens.doctor_screen(examining.examine()))


def _progress(console: Any) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)


def _plotter() -> Any:
    try:
        from rayvec.cli.plot import save
    except ModuleNotFoundError as error:
        raise _Wrong(f'--plot needs {error.name}; run: pip install "rayvec[cli]"') from None
    return save
