"""Accounts from the environment and from files, and the copy-trading example of the docs."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import InvalidArgument, Pace
from kraken_nonce_redis.accounts import Account, Accounts, read_environment, read_file
from tests.project.test_docs import BLOCK, ELSEWHERE, ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

pytestmark = pytest.mark.once

USERS = ("alice", "bob", "carol", "dave", "erin")


def secret_of(name: str) -> str:
    """Return a secret as Kraken makes them."""
    return base64.b64encode((name * 64)[:64].encode()).decode()


def key_of(name: str) -> str:
    """Return something like an API key."""
    return f"kEy+Of/{name}+0123456789abcdefghijklmnopqrstuvwxyzABCDEF"


def variables(*names: str) -> dict[str, str]:
    """Return the environment of the master and these users."""
    stems = {"master": "KRAKEN_MASTER", **{name: f"KRAKEN_USER_{name.upper()}" for name in names}}
    return {
        f"{stem}_{what}": value
        for name, stem in stems.items()
        for what, value in (("API_KEY", key_of(name)), ("API_SECRET", secret_of(name)))
    }


def table(name: str) -> str:
    """Return the two lines of a table."""
    return f'key = "{key_of(name)}"\nsecret = "{secret_of(name)}"\n'


def refused(error: InvalidArgument, *parts: str) -> None:
    """Assert what an error says, and that it shows no key and no secret."""
    shown = f"{error} {error!r} {vars(error)} {error.__cause__!r}"
    for part in parts:
        assert part in shown
    assert "kEy+Of" not in shown
    for name in ("master", *USERS):
        assert secret_of(name)[:12] not in shown
    assert error.__suppress_context__ or error.__context__ is None


class TestAccount:
    """One account."""

    def test_no_repr_shows_key_or_secret(self) -> None:
        """An account can be logged by mistake without harm, alone or among others."""
        account = Account("Alice", key_of("alice"), secret_of("alice"), Pace(tier="pro"))
        accounts = Accounts(account, {"bob": account})
        for shown in (repr(account), str(account), f"{accounts}", repr([account]), repr(accounts)):
            assert key_of("alice") not in shown
            assert secret_of("alice") not in shown
        assert "alice" in repr(account)

    def test_goes_to_another_process(self) -> None:
        """What a worker needs of its account arrives whole."""
        account = Account("alice", key_of("alice"), secret_of("alice"), Pace(tier="pro"))
        assert pickle.loads(pickle.dumps(account)) == account
        assert {account: 1}[account] == 1

    def test_white_space_around_is_dropped(self) -> None:
        """A line break from a file is no part of a key."""
        account = Account("alice", f" {key_of('alice')}\n", f"{secret_of('alice')}\r\n")
        assert (account.key, account.secret) == (key_of("alice"), secret_of("alice"))

    @pytest.mark.parametrize(
        ("change", "parameter"),
        [
            ({"name": ""}, "name"),
            ({"name": "a b"}, "name"),
            ({"name": "x" * 33}, "name"),
            ({"name": None}, "name"),
            ({"key": ""}, "key"),
            ({"key": "kEy+Of with blanks"}, "key"),
            ({"key": "kEy+Of\nheader"}, "key"),
            ({"key": "kEy+Ofé"}, "key"),
            ({"key": b"kEy+Of"}, "key"),
            ({"secret": ""}, "secret"),
            ({"secret": secret_of("alice")[:-2]}, "secret"),
            ({"secret": secret_of("alice") + "é"}, "secret"),
            ({"secret": None}, "secret"),
            ({"pace": "pro"}, "pace"),
        ],
    )
    def test_a_wrong_value_is_named_and_not_shown(self, change: dict[str, Any], parameter: str) -> None:
        """Which parameter is wrong is said, its value isn't."""
        with pytest.raises(InvalidArgument) as caught:
            Account(**{"name": "alice", "key": key_of("alice"), "secret": secret_of("alice"), **change})
        assert caught.value.parameter == parameter
        refused(caught.value)


