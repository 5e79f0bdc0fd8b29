"""What a process does beside its callers: nothing ends it, and nothing of it piles up."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis.credentials import CredentialProvider

from kraken_nonce_redis import CallLock, StoreUnavailable
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core import waiters
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from tests.support.faces import KEY
from tests.support.helpers import KEYS, Rival, View, eventually, fails

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tests.support.faces import Face
    from tests.support.servers import Server

PROMPT = 0.6
"""Seconds in which an offer is heard for certain; without hearing it, a waiter asks a second later at the earliest."""
STATE = KEYS.state
MALFORMED = (
    b"",
    b"\xff\xfe\x00",
    b"x" * 1_000_000,
    b"cool-down ",
    b"cool-down x",
    b"cool-down x y",
    f"cool-down {STATE} soon and so on".encode(),
    f"cool-down {STATE} -5 and so on".encode(),
    f"cool-down {STATE} {'9' * 6000} and so on".encode(),
    "cool-down x ٣ and so on".encode(),
    f"cool-down {STATE} 60000000 in its own words".encode(),
)


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=["bytes", "decoded"])
def test_malformed_messages(face: Face, valkey: Server, options: dict[str, bool]) -> None:
    """Anybody can publish to a process that waits: what makes no sense goes by, and the offer is heard."""
    view, rival = View(valkey.client()), Rival(valkey.client())
    rival.take()
    lock = face.lock(face.client(valkey, **options))

    def wait() -> float:
        with lock.hold(timeout=20):
            return time.monotonic()

    caller = face.start(wait)
    view.until_waiting(1)
    [channel] = eventually(lambda: view.client.pubsub_channels("kraken-nonce:wake:*"))
    for message in MALFORMED:
        view.client.publish(channel, message)
    time.sleep(0.2)
    released = time.monotonic()
    rival.release()
    assert caller.result() - released < PROMPT


@pytest.mark.long
def test_a_flood_of_messages(face: Face, valkey: Server) -> None:
    """However many messages anybody publishes, a process asks about every 50 ms, for all of its waiters together."""
    view, rival = View(valkey.client()), Rival(valkey.client())
    rival.take()
    lock = face.lock(face.client(valkey))
    nonces: list[int] = []

    def wait() -> None:
        with lock.hold(timeout=20) as lease:
            nonces.append(lease.nonce)

    callers = [face.start(wait) for _ in range(8)]
    view.until_waiting(8)
    [channel] = eventually(lambda: view.client.pubsub_channels("kraken-nonce:wake:*"))
    eventually(lambda: _is_quiet(view.client), 20)  # each asks once more when the process listens
    members = view.client.zrangebyscore(KEYS.queue, "-inf", 3.9e15)
    before, began, messages = _scripts_run(view.client), time.monotonic(), 0
    while time.monotonic() < began + 1:
        with view.client.pipeline(transaction=False) as pipeline:
            for message in (*members, STATE.encode(), b"no member"):
                pipeline.publish(channel, message)
            messages += sum(pipeline.execute())
        time.sleep(0.001)
    asked = _scripts_run(view.client) - before
    elapsed = time.monotonic() - began
    assert messages > 500
    # Heartbeats and what a busy machine was late with come on top; one question a waiter would be eight times as many.
    assert asked <= 2 * elapsed / waiters.TOGETHER
    rival.release()
    for caller in callers:
        caller.result()
    assert nonces == sorted(nonces)
    assert len(nonces) == 8
    view.assert_nothing_left()


def _scripts_run(client: redis.Redis) -> int:
    """Return how many scripts the server has run for anybody."""
    stats: Any = client.info("commandstats")
    return sum(stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_eval", "cmdstat_evalsha"))


def _is_quiet(client: redis.Redis) -> bool:
    """Whether nobody runs a script for a while."""
    before = _scripts_run(client)
    time.sleep(0.4)
    return _scripts_run(client) == before


class Vault(CredentialProvider):
    """Gives credentials, or fails like a service that is away."""

    def __init__(self) -> None:
        self.is_away = False

    def get_credentials(self) -> tuple[str, str]:
        """Return what any server without a password takes."""
        if self.is_away:
            raise LookupError("the vault is away")
        return "default", "anything"


@pytest.mark.test_all
def test_failing_credentials(face: Face, valkey: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A provider that fails while a lease is renewed costs a renewal: that is told, and the next one works."""
    vault, name = Vault(), f"vault-{face.name}"
    lock = face.lock(face.client(valkey, credential_provider=vault, client_name=name), ttl=3)
    admin = valkey.client()
    with lock.hold(auto_renew=True) as lease:
        vault.is_away = True
        for each in admin.client_list():
            if each["name"] == name:
                admin.client_kill(each["addr"])
        eventually(lambda: "LookupError" in caplog.text)
        vault.is_away = False
        time.sleep(3)
        assert lease.remaining() > 1
        assert isinstance(lease.next_nonce(), int)


