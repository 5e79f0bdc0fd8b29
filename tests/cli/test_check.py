"""`kraken-nonce check`: what it finds for each account, on a simulated Kraken and a real server."""

from __future__ import annotations

import json
import re
import shlex
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Protocol

import krakenex
import pytest
from click.testing import CliRunner

import kraken_nonce_redis._check.examine as examining
from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis._calls.outcomes import TurnedAway
from kraken_nonce_redis._check.examine import Offset
from kraken_nonce_redis._check.findings import ADVICE, STEPS, cause_of
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.cli.app import app
from tests.support.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from click.testing import Result

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.conftest import PrivateServer
    from tests.support.servers import Server

NAMES: Final = ("master", "alice", "bob")
OTHER_SECRET: Final = "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
OTHER_KEY: Final = "kEyThatKrakenDoesNotKnow/0123456789+abcdefghijklmnopqrst"
NOBODY: Final = "http://127.0.0.1:1"
SECOND: Final = 10**9
DEAD_REDIS: Final = "redis://:p4ssw0rd@127.0.0.1:1/0"

pytestmark = [pytest.mark.once, pytest.mark.simulator(accounts=NAMES)]


class Front:
    """Stands before the simulator and replaces what the test says: method, then answer and API key to a new answer.

    An answer is data that becomes JSON, or a status with a body.
    """

    def __init__(self, behind: str) -> None:
        self.replace: dict[str, Callable[[Any, str], Any]] = {}
        self.lose: dict[str, int] = {}
        """By method, how many of the next answers get lost."""
        self.asked: list[str] = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                method = self.path.rpartition("/")[2]
                front.asked.append(method)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command == "POST" else None
                headers = {name: self.headers[name] for name in ("API-Key", "API-Sign") if name in self.headers}
                with urllib.request.urlopen(urllib.request.Request(behind + self.path, body, headers)) as reply:
                    answer = json.loads(reply.read())
                if front.lose.get(method):
                    front.lose[method] -= 1
                    self.close_connection = True
                    return
                if method in front.replace:
                    answer = front.replace[method](answer, self.headers.get("API-Key", ""))
                status, content = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            do_GET = do_POST  # noqa: N815 - the name is http.server's

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def shift_clock(self, seconds: float) -> None:
        """Let Kraken's clock be that far ahead."""

        def shifted(answer: Any, _key: str) -> Any:
            answer["result"]["unixtime"] += seconds
            return answer

        self.replace["Time"] = shifted


@pytest.fixture
def front(sim: KrakenSimulator) -> Iterator[Front]:
    """Put a front before the simulator."""
    front = Front(sim.url)
    yield front
    front.close()


class Check(Protocol):
    """Runs the command in this process."""

    def __call__(self, *args: str, **env: str | None) -> Result:
        """Run it with more arguments and another environment."""
        ...


def environment(sim: KrakenSimulator) -> dict[str, str]:
    """Return the variables of the accounts."""
    stems = ("KRAKEN_MASTER", "KRAKEN_USER_ALICE", "KRAKEN_USER_BOB")
    return {
        f"{stem}_{what}": value
        for stem, pair in zip(stems, sim.accounts.items(), strict=True)
        for what, value in zip(("API_KEY", "API_SECRET"), pair, strict=True)
    }


@pytest.fixture
def run(sim: KrakenSimulator, valkey: Server) -> Check:
    """Run any command with the accounts in its environment; its output never has a key, a secret or a password."""

    def run(*args: str, **env: str | None) -> Result:
        basis = environment(sim) | {"KRAKEN_NONCE_REDIS_URL": valkey.url, "KRAKEN_API_URL": sim.url}
        all_of_it: Mapping[str, str | None] = basis | {"REDIS_URL": None, "KRAKEN_API_KEY": None} | env
        result = CliRunner().invoke(app, args, env=all_of_it, prog_name="kraken-nonce")
        for secret in (*sim.accounts, *sim.accounts.values(), OTHER_SECRET, OTHER_KEY, "p4ssw0rd"):
            assert secret not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def check(run: Check) -> Check:
    """Run `check`."""

    def check(*args: str, **env: str | None) -> Result:
        return run("check", *args, **env)

    return check


def found(result: Result) -> dict[str, Any]:
    """Return each account's part of the JSON."""
    answer = json.loads(result.stdout)
    assert answer["ok"] == (result.exit_code == 0) == all(account["ok"] for account in answer["accounts"])
    return {account["account"]: account for account in answer["accounts"]}


def step(result: Result, name: str, account: str = "alice") -> Any:
    """Return what one step has shown."""
    return found(result)[account]["steps"][name]


