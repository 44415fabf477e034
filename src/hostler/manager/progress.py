"""Progress: how far a deployment is from what was wished, and whether waiting for it makes sense."""

from hostler.app.paths import StatePaths
from hostler.core.deployment import Deployment
from hostler.core.errors import EngineError
from hostler.core.lifecycle import Instance, State
from hostler.core.worker import OperatorEvent
from hostler.manager.logs import engine_lines
from hostler.manager.plan import GONE, SERVING
from hostler.manager.reconcile import Reconciler
from hostler.registry.registry import Registry


def given_up(instance: Instance, tries: int, paths: StatePaths) -> OperatorEvent:
    """Return the verdict on a crash loop, with what the engine printed last."""
    return OperatorEvent(
        kind="instance.given_up",
        model=instance.model_name,
        instance_id=instance.instance_id,
        message=f"after {tries} tries: {instance.reason}; start or restart it to try again",
        fields={"tries": tries, "log": engine_lines(paths, instance.instance_id)},
    )


class Progress:
    """How far a deployment is from what was wished."""

    def __init__(self, registry: Registry, reconciler: Reconciler, paths: StatePaths) -> None:
        self._paths = paths
        self.registry = registry
        self.reconciler = reconciler

    def living(self, deployment: Deployment | None) -> list[Instance]:
        """The instances, of one deployment or of all, that are not gone."""
        if deployment is None:
            return [i for i in self.registry.instances() if i.state not in GONE]
        return [i for i in self._of(deployment) if i.state not in GONE]

    def is_ready(self, deployment: Deployment) -> bool:
        """Whether every wished instance is ready, made from this very specification.

        Raises:
            EngineError: one was given up.
        """
        self.check(deployment)
        right = [
            i
            for i in self.living(deployment)
            if i.state is State.READY and i.generation == deployment.process_generation
        ]
        return len({i.replica for i in right}) >= deployment.wanted_instances

    def reason(self, deployment: Deployment) -> str:
        """Why the newest of its instances that is not ready is not; "": nobody has said."""
        told = [i for i in self._of(deployment) if i.state is not State.READY and i.reason]
        return max(told, key=lambda i: i.epoch).reason if told else ""

    def has_failed(self, model_name: str) -> bool:
        """Whether it crashed lately, and no instance serves: the wish as it is does not work."""
        mine = [record.instance for record in self.registry.of_model(model_name)]
        if any(i.state in SERVING for i in mine):
            return False
        return any(
            i.state is State.FAILED or self.reconciler.has_crashed(i.worker_key) for i in mine
        )

    def check(self, deployment: Deployment, *, tries: int | None = None) -> None:
        """Raise when a wished instance was given up, or failed `tries` times in a row."""
        for instance in self._of(deployment):
            if instance.state is not State.FAILED:
                continue
            if instance.generation != deployment.process_generation:
                continue
            crashes = self.reconciler.crashes(instance.worker_key, instance.replica)
            if crashes.verdict or (tries is not None and len(crashes.at_s) >= tries):
                lines = engine_lines(self._paths, instance.instance_id)
                told = "\n".join(["", *lines]) if lines else ""
                raise EngineError(
                    f"model {deployment.name!r}: given up after {len(crashes.at_s)} tries: "
                    f"{instance.reason}{told}",
                    model=deployment.name,
                )

    # Private

    def _of(self, deployment: Deployment) -> list[Instance]:
        return [
            record.instance
            for record in self.registry.of_model(deployment.name)
            if record.instance.worker_key == deployment.worker_key
        ]
