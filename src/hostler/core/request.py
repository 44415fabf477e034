"""What an inference request may hold: one rule a field, one loop over the fields.

What passes is forwarded unchanged. Which fields an engine knows is its dialect's business
(engines/dialect.py); here is what each of them may be. JSON is read in wire/json.py. Sources of the
limits: vLLM's own caps and the advisories in which an engine died by a parameter.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

import msgspec

from hostler.core.errors import BadRequest, InvalidJSON, UnknownParameter

Body = dict[str, Any]
Rule = Callable[[str, Any], None]  # raises BadRequest; the name is for its text
Rules = dict[str, Rule]  # by field


class Route(StrEnum):
    """A kind of work that a request asks for."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    TOKENIZE = "tokenize"


N_MAX = 8
_encode: Final = msgspec.json.Encoder().encode
STOPS_MAX, STOP_CHARS_MAX = 4, 256
BIASES_MAX = 1024
TOOLS_MAX = 128
SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX = 64 * 1024, 16
GRAMMAR_CHARS_MAX = 4096
INPUTS_MAX = 2048
MEDIA_CHARS_MAX = 8 * 1024 * 1024

# Names that reach files, templates, addresses or code. Refused at every depth of a message.
_DANGEROUS_NAMES = """
    chat_template chat_template_kwargs chat_template_content_format mm_processor_kwargs
    media_io_kwargs api_base base_url api_key api_version extra_headers extra_body user_config lora
    lora_path lora_request lora_adapter lora_adapters lora_name model_path model_file proxy
    organization custom_llm_provider"""
DANGEROUS = frozenset(_DANGEROUS_NAMES.split())


def as_object(value: Any) -> Body:
    """Return a parsed request body, which must be a JSON object.

    Raises:
        InvalidJSON: it is not.
    """
    if type(value) is not dict:
        raise InvalidJSON("the body must be a JSON object")
    return value


def encode_body(body: Body) -> bytes:
    """Return the bytes that go to an engine: made from what was judged, so both see one thing."""
    return _encode(body)


def read_model(body: Body) -> str:
    """Return the `model` field.

    Raises:
        BadRequest: absent, or not a name.
    """
    model = body.get("model")
    if type(model) is not str or not 0 < len(model) <= 256:
        raise BadRequest("model: need the name of a model, as text", param="model")
    return model


def choices_of(body: Body) -> int:
    """Return how many answers a completion or chat asks for: one a prompt, times `n`."""
    n = body.get("n")
    prompt = body.get("prompt")
    prompts = 1
    if isinstance(prompt, list | tuple) and prompt and type(prompt[0]) is not int:
        prompts = len(prompt)
    return prompts * (n if type(n) is int and n > 1 else 1)


def check_fields(body: Body, rules: Rules, *, engine: str, model: str) -> None:
    """Return when every field is known and may be what it is. `null` counts as not given.

    Raises:
        UnknownParameter: a field without a rule; its message names the nearest known one.
        BadRequest: a value of the wrong type or out of range; `param` names it.
    """
    for name, value in body.items():
        rule = rules.get(name)
        if rule is None:
            raise unknown_parameter(name, rules, engine=engine, model=model)
        if value is not None:
            rule(name, value)


def unknown_parameter(
    name: str, known: Iterable[str], *, engine: str, model: str
) -> UnknownParameter:
    """Say what is wrong with a field, what was probably meant, and what an operator can do."""
    shown = name[:64]
    if name in DANGEROUS:
        return UnknownParameter(
            f"{shown}: this field reaches files, templates or addresses and is not let through; "
            f"an operator can open it for model {model!r}: open_fields = [{shown!r}]",
            param=shown,
        )
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UnknownParameter(
        f"{shown}: not a field that engine {engine!r} is known to take here;{hint} "
        f"an operator can open it for model {model!r}: open_fields = [{shown!r}]",
        param=shown,
    )


# Rules


def anything(name: str, value: Any) -> None:
    """For fields an operator opened."""


