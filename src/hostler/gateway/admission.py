"""Admission: who asks, for which model, and whether the request may go to its engine as it is."""

from difflib import get_close_matches

from hostler.app.auth import KeyRing, Scope, require
from hostler.app.clock import WallClock
from hostler.core.change import Change
from hostler.core.errors import (
    BadRequest,
    ControllerUnavailable,
    HostlerError,
    ModelNotFound,
    NotFound,
)
from hostler.core.request import (
    Body,
    Route,
    Rules,
    as_object,
    check_fields,
    read_model,
)
from hostler.core.serving import Priority
from hostler.core.snapshot import KeyView, ModelView
from hostler.engines.dialect import Dialect, find_dialect, open_rules
from hostler.gateway.credentials import session_of
from hostler.gateway.job import Job
from hostler.gateway.routes import GatewayRoute
from hostler.wire.exchange import Request
from hostler.wire.http1 import Head
from hostler.wire.json import large_integer, parse_json, parse_json_to_encode

NAMED_MAX = 20  # models named in an error
PRIORITY_FIELD = b"x-hostler-priority"
GENERATING = frozenset({Route.CHAT, Route.COMPLETIONS})

REQUIRED: dict[Route, tuple[str, ...]] = {
    Route.CHAT: ("messages",),
    Route.COMPLETIONS: ("prompt",),
    Route.EMBEDDINGS: ("input",),
    Route.RERANK: ("query", "documents"),
}


class Terms:
    """A model's rules, ready for use."""

    __slots__ = ("dialect", "model", "rules", "served")

    def __init__(self, model: ModelView) -> None:
        self.model = model
        self._open(model)

    def describe(self, model: ModelView) -> None:
        """The model is described anew: mostly other counts, which are no rules."""
        before, self.model = self.model, model
        if (model.engine, model.open_fields) != (before.engine, before.open_fields):
            self._open(model)

    # Private

    def _open(self, model: ModelView) -> None:
        self.dialect: Dialect = find_dialect(model.engine)
        self.rules = open_rules(self.dialect, model.open_fields)
        self.served = {route: self.rules[route] for route in self.dialect.paths}


class Admitted:
    """Who asks, by which route; as long as the ring of keys is this one."""

    __slots__ = ("expires_at_s", "handler", "key", "ring")

    def __init__(self, route: GatewayRoute, key: KeyView | None, ring: KeyRing) -> None:
        self.handler = route.handler
        self.key = key
        self.ring = ring
        self.expires_at_s = key.expires_at_s if key is not None else None


