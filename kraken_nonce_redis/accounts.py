"""A master and named users, each with its own API key, read from the environment or from a TOML file.

```python
from kraken_nonce_redis.accounts import Accounts
from kraken_nonce_redis.krakenex import API

for account in Accounts.from_environment():
    api = API(account.key, account.secret, pace=account.pace)
```

Each API key has its own nonces, lock and pace in Redis, so trouble with one account doesn't affect the others.

In the environment, the master has ``KRAKEN_MASTER_API_KEY`` and ``KRAKEN_MASTER_API_SECRET``, and each user has
``KRAKEN_USER_<NAME>_API_KEY`` and ``KRAKEN_USER_<NAME>_API_SECRET``. ``_SECRET`` in place of ``_API_SECRET`` works too.
Empty variables count as not set. A file looks like this::

    [master]
    key_env = "COPY_MASTER_KEY"              # or key = "...", or key_file = "..."
    secret_file = "/run/secrets/master"      # or secret = "...", or secret_env = "..."

    [users.alice]
    key = "..."
    secret = "..."
    tier = "pro"                             # short for tier in the table users.alice.pace

    [users.alice.pace]                       # settings of kraken_nonce_redis.Pace
    min_interval = 0.2

    [pace]                                   # for all accounts that don't override it
    tier = "intermediate"

Names are case-insensitive. No error shows a value, since it could be a misplaced secret.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis.errors import InvalidArgument
from kraken_nonce_redis.pace import TIERS, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MASTER: Final = "master"
SINGLE: Final = "default"
"""Name of the account of ``KRAKEN_API_KEY`` and ``KRAKEN_API_SECRET``."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}")
_VARIABLE: Final = re.compile(
    r"KRAKEN_((?P<master>MASTER)_|USER_(?P<user>.+?)_)?(?P<what>API_KEY|API_SECRET|SECRET)", re.DOTALL
)
# Variables that a user may have mistaken for one of these. Without an error they would be ignored silently.
_NEARLY: Final = re.compile(r"KRAKEN_(MASTER|USER)_.*(KEY|SECRET)", re.DOTALL | re.IGNORECASE)
# Shapes that Kraken's keys and secrets don't have, so that these names can be shown.
_SHOWN_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,80}")
_SHOWN_ENTRY: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_HEADER: Final = re.compile(r"[!-~]+")
_LONGEST_SHOWN: Final = 60
_SOURCES: Final = ("", "_env", "_file")
_ENTRIES: Final = (*(what + source for what in ("key", "secret") for source in _SOURCES), "tier", "pace")
_PACE: Final = ("min_interval", "startup_window", "startup_rate", "startup_interval", "tier", "costs")
_POSITION: Final = re.compile(r"\(at ([a-z0-9 ,]*)\)")
_NO_VARIABLE: Final = (
    "is not a variable of an account: these are KRAKEN_MASTER_API_KEY, KRAKEN_MASTER_API_SECRET, "
    "KRAKEN_USER_<NAME>_API_KEY and KRAKEN_USER_<NAME>_API_SECRET, where NAME is 1 to 32 letters, digits, _ or -, "
    "and not MASTER"
)


@dataclass(frozen=True, slots=True)
class Account:
    """One Kraken account as a bot sees it. It can be pickled for another process; its repr shows no secret.

    Args:
        name: 1 to 32 letters, digits, ``_`` or ``-``; stored in lower case. ``"master"`` is the master.
        key: the API key.
        secret: its secret, base64 as Kraken shows it.
        pace: how often calls may start; None for no limit but the lock.

    White space around key and secret is removed. Raises `InvalidArgument`.
    """

    name: str
    key: str = field(repr=False)
    secret: str = field(repr=False)
    pace: Pace | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _name(self.name, "name"))
        object.__setattr__(self, "key", _key(self.key, "key"))
        object.__setattr__(self, "secret", _secret(self.secret, "secret"))
        if self.pace is not None and not isinstance(self.pace, Pace):
            raise InvalidArgument("pace", "must be a Pace or None")


