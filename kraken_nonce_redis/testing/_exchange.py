"""The exchange: accounts and their API keys, the checks of a request, and the log of requests.

Pure: no I/O, and the time comes as an argument, so that every rule can be tested with a plain
call. A private request goes through these stages, and `_server.py` calls them one by one:

1. `under_way` opens: the request was read from the network.
2. `arrive`: it has reached the exchange, and is added to the log.
3. `admit`: method, body, key, limits, signature, nonce and deadline are checked; the nonce is now used.
4. What `admit` returned is called: the method (see `_methods.py`) is carried out and gives the answer.
5. `finish`: the answer has reached the client.

Faults hit before stage 3, before stage 4, or after it. If a fault makes a request arrive late, stage 5 comes first.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from ._account import Account
from ._keys import ApiKey, NonceWindow, decode_secret
from ._limits import AccountUsage
from ._market import PUBLIC_METHODS
from ._methods import JSON_ONLY, METHODS, WITH_DEADLINE, Admitted
from ._orders import check_deadline
from ._protocol import Params, Refusal, nonce_of
from ._records import Settings, SimulatedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from ._protocol import Call
    from ._records import SimulatedOrder, SimulatedStrategy, SimulatedWithdrawal


def _error(refusal: Refusal) -> dict[str, object]:
    return {"error": [refusal.error]}


def public_answer(method: str, params: Params, now: float) -> dict[str, object]:
    """Return Kraken's answer to a public request: `error`, and `result` if there is none.

    Args:
        method: such as `Ticker`.
        params: what the URL's query says.
        now: Unix time in seconds.
    """
    try:
        if method not in PUBLIC_METHODS:
            raise Refusal("EGeneral:Unknown method")  # noqa: TRY301 - one way to every refusal
        return {"error": [], "result": PUBLIC_METHODS[method](params, now)}
    except Refusal as refusal:
        return _error(refusal)


class Exchange:
    """All accounts, their nonces and orders, and the log of their requests.

    Args:
        keys: for each API key the name of its account, the key and its base64 secret. Keys with the same name
            share an account.
        settings: the settings at first; the attribute may be replaced at any time.
        seed: for the ids of orders and trades.
        now: Unix time in seconds.
    """

    def __init__(self, keys: Iterable[tuple[str, str, str]], settings: Settings, *, seed: int, now: float) -> None:
        self.settings = settings
        self._given = [(name, key, decode_secret(secret)) for name, key, secret in keys]
        self._windows: dict[str, NonceWindow] = {}
        self._random = Random(seed)  # noqa: S311 - ids of simulated orders
        self._sequence = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """Forget all requests, orders, balances, nonces and the use of limits."""
        self._under_way: Counter[str] = Counter()  # those from before count in their own
        self._log: dict[int, SimulatedRequest] = {}
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, ApiKey] = {}
        for name, key, secret in self._given:
            siblings = [other for other in self._keys.values() if other.account.name == name]
            usage = siblings[0].shared_usage if siblings else AccountUsage()
            if not siblings:
                self._accounts[name] = self._new_account(name, usage, now)
            self._keys[key] = ApiKey(secret, self._accounts[name], len(siblings) + 1, usage)

    def _new_account(self, name: str, usage: AccountUsage, now: float) -> Account:
        def count(pair: str, kind: str, now: float, since: float | None) -> None:
            usage.change(self.settings.limits, pair, kind, now, since)

        def listing_delay() -> float:
            return self._random.uniform(*self.settings.listing_delay)

        return Account(name, self._random, now, count, listing_delay)

    def requests(self) -> list[SimulatedRequest]:
        """Return the private requests in order of arrival."""
        return list(self._log.values())

    def orders(self, now: float) -> list[SimulatedOrder]:
        """Return the orders of all accounts in the order of their accounts, oldest first."""
        for account in self._accounts.values():
            account.catch_up(now)
        return [order for account in self._accounts.values() for order in account.orders()]

    def strategies(self, now: float) -> list[SimulatedStrategy]:
        """Return the strategies of all accounts in the order of their accounts, oldest first."""
        return [strategy for account in self._accounts.values() for strategy in account.strategies.all(now)]

    def withdrawals(self) -> list[SimulatedWithdrawal]:
        """Return the withdrawals of all accounts in the order of their accounts, oldest first."""
        return [withdrawal for account in self._accounts.values() for withdrawal in account.funds.withdrawals]

    def raise_nonce(self, key: int, nonce: int) -> int:
        """Accept a nonce that was not sent, if it is above the highest. Return the highest nonce before.

        `key` is the index of an API key, counted from 0.
        """
        nonces = self._keys[self._given[key][1]].nonces
        highest = nonces.highest
        if nonce > highest:
            nonces.use(nonce, NonceWindow())
        return highest

    def set_window(self, key: int, window: NonceWindow) -> None:
        """Give one API key, by its index, its own nonce window."""
        self._windows[self._given[key][1]] = window

    def forget_windows(self) -> None:
        """Apply the settings' nonce window to every API key again."""
        self._windows.clear()

    @contextmanager
    def under_way(self, call: Call) -> Generator[None]:
        """Count a request as under way for its API key, from when it is read until it is answered."""
        under_way = self._under_way
        under_way[call.key] += 1
        try:
            yield
        finally:
            under_way[call.key] -= 1

    def arrive(self, call: Call, received: float, fault: str = "") -> int:
        """Log a request that has reached the exchange; return its number in the order of arrival.

        `received` is monotonic time in seconds, `fault` the name of the fault that hits it.
        """
        self._sequence += 1
        try:
            nonce = nonce_of(call.params())
        except Refusal:
            nonce = None
        key = self._keys.get(call.key)
        self._log[self._sequence] = SimulatedRequest(
            sequence=self._sequence,
            received=received,
            finished=None,
            account=key.account.name if key else "",
            path=call.path,
            method=call.method,
            nonce=nonce,
            error=(),
            in_flight=max(1, self._under_way[call.key]),  # it may have been read before a reset
            fault=fault,
            key_number=key.number if key else 0,
        )
        return self._sequence

    def admit(self, call: Call, sequence: int, now: float) -> Callable[[float], dict[str, object]]:
        """Check a request that has arrived, and use its nonce. Return a function that carries it out.

        That function takes the time again, and returns `error`, and `result` if there is no error. Both times are
        Unix time in seconds.
        """
        try:
            admitted = self._check(call, sequence, now)
        except Refusal as refusal:
            answer = self._refuse(sequence, refusal, now)
            return lambda _: answer

        def act(now: float) -> dict[str, object]:
            admitted.account.catch_up(now)
            try:
                result = METHODS[call.method](replace(admitted, now=now))
            except Refusal as refusal:
                return self._refuse(sequence, refusal, now)
            self._note(sequence, lambda record: replace(record, decided=now))
            return {"error": [], "result": result}

        return act

    def _refuse(self, sequence: int, refusal: Refusal, now: float) -> dict[str, object]:
        self._note(sequence, lambda record: replace(record, error=(refusal.error,), decided=now))
        return _error(refusal)

    def finish(self, sequence: int, finished: float) -> None:
        """Log that the answer has reached the client, at this monotonic time in seconds."""
        self._note(sequence, lambda record: replace(record, finished=finished))

    def _in_flight(self, account: Account) -> int:
        """Return how many requests with any key of an account are under way."""
        return sum(self._under_way[name] for name, key in self._keys.items() if key.account is account)

    def _note(self, sequence: int, change: Callable[[SimulatedRequest], SimulatedRequest]) -> None:
        if sequence in self._log:  # there may have been a reset since
            self._log[sequence] = change(self._log[sequence])

    def _check(self, call: Call, sequence: int, now: float) -> Admitted:
        """Check everything that Kraken checks before a method sees the request.

        A request without a valid signature can't raise the nonce. Once a nonce is used it stays used, even if the call
        counter, the deadline or the method then refuse the request.
        """
        limits = self.settings.limits
        if call.method not in METHODS:
            raise Refusal("EGeneral:Unknown method")
        if call.method in JSON_ONLY and not call.is_json:
            raise Refusal("EAPI:Bad request")
        params = call.params()
        key = self._keys.get(call.key)
        if key is None:
            raise Refusal("EAPI:Invalid key")
        if sequence not in self._log:  # it was delayed during a reset and must not change the new state
            raise Refusal("EService:Unavailable")
        key.shared_usage.arrive(limits, self._in_flight(key.account), now)
        window = self._windows.get(call.key, self.settings.window)
        try:
            nonce = nonce_of(params)
            if not call.is_signed_with(key.secret, params.required("nonce")):
                raise Refusal("EAPI:Invalid signature")  # noqa: TRY301 - one way to note what was bad
            key.nonces.use(nonce, window)
        except Refusal:
            key.shared_usage.spoil(limits, now)
            raise
        key.usage.call(limits, call.method, now)
        if call.method in WITH_DEADLINE:
            check_deadline(params, now if call.sent is None else call.sent)
        return Admitted(key, window, params, nonce, now)
