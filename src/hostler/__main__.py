"""`python -m hostler`, and the `hostler` command."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if is_specified_worker(sys.argv[1:]):
        from hostler.cli.specified import main as run  # the command tree takes as long again
    else:
        from hostler.cli.main import main as run  # not for a worker: as above
    sys.exit(run())


def is_specified_worker(given: list[str]) -> bool:
    """Whether these are the words by which a manager starts a worker."""
    return len(given) == 2 and given[0] == "worker" and given[1].startswith("--spec=")


if __name__ == "__main__":
    main()
