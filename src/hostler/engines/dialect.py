"""Dialect: what differs between engines on the wire: fields, paths, connections, token counting.

Light: no engine is imported here. Fields outside the lists are refused unless the operator opened
them for a model. Not here: what a field may be (core/request.py).
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from hostler.core import request as req
from hostler.core.errors import NotFound
from hostler.core.request import Route, Rule, Rules


class Counting(StrEnum):
    """How an engine answers `how many tokens is this`."""

    LLAMA = "llama.cpp"  # POST /tokenize {content} → {tokens}; chats by …/input_tokens
    VLLM = "vllm"  # POST /tokenize {prompt | messages} → {count, tokens}
    HOSTLER = "hostler"  # POST /tokenize {prompt | messages} → {count}
    NONE = "none"


class Continuing(StrEnum):
    """How an engine is asked to go on with a message it has begun."""

    NO = "no"
    LAST_MESSAGE = "last message"  # the last message is the assistant's: llama.cpp
    FLAGS = "flags"  # and two flags say so: vLLM, SGLang


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How to talk to one engine.

    rules: for each route, the rule of each field it may carry.
    paths: for each route, where it is; a path that starts with `~` is below the base path.
    idle_s, requests_per_connection: how long and how often a connection to it is used again.
    passthrough: further POST paths of the engine that inference keys may reach, with the rules of
        their fields.
    continuing: of a chat; NO: of nothing.
    reports_progress: it notices a lost client only while it streams, and can stream its progress
        through a prompt: see assembly.py.
    tells_usage: asked by `stream_options.include_usage`, its streams end with an event of their usage.
    """

    name: str
    rules: Mapping[Route, Rules]
    paths: Mapping[Route, str]
    idle_s: float = 30.0
    requests_per_connection: int = 1_000_000
    counting: Counting = Counting.NONE
    passthrough: Mapping[str, Rules] = {}
    reports_progress: bool = False
    continuing: Continuing = Continuing.NO
    tells_usage: bool = False

    def path(self, route: Route, base_path: str) -> str:
        """Return the path of a route on a server with this base path.

        Raises:
            NotFound: the engine does not do that.
        """
        path = self.paths.get(route)
        if path is None:
            raise NotFound(f"engine {self.name!r} does not serve {route.value}")
        return base_path.rstrip("/") + path[1:] if path.startswith("~") else path


def find_dialect(engine: str) -> Dialect:
    """Return the dialect of this engine; one we do not know is taken to speak plain OpenAI."""
    return DIALECTS.get(engine, _OPENAI)


def open_rules(dialect: Dialect, open_fields: Iterable[str]) -> Mapping[Route, Rules]:
    """Return the rules with the fields an operator opened, whatever they hold."""
    opened: dict[str, Rule] = dict.fromkeys(open_fields, req.anything)
    if not opened:
        return dialect.rules
    return {route: {**opened, **rules} for route, rules in dialect.rules.items()}


def code_of(error: Mapping[str, Any]) -> str:
    """Return the code of an engine's error object: its own where it is a text, else by its type."""
    code = error.get("code")
    if isinstance(code, str):
        return code
    kind = error.get("type")
    return _CODES.get(kind, kind) if isinstance(kind, str) else ""


# Private

# llama.cpp's types for what has a code in the contract
_CODES = {
    "exceed_context_size_error": "context_length_exceeded",
    "unavailable_error": "model_loading",
}

_COUNT = req.integer(0, 2**31 - 1)
_SIGNED = req.integer(-(2**31), 2**31 - 1)
_SEED = req.integer(-(2**63), 2**64 - 1)
_SHORT = req.text(512)
_TEXT = req.text(req.MEDIA_CHARS_MAX)
_PENALTY = req.number(-2, 2)
_SHARE = req.number(0, 1)
_SCHEMA = req.bounded_json(req.SCHEMA_BYTES_MAX, req.SCHEMA_DEPTH_MAX)
_GRAMMAR = req.text(req.GRAMMAR_CHARS_MAX)
_STOP_TEXT = req.text(req.STOP_CHARS_MAX)
_STOP = req.either((str, _STOP_TEXT), (list, req.list_of(_STOP_TEXT, req.STOPS_MAX)))
_FLAG_OR_COUNT = req.either((bool, req.anything), (int, req.integer(0, 20)))
_STREAM_OPTIONS = req.mapping_of(
    {
        "include_usage": req.boolean,
        "include_obfuscation": req.boolean,
        "continuous_usage_stats": req.boolean,
    }
)

