"""What the commands say of a state: one rule without I/O, from states that tests make up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraken_nonce_redis import Retries
from kraken_nonce_redis import _verdict as verdicts
from kraken_nonce_redis._redis.commands import Place, State
from kraken_nonce_redis._redis.journal import Pending
from kraken_nonce_redis._verdict import LONG, NAMES, OK, UNKNOWN, of_foreign_value, of_state
from kraken_nonce_redis.errors import ForeignValue

pytestmark = pytest.mark.once

SECOND = 10**9
HOUR = 3600 * SECOND
NOW = 1_800_000_000 * SECOND
FREE = State(
    now=NOW,
    last=NOW - SECOND,
    holder="",
    place=None,
    leased=False,
    left=0.0,
    renewed=0.0,
    ended=0.0,
    waiting=0,
    waiters=(),
    pending=0,
    cool_down=0.0,
    reason="",
)


def place(name: str = "bot", *, asked: float, held: float = 0.0, method: str = "AddOrder") -> Place:
    """Make a holder or waiter."""
    return Place(f"1:1-1.1|{name}|{method}", name, method, "", "normal", asked, held)


def held(seconds: float, *, left: float = 20.0, renewed: float | None = None, waiters: tuple[Place, ...] = ()) -> State:
    """Make the state of a held lock."""
    holder = place("holder", asked=seconds, held=seconds)
    return replace(
        FREE,
        holder=holder.member,
        place=holder,
        leased=left > 0,
        left=left,
        renewed=seconds if renewed is None else renewed,
        ended=0.0 if left > 0 else 5.0,
        waiting=len(waiters),
        waiters=waiters,
    )


def call(nonce: int = 1, *, age: float = 60.0, reported: bool = False, **more: Any) -> Pending:
    """Make an entry of the journal."""
    entry = Pending(
        nonce=nonce,
        since=NOW - round(age * SECOND),
        age=age,
        reported=reported,
        result=None,
        noted=0.0,
        txids={},
        key="0123456789abcdef",
        method="AddOrder",
        cl_ord_ids=("an-id",),
        own_ids=False,
        name="bot",
    )
    return replace(entry, **more)


def lead(seconds: float) -> State:
    """Make the state of a nonce that was raised."""
    return replace(FREE, last=NOW + round(seconds * SECOND))


CASES: dict[str, tuple[State, tuple[Pending, ...], tuple[str, ...], str]] = {
    "fresh": (replace(FREE, last=None), (), (), "nothing is known of this key"),
    "free": (FREE, (), (), "ok"),
    "held for a moment": (held(1.0, waiters=(place(asked=0.5),)), (), (), "ok"),
    "hung": (
        held(42.0, left=28.0, renewed=2.0, waiters=(place(asked=20.0), place(asked=3.0))),
        (),
        ("held", "waiting"),
        "held 42.0 s by holder for AddOrder, renewed 2.0 s ago, 28.0 s left, 2 wait, longest 20.0 s",
    ),
    "dead": (
        held(12.0, left=18.0, waiters=(place(asked=1.0),)),
        (),
        ("held",),
        "held 12.0 s by holder for AddOrder, never renewed, 18.0 s left, 1 wait, longest 1.0 s",
    ),
    "ended": (
        held(35.0, left=0.0),
        (),
        ("ended",),
        "the lease of holder for AddOrder ended 5.0 s ago without a release",
    ),
    "a crowd": (
        held(0.5, waiters=(place(asked=11.0),)),
        (),
        ("waiting",),
        "1 wait, longest 11.0 s",
    ),
    "booked": (
        replace(FREE, holder="x", place=place(asked=15.0), left=3.0, renewed=1.0),
        (),
        ("waiting",),
        "bot for AddOrder waits, 15.0 s by now",
    ),
    "raised": (lead(59), (), ("lead",), "nonces are 59.0 s ahead of the server's clock, raised because"),
    "poisoned": (lead(3_590), (), ("poisoned",), "poisoned if Kraken refuses: nonces are 59.8 min ahead"),
    "cool-down": (
        replace(FREE, cool_down=50.0, reason="EAPI:Rate limit \x1bexceeded"),
        (),
        ("cool-down",),
        "cool-down for another 50.0 s: EAPI:Rate limit ?exceeded",
    ),
    "pending": (
        FREE,
        (call(1, age=10), call(2, age=70.0, name="other")),
        ("pending",),
        "2 calls to be settled; the next process with this API key does it (oldest: AddOrder of other, 70.0 s ago)",
    ),
    "about to be told": (FREE, (call(result="found", name=""),), ("pending",), "1 call to be settled; the next"),
    "reported": (
        FREE,
        (call(reported=True, age=300),),
        ("reported",),
        "1 call with an unknown outcome; look at Kraken, then kraken-nonce pending --clear (AddOrder of bot, 5.0 min",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_condition(case: str) -> None:
    """Each has its name for programs, and words that say who, for what and since when."""
    state, pending, names, text = CASES[case]
    verdict = of_state(state, pending)
    assert verdict.names == names
    assert verdict.text.startswith(text)


def test_a_value_of_another_program() -> None:
    """It is a condition as well; the value itself is not in it."""
    error = ForeignValue("inspect", "kraken-nonce:{x}", "its field 'lock' holds 'theirs'")
    error.field = "lock"
    verdict = of_foreign_value(error)
    assert verdict.names == ("foreign",)
    assert "the field lock" in verdict.text
    assert "theirs" not in verdict.text


durations = st.floats(0, 10**6)
places = st.builds(place, asked=durations)
nonces = st.one_of(st.none(), st.integers(1, 2**63 - 1))
states = st.builds(
    lambda state, last, cool: replace(state, last=last, cool_down=cool, reason="why"),
    st.builds(held, durations, left=durations, renewed=durations, waiters=st.lists(places).map(tuple)) | st.just(FREE),
    nonces,
    durations,
)
journals = st.lists(st.builds(call, st.integers(1), age=durations, reported=st.booleans())).map(tuple)


@given(states, journals)
def test_a_verdict_is_one_line_and_its_names_are_in_order(state: State, pending: tuple[Pending, ...]) -> None:
    """Whatever is stored: known names, each once, the most urgent first, and ``ok`` for no condition of a known key."""
    verdict = of_state(state, pending)
    assert list(verdict.names) == sorted(set(verdict.names), key=NAMES.index)
    assert (verdict.text in {OK, UNKNOWN}) == (not verdict.names)
    assert (verdict.text == UNKNOWN) <= (state.last is None)
    assert verdict.text.isprintable()
    assert not verdict.text.startswith(";")
    assert not {"poisoned", "lead"} <= set(verdict.names)
    assert ("waiting" in verdict.names) == (verdicts.longest_wait(state) >= LONG)
    assert ("held" in verdict.names) == (verdicts.holder_age(state) >= LONG)
    assert {"pending", "reported"} & set(verdict.names) == {
        "reported" if entry.reported else "pending" for entry in pending
    }


@given(st.floats(-(10**5), 10**5), st.sampled_from([HOUR, 60 * SECOND, 24 * HOUR]))
def test_poisoned_is_what_no_client_raises_further(seconds: float, max_lead: int) -> None:
    """The verdict and the clients follow one rule: poisoned is where the next refusal is `NoncePoisoned`."""
    retries = Retries(max_lead=max_lead / SECOND)
    names = of_state(lead(seconds), (), max_lead).names
    following = retries.lead_after(verdicts.lead_seconds(lead(seconds)) or 0.0)
    assert ("poisoned" in names) == (following is None)
    assert (names == ()) == (following == retries.lead_after(0.0))
