"""What became of the call that a lease is used for; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final


class Stage(Enum):
    """How far the calls under a lease have come.

    Attributes:
        UNUSED: no call was begun, so the lease's first nonce is still to be used.
        BEGUN: nothing was sent that may change something, since the intent was noted.
        SENT: a request was sent that may have changed something, and it is unknown whether it did.
        KNOWN: it was sent, and what became of it is known.
    """

    UNUSED = auto()
    BEGUN = auto()
    SENT = auto()
    KNOWN = auto()


@dataclass(frozen=True, slots=True)
class CallRecord:
    """The latest call under a lease that changes something, and what is known of it.

    Attributes:
        intent: the nonce by which Redis names the intent that was noted for it; 0 if none was.
        stage: how far it has come.
    """

    intent: int = 0
    stage: Stage = Stage.UNUSED

    @property
    def known(self) -> bool:
        """Whether its outcome is known, as when nothing was sent: then the release clears the intent."""
        return self.stage is not Stage.SENT

    def at(self, stage: Stage) -> CallRecord:
        """Return the record of the same call at another stage."""
        return replace(self, stage=stage)

    def begun(self) -> CallRecord:
        """Return the record of a lease that another call begins to use."""
        return self.at(Stage.BEGUN) if self.stage is Stage.UNUSED else self

    def unheard(self) -> CallRecord:
        """Return the record of a call whose caller is interrupted and will not hear its outcome."""
        return self.at(Stage.SENT) if self.stage is Stage.KNOWN else self


NO_CALL: Final = CallRecord()
"""The record of a lease under which no call was begun."""
