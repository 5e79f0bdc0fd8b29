"""How a caller gets the lock, step by step, without a server."""

from __future__ import annotations

import pytest

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import events
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Run
from kraken_nonce_redis._core.waiters import Waiter
from kraken_nonce_redis._core.waiting import acquiring
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._redis.commands import Booked
from kraken_nonce_redis.errors import StoreOutOfMemory
from tests.support.helpers import KEYS
from tests.support.listening import listening

pytestmark = pytest.mark.once


@pytest.mark.parametrize("repeated", [False, True])
def test_what_may_have_been_granted_is_given_back(repeated: bool) -> None:  # noqa: FBT001
    """Asked for again after a lost answer and then refused, the lock is given back: the first one may have got it."""
    flow = acquiring(ProcessState(Agenda(lambda: None)), KEYS, "p:1", Wishes(), ttl=30.0)
    step = next(flow)
    assert isinstance(step, Run)
    step.command.repeated = repeated
    refusal = StoreOutOfMemory("acquire", KEYS.state, "full")
    if repeated:
        step = flow.throw(refusal)
        assert isinstance(step, Run)
        assert (step.command.name, step.command.args[0]) == ("release", "p:1")
        with pytest.raises(StoreOutOfMemory):
            flow.send("released")
    else:
        with pytest.raises(StoreOutOfMemory):
            flow.throw(refusal)


def test_how_long_a_slot_that_moves_is_waited_for() -> None:
    """A caller that wants the lock waits within its timeout; one that has given up doesn't, for the agenda does."""
    flow = acquiring(ProcessState(Agenda(lambda: None)), KEYS, "p:1", Wishes(timeout=5.0), ttl=30.0)
    before = clock.now()
    step = next(flow)
    assert isinstance(step, Run)
    assert step.command.until is not None
    assert before + 5.0 <= step.command.until <= clock.now() + 5.0
    step = flow.throw(KeyboardInterrupt())
    assert isinstance(step, Run)
    assert step.command.name == "release"
    assert step.command.until is not None
    assert step.command.until <= clock.now()
    with pytest.raises(KeyboardInterrupt):
        flow.send("released")


def test_long_waits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is told again after a second, after ten and then every minute, however often anybody looks."""
    now = 100.0
    monkeypatch.setattr(clock, "now", lambda: now)
    waiter = Waiter(KEYS, "p:1|bot|AddOrder", None)
    with listening() as listener:
        waiter.still_waits(now + 5)
        assert listener.told == []  # it does not wait yet
        waiter.began_to_wait(Booked(1, 60.0, "interval"))
        for second in range(1400):
            waiter.still_waits(now + second / 10)
    waits = [event.wait for event in listener.of(events.StillWaiting)]
    assert waits == pytest.approx([1, 10, 70, 130])
    assert {(event.name, event.method, event.lease) for event in listener.of(events.StillWaiting)} == {
        ("bot", "AddOrder", "p:1")
    }
