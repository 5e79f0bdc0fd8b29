"""Nonces for kraken-py-sdk (``import kraken_py``), which several processes share.

They are distinct and rise over all processes, but nonces alone are no lock: requests of several processes or tasks
overtake each other on their way to Kraken, and the one that arrives late is refused. So each private call goes under
`kraken_nonce_redis.asyncio.CallLock`, which lets one call at a time through::

    credentials = ApiCredentials(api_key=key, api_secret=secret)
    async with RestClient(credentials, nonce_provider=NonceProvider(key)) as client:
        async with CallLock.from_url(url, key).hold(timeout=30):
            balance = await client.account.balance()

Nothing is tried again here, and an order without an answer is not looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import urls
from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE
from kraken_nonce_redis._threads.allocator import NonceAllocator
from kraken_nonce_redis._threads.connections import client_from_url

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._threads.connections import Source

__all__ = ["NonceProvider"]


class NonceProvider:
    """What kraken-py-sdk takes as ``nonce_provider``.

    Args:
        api_key: the Kraken API key; only a digest of it leaves the process.
        redis: a client of redis-py or a URL; by default the URL in ``KRAKEN_NONCE_REDIS_URL``, then ``REDIS_URL``.
        scope: as for `NonceAllocator`.
        namespace: as for `NonceAllocator`.

    Raises `InvalidArgument`.
    """

    def __init__(
        self,
        api_key: str,
        *,
        redis: Source | str | None = None,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        source = urls.or_environment(redis)
        client = client_from_url(source) if isinstance(source, str) else source
        key = arguments.stripped("api_key", api_key)
        self._allocator = NonceAllocator(client, key, scope=scope, namespace=namespace)

    def next_nonce(self) -> int:
        """Return the next nonce: ns since 1970, 19 digits. Raises `StoreError`.

        The SDK calls this in the event loop, which stands still for the round trip: for a fraction of a millisecond
        when Redis is near, and for the socket timeout (3 s) when it does not answer.
        """
        return self._allocator.next()