def causes(result: Result) -> dict[str, str | None]:
    """Return the cause of each account's failure."""
    return {name: account["cause"] for name, account in found(result).items()}


def calls(sim: KrakenSimulator, account: str) -> list[str]:
    """Return the methods that an account has called."""
    return [request.method for request in sim.requests() if request.account == account]


def raise_nonce(sim: KrakenSimulator, account: str, ahead: float) -> int:
    """Use the account's key in another program, whose clock is that many seconds ahead."""
    key, secret = list(sim.accounts.items())[NAMES.index(account)]
    nonce = time.time_ns() + int(ahead * SECOND)
    api = krakenex.API(key, secret)
    api.uri = sim.url
    api._nonce = lambda: nonce
    assert api.query_private("Balance")["error"] == []
    api.close()
    return nonce


class TestAllIsWell:
    """Accounts with nothing wrong."""

    def test_each_step_is_shown_for_each_account(self, check: Check, sim: KrakenSimulator) -> None:
        """A master and two users, one after the other, in words."""
        result = check()
        assert (result.exit_code, result.stderr) == (0, "")
        assert re.findall(r"^(\w+)$", result.stdout, re.MULTILINE) == list(NAMES)
        for name in STEPS:
            assert len(re.findall(rf"^  {name} +ok  ", result.stdout, re.MULTILINE)) == 3
        assert "modify-trades" in result.stdout
        assert re.search(r"balances +ok .*ZUSD \d+", result.stdout)
        assert [request.account for request in sim.requests()] == [name for name in NAMES for _ in range(2)]
        assert {request.method for request in sim.requests()} == {"GetApiKeyInfo", "Balance"}

    def test_as_json(self, check: Check, sim: KrakenSimulator) -> None:
        """The same as data, with every digit of nonces and amounts."""
        result = check("--json")
        alice = found(result)["alice"]
        assert (result.exit_code, alice["ok"], alice["cause"], alice["advice"]) == (0, True, None, None)
        assert list(alice["steps"]) == list(STEPS)
        nonce, clock = alice["steps"]["nonce"], alice["steps"]["clock"]
        (seen,) = (one.nonce for one in sim.requests() if (one.account, one.method) == ("alice", "GetApiKeyInfo"))
        assert nonce["at_kraken"] == str(seen)
        assert int(nonce["at_kraken"]) <= int(nonce["last"])
        assert len(nonce["last"]) == 19
        assert -60 < nonce["lead_seconds"] < 60
        assert abs(clock["redis_ahead_seconds"]) < 1
        assert abs(clock["machine_ahead_seconds"]) < 1
        assert alice["steps"]["nonce window"]["window"] == "0"
        assert "query-funds" in alice["steps"]["permissions"]["permissions"]
        assert float(alice["steps"]["balances"]["balances"]["ZUSD"]) > 0
        assert json.loads(result.stdout)["url"] == sim.url

    def test_some_accounts(self, check: Check, sim: KrakenSimulator) -> None:
        """--account picks, whatever the capitals; the others get no call."""
        result = check("--account", "Alice", "--account", "master", "--json")
        assert list(found(result)) == ["master", "alice"]
        assert calls(sim, "bob") == []

    def test_a_single_key(self, check: Check, sim: KrakenSimulator) -> None:
        """Without master and users it is the key that every other command takes."""
        none = dict.fromkeys(environment(sim))
        result = check("--json", **none, KRAKEN_API_KEY=sim.key, KRAKEN_API_SECRET=sim.secret)
        assert causes(result) == {"default": None}
        assert list(found(check("--json", KRAKEN_API_KEY=OTHER_KEY))) == list(NAMES)

    def test_a_file(self, check: Check, sim: KrakenSimulator, tmp_path: Path) -> None:
        """--file takes the place of the environment; that all can read it is noted."""
        file = tmp_path / "accounts.toml"
        file.write_text(f'[users.carol]\nkey = "{sim.key}"\nsecret = "{sim.secret}"\ntier = "pro"\n')
        file.chmod(0o644)
        result = check("--file", str(file), "--json")
        assert causes(result) == {"carol": None}
        assert result.stderr == f"{file}: every user of this machine can read the keys or secrets in it; chmod o-r\n"

    def test_beside_a_bot(self, check: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """A check takes its turn among the calls of a running bot, in its namespace and scope."""
        lock = CallLock(valkey.client(), "any", scope="global", namespace="mine")
        lock.acquire()
        ended: list[Result] = []
        checking = threading.Thread(
            target=lambda: ended.append(check("--scope", "global", "--namespace", "mine", "--json"))
        )
        checking.start()
        store = store_for(valkey.client())
        eventually(lambda: store.run(commands.inspect(lock.keys)).waiting)
        assert sim.requests() == []
        lock.release()
        checking.join()
        assert causes(ended[0]) == dict.fromkeys(NAMES)
        assert not [key for key in valkey.client().keys("*") if not key.startswith(b"mine:{global}")]


class TestTheJournal:
    """Calls with an unknown outcome, which a check leaves to those who trade."""

    @pytest.mark.parametrize("released", [True, False])
    def test_calls_to_settle(self, check: Check, sim: KrakenSimulator, valkey: Server, *, released: bool) -> None:
        """They are counted, also that of a lease that has just run out; nothing else becomes of them."""
        (key,) = (key for name, key in zip(NAMES, sim.accounts, strict=True) if name == "alice")
        keys, store = Keyspace.of("kraken-nonce", key), store_for(valkey.client())
        intent = journal.intent(keys.tag, "AddOrder", ("an-id",))
        term = 30 if released else 0.001
        granted = store.run(
            commands.acquire(keys, "process:1", term, ticket=None, priority="normal", pace="", intent=intent)
        )
        assert isinstance(granted, commands.Granted)
        if released:
            store.run(commands.release(keys, "process:1", granted.nonces[0], granted.nonces[0], known=False))
        eventually(lambda: len(store.run(journal.pending(keys))) == 1)
        result = check()
        assert result.exit_code == 0
        assert re.findall(r"redis .*, (.*)$", result.stdout, re.MULTILINE) == [
            "1 call waits to be settled: kraken-nonce pending --account alice"
        ]
        assert step(check("--json"), "redis")["pending"] == 1
        assert step(check("--json"), "redis", "bob")["pending"] == 0
        (entry,) = store.run(journal.pending(keys))
        assert (entry.nonce, entry.reported, entry.result) == (granted.nonces[0], False, None)
        assert {request.method for request in sim.requests()} == {"GetApiKeyInfo", "Balance"}


class TestCredentials:
    """Keys, secrets and permissions."""

    @pytest.mark.parametrize(
        ("change", "cause", "said", "calls_made"),
        [
            ({"KRAKEN_USER_ALICE_API_KEY": OTHER_KEY}, "key", "EAPI:Invalid key", []),
            ({"KRAKEN_USER_ALICE_API_SECRET": OTHER_SECRET}, "secret", "EAPI:Invalid signature", ["GetApiKeyInfo"]),
        ],
    )
    def test_a_bad_key_or_secret(
        self, check: Check, sim: KrakenSimulator, change: dict[str, str], cause: str, said: str, calls_made: list[str]
    ) -> None:
        """It is named, asked once and never again, and the others are checked all the same."""
        result = check("--json", **change)
        assert result.exit_code == 1
        assert causes(result) == {"master": None, "alice": cause, "bob": None}
        assert step(result, "private call")["text"] == said
        assert found(result)["alice"]["advice"] == ADVICE[cause]  # type: ignore[index] # one of the causes
        assert found(result)["alice"]["steps"]["balances"] is None
        assert result.stderr == f"kraken-nonce: 1 of 3 accounts failed: alice ({cause})\n"
        assert calls(sim, "alice") == calls_made
        text = check(**change)
        assert (text.exit_code, text.stderr) == (1, result.stderr)
        assert re.search(
            rf"^alice\n.*^  private call +FAILED +{said}\n +{cause}: ", text.stdout, re.MULTILINE | re.DOTALL
        )

    def test_a_missing_permission(self, check: Check, sim: KrakenSimulator, front: Front) -> None:
        """Without the permission to query funds all else is shown, and what to do."""
        alices = list(sim.accounts)[1]

        def denied(answer: Any, key: str) -> Any:
            return {"error": ["EGeneral:Permission denied"]} if key == alices else answer

        def listed(answer: Any, key: str) -> Any:
            if key == alices:
                answer["result"]["permissions"] = ["modify-trades"]
            return answer

        front.replace = {"Balance": denied, "GetApiKeyInfo": listed}
        result = check("--json", KRAKEN_API_URL=front.url)
        assert causes(result) == {"master": None, "alice": "permission", "bob": None}
        assert step(result, "permissions")["text"] == "modify-trades"
        assert step(result, "nonce")["state"] == "ok"
        assert "query funds" in found(result)["alice"]["advice"]

    def test_a_pace_that_allows_no_call(self, check: Check, sim: KrakenSimulator, tmp_path: Path) -> None:
        """An account whose pace can never be kept to is named, and the next is checked."""
        tables = [
            f'[users.{name}]\nkey = "{key}"\nsecret = "{secret}"\n'
            for name, (key, secret) in zip(("alice", "bob"), sim.accounts.items(), strict=False)
        ]
        file = tmp_path / "accounts.toml"
        file.write_text(f'{tables[0]}tier = "pro"\npace = {{ costs = {{ Balance = 100 }} }}\n{tables[1]}')
        file.chmod(0o600)
        assert causes(check("--json", "--file", str(file))) == {"alice": "configuration", "bob": None}

    def test_half_a_pair_is_that_accounts_alone(self, check: Check, sim: KrakenSimulator) -> None:
        """A mistake in one account's variables is its failure, and the others are checked."""
        result = check("--json", KRAKEN_USER_ALICE_API_SECRET=None, KRAKEN_MASTER_API_SECRET="not base64")
        assert causes(result) == {"bob": None, "master": "configuration", "alice": "configuration"}
        assert "KRAKEN_USER_ALICE_API_SECRET: is not set" in step(result, "configuration")["text"]
        assert "not base64" not in result.output
        assert calls(sim, "alice") == []
        assert re.search(r"alice\n  configuration FAILED ", check(KRAKEN_USER_ALICE_API_SECRET=None).stdout)


@pytest.mark.simulator(accounts=NAMES, own=True)
class TestNonce:
    """Nonces that are ahead."""

    def test_a_nonce_ahead_of_ours_with_the_way_out(self, check: Check, run: Check, sim: KrakenSimulator) -> None:
        """Kraken refuses, twice; the commands that are named help, and the others aren't concerned."""
        theirs = raise_nonce(sim, "alice", 40)
        result = check("--json")
        assert causes(result) == {"master": None, "alice": "nonce", "bob": None}
        assert calls(sim, "alice") == ["Balance", "GetApiKeyInfo", "GetApiKeyInfo"]
        assert "EAPI:Invalid nonce" in step(result, "nonce")["text"]
        assert step(result, "private call") is None
        advice = found(result)["alice"]["advice"]
        assert "advance ITS_LAST_NONCE --account alice" in advice
        command = re.search(r"kraken-nonce (jump 60s --account alice),", advice)
        assert command is not None
        assert run("advance", str(theirs), "--account", "alice").exit_code == 0
        assert causes(check("--json"))["alice"] is None
        assert run(*command[1].split()).exit_code == 0
        assert causes(check("--json"))["alice"] is None

    def test_with_a_window_the_exact_command(
        self, check: Check, run: Check, sim: KrakenSimulator, tmp_path: Path
    ) -> None:
        """Where the key's nonce is to be seen, the command that helps has it, with all that it needs to be run."""
        sim.configure(nonce_window=3600 * SECOND)
        key, secret = list(sim.accounts.items())[1]
        file = tmp_path / "my accounts.toml"
        file.write_text(f'[users.alice]\nkey = "{key}"\nsecret = "{secret}"\n')
        file.chmod(0o600)
        args = ("--file", str(file), "--namespace", "mine")
        theirs = raise_nonce(sim, "alice", 600)
        result = check(*args, "--json")
        assert causes(result) == {"alice": "nonce"}
        assert step(result, "nonce")["at_kraken"] == str(theirs)
        assert step(result, "nonce window")["state"] == "warning"
        assert step(result, "balances")["state"] == "ok"
        command = re.search(r"kraken-nonce (advance .*)$", found(result)["alice"]["advice"])
        assert command is not None
        assert run(*shlex.split(command[1])).exit_code == 0
        again = check(*args, "--json")
        assert (again.exit_code, step(again, "nonce window")["state"]) == (0, "warning")
        assert step(again, "nonce")["lead_seconds"] > 500

    @pytest.mark.parametrize(("hours", "advice"), [(2, "--max-lead 2h"), (24 * 100, "driven its nonce out of reach")])
    def test_a_poisoned_key(self, check: Check, sim: KrakenSimulator, hours: int, advice: str) -> None:
        """More than an hour ahead, the first advice is a new key."""
        sim.configure(nonce_window=24 * 200 * 3600 * SECOND)
        raise_nonce(sim, "alice", hours * 3600 - 60)
        said = found(check("--json"))["alice"]["advice"]
        assert said.startswith("replace the API key")
        assert advice in said

    def test_the_advice_works_for_one_that_is_far_ahead(self, check: Check, run: Check, sim: KrakenSimulator) -> None:
        """Where a jump would be refused with the default --max-lead, the advice has one that is enough."""
        assert check().exit_code == 0
        for _ in range(2):
            run("jump", "30m", "--account", "alice", "--max-lead", "2h")
        raise_nonce(sim, "alice", 3_610)
        advice = found(check("--json"))["alice"]["advice"]
        assert "jump 60s --max-lead 2h --account alice" in advice

    def test_hints_leave_out_what_may_be_secret(self, check: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """A Redis URL from the command line is a placeholder in a hint, and the global scope is kept."""
        raise_nonce(sim, "alice", 40)
        advice = found(check("--json", "--scope", "global", "--redis", valkey.url))["alice"]["advice"]
        assert "kraken-nonce jump 60s --scope global --redis URL," in advice

    def test_nonces_used_up(self, check: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """A key whose nonces are all used up is that account's trouble alone."""
        key = CallLock(valkey.client(), list(sim.accounts)[1]).keys.state
        valkey.client().hset(key, "nonce", str(2**63 - 2))
        result = check("--json")
        assert causes(result) == {"master": None, "alice": "nonce", "bob": None}
        assert found(result)["alice"]["advice"] == "replace the API key at Kraken"

    def test_a_nonce_window_is_a_warning(self, check: Check, sim: KrakenSimulator) -> None:
        """It does not fail the account."""
        sim.configure(nonce_window=1000)
        result = check()
        assert result.exit_code == 0
        assert re.search(r"nonce window +WARNING +1000\n +set it to 0", result.stdout)


class TestConnections:
    """Kraken, Redis and what is between."""

    def test_nothing_listens(self, check: Check) -> None:
        """Kraken can't be reached: the network; Redis is looked at all the same."""
        result = check("--json", "--url", NOBODY)
        assert causes(result) == dict.fromkeys(NAMES, "network")
        assert "refused" in step(result, "connection")["text"]
        assert step(result, "redis")["state"] == "ok"
        assert step(result, "clock") is step(result, "private call") is None
        assert result.stderr.startswith("kraken-nonce: 3 of 3 accounts failed: master (network), ")

    def test_no_answer(self, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Kraken that says nothing is given up."""
        monkeypatch.setattr(examining, "CALL_TIMEOUT", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            result = check("--json", "--account", "alice", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert causes(result) == {"alice": "network"}
        assert "no answer in time" in step(result, "connection")["text"]

    @pytest.mark.parametrize(
        ("answer", "cause"),
        [
            ((503, "<html>busy</html>"), "kraken"),
            ((520, ""), "kraken"),
            ((429, ""), "rate limit"),
            ((403, "<html>blocked</html>"), "network"),
            ((404, "{}"), "network"),
            ((200, "<html>Log in to this hotel's network</html>"), "network"),
            ((200, "1" * 5000), "network"),
            ((200, "[" * 100_000), "network"),
            ((200, ""), "network"),
            ([], "network"),
            ({}, "network"),
            ({"error": "EGeneral"}, "network"),
            ({"error": [3]}, "network"),
            ({"error": [], "result": "x"}, "network"),
            ({"error": []}, "network"),
            ({"error": ["EService:Unavailable"]}, "kraken"),
            ({"error": ["EService: Throttled: 1"]}, "rate limit"),
            ({"error": ["EAPI:Rate limit exceeded"]}, "rate limit"),
            ({"error": ["EGeneral:Something new"]}, "kraken"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("method", ["Time", "GetApiKeyInfo", "Balance"])
    def test_other_answers(self, check: Check, front: Front, method: str, answer: Any, cause: str) -> None:
        """Whatever answers, at whichever step: a cause, and no traceback."""
        front.replace[method] = lambda _answer, _key: answer
        result = check("--json", "--account", "bob", KRAKEN_API_URL=front.url)
        assert causes(result) == {"bob": cause}
        assert front.asked.count(method) <= 2  # what is no answer of Kraken is asked for once more

    @pytest.mark.parametrize("method", ["Time", "GetApiKeyInfo", "Balance"])
    def test_a_lost_answer(self, check: Check, front: Front, method: str) -> None:
        """Each question whose answer gets lost is repeated, once; two in a row are a failure, and so is a refusal."""
        for lost, cause in ((1, None), (2, "network")):
            front.lose[method] = lost
            front.asked.clear()
            assert causes(check("--json", "--account", "bob", KRAKEN_API_URL=front.url)) == {"bob": cause}
            assert (front.asked.count(method), front.lose[method]) == (2, 0)

    def test_a_refused_question_is_not_repeated(self, check: Check, front: Front) -> None:
        """Kraken's answer counts, whatever it is."""
        front.replace["Time"] = lambda _answer, _key: {"error": ["EGeneral:Temporary lockout"]}
        assert causes(check("--json", "--account", "bob", KRAKEN_API_URL=front.url)) == {"bob": "lockout"}
        assert front.asked == ["Time"]

    def test_odd_details(self, check: Check, front: Front) -> None:
        """Details that Kraken leaves out or writes otherwise are warnings; its own warnings are none of ours."""
        front.replace["GetApiKeyInfo"] = lambda _answer, _key: {"error": ["WGeneral:Old"], "result": {"nonce": None}}
        front.replace["Time"] = lambda answer, _key: {"error": ["WGeneral:Old"], "result": answer["result"]}
        result = check("--json", "--account", "bob", KRAKEN_API_URL=front.url)
        assert causes(result) == {"bob": None}
        for name in ("nonce window", "permissions"):
            assert step(result, name, "bob")["state"] == "warning"
        assert step(result, "nonce", "bob")["at_kraken"] is None

    @pytest.mark.parametrize(("method", "result"), [("Time", {"unixtime": "soon"}), ("Balance", {"ZUSD": ["x"]})])
    def test_odd_figures(self, check: Check, front: Front, method: str, result: object) -> None:
        """What can't be read as a time or an amount is not Kraken's."""
        front.replace[method] = lambda _answer, _key: {"error": [], "result": result}
        assert causes(check("--json", "--account", "bob", KRAKEN_API_URL=front.url)) == {"bob": "network"}

    def test_redis_down(self, check: Check, sim: KrakenSimulator) -> None:
        """Redis can't be reached: Kraken is looked at all the same, and no nonce is made up."""
        result = check("--json", "--redis", DEAD_REDIS)
        assert (result.exit_code, causes(result)) == (3, dict.fromkeys(NAMES, "redis"))
        assert "can't be reached" in step(result, "redis")["text"]
        assert step(result, "redis")["text"].endswith("; Redis is 127.0.0.1:1, db 0, from --redis")
        assert step(result, "connection")["state"] == "ok"
        assert sim.requests() == []

    def test_redis_goes_away_meanwhile(self, check: Check, front: Front, private_server: PrivateServer) -> None:
        """Redis that fails between two steps is named, too."""
        redis = private_server()

        def kill(answer: Any, _key: str) -> Any:
            redis.kill()
            return answer

        front.replace["GetApiKeyInfo"] = kill
        result = check("--json", "--account", "alice", "--redis", redis.url, KRAKEN_API_URL=front.url)
        assert causes(result) == {"alice": "redis"}

    def test_others_keep_the_lock(
        self, check: Check, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lock that does not become free is named, with the command that shows its holder."""
        monkeypatch.setattr(examining, "LOCK_WAIT", 0.3)
        with CallLock(valkey.client(), list(sim.accounts)[1]).hold():
            result = check("--json")
        assert causes(result) == {"master": None, "alice": "lock", "bob": None}
        assert "kraken-nonce status --account alice" in found(result)["alice"]["advice"]

    def test_it_says_for_whom_it_waits(
        self, check: Check, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before it waits for a held lock, it names the holder."""
        monkeypatch.setattr(examining, "LOCK_WAIT", 0.3)
        with CallLock(valkey.client(), list(sim.accounts)[1], name="the-slow-bot").hold():
            result = check()
        assert "alice: waiting for the lock, for 0.3 s at most; held by the-slow-bot" in result.stderr
        assert "master: waiting" not in result.stderr

    def test_without_balances(self, check: Check, sim: KrakenSimulator) -> None:
        """With --no-balances an API key that may not ask for them passes."""
        result = check("--no-balances", "--json")
        assert causes(result) == dict.fromkeys(NAMES)
        assert [request.method for request in sim.requests()] == ["GetApiKeyInfo"] * 3
        assert all(account["steps"]["balances"] is None for account in json.loads(result.stdout)["accounts"])

    def test_a_cool_down_of_the_account(self, check: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """What another process was told is respected and named, and concerns no other account."""
        CallLock(valkey.client(), list(sim.accounts)[1]).cool_down(600, "EAPI:Rate limit exceeded")
        result = check("--json")
        assert causes(result) == {"master": None, "alice": "rate limit", "bob": None}
        assert "cool-down for" in step(result, "redis")["text"]
        assert calls(sim, "alice") == []


@pytest.mark.simulator(accounts=NAMES, own=True)
class TestClock:
    """Differences between the clocks."""

    def test_redis_far_ahead(self, check: Check, front: Front, sim: KrakenSimulator) -> None:
        """No nonce from the future is sent: it could not be taken back."""
        front.shift_clock(-100)
        result = check("--json", KRAKEN_API_URL=front.url)
        assert causes(result) == dict.fromkeys(NAMES, "clock")
        assert 90 < step(result, "clock")["redis_ahead_seconds"] <= 100
        assert 90 < step(result, "clock")["machine_ahead_seconds"] <= 100
        assert sim.requests() == []

    def test_redis_far_behind(self, check: Check, front: Front) -> None:
        """It is a failure, and the rest is shown."""
        front.shift_clock(100)
        result = check("--json", "--account", "alice", KRAKEN_API_URL=front.url)
        assert causes(result) == {"alice": "clock"}
        assert -100 <= step(result, "clock")["redis_ahead_seconds"] < -90
        assert step(result, "balances")["state"] == "ok"

    @pytest.mark.parametrize(("seconds", "words"), [(20, "behind"), (-20, "ahead of")])
    def test_some_difference_is_a_warning(self, check: Check, front: Front, seconds: float, words: str) -> None:
        """Both clocks are named."""
        front.shift_clock(seconds)
        result = check("--account", "alice", KRAKEN_API_URL=front.url)
        assert result.exit_code == 0
        assert re.search(
            rf"clock +WARNING +Redis server's \d+\.\d s {words} Kraken's, this machine's \d+\.\d s {words} Kraken's\n"
            " +let NTP",
            result.stdout,
        )

    def test_a_refused_nonce_by_a_slow_clock(self, check: Check, front: Front, sim: KrakenSimulator) -> None:
        """Where the Redis server's clock is behind, it is the cause of refused nonces."""
        raise_nonce(sim, "alice", 20)
        front.shift_clock(20)
        result = check("--json", KRAKEN_API_URL=front.url)
        assert causes(result) == {"master": None, "alice": "clock", "bob": None}
        assert "EAPI:Invalid nonce: the Redis server's clock is" in step(result, "private call")["text"]

    def test_what_is_known_of_a_difference(self) -> None:
        """Kraken's whole seconds and the round trip are no difference."""
        assert Offset(-0.7, 0.4).least == 0
        assert Offset(1.5, 2.5).least == 1.5
        assert Offset(-3, -2).least == -2
        assert Offset(5, 6) - Offset(-1, 1) == Offset(4, 7)


class TestLockout:
    """A lockout counts for the machine's address."""

    def test_nobody_gets_another_call(self, check: Check, front: Front, sim: KrakenSimulator) -> None:
        """After it no account gets any call, a public one neither."""
        sim.configure(lockout_after=1)
        spoiler = krakenex.API(sim.key, OTHER_SECRET)
        spoiler.uri = sim.url
        assert spoiler.query_private("Balance")["error"] == ["EAPI:Invalid signature"]
        spoiler.close()
        result = check("--json", KRAKEN_API_URL=front.url)
        assert (result.exit_code, causes(result)) == (1, dict.fromkeys(NAMES, "lockout"))
        assert front.asked == ["Time", "GetApiKeyInfo"]
        assert "15 minutes" in found(result)["bob"]["advice"]
        assert "not checked" in found(result)["bob"]["steps"]["connection"]["text"]
        text = check(KRAKEN_API_URL=front.url)
        assert text.stdout.count("not checked: Kraken has locked out") == 2

    def test_one_that_another_replica_has_seen(self, check: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """A cool-down for a lockout counts as one."""
        CallLock(valkey.client(), sim.key).cool_down(600, "EGeneral:Temporary lockout")
        assert causes(check("--json")) == dict.fromkeys(NAMES, "lockout")
        assert sim.requests() == []

    def test_those_before_it_stay_as_they_were(self, check: Check, front: Front, sim: KrakenSimulator) -> None:
        """What was found before the lockout is still told."""
        alices = list(sim.accounts)[1]
        front.replace["Balance"] = lambda answer, key: (
            {"error": ["EGeneral:Temporary lockout"]} if key == alices else answer
        )
        result = check("--json", KRAKEN_API_URL=front.url)
        assert causes(result) == {"master": None, "alice": "lockout", "bob": "lockout"}
        assert step(result, "permissions")["state"] == "ok"


class TestSecrets:
    """What no output has."""

    def test_an_answer_that_has_them(self, check: Check, sim: KrakenSimulator, front: Front) -> None:
        """A server that sends key and secret back, and controls for the terminal, gets neither through."""
        secrets = sim.accounts

        def error(_answer: Any, key: str) -> Any:
            return {"error": [f"EAPI:Invalid key:{key} \x1b[31m {secrets[key]}\x07\n"]}

        def balance(_answer: Any, key: str) -> Any:
            return {"error": [], "result": {f"{key}\x1b[2J": "1", f"{secrets[key]}": "2"}}

        def info(answer: Any, key: str) -> Any:
            answer["result"]["permissions"] = [key, secrets[key], "\x9b31m"]
            return answer

        for replaced in ({"GetApiKeyInfo": error}, {"Balance": error}, {"Balance": balance, "GetApiKeyInfo": info}):
            front.replace = dict(replaced)
            for args in ((), ("--json",)):
                output = check(*args, KRAKEN_API_URL=front.url).output  # which looks for them
                assert not set("\x1b\x07\x9b") & set(output)
                assert "\\u001b" not in output
                assert "(hidden)" in output

    def test_none_at_any_failure(self, check: Check, sim: KrakenSimulator) -> None:
        """Neither text nor JSON nor stderr has them, whatever fails."""
        changes: tuple[dict[str, str | None], ...] = (
            {"KRAKEN_API_URL": NOBODY},
            {"KRAKEN_NONCE_REDIS_URL": DEAD_REDIS},
            {"KRAKEN_USER_ALICE_API_KEY": OTHER_KEY},
            {"KRAKEN_USER_ALICE_API_SECRET": OTHER_SECRET, "KRAKEN_USER_BOB_API_KEY": None},
            {"KRAKEN_USER_BOB_API_KEY": sim.key},
            {"KRAKEN_USER_BOB_API_KEY": f"{OTHER_KEY} {OTHER_KEY}"},
            {"KRAKEN_USER_BOB_API_SECRET": f"{OTHER_SECRET}!"},
        )
        for change in changes:
            for args in ((), ("--json",)):
                assert check(*args, **change).exit_code in (1, 3)  # which looks for them


class TestUsage:
    """What the command is given."""

    @pytest.mark.parametrize(
        ("args", "change", "reason"),
        [
            (("--account", "eve"), {}, "there is no account of that name; known accounts: master, alice, bob"),
            (("--file", "/nowhere/accounts.toml"), {}, "/nowhere/accounts.toml: can't be read: No such file"),
            ((), dict.fromkeys(("KRAKEN_MASTER_API_KEY", "KRAKEN_MASTER_API_SECRET")), ""),
            ((), {"KRAKEN_NONCE_REDIS_URL": None}, "no Redis: give --redis URL"),
            (("--namespace", "a b"), {}, "namespace: must be"),
            (("--url", "ftp://x"), {}, "must be http://HOST"),
            (("--url", "http://user:p4ssw0rd@host"), {}, "must be http://HOST"),
            (("--url", "api.kraken.com"), {}, "must be http://HOST"),
            (("--url", "http://host:0x"), {}, "must be http://HOST"),
            ((), {"KRAKEN_API_URL": "http://host:99999"}, "must be http://HOST"),
        ],
    )
    def test_what_cannot_work(
        self, check: Check, sim: KrakenSimulator, args: tuple[str, ...], change: dict[str, str | None], reason: str
    ) -> None:
        """It is exit code 2 with a reason, before any call."""
        if not reason:
            change = dict.fromkeys(environment(sim))
            reason = "environment: there is no account in it; add KRAKEN_API_KEY and KRAKEN_API_SECRET, or for several"
        result = check(*args, **change)
        assert result.exit_code == 2
        assert reason in result.stderr
        assert (result.stdout, sim.requests()) == ("", [])

    def test_other_commands_take_accounts_too(self, run: Check, sim: KrakenSimulator, valkey: Server) -> None:
        """The key of an account is meant by its name, from the environment or from a file."""
        alice = NonceAllocator(valkey.client(), list(sim.accounts)[1])
        nonce = alice.next()
        assert run("last", "--account", "alice").stdout == f"{nonce}\n"
        assert run("last", "--account", "bob").exit_code == 1
        for args, reason in (
            (("--account", "eve"), "there is no account of that name"),
            (("--account", "alice", "--key-env", "X"), "give either --key-env or --account"),
            (("--file", "x.toml"), "--file needs --account"),
        ):
            result = run("last", *args)
            assert result.exit_code == 2
            assert reason in result.stderr

    def test_each_of_krakens_errors_has_its_cause(self) -> None:
        """Also as Kraken spells it with a blank; the lockout goes before what led to it."""
        assert cause_of(["EService: Throttled: 1700000000"]) == "rate limit"
        assert cause_of(["EAPI:Invalid key", "EGeneral:Temporary lockout"]) == "lockout"
        assert cause_of(["EAPI:Bad request"]) == "kraken"
        assert cause_of(["EAPI:Rate limit exceeded", "EAPI:Invalid nonce"]) == "nonce"
        for limit in ("EGeneral:Too many requests", "EAuth:Too many requests", "EOrder:Domain rate limit exceeded"):
            assert cause_of([limit]) == "rate limit"
        assert cause_of([str(TurnedAway(7))]) == "rate limit"
        assert cause_of([]) == "kraken"
