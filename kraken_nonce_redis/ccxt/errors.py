"""Our errors as the adapters for ccxt raise them: each is one of ccxt's, too, by what it means.

So programs and frameworks that know ccxt's errors alone do the right thing, and ``except`` with a class of
`kraken_nonce_redis.errors` catches them, too. Each class here has the name of ours that it stands for.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import ccxt

from kraken_nonce_redis import errors

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_THEIRS: Final[Mapping[type, Any]] = {
    errors.HoldTimeout: ccxt.RequestTimeout,
    errors.CoolDown: ccxt.RateLimitExceeded,
    errors.StoreUnavailable: ccxt.ExchangeNotAvailable,
    errors.ShuttingDown: ccxt.ExchangeNotAvailable,
    errors.LeaseLost: ccxt.ExchangeNotAvailable,
    errors.InvalidArgument: ccxt.BadRequest,
    errors.IncompatibleClient: ccxt.NotSupported,
    # Programs go on after the others, and may order again.
    errors.OutcomeUnknown: ccxt.BaseError,
    # No RequestTimeout or the like, which maxRetriesOnFailure and some programs repeat.
    errors.KrakenNonceError: ccxt.ExchangeError,
}
"""What each of ours is to ccxt. One that isn't here is what its nearest base is."""


def _combined(name: str, ours: type) -> type:
    theirs = next(_THEIRS[base] for base in ours.__mro__ if base in _THEIRS)
    return type(name, (ours, theirs), {"__module__": __name__, "__doc__": ours.__doc__})


_COMBINED: Final[Mapping[type, type]] = {
    kind: _combined(name, kind)
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.KrakenNonceError)
}
globals().update({kind.__name__: kind for kind in _COMBINED.values()})  # by these names they are pickled


@contextlib.contextmanager
def as_ccxt() -> Generator[None]:
    """Make what is raised in the block an error of ccxt, too, if it is one of ours; it stays the same object."""
    try:
        yield
    except errors.KrakenNonceError as error:
        error.__class__ = _COMBINED.get(type(error), type(error))
        raise
