"""Exit codes, and the one exception that ends a command with one of them."""

from enum import IntEnum

from hostler.core.errors import ConfigError, HostlerError


class Exit(IntEnum):
    """What a script may rely on. The reference page lists them from here."""

    OK = 0  # done
    FAILED = 1  # tried and failed; the reason is on stderr
    USAGE = 2  # the command line is wrong
    UNREACHABLE = 3  # no server answers
    AUTH = 4  # no key, a wrong key, or a key that may not do this
    NOT_FOUND = 5  # the server answers, but it has no such model, key or address
    CONFLICT = 6  # the order contradicts what is already there
    TRY_AGAIN = 75  # busy, loading or over a limit; the same command may work later
    CONFIG = 78  # the configuration was refused; nothing was started
    INTERRUPTED = 130  # Ctrl-C


class CommandFailed(Exception):
    """A command ends here: what, which one, what is true now, what to do."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def exit_of_status(status: int) -> Exit:
    """The exit code for an HTTP status of 400 or more."""
    if status in (401, 403):
        return Exit.AUTH
    if status == 404:
        return Exit.NOT_FOUND
    if status == 409:
        return Exit.CONFLICT
    if status in (408, 429, 503):
        return Exit.TRY_AGAIN
    return Exit.FAILED


def exit_of_error(error: HostlerError) -> Exit:
    """The exit code for an error of our own tree, raised in this process."""
    return Exit.CONFIG if isinstance(error, ConfigError) else exit_of_status(error.http_status)