@dataclass(frozen=True, slots=True)
class Accounts:
    """A master and its users. Iterating yields all accounts, the master first.

    Attributes:
        master: the master's account, or None.
        users: the users' accounts by name.
    """

    master: Account | None
    users: Mapping[str, Account]

    def __iter__(self) -> Iterator[Account]:
        if self.master is not None:
            yield self.master
        yield from self.users.values()

    def __len__(self) -> int:
        return len(self.users) + (self.master is not None)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, pace: Pace | None = None) -> Self:
        """Read the accounts from environment variables, by default this process's.

        Each account gets this ``pace`` and counts by itself. Raises `InvalidArgument`, which names the variable, for
        the first mistake, and when there is no account.
        """
        accounts = read_environment(os.environ if environ is None else environ).all()
        return cls._of(replace(account, pace=pace) for account in accounts)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read the accounts from a TOML file; ``key_file`` and ``secret_file`` are relative to its folder.

        Raises `InvalidArgument`, which names file and table, for the first mistake, and when there is no account. Logs
        a warning when every user of this machine can read keys or secrets in the file.
        """
        reading = read_file(path)
        for note in reading.notes:
            logger.warning("%s", note)
        return cls._of(reading.all())

    @classmethod
    def _of(cls, accounts: Iterable[Account]) -> Self:
        by_name = {account.name: account for account in accounts}
        return cls(by_name.pop(MASTER, None), by_name)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found, mistakes included.

    Attributes:
        accounts: complete accounts, the master first.
        mistakes: pairs of an account's name, or a variable where the account isn't clear, and what is wrong.
        notes: other things that the user should know.
    """

    accounts: tuple[Account, ...]
    mistakes: tuple[tuple[str, InvalidArgument], ...]
    notes: tuple[str, ...] = ()

    def all(self) -> tuple[Account, ...]:
        """Return the accounts. Raises the first mistake, if there is one."""
        for _, mistake in self.mistakes:
            raise mistake
        return self.accounts


class _Reader:
    """Reads account after account; a mistake in one leaves the others alone."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._mistakes: list[tuple[str, InvalidArgument]] = []

    def add(self, name: str, where: str, make: Callable[[], Account]) -> None:
        """Make an account and add it, or note what is wrong; ``where`` names the place of its API key."""
        try:
            account = make()
            for other in self._accounts.values():
                if other.name == account.name:
                    _refuse(where, f"there is an account {other.name} already; names are case-insensitive")
                if other.key == account.key:
                    _refuse(where, f"has the same API key as {other.name}; each account needs its own")
        except InvalidArgument as mistake:
            self.wrong(name, mistake)
        else:
            self._accounts[account.name] = account

    def wrong(self, name: str, mistake: InvalidArgument) -> None:
        """Note what is wrong."""
        self._mistakes.append((name, mistake))

    def reading(self, source: str, how: str, notes: Sequence[str] = ()) -> Reading:
        """Return what was found. Raises `InvalidArgument`, which says what to add, if nothing was found."""
        if not self._accounts and not self._mistakes:
            _refuse(source, f"there is no account in it; add {how}")
        return Reading(tuple(self._accounts.values()), tuple(self._mistakes), tuple(notes))


def read_environment(environ: Mapping[str, str], *, single: bool = False) -> Reading:
    """Read accounts from environment variables, users in the order of their names.

    With ``single``, ``KRAKEN_API_KEY`` and ``KRAKEN_API_SECRET`` make an account if there is no other. Raises
    `InvalidArgument` when there is none.
    """
    reader = _Reader()
    found: dict[str, list[str]] = {}
    for variable in sorted(name for name, value in environ.items() if value.strip()):
        match = _VARIABLE.fullmatch(variable)
        name = SINGLE if match is None else (match["user"] or match["master"] or SINGLE).lower()
        if match and _NAME.fullmatch(name) and (match["user"] or "").lower() != MASTER:
            found.setdefault("" if match[1] is None else name, []).append(variable)
        elif _NEARLY.fullmatch(variable):
            shown = variable if len(variable) <= _LONGEST_SHOWN else "KRAKEN_USER_..."
            reader.wrong(shown, InvalidArgument(shown, _NO_VARIABLE))
    own = found.pop("", [])
    if single and own and not found:
        found[SINGLE] = own
    for name in sorted(found, key=lambda name: (name != MASTER, name)):
        reader.add(name, _stem(found[name]) + "API_KEY", functools.partial(_of_variables, name, found[name], environ))
    several = (
        "KRAKEN_MASTER_API_KEY and KRAKEN_MASTER_API_SECRET, or KRAKEN_USER_<NAME>_API_KEY and "
        "KRAKEN_USER_<NAME>_API_SECRET"
    )
    alone = "KRAKEN_API_KEY and KRAKEN_API_SECRET, or for several accounts " if single else ""
    return reader.reading("environment", alone + several)


def _stem(variables: Sequence[str]) -> str:
    match = _VARIABLE.fullmatch(variables[0])
    return match.string[: match.start("what")] if match else ""


def _of_variables(name: str, variables: Sequence[str], environ: Mapping[str, str]) -> Account:
    keys = [variable for variable in variables if variable.endswith("KEY")]
    secrets = [variable for variable in variables if variable.endswith("SECRET")]
    for what, given, others in (("API_KEY", keys, secrets), ("API_SECRET", secrets, keys)):
        if not given:
            _refuse(_stem(variables) + what, f"is not set, but {others[0]} is")
        if len(given) > 1:
            _refuse(given[0], f"is set, and so is {given[1]}; keep only one of them")
    return Account(name, _key(environ[keys[0]], keys[0]), _secret(environ[secrets[0]], secrets[0]))


def read_file(path: str | os.PathLike[str]) -> Reading:
    """Read accounts from a TOML file, in its order. Raises `InvalidArgument` if the file can't be read or has none."""
    file = Path(path)
    document = _parsed(file)
    _known(document, ("master", "users", "pace"), f"{file}")
    common = _table(document.get("pace", {}), f"{file} [pace]")
    _pace(common, f"{file} [pace]")  # so that a mistake in it is reported as its own
    tables = {f"users.{name}": table for name, table in _table(document.get("users", {}), f"{file} [users]").items()}
    if "master" in document:
        tables = {"master": document["master"], **tables}
    reader = _Reader()
    for place, table in tables.items():
        name = place.removeprefix("users.")
        shown = name if _SHOWN_ENTRY.fullmatch(name) else "users"
        where = f"{file} [{place}]" if shown == name else f"{file} [users]"
        if place == "users.master":
            reader.wrong(shown, InvalidArgument(where, "a user can't be named master"))
        else:
            reader.add(shown, where, functools.partial(_of_table, name, table, where, file.parent, common))
    return reader.reading(f"{file}", "a table [master] or [users.<name>]", _exposed(file, tables.values()))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # Only the position: the message can quote a part of a line, and the line may contain a secret.
        position = _POSITION.search(str(error))
        problem = f"is not valid TOML{f', at {position[1]}' if position else ''}"
    raise InvalidArgument(f"{file}", problem)


