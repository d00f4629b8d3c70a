"""The `simclr-engine` command: finds the subcommand, prints errors and sets the exit code."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import NoReturn

import click

from ..boundary import CANNOT_IMPORT, DISTRIBUTIONS, broken_package, engine_error
from ..errors import EngineError, PlatformError
from ..stopping import end_in_order
from ..terminal import prepare_streams, say, say_error, tell

# name → the line in `--help`. The module of that name holds `command`; `--help` does not import it.
COMMANDS = {
    "pretrain": "Pretrain an encoder without labels.",
    "evaluate": "Evaluate an encoder and compare it with the same network at random weights.",
    "export": "Write the encoder of a run as one ONNX file and check it against PyTorch.",
    "embed": "Compute the features of images and write them as a searchable index.",
    "predict": "Predict the classes of images and find their nearest neighbours.",
    "serve": "Open a local page that shows the class and neighbours of an image.",
    "report": "Draw the figures of a run again and write its report.html.",
    "compare": "Compare several runs in a table and on an HTML page.",
    "recipes": "List the recipes, or print one.",
    "data": "List, inspect and pack image data.",
    "bench": "Benchmark one part of the engine on this machine against alternatives.",
    "demo": "Pretrain, evaluate and export on built-in images, in about two minutes.",
    "doctor": "Check what this machine and installation can do.",
}

# Commands that leave files: what they print is no more than a view of it, unless it is asked for as a document.
LEAVES_FILES = (["pretrain"], ["export"], ["embed"], ["report"], ["demo"], ["serve"], ["data", "pack"])
DOCUMENTS = {"--json", "--dry-run", "--help", "-h"}

# In the metavar of an option or argument: it takes a file or a folder.
PLACES = ("PATH", "DIR", "RUN", "FILE", "NAME.npy", "IMAGES")


def _complete_paths(command: click.Command) -> None:
    """Lets the shell complete file names where a metavar names one; click does so only for paths by type."""
    for taken in command.params:
        text = isinstance(taken.type, type(click.STRING) | type(click.UNPROCESSED))
        if text and any(place in (taken.metavar or "") for place in PLACES):
            taken.type = click.Path()
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _complete_paths(below)


class LazyGroup(click.Group):
    """Lists the commands by name and imports only the one that runs, so that `--help` takes less than 0.2 s."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        command: click.Command = module.command
        if ctx.resilient_parsing:  # the shell asks what may follow
            _complete_paths(command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command. click itself would take an OSError for a closed pipe, and an EOFError for Ctrl-D."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as error:
            raise engine_error(error) or error from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from ..package import __version__  # reading the metadata is slow; --help does not need it

        tell(f"simclr-engine, version {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error; also accepted after the command.")
def cli(debug: bool) -> None:
    """Pretrain an image encoder without labels, evaluate it honestly, ship it as one ONNX file.

    \b
    Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 a fault of this machine
    or installation, 4 data that cannot be used, 130 interrupted.
    """


def _lines(error: click.ClickException) -> list[str]:
    """An error of click, laid out as ours are."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message().split("\n")
    message = error.format_message()
    lines = [f"error: {message[:1].lower()}{message[1:]}"]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        lines.append(f"  fix: see `{error.ctx.command_path} --help`")
    return lines


def _exit(error: EngineError) -> NoReturn:
    say_error(error)
    sys.exit(error.exit_code)


def _not_installed(error: ImportError, missing: str) -> PlatformError:
    if not missing:  # a compiled module: its file cannot be read
        return PlatformError(CANNOT_IMPORT, saw=str(error), fix="pip install simclr-engine, again")
    fix = f"pip install {DISTRIBUTIONS.get(missing, missing)}, or all that the commands need: pip install simclr-engine"
    if isinstance(error, ModuleNotFoundError):
        return PlatformError("a package is not installed", saw=missing, fix=f"{fix} (in a checkout: pip install .)")
    return PlatformError(CANNOT_IMPORT, saw=f"{missing}: {error}", fix=f"install it again: {fix}")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 usage, 3 environment, 4 data, 130 interrupted."""
    debug = "--debug" in sys.argv
    if debug:  # accepted before and after the subcommand
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    words = sys.argv[1:]
    leaves_files = any(words[: len(command)] == command for command in LEAVES_FILES)
    prepare_streams(product=not leaves_files or not DOCUMENTS.isdisjoint(words))
    end_in_order()
    try:
        code = cli.main(standalone_mode=False)  # click returns the code of an `Exit` instead of raising it
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        say(*_lines(error))
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        sys.exit(130)
    except ImportError as error:  # an installation without every package, such as the light one, or with a broken one
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "simclr_engine"):
            missing = broken_package(error) or missing
        if debug or missing == "simclr_engine":
            raise
        _exit(engine_error(error) or _not_installed(error, missing))
    except SystemExit:
        raise
    except BaseException as error:  # what a library in Rust raises is no Exception
        if debug:
            raise
        if (ours := engine_error(error)) is None:
            say(*traceback.format_exc().rstrip().split("\n"))
            fix = "report it with the lines above, the command, and what `simclr-engine doctor` prints"
            ours = EngineError("this is a mistake in simclr-engine", saw=f"{type(error).__name__}: {error}", fix=fix)
        _exit(ours)
