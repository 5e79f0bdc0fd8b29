"""`kraken-nonce run`: a program in its place, with our classes where it looks for ccxt's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

COMMAND = [sys.executable, "-m", "kraken_nonce_redis.cli", "run"]
CLASSES = "print([m.kraken.__module__ for m in (ccxt, ccxt.async_support, ccxt.pro)])"
OURS = "['kraken_nonce_redis.ccxt', 'kraken_nonce_redis.ccxt.async_support', 'kraken_nonce_redis.ccxt.pro']\n"

pytestmark = pytest.mark.once


def environment(*path: Path, **more: str) -> dict[str, str]:
    """Return an environment with these folders and the checkout on Python's path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), **more}


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with ours before it."""
    return subprocess.run(
        [*COMMAND, *command],
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "first",
    [
        "import ccxt, ccxt.async_support, ccxt.pro",
        "import ccxt.pro, ccxt.async_support, ccxt",
        "from ccxt import async_support; import ccxt.pro",
        "import kraken_nonce_redis.ccxt, ccxt.pro",
        "import kraken_nonce_redis.ccxt.pro, ccxt",
    ],
)
def test_classes(first: str) -> None:
    """Whatever a program imports first, it finds our classes."""
    done = run("--", sys.executable, "-c", f"{first}; import ccxt; {CLASSES}")
    assert (done.stdout, done.stderr, done.returncode) == (OURS, "", 0)


def test_programs_that_it_starts() -> None:
    """So do the Python programs that it starts."""
    inner = f"import ccxt.pro, ccxt.async_support, ccxt; {CLASSES}"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    done = run(sys.executable, "-c", outer)
    assert (done.stdout, done.stderr) == (OURS, "")


def test_console_script(sim: KrakenSimulator, valkey: Server, tmp_path: Path) -> None:
    """A script on the PATH that makes its client by name trades through us, with settings from the environment."""
    script = tmp_path / "trade-bot"
    text = f"""\
        #!{sys.executable}
        import sys, ccxt
        exchange = getattr(ccxt, "kraken")({{"apiKey": sys.argv[2], "secret": sys.argv[3]}})
        print(exchange.create_order("BTC/USD", "limit", "buy", 1, 20000)["id"], sys.argv[1], sys.argv[4:])
        exchange.session.close()
        """
    script.write_text(textwrap.dedent(text))
    script.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = environment(PATH=path, KRAKEN_NONCE_REDIS_URL=valkey.url, KRAKEN_API_URL=sim.url)
    done = run("--", "trade-bot", "--help", sim.key, sim.secret, "--", "-x", env=env)
    (order,) = sim.orders()
    assert done.stdout == f"{order.txid} --help ['--', '-x']\n"
    assert {len(str(request.nonce)) for request in sim.requests()} == {19}


def test_nothing_without_ccxt() -> None:
    """A program without ccxt imports nothing of ours."""
    code = "import sys; print([name for name in sys.modules if 'kraken' in name or 'redis' in name])"
    done = run("--", sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


class TestSitecustomize:
    """Where somebody else uses Python's ``sitecustomize``, too."""

    def test_it_runs(self, tmp_path: Path) -> None:
        """The one that Python would have run is run, and the path stays."""
        (tmp_path / "sitecustomize.py").write_text("import sys; sys.ran = __file__")
        code = f"import sys, sitecustomize, ccxt.pro, ccxt; {CLASSES}; print(sys.ran, sitecustomize.__file__)"
        done = run("--", sys.executable, "-c", code, env=environment(tmp_path))
        theirs = tmp_path / "sitecustomize.py"
        assert (done.stdout, done.stderr) == (f"{OURS}{theirs} {theirs}\n", "")

    def test_it_fails(self, tmp_path: Path) -> None:
        """Its failure is told as Python does, and takes nothing from ours."""
        (tmp_path / "sitecustomize.py").write_text("raise ValueError('theirs')")
        done = run("--", sys.executable, "-c", f"import ccxt.pro, ccxt; {CLASSES}", env=environment(tmp_path))
        assert done.stdout == OURS
        assert "ValueError: theirs" in done.stderr

    @pytest.mark.test_all
    def test_twice(self) -> None:
        """A command in a command works."""
        done = run("--", *COMMAND, "--", sys.executable, "-c", f"import ccxt.pro, ccxt; {CLASSES}")
        assert (done.stdout, done.stderr) == (OURS, "")


def test_a_python_without_us(tmp_path: Path) -> None:
    """Where the program's Python has ccxt and not ours, the program fails and does not trade without us."""
    (tmp_path / "ccxt.py").write_text("kraken = 'stock'")
    (tmp_path / "kraken_nonce_redis.py").write_text("raise ModuleNotFoundError('no such thing')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ccxt; print(ccxt.kraken)"
    done = run("--", sys.executable, "-c", code)
    assert (done.stdout, done.returncode) == ("", 1)
    assert "pip install 'kraken-nonce-redis[ccxt]'" in done.stderr.splitlines()[-1]


class TestProcess:
    """The program takes our place."""

    @pytest.mark.parametrize("code", [0, 7, 130])
    def test_exit_code(self, code: int) -> None:
        """Its exit code is ours."""
        assert run("sh", "-c", f"exit {code}").returncode == code

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals(self, number: signal.Signals, tmp_path: Path) -> None:
        """Signals go to it: it is the same process, with what Python ignores as it was before."""
        started = tmp_path / "started"
        text = f"""\
            import json, os, signal, time
            with open({str(started)!r} + ".new", "w") as file:
                json.dump([os.getpid()], file)
            signal.signal({int(number)}, lambda *_: os._exit(33))
            os.rename({str(started)!r} + ".new", {str(started)!r})
            time.sleep(60)
            """
        process = subprocess.Popen([*COMMAND, "--", sys.executable, "-c", textwrap.dedent(text)], env=environment())
        try:
            deadline = time.monotonic() + 30
            while not started.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert json.loads(started.read_text()) == [process.pid]
            process.send_signal(number)
            assert process.wait(10) == 33
        finally:
            process.kill()
            process.wait()

    def test_pipes(self) -> None:
        """A program that is no Python's gets the signals that Python ignores, as from a shell."""
        done = run("sh", "-c", "yes | head -1; grep SigIgn /proc/self/status || echo SigIgn: 0")
        assert done.stdout.startswith("y\n")
        assert int(done.stdout.split()[-1], 16) & (1 << signal.SIGPIPE - 1) == 0

    @pytest.mark.parametrize("make", [lambda _: "no-such-program", str])
    def test_what_cannot_run(self, make: Callable[[Path], Any], tmp_path: Path) -> None:
        """It is told in a line, with exit code 2."""
        done = run("--", make(tmp_path), "--option")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"kraken-nonce: can't run {make(tmp_path)}: ")
        assert done.stderr.count("\n") == 1

    def test_without_a_program(self) -> None:
        """It says what is missing."""
        done = run()
        assert done.returncode == 2
        assert "COMMAND" in done.stderr
