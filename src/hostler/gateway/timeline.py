"""Timeline: what happened to a request, and when. Never the prompt, the answer or the key.

Times are seconds since the request was whole here, but for began_at_s.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from hostler.gateway.usage import Used

EMPTY = '""'
RING = 1000  # requests that are remembered


class Try:
    """One attempt: where, why there, and what became of it ("": it goes on, or was the answer)."""

    __slots__ = ("at_s", "failure", "instance_id", "why")

    def __init__(self, instance_id: str, why: str, at_s: float) -> None:
        self.instance_id = instance_id
        self.why = why
        self.at_s = at_s
        self.failure = ""


class Timeline:
    """One request. The relay writes it down as it goes.

    asked: the model that the client named; model: the one that was asked last.
    began_s: monotonic. queued_s, first_byte_s, took_s: None as long as that has not happened.
    """

    __slots__ = (
        "asked",
        "began_s",
        "code",
        "first_byte_s",
        "key_id",
        "model",
        "queued_s",
        "request_id",
        "route",
        "status",
        "stream",
        "took_s",
        "tries",
        "used",
    )

    def __init__(
        self, request_id: str, key_id: str, model: str, route: str, stream: bool, began_s: float
    ) -> None:
        self.request_id = request_id
        self.key_id = key_id
        self.asked = self.model = model
        self.route = route
        self.stream = stream
        self.began_s = began_s
        self.queued_s: float | None = None
        self.first_byte_s: float | None = None
        self.took_s: float | None = None
        self.status = 0
        self.code = ""
        self.tries: list[Try] = []
        self.used: Used | None = None  # its tokens, once they are known

    def queued(self, now_s: float) -> None:
        """It waits for a slot from now on."""
        self.queued_s = now_s - self.began_s

    def tried(self, instance_id: str, why: str, now_s: float) -> None:
        """It goes to this instance."""
        self.tries.append(Try(instance_id, why, now_s - self.began_s))

    def failed(self, failure: str) -> None:
        """The last attempt did."""
        if self.tries:
            self.tries[-1].failure = failure

    def started(self, now_s: float) -> None:
        """The first byte goes to the client."""
        self.first_byte_s = now_s - self.began_s

    def ended(self, status: int, code: str, now_s: float) -> None:
        self.status = status
        self.code = code
        self.took_s = now_s - self.began_s

    def fields(self) -> Mapping[str, object]:
        """For the access log."""
        return {
            "request_id": self.request_id,
            "key_id": self.key_id,
            "model": self.model,
            "route": self.route,
            "stream": self.stream,
            "status": self.status,
            "code": self.code,
            "attempts": len(self.tries),
            "took_s": round(self.took_s or 0.0, 6),
            "first_byte_s": self.first_byte_s,
        }

    def plain(self) -> str:
        """The same as text. Every text in it is an id, a name or a code: nothing to be escaped."""
        return (
            f"request_id={self.request_id} key_id={self.key_id} model={self.model} "
            f"route={self.route} stream={self.stream} status={self.status} "
            f"code={self.code or EMPTY} attempts={len(self.tries)} took_s={self.took_s or 0.0:.6f} "
            f"first_byte_s={self.first_byte_s}"
        )


class Ring:
    """The last requests that ended, the newest last."""

    def __init__(self, length: int = RING) -> None:
        self._ended: deque[Timeline] = deque(maxlen=length)

    def add(self, timeline: Timeline) -> None:
        self._ended.append(timeline)

    def __iter__(self) -> Iterator[Timeline]:
        return iter(tuple(self._ended))
