"""The `simclr-engine` command: finds the subcommand, shows errors in three lines, sets the exit code."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from ..errors import EngineError

# name → what `--help` shows; the module of that name holds `command`. Kept here so that --help imports none of them.
COMMANDS = {
    "pretrain": "Pretrain an encoder without labels.",
    "evaluate": "Any method on a run, an ONNX file or foreign weights, beside a random encoder.",
    "export": "Write the encoder of a run as one ONNX file, checked against PyTorch.",
    "embed": "Features of any images, as vectors with paths: an index that can be searched.",
    "predict": "Classes and nearest neighbours of images, by a run or an ONNX file.",
    "serve": "A page on this machine: drop an image, see its class and neighbours.",
    "report": "Rebuild a run's figures and its report.html.",
    "compare": "Put several runs side by side.",
    "recipes": "List the named recipes, or show one.",
    "data": "List, inspect and pack image sources.",
    "bench": "Measure this machine, beside other libraries: epoch, nt-xent, augment, …",
    "demo": "Pretrain, evaluate and export on the built-in glyphs, in about three minutes.",
    "doctor": "Show what this machine and installation can do.",
}


class LazyGroup(click.Group):
    """Knows the commands by name and imports only the one that runs: `--help` stays under 0.2 s."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        command: click.Command = module.command
        return command

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
            raise click.UsageError(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from ..version import __version__  # reading the metadata takes time that --help has no need to spend

        click.echo(f"simclr-engine, version {__version__}")
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
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Pretrain an image encoder without labels, evaluate it honestly, ship it as one ONNX file."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 usage, 3 environment, 4 data, 130 interrupted."""
    debug = "--debug" in sys.argv
    if debug:  # accepted before and after the subcommand
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except EngineError as error:
        if debug:
            raise
        first, *rest = error.lines()
        print("\n".join([f"error: {first}", *(f"  {row}" for row in rest)]), file=sys.stderr)
        sys.exit(error.exit_code)
