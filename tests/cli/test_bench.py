"""The command `bench`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from kraken_nonce_redis.cli.app import app
from kraken_nonce_redis.cli.bench import Measured, measured
from kraken_nonce_redis.permissions import least_permissions

if TYPE_CHECKING:
    from click.testing import Result

    from tests.support.servers import Server

pytestmark = pytest.mark.once
QUICK = ("bench", "--seconds", "0.1", "--callers", "3")


def bench(url: str, *args: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, [*QUICK, "--redis", url, *args], prog_name="kraken-nonce")


def test_figures() -> None:
    """Of a hundred that take 1 to 100 ms."""
    found = measured([n / 1000 for n in range(1, 101)])
    assert found == Measured(100, 50.5, pytest.approx(99.01), pytest.approx(100 / 5.05))


def test_in_words(real_server: Server) -> None:
    """Each is told with how many round trips it takes, and nothing is left in Redis."""
    real_server.client().set("theirs", "1")
    result = bench(real_server.url)
    assert result.exit_code == 0, result.stderr
    first, head, *rows = result.stdout.splitlines()
    assert first.startswith("redis  ")
    assert head.split("  ")[-1] == "round trips"
    assert [row[:13].strip() for row in rows] == ["round trip", "nonce", "lock", "lock, passed"]
    assert rows[0].endswith(" 1.0")
    assert real_server.client().keys("*") == [b"theirs"]


def test_for_programs_with_a_bots_permissions(valkey: Server) -> None:
    """It needs no more than a bot, and prints plain numbers."""
    client = valkey.client()
    client.execute_command("ACL", "SETUSER", "bot", "reset", "on", ">word", *least_permissions())
    result = bench(f"redis://bot:word@127.0.0.1:{valkey.port}", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert list(report) == ["round_trip", "nonce", "lock", "lock_passed"]
    for figures in report.values():
        assert figures["count"] >= 2
        assert 0 < figures["median"] <= figures["worst"]
    assert client.keys("*") == []


def test_wrong(valkey: Server) -> None:
    """Figures out of range, and no Redis."""
    assert bench(valkey.url, "--seconds", "nan").exit_code == 2
    assert bench(valkey.url, "--callers", "1").exit_code == 2
    result = bench("redis://127.0.0.1:1")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
