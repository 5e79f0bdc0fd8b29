"""What users of `redis.lock.Lock` expect of a lock, by the cases of redis-py's own tests.

Where this lock differs on purpose (`CallLock` says why), the test says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import LockError, LockNotOwnedError

from kraken_nonce_redis import CallLockError, LeaseLost
from tests.support.helpers import ON_VALKEY, Rival, Stopwatch, View, eventually, fails

if TYPE_CHECKING:
    from kraken_nonce_redis import CallLock
    from tests.support.faces import Face
    from tests.support.servers import AnyServer


@pytest.fixture
def lock(face: Face, server: AnyServer) -> CallLock:
    """Make a lock on every server."""
    return face.lock(face.client(server))


@pytest.fixture
def other(face: Face, server: AnyServer) -> CallLock:
    """Make another process's lock for the same key."""
    return face.lock(face.client(server))


def lose(face: Face, server: AnyServer, view: View) -> CallLock:
    """Return a lock that this caller acquired and somebody else has got since."""
    lock = face.lock(face.client(server))
    assert lock.acquire(blocking=False)
    view.unlock()
    Rival(view.client).take()
    return lock


def test_acquire_and_release(lock: CallLock, view: View) -> None:
    """acquire(blocking=False) takes a free lock, release() frees it."""
    assert lock.acquire(blocking=False) is True
    assert view.state.leased
    assert view.state.left == pytest.approx(30, abs=0.5)
    lock.release()
    view.assert_nothing_left()


@pytest.mark.parametrize("token", ["a-token", b"a:token", "0d3eb0d0", "x" * 200])
def test_token(lock: CallLock, view: View, token: str | bytes) -> None:
    """A token of the caller's identifies the lease in Redis."""
    assert lock.acquire(blocking=False, token=token)
    text = token.decode() if isinstance(token, bytes) else token
    assert view.state.holder.endswith(f"|{text}")
    assert lock.owned()
    lock.release()
    view.assert_nothing_left()


def test_tokens_of_one_process_are_told_apart(face: Face, lock: CallLock, view: View) -> None:
    """Two callers of a process can't share a lock by using the same token, which redis-py would let pass."""
    assert lock.acquire(token="mine")
    for token in ("mine", "yours"):
        assert not face.start(lambda token=token: lock.acquire(blocking=False, token=token)).result()
    assert lock.owned()
    lock.release()
    assert lock.acquire(blocking=False, token="mine"), "it is free again with the lease"
    lock.release()
    view.assert_nothing_left()


def test_tokens_of_two_processes_are_told_apart(lock: CallLock, other: CallLock) -> None:
    """The same token in two processes is two holders."""
    assert lock.acquire(token="mine")
    assert not other.acquire(blocking=False, token="mine")
    assert not other.owned()
    lock.release()


def test_a_token_that_is_used_again_gets_new_nonces(lock: CallLock, face: Face, server: AnyServer) -> None:
    """The same token after a release is a new lease."""
    nonces = face.allocator(face.client(server))
    assert lock.acquire(token="mine")
    last = nonces.last()
    lock.release()
    assert lock.acquire(token="mine")
    assert nonces.last() > last
    lock.release()


def test_locked(lock: CallLock, other: CallLock) -> None:
    """locked() tells for everybody whether anybody holds the lock."""
    assert lock.locked() is False
    lock.acquire(blocking=False)
    assert lock.locked() is True
    assert other.locked() is True
    lock.release()
    assert lock.locked() is False
    assert other.locked() is False


def test_owned(lock: CallLock, other: CallLock) -> None:
    """owned() tells whether this caller holds it."""
    assert lock.owned() is False
    lock.acquire(blocking=False)
    assert lock.owned() is True
    assert other.owned() is False
    lock.release()
    assert lock.owned() is False


def test_owned_by_a_caller(face: Face, lock: CallLock, other: CallLock) -> None:
    """Another thread of the process does not own it; in asyncio the lock object does, as with redis-py."""
    lock.acquire()
    assert face.start(lock.owned).result() is (face.name == "asyncio")
    assert face.start(other.owned).result() is False
    assert face.start(lock.locked).result() is True
    lock.release()


def test_competing_locks(lock: CallLock, other: CallLock) -> None:
    """Of two only one has it, either of them in turn."""
    assert lock.acquire(blocking=False)
    assert not other.acquire(blocking=False)
    lock.release()
    assert other.acquire(blocking=False)
    assert not lock.acquire(blocking=False)
    other.release()


@pytest.mark.parametrize("ttl", [10, 9.5])
def test_timeout(face: Face, server: AnyServer, view: View, ttl: float) -> None:
    """What redis-py calls timeout is the ttl; there is no lock without one, on purpose."""
    lock = face.lock(face.client(server), ttl=ttl)
    assert lock.acquire(blocking=False)
    assert ttl - 0.5 < view.state.left <= ttl
    lock.release()


@ON_VALKEY
def test_ttl_ends_a_lock(face: Face, server: AnyServer, other: CallLock) -> None:
    """A lock that is not released is free after its ttl."""
    lock = face.lock(face.client(server), ttl=1)
    lock.acquire()
    eventually(lambda: not lock.locked(), 1.2)
    assert not lock.owned()
    assert other.acquire(blocking=False)
    other.release()


def test_blocking_waits(lock: CallLock, other: CallLock, face: Face, view: View) -> None:
    """acquire() waits until the lock is free."""
    lock.acquire()
    waiter = face.start(lambda: (other.acquire(), other.release()))
    view.until_waiting(1)
    assert not waiter.done
    lock.release()
    assert waiter.result() == (True, None)
    view.assert_nothing_left()


