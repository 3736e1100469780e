"""Reads the accounts from the database: rows of hours, and the sums over them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from shoal.actors.controller.store import HourOfUse
from shoal.cluster.store import tables
from shoal.cluster.store.rows import text
from shoal.model.usage import AMOUNTS, Amounts, UsageRow

_TIMES = {"day": ("%Y-%m-%d", 86400), "hour": ("%Y-%m-%dT%H", 3600)}
_COUNTS = frozenset({"sandboxes", "network_in", "network_out"})


def use_of(row: Any) -> HourOfUse:
    """An hour's row."""
    amounts = Amounts(**{name: getattr(row, name) for name in AMOUNTS})
    return HourOfUse(row.hour, row.environment, row.tag, row.value, amounts)


def sums(by: str, tag: str | None, first: int, last: int, environment: str | None, limit: int) -> Select[Any]:
    """By time, or the largest first. With `tag`: by its value, over all environments that are asked for."""
    c = tables.usage.c
    key: ColumnElement[Any] = {"environment": c.environment, "day": c.hour // 24, "hour": c.hour}.get(by, c.value)
    totals = [func.sum(c[name]).label(name) for name in AMOUNTS]
    query = select(key.label("key"), *totals).where(
        c.hour.between(first, last), c.tag == ("" if tag is None else text(tag))
    )
    if environment is not None:
        query = query.where(c.environment == text(environment))
    order = key.asc() if by in _TIMES else func.sum(c.seconds).desc()
    return query.group_by(key).order_by(order, key).limit(limit)


def row_told(by: str, row: Any) -> UsageRow:
    """A line of the accounts."""
    amounts: dict[str, Any] = {
        name: int(getattr(row, name)) if name in _COUNTS else round(float(getattr(row, name)), 3) for name in AMOUNTS
    }
    return UsageRow(key=_name(by, row.key), **amounts)


def _name(by: str, key: Any) -> str:
    if by not in _TIMES:
        return str(key)
    form, seconds = _TIMES[by]
    return time.strftime(form, time.gmtime(int(key) * seconds))
