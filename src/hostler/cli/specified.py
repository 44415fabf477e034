"""The worker that a controller or a host has specified. Workers start often: this needs no command tree."""

import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from hostler.app.telemetry import configure_logging
from hostler.cli.exits import CommandFailed, Exit
from hostler.core.fleet import WorkerSpec
from hostler.worker.agent import run_worker_file


def main() -> int:
    """Be the worker of `hostler worker --spec=FILE`; return an exit code when it cannot be."""
    try:
        run_spec(Path(sys.argv[2].removeprefix("--spec=")))
    except CommandFailed as failure:
        sys.stderr.write(f"hostler: {failure}\n")
        return failure.exit_code


def run_spec(spec: Path) -> NoReturn:
    """Be that worker. Raises CommandFailed: the file tells of none."""
    try:
        told = msgspec.json.decode(spec.read_bytes(), type=WorkerSpec)
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandFailed(f"worker specification {spec}: {error}", Exit.USAGE) from error
    configure_logging(json_lines=told.log_json)
    run_worker_file(spec)
