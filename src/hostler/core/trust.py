"""Errors between machines: who is not let in, and who is not whom they should be."""

from hostler.core.errors import HostlerError, Unavailable


class JoinRefused(HostlerError):
    """This join token lets nobody in: make another with `hostler token create` at the controller."""

    code = "join_refused"
    http_status = 401
    openai_type = "authentication_error"


class WrongController(HostlerError):
    """Another server than the one meant answers there."""

    code = "wrong_controller"


class IdentityRequired(HostlerError):
    """A certificate of this server's authority is needed here: join first."""

    code = "identity_required"
    http_status = 401
    openai_type = "authentication_error"


class IdentityRefused(HostlerError):
    """This machine does not belong to this server (any more)."""

    code = "identity_refused"
    http_status = 403
    openai_type = "permission_error"


class LogUnavailable(Unavailable):
    """The log of this instance is on another machine, which does not tell it now."""

    code = "log_unavailable"