def _exposed(file: Path, tables: Iterable[object]) -> list[str]:
    """Return a note when every user of this machine can read keys or secrets that are in the file."""
    secret = any(isinstance(table, dict) and ("key" in table or "secret" in table) for table in tables)
    if not secret or not file.stat().st_mode & stat.S_IROTH:
        return []
    return [f"{file}: every user of this machine can read the keys or secrets in it; chmod o-r"]


def _of_table(name: str, content: object, where: str, folder: Path, common: Mapping[str, Any]) -> Account:
    table = _table(content, where)
    _known(table, _ENTRIES, where)
    settings = _table(table.get("pace", {}), f"{where} pace")
    if "tier" in table:
        if "tier" in settings:
            _refuse(where, "tier is set in it and in its table pace; keep only one of them")
        settings = {**settings, "tier": table["tier"]}
    return Account(
        _name(name, where),
        _key(_credential(table, "key", where, folder), f"{where} key"),
        _secret(_credential(table, "secret", where, folder), f"{where} secret"),
        _pace({**common, **settings}, where),
    )


def _credential(table: Mapping[str, Any], what: str, where: str, folder: Path) -> object:
    """Return a key or secret: the value itself, or what a variable or a file has."""
    given = [what + source for source in _SOURCES if what + source in table]
    if len(given) != 1:
        _refuse(where, f"needs one of {what}, {what}_env and {what}_file; it has {' and '.join(given) or 'none'}")
    entry, value = given[0], table[given[0]]
    if entry == what:
        return value
    if not isinstance(value, str) or not value.strip():
        _refuse(f"{where} {entry}", "must be a non-empty string")
    if entry.endswith("_env"):
        if not os.environ.get(value, "").strip():
            shown = value if _SHOWN_VARIABLE.fullmatch(value) else "the variable named there"
            _refuse(f"{where} {entry}", f"{shown} is not set in the environment")
        return os.environ[value]
    try:
        return (folder / value).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text"
    # Never the name of the file: a user may have put the secret itself there.
    return _refuse(f"{where} {entry}", f"the file named there can't be read: {reason}")


def _pace(settings: dict[str, Any], where: str) -> Pace | None:
    if not settings:
        return None
    _known(settings, _PACE, f"{where} pace")
    if "tier" in settings and settings["tier"] not in tuple(TIERS):
        _refuse(f"{where} tier", f"must be one of {', '.join(TIERS)}")
    try:
        return Pace(**settings)
    except InvalidArgument as error:
        entry = error.parameter.partition("[")[0]
    return _refuse(f"{where} {entry}", "is out of range or has the wrong type; see kraken_nonce_redis.Pace")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "must be a table")
    return cast("dict[str, Any]", value)


def _known(table: Mapping[str, Any], entries: Sequence[str], where: str) -> None:
    for entry in table:
        if entry not in entries:
            shown = entry if _SHOWN_ENTRY.fullmatch(entry) else "an entry in it"
            _refuse(where, f"{shown} is unknown; known are {', '.join(entries)}")


def _name(value: object, where: str) -> str:
    name = value.lower() if isinstance(value, str) else ""
    if not _NAME.fullmatch(name):
        _refuse(where, "an account's name must be 1 to 32 letters, digits, _ or -")
    return name


def _key(value: object, where: str) -> str:
    key = value.strip() if isinstance(value, str) else ""
    if not _HEADER.fullmatch(key):
        _refuse(where, "must be an API key without white space in it")
    return key


def _secret(value: object, where: str) -> str:
    secret = arguments.secret(where, value) if isinstance(value, str) else ""
    if not secret:
        _refuse(where, arguments.NOT_BASE64)
    return secret


def _refuse(where: str, problem: str) -> NoReturn:
    raise InvalidArgument(where, problem)
