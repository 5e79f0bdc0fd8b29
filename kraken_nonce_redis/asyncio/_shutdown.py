"""The end of a process that makes calls, for asyncio."""

from __future__ import annotations

import asyncio

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core import closing
from kraken_nonce_redis._threads import shutdown as threads
from kraken_nonce_redis._threads.lock import current_owner
from kraken_nonce_redis._threads.shutdown import DEFAULT_SECONDS
from kraken_nonce_redis.asyncio._store import Store, stores


async def shutdown(seconds: float = DEFAULT_SECONDS) -> bool:
    """End the calls of this process, of its tasks and threads, for good: `kraken_nonce_redis.shutdown` for asyncio.

    What the calling task itself holds can't end meanwhile, so it is not waited for. If this is cancelled, what is held
    is given up at once.

    Args:
        seconds: 0 to 3600, by default 10.

    Returns:
        Whether all calls had ended; if not, some were given up.

    Raises:
        InvalidArgument: the seconds are out of range.
    """
    until = clock.now() + closing.begin(seconds)
    own = stores()
    for store in own:
        closing.turn_away(store.process_state)
    threads.turn_away()
    try:
        while clock.now() < until and _is_under_way(own):  # noqa: ASYNC110 - some of it ends in other threads
            await asyncio.sleep(closing.AGAIN)
    finally:
        others = [asyncio.wrap_future(future) for future in threads.begin_to_give_up()]
        given_up = await asyncio.gather(
            *(store.give_up() for store in own), asyncio.to_thread(threads.give_up), *others
        )
    return sum(given_up) == 0


def _is_under_way(own: list[Store]) -> bool:
    states = (*(store.process_state for store in own), *threads.all_states())
    return closing.is_under_way(states, asyncio.current_task(), current_owner())
