"""What can be said of Ray by looking here: is it installed, new enough, and told to ask for a token?"""

from importlib.metadata import PackageNotFoundError, version

from hostler.app.config import environment
from hostler.core.errors import StartupError

OLDEST = (2, 52)  # the first whose ports ask for a token


def check_installed() -> None:
    """Return when ray is there and new enough.

    Raises:
        StartupError: what to install.
    """
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise StartupError("ray is not installed: pip install 'hostler[ray]'") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise StartupError(
            f"ray {found} is too old: before {OLDEST[0]}.{OLDEST[1]} whoever reaches its ports may run code "
            "there; pip install --upgrade 'hostler[ray]'"
        )


def check_token() -> None:
    """Return when Ray was told to ask for a token.

    Raises:
        StartupError: what to set, and why.
    """
    if environment("RAY_AUTH_MODE") != "token":
        raise StartupError(
            "Ray without a token lets whoever reaches its ports run code (CVE-2023-48022): set "
            "RAY_AUTH_MODE=token and the cluster's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token) here and on every node, then start Ray anew"
        )
