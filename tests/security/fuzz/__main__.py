"""python -m tests.security.fuzz NAME [--seconds N] [--seed N] [--first N]

A target may take an input or refuse it in the way that is meant for it. It fails with any other error, with 10 s for
one input, or with 200 MiB more memory than it began with. `--seed` and `--first` repeat the input that a failure names.
"""

import argparse

from tests.security.fuzz import files, servers
from tests.security.fuzz.run import Target, fuzz

TARGETS: dict[str, Target] = files.TARGETS | servers.TARGETS


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    figures = fuzz(TARGETS[given.name], given.seconds, given.seed, given.first)
    print(
        f"{given.name}: {figures.inputs:,} inputs, {figures.refused:,} refused, {figures.growth / 2**20:.1f} MiB more, "
        f"slowest {figures.slowest_s:.3f} s"
    )


if __name__ == "__main__":
    main()
