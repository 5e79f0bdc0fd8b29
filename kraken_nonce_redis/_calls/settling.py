"""Did an order go through? Found, absent and unknown are three different answers; no I/O.

Kraken's lists of open and of closed orders are asked by cl_ord_id. Each of these requests has a nonce that is higher
than the lost one by more than the API key's nonce window; so once one of them is accepted, the lost one can never be
carried out any more. That is the fence. The window is asked for first. If it is 0, that question is the fence already.
What is left is that Kraken may list an order later than it accepts it, so the lists are asked again after a while: an
order is absent when it is missing from both lists in the last look, and the fence came in an earlier one.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from kraken_nonce_redis._kraken import REFUSED, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kraken_nonce_redis._calls.call import Heard
    from kraken_nonce_redis._core.steps import CallFlow


_SHORTEST: Final = 0.01
"""Least seconds of a pause."""


@dataclass(frozen=True)
class Settlement:
    """What the lists said.

    Attributes:
        outcome: as in `kraken_nonce_redis.events.OrderSettled`.
        orders: by cl_ord_id, txid and Kraken's description of each that was found, in the order of the call.
        known: the same in words.
        hopeless: for ``"unknown"``, whether asking again later would tell no more.
        proved: for ``"absent"``, whether the orders could not be placed any more before the last look.
    """

    outcome: Literal["found", "absent", "partly", "unknown"]
    orders: Mapping[str, tuple[str, str]]
    known: str
    hopeless: bool = False
    proved: bool = False

    def if_proved(self) -> Settlement:
        """Return the settlement; an absence that is not proved counts as unknown."""
        if self.outcome != "absent" or self.proved:
            return self
        return replace(self, outcome="unknown", known=f"{self.known}; that is no proof that it will not be placed")

    @property
    def txids(self) -> dict[str, str]:
        """Kraken's txid of each order that was found, by cl_ord_id."""
        return {cl_ord_id: txid for cl_ord_id, (txid, _) in self.orders.items()}

    def answer(self, method: str) -> dict[str, Any]:
        """Return what Kraken would have answered to the call that placed the orders."""
        placed = [(txid, {"order": description}) for txid, description in self.orders.values()]
        if method == "AddOrder":
            txid, description = placed[0]
            return {"error": [], "result": {"descr": description, "txid": [txid]}}
        return {"error": [], "result": {"orders": [{"txid": txid, "descr": descr} for txid, descr in placed]}}


@dataclass(frozen=True, slots=True)
class Fence:
    """What came of the question for the nonce window.

    Attributes:
        accepted: whether that question was the fence itself.
        trouble: why no further question will be it; empty if the next one that is accepted is.
        again: whether to ask for the window again.
        stop: whether Kraken refused to answer, so that asking is no use now.
    """

    accepted: bool = False
    trouble: str = ""
    again: bool = False
    stop: bool = False


@dataclass
class _Search:
    """What the looks at the lists have shown so far."""

    ids: tuple[str, ...]
    opened: float | None
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    clear: bool = True
    """Whether the current look had clear answers only."""
    fence: Fence | None = None
    """What came of the last question for the nonce window; None if it is to be asked for."""
    accepted: bool = False
    """Whether a nonce above the window was accepted."""
    fenced: bool = False
    """The same in an earlier look, so that it was accepted before the current one began."""
    proved: bool = False
    """Whether nothing could be placed any more before the last look."""
    stop: bool = False
    """Whether Kraken refused to answer, or is to be left alone, so that asking again is no use now."""
    trouble: str = ""
    """Why a look was not clear."""
    hopeless: bool = False
    """Whether it will never be."""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(cl_ord_id for cl_ord_id in self.ids if cl_ord_id not in self.found)

    def take(self, heard: Heard, name: str) -> None:
        """Take an answer whose result has the orders under a name."""
        if heard.answer is None or heard.verdict.outcome is not Outcome.CARRIED_OUT:
            self.stop = heard.verdict.outcome is Outcome.NOT_CARRIED_OUT or heard.turned_away is not None
            self._unclear(heard.reason, hopeless=heard.verdict == REFUSED)
            return
        self.accepted |= self.fence is not None and not self.fence.trouble
        result = heard.answer.get("result")
        orders = result.get(name) if isinstance(result, dict) else None
        if not isinstance(orders, dict):
            self._unclear("an answer without orders")
            return
        for txid, order in orders.items():
            self._match(str(txid), order)

    def raise_fence(self, fence: Fence) -> None:
        """Take what came of the question for the nonce window."""
        self.fence = None if fence.again else fence
        self.accepted |= fence.accepted
        self.stop = fence.stop
        if fence.trouble:
            self._unclear(fence.trouble)

    def _match(self, txid: str, order: Mapping[str, Any]) -> None:
        for cl_ord_id in self.missing:
            if _same(cl_ord_id, order.get("cl_ord_id")):
                if self.opened is None or float(order.get("opentm") or 0) >= self.opened:
                    self.found[cl_ord_id] = txid, str((order.get("descr") or {}).get("order", ""))
                else:
                    self._unclear(f"{txid} has the same cl_ord_id and is older", hopeless=True)
                return
        if len(self.ids) == 1:
            self._unclear(f"{txid} was listed with another cl_ord_id", hopeless=True)

    def _unclear(self, trouble: str, *, hopeless: bool = False) -> None:
        self.clear = False
        self.trouble = trouble
        self.hopeless |= hopeless