_EVERYWHERE: Rules = {"model": req.text(256), "user": _SHORT}

_GENERATION: Rules = {
    **_EVERYWHERE,
    "stream": req.boolean,
    "stream_options": _STREAM_OPTIONS,
    "temperature": req.number(0, 5),
    "top_p": _SHARE,
    "n": req.integer(1, req.N_MAX),
    "stop": _STOP,
    "max_tokens": req.integer(1, 2**31 - 1),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": req.logit_bias,
    "seed": _SEED,
    "metadata": req.string_map(16, 64, 512),
    "service_tier": _SHORT,
}

_CHAT: Rules = {
    **_GENERATION,
    "messages": req.messages,
    "max_completion_tokens": req.integer(1, 2**31 - 1),
    "logprobs": req.boolean,
    "top_logprobs": req.integer(0, 20),
    "tools": req.tools,
    "tool_choice": req.either((str, req.text(64)), (dict, _SCHEMA)),
    "parallel_tool_calls": req.boolean,
    "functions": req.tools,
    "function_call": req.either((str, req.text(64)), (dict, _SCHEMA)),
    "response_format": _SCHEMA,
    "reasoning_effort": req.text(32),
    "verbosity": req.text(32),
    "modalities": req.list_of(req.one_of("text"), 4),
    "store": req.boolean,
    "prediction": _SCHEMA,
    "prompt_cache_key": _SHORT,
    "safety_identifier": _SHORT,
}

_COMPLETIONS: Rules = {
    **_GENERATION,
    "prompt": req.prompt,
    "suffix": _TEXT,
    "echo": req.boolean,
    "logprobs": _FLAG_OR_COUNT,
    "best_of": req.integer(1, req.N_MAX),
}

_EMBEDDINGS: Rules = {
    **_EVERYWHERE,
    "input": req.prompt,
    "encoding_format": req.one_of("float", "base64"),
    "dimensions": req.integer(1, 65536),
}

_DOCUMENT = req.either((str, _TEXT), (dict, req.mapping_of({"text": _TEXT})))
_RERANK: Rules = {
    **_EVERYWHERE,
    "query": _TEXT,
    "documents": req.list_of(_DOCUMENT, req.INPUTS_MAX, least=1),
    "top_n": _COUNT,
    "return_documents": req.boolean,
    "max_tokens_per_doc": req.integer(1, 2**31 - 1),
}

_TOKENIZE: Rules = {
    **_EVERYWHERE,
    "content": _TEXT,
    "prompt": _TEXT,
    "messages": req.messages,
    "tools": req.tools,
    "add_special": req.boolean,
    "add_special_tokens": req.boolean,
    "add_generation_prompt": req.boolean,
    "parse_special": req.boolean,
    "with_pieces": req.boolean,
}

_DETOKENIZE: Rules = {**_EVERYWHERE, "tokens": req.prompt}

_SCORE: Rules = {**_EVERYWHERE, "text_1": req.prompt, "text_2": req.prompt}

_SAMPLING: Rules = {
    "top_k": req.integer(-1, 2**31 - 1),
    "min_p": _SHARE,
    "ignore_eos": req.boolean,
}

_LLAMA: Rules = {
    **_SAMPLING,
    "typical_p": _SHARE,
    "top_n_sigma": req.number(-1, 1000),
    "repeat_penalty": req.number(0, 100),
    "repeat_last_n": _SIGNED,
    "dynatemp_range": req.number(0, 100),
    "dynatemp_exponent": req.number(0, 100),
    "mirostat": req.integer(0, 2),
    "mirostat_tau": req.number(0, 100),
    "mirostat_eta": req.number(0, 100),
    "dry_multiplier": req.number(0, 100),
    "dry_base": req.number(0, 100),
    "dry_allowed_length": _COUNT,
    "dry_penalty_last_n": _SIGNED,
    "dry_sequence_breakers": req.list_of(req.text(64), 64),
    "xtc_probability": _SHARE,
    "xtc_threshold": _SHARE,
    "grammar": _GRAMMAR,
    "json_schema": _SCHEMA,
    "cache_prompt": req.boolean,
    "n_probs": req.integer(0, 20),
    "min_keep": _COUNT,
    "n_predict": req.integer(-1, 2**31 - 1),
    "n_keep": req.integer(-1, 2**31 - 1),
    "n_indent": _COUNT,
    "t_max_predict_ms": req.integer(0, 2**31 - 1),
    "post_sampling_probs": req.boolean,
    "return_tokens": req.boolean,
    "return_progress": req.boolean,
    "timings_per_token": req.boolean,
    "samplers": req.list_of(req.text(32), 32),
    "reasoning_format": req.text(32),
    "parse_tool_calls": req.boolean,
    "add_generation_prompt": req.boolean,
}

