"""Straight calls: claim a slot, send, read, give the slot back. No gateway between."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec

from hostler.app.config import GatewayConfig, environment
from hostler.core.errors import BadRequest, HostlerError, UpstreamError, UpstreamTimeout, WorkerLost
from hostler.core.request import Route
from hostler.core.snapshot import InstanceView
from hostler.engines.assembly import (
    ASSEMBLED_ROUTES,
    PROGRESS,
    Assembly,
    can_assemble,
    wants_progress,
    with_progress,
)
from hostler.engines.counting import question, read_count
from hostler.engines.dialect import find_dialect
from hostler.manager.answers import decode_answer, error_of, json_or_none
from hostler.manager.ways import Ways
from hostler.routing.claim import Claim, Outcome
from hostler.routing.router import Router
from hostler.wire.client import fetch, stream
from hostler.wire.http1 import Fields
from hostler.wire.identity import ClientContexts
from hostler.wire.relay import LOST_FIELD
from hostler.wire.sink import UpstreamLost, UpstreamStatus
from hostler.wire.sse import EventCutter, split_events

Body = Mapping[str, Any]
COUNT_TIMEOUT_S = 30.0
MISDIRECTED = 421  # by an engine or a relay
SILENCE_S = 600.0  # a prefill may be long; a dead worker is noticed by its connection


class Caller:
    """Asks the instances of a router, and another one as long as no answer byte has come."""

    def __init__(
        self,
        router: Callable[[], Router],
        config: GatewayConfig,
        tls: Callable[[], ClientContexts | None] = lambda: None,
    ) -> None:
        """router: called for each use, so that it can be brought up to date. tls: who we are, for engines on
        other machines.
        """
        self._router = router
        self._config = config
        self.ways = Ways(config, tls)

    async def close(self) -> None:
        """Let go of the connections to other machines; what is under way there is lost."""
        await self.ways.close()

    async def events(self, model: str, route: Route, body: Body) -> AsyncGenerator[bytes, None]:
        """Yield the whole SSE events of a streamed answer.

        Raises:
            ModelNotFound, NoReadyInstance, Overloaded: nobody could be asked.
            WorkerLost: those who were asked died. Any other HostlerError: the engine's own refusal.
        """
        tries = _Tries(model, self._config)
        while True:
            claim = await self._router().wait_claim(model, exclude=frozenset(tries.tried))
            began = False
            try:
                with _told(claim):
                    async with aclosing(self._events_of(claim.instance, route, body)) as events:
                        async for event in events:
                            began = True
                            yield event
                return
            except UpstreamLost as error:
                tries.lost(claim, error, began=began)

    async def answer(self, model: str, route: Route, body: Body) -> Mapping[str, Any]:
        """Return a whole JSON answer. Raises as `events`."""
        tries = _Tries(model, self._config)
        while True:
            claim = await self._router().wait_claim(model, exclude=frozenset(tries.tried))
            try:
                with _told(claim):
                    return await self._answer_of(claim.instance, route, body)
            except UpstreamLost as error:
                tries.lost(claim, error, began=False)

    async def count(self, model: str, body: Body) -> int:
        """Return the tokens of a `prompt` or `messages`. Takes no slot, so a busy model answers too.

        Raises:
            BadRequest: neither or both are given. NotFound: the engine cannot tell.
            ModelNotFound, NoReadyInstance: nobody could be asked.
        """
        instance = self._router().select(model)
        asked = question(dict(body), find_dialect(instance.engine), instance)
        try:
            answer = await self._ask(instance, asked.path, asked.body, COUNT_TIMEOUT_S)
        except UpstreamLost as error:
            raise UpstreamError("the engine did not count the tokens") from error
        found: int = read_count(answer)["count"]
        return found

    # Private

    async def _answer_of(
        self, instance: InstanceView, route: Route, body: Body
    ) -> Mapping[str, Any]:
        timeout_s = self._config.request_timeout_s
        asked = dict(body)
        reports = find_dialect(instance.engine).reports_progress
        if not reports or route not in ASSEMBLED_ROUTES or not can_assemble(asked):
            return await self._ask(instance, path_of(instance, route), body, timeout_s)
        assembly = Assembly(route, asked)
        try:
            async with asyncio.timeout(timeout_s):
                async with aclosing(self._events_of(instance, route, asked)) as events:
                    async for event in events:
                        assembly.take(event)
        except TimeoutError as error:
            raise UpstreamTimeout(
                f"model {instance.model_name!r}: no answer within {timeout_s:g} s"
            ) from error
        if assembly.error is not None:
            raise error_of(json_or_none(assembly.error_body()), assembly.status)
        if not assembly.is_complete:
            raise UpstreamLost("the answer's end is missing", sent_bytes=True, got_bytes=True)
        return decode_answer(assembly.body())

    async def _ask(
        self, instance: InstanceView, path: str, body: Body, timeout_s: float
    ) -> Mapping[str, Any]:
        """Send one JSON request to an instance and return its JSON answer. Takes no slot.

        Raises:
            UpstreamLost: no whole answer came. HostlerError: the engine refused.
        """
        try:
            answer = await fetch(
                instance.endpoint,
                "POST",
                path,
                headers=headers_for(instance),
                body=encode(instance, body),
                timeout_s=timeout_s,
                pool=self.ways.pool(instance.endpoint),
            )
        except UpstreamLost as error:
            if not error.timed_out:
                raise
            raise UpstreamTimeout(
                f"model {instance.model_name!r}: no answer within {timeout_s:g} s"
            ) from error
        if answer.status >= 400:
            check_relay(answer.status, answer.headers)
            raise error_of(json_or_none(answer.body), answer.status)
        return decode_answer(answer.body)

    async def _events_of(
        self, instance: InstanceView, route: Route, body: Body
    ) -> AsyncGenerator[bytes, None]:
        cutter = EventCutter()
        sent, hides = dict(body), False
        if find_dialect(instance.engine).reports_progress:
            sent, hides = with_progress(route, sent), not wants_progress(sent)
        chunks = stream(
            instance.endpoint,
            "POST",
            path_of(instance, route),
            headers=headers_for(instance),
            body=encode(instance, sent),
            timeout_s=self._config.request_timeout_s,
            idle_s=SILENCE_S,
            pool=self.ways.pool(instance.endpoint),
        )
        try:
            async with aclosing(chunks):
                async for data in chunks:
                    for event in split_events(cutter.feed(data)):
                        if not (hides and PROGRESS in event):
                            yield event
        except UpstreamStatus as error:
            check_relay(error.status, error.headers)
            raise error_of(json_or_none(error.body), error.status) from error


def check_relay(status: int, headers: Fields) -> None:
    """Return when an error is the engine's own.

    Raises:
        UpstreamLost: a relay says that the instance is not there, or that it died with the request.
    """
    if status == MISDIRECTED:
        raise UpstreamLost("the instance is not there any more", refused=True)
    if any(name == LOST_FIELD for name, _ in headers):
        raise UpstreamLost("the engine died with the request", sent_bytes=True)


def path_of(instance: InstanceView, route: Route) -> str:
    """Return where this route is on this instance.

    Raises:
        NotFound: its engine does not serve the route.
    """
    return find_dialect(instance.engine).path(route, instance.endpoint.base_path)


def headers_for(instance: InstanceView) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request to this instance."""
    headers = [
        (b"content-type", b"application/json"),
        (b"x-hostler-instance", instance.instance_id.encode()),
    ]
    endpoint = instance.endpoint
    if endpoint.api_key_env and (key := environment(endpoint.api_key_env)):
        headers.append((b"authorization", b"Bearer " + key.encode()))
    return headers


