"""What of the admin API a gateway answers by itself: declared here for the document and the pages."""

from functools import partial

import msgspec

from hostler.admin.operation import Call, Operation
from hostler.app.auth import Scope
from hostler.core.errors import NotFound
from hostler.core.timeline import RequestList, RequestQuery, RequestShown, RequestView


async def answered_by_gateways(call: Call) -> msgspec.Struct:
    """Never called: the gateway does not pass these on."""
    raise NotFound


_gateway = partial(Operation, method="GET", scope=Scope.ADMIN, handler=answered_by_gateways)

GATEWAY_OPERATIONS: tuple[Operation, ...] = (
    _gateway(
        path="/api/v1/requests",
        summary="The newest requests of the data plane, those under way first",
        query=RequestQuery,
        response=RequestList,
    ),
    _gateway(
        path="/api/v1/requests/{request_id}",
        summary="What happened to one request, and when",
        query=RequestShown,
        response=RequestView,
    ),
)