_VLLM: Rules = {
    **_SAMPLING,
    "repetition_penalty": req.number(0.01, 100),
    "length_penalty": req.number(-100, 100),
    "min_tokens": _COUNT,
    "best_of": req.integer(1, req.N_MAX),
    "use_beam_search": req.boolean,
    "early_stopping": req.boolean,
    "stop_token_ids": req.list_of(_COUNT, req.BIASES_MAX),
    "include_stop_str_in_output": req.boolean,
    "skip_special_tokens": req.boolean,
    "spaces_between_special_tokens": req.boolean,
    "add_special_tokens": req.boolean,
    "add_generation_prompt": req.boolean,
    "continue_final_message": req.boolean,
    "prompt_logprobs": req.integer(0, 20),
    "truncate_prompt_tokens": req.integer(-1, 2**31 - 1),
    "echo": req.boolean,
    "include_reasoning": req.boolean,
    "thinking_token_budget": _COUNT,
    "return_token_ids": req.boolean,
    "priority": _SIGNED,
    "guided_json": _SCHEMA,
    "guided_regex": _GRAMMAR,
    "guided_choice": req.list_of(_SHORT, req.INPUTS_MAX),
    "guided_grammar": _GRAMMAR,
    "structured_outputs": _SCHEMA,
    "regex": _GRAMMAR,  # SGLang
    "ebnf": _GRAMMAR,
    "json_schema": req.text(req.SCHEMA_BYTES_MAX),
    "repetition_detection": _SCHEMA,
}

_V1_PATHS: Mapping[Route, str] = {
    Route.CHAT: "~/chat/completions",
    Route.COMPLETIONS: "~/completions",
    Route.EMBEDDINGS: "~/embeddings",
    Route.RERANK: "~/rerank",
    Route.TOKENIZE: "/tokenize",
}


def _rules(extra: Rules) -> Mapping[Route, Rules]:
    return {
        Route.CHAT: {**extra, **_CHAT},
        Route.COMPLETIONS: {**extra, **_COMPLETIONS},
        Route.EMBEDDINGS: _EMBEDDINGS,
        Route.RERANK: _RERANK,
        Route.TOKENIZE: _TOKENIZE,
    }


_OPENAI = Dialect(
    name="openai",
    rules=_rules(_VLLM),
    paths=_V1_PATHS,
    # Less than the shortest limit that proxies have by default. A server's own may be any (uvicorn's is 5 s);
    # one that it ends is seen at once, and a request that crosses that is sent again.
    idle_s=55.0,
    counting=Counting.VLLM,
    continuing=Continuing.FLAGS,
    tells_usage=True,
    passthrough={"/detokenize": _DETOKENIZE, "/score": _SCORE},
)

DIALECTS: Mapping[str, Dialect] = {
    "llama.cpp": Dialect(
        name="llama.cpp",
        rules=_rules(_LLAMA),
        paths={r: p for r, p in _V1_PATHS.items() if r not in (Route.EMBEDDINGS, Route.RERANK)},
        idle_s=4.0,  # its server says: keep-alive timeout=5, max=100
        requests_per_connection=90,
        counting=Counting.LLAMA,
        reports_progress=True,
        continuing=Continuing.LAST_MESSAGE,
        # tells_usage not: the `timings` of its last chunk say it, and would move out of a client's sight
        passthrough={
            "/detokenize": _DETOKENIZE,
            "/apply-template": _TOKENIZE,
            "/v1/chat/completions/input_tokens": _CHAT,
        },
    ),
    "onnx": Dialect(
        name="onnx",
        rules=_rules({}),
        paths={r: p for r, p in _V1_PATHS.items() if r not in (Route.CHAT, Route.COMPLETIONS)},
        counting=Counting.HOSTLER,
    ),
    "python": Dialect(
        name="python",
        rules=_rules(_SAMPLING),
        paths=_V1_PATHS,
        counting=Counting.HOSTLER,
        tells_usage=True,
    ),
    "openai": _OPENAI,
    "fake": Dialect(
        name="fake",
        rules=_rules({**_LLAMA, **_VLLM}),
        paths=_V1_PATHS,
        continuing=Continuing.LAST_MESSAGE,
        counting=Counting.HOSTLER,
        tells_usage=True,
        passthrough={"/detokenize": _DETOKENIZE},
    ),
}