def encode(instance: InstanceView, body: Body) -> bytes:
    """Return the body for this instance: as given, with the name it knows the model by.

    Raises:
        BadRequest: a value that JSON cannot carry.
    """
    try:
        named = {**body, "model": instance.upstream_model or instance.model_name}
        return msgspec.json.encode(named)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"params: {error}") from error


# Private


class _Tries:
    """Which instances one request was tried on, and when to give up."""

    def __init__(self, model: str, config: GatewayConfig) -> None:
        self.tried: set[str] = set()
        self._model = model
        self._config = config
        self._deaths = 0

    def lost(self, claim: Claim, error: UpstreamLost, *, began: bool) -> None:
        """Note a lost attempt.

        Raises:
            WorkerLost: no other attempt may follow.
        """
        self.tried.add(claim.instance.instance_id)
        self._deaths += not error.refused
        spent = len(self.tried) >= self._config.attempts or self._deaths >= self._config.lost_max
        if began or spent:
            raise WorkerLost(f"model {self._model!r}: its worker died with the request") from error


@contextmanager
def _told(claim: Claim) -> Iterator[None]:
    """Give the claim back with what became of it."""
    outcome = Outcome.CLIENT_GONE
    try:
        yield
        outcome = Outcome.OK
    except UpstreamLost as error:
        outcome = Outcome.REFUSED if error.refused else Outcome.LOST
        raise
    except HostlerError:
        outcome = Outcome.CLIENT_ERROR
        raise
    finally:
        claim.release(outcome)
