"""The example bot as the compose file starts it, but without containers: three processes, probes, a rolling restart."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support import deployment
from tests.support.helpers import ROOT, Stopwatch, environment, eventually, run
from tests.support.servers import HOST, VALKEY, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import PrivateServer

pytestmark = [pytest.mark.once, pytest.mark.test_all, pytest.mark.simulator(seed=15, own=True)]

SLOW = 60.0
"""Seconds that a busy machine may take for what is done in one."""
PLACED = re.compile(r"order placed: (\S+)")
FAULTS = [
    Fault("cut", "answering", methods=["AddOrder"], probability=0.1),
    Fault("slow", "answering", methods=["AddOrder"], probability=0.5, seconds=0.5),
]


class Bot:
    """One process of the compose file's bot, with its command and environment."""

    def __init__(self, service: Any, valkey: Server, folder: Path, *options: str) -> None:
        self._service = service
        self._folder = folder
        self._log = folder / "log"
        self.metrics = f"http://{HOST}:{(port := free_port())}/metrics"
        self._paths = {
            "python": sys.executable,
            "kraken-nonce": str(deployment.BIN / "kraken-nonce"),
            "/app/bot.py": str(ROOT / "examples" / "bot.py"),
            "9872": str(port),
        }
        # What isn't on one machine as it is in containers: the server's address, files and ports.
        self._environment = environment() | {
            name: value.replace("@valkey:6379/", f"@{HOST}:{valkey.port}/")
            for name, value in service["environment"].items()
        }
        folder.mkdir()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._here(service["command"]), *options], env=self._environment, stdout=log, stderr=log, cwd=folder
            )

    def _here(self, command: list[str]) -> list[str]:
        return [self._paths.get(word) or word.replace("/tmp/", f"{self._folder}/") for word in command]

    def probe(self, command: list[str]) -> int:
        """Run a probe beside the bot; return its exit code."""
        done = subprocess.run(self._here(command), env=self._environment, timeout=SLOW, check=False)
        return done.returncode

    def ready(self) -> int:
        """Run the health check of the compose file, which Kubernetes has, too."""
        how, *command = self._service["healthcheck"]["test"]
        assert how == "CMD"
        return self.probe(command)

    def alive(self) -> int:
        """Run the liveness probe of Kubernetes."""
        (container,) = deployment.pod("bot")["containers"]
        return self.probe(container["livenessProbe"]["exec"]["command"])

    def said(self) -> str:
        """Return what it has logged."""
        return self._log.read_text("utf-8")

    def placed(self) -> list[str]:
        """Return Kraken's ids of the orders that it believes to have placed."""
        return PLACED.findall(self.said())

    def end(self) -> None:
        """End it as Compose does, which kills what has not ended in time; it must have."""
        self.process.send_signal(signal.SIGTERM)
        duration = Stopwatch()
        code = self.process.wait(deployment.seconds(self._service["stop_grace_period"]))
        assert (code, self.said().splitlines()[-1].split()[-1]) == (0, "stopped"), (duration(), self.said())


class Deployment:
    """The compose file's Valkey and bots."""

    def __init__(self, sim: KrakenSimulator, start: PrivateServer, folder: Path) -> None:
        self.sim = sim
        self._folder = folder
        read = deployment.compose(
            {
                "KRAKEN_API_KEY": sim.key,
                "KRAKEN_API_SECRET": sim.secret,
                "KRAKEN_API_URL": sim.url,
                "VALKEY_BOT_PASSWORD": "b0" * 12,
                "VALKEY_OPERATOR_PASSWORD": "0b" * 12,
                "GRAFANA_PASSWORD": "f0" * 12,
            }
        )
        self.service = read["services"]["bot"]
        self.valkey = start(VALKEY)
        self._client = self.valkey.client()
        for user in deployment.users_of_compose(read).values():
            if user.name != "default":  # that one is the test's
                self._client.execute_command("ACL", "SETUSER", user.name, *user.rules)
        self.keys = Keyspace.of("kraken-nonce", sim.key)
        self.started: list[Bot] = []

    def start(self) -> Bot:
        """Start one more bot, which is in more of a hurry than the compose file's and places orders."""
        folder = self._folder / f"bot-{len(self.started)}"
        bot = Bot(self.service, self.valkey, folder, "--every", "0.1", "--orders", "100000")
        self.started.append(bot)
        return bot

    def until_it_places(self, bot: Bot) -> None:
        """Wait until a bot is in the midst of placing an order."""
        name = f":{bot.process.pid}"

        def places() -> bool:
            assert bot.process.poll() is None, bot.said()
            place = run(self._client, commands.inspect(self.keys)).place
            return place is not None and place.name.endswith(name) and place.method == "AddOrder"

        eventually(places, SLOW)

    def pending(self) -> int:
        """Return how many calls are in the journal."""
        return len(run(self._client, journal.pending(self.keys)))


