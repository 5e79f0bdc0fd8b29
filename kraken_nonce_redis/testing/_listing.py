"""Ids, and lists in the exchange's answers: by id, or page by page. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from ._protocol import Refusal, bad_argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from random import Random

    from ._protocol import Params

PAGE: Final = 50  # entries of a list in one answer
_ID_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

_Entry = TypeVar("_Entry")


class Ids:
    """Makes the ids of one account, and knows the time that each of them stands for."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._times: dict[str, float] = {}

    def new(self, first: str, now: float) -> str:
        """Return a new id that looks like Kraken's, such as `OQCLML-BW3P3-BUCMWZ`."""
        letters = "".join(self._random.choices(_ID_LETTERS, k=16))
        name = f"{first}{letters[:5]}-{letters[5:10]}-{letters[10:]}"
        self._times[name] = now
        return name

    def page(
        self, entries: Iterable[_Entry], params: Params, time_of: Callable[[_Entry], float]
    ) -> tuple[Sequence[_Entry], int]:
        """Return one page of a list, and the number of all matching entries.

        `start` is exclusive and `end` inclusive. Each is Unix time in seconds, or an id, which stands for its time.
        """
        start, end = self._moment(params, "start"), self._moment(params, "end")
        matching = [
            entry
            for entry in entries
            if (start is None or time_of(entry) > start) and (end is None or time_of(entry) <= end)
        ]
        skipped = max(params.integer("ofs") or 0, 0)
        return matching[skipped : skipped + PAGE], len(matching)

    def _moment(self, params: Params, name: str) -> float | None:
        value = params.text(name)
        if value is None:
            return None
        if value in self._times:
            return self._times[value]
        try:
            return float(value)
        except ValueError:
            raise bad_argument(name) from None


def by_id(entries: Mapping[str, _Entry], params: Params, name: str, unknown: str) -> Sequence[_Entry]:
    """Return the entries with these ids, at most 50.

    Raises:
        Refusal: there are no ids or too many, or one of them is not among the entries (the error `unknown`).
    """
    ids = params.many(name)
    if not 1 <= len(ids) <= PAGE:
        raise bad_argument(name)
    try:
        return [entries[txid] for txid in ids]
    except KeyError:
        raise Refusal(unknown) from None
