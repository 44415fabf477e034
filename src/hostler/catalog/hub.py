"""`hf:`: one file of a Hugging Face repository, by the hub's own client as a child process.

As a child it can be cancelled at once, and its token and settings stay its own affair.
"""

import hashlib
import importlib.util
from pathlib import Path

from hostler.app.config import child_environment
from hostler.app.environment import own_python
from hostler.catalog.address import HubAddress
from hostler.catalog.progress import FetchLimits, FetchPhase
from hostler.catalog.runner import in_thread, run_client
from hostler.catalog.store import StoredFile, check_space, locked, staging
from hostler.catalog.wheel import Tell, hash_file
from hostler.core.errors import ModelSourceError


async def fetch_from_hub(
    address: HubAddress,
    into: Path,
    models_dir: Path,
    *,
    download_bytes: int | None,
    limits: FetchLimits,
    tell: Tell,
) -> tuple[StoredFile, ...]:
    """Put the file into `into`, under its own last name.

    Raises:
        ModelSourceError: the extra is not installed; the hub refused or cannot be reached.
        InsufficientStorage: before the download, or when the disk runs full.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelSourceError(
            f"hf:{address.repository} needs the hub's client: pip install 'hostler[hf]', "
            "or fetch the file yourself and give its path as the source"
        )
    check_space(models_dir, download_bytes or 0, limits.reserve_bytes)
    lock = hashlib.sha256(repr(address).encode()).hexdigest()[:16]
    async with locked(models_dir, f"hub-{lock}", on_wait=lambda: tell(FetchPhase.WAITING, 0, None)):
        with staging(models_dir) as stage:
            await run_client(
                _command(address, stage),
                environment={**_environment(), **limits.index_environment},
                folder=stage,
                what=f"hf:{address.repository}",
                advice="check the name, the revision, the network; a gated model needs HF_TOKEN",
                stall_s=limits.stall_s,
                on_bytes=lambda size: tell(FetchPhase.DOWNLOADING, size, download_bytes),
            )
            got = stage / address.file
            if not got.is_file() or got.is_symlink():
                raise ModelSourceError(
                    f"hf:{address.repository}: the client left no {address.file}"
                )
            found = await in_thread(lambda stop: hash_file(got, stop))
            size = got.stat().st_size
            got.rename(into / got.name)
    return (StoredFile(name=got.name, bytes=size, sha256=found),)


# Private


def _command(address: HubAddress, stage: Path) -> list[str]:
    revision = [f"--revision={address.revision}"] if address.revision else []
    return [
        *own_python("-m"),
        "huggingface_hub.cli.hf",
        "download",
        *revision,
        f"--local-dir={stage}",
        "--",
        address.repository,
        address.file,
    ]


def _environment() -> dict[str, str]:
    inherited = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith("HOSTLER_")
    }
    return {
        **inherited,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",
    }
