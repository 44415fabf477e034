"""SystemApp: the parts of one process, found by name and type, started in order, stopped in reverse.

Standalone with `run(stop)`, or tied to an ASGI application with `lifespan`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from inspect import isawaitable
from typing import Any, ClassVar, TypeVar

from hostler.core.errors import StartupError

C = TypeVar("C", bound="BaseComponent")


class ComponentType(StrEnum):
    """Well-known names of components."""

    WORKER_MANAGER = "worker_manager"
    WORKER_MANAGER_FACTORY = "worker_manager_factory"
    REGISTRY = "registry"
    GATEWAY = "gateway"
    CONTROLLER = "controller"


class LifeCycle:
    """Hooks of a component's life, in the order they are called. Each may be sync or async.

    `before_start` and later run inside the event loop; `on_init` and `after_init` when registered
    and when the app's components are all there.
    """

    def on_init(self) -> Awaitable[None] | None:
        """Called once when the component is registered."""
        return None

    def after_init(self) -> Awaitable[None] | None:
        """Called once when every component is registered."""
        return None

    def before_start(self) -> Awaitable[None] | None:
        """Called before any component runs."""
        return None

    def after_start(self) -> Awaitable[None] | None:
        """Called when every component runs."""
        return None

    def before_stop(self) -> Awaitable[None] | None:
        """Called when the app was asked to stop and every component still runs."""
        return None


class BaseComponent(LifeCycle):
    """A part with a name and a life. A constructor starts nothing."""

    name: ClassVar[str]

    def init_app(self, system_app: "SystemApp") -> None:
        """Pick up the components this one needs. Start nothing."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Live between enter and exit; background work sits in a TaskGroup inside."""
        yield


class SystemApp:
    """The components of one process."""

    def __init__(self) -> None:
        self._components: dict[str, BaseComponent] = {}

    def register(self, component: C) -> C:
        """Add a component under its name.

        Raises:
            StartupError: the name is taken.
        """
        if component.name in self._components:
            raise StartupError(f"component {component.name!r} is registered already")
        self._components[component.name] = component
        component.init_app(self)
        if isawaitable(made := component.on_init()):
            made.close()  # type: ignore[attr-defined]
            raise StartupError(f"component {component.name!r}: on_init must not be async")
        return component

    def get_component(self, name: str, component_type: type[C], default: C | None = None) -> C:
        """Return the component of this name and type.

        Raises:
            StartupError: there is none of this name (known ones are named), or it is of another type.
        """
        component = self._components.get(name)
        if component is None:
            if default is not None:
                return default
            known = ", ".join(self._components) or "none"
            raise StartupError(f"no component {name!r} is registered (registered: {known})")
        if not isinstance(component, component_type):
            raise StartupError(
                f"component {name!r} is a {type(component).__name__}, not a {component_type.__name__}"
            )
        return component

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SystemApp"]:
        """Every component's life, in the order registered; stopped in reverse."""
        components = tuple(self._components.values())
        await _call_all([component.after_init for component in components])
        await _call_all([component.before_start for component in components])
        async with AsyncExitStack() as stack:
            for component in components:
                await stack.enter_async_context(component.running())
            await _call_all([component.after_start for component in components])
            try:
                yield self
            finally:
                await _call_all([component.before_stop for component in reversed(components)])

    async def run(self, stop: asyncio.Event) -> None:
        """Run every component until `stop` is set or one of them fails.

        Raises:
            ExceptionGroup: what failed; the other components were stopped first.
        """
        async with self.running():
            await stop.wait()

    def lifespan(self) -> Callable[[Any], Any]:
        """Return a lifespan for Starlette or FastAPI: `FastAPI(lifespan=system_app.lifespan())`."""

        @asynccontextmanager
        async def lifespan(asgi_app: Any) -> AsyncIterator[None]:
            async with self.running():
                yield

        return lifespan


# Private


async def _call_all(hooks: list[Callable[[], Awaitable[None] | None]]) -> None:
    for hook in hooks:
        if (pending := hook()) is not None:
            await pending
