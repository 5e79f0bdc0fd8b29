"""A role that one caller at a time has, such as that of writing for everyone."""

from __future__ import annotations

import threading
from typing import Protocol


class Holder(Protocol):
    """Who may have a role.

    Attributes:
        left: whether it is gone, and with it all that it had.
    """

    left: bool


class Role:
    """A role that is only ever tried for, never waited for.

    It is no `threading.Lock`, since an interruption that strikes between acquiring one and entering the block that
    releases it leaves it locked for ever. Here the role goes with its holder.
    """

    def __init__(self) -> None:
        self._holder: dict[None, Holder] = {}
        self._turn = threading.RLock()  # a signal handler may come here in the middle of this

    @property
    def taken(self) -> bool:
        """Whether anybody has it."""
        return None in self._holder

    def take(self, me: Holder) -> bool:
        """Take the role if nobody has it; return whether it is the caller's now."""
        holder = self._holder.setdefault(None, me)  # atomic
        if holder is not me and holder.left:
            self.leave(holder)
            holder = self._holder.setdefault(None, me)
        return holder is me

    def leave(self, me: Holder) -> None:
        """Give the role up if the caller has it."""
        with self._turn:
            if self._holder.get(None) is me:
                del self._holder[None]
