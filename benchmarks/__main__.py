"""`python -m benchmarks`: run the benchmarks and print what they measured."""

from __future__ import annotations

import argparse
import sys

from benchmarks import page
from benchmarks.micro import command as micro


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in {"micro": micro, "page": page}.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        command.add_arguments(sub)
        sub.set_defaults(run=command.main)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
