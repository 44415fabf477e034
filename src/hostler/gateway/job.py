"""Job: a judged inference request on its way to an engine."""

from hashlib import blake2b

from hostler.core.request import Body, Route, choices_of, encode_body
from hostler.core.snapshot import ModelView
from hostler.routing.ask import Ask


class Job(Ask):
    """What is asked, of which model, by whom. Holds the parsed body: what was judged is what is sent.

    route_name: for metrics and logs. path: of the engine, if it is not the route's own.
    choices: how many choices a stream owes.
    """

    __slots__ = (
        "_encoded",
        "_encoded_for",
        "_fingerprint",
        "_key_id",
        "body",
        "choices",
        "model",
        "path",
        "request_id",
        "route",
        "route_name",
        "stream",
    )

    def __init__(
        self,
        model: ModelView,
        route: Route,
        body: Body,
        *,
        key_id: str,
        request_id: str,
        path: str = "",
    ) -> None:
        self.model = model
        self.route = route
        self.route_name = path or route.value
        self.path = path
        self.body = body
        self._key_id = key_id
        self.request_id = request_id
        self.stream = body.get("stream") is True
        self.choices = choices_of(body) if self.stream else 1
        self._encoded = b""
        self._encoded_for = ""
        self._fingerprint = b""

    def encoded(self, upstream_model: str) -> bytes:
        """The body for an engine that knows the model by this name ("": by ours)."""
        name = upstream_model or self.model.name
        if self._encoded_for != name:
            self.body["model"] = name
            self._encoded = encode_body(self.body)
            self._encoded_for = name
        return self._encoded

    @property
    def key_id(self) -> str:
        return self._key_id

    @property
    def fingerprint(self) -> bytes:
        """Names this request of this key, for the quarantine; equal bodies have equal ones."""
        if not self._fingerprint:
            self.body["model"] = self.model.name
            self._encoded_for = ""
            digest = blake2b(self.key_id.encode(), digest_size=16)
            digest.update(self.route_name.encode())
            digest.update(encode_body(self.body))
            self._fingerprint = digest.digest()
        return self._fingerprint
