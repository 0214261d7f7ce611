"""The application: its commands, and what an exception means for the exit code."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import llm_cache
from llm_cache.cli import (
    chat,
    demo,
    doctor,
    explain,
    export,
    failures,
    import_,
    inspect,
    invalidate,
    review,
    savings,
    stats,
    tune,
    warm,
)
from llm_cache.cli.screen import complain
from llm_cache.errors import InvalidRequest

EXIT_CODES = "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."
_USAGE = 2
_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Commands whose expected failures are one line on stderr, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that *ctx* holds."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            message = failures.explain(error)
            if message is None:
                raise
            complain(message)
            raise typer.Exit(_USAGE if isinstance(error, InvalidRequest) else 1) from None


def make_app() -> typer.Typer:
    """Return the application, ready to be called."""
    app = typer.Typer(
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=EXIT_CODES)(_llm_cache)
    app.command(epilog=EXIT_CODES)(demo.demo)
    app.command(epilog=EXIT_CODES)(chat.chat)
    app.command(epilog=EXIT_CODES)(explain.explain)
    app.command(epilog=EXIT_CODES)(inspect.inspect)
    app.command(epilog=EXIT_CODES)(invalidate.invalidate)
    app.command(epilog=EXIT_CODES)(warm.warm)
    app.command(epilog=EXIT_CODES)(review.review)
    app.command(epilog=EXIT_CODES)(export.export)
    app.command("import", epilog=EXIT_CODES)(import_.import_)
    app.command(epilog=EXIT_CODES)(stats.stats)
    app.command("savings", epilog=EXIT_CODES)(savings.saved)
    app.command(epilog=EXIT_CODES)(tune.tune)
    app.command(epilog=doctor.EXIT_CODES)(doctor.doctor)
    return app


def _llm_cache(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda given: _print_version() if given else None,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """A cache of LLM answers in Redis: exact and semantic."""


def _print_version() -> None:
    typer.echo(f"llm-cache {llm_cache.__version__}")
    raise typer.Exit
