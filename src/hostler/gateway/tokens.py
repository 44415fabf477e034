"""Token counting for clients: asks an instance without taking a generation slot."""

import msgspec

from hostler.core.errors import UpstreamError
from hostler.core.request import encode_body
from hostler.core.snapshot import InstanceView
from hostler.engines.counting import TokenQuestion, read_count
from hostler.gateway.answers import engine_error, shape_error
from hostler.gateway.lanes import credentials
from hostler.wire.client import Pool, UpstreamLost, fetch


async def ask(
    asked: TokenQuestion, instance: InstanceView, timeout_s: float, pool: Pool | None = None
) -> tuple[int, bytes]:
    """Return status and body for the client: `{"count": n, "tokens": [...]}` or the engine's refusal.

    pool: of an instance on another host.

    Raises:
        UpstreamError: no usable answer.
    """
    try:
        answer = await fetch(
            instance.endpoint,
            "POST",
            asked.path,
            headers=[(b"content-type", b"application/json"), *credentials(instance.endpoint)],
            body=encode_body(asked.body),
            timeout_s=timeout_s,
            pool=pool,
        )
    except UpstreamLost as error:
        raise UpstreamError("the engine did not count the tokens") from error
    if answer.status >= 400:
        if answer.status >= 500 and engine_error(answer.body) is None:
            raise UpstreamError("the engine did not count the tokens")
        return shape_error(answer.status, answer.body)
    return 200, msgspec.json.encode(read_count(_decode(answer.body)))


# Private


def _decode(body: bytes) -> object:
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UpstreamError("the engine's count cannot be read") from error
    return found