def boolean(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise _wrong(name, "true or false", value)


def integer(low: int, high: int) -> Rule:
    def rule(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(name, f"a whole number from {low} to {high}", value)

    return rule


def number(low: float, high: float) -> Rule:
    def rule(name: str, value: Any) -> None:
        if type(value) is float:  # not a number is in no range, and both ends are finite
            given: float = value
            if low <= given <= high:
                return
        elif type(value) is int and low <= value <= high:
            return
        raise _wrong(name, f"a number from {low:g} to {high:g}", value)

    return rule


def text(chars: int) -> Rule:
    def rule(name: str, value: Any) -> None:
        if type(value) is not str or len(value) > chars:
            raise _wrong(name, f"text of at most {chars} characters", value)

    return rule


def one_of(*words: str) -> Rule:
    def rule(name: str, value: Any) -> None:
        if value not in words:
            raise _wrong(name, "one of " + ", ".join(words), value)

    return rule


def list_of(rule: Rule, most: int, least: int = 0) -> Rule:
    def check(name: str, value: Any) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            raise _wrong(name, f"a list of {least} to {most} items", value)
        for place, item in enumerate(value):
            rule(f"{name}[{place}]", item)

    return check


def either(*kinds: tuple[type, Rule]) -> Rule:
    """One rule a JSON type."""
    table = dict(kinds)

    def check(name: str, value: Any) -> None:
        rule = table.get(type(value))
        if rule is None:
            words = " or ".join(_JSON_NAMES[kind] for kind in table)
            raise _wrong(name, words, value)
        rule(name, value)

    return check


def mapping_of(rules: Mapping[str, Rule]) -> Rule:
    """An object with these members alone."""

    def check(name: str, value: Any) -> None:
        if type(value) is not dict:
            raise _wrong(name, "an object", value)
        for key, item in value.items():
            rule = rules.get(key)
            if rule is None:
                raise UnknownParameter(
                    f"{name}.{key[:64]}: not known here; known: {', '.join(sorted(rules))}",
                    param=f"{name}.{key[:64]}",
                )
            if item is not None:
                rule(f"{name}.{key}", item)

    return check


def string_map(entries: int, key_chars: int, value_chars: int) -> Rule:
    def check(name: str, value: Any) -> None:
        if type(value) is not dict or len(value) > entries:
            raise _wrong(name, f"an object of at most {entries} texts", value)
        for key, item in value.items():
            if len(key) > key_chars or type(item) is not str or len(item) > value_chars:
                raise _wrong(f"{name}.{key[:64]}", f"text of at most {value_chars}", item)

    return check


def bounded_json(size_bytes: int, levels: int) -> Rule:
    """Any JSON object or list, as a schema is, of bounded size and depth."""

    def check(name: str, value: Any) -> None:
        if type(value) not in (dict, list):
            raise _wrong(name, "an object", value)
        if _is_deeper(value, levels):
            raise BadRequest(f"{name}: nested deeper than {levels} levels", param=name)
        if len(msgspec.json.encode(value)) > size_bytes:
            raise BadRequest(f"{name}: over {size_bytes} bytes", param=name)

    return check


def logit_bias(name: str, value: Any) -> None:
    """`{token: bias}`, or llama.cpp's `[[token, bias], ...]`."""
    if type(value) not in (dict, list) or len(value) > BIASES_MAX:
        raise _wrong(name, f"at most {BIASES_MAX} token biases", value)
    pairs = value.items() if type(value) is dict else [_pair(name, item) for item in value]
    for _, bias in pairs:
        if type(bias) is bool or type(bias) not in (int, float) or not -100 <= bias <= 100:
            if bias is False and type(value) is list:
                continue  # llama.cpp: never this token
            raise _wrong(name, "biases from -100 to 100", bias)


def tools(name: str, value: Any) -> None:
    if type(value) is not list or len(value) > TOOLS_MAX:
        raise _wrong(name, f"a list of at most {TOOLS_MAX} tools", value)
    for place, tool in enumerate(value):
        if type(tool) is not dict or type(tool.get("type", "function")) is not str:
            raise _wrong(f"{name}[{place}]", "a tool object", tool)
        _SCHEMA(f"{name}[{place}]", tool)


def messages(name: str, value: Any) -> None:
    """Chat messages: roles and contents are texts or parts; media come as `data:` URLs only."""
    if type(value) is not list or not value:
        raise _wrong(name, "a list of one message or more", value)
    for place, message in enumerate(value):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise _wrong(f"{name}[{place}]", "an object with a role", message)
        content = message.get("content")
        if type(content) is str and message.keys() <= _PLAIN_MESSAGE:
            continue
        if content is not None and type(content) not in (str, list):
            raise _wrong(f"{name}[{place}].content", "text or a list of parts", content)
        _check_inside(f"{name}[{place}]", message)


def prompt(name: str, value: Any) -> None:
    """A text, the ids of its tokens, or a list of either."""
    if type(value) is str:
        return
    if type(value) is not list or not value or len(value) > MEDIA_CHARS_MAX:
        raise _wrong(name, "text, token ids, or a list of them", value)
    kind = type(value[0])
    if kind is int:
        _check_token_ids(name, value)
        return
    if kind not in (str, list) or len(value) > INPUTS_MAX:
        raise _wrong(name, f"text, token ids, or a list of at most {INPUTS_MAX} of them", value)
    for place, item in enumerate(value):
        if type(item) is not kind:
            raise _wrong(f"{name}[{place}]", "the same kind of item everywhere", item)
        if type(item) is list:
            _check_token_ids(f"{name}[{place}]", item)


# Private

_JSON_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_PLAIN_MESSAGE = frozenset({"role", "content", "name", "tool_call_id", "refusal"})
_SCHEMA = bounded_json(SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX)
_URL_KEYS = frozenset({"url", "image_url", "audio_url", "video_url", "file_url"})
_TEXT_KEYS = frozenset({"text", "content", "arguments", "refusal", "reasoning_content", "thinking"})
_SCHEMES = ("http:", "https:", "file:", "ftp:", "s3:", "gs:")


def _wrong(name: str, needed: str, value: Any) -> BadRequest:
    """The value itself is never shown: it may be part of a prompt."""
    shown = value if type(value) in (int, float, bool) else None
    got = f"{shown}"[:32] if shown is not None else _JSON_NAMES.get(type(value), "null")
    if type(value) in (list, dict, str):
        got += f" of {len(value)}"
    return BadRequest(f"{name}: need {needed}, got {got}", param=name)


def _pair(name: str, item: Any) -> tuple[Any, Any]:
    if type(item) is not list or len(item) != 2:
        raise _wrong(name, "pairs of a token and a bias", item)
    return item[0], item[1]


def _check_token_ids(name: str, ids: list[Any]) -> None:
    if not all(type(token) is int and token >= 0 for token in ids):
        raise BadRequest(f"{name}: token ids must be whole numbers of 0 or more", param=name)


def _is_deeper(value: Any, levels: int) -> bool:
    """Is it nested deeper than so many levels? No recursion."""
    layer = [value]
    for _ in range(levels + 1):
        below: list[Any] = []
        for item in layer:
            if type(item) is dict:
                below.extend(v for v in item.values() if type(v) in (dict, list))
            elif type(item) is list:
                below.extend(v for v in item if type(v) in (dict, list))
        if not below:
            return False
        layer = below
    return True


def _is_address(key: str, value: str) -> bool:
    """Does it make an engine fetch something? What is plainly text may mention addresses."""
    if key in _URL_KEYS:
        return not value.startswith("data:")
    return key not in _TEXT_KEYS and value[:16].lstrip().lower().startswith(_SCHEMES)


def _check_inside(name: str, message: Any) -> None:
    """Refuse dangerous names and addresses at every depth of a message."""
    waiting = [(name, message)]
    while waiting:
        where, value = waiting.pop()
        if type(value) is list:
            waiting.extend((f"{where}[{n}]", item) for n, item in enumerate(value))
        if type(value) is not dict:
            continue
        for key, item in value.items():
            inner = f"{where}.{key[:64]}"
            if key in DANGEROUS:
                raise UnknownParameter(f"{inner}: not let through in a message", param=inner)
            if type(item) is str and _is_address(key, item):
                raise BadRequest(
                    f"{inner}: media come as data: URLs here, not by address", param=inner
                )
            if type(item) in (dict, list):
                waiting.append((inner, item))