class TestEnvironment:
    """Accounts from environment variables."""

    def test_master_and_users(self) -> None:
        """The master comes first, the users in the order of their names, with the pace that is given."""
        pace = Pace(min_interval=0.2)
        accounts = Accounts.from_environment(variables("bob", "alice"), pace=pace)
        assert [account.name for account in accounts] == ["master", "alice", "bob"]
        assert accounts.master == Account("master", key_of("master"), secret_of("master"), pace)
        assert accounts.users["bob"].key == key_of("bob")
        assert len(accounts) == 3

    def test_this_process_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an argument it is the environment of the process."""
        for name, value in variables().items():
            monkeypatch.setenv(name, value)
        accounts = Accounts.from_environment()
        assert accounts.master is not None
        assert accounts.master.key == key_of("master")

    def test_users_without_a_master(self) -> None:
        """A process may know one user alone."""
        environ = {name: value for name, value in variables("alice").items() if "MASTER" not in name}
        accounts = Accounts.from_environment(environ)
        assert (accounts.master, list(accounts.users)) == (None, ["alice"])

    def test_the_short_name_of_a_secret(self) -> None:
        """`_SECRET` works as well as `_API_SECRET`, for master and users."""
        environ = {name.replace("_API_SECRET", "_SECRET"): value for name, value in variables("alice").items()}
        assert Accounts.from_environment(environ) == Accounts.from_environment(variables("alice"))

    @pytest.mark.parametrize(
        ("stem", "name"),
        [
            ("KRAKEN_USER_BOB_API_KEY", "bob_api_key"),
            ("KRAKEN_USER_BOB_API", "bob_api"),
            ("KRAKEN_USER_API", "api"),
            ("KRAKEN_USER_bob", "bob"),
            ("KRAKEN_USER_BOB_API_SECRET", "bob_api_secret"),
            ("KRAKEN_USER_MASTER_2", "master_2"),
            ("KRAKEN_USER_A-B", "a-b"),
        ],
    )
    def test_odd_names(self, stem: str, name: str) -> None:
        """A name may look like a part of the variable's own."""
        environ = {f"{stem}_API_KEY": key_of("bob"), f"{stem}_API_SECRET": secret_of("bob")}
        assert Accounts.from_environment(environ).users == {name: Account(name, key_of("bob"), secret_of("bob"))}

    def test_what_is_not_ours_or_empty_is_left_alone(self) -> None:
        """Other variables, empty ones, and those of a bot with one key, make no account and no trouble."""
        others = {
            "KRAKEN_API_KEY": "x",
            "KRAKEN_API_SECRET": "not base64",
            "KRAKEN_USER_AGENT": "bot",
            "KRAKEN_NONCE_REDIS_URL": "redis://",
            "KRAKEN_USER_BOB_API_KEY": "",
            "KRAKEN_USER_BOB_API_SECRET": " ",
            "KRAKEN_USER_BOB_KEY": "",
        }
        assert Accounts.from_environment({**variables("alice"), **others}) == Accounts.from_environment(
            variables("alice")
        )

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"KRAKEN_USER_ALICE_API_SECRET": ""}, ("KRAKEN_USER_ALICE_API_SECRET: is not set, but", "ALICE_API_KEY")),
            ({"KRAKEN_MASTER_API_KEY": " "}, ("KRAKEN_MASTER_API_KEY: is not set, but KRAKEN_MASTER_API_SECRET is",)),
            ({"KRAKEN_USER_ALICE_API_SECRET": "kEy+Of!"}, ("KRAKEN_USER_ALICE_API_SECRET: must be", "base64")),
            ({"KRAKEN_USER_ALICE_API_KEY": "kEy+Of alice"}, ("KRAKEN_USER_ALICE_API_KEY: must be", "white space")),
            ({"KRAKEN_USER_ALICE_API_KEY": key_of("master")}, ("KRAKEN_USER_ALICE_API_KEY", "same API key as master")),
            ({"KRAKEN_USER_ALICE_SECRET": secret_of("bob")}, ("KRAKEN_USER_ALICE_API_SECRET", "KRAKEN_USER_ALICE_SEC")),
            ({"KRAKEN_USER_alice_API_KEY": key_of("bob")}, ("KRAKEN_USER_ALICE_API_KEY", "KRAKEN_USER_alice_API_KEY")),
            ({"KRAKEN_USER_BOB_KEY": key_of("bob")}, ("KRAKEN_USER_BOB_KEY: is not a variable of an account",)),
            ({"KRAKEN_MASTER_KEY": key_of("bob")}, ("KRAKEN_MASTER_KEY: is not a variable of an account",)),
            ({"KRAKEN_USER_API_KEY": key_of("bob")}, ("KRAKEN_USER_API_KEY: is not a variable of an account",)),
            ({"KRAKEN_USER__API_KEY": key_of("bob")}, ("KRAKEN_USER__API_KEY: is not a variable of an account",)),
            ({"KRAKEN_USER_MASTER_API_KEY": key_of("bob")}, ("KRAKEN_USER_MASTER_API_KEY: is not", "not MASTER")),
            ({"kraken_user_bob_api_key": key_of("bob")}, ("kraken_user_bob_api_key: is not a variable",)),
            ({f"KRAKEN_USER_{'X' * 60}_API_KEY": "k"}, ("KRAKEN_USER_...: is not a variable of an account",)),
        ],
    )
    def test_a_mistake_names_the_variable(self, change: dict[str, str], parts: tuple[str, ...]) -> None:
        """What is wrong with which variable is said; nobody is left out in silence, and no value is shown."""
        with pytest.raises(InvalidArgument) as caught:
            Accounts.from_environment({**variables("alice"), **change})
        refused(caught.value, *parts)

    def test_no_account_at_all(self) -> None:
        """An empty environment says which variables there are."""
        with pytest.raises(InvalidArgument, match=r"no account.*KRAKEN_MASTER_API_KEY.*KRAKEN_USER_<NAME>_API_KEY"):
            Accounts.from_environment({"KRAKEN_API_KEY": "x"})

    def test_a_mistake_leaves_the_others_alone(self) -> None:
        """Who wants to go on with those that are right finds them apart from the mistakes."""
        reading = read_environment({**variables("alice", "bob"), "KRAKEN_USER_ALICE_API_SECRET": "x"})
        assert [account.name for account in reading.accounts] == ["master", "bob"]
        assert [name for name, _ in reading.mistakes] == ["alice"]


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file of accounts."""
    file = folder / "accounts.toml"
    file.write_text(textwrap.dedent(text))
    file.chmod(mode)
    return file


class TestFile:
    """Accounts from a TOML file."""

    def test_every_way_to_give_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys and secrets can stand in the file, in the environment, or in files beside it."""
        monkeypatch.setenv("MASTERS_KEY", key_of("master"))
        monkeypatch.setenv("MASTERS_SECRET", secret_of("master"))
        (tmp_path / "bob.key").write_text(key_of("bob") + "\n")
        (tmp_path / "bob.secret").write_text(secret_of("bob") + "\n")
        text = f"""[master]\nkey_env = "MASTERS_KEY"\nsecret_env = "MASTERS_SECRET"
[users.Alice]\n{table("alice")}
[users.bob]\nkey_file = "bob.key"\nsecret_file = "{tmp_path}/bob.secret"
"""
        accounts = Accounts.from_file(written(tmp_path, text))
        assert [(account.name, account.key, account.secret) for account in accounts] == [
            (name, key_of(name), secret_of(name)) for name in ("master", "alice", "bob")
        ]

    def test_pace(self, tmp_path: Path) -> None:
        """Each account's settings go before those for all, and tier may stand in the account's table."""
        text = f"""
[users.alice]\n{table("alice")}tier = "pro"
[users.bob]\n{table("bob")}[users.bob.pace]\nmin_interval = 1\ncosts = {{ Balance = 4 }}
[master]\n{table("master")}
[pace]\nmin_interval = 0.2\ntier = "starter"
"""
        accounts = Accounts.from_file(written(tmp_path, text))
        assert [account.pace for account in accounts] == [
            Pace(min_interval=0.2, tier="starter"),
            Pace(min_interval=0.2, tier="pro"),
            Pace(min_interval=1, tier="starter", costs={"Balance": 4}),
        ]

    def test_without_a_pace(self, tmp_path: Path) -> None:
        """Nothing said is no pace."""
        accounts = Accounts.from_file(str(written(tmp_path, f"[users.alice]\n{table('alice')}")))
        assert accounts.users["alice"].pace is None

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ("there is no account",)),
            ("[master", ("is not valid TOML, at end of document",)),
            (f'[master]\nkey = "{key_of("bob")}', ("is not valid TOML, at",)),
            (f"[master]\nsecret = {secret_of('bob')}", ("is not valid TOML, at line 2",)),
            (f'[master]\n"{secret_of("bob")}" = 1\n"{secret_of("bob")}" = 1', ("is not valid TOML, at ",)),
            ("[" * 2000, ("is not valid TOML",)),
            ("[user.bob]\nkey = 1", ("user is unknown; known are master, users, pace",)),
            (f'"{secret_of("bob")}" = 1', ("an entry in it is unknown",)),
            ("users = 3", ("[users]: must be a table",)),
            ("[users]\nbob = 'x'", ("[users.bob]: must be a table",)),
            ("pace = 3", ("[pace]: must be a table",)),
            ("[master]", ("[master]: needs one of key, key_env and key_file; it has none",)),
            ("[master]\nkey = 'x'\nkey_env = 'X'\nsecret = 'x'", ("[master]", "it has key and key_env")),
            ("[master]\nkey = 'x'", ("[master]: needs one of secret, secret_env and secret_file",)),
            ("[master]\nkey = 3\nsecret = 'x'", ("[master] key: must be an API key",)),
            ("[master]\nkey = 'x'\nsecret = 'x!'", ("[master] secret: must be an API secret: base64",)),
            ("[master]\nkey_env = 'UNSET_ONE'", ("[master] key_env: UNSET_ONE is not set",)),
            (f"[master]\nkey_env = '{key_of('bob')}'", ("[master] key_env: the variable named there is not set",)),
            ("[master]\nkey_env = 3", ("[master] key_env: must be a non-empty string",)),
            ("[master]\nkey = 'x'\nsecret_file = ''", ("[master] secret_file: must be a non-empty string",)),
            (f"[master]\nkey = 'x'\nsecret_file = '{secret_of('bob')}'", ("secret_file: the file named there can't",)),
            ("[master]\nkey = 'x'\nsecret_file = \"a\\u0000b\"", ("secret_file: the file named there can't",)),
            ("[master]\nkey = 'x'\nsecret_file = '.'", ("the file named there can't be read: Is a directory",)),
            (f"[master]\n{table('bob')}kee = 1", ("[master]: kee is unknown; known are key, key_env",)),
            (f"[users.master]\n{table('bob')}", ("[users.master]: a user can't be named master",)),
            (f"[users.'{secret_of('bob')}']\n{table('bob')}", ("[users]: an account's name must be",)),
            (f"[users.bob]\n{table('bob')}[users.BOB]\n{table('alice')}", ("[users.BOB]", "an account bob already")),
            (f"[users.bob]\n{table('bob')}[users.eve]\n{table('bob')}", ("[users.eve]", "same API key as bob")),
            (f"[users.bob]\n{table('bob')}tier = 'gold'", ("[users.bob] tier: must be one of starter",)),
            (f"[users.bob]\n{table('bob')}tier = '{secret_of('bob')}'", ("[users.bob] tier: must be one of",)),
            (f"[users.bob]\n{table('bob')}tier = []", ("[users.bob] tier: must be one of",)),
            (f"[users.bob]\n{table('bob')}pace = 'pro'", ("[users.bob] pace: must be a table",)),
            (f"[users.bob]\n{table('bob')}pace = {{ min = 1 }}", ("[users.bob] pace: min is unknown",)),
            (f"[users.bob]\n{table('bob')}pace = {{ min_interval = -1 }}", ("[users.bob] min_interval: is out",)),
            (
                f"[users.bob]\n{table('bob')}pace = {{ costs = {{ '{secret_of('bob')}' = -1 }} }}",
                ("[users.bob] costs: is out of range",),
            ),
            (f"[users.bob]\n{table('bob')}tier = 'pro'\npace = {{ tier = 'pro' }}", ("keep only one of them",)),
            (f"[master]\n{table('bob')}[pace]\nmin_interval = 'x'", ("[pace] min_interval: is out of range",)),
        ],
    )
    def test_a_mistake_names_file_and_table(self, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
        """What is wrong where is said; no value is shown."""
        file = tmp_path / "accounts.toml"
        file.write_text(text)
        with pytest.raises(InvalidArgument) as caught:
            Accounts.from_file(file)
        refused(caught.value, str(file), *parts)

    @pytest.mark.parametrize(("content", "problem"), [(None, "No such file"), (b"\xff\xfe", "is not UTF-8 text")])
    def test_a_file_that_cannot_be_read(self, tmp_path: Path, content: bytes | None, problem: str) -> None:
        """A missing file and one of another kind are named."""
        file = tmp_path / "accounts.toml"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InvalidArgument, match=problem) as caught:
            Accounts.from_file(file)
        assert str(file) in str(caught.value)

    def test_a_mistake_leaves_the_others_alone(self, tmp_path: Path) -> None:
        """Who wants to go on with those that are right finds them apart from the mistakes."""
        reading = read_file(written(tmp_path, f"[users.bob]\nkey = 'x'\n[users.alice]\n{table('alice')}"))
        assert [account.name for account in reading.accounts] == ["alice"]
        assert [name for name, _ in reading.mistakes] == ["bob"]

    @pytest.mark.parametrize(
        ("mode", "content", "warning"),
        [
            (0o644, table("alice"), ["every user of this machine can read the keys or secrets in it; chmod o-r"]),
            (0o640, table("alice"), []),
            (0o644, "key_file = 'k'\nsecret_file = 's'\n", []),
        ],
    )
    def test_secrets_that_everybody_can_read_are_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, content: str, warning: list[str]
    ) -> None:
        """A file with secrets that is open to all is warned of, and used."""
        (tmp_path / "k").write_text(key_of("alice"))
        (tmp_path / "s").write_text(secret_of("alice"))
        file = written(tmp_path, f"[users.alice]\n{content}", mode)
        with caplog.at_level(logging.WARNING, "kraken_nonce_redis"):
            assert len(Accounts.from_file(file)) == 1
        assert [record.getMessage() for record in caplog.records] == [f"{file}: {text}" for text in warning]
        assert secret_of("alice") not in caplog.text


