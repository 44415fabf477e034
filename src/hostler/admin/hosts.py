"""Handlers for hosts: the machines that joined and run models for this controller."""

from hostler.admin.messages import HostList, HostStatus
from hostler.admin.operation import Call
from hostler.core.hosts import HostView


async def list_hosts(call: Call) -> HostList:
    return HostList(hosts=tuple(call.services.control.hosts()))


async def show_host(call: Call) -> HostStatus:
    control = call.services.control
    found = control.host(call.path_value("host"))
    return HostStatus(
        host=found,
        instances=tuple(one for one in control.run_data(None) if one.host_id == found.host_id),
    )


async def drain_host(call: Call) -> HostView:
    """Written down and answered at once; its instances move one by one."""
    name, order = call.path_value("host"), call.body
    return await call.services.control.drain_host(name, is_draining=order.draining)


async def remove_host(call: Call) -> HostView:
    """The answer tells how it was, last."""
    return await call.services.control.remove_host(call.path_value("host"), force=call.query.force)
