"""`hostler embed`, `rerank`, `tokens`: one request each, one table."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.render import print_json, print_table
from hostler.cli.serving import pick_model, served_models
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.model import WorkerType

ModelOption = Annotated[
    str | None, Parameter(name=("--model", "-m"), help="Left out: the only model of that kind.")
]


class Vector(msgspec.Struct, frozen=True):
    embedding: list[float]
    index: int = 0


class Vectors(msgspec.Struct, frozen=True):
    data: list[Vector]


class Ranked(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float


class Ranking(msgspec.Struct, frozen=True):
    results: list[Ranked]


class TokenCount(msgspec.Struct, frozen=True):
    count: int | None = None
    tokens: list[msgspec.Raw] = []


def embed(*texts: str, model: ModelOption = None, common: Common = NO_OPTIONS) -> int:
    """Turn texts into vectors.

    Example: `hostler embed "a horse" "a locomotive" --json`

    Parameters
    ----------
    texts: str
        The texts. None: one a line from stdin.
    """
    inputs = list(texts) or _lines()
    with Client(find_target(common)) as client:
        name = pick_model(served_models(client), model, WorkerType.TEXT2VEC)
        raw = client.post("/v1/embeddings", {"model": name, "input": inputs}, msgspec.Raw)
    if common.json:
        print_json(raw)
        return Exit.OK
    answer = msgspec.json.decode(raw, type=Vectors)
    print_table(
        ("TEXT", "DIMENSIONS", "FIRST VALUES"),
        (
            (
                inputs[one.index],
                len(one.embedding),
                " ".join(f"{value:+.4f}" for value in one.embedding[:4]),
            )
            for one in answer.data
        ),
        empty="no vectors came back",
    )
    return Exit.OK


def rerank(
    query: str,
    /,
    *documents: str,
    file: Path | None = None,
    top: int | None = None,
    model: ModelOption = None,
    common: Common = NO_OPTIONS,
) -> int:
    """Order documents by how well they answer a query.

    Example: `hostler rerank "who shoes horses?" "A farrier shoes horses." "Trains run on rails."`

    Parameters
    ----------
    query: str
        What is asked.
    documents: str
        The documents. None: one a line from --file or stdin.
    file: Path
        A file with one document a line.
    top: int
        Only so many of the best.
    """
    texts = list(documents) or _lines(file)
    with Client(find_target(common)) as client:
        body = {
            "model": pick_model(served_models(client), model, WorkerType.RERANKER),
            "query": query,
            "documents": texts,
            **({"top_n": top} if top is not None else {}),
        }
        raw = client.post("/v1/rerank", body, msgspec.Raw)
    if common.json:
        print_json(raw)
        return Exit.OK
    answer = msgspec.json.decode(raw, type=Ranking)
    print_table(
        ("SCORE", "DOCUMENT"),
        ((f"{one.relevance_score:.4f}", texts[one.index]) for one in answer.results),
        empty="no scores came back",
    )
    return Exit.OK


def tokens(
    text: str | None = None, /, *, model: ModelOption = None, common: Common = NO_OPTIONS
) -> int:
    """Count a text's tokens.

    Example: `hostler tokens "How many tokens are these?"`

    Parameters
    ----------
    text: str
        The text. Left out: all of stdin.
    model: str
        Whose tokenizer. Left out: the only chat model's.
    """
    content = text if text is not None else sys.stdin.read()
    with Client(find_target(common)) as client:
        name = pick_model(served_models(client), model, WorkerType.LLM)
        raw = client.post("/tokenize", {"model": name, "prompt": content}, msgspec.Raw)
    if common.json:
        print_json(raw)
        return Exit.OK
    answer = msgspec.json.decode(raw, type=TokenCount)
    print(len(answer.tokens) if answer.count is None else answer.count)
    return Exit.OK


# Private


def _lines(file: Path | None = None) -> list[str]:
    """One text a line, from a file or stdin; empty lines are left out."""
    try:
        text = file.read_text() if file is not None else _piped()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{file or 'stdin'}: cannot be read ({error})") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise CommandFailed("no text was given; pass some, or pipe one a line", Exit.USAGE)
    return lines


def _piped() -> str:
    return "" if sys.stdin.isatty() else sys.stdin.read()