def test_blocking_timeout(lock: CallLock, other: CallLock) -> None:
    """acquire(blocking_timeout=) returns False when the time is over; no error, unlike hold()."""
    lock.acquire()
    watch = Stopwatch()
    assert other.acquire(blocking_timeout=0.2) is False
    assert watch() >= 0.2
    assert other.acquire(blocking_timeout=0) is False
    lock.release()


def test_not_blocking_goes_before_a_timeout(lock: CallLock, other: CallLock) -> None:
    """With blocking=False the time does not count."""
    lock.acquire()
    # In a minute the lease ends, and it would get the lock.
    assert other.acquire(blocking=False, blocking_timeout=60) is False
    lock.release()


def test_context_manager(lock: CallLock, view: View) -> None:
    """`with lock:` acquires and releases, and gives the lock."""
    with lock as entered:
        assert entered == lock
        assert lock.owned()
        assert view.state.leased
    view.assert_nothing_left()


def test_context_manager_raises_what_the_block_raises(lock: CallLock, view: View) -> None:
    """An error in the block comes out, and the lock is free."""
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    view.assert_nothing_left()


def test_context_manager_tells_that_the_lock_was_lost(lock: CallLock, view: View) -> None:
    """Leaving a block whose lock somebody else has got raises redis-py's LockNotOwnedError."""

    def lose_it() -> None:
        with lock:
            view.unlock()
            Rival(view.client).take()

    with pytest.raises(LockNotOwnedError):
        lose_it()


def test_context_manager_without_its_lock(lock: CallLock) -> None:
    """A lock that was released by hand within its block is a LockError at the end."""
    with pytest.raises(LockError), lock:
        lock.release()


def test_reentrant(lock: CallLock, view: View) -> None:
    """A second acquire() of the same caller succeeds, unlike redis-py's; each needs its release()."""
    assert lock.acquire()
    assert lock.acquire(blocking=False)
    lock.release()
    assert lock.owned()
    lock.release()
    assert not lock.owned()
    view.assert_nothing_left()


@pytest.mark.parametrize("misuse", ["release", "extend", "reacquire"])
def test_without_the_lock(lock: CallLock, other: CallLock, misuse: str) -> None:
    """release(), extend() and reacquire() of a lock that this caller does not hold raise LockError."""
    arguments = [1] if misuse == "extend" else []
    for _ in range(2):
        with fails(CallLockError) as caught:
            getattr(lock, misuse)(*arguments)
        assert isinstance(caught.value, LockError)
        assert not isinstance(caught.value, LockNotOwnedError)
        other.acquire()
    other.release()
    other.release()


@pytest.mark.parametrize("misuse", ["release", "extend", "reacquire"])
def test_no_longer_owned(face: Face, server: AnyServer, view: View, misuse: str) -> None:
    """When somebody else has got the lock, all three raise LockNotOwnedError and leave the other one alone."""
    lock = lose(face, server, view)
    holder, left = view.state.holder, view.state.left
    with fails(LeaseLost) as caught:
        getattr(lock, misuse)(*([1] if misuse == "extend" else []))
    assert isinstance(caught.value, LockNotOwnedError)
    assert not lock.owned()
    assert view.state.holder == holder
    assert view.state.left <= left


def test_a_lost_lock_is_lost_once(face: Face, server: AnyServer, view: View) -> None:
    """After a release() that raised, the caller holds nothing and may begin again."""
    lock = lose(face, server, view)
    with fails(LeaseLost):
        lock.release()
    with fails(CallLockError, "does not hold it"):
        lock.release()
    view.client.flushall()
    assert lock.acquire(blocking=False)
    lock.release()


@pytest.mark.parametrize("seconds", [10, 10.5])
def test_extend(face: Face, server: AnyServer, view: View, seconds: float) -> None:
    """extend() adds to what is left, in whole seconds and parts of them."""
    lock = face.lock(face.client(server), ttl=10)
    lock.acquire(blocking=False)
    assert lock.extend(seconds) is True
    assert seconds + 9.5 < view.state.left <= seconds + 10
    lock.release()


def test_extend_replace_ttl(face: Face, server: AnyServer, view: View) -> None:
    """extend(replace_ttl=True) counts from now."""
    lock = face.lock(face.client(server), ttl=10)
    lock.acquire(blocking=False)
    assert lock.extend(5, replace_ttl=True) is True
    assert 4.5 < view.state.left <= 5
    lock.release()


def test_reacquire(face: Face, server: AnyServer, view: View) -> None:
    """reacquire() gives the whole ttl back."""
    lock = face.lock(face.client(server), ttl=10)
    lock.acquire(blocking=False)
    lock.extend(1.5, replace_ttl=True)
    assert lock.reacquire() is True
    assert 9.5 < view.state.left <= 10
    lock.release()


def test_a_lock_belongs_to_its_caller(face: Face, lock: CallLock, other: CallLock) -> None:
    """Another thread can't release it, as with redis-py's thread_local=True; the other setting is not had.

    In asyncio another task can, with the same lock object, as with redis-py.
    """
    lock.acquire()
    for strange in (lock, other) if face.name == "threads" else (other,):
        with fails(CallLockError, "does not hold it"):
            face.start(strange.release).result()
    assert lock.owned()
    if face.name == "threads":
        lock.release()
    else:
        face.start(lock.release).result()
    assert not lock.owned()
    assert not lock.locked()
