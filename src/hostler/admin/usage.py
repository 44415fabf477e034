"""Handler for usage: who used how much of which model."""

from hostler.admin.messages import UsageList
from hostler.admin.operation import Call
from hostler.core.usage import UsageQuestion, total_of


async def show_usage(call: Call) -> UsageList:
    query = call.query
    rows = await call.services.control.usage(
        UsageQuestion(
            since_s=query.since,
            until_s=query.until,
            key_id=query.key,
            model=query.model,
            by=query.by,
        )
    )
    return UsageList(usage=rows, total=total_of(rows))
