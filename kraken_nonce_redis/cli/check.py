"""The command `check`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

import click

from kraken_nonce_redis import _address as address
from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE
from kraken_nonce_redis._check.findings import STEPS, Report, failed
from kraken_nonce_redis._texts import printable
from kraken_nonce_redis.accounts import SINGLE
from kraken_nonce_redis.cli.exit_codes import Failure, StoreFailure
from kraken_nonce_redis.cli.options import (
    account_names,
    accounts_of,
    examples,
    file_option,
    json_option,
    namespace_option,
    not_empty,
    note,
    print_json,
    redis_option,
)
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.cli.requirements import require
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._check.examine import Examiner
    from kraken_nonce_redis._check.findings import Finding
    from kraken_nonce_redis.accounts import Reading

_WIDTH: Final = max(map(len, STEPS)) + 2


def _address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    not_empty(ctx, param, value)
    try:
        return address.checked(value)
    except InvalidArgument as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None


@click.command(
    "check",
    short_help="Show what works for each account, and what doesn't.",
    epilog=examples(
        "kraken-nonce check",
        "kraken-nonce check --account master --account alice",
        "kraken-nonce check --file accounts.toml --json | jq '.accounts[] | select(.ok | not)'",
    ),
)
@click.option(
    "--account",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=account_names,
    help="Only this account; can be given repeatedly.",
)
@file_option
@click.option(
    "--url",
    "kraken",
    metavar="URL",
    default=address.KRAKEN,
    envvar=address.VARIABLE,
    show_envvar=True,
    show_default=True,
    callback=_address,
    help="Kraken's address, for tests with a simulated Kraken.",
)
@click.option("--no-balances", is_flag=True, help="Don't ask for balances, which needs a permission of its own.")
@redis_option
@namespace_option
@click.option(
    "--scope",
    type=click.Choice(["key", "global"]),
    default="key",
    show_default=True,
    help="The scope that your programs use: a lock for each API key, or one for all.",
)
@json_option
def check(
    *,
    names: tuple[str, ...],
    accounts_file: str | None,
    kraken: str,
    url: str | None,
    namespace: str,
    scope: Scope,
    no_balances: bool,
    as_json: bool,
) -> None:
    """Check a master and its users, one after the other, and print for each what works.

    It tests the connection to Kraken, Redis, the clocks, a private call, the nonce, the nonce window, permissions and
    balances. For a failure it says the cause and what to do. Causes are configuration, network, clock, redis, key,
    secret, permission, nonce, lock, rate limit, lockout and kraken. After a failure it goes on with the next account,
    but not after a lockout, which applies to this machine's address.

    Accounts are read from KRAKEN_MASTER_API_KEY, KRAKEN_MASTER_API_SECRET, KRAKEN_USER_<NAME>_API_KEY and
    KRAKEN_USER_<NAME>_API_SECRET, or from --file. If there are none, KRAKEN_API_KEY and KRAKEN_API_SECRET are
    checked. Keys and secrets are never shown.

    Each account gets two private calls that change nothing but its nonce, and once more each whose answer gets lost.
    The nonces are in nanoseconds: afterwards
    Kraken refuses clients that count in milliseconds on the same API key forever. Don't check a key that such a
    client still uses.

    Needs the extra "krakenex". Exit code 1 when an account fails, 3 when nothing but Redis is the cause.
    """
    require("krakenex")
    from kraken_nonce_redis._check.examine import Examiner  # noqa: PLC0415 - krakenex may be missing

    reading = accounts_of(accounts_file, names)

    def hint(name: str, words: str) -> str:
        options = {
            "--account": None if name == SINGLE or scope == "global" else name,
            "--file": None if scope == "global" else accounts_file,
            "--namespace": None if namespace == DEFAULT_NAMESPACE else namespace,
            "--scope": "global" if scope == "global" else None,
            "--redis": "URL" if url else None,  # which may hold a password
        }
        given = [f"{option} {shlex.quote(value)}" for option, value in options.items() if value]
        return " ".join(["kraken-nonce", words, *given])

    place = Place(url)
    examiner = Examiner(
        place.client,
        place.words(),
        url=kraken,
        scope=scope,
        namespace=namespace,
        hint=hint,
        balances=not no_balances,
        tell=note,
    )
    reports: list[Report] = []
    for report in _reports(reading, examiner):
        reports.append(report)
        if not as_json:
            click.echo(_text(report))
    failures = [(report.account, report.failure.cause) for report in reports if report.failure]
    if as_json:
        print_json({"url": kraken, "ok": not failures, "accounts": [report.as_data() for report in reports]})
    if failures:
        words = ", ".join(f"{account} ({cause})" for account, cause in failures)
        kind = StoreFailure if all(cause == "redis" for _, cause in failures) else Failure
        raise kind(f"{len(failures)} of {len(reports)} accounts failed: {words}")


def _reports(reading: Reading, examiner: Examiner) -> Iterator[Report]:
    for account in reading.accounts:
        yield examiner.examine(account)
    for name, mistake in reading.mistakes:
        finding = failed("configuration", "configuration", printable(str(mistake)))
        yield Report(printable(name), (finding,))


def _text(report: Report) -> str:
    lines = [report.account]
    for finding in report.findings:
        lines += _lines(finding)
    return "\n".join(lines)


def _lines(finding: Finding) -> Iterator[str]:
    state = finding.state if finding.state == "ok" else finding.state.upper()
    yield f"  {finding.step:<{_WIDTH}}{state:<9}{finding.text}"
    if finding.advice:
        cause = f"{finding.cause}: " if finding.cause else ""
        yield f"  {'':<{_WIDTH}}{'':<9}{cause}{finding.advice}"
