"""Receipts as one ephemeral event a room (client-server API, "Receipts")."""

from collections.abc import Iterable
from typing import Any

import orjson

from syncapi.applied import ReceiptMoved
from syncapi.sync.context import Reader

PRIVATE = "m.read.private"


def render_receipts(receipts: Iterable[ReceiptMoved], reader: Reader) -> bytes | None:
    """Return the `m.receipt` event of those receipts that the reader may see; None: of none.

    Private receipts are for their own user only. Ignored users' receipts are left out.
    """
    if not reader.filter.ephemeral.passes("m.receipt", ""):
        return None
    # Where somebody moved on twice, only the last place counts.
    latest = {(receipt.user_id, receipt.receipt_type, receipt.thread_id): receipt for receipt in receipts}
    content: dict[str, dict[str, dict[str, Any]]] = {}
    for receipt in latest.values():
        if receipt.receipt_type == PRIVATE and receipt.user_id != reader.user_id:
            continue
        if receipt.user_id in reader.ignored:
            continue
        data: dict[str, Any] = {"ts": receipt.timestamp_ms}
        if receipt.thread_id:
            data["thread_id"] = receipt.thread_id
        of_type = content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})
        of_type[receipt.user_id] = data
    return orjson.dumps({"type": "m.receipt", "content": content}) if content else None
