"""What a signal handler, or the garbage collector, does in the middle of a command of the same thread."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.faces import KEY
from tests.support.helpers import ROOT, environment

if TYPE_CHECKING:
    from tests.support.servers import Server


def run(source: str, valkey: Server) -> list[str]:
    """Run a program of its own, since what it does could hang for ever; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", source, valkey.url, KEY],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.splitlines()


LEAVING = """
import contextlib, signal, sys, threading, time
from kraken_nonce_redis import CallLock, StoreUnavailable
from kraken_nonce_redis._threads.pipe import _Link

lock, send = CallLock.from_url(sys.argv[1], sys.argv[2]), _Link.send

def sending(link, slots):
    _Link.send = send
    signal.raise_signal(signal.SIGALRM)
    send(link, slots)

def handler(*_):
    LEAVE
    print("left")

signal.signal(signal.SIGALRM, handler)
stack = contextlib.ExitStack()
stack.enter_context(lock.hold())
_Link.send = sending
lock.ping()
assert lock.lease is None
while lock.locked():
    time.sleep(0.01)
print("free")
"""
RELEASE = """
    try:
        lock.release()
    except StoreUnavailable as error:
        assert "signal handler" in str(error)
"""


@pytest.mark.parametrize("leave", ["stack.close()", RELEASE.strip()], ids=["end of a block", "release"])
def test_a_handler_ends_a_hold_while_its_thread_sends(valkey: Server, leave: str) -> None:
    """The handler goes on at once, and so does its thread; the lock is given back in the background."""
    assert run(LEAVING.replace("LEAVE", leave), valkey) == ["left", "free"]


CHORES = """
import contextlib, sys, threading, time
from kraken_nonce_redis import CallLock
from kraken_nonce_redis._threads.pipe import _Link

lock, send = CallLock.from_url(sys.argv[1], sys.argv[2]), _Link.send
other = CallLock.from_url(sys.argv[1], "another " + sys.argv[2])
stack, closed = contextlib.ExitStack(), threading.Event()

def sending(link, slots):
    if threading.current_thread() is not threading.main_thread():
        _Link.send = send
        stack.close()
        closed.set()
    send(link, slots)

stack.enter_context(lock.hold())
lease = stack.enter_context(other.hold())
_Link.send = sending
lease.give_up()
assert closed.wait(5)
while lock.locked() or other.locked():
    time.sleep(0.01)
print("free")
"""


def test_the_collector_ends_a_hold_while_chores_are_done(valkey: Server) -> None:
    """It runs in any thread. That for chores does not wait for itself, and gives the lock back afterwards."""
    assert run(CHORES, valkey) == ["free"]


OPENING = """
import signal, sys
from kraken_nonce_redis import CallLock, StoreUnavailable
from kraken_nonce_redis._threads.store import _OfferListener

lock, subscribe = CallLock.from_url(sys.argv[1], sys.argv[2]), _OfferListener._subscribe
holder = CallLock.from_url(sys.argv[1] + "?socket_timeout=2", sys.argv[2])

def subscribing(listener):
    _OfferListener._subscribe = subscribe
    signal.raise_signal(signal.SIGALRM)
    subscribe(listener)

def handler(*_):
    try:
        lock.acquire(blocking_timeout=0.1)
    except StoreUnavailable as error:
        print("signal handler" in str(error))

signal.signal(signal.SIGALRM, handler)
_OfferListener._subscribe = subscribing
with holder.hold():
    print(lock.acquire(blocking_timeout=0.5))
"""


def test_a_handler_makes_a_call_while_its_thread_begins_to_listen(valkey: Server) -> None:
    """It gets an error at once, as in the middle of a command, and its thread goes on waiting."""
    assert run(OPENING, valkey) == ["True", "False"]


NESTING = """
import gc, sys
from kraken_nonce_redis import CallLock
from kraken_nonce_redis._core.lease import LeaseCore

lock, nested = CallLock.from_url(sys.argv[1], sys.argv[2]), LeaseCore._nested

def nesting(lease, owner):
    LeaseCore._nested = nested
    hold = nested(lease, owner)
    gc.collect()
    return hold

def working():
    with lock.hold():
        yield

cycle = [working()]
cycle.append(cycle)
next(cycle[0])
outer = lock.lease
LeaseCore._nested = nesting
del cycle
with lock.hold(timeout=5) as lease:
    assert outer.ended and not outer.remaining()
    assert lock.lease is lease and lease.outer is None
    assert lease.nonce < lease.next_nonce()
assert lock.lease is None
print("held")
"""
STALE = """
import sys
from kraken_nonce_redis import CallLock

lock = CallLock.from_url(sys.argv[1], sys.argv[2])
held = lock.store.process_state.held
with lock.hold():
    place, lease = held.copy().popitem()
held[place] = lease
assert lock.lease is None
with lock.hold(timeout=5) as lease:
    assert lock.lease is lease
assert lock.lease is None
print("held")
"""


@pytest.mark.parametrize("source", [NESTING, STALE], ids=["the collector ends the outer one", "it stayed behind"])
def test_a_hold_that_has_ended_counts_no_more(valkey: Server, source: str) -> None:
    """A hold that would have been nested in it gets the lock anew."""
    assert run(source, valkey) == ["held"]
