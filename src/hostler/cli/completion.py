"""`hostler completion`: what the shell needs to complete commands and options."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hostler.cli.main import make_app

Shell = Annotated[
    Literal["bash", "zsh", "fish"] | None, Parameter(help="Left out: the shell you are in.")
]


def install(*, shell: Shell = None, output: Path | None = None, dry_run: bool = False) -> int:
    """Install completion for your shell.

    Example: `hostler completion install --shell bash`

    Parameters
    ----------
    output: Path
        Write the script here and leave the shell's start file alone.
    dry_run: bool
        Say what would be written, write nothing.
    """
    if dry_run:
        where = output or "the shell's own folder for completions, and its start file"
        print(f"would write {len(_script(shell))} characters to {where}")
        return 0
    where = make_app().install_completion(shell=shell, output=output, add_to_startup=output is None)
    print(f"completion written to {where}; open a new shell to use it")
    return 0


def print_script(*, shell: Shell = None) -> int:
    """Print the completion script.

    Example: `source <(hostler completion print --shell bash)`
    """
    print(_script(shell))
    return 0


# Private


def _script(shell: Literal["bash", "zsh", "fish"] | None) -> str:
    return make_app().generate_completion(shell=shell)
