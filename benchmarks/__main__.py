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


async def _print_hooks(url: str) -> None:
    try:
        from benchmarks.micro import hooks
    except ImportError as error:
        print(f"hooks          skipped: {error}; pip install 'llm-cache[dev]'")
        return
    cost = await hooks.measure(url)
    print(
        f"hooks          exact hit {cost.bare_us:.0f} µs; PrometheusHook adds"
        f" {cost.prometheus_us:.1f} µs, OpenTelemetryHook {cost.otel_us:.1f} µs"
    )


if __name__ == "__main__":
    main()
