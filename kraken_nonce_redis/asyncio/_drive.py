"""The loop that carries out a flow, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


async def drive(flow: Generator[Any, Any, T], carry_out: Callable[..., Awaitable[Any]], *more: Any) -> T:
    """Carry out a flow's steps, by a function that gets each of them and ``more``; return what the flow comes to."""
    try:
        step = next(flow)
        while True:
            try:
                result = await carry_out(step, *more)
            except BaseException as error:  # noqa: BLE001 - the flow cleans up and raises it again
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
