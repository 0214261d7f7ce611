"""The command `llm-cache`: a demonstration, a prompt from the shell, numbers, and a check-up."""

from __future__ import annotations

import sys

_NEEDED = "the command line needs typer and rich: pip install 'llm-cache[cli]'\n"


def main() -> None:
    """Run the command line with the arguments of this process.

    Raises:
        SystemExit: always. 0 is success, 1 a failure told in one line on stderr, 2 wrong usage,
            130 an interruption.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write(_NEEDED)
        raise SystemExit(1) from None
    try:
        from llm_cache.cli.app import make_app

        make_app()(prog_name="llm-cache")
    except KeyboardInterrupt:  # before a command has begun, which sees to it itself
        raise SystemExit(130) from None