# Copy trading


def example() -> str:
    """Return the example of the docs."""
    blocks = BLOCK.findall((ROOT / "docs" / "accounts.md").read_text("utf-8"))
    return next(block for block in blocks if "def main" in block)


class Copier:
    """Runs the example on a simulator."""

    def __init__(self, sim: KrakenSimulator, redis: str, folder: Path) -> None:
        self.script = folder / "copy_trading.py"
        self.script.write_text(ELSEWHERE + example(), "utf-8")
        self.environ: dict[str, str] = {"KRAKEN_NONCE_REDIS_URL": redis, "SIMULATOR": sim.url, "PYTHONPATH": str(ROOT)}
        for name, (key, secret) in zip(("MASTER", *USERS), sim.accounts.items(), strict=True):
            stem = "KRAKEN_MASTER" if name == "MASTER" else f"KRAKEN_USER_{name.upper()}"
            self.environ |= {f"{stem}_API_KEY": key, f"{stem}_API_SECRET": secret}

    def start(self, **change: str) -> subprocess.Popen[str]:
        """Start it."""
        return subprocess.Popen(
            [sys.executable, self.script],
            env=os.environ | self.environ | change,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **change: str) -> tuple[int, str, str]:
        """Run it to its end."""
        process = self.start(**change)
        out, err = process.communicate(timeout=90)
        for value in self.environ.values():
            if value in {self.environ[name] for name in self.environ if "_API_" in name}:
                assert value not in out + err
        return process.returncode, out, err