@pytest.fixture
def deployed(sim: KrakenSimulator, private_server: PrivateServer, tmp_path: Path) -> Iterator[Deployment]:
    """Set up Valkey for the bots."""
    made = Deployment(sim, private_server, tmp_path)
    yield made
    for bot in made.started:
        bot.process.kill()
        bot.process.wait()


def test_rolling_restart(deployed: Deployment) -> None:
    """Bots are replaced one by one, in the midst of orders: nothing is refused, no order is lost or placed twice."""
    sim = deployed.sim
    sim.configure(latency=(0.001, 0.02), faults=FAULTS)
    bots = [deployed.start() for _ in range(deployed.service["deploy"]["replicas"])]
    for _ in range(2):
        for bot in list(bots):
            eventually(lambda bot=bot: bot.placed(), SLOW)
            assert bot.ready() == 0
            assert bot.alive() == 0
            with urllib.request.urlopen(bot.metrics, timeout=SLOW) as answer:
                assert b"kraken_nonce_calls_total{" in answer.read()
            deployed.until_it_places(bot)
            bot.end()
            bots.remove(bot)
            bots.append(deployed.start())
    for bot in bots:
        eventually(lambda bot=bot: bot.placed(), SLOW)
        bot.end()

    requests = sim.requests()
    assert [request for request in requests if request.error] == []
    for before, after in itertools.pairwise(requests):
        # A bot may hear that its connection is cut before the simulator has noted that.
        assert before.fault == "cut before answering" or before.finished < after.received
    assert {request.fault for request in requests} == {"", "cut before answering", "slow before answering"}
    believed = [txid for bot in deployed.started for txid in bot.placed()]
    assert sorted(believed) == sorted(order.txid for order in sim.orders())
    assert len(set(believed)) == len(believed) == [request.method for request in requests].count("AddOrder")
    assert deployed.pending() == 0
    for bot in deployed.started:
        assert sim.secret not in bot.said()
        wrong = [line for line in bot.said().splitlines() if re.search("ERROR|CRITICAL|Traceback", line)]
        assert [line for line in wrong if "HoldTimeout" not in line] == []  # which a busy machine may bring


def test_without_redis(deployed: Deployment) -> None:
    """While Valkey is away, bots are not ready, but alive: they go on by themselves when it is back."""
    bot = deployed.start()
    eventually(bot.placed, SLOW)
    deployed.valkey.pause()
    assert bot.ready() == 3
    eventually(lambda: "StoreUnavailable" in bot.said(), SLOW)
    assert bot.alive() == 0
    deployed.valkey.resume()
    before = len(bot.placed())
    eventually(lambda: len(bot.placed()) > before, SLOW)
    assert bot.ready() == 0
    bot.end()


def test_a_bot_that_hangs(deployed: Deployment, tmp_path: Path) -> None:
    """A bot that has made no round for long is not alive."""
    bot = deployed.start()
    eventually(bot.placed, SLOW)
    bot.process.send_signal(signal.SIGSTOP)
    long_ago = time.time() - 600
    os.utime(tmp_path / "bot-0" / "alive", (long_ago, long_ago))
    assert bot.alive() != 0
    bot.process.send_signal(signal.SIGCONT)
    eventually(lambda: bot.alive() == 0, SLOW)
    bot.end()


@pytest.mark.parametrize("missing", ["KRAKEN_API_KEY", "KRAKEN_NONCE_REDIS_URL"])
def test_a_variable_is_missing(deployed: Deployment, missing: str) -> None:
    """A bot that lacks a variable says so in one line."""
    del deployed.service["environment"][missing]
    bot = deployed.start()
    assert bot.process.wait(SLOW) == 2
    (line,) = bot.said().splitlines()
    assert missing in line


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("KRAKEN_API_KEY", "", "KRAKEN_API_KEY is not set or is empty"),
        ("KRAKEN_API_SECRET", " ", "KRAKEN_API_SECRET is not set or is empty"),
        ("KRAKEN_API_SECRET", "c2VjcmV", "secret: must be an API secret: base64, as Kraken shows it"),
    ],
)
def test_a_variable_is_wrong(deployed: Deployment, variable: str, value: str, said: str) -> None:
    """A key or secret that can't be one is told in one line, without it."""
    deployed.service["environment"][variable] = value
    bot = deployed.start()
    assert bot.process.wait(SLOW) == 2
    (line,) = bot.said().splitlines()
    assert line.endswith(said)
    assert "c2Vj" not in line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--alive", "/nowhere/alive", "No such file or directory: '/nowhere/alive'"),
        ("--metrics", "99999999", "argument --metrics: invalid port value: '99999999'"),
        ("--orders", "-1", "argument --orders: invalid count value: '-1'"),
    ],
)
def test_an_option_is_wrong(option: str, value: str, said: str) -> None:
    """An option that can't be used is told in a line, before the bot starts."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "bot.py"), option, value],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SLOW,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(said)
    assert "Traceback" not in done.stderr
