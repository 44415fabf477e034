"""SqlUsage: the part of SqlStore that keeps usage. A batch is added whole, and once."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from hostler.core.usage import (
    DAY_S,
    Tokens,
    UsageBatch,
    UsageBy,
    UsageQuestion,
    UsageRow,
    hours_between,
)
from hostler.storage import tables
from hostler.storage.line import Line
from hostler.storage.store import USAGE_KEPT_S


class SqlUsage:
    """Needs two connections of the store: one that does not flush, one that only reads."""

    _log: Line
    _reads: Line

    def add_usage(self, batch: UsageBatch) -> bool:
        table, sources = tables.usage, tables.usage_sources
        now_s = int(time.time())
        known = sa.select(sources.c.seq).where(sources.c.source == batch.source)
        add = self._log.insert(table)
        sums = {name: table.c[name] + add.excluded[name] for name in Tokens.__struct_fields__}
        add = add.on_conflict_do_update(index_elements=list(table.primary_key), set_=sums)
        with self._log.writing() as connection:
            if batch.seq <= (connection.execute(known).scalar_one_or_none() or 0):
                return False
            seen = {"seq": batch.seq, "seen_s": now_s}
            note = self._log.insert(sources).values(source=batch.source, **seen)
            connection.execute(note.on_conflict_do_update(index_elements=["source"], set_=seen))
            if batch.counts:
                connection.execute(add, [msgspec.structs.asdict(one) for one in batch.counts])
            old_s = now_s - USAGE_KEPT_S
            connection.execute(sa.delete(table).where(table.c.hour_s < old_s))
            connection.execute(sa.delete(sources).where(sources.c.seen_s < old_s))
            return True

    def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        table = tables.usage
        by: Mapping[UsageBy | None, Mapping[str, sa.ColumnElement[Any]]] = {
            UsageBy.HOUR: {"at_s": table.c.hour_s},
            UsageBy.DAY: {"at_s": table.c.hour_s - table.c.hour_s % DAY_S},
            UsageBy.KEY: {"key_id": table.c.key_id},
            UsageBy.MODEL: {"model": table.c.model},
            None: {"key_id": table.c.key_id, "model": table.c.model},
        }
        groups = by[question.by]
        sums = {  # PostgreSQL's sum of whole numbers is a decimal one
            name: sa.cast(sa.func.sum(table.c[name]), tables.Whole)
            for name in Tokens.__struct_fields__
        }
        since_s, until_s = hours_between(question)
        query = sa.select(*(column.label(name) for name, column in {**groups, **sums}.items()))
        query = query.where(table.c.hour_s >= since_s, table.c.hour_s < until_s)
        if question.key_id is not None:
            query = query.where(table.c.key_id == question.key_id)
        if question.model is not None:
            query = query.where(table.c.model == question.model)
        rows = self._reads.rows(query.group_by(*groups.values()).order_by(*groups.values()))
        return tuple(UsageRow(**row._mapping) for row in rows)
