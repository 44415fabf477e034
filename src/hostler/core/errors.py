"""Every error that can reach a user: a stable code, an HTTP status, whether a retry can help.

The message is for people: what, which one, what is true now, what to do. The code is for programs and
never changes. The OpenAI error object is made here and nowhere else. Nothing here writes HTTP.
"""

from typing import ClassVar

import msgspec


class HostlerError(Exception):
    """Something failed inside Hostler."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        **facts: object,
    ) -> None:
        """Keep what a program needs beside the text.

        param: the request field that is wrong, for client errors.
        retry_after_s: whole seconds, at least 1; sent as `Retry-After`.
        facts: named values for logs and tests, never shown to a client.
        """
        self.message = message or (type(self).__doc__ or "").split("\n", 1)[0]
        super().__init__(self.message)
        self.param = param
        self.retry_after_s = retry_after_s
        self.facts = facts


class BadRequest(HostlerError):
    """The request cannot be served as it is."""

    code = "invalid_value"
    http_status = 400
    openai_type = "invalid_request_error"


class InvalidJSON(BadRequest):
    """The body is not valid JSON."""

    code = "invalid_json"


class InvalidFraming(BadRequest):
    """The HTTP message is not framed as the standard asks."""

    code = "invalid_framing"


class InvalidHost(BadRequest):
    """The Host header is missing, doubled or not a host name."""

    code = "invalid_host"


class UnknownParameter(BadRequest):
    """This field is not known to the engine of this model."""

    code = "unknown_parameter"


class ContextLengthExceeded(BadRequest):
    """The prompt is longer than the model's context."""

    code = "context_length_exceeded"


class RequestQuarantined(BadRequest):
    """This request crashed the workers that tried it, so it is refused for a while."""

    code = "request_quarantined"


class InvalidAPIKey(HostlerError):
    """A valid API key is needed: send `Authorization: Bearer <key>`."""

    code = "invalid_api_key"
    http_status = 401
    openai_type = "authentication_error"


class InsufficientScope(HostlerError):
    """This key may not do that."""

    code = "insufficient_scope"
    http_status = 403
    openai_type = "permission_error"


class ModelNotAllowed(InsufficientScope):
    """This key may not use that model."""

    code = "model_not_allowed"


class NotFound(HostlerError):
    """There is nothing at this address."""

    code = "not_found"
    http_status = 404
    openai_type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No model of this name is known."""

    code = "model_not_found"


class MethodNotAllowed(HostlerError):
    """This address does not take that method."""

    code = "method_not_allowed"
    http_status = 405
    openai_type = "invalid_request_error"


class RequestTimeout(HostlerError):
    """The request arrived too slowly."""

    code = "request_timeout"
    http_status = 408
    retryable = True
    openai_type = "invalid_request_error"


class Conflict(HostlerError):
    """The order contradicts what is already there."""

    code = "conflict"
    http_status = 409
    openai_type = "invalid_request_error"


class AlreadyRunning(Conflict):
    """A model of this name already runs with another specification."""

    code = "already_running"


class NameTaken(Conflict):
    """This name already means something else."""

    code = "name_taken"


class StaleEpoch(Conflict):
    """A newer process has replaced the sender of this message."""

    code = "stale_epoch"


class UnknownInstance(HostlerError):
    """No instance of this id is expected here."""

    code = "unknown_instance"
    http_status = 410
    openai_type = "invalid_request_error"


class RequestTooLarge(HostlerError):
    """The body is over the limit."""

    code = "request_too_large"
    http_status = 413
    openai_type = "invalid_request_error"


class URITooLong(HostlerError):
    """The request target is over the limit."""

    code = "uri_too_long"
    http_status = 414
    openai_type = "invalid_request_error"


class UnsupportedMediaType(HostlerError):
    """The body must be plain JSON, not compressed."""

    code = "unsupported_media_type"
    http_status = 415
    openai_type = "invalid_request_error"


class MisdirectedRequest(HostlerError):
    """The Host header names a server that this is not."""

    code = "misdirected_request"
    http_status = 421
    openai_type = "invalid_request_error"


class WrongInstance(MisdirectedRequest):
    """Another instance than the expected one answered."""

    code = "wrong_instance"
    retryable = True


class RateLimitExceeded(HostlerError):
    """This key is over its limit."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True
    openai_type = "rate_limit_error"


class HeadersTooLarge(HostlerError):
    """The request's header fields are over the limit."""

    code = "headers_too_large"
    http_status = 431
    openai_type = "invalid_request_error"


class UpstreamError(HostlerError):
    """The engine's answer cannot be used."""

    code = "upstream_error"
    http_status = 502


class WorkerLost(UpstreamError):
    """The worker died while it served this request."""

    code = "worker_lost"


class Unavailable(HostlerError):
    """Not available right now."""

    code = "unavailable"
    http_status = 503
    retryable = True


class NoReadyInstance(Unavailable):
    """No instance of this model is ready."""

    code = "no_healthy_worker"


class ModelLoading(Unavailable):
    """The model is being fetched or loaded."""

    code = "model_loading"


class Overloaded(Unavailable):
    """Every slot is taken and the queue is full."""

    code = "overloaded"


class Draining(Unavailable):
    """This server is shutting down."""

    code = "draining"


class PlacementUnavailable(Unavailable):
    """There is no room for another instance."""

    code = "placement_unavailable"


class HostRefuses(PlacementUnavailable):
    """The host does not run this model: it may not, or it cannot."""

    code = "host_refuses"


class StorageBusy(Unavailable):
    """The store is locked by another process, or cannot be reached now."""

    code = "storage_busy"


class Standby(Unavailable):
    """This controller stands by; another one leads."""

    code = "standby"


class StorageFailed(Unavailable):
    """The store cannot be read or written."""

    code = "storage_failed"


class ControllerUnavailable(Unavailable):
    """The controller is not answering; running models go on serving."""

    code = "controller_unavailable"


class UpstreamTimeout(HostlerError):
    """The request's deadline passed before the engine answered."""

    code = "upstream_timeout"
    http_status = 504


class InsufficientStorage(HostlerError):
    """The disk is full."""

    code = "insufficient_storage"
    http_status = 507


class ConfigError(HostlerError):
    """The configuration cannot be used."""

    code = "bad_config"
    http_status = 400


class StartupError(HostlerError):
    """A component could not start."""

    code = "startup_failed"


class ModelSourceError(HostlerError):
    """The model's files could not be had."""

    code = "model_source_failed"
    http_status = 502


class ModelFormatError(HostlerError):
    """The model's files are not what they should be."""

    code = "model_corrupt"
    http_status = 422


class EngineError(HostlerError):
    """The engine failed to start or to serve."""

    code = "engine_failed"


class IdentityMismatch(EngineError):
    """The engine serves another model than the one asked for."""

    code = "identity_mismatch"


class InvalidTransition(HostlerError):
    """An order reached an instance in a state that does not expect it."""

    code = "invalid_transition"


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The inside of an OpenAI error object."""

    message: str
    type: str
    param: str | None = None
    code: str


def envelope(error: HostlerError) -> bytes:
    """Return the OpenAI error object of an error, as JSON bytes: `{"error": {...}}`."""
    body = ErrorBody(
        message=error.message, type=error.openai_type, param=error.param, code=error.code
    )
    return msgspec.json.encode({"error": body})


def all_errors() -> list[type[HostlerError]]:
    """Return the whole tree, each class once, by code: what the reference page lists."""
    found: list[type[HostlerError]] = []
    waiting: list[type[HostlerError]] = [HostlerError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return sorted(set(found), key=lambda kind: (kind.http_status, kind.code))
