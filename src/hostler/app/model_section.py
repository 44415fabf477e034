"""Settings of one model: a `[[models]]` table."""

from typing import Any

from hostler.app.section import Section
from hostler.core.model import WorkerType


class ModelConfig(Section, frozen=True, kw_only=True):
    """One `[[models]]` table. What is left out comes from the catalogue entry of that name."""

    name: str
    type: WorkerType | None = None
    engine: str | None = None
    source: str | None = None
    replicas: int | None = None
    concurrency: int | None = None
    params: dict[str, Any] | None = None
    urls: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    open_fields: tuple[str, ...] | None = None
    upstream_model: str | None = None
    api_key_env: str | None = None
    routing: dict[str, Any] | None = None  # [models.routing], as RoutingRules
    scaling: dict[str, Any] | None = None  # [models.scaling], as ScalingRules
    host: str | None = None  # the one machine it may run on; "localhost": the controller's own
    labels: dict[str, str] | None = None  # that its machine must have
    resources: dict[str, Any] | None = None  # [models.resources]: what Ray holds for each instance
    runtime_env: dict[str, Any] | None = (
        None  # [models.runtime_env]: what Ray installs for its process
    )
