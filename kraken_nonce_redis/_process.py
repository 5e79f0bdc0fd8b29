"""What all objects of this process share: connections, and the highest nonces seen.

A forked child shares nothing with its parent but what the parent had seen. That is noticed at the next use, by a page
of memory that the kernel wipes in a child. Python does not hear of every fork (uWSGI forks in C), and asking
for the process id each time would be a system call. Monkey-patching, by which gevent puts locks of its own
in the place of Python's, counts as a fork, too: a greenlet that waits for an old lock would stop all others.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis._redis.places import Places

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable


_WIPE_ON_FORK: Final = 18  # Linux' MADV_WIPEONFORK, which the module mmap has no name for


class _Number:
    """Takes the place of the page on systems that can't wipe one."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> int:
        return self._pid == os.getpid()


def _mark() -> mmap.mmap | _Number:
    """Return a mark whose first item is 1, and 0 in a child that is forked later."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not Linux, or an old one
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
        page[0] = 1
        return page
    return _Number()


class Process:
    """One process, from its start or fork.

    Attributes:
        places: the highest nonces seen.
        stores: the stores of threads, by connection settings; each notices a fork by itself.
        name: what it is called in Redis, empty until that is asked for.
        telling: of the journals' entries that are told at present, the state key and nonce.
        warned: the state keys of the API keys of whose nonce windows it was warned.
        loop_stores: the stores of event loops, as long as these exist.
        closing: whether it acquires no more locks, since it is about to end.
        turn: must be held while a store is looked up or made.
        successor: the object that replaces this one after a fork, under the key None.
        mark: its first item is 0 in forked children of this process, and not in itself.
    """

    def __init__(self, places: Places, stores: dict[Hashable, Any]) -> None:
        self.places = places
        self.stores = stores
        self.name = ""
        self.telling: set[tuple[str, int | None]] = set()
        self.warned: set[str] = set()
        self.loop_stores: weakref.WeakSet[Any] = weakref.WeakSet()
        self.closing = False
        self.turn = threading.RLock()
        self.successor: dict[None, Process] = {}
        self.mark = _mark()
        self._lock_type = threading.Lock

    def __reduce__(self) -> tuple[Any, ...]:
        """Become, by a copy or a pickle, the process that it arrives in."""
        return current, ()

    @property
    def is_this(self) -> bool:
        """Whether this is the running process."""
        return self.mark[0] != 0 and self._lock_type is threading.Lock

    @property
    def is_parent(self) -> bool:
        """Whether the running process was forked from this one."""
        return not self.mark[0]


def default_name() -> str:
    """Return what tells people which process this is."""
    return f"{socket.gethostname()}:{os.getpid()}"


def leave_to_parent(transport: asyncio.BaseTransport) -> None:
    """Put another file in the place of a parent's connection.

    Parent and child share the selector of their loop: if the child took the connection itself out of it, the parent
    would not hear of replies any more.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, sock.fileno(), inheritable=False)
        os.close(nothing)


_current = Process(Places(), {})


def current() -> Process:
    """Return the running process."""
    global _current  # noqa: PLW0603
    process = _current
    if not process.is_this:
        process.places.begin_anew()
        # Several threads may come here at once; this is atomic.
        process = _current = process.successor.setdefault(None, Process(process.places, process.stores))
    return process
