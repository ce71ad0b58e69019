"""The ``zoo`` command: verbs imported when they are called, errors in one line, exit codes.

A verb is a file ``zoo/cli/<verb>.py`` with one function ``command``, whose docstring is its help. The file is light to
import (``zoo --help`` imports them all): torch, numpy, rich and rooms such as ``zoo.export`` are imported inside the
function. Options that all verbs share are in ``zoo.cli.options``, what is printed goes through ``zoo.cli.output``.
A verb never prints an error and exits: it raises a ``ZooError``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli.output import OutputLost, show
from zoo.cli.process import INTERRUPTED, speaks
from zoo.system.errors import UsageError, ZooError, nearest
from zoo.version import __version__

VERBS = (
    *("list", "show", "pick", "export", "verify", "bench", "compare"),
    *("eval", "sweep", "train", "search", "convert", "pull", "push", "cache", "doctor", "report"),
)


class _TrustingDefaults:
    """A command that takes defaults and given text as they are where they have their types already.

    Recent typers convert even these by pydantic, which takes longer to import than all the rest of ``zoo list``. The
    options with callbacks (--help, completion) do nothing unless they are given.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            vars(parameter).setdefault("process_value", _converting_what_is_given(parameter))
        return parameters


def _converting_what_is_given(parameter: Any) -> Callable[[Any, Any], Any]:
    convert = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        source = ctx.get_parameter_source(parameter.name)
        given = source is None or source.name != "DEFAULT" or parameter.required or parameter.multiple
        text = isinstance(value, str) and _is_text(parameter)
        if not given or text:
            return value
        converted = convert(ctx, value)
        if value == "" and isinstance(converted, Path):  # the folder that the command runs in is "."
            name = max(parameter.opts, key=len)
            raise UsageError(f"{name if name.startswith('-') else name.upper()} is an empty path: give a path")
        return converted

    return process_value


def _is_text(parameter: Any) -> bool:
    """Whether the parameter takes any string, and nothing happens when it is given."""
    kind = getattr(parameter, "type_descriptor", None)  # older typers have none, and convert without pydantic
    return kind is not None and kind.annotation is str and parameter.callback is None


class _Failed(Exception):
    """Carries the error of a verb, its cause, past the parser."""


class Verb(_TrustingDefaults, TyperCommand):
    """One verb of the command line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:  # the parser takes them for Ctrl-D, and for a reader of stdout that left
            raise _Failed from error


class Verbs(_TrustingDefaults, TyperGroup):
    """The verbs of :data:`VERBS`, each imported when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in VERBS:
            return _verb(cmd_name)
        if ctx.resilient_parsing:  # a shell asks for completions
            return None
        raise UsageError(f"'{cmd_name}' is not a verb of zoo{nearest(cmd_name, VERBS)} (known: {', '.join(VERBS)})")


@cache
def _verb(name: str) -> Any:
    alone = typer.Typer(add_completion=False, context_settings=HELP_TOO)
    alone.command(name, cls=Verb)(importlib.import_module(f"zoo.cli.{name}").command)
    return typer.main.get_command(alone)


HELP_TOO = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=Verbs, context_settings=HELP_TOO, rich_markup_mode="rich")


@app.callback(invoke_without_command=True)
def _zoo(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Small robust image classifiers, picked by a compute budget, exported, and attacked again on the exported engine.

    FLOPs mean MACs (multiply-accumulates) everywhere.
    """
    if version:
        typer.echo(f"robust-zoo {__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run ``zoo`` with ``arguments`` and return its exit code."""
    try:
        code = _called(arguments)
        sys.stdout.flush()
    except (OutputLost, OSError) as error:  # OSError: of the help
        lost = error.__cause__ if isinstance(error, OutputLost) else error
        with contextlib.suppress(OSError):  # what is still in the buffer must not raise again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(lost, BrokenPipeError):  # otherwise the reader, such as `head`, has what it wants
            _say(f"zoo: error: the output could not be written: {getattr(lost, 'strerror', lost)}")
        return 1
    if code == INTERRUPTED:
        _say("zoo: interrupted")
    return code


def _called(arguments: Sequence[str]) -> int:
    """The exit code of ``zoo`` with ``arguments``; an OSError is one of writing to stdout."""
    try:
        code = typer.main.get_command(app).main(args=list(arguments), prog_name="zoo", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED  # recent typers return this code themselves
    except (OutputLost, OSError):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, _Failed) else None
        return _report(cause or error, as_json="--json" in arguments)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be full or closed
        print(message, file=sys.stderr)


def _report(error: BaseException, *, as_json: bool) -> int:
    """One line on stderr, with ``--json`` an object on stdout too; returns the exit code."""
    if os.environ.get("ZOO_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, ZooError):
        message, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # the parser's own errors: typer has moved their classes about
        verb = getattr(getattr(error, "ctx", None), "command_path", "zoo")
        message, code = f"{error.format_message().rstrip('.')} (see '{verb} --help')", UsageError.exit_code
    elif isinstance(error, OSError) and error.strerror:
        message, code = f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror, 1
    else:
        said = shorten(str(error), 400, placeholder=" ...")  # a compiler's can have thousands of lines
        message = f"internal: {type(error).__name__}: {said}; set ZOO_DEBUG=1 and run again for the traceback"
        code = 1
    message = " ".join(message.split())
    message = re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", message)  # a name in a file from elsewhere may command a terminal
    if len(message) > 2000:
        message = f"{message[:2000]} ..."
    _say(f"zoo: error: {message}")
    if as_json and speaks():
        show(json.dumps({"error": {"type": type(error).__name__, "message": message, "exit_code": code}}, indent=2))
    return code
