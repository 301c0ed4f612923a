"""Saves many entries, several at a time, and no more than a slow store can take."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, TypeVar

from dagonizer_conformance.context import Budget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

T = TypeVar("T")

_TASKS = 16
_SAMPLE = 10
_FAST = 0.5


async def save_many(context: Context, client: Client, *, many: int, few: int) -> dict[str, str]:
    """Save ``many`` new entries, only ``few`` of them in ``smoke`` when the store is slow; return the texts by key."""
    keys = [context.key(f"{number:04}") for number in range(many)]
    texts = {key: context.text(key) for key in keys}
    # The fastest, for it says most about the store and least about a busy machine.
    fastest = math.inf
    for key in keys[:_SAMPLE]:
        began = time.monotonic()
        await client.save(key, texts[key])
        fastest = min(fastest, time.monotonic() - began)
    if context.budget is Budget.SMOKE and fastest * many > _FAST:
        keys = keys[:few]
    texts = {key: texts[key] for key in keys}
    await save_all(client, {key: texts[key] for key in keys[_SAMPLE:]})
    return texts


async def save_all(client: Client, texts: Mapping[str, str]) -> None:
    """Save each text under its key, several at a time."""
    await for_each(texts.items(), lambda item: client.save(*item))


async def for_each(items: Iterable[T], act: Callable[[T], Awaitable[object]]) -> None:
    """Do ``act`` with each item, several at a time."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await act(item)

    for outcome in await asyncio.gather(*(work() for _ in range(_TASKS)), return_exceptions=True):
        if outcome is not None:
            raise outcome
