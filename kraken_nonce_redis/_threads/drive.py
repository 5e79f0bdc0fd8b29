"""The loop that carries out a flow, for threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


def drive(flow: Generator[Any, Any, T], carry_out: Callable[..., Any], *more: Any) -> T:
    """Carry out a flow's steps, by a function that gets each of them and ``more``; return what the flow comes to."""
    try:
        step = next(flow)
        while True:
            try:
                result = carry_out(step, *more)
            except BaseException as error:  # noqa: BLE001 - the flow cleans up and raises it again
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