def settling(
    ask: Callable[[str, Mapping[str, Any]], CallFlow[Heard]],
    pause: Callable[[float], CallFlow[None]],
    fencing: Callable[[], CallFlow[Fence]],
    ids: tuple[str, ...],
    *,
    opened: float | None,
    waits: tuple[float, ...],
    hasty: bool,
    until_proof: Callable[[], float | None] = lambda: None,
) -> CallFlow[Settlement]:
    """Find out what became of the orders with these ids.

    Args:
        ask: makes a reading call with a later nonce.
        pause: waits for a number of seconds.
        fencing: asks for the nonce window, and sees to it that the nonces of further questions are above it.
        ids: their cl_ord_id.
        opened: when they were sent, in seconds since 1970; None if these ids have no other use. Kraken lets an id be
            used again, so an order with one that may not be new counts only if it was opened after that.
        waits: seconds between two looks.
        hasty: whether to give up at the first look without a clear answer.
        until_proof: returns the seconds until a look is a proof, since none of the orders can be placed any more and
            those that were placed are listed; None if no look ever is.
    """
    search = _Search(ids, opened)
    for wait in (None, *waits):
        if wait is not None:
            if search.clear and search.accepted and _is_due(until_proof()):
                break
            yield from pause(wait)
        yield from _look(ask, fencing, search, hasty=hasty)
        if not search.missing or search.stop or (hasty and not search.clear):
            return _settlement(search)
    wait = until_proof()
    while wait is not None and not _is_due(wait):
        yield from pause(max(wait, _SHORTEST))
        wait = until_proof()
    if wait is not None:
        yield from _look(ask, fencing, search)
        search.proved = True
    return _settlement(search)


def _is_due(wait: float | None) -> bool:
    """Return whether a look would be a proof now."""
    return wait is not None and wait <= 0


def looking_once(ask: Callable[[str, Mapping[str, Any]], CallFlow[Heard]], cl_ord_id: str) -> CallFlow[Settlement]:
    """Look once whether an order is listed. ``"absent"`` says no more than that it is not, for nothing was fenced."""
    search = _Search((cl_ord_id,), None, fenced=True)
    yield from _looking(ask, search)
    return _settlement(search)


def _look(
    ask: Callable[[str, Mapping[str, Any]], CallFlow[Heard]],
    fencing: Callable[[], CallFlow[Fence]],
    search: _Search,
    *,
    hasty: bool = False,
) -> CallFlow[None]:
    """Look at the lists once; before that, ask for the nonce window if it is not known."""
    search.fenced |= search.accepted
    search.clear = True
    if search.fence is None:
        search.raise_fence((yield from fencing()))
    if not search.stop and not (hasty and not search.clear):
        yield from _looking(ask, search)


def _looking(ask: Callable[[str, Mapping[str, Any]], CallFlow[Heard]], search: _Search) -> CallFlow[None]:
    # Open ones first: an order that closes between the two is in both, and in neither the other way round.
    alone: dict[str, str] = {"cl_ord_id": search.ids[0]} if len(search.ids) == 1 else {}
    for method, name in (("OpenOrders", "open"), ("ClosedOrders", "closed")):
        if search.missing and not search.stop:
            search.take((yield from ask(method, alone)), name)
    if not alone:
        for cl_ord_id in search.missing:  # without a filter, Kraken lists the 50 newest closed ones only
            if not search.stop:
                search.take((yield from ask("ClosedOrders", {"cl_ord_id": cl_ord_id})), "closed")


def _settlement(search: _Search) -> Settlement:
    # In the order of the call, as Kraken answers it; the lists have the newest first.
    orders = {cl_ord_id: search.found[cl_ord_id] for cl_ord_id in search.ids if cl_ord_id in search.found}
    found = ", ".join(f"{cl_ord_id} is {txid}" for cl_ord_id, (txid, _) in orders.items())
    if not search.missing:
        return Settlement("found", orders, f"Kraken lists it: {found}")
    missing = ", ".join(search.missing)
    if not (search.clear and search.fenced):
        more = f"; {found}" if found else ""
        known = f"Kraken gave no clear answer ({search.trouble}){more}"
        return Settlement("unknown", orders, known, search.hopeless)
    if orders:
        return Settlement("partly", orders, f"Kraken lists {found}; it does not list {missing}")
    known = f"a nonce above its window was accepted, and Kraken lists no such order: {missing}"
    if search.proved:
        known += "; its deadline was over before the last look"
    return Settlement("absent", {}, known, proved=search.proved)


def _uuid(cl_ord_id: object) -> uuid.UUID | None:
    """Return an id of the kind that nobody uses twice, or None for another one."""
    try:
        return uuid.UUID(str(cl_ord_id)) if len(str(cl_ord_id)) in {32, 36} else None
    except ValueError:
        return None


def _same(ours: str, theirs: object) -> bool:
    """Return whether two spellings are the same id: Kraken keeps a number and not the text."""
    return ours == theirs or (_uuid(ours) or ours) == (_uuid(theirs) or theirs)
