"""Models inside an application of your own: no gateway, no second server.

Run it with any ASGI server: `uvicorn embedded_app:app`. With FastAPI, `FastAPI(lifespan=...)` takes the
same `system_app.lifespan()`.
"""

import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hostler import (
    ComponentType,
    Config,
    HostlerError,
    LocalWorkerManagerFactory,
    SystemApp,
    WorkerManager,
    WorkerManagerFactory,
    load_config,
)


def settings() -> Config:
    """Which models to run, and where their files are: a TOML file, else the default models."""
    return load_config(os.environ.get("APP_SETTINGS"), {"state_dir": os.environ.get("APP_STATE")})


system_app = SystemApp()
system_app.register(LocalWorkerManagerFactory(settings()))


def manager() -> WorkerManager:
    """The application's worker manager, found by name wherever it is needed."""
    factory = system_app.get_component(
        ComponentType.WORKER_MANAGER_FACTORY,
        WorkerManagerFactory,  # type: ignore[type-abstract]
    )
    return factory.create()


async def tell(request: Request) -> Response:
    """POST /tell {"model": ..., "prompt": ...}: the answer's text as it comes."""
    asked = await request.json()
    outputs = manager().generate_stream(
        {
            "model": asked["model"],
            "messages": [{"role": "user", "content": asked["prompt"]}],
            "max_tokens": 64,
        }
    )
    try:
        first = await anext(outputs)  # what goes wrong before the first word is an ordinary error
    except HostlerError as error:
        return JSONResponse({"error": error.message}, status_code=error.http_status)

    async def text() -> AsyncIterator[str]:
        yield first.text
        async for output in outputs:
            if not output.success:
                raise RuntimeError(f"the answer broke off: {output.error}")
            yield output.text

    return StreamingResponse(text(), media_type="text/plain")


async def models(request: Request) -> Response:
    """GET /models: what could be started here."""
    return JSONResponse([found.model for found in await manager().supported_models()])


app = Starlette(
    routes=[Route("/tell", tell, methods=["POST"]), Route("/models", models)],
    lifespan=system_app.lifespan(),
)
