"""How many tokens a prompt or a chat has. Takes no slot."""

from collections.abc import Mapping
from typing import Any

from hostler.core.snapshot import InstanceView
from hostler.engines.counting import question, read_count
from hostler.engines.dialect import find_dialect
from hostler.manager.calls import ask


async def count_tokens(
    instance: InstanceView, params: Mapping[str, Any], *, timeout_s: float
) -> int:
    """Return the tokens of `params["prompt"]`, or of `params["messages"]` in the chat template.

    Raises:
        BadRequest: neither or both are given. NotFound: the engine cannot tell.
    """
    asked = question(dict(params), find_dialect(instance.engine), instance)
    answer = await ask(instance, asked.path, asked.body, timeout_s=timeout_s)
    count: int = read_count(answer)["count"]
    return count
