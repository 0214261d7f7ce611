"""`python -m benchmarks`: what the cache saves, how fast it is, and what it bears."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys

COMMANDS = {
    "run": ("benchmarks.run", "measure everything and write a report"),
    "hitrate": ("benchmarks.quality.command", "how many calls hit, how many hits are wrong"),
    "latency": ("benchmarks.latency.command", "how fast a hit is, and where the time goes"),
    "load": ("benchmarks.load.command", "rate sweeps to the knee, bursts, many callers"),
    "soak": ("benchmarks.load.soak_command", "hours at a steady rate: does anything grow?"),
    "savings": ("benchmarks.quality.savings", "what a log would have saved, by threshold and TTL"),
    "compare": ("benchmarks.comparison", "what changed between two reports, beyond noise"),
    "report": ("benchmarks.report.command", "write the report of a results.json anew"),
    "faults": ("benchmarks.faults.command", "break things under load, look at every answer"),
    "leaks": ("benchmarks.faults.leaks", "a million requests: does anything grow?"),
    "micro": ("benchmarks.micro.command", "single operations beside the bare Redis command"),
    "page": ("benchmarks.page", "write the pages of figures from what was measured"),
    "correctness": ("benchmarks.correctness", "thresholds and guards on labelled pairs"),
}
"""Of each: a module with `add_arguments(parser)` and `run(arguments) -> exit status`."""


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        if _exists(module):
            commands.add_parser(name, help=summary, add_help=False)
    name = parser.parse_args((sys.argv[1:] if argv is None else argv)[:1]).command
    # Only the command that runs is imported: some need packages that others do not.
    command = importlib.import_module(COMMANDS[name][0])
    own = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=command.__doc__)
    command.add_arguments(own)
    status: int = command.run(own.parse_args((sys.argv[1:] if argv is None else argv)[1:]))
    return status


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


if __name__ == "__main__":
    sys.exit(main())