class _Chore:
    """A chore that fails once in each of its steps, in a way that it knows nothing of."""

    def __init__(self, command: Callable[[], Any]) -> None:
        self.steps: list[str] = []
        self._command = command

    def command(self, now: float) -> Any:  # noqa: ARG002
        """Fail at the first time; be over after three."""
        self.steps.append("command")
        if len(self.steps) == 1:
            raise ValueError("in a command")
        return self._command() if self.steps.count("succeeded") < 2 else None

    def succeeded(self, command: Any, result: Any, now: float) -> float:  # noqa: ARG002
        """Fail at the first time."""
        self.steps.append("succeeded")
        if self.steps.count("succeeded") == 1:
            raise ValueError("in a result")
        return now

    def failed(self, error: Exception, now: float) -> float:  # noqa: ARG002
        """Never be called."""
        raise AssertionError(error)


def test_a_failing_chore_is_tried_again(
    face: Face, valkey: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a chore raises, it is told and tried again, and others that are due are done."""
    for module in ("kraken_nonce_redis._threads.store", "kraken_nonce_redis.asyncio._store"):
        monkeypatch.setattr(f"{module}._AGAIN", 0.05)
    lock = face.lock(face.client(valkey), ttl=1)
    chore = _Chore(lambda: _release_of_nobody(lock))
    with lock.hold(auto_renew=True) as lease:
        _on_its_agenda(face, lock, chore)
        eventually(lambda: chore.steps == ["command", "command", "succeeded", "command", "succeeded", "command"])
        time.sleep(1.2)
        assert lease.remaining() > 0.3
    assert "ValueError: in a command" in caplog.text
    assert "ValueError: in a result" in caplog.text


def _release_of_nobody(lock: Any) -> Any:
    return commands.release(_unwrapped(lock).keys, "nobody")


def _unwrapped(lock: Any) -> Any:
    return lock if isinstance(lock, CallLock) else lock._wrapped


def _on_its_agenda(face: Face, lock: Any, chore: Any) -> None:
    """Put a chore down as the library does, in the loop's thread where there is a loop."""
    plain = _unwrapped(lock)
    if isinstance(plain, CallLock):
        plain._process_state().agenda.add(clock.now(), chore)
        return

    async def add() -> None:
        plain._process_state().agenda.add(clock.now(), chore)

    face.run(add)  # type: ignore[attr-defined]


def test_cancel_all_tasks(valkey: Server) -> None:
    """Whoever cancels all tasks of a loop cancels callers, and nothing that later ones or a renewal stand on."""
    view, rival = View(valkey.client()), Rival(valkey.client())

    async def wait(lock: AsyncCallLock) -> float:
        async with lock.hold(timeout=20):
            return time.monotonic()

    async def main() -> None:
        lock, kept = AsyncCallLock.from_url(valkey.url, KEY), AsyncCallLock.from_url(valkey.url, "other", ttl=1)
        rival.take()
        async with kept.hold(auto_renew=True) as lease:
            for steps in range(25):
                waiting = asyncio.create_task(wait(lock))
                for _ in range(steps):
                    await asyncio.sleep(0)
                await _cancel_all()
                assert waiting.cancelled()
            later = asyncio.create_task(wait(lock))
            await asyncio.to_thread(view.until_waiting, 1)
            await asyncio.sleep(1.5)
            released = time.monotonic()
            rival.release()
            assert await later - released < PROMPT
            assert lease.remaining() > 0.3

    async def _cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=3)

    asyncio.run(main())


def test_chores_that_cannot_begin(
    valkey: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started, calls work, it is told, and chores begin when it can."""
    lock = CallLock(valkey.client(), KEY, ttl=1)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        hold = lock.hold(auto_renew=True)
        lease = hold.__enter__()
    assert "can't start new thread" in caplog.text
    lock.locked()
    time.sleep(1.5)
    assert lease.remaining() > 0.1
    hold.__exit__(None, None, None)


@pytest.mark.test_all
def test_nothing_piles_up(face: Face, valkey: Server) -> None:
    """A process keeps nothing of keys for which nobody waits, and of renewals of leases that were released."""
    client = face.client(valkey)
    lock = face.lock(client)
    for number in range(100):
        other = face.lock(client, f"key {number}")
        with other.hold(auto_renew=True):
            caller = face.start(lambda other=other: other.acquire(blocking_timeout=0.01))
            assert caller.result() is False
    with lock.hold():
        state = _state_of(face, lock)
        eventually(lambda: not state.waiters_by_key)
        assert not state.background_releases
        assert len(state.held) == 1
        assert len(state.agenda._heap) <= 64


def _state_of(face: Face, lock: Any) -> Any:
    plain = _unwrapped(lock)
    if isinstance(plain, CallLock):
        return plain._process_state()

    async def state() -> Any:
        return plain._process_state()

    return face.run(state)  # type: ignore[attr-defined]


def test_what_was_never_sent_is_not_given_back(face: Face) -> None:
    """While Redis can't be reached, callers leave nothing behind that would have to be given back later."""
    lock = face.lock_from_url("redis://127.0.0.1:1/0", KEY)
    for _ in range(5):
        with fails(StoreUnavailable):
            lock.acquire()
    assert not _state_of(face, lock).background_releases


def test_copies_of_a_process_are_strangers() -> None:
    """A machine that was copied with all that it knew: the two have one pid, and never one member."""
    copies = [ProcessState(Agenda(lambda: None), process_id="the same") for _ in range(2)]
    assert len({each.new_member(token) for each in copies for token in (None, "token")}) == 4
