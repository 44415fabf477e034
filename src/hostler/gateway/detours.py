"""Detours: other models that answer in the place of the one asked, by an operator's rules.

A split sends a share of a model's requests to another one; a fallback sends a request on that its own
model cannot serve. The rules of the model that answers judge the body too, and the key must be allowed
to use it. One level: a detour's own split and fallbacks are not followed.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hostler.core.errors import (
    HostlerError,
    ModelLoading,
    NoReadyInstance,
    Overloaded,
    UpstreamError,
)
from hostler.core.serving import FallbackCause
from hostler.gateway.admission import Admission
from hostler.gateway.answers import engine_error
from hostler.gateway.job import Job
from hostler.gateway.metrics import GatewayMetrics
from hostler.routing.router import Router
from hostler.routing.session import number_of

if TYPE_CHECKING:
    from hostler.gateway.relay import Relay

_GOLDEN = 0.6180339887498949  # its multiples spread over 0..1 as evenly as any sequence can
_COUNTED_MAX = 4096  # models without a split leave their counts behind; so many do no harm


class Detour:
    """One request on its way through other models, after its own could not serve it.

    end: tells the client what it would have been told without any of this.
    """

    __slots__ = ("cause", "end", "job", "names")

    def __init__(
        self, cause: FallbackCause, names: Iterator[str], job: Job, end: Callable[[], None]
    ) -> None:
        self.cause = cause
        self.names = names
        self.job = job
        self.end = end


class Detours:
    """Which other model answers, for the requests of one gateway."""

    def __init__(self, admission: Admission, router: Router, metrics: GatewayMetrics) -> None:
        self._admission = admission
        self._router = router
        self._metrics = metrics
        self._counts: dict[str, int] = {}  # requests without a session, by model

    def split(self, job: Job) -> Job:
        """Return the same request for another model when it is of that one's share, else the job.

        Requests of one session always fall on the same side; a larger share moves none back. The
        others are spread evenly. Who may not use the other model, or asks what that does not take,
        stays; so does everybody while it has no usable instance.
        """
        name = job.model.name
        if session := job.session:
            at = number_of(b"%b\0%b" % (name.encode(), session)) / 2**64
        else:
            if len(self._counts) > _COUNTED_MAX:
                self._counts.clear()
            self._counts[name] = count = self._counts.get(name, 0) + 1
            at = count * _GOLDEN % 1.0
        for other, percent in job.model.routing.split.items():
            at -= percent / 100
            if at < 0:
                turned = self._admission.turned(job, other)
                if turned is None or not self._router.usable(turned.model.name):
                    return job
                turned.turn = f"split {percent:g} % to {turned.model.name}"
                return turned
        return job

    def go_on(
        self,
        relay: "Relay",
        cause: FallbackCause | None,
        end: Callable[[], None],
        spend: Callable[[], bool],
    ) -> bool:
        """Send a request that failed on to the next model that may answer it. False: there is none.

        cause: of the failure, None when nobody answers instead for that. end: what the client is
        told when no other model can serve it, either. spend: takes one attempt from the budget of
        retries; a model that has just failed, too, is asked within it alone (F50).
        """
        detour = relay.detour
        if detour is None:
            if cause is None:
                return False
            names = self._names(relay.job, cause)
            if not names:
                return False
            detour = relay.detour = Detour(cause, iter(names), relay.job, end)
        for name in detour.names:
            job = self._admission.turned(detour.job, name)
            if job is None:
                continue
            if not self._is_failing(job.model.name) or spend():
                job.turn = f"{detour.cause.value}, so {job.model.name}"
                self._metrics.fell_back(job.asked, detour.cause.value)
                relay.job, relay.turns = job, relay.turns + 1
                relay.timeline.model = job.model.name
                relay.begin()
                return True
        detour.end()
        return True

    # Private

    def _names(self, job: Job, cause: FallbackCause) -> tuple[str, ...]:
        """Whom to ask instead; for a request of a split, the model that was asked comes first."""
        asked = self._admission.model(job.asked)
        rules = asked.routing if asked is not None else job.model.routing
        names = tuple(rules.fallbacks.get(cause, ()))
        return names if job.model.name == job.asked else (job.asked, *names)

    def _is_failing(self, name: str) -> bool:
        """Has every instance that could be asked failed, or said `not now`, a moment ago?"""
        health, usable = self._router.health, self._router.usable(name)
        return bool(usable) and all(health.is_out(i.instance_id) for i in usable)


def cause_of(error: HostlerError) -> FallbackCause | None:
    """Return for what cause another model may answer in the place of this error."""
    if isinstance(error, Overloaded):
        return FallbackCause.OVERLOADED
    if isinstance(error, NoReadyInstance | ModelLoading | UpstreamError):
        return FallbackCause.UNAVAILABLE
    return None


def is_too_long(status: int, body: bytes) -> bool:
    """Does an engine say that the prompt does not fit? By the code, or the words of vLLM and SGLang."""
    error = engine_error(body) if status in (400, 413) else None
    if error is None:
        return False
    code = error.get("code")
    return code == "context_length_exceeded" or "context length" in error["message"].lower()
