"""Which API keys the commands that only look are about, on which Redis, and what is found there."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import click

from kraken_nonce_redis import _verdict as verdicts
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.cli.exit_codes import Misuse
from kraken_nonce_redis.cli.options import (
    account_option,
    accounts_of,
    chosen_key,
    digest_option,
    file_option,
    key_env_option,
    max_lead_option,
    namespace_option,
    redis_option,
    scope_option,
    tag_of,
    with_options,
)
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.errors import ForeignValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._redis.commands import State
    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis._verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chosen:
    """One API key to look at.

    Attributes:
        keys: its names in Redis.
        account: the name of its account, ``""`` if it is not known.
    """

    keys: Keyspace
    account: str = ""

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return self.account or self.keys.tag


@dataclass(frozen=True, slots=True)
class Look:
    """What is stored for an API key.

    Attributes:
        chosen: the API key.
        state: with the waiters; None if another program's value is there.
        pending: the journal.
        verdict: on both.
    """

    chosen: Chosen
    state: State | None
    pending: tuple[Pending, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Selection:
    """What to look at.

    Attributes:
        place: the Redis.
        namespace: what the names of the keys begin with.
        chosen: the API keys; None for all of the namespace.
        single: whether one API key was asked for, so that it is shown at length.
        max_lead: as in `kraken_nonce_redis.Retries`, in ns.
    """

    place: Place
    namespace: str
    chosen: tuple[Chosen, ...] | None
    single: bool
    max_lead: int

    @classmethod
    def of_namespace(cls, place: Place, namespace: str, max_lead: int) -> Self:
        """Return the selection of all API keys of a namespace."""
        return cls(place, namespace, None, single=False, max_lead=max_lead)

    def all(self) -> tuple[Chosen, ...]:
        """Return the API keys, those of a namespace by SCAN. Raises `StoreError`."""
        if self.chosen is not None:
            return self.chosen
        return self.of_tags({tag for tags in self.place.scanning(self.namespace) for tag in tags})

    def of_tags(self, tags: set[str]) -> tuple[Chosen, ...]:
        """Return API keys of the namespace by their digests."""
        return tuple(Chosen(Keyspace(self.namespace, tag)) for tag in sorted(tags))

    def read(self, chosen: Chosen) -> Look:
        """Look at an API key, with two commands. Raises `StoreError`."""
        state = self.place.run(commands.inspect(chosen.keys, "waiters"))
        return self.judged(chosen, state, self.place.run(journal.pending(chosen.keys)))

    def look(self, chosen: Chosen) -> Look:
        """Do the same, but let a value of another program be a verdict instead of an error."""
        try:
            return self.read(chosen)
        except ForeignValue as error:
            return Look(chosen, None, (), verdicts.of_foreign_value(error))

    def judged(self, chosen: Chosen, state: State, pending: tuple[Pending, ...]) -> Look:
        """Return what was read, with the verdict."""
        return Look(chosen, state, pending, verdicts.of_state(state, pending, self.max_lead))


def colour(verdict: str) -> str:
    """Return the style of a verdict on a terminal."""
    return {verdicts.OK: "green", verdicts.UNKNOWN: "yellow"}.get(verdict, "bold red")


def joint_verdict(looks: list[Look]) -> str:
    """Return one line for several API keys: ``ok``, or the conditions of each. The table has them at length."""
    bad = [look for look in looks if look.verdict.conditions]
    if not bad:
        return verdicts.OK
    words = "; ".join(f"{look.chosen.label} {', '.join(look.verdict.names)}" for look in bad)
    return f"{len(bad)} of {len(looks)} API keys: {words}"


def selection_options(function: Callable[Concatenate[Selection, P], T]) -> Callable[..., T]:
    """Add the options that say which API keys are meant; the function gets a `Selection` first."""

    @functools.wraps(function)
    def with_selection(
        *args: Any,
        url: str | None,
        everything: bool,
        digest: str | None,
        key_env: str | None,
        account: str | None,
        accounts_file: str | None,
        namespace: str,
        scope: Scope,
        max_lead: int,
        **options: Any,
    ) -> T:
        ways = {
            "--all": everything,
            "--id": digest is not None,
            "--key-env": key_env is not None,
            "--account or --file": account is not None or accounts_file is not None,
            "--scope global": scope == "global",
        }
        given = [way for way, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise Misuse(f"give only one of {' and '.join(given)}: each says which API keys are meant")
        chosen: tuple[Chosen, ...] | None
        if everything:
            chosen = None
        elif digest is not None:
            chosen = (Chosen(Keyspace(namespace, tag_of(digest))),)
        elif accounts_file is not None and account is None:
            accounts = accounts_of(accounts_file).all()
            chosen = tuple(Chosen(Keyspace.of(namespace, each.key), each.name) for each in accounts)
        else:
            api_key = chosen_key(scope, key_env, account, accounts_file)
            chosen = (Chosen(Keyspace.of(namespace, api_key, scope), account or ""),)
        single = not everything and (accounts_file is None or account is not None)
        selection = Selection(Place(url), namespace, chosen, single=single, max_lead=max_lead)
        return function(selection, *args, **options)

    return with_options(
        with_selection,
        scope_option,
        namespace_option,
        max_lead_option,
        file_option,
        account_option,
        key_env_option,
        digest_option,
        click.option("--all", "everything", is_flag=True, help="All API keys of the namespace; no API key needed."),
        redis_option,
    )
