"""The official OpenAI SDK as one more client of the load: what a program sees that uses it."""

import time
from collections.abc import Mapping
from typing import Any

import httpx2
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
)

from hostler.testing.load import Outcome, Seen, Target


def sdk_for(target: Target) -> AsyncOpenAI:
    """Return a client that hides nothing: it never tries again by itself."""
    key = target.headers["authorization"].removeprefix("Bearer ")
    url = f"http://{target.host}:{target.port}/v1"
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=0)


async def ask_with_sdk(
    client: AsyncOpenAI, body: Mapping[str, Any], *, request_id: str, timeout_s: float = 30.0
) -> Seen:
    """Send one chat request; never raises for what the server does.

    The SDK hides `[DONE]`: a stream without a finish_reason is what it calls a good end and we do not.
    """
    seen = Seen(request_id=request_id, body=body, outcome=Outcome.SILENT_END)
    began_s = time.monotonic()
    chat: Any = client.chat.completions
    told = {"extra_headers": {"x-request-id": request_id}, "timeout": timeout_s}
    try:
        answer: Any = await chat.create(**body, **told)
        seen.status = 200
        if body.get("stream"):
            async for chunk in answer:
                _take(seen, chunk, "delta")
        else:
            _take(seen, answer, "message")
        if seen.finish_reason:
            seen.outcome = Outcome.OK
    except APIStatusError as error:
        seen.outcome, seen.status = Outcome.HTTP_ERROR, error.status_code
        seen.error_code = error.code or ""
    except APITimeoutError:
        seen.outcome = Outcome.TIMEOUT
    except (APIConnectionError, httpx2.HTTPError):
        seen.outcome = Outcome.RESET
    except APIError as error:
        seen.outcome, seen.error_code = Outcome.ERROR_EVENT, error.code or ""
    seen.seconds = time.monotonic() - began_s
    return seen


# Private


def _take(seen: Seen, answer: Any, part: str) -> None:
    seen.named = answer.model
    for choice in answer.choices:
        seen.text += getattr(choice, part).content or ""
        seen.finish_reason = choice.finish_reason or seen.finish_reason
