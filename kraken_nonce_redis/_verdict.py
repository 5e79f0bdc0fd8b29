"""What is wrong with the state of an API key, and since when: one rule for all commands that show it; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD
from kraken_nonce_redis._texts import printable, span
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kraken_nonce_redis._redis.commands import Place, State
    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis.errors import ForeignValue

Name: TypeAlias = Literal["foreign", "poisoned", "lead", "held", "ended", "waiting", "cool-down", "pending", "reported"]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
"""The conditions, the most urgent first. docs/metrics.md says what each means."""
LONG: Final = 10.0
"""Seconds from which on it is too long to hold the lock, or to wait for it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is wrong.

    Attributes:
        name: for programs.
        text: for people; ``""`` when the text of the condition before says it, too.
    """

    name: Name
    text: str


OK: Final = "ok"
UNKNOWN: Final = (
    "nothing is known of this key in this namespace: it was not used yet, or another key, namespace or Redis is meant"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that is wrong, the most urgent first; nothing if all is well.

    Attributes:
        conditions: what is wrong.
        known: whether anything is stored.
    """

    conditions: tuple[Condition, ...] = ()
    known: bool = True

    @property
    def names(self) -> tuple[Name, ...]:
        """The names of the conditions."""
        return tuple(condition.name for condition in self.conditions)

    @property
    def text(self) -> str:
        """One line: what is wrong, or `OK`, or `UNKNOWN`."""
        wrong = "; ".join(condition.text for condition in self.conditions if condition.text)
        return wrong or (OK if self.known else UNKNOWN)


def of_state(state: State, pending: Sequence[Pending], max_lead: int = DEFAULT_MAX_LEAD) -> Verdict:
    """Return the verdict on a state that was read with its waiters, and on its journal; ``max_lead`` in ns."""
    conditions = (*_of_nonce(state, max_lead), *_of_lock(state), *_of_cool_down(state), *_of_journal(pending))
    known = state.last is not None or state.place is not None or bool(state.waiting or conditions)
    return Verdict(conditions, known)


def of_foreign_value(error: ForeignValue) -> Verdict:
    """Return the verdict on a state with a value that this library did not write."""
    where = f"the field {error.field}" if error.field else "the key"
    text = f"{where} has a value of another program; kraken-nonce status --id shows which, and what to do"
    return Verdict((Condition("foreign", text),))


def longest_wait(state: State) -> float:
    """Return for how long somebody has waited for the lock, seconds; 0.0 when nobody waits."""
    next_one = [state.place] if state.place is not None and not state.place.held else []
    return max((place.asked for place in (*next_one, *state.waiters)), default=0.0)


def holder_age(state: State) -> float:
    """Return for how long the lock has been held, seconds; 0.0 when nobody holds it."""
    return state.place.held if state.place is not None and state.leased else 0.0


def lead_seconds(state: State) -> float | None:
    """Return how far the last nonce is ahead of the server's clock, seconds; None when there is none."""
    return None if state.last is None else (state.last - state.now) / 1e9


def who(place: Place) -> str:
    """Return the name of a holder or waiter and what it wants the lock for, fit for a terminal."""
    words = [place.name or place.member]
    if place.method:
        words += ["for", place.method]
    if place.token:
        words += ["with token", place.token]
    return printable(" ".join(words))


def _of_nonce(state: State, max_lead: int) -> Iterator[Condition]:
    # Whoever is refused a nonce with this lead raises it to the next one, and gives up when there is none.
    lead, retries = lead_seconds(state) or 0.0, Retries(max_lead=max_lead / 1e9)
    following = retries.lead_after(lead)
    ahead = f"{span(lead)} ahead of the server's clock"
    if following is None:
        limit = f"max_lead {span(max_lead / 1e9)}"
        yield Condition("poisoned", f"poisoned if Kraken refuses: nonces are {ahead}, not raised further ({limit})")
    elif following != retries.lead_after(0.0):
        yield Condition("lead", f"nonces are {ahead}, raised because Kraken refused some, or by hand")


def _of_lock(state: State) -> Iterator[Condition]:
    place, longest = state.place, longest_wait(state)
    waiting = f"{state.waiting} wait, longest {span(longest)}" if state.waiting else ""
    if place is not None and holder_age(state) >= LONG:
        # A lease that is renewed shows that its process lives; one that isn't may be a dead one's.
        alive = f"renewed {span(state.renewed)} ago" if state.renewed < place.held else "never renewed"
        parts = [f"held {span(place.held)} by {who(place)}", f"{alive}, {span(state.left)} left", waiting]
        yield Condition("held", ", ".join(filter(None, parts)))
        waiting = ""
    elif place is not None and place.held and state.ended:
        yield Condition("ended", f"the lease of {who(place)} ended {span(state.ended)} ago without a release")
    elif longest >= LONG and not waiting and place is not None:
        waiting = f"{who(place)} waits, {span(longest)} by now"
    if longest >= LONG:
        yield Condition("waiting", waiting)


def _of_cool_down(state: State) -> Iterator[Condition]:
    if state.cool_down:
        yield Condition("cool-down", f"cool-down for another {span(state.cool_down)}: {printable(state.reason)}")


def _of_journal(pending: Sequence[Pending]) -> Iterator[Condition]:
    unsettled = [call for call in pending if not call.reported]
    if unsettled:
        what = "to be settled; the next process with this API key does it"
        yield Condition("pending", f"{_calls(unsettled)} {what} ({_oldest(unsettled)})")
    told = [call for call in pending if call.reported]
    if told:
        what = "with an unknown outcome; look at Kraken, then kraken-nonce pending --clear"
        yield Condition("reported", f"{_calls(told)} {what} ({_oldest(told)})")


def _calls(calls: Sequence[Pending]) -> str:
    return "1 call" if len(calls) == 1 else f"{len(calls)} calls"


def _oldest(calls: Sequence[Pending]) -> str:
    call = min(calls, key=lambda call: call.since)
    name = f" of {printable(call.name)}" if call.name else ""
    return f"{'oldest: ' if len(calls) > 1 else ''}{printable(call.method)}{name}, {span(call.age)} ago"
