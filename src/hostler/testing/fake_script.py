"""Script: what the fake engine is told to do wrong, for all requests or, by magic words, for one.

Set with `--script JSON`, merged by `POST /_fake/script`, and overridden for one request by words in
its prompt: `[[name=value]]` for any per-request field below, and the short forms in `SHORT`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from hostler.testing import fake_text

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All orders. The defaults are a healthy engine.

    A place in an answer (`crash_at`, `hang_at`, `half_at`) is 0 for before any byte, k for after k tokens.
    crash_with: a signal's name, or an exit code.
    """

    # an answer
    tokens: Count = fake_text.TOKENS
    dimensions: Annotated[int, msgspec.Meta(ge=1)] = fake_text.DIMENSIONS
    reasoning: Count = 0  # tokens of thought before the answer of a chat
    tool_calls: Count = 0  # a chat calls so many tools instead of saying anything
    first_delay_ms: Seconds = 0.0  # before the first byte
    delay_ms: Seconds = 0.0  # before each token
    read_ms: Seconds = 0.0  # for each token of the prompt that no request before it has read
    crash_at: Count | None = None
    crash_with: str = "SIGKILL"
    hang_at: Count | None = None
    half_alive: bool = False  # sends the head of an answer, then nothing
    half_at: Count | None = None  # half an event after k tokens, then crash_with
    ending: Literal["done", "no_done", "no_finish", "cut", "reset", "open"] = "done"
    spoil: Literal["", "head", "chunk", "garbage"] = (
        ""  # its bytes: see docs/reference/fake-engine.md
    )
    status: int = 0  # answer with this one instead
    status_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0  # so often; evenly, not at random
    status_body: Literal["openai", "garbage", "empty", "too_long"] = "openai"
    retry_after_s: Count | None = None  # header of such an answer
    content_type: str = ""
    length_delta: int = 0  # added to the Content-Length of a whole answer
    drip_bytes: Count = 0  # writes so many bytes at a time, drip_ms apart
    drip_ms: Seconds = 1.0
    stdout_mb: Count = 0  # printed before the answer
    allocate_mb: Count = 0  # held in memory while it answers
    # the process
    load_s: Seconds = 0.0  # 503 until then
    never_ready: bool = False
    exit_at_start: int | None = None
    sigterm: Literal["exit", "drain", "ignore"] = "exit"
    lie_model: str = ""  # the id it claims to serve; its tokens stay honest
    strict_model: bool = False  # 404 when the request names another model, as vLLM does
    grandchildren: bool = False  # a setsid child and a double-forked one, both sleeping
    dump: str = ""  # path for its argv and environment, as JSON
    start_stdout_mb: Count = 0
    close_after: Count = 0  # closes a connection silently after so many answers
    refuse_s: Seconds = 0.0  # when posted: does not listen for so long, and ends idle connections


# What may not be changed for a single request.
PROCESS_FIELDS = frozenset(
    [
        "load_s",
        "never_ready",
        "exit_at_start",
        "sigterm",
        "lie_model",
        "strict_model",
        "grandchildren",
        "dump",
        "start_stdout_mb",
        "close_after",
        "refuse_s",
    ]
)

SHORT: Mapping[str, Mapping[str, Any]] = {
    "die": {"crash_at": 0},
    "segv": {"crash_at": 0, "crash_with": "SIGSEGV"},
    "abort": {"crash_at": 0, "crash_with": "SIGABRT"},
    "hang": {"hang_at": 0},
    "half": {"half_at": 2},
}


def parse_script(text: str | bytes) -> Script:
    """Return the script of a JSON object.

    Raises:
        msgspec.ValidationError: an unknown field or a wrong value.
    """
    return msgspec.json.decode(text or "{}", type=Script)


def merge(script: Script, changes: Mapping[str, Any]) -> Script:
    """Return the script with changes on top; a null puts a field back to its default."""
    data = {**msgspec.to_builtins(script), **changes}
    return msgspec.convert({k: v for k, v in data.items() if v is not None}, Script, strict=False)


def script_for(script: Script, prompts: list[str]) -> Script:
    """Return the script as the magic words in these prompts change it. Unknown words change nothing."""
    changes: dict[str, Any] = {}
    for prompt in prompts:
        for name, value in fake_text.magic_words(prompt).items():
            if name in SHORT:
                changes.update(SHORT[name])
            elif name in Script.__struct_fields__ and name not in PROCESS_FIELDS:
                changes[name] = value or "true"
    return merge(script, changes) if changes else script
