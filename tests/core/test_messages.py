"""Messages on a process's channel: they only make it ask, at once and then once in 50 ms, and none of them is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.waiters import TOGETHER, Waiter
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.commands import Heartbeat
from tests.support.helpers import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = KEYS.state
START = 100.0


class Process:
    """A process with some waiters, all of them asleep, and a clock that the test sets."""

    def __init__(self, waiters: int) -> None:
        self.now = START
        self.agenda = Agenda(lambda: None)
        self.process_state = ProcessState(self.agenda)
        self.waiters = [Waiter(KEYS, f"process:{number}", None) for number in range(waiters)]
        for waiter in self.waiters:
            self.key_waiters = self.process_state.enter(waiter)

    def hear(self, *messages: str | bytes) -> None:
        """Take messages from the channel."""
        for message in messages:
            self.process_state.hear({"type": "message", "data": message})

    def woken(self) -> list[int]:
        """Return which waiters were woken, and let them sleep again."""
        found = [number for number, waiter in enumerate(self.waiters) if waiter.woken]
        for waiter in self.waiters:
            waiter.woken = False
        return found

    def passes(self, seconds: float, offered: str = "-") -> int:
        """Let time pass; return how often the process asks for all, and answer that the lock is offered to one."""
        asked, end = 0, self.now + seconds
        while (due := self.agenda.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            question = self.agenda.pop(self.now)
            assert question is not None
            command = question.command(self.now)
            if command is not None:
                asked += 1
                again = question.succeeded(command, Heartbeat("=", offered, 0.7, 0.0, ""), self.now)
                assert again is None
        self.now = end
        return asked


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Process]:
    """Make a process on the test's clock."""

    def make(waiters: int) -> Process:
        made = Process(waiters)
        monkeypatch.setattr(clock, "now", lambda: made.now)
        return made

    return make


def test_an_offer_is_taken_at_once(process: Callable[[int], Process]) -> None:
    """The waiter that a message names asks itself, in the same moment and without another question before."""
    one = process(3)
    one.hear(b"process:1")
    assert one.woken() == [1]
    assert one.passes(10) == 0
    assert one.woken() == []


def test_offers_to_one_after_the_other(process: Callable[[int], Process]) -> None:
    """Each of many offers in a row is taken at once: who was offered the lock has left when the next one comes."""
    one = process(5)
    for number, waiter in enumerate(one.waiters):
        one.hear(waiter.member)
        assert one.woken() == [number]
        one.key_waiters.leave(waiter)
        one.now += 0.001
    assert one.passes(10) == 0


def test_the_name_of_the_key(process: Callable[[int], Process]) -> None:
    """The key's name makes the process ask once for all, at once, and wakes nobody before the answer."""
    one = process(3)
    one.hear(STATE)
    assert one.passes(0) == 1
    assert one.woken() == []
    one.now += 1
    one.hear(STATE)
    assert one.passes(0, offered="process:2") == 1
    assert one.woken() == [2]


@pytest.mark.parametrize("waiters", [1, 2, 7])
def test_a_flood(process: Callable[[int], Process], waiters: int) -> None:
    """However many messages come for whom, the process asks once in 50 ms, its waiters and itself taken together."""
    one = process(waiters)
    asks = 0
    for _ in range(1000):
        one.hear(*(waiter.member for waiter in one.waiters), STATE, "process:unknown", b"\xff")
        asks += one.passes(0.001) + len(one.woken())
    assert 1 / TOGETHER * 0.9 <= asks <= 1 / TOGETHER + 1


def test_an_offer_within_a_flood(process: Callable[[int], Process]) -> None:
    """Among many that are named, the one that the lock is offered to is woken with the first answer."""
    one = process(20)
    one.hear(*(waiter.member for waiter in one.waiters))
    assert one.woken() == [0]
    assert one.passes(TOGETHER + 0.001, offered="process:17") == 1
    assert one.woken() == [17]


def test_no_message_is_lost(process: Callable[[int], Process]) -> None:
    """Each waiter that was named asks itself in the end, since an answer for all need not tell what it waits for."""
    one = process(6)
    one.hear(*(waiter.member for waiter in one.waiters))
    woken = one.woken()
    for _ in range(100):
        one.passes(TOGETHER)
        woken += one.woken()
    assert woken == [0, 1, 2, 3, 4, 5]
    assert one.agenda.next_due() is None


def test_the_only_one_named_asks_itself(process: Callable[[int], Process]) -> None:
    """A second message to the same waiter is followed by its own question, with no question for all before it."""
    one = process(2)
    one.hear("process:0")
    assert one.woken() == [0]
    one.hear("process:0", "process:0")
    assert one.woken() == []
    assert one.passes(TOGETHER + 0.001) == 0
    assert one.woken() == [0]


def test_a_question_that_nobody_needs_any_more(process: Callable[[int], Process]) -> None:
    """When all waiters have left, what was to be asked is forgotten, and later ones are heard at once."""
    one = process(1)
    one.hear("process:0", "process:0")
    one.woken()
    one.hear("process:0")
    one.key_waiters.leave(one.waiters[0])
    assert one.passes(1) == 0
    later = Waiter(KEYS, "process:9", None)
    one.waiters = [later]
    one.key_waiters = one.process_state.enter(later)
    one.hear("process:9")
    assert one.woken() == [0]
    one.hear("process:9")
    one.passes(TOGETHER + 0.001)
    assert one.woken() == [0]


def test_offers_to_one_who_has_left(process: Callable[[int], Process]) -> None:
    """An offer that has crossed with a release costs no command; a later one shows that the release was lost."""
    one = process(0)
    release = commands.release(KEYS, "process:1")
    one.process_state.departed_for_good(release)
    one.hear("process:1")
    assert not one.process_state.background_releases
    one.now += 2
    one.hear("process:2")
    assert not one.process_state.background_releases
    one.hear("process:1")
    assert [command.args for command in one.process_state.background_releases[STATE].owed()] == [release.args]
