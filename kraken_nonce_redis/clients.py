"""The settings that the adapters for exchange clients share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kraken_nonce_redis._core.wishes import LockSettings

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import DeadlineOf, OnAbsent, OnUnknown
    from kraken_nonce_redis.events import Hook
    from kraken_nonce_redis.pace import CoolDowns
    from kraken_nonce_redis.retries import Retries


class Options(LockSettings, total=False):
    """Settings that all adapters take as keyword arguments.

    Attributes:
        redis: a client of redis-py (for an asyncio adapter, of redis.asyncio) or a URL; by default the URL in
            ``KRAKEN_NONCE_REDIS_URL``, then ``REDIS_URL``.
        ttl: length of a lease in seconds, 1 to 3600, by default 30; a call with a longer timeout extends its lease.
        scope: ``"key"`` (default): one call at a time for each API key; ``"global"``: for all of the namespace.
        namespace: prefix of the Redis keys; all processes that share the API key need the same.
        wait_timeout: most seconds that a call waits for its turn and between its attempts, by default 60; None for no
            limit. Settling a call with an unknown outcome takes extra time.
        patience: most seconds from when you ask for an order (AddOrder, AddOrderBatch, EditOrder, AmendOrder) until it
            begins to leave, by default 5; None for no limit. It counts waiting for the lock, pace, cool-downs, ccxt's
            throttle and all attempts. An order that is too late is not sent: `HoldTimeout`, or Kraken's last refusal.
        call_timeout: seconds for a request without its own timeout, by default 10.
        pace: how often calls may start, a `Pace`; by default there is no limit but the lock. Cost and priority of a
            call follow from its method.
        cool_downs: how long all calls pause after Kraken's refusals, `kraken_nonce_redis.CoolDowns`.
        retries: when a call is made again, `kraken_nonce_redis.Retries`.
        on_unknown: what to do about a call that changes something and got no answer. ``"settle"`` (default): Kraken's
            lists of orders are asked, under the same lease. ``"raise"``: `OutcomeUnknown` at once. ``"replay"``: the
            same bytes are sent once more, then as ``"settle"``; that Kraken refuses them for their nonce if the first
            ones arrived is inferred and not documented. Refused with `InvalidArgument` for an API key with a nonce
            window, before anything is sent.
        nonce_window: the API key's nonce window in ns, for a Kraken that does not answer GetApiKeyInfo; by default 0,
            with a warning where it matters.
        deadline: ``"auto"`` gives orders without one Kraken's own ``deadline``, about 5 s after they are sent by
            Kraken's clock, so that absence can be proved; a lost order is settled in about 16 s then. By default
            orders get none.
        on_absent: what to do about an order that is proved to be absent. ``"raise"`` (default): `NotCarriedOut`.
            ``"resend"``: it is sent once more, with the same cl_ord_id and a fresh deadline, if its ``patience`` is
            not over by then; needs ``deadline="auto"``.
        durable: how many replicas must have it when the nonce is raised after a refusal, or each lease: as for
            `CallLock` and `NonceAllocator`.
        name: what people see of this bot in Redis, as for `CallLock`.
        trail: what is noted for ``kraken-nonce log``, as for `CallLock`.
        on_event: is called with each event, see `kraken_nonce_redis.events`.
        base_url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]`` to use instead of Kraken, such as a simulated one.
            It goes before what the client's own settings say; after those comes ``KRAKEN_API_URL`` in the environment.
    """

    redis: Any
    wait_timeout: float | None
    patience: float | None
    call_timeout: float
    cool_downs: CoolDowns
    retries: Retries
    on_unknown: OnUnknown
    nonce_window: int | None
    deadline: DeadlineOf | None
    on_absent: OnAbsent
    on_event: Hook | None
    base_url: str | None