@pytest.fixture
def copier(sim: KrakenSimulator, valkey: Server, tmp_path: Path) -> Copier:
    """Make the example ready to run."""
    return Copier(sim, valkey.url, tmp_path)


def placed(sim: KrakenSimulator) -> Mapping[str, list[str | None]]:
    """Return the orders of each account by their own ids."""
    orders: dict[str, list[str | None]] = {}
    for order in sim.orders():
        orders.setdefault(order.account, []).append(order.cl_ord_id)
    return orders


@pytest.mark.simulator(accounts=("master", *USERS), latency=(0.001, 0.01))
class TestCopyTrading:
    """One master order mirrored to five users."""

    @pytest.mark.test_all
    def test_from_two_processes_at_once(self, copier: Copier, sim: KrakenSimulator) -> None:
        """Two copiers on the same six keys, a process for each account of each: every order once, no call refused."""
        copiers = [copier.start() for _ in range(2)]
        for process in copiers:
            out, err = process.communicate(timeout=90)
            assert process.returncode == 0, err
            assert set(err.splitlines()) <= {f"Calls go to {sim.url} instead of Kraken"}
            assert re.findall(r"^(\w+): O", out, re.MULTILINE)[0] == "master"
            assert set(re.findall(r"^(\w+): O", out, re.MULTILINE)) == {"master", *USERS}
        orders = placed(sim)
        assert set(orders) == {"master", *USERS}
        assert all(sorted(map(str, ids)) == sorted(map(str, orders["master"])) for ids in orders.values())
        assert len(orders["master"]) == 2
        assert [request.error for request in sim.requests() if request.error] == []

    @pytest.mark.test_all
    def test_one_users_trouble_stops_no_other(self, copier: Copier, sim: KrakenSimulator) -> None:
        """A user with a wrong secret and one with an unknown key are reported, and the other three have their copy."""
        code, out, err = copier.run(
            KRAKEN_USER_BOB_API_SECRET=secret_of("bob"), KRAKEN_USER_DAVE_API_KEY=key_of("dave")
        )
        assert code == 1
        assert "bob FAILED: RuntimeError('EAPI:Invalid signature')" in err
        assert "dave FAILED: RuntimeError('EAPI:Invalid key')" in err
        assert set(placed(sim)) == {"master", "alice", "carol", "erin"}
        assert "erin: O" in out

    @pytest.mark.test_all
    def test_a_killed_process_is_its_users_alone(self, copier: Copier, sim: KrakenSimulator) -> None:
        """A user's process that dies takes no other user's copy with it."""
        die = f"""
        if account.name == "carol":
            import os
            os.kill(os.getpid(), {int(signal.SIGKILL)})
        """
        script = copier.script.read_text("utf-8")
        start = "-> list[str]:\n"
        assert script.count(start) == 1
        copier.script.write_text(script.replace(start, start + textwrap.indent(textwrap.dedent(die), "    ")), "utf-8")
        code, _, err = copier.run()
        assert code == 1
        assert re.findall(r"^(\w+) FAILED", err, re.MULTILINE) == ["carol"]
        assert set(placed(sim)) == {"master", "alice", "bob", "dave", "erin"}

    def test_nothing_is_mirrored_that_the_master_could_not_place(self, copier: Copier, sim: KrakenSimulator) -> None:
        """When the master's order is refused, no user gets one."""
        code, _, err = copier.run(KRAKEN_MASTER_API_SECRET=secret_of("master"))
        assert code == 1
        assert "EAPI:Invalid signature" in err
        assert sim.orders() == []
