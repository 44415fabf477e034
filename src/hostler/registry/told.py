"""Told: what a registry tells the others: its picture, the last steps that led there, and both as bytes.

What changes is gathered until somebody asks: many changes at once are one step. Steps are kept for those
who come back; who has been away for longer is told everything.
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from hostler.core.change import Change, Picture
from hostler.core.snapshot import PROTOCOL, InstanceView, KeyView, ModelView, Snapshot
from hostler.registry.elsewhere import for_elsewhere

STEPS_MAX = 1024
VIEWS_MAX = 20_000  # in all steps that are kept: some 8 MB

ModelOf = Callable[[ModelView], ModelView]


class _Step:
    """One change, and its lines once somebody needed them."""

    __slots__ = ("change", "lines", "size")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.size = len(change.models) + len(change.instances) + len(change.gone) + 1
        self.lines: dict[int | None, bytes] = {}  # by `relay_port`


class Told:
    """The one place where versions are counted."""

    def __init__(self, incarnation: int, model_of: ModelOf) -> None:
        """model_of: what a described model looks like, with its instances counted."""
        self.picture = Picture(incarnation=incarnation, protocol=PROTOCOL)
        self._model_of = model_of
        self._described: dict[str, ModelView] = {}
        self._keys: tuple[KeyView, ...] = ()
        self._stirred_instances: dict[str, InstanceView | None] = {}
        self._stirred_models: dict[str, None] = {}
        self._is_first = False  # the first step is told even if there is nothing to tell
        self._steps: deque[_Step] = deque()
        self._size = 0
        self._whole: dict[tuple[int, int | None], tuple[int, bytes]] = {}  # version, line

    # What is other

    @property
    def is_stirred(self) -> bool:
        """May there be something to tell?"""
        return bool(self._stirred_models or self._stirred_instances or self._is_first) or (
            self._keys != self.picture.keys
        )

    def describe(self, models: Sequence[ModelView]) -> None:
        before, self._described = self._described, {model.name: model for model in models}
        for name in (*self._described, *before):
            if before.get(name) != self._described.get(name):
                self._stirred_models[name] = None
        self._is_first = self._is_first or not self.picture.version

    def set_keys(self, keys: Sequence[KeyView]) -> None:
        self._keys = tuple(keys)
        self._is_first = self._is_first or not self.picture.version

    def show(self, instance_id: str, model: str, view: InstanceView | None) -> None:
        """An instance looks like this now; None: it has no process."""
        self._stirred_instances[instance_id] = view
        self._stirred_models[model] = None

    # Versions

    def step(self) -> None:
        """Whatever was gathered is a version of its own, if anything of it is other than before."""
        if not self.is_stirred:
            return
        picture = self.picture
        views, self._stirred_instances = self._stirred_instances, {}
        names, self._stirred_models = self._stirred_models, {}
        is_first, self._is_first = self._is_first, False
        told = {n: self._model_of(self._described[n]) for n in names if n in self._described}
        models_gone = tuple(n for n in names if n not in told and n in picture.models)
        models = tuple(view for n, view in told.items() if picture.models.get(n) != view)
        gone = tuple(i for i, view in views.items() if view is None and i in picture.instances)
        instances = tuple(
            view for i, view in views.items() if view and picture.instances.get(i) != view
        )
        keys = self._keys if self._keys != picture.keys else None
        if not (models_gone or models or gone or instances or keys is not None or is_first):
            return
        news = sum(view.instance_id not in picture.instances for view in instances)
        change = Change(
            protocol=PROTOCOL,
            incarnation=picture.incarnation,
            since=picture.version,
            version=picture.version + 1,
            models_gone=models_gone,
            models=models,
            gone=gone,
            instances=instances,
            keys=keys,
            count=len(picture.instances) - len(gone) + news,
        )
        picture.apply(change)
        self._keep(_Step(change))

    def since(self, version: int) -> list[Change] | None:
        """The steps from this version to the newest; None when they are not all here any more."""
        steps = self._since(version)
        return None if steps is None else [step.change for step in steps]

    # As bytes

    def line_since(self, version: int, relay_port: int | None = None) -> bytes:
        """The steps from this version, a line each; the whole from 0, or if they are not here any more.

        relay_port: for another machine, which reaches the engines here by the relay at this port.
        """
        steps = self._since(version) if version else None
        if steps is None:
            return self.whole_line(PROTOCOL, relay_port)
        for step in steps:
            if relay_port not in step.lines:
                step.lines[relay_port] = _line(step.change, relay_port)
        return b"".join(step.lines[relay_port] for step in steps)

    def whole_line(self, protocol: int, relay_port: int | None = None) -> bytes:
        """Everything, as a reader of this protocol takes it. Made once a version. relay_port: as above."""
        kind = protocol, relay_port
        version, line = self._whole.get(kind, (-1, b""))
        if version != self.picture.version:
            whole = msgspec.structs.replace(self.picture.snapshot(), protocol=protocol)
            line = _line(whole, relay_port)
            self._whole[kind] = self.picture.version, line
        return line

    # Private

    def _keep(self, step: _Step) -> None:
        self._steps.append(step)
        self._size += step.size
        while len(self._steps) > 1 and (len(self._steps) > STEPS_MAX or self._size > VIEWS_MAX):
            self._size -= self._steps.popleft().size

    def _since(self, version: int) -> list[_Step] | None:
        newest = self.picture.version
        if version == newest:
            return []
        first = self._steps[0].change.version if self._steps else newest + 1
        if not first - 1 <= version < newest:
            return None
        return list(self._steps)[version + 1 - first :]


# Private


def _line(told: Change | Snapshot, relay_port: int | None) -> bytes:
    if relay_port is not None:
        told = for_elsewhere(told, relay_port)
    return msgspec.json.encode(told) + b"\n"