class Admission:
    """What a snapshot says about keys and models, looked up by name."""

    def __init__(self, json_depth: int, *, asks_usage: bool = True) -> None:
        """asks_usage: of the engines of streams, also when no client did."""
        self._json_depth = json_depth
        self._asks_usage = asks_usage
        self._date = WallClock()
        self._ring = KeyRing((), self._date)
        self._models: dict[str, Terms] = {}
        self._terms: dict[str, Terms] = {}  # with aliases
        self._is_told = False

    def take(self, change: Change) -> None:
        """Take a step from one snapshot to the next."""
        self._is_told = self._is_told or change.version > 0
        if change.keys is not None:
            self._ring = KeyRing(change.keys, self._date)
        for name in change.models_gone:
            self._models.pop(name, None)
        are_named_anew = bool(change.models_gone)
        for model in change.models:
            known = self._models.get(model.name)
            if known is not None and known.model.aliases == model.aliases:
                known.describe(model)
            else:
                self._models[model.name] = Terms(model)
                are_named_anew = True
        if are_named_anew:
            terms: dict[str, Terms] = {}
            for its in self._models.values():
                for name in (its.model.name, *its.model.aliases):
                    terms.setdefault(name, its)
            self._terms = terms

    def identify(self, head: Head) -> KeyView:
        """Return the key of a request: `Authorization: Bearer`, `x-api-key`, or the console's session.

        Raises:
            InvalidAPIKey
            ControllerUnavailable: no controller has told us yet which keys there are.
        """
        if not self._is_told:
            raise ControllerUnavailable(retry_after_s=1)
        given = head.fields.get(b"authorization")
        if given is None:
            bare = head.fields.get(b"x-api-key")
            given = b"Bearer " + bare if bare is not None else session_of(head)
        return self._ring.identify(given)

    def admitted(self, route: GatewayRoute, key: KeyView | None) -> Admitted:
        """What was found of a head, to be found again in the next one that is equal."""
        return Admitted(route, key, self._ring)

    def still_knows(self, judged: Admitted) -> bool:
        """Is this still so? The keys may be others by now, and this one may have expired."""
        expires_at_s = judged.expires_at_s
        return judged.ring is self._ring and (expires_at_s is None or expires_at_s > self._date())

    def models_for(self, key: KeyView) -> list[ModelView]:
        """The models this key may use, by name."""
        models = self._models
        return [
            models[name].model for name in sorted(models) if not key.models or name in key.models
        ]

    def find(self, name: str, key: KeyView) -> Terms:
        """Return the terms of the model of this name or alias.

        Raises:
            InsufficientScope, ModelNotAllowed: also for names that do not exist, so that a limited
                key learns nothing.
            ModelNotFound: names the models that this key may use.
        """
        terms = self._terms.get(name)
        real_name = terms.model.name if terms is not None else name
        if key.models and name in key.models:
            real_name = name
        require(key, Scope.INFERENCE, real_name)
        if terms is not None:
            return terms
        known = [model.name for model in self.models_for(key)]
        near = get_close_matches(name, known, n=1, cutoff=0.6)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif known:
            more = ", ..." if len(known) > NAMED_MAX else ""
            hint = f"known: {', '.join(known[:NAMED_MAX])}{more}"
        else:
            hint = "no model is known"
        raise ModelNotFound(f"model {name[:96]!r} is not known; {hint}", param="model")

    def body(self, request: Request) -> Body:
        """Return the parsed body, strictly read.

        Raises:
            InvalidJSON
        """
        return as_object(parse_json(request.body, self._json_depth))

    def job(self, request: Request, key: KeyView, route: Route) -> Job:
        """Judge a whole inference request.

        Raises:
            BadRequest and its kin: the request; ModelNotFound, InsufficientScope: who asks for what.
        """
        try:
            return self._job(request, key, route)
        except OverflowError:
            raise large_integer() from None

    def model(self, name: str) -> ModelView | None:
        """The model of this name or alias."""
        terms = self._terms.get(name)
        return terms.model if terms is not None else None

    def turned(self, job: Job, name: str) -> Job | None:
        """Return a judged request as one for another model; None when that one may not answer it.

        It must be another one of the same type that is known, its key may use it, and its rules
        take the body as it is.
        """
        try:
            terms = self.find(name, job.key)
            is_other = terms.model.name != job.model.name
            if not is_other or terms.model.worker_type is not job.model.worker_type:
                return None
            rules = terms.served.get(job.route)
            if rules is None or job.path:
                return None
            check_body(job.body, rules, terms, ())
        except HostlerError:
            return None
        return job.turned_to(terms.model)

    def engine_job(self, request: Request, key: KeyView, path: str) -> Job:
        """Judge a request for an engine's own route, by the dialect's allow-list. Raises as `job`."""
        body = self.body(request)
        terms = self.find(read_model(body), key)
        rules = terms.dialect.passthrough.get(path)
        if rules is None:
            known = ", ".join(sorted(terms.dialect.passthrough)) or "none"
            raise BadRequest(
                f"engine {terms.dialect.name!r}: {path[:96]!r} is not let through (known: {known})"
            )
        check_body(body, rules, terms, ())
        return Job(
            terms.model,
            Route.TOKENIZE,
            body,
            key=key,
            priority=read_priority(request, key),
            request_id=request.request_id,
            fields=request.fields,
            path=path,
        )

    # Private

    def _job(self, request: Request, key: KeyView, route: Route) -> Job:
        body = as_object(parse_json_to_encode(request.body, self._json_depth))
        terms = self.find(read_model(body), key)
        rules = terms.served.get(route)
        if rules is None:
            raise NotFound(
                f"model {terms.model.name!r} ({terms.model.worker_type.value}, engine "
                f"{terms.dialect.name}) does not do {route.value}",
                param="model",
            )
        check_body(body, rules, terms, REQUIRED.get(route, ()))
        job = Job(
            terms.model,
            route,
            body,
            key=key,
            priority=read_priority(request, key),
            request_id=request.request_id,
            fields=request.fields,
        )
        job.asks_usage = self._asks_usage and route in GENERATING
        job.encoded("", terms.dialect)  # now, for a body that cannot be is refused here
        return job


def read_priority(request: Request, key: KeyView) -> Priority:
    """Return the class a request waits in: its key's, or a lower one that it asks for itself.

    Raises:
        BadRequest: the header says something else than a class.
    """
    given = request.fields.get(PRIORITY_FIELD)
    if given is None:
        return key.priority
    try:
        return max(key.priority, Priority[given.decode("ascii").upper()])
    except (KeyError, UnicodeDecodeError):
        raise BadRequest(
            f"x-hostler-priority: {given[:32].decode('ascii', 'replace')!r} is no class; send high, "
            f"normal or low (this key's own is {key.priority.word}, and cannot be raised)",
            param="x-hostler-priority",
        ) from None


def check_body(body: Body, rules: Rules, terms: Terms, required: tuple[str, ...]) -> None:
    """Return when every field may go to the engine and none is missing.

    Raises:
        BadRequest
    """
    check_fields(body, rules, engine=terms.dialect.name, model=terms.model.name)
    for name in required:
        if body.get(name) is None:
            raise BadRequest(f"{name}: this field is needed", param=name)
