"""The default models' files for tests, fetched once into a folder that all runs share."""

import asyncio
import os
from pathlib import Path

from hostler.catalog.catalog import Catalog
from hostler.catalog.sources import fetch_model
from hostler.core.model import WorkerType

ROLES = {
    "chat": WorkerType.LLM,
    "llm": WorkerType.LLM,
    "embedding": WorkerType.TEXT2VEC,
    "text2vec": WorkerType.TEXT2VEC,
    "reranker": WorkerType.RERANKER,
}


def models_dir() -> Path:
    """Return the shared folder, made when it is not there: `HOSTLER_TEST_MODELS`, else one in the
    user's cache.
    """
    given = os.environ.get("HOSTLER_TEST_MODELS")
    folder = Path(given) if given else Path.home() / ".cache" / "hostler-tests" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_path(role: str) -> Path:
    """Return the file or folder of a default model: role chat, embedding or reranker."""
    entry = Catalog().default_for(ROLES[role])
    assert entry is not None
    return asyncio.run(fetch_model(entry.source, models_dir(), entry=entry))
