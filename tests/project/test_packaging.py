"""What users install: the wheel and the source distribution, built and used as they do it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

    from tests.support.servers import Server

pytestmark = [pytest.mark.once, pytest.mark.test_all]

ROOT = Path(__file__).parents[2]

USE = """
import sys
from pathlib import Path
import kraken_nonce_redis
from kraken_nonce_redis import NonceAllocator

assert Path(kraken_nonce_redis.__file__).is_relative_to(sys.prefix)
allocator = NonceAllocator.from_url(sys.argv[1], "some-key")
for _ in range(100):
    print(allocator.next())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that can't see the checkout; fail with what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder outside the checkout."""
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    """Build the source distribution, and from it the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    """Find the source distribution."""
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """Find the wheel that was built from the source distribution."""
    (found,) = built.glob("*.whl")
    return found


def content(wheel: Path) -> dict[str, bytes]:
    """Read the files of the package from a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("kraken_nonce_redis/")}


def scripts(folder: Path) -> dict[str, bytes]:
    """Read the Lua files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.lua")}


def test_wheel_has_every_script(wheel: Path) -> None:
    """An installed library has its Lua with it, each file as it is in the checkout."""
    expected = {f"kraken_nonce_redis/lua/{name}": text for name, text in scripts(ROOT / "lua").items()}
    assert expected
    assert {name: text for name, text in content(wheel).items() if name.endswith(".lua")} == expected


def test_wheel_has_the_package_alone(wheel: Path) -> None:
    """An installation adds one top-level package, typed, with no tests in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kraken_nonce_redis"}
    assert "kraken_nonce_redis/py.typed" in names


def test_sdist_has_the_scripts_and_the_tests(sdist: Path) -> None:
    """Who packages this from source finds the Lua, the tests and the licence."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"lua/{name}" for name in scripts(ROOT / "lua")} <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "tests/conftest.py"} <= names


def test_wheels_from_checkout_and_from_sdist_are_the_same(wheel: Path, folder: Path) -> None:
    """It makes no difference whether a wheel is built from the repository or from the sdist."""
    outdir = folder / "from-checkout"
    run(sys.executable, "-m", "build", "--wheel", "--outdir", outdir, ROOT, cwd=folder)
    (direct,) = outdir.glob("*.whl")
    assert content(direct) == content(wheel)


def test_bundle_has_its_scripts(wheel: Path, folder: Path, valkey: Server) -> None:
    """A program that is one file, a zipapp, finds the Lua inside."""
    program = folder / "program"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", program, wheel, cwd=folder)
    (program / "__main__.py").write_text(USE.replace("sys.prefix", "sys.argv[0]"))
    run(sys.executable, "-m", "zipapp", program, cwd=folder)
    said = run(sys.executable, "-W", "error", folder / "program.pyz", valkey.url, cwd=folder)
    assert len(said.split()) == 100


def test_where_nothing_forks(folder: Path, valkey: Server) -> None:
    """Windows, which has no fork and no poll, imports the library and all that is for programs, and gets nonces."""
    modules = ("asyncio", "accounts", "ccxt.async_support", "ccxt.pro", "compat", "doctor", "kraken_sdk", "krakenex")
    program = f"""
import asyncio, mmap, os, select, signal, ssl, subprocess, sys
import ccxt.pro, kraken.spot, krakenex, multiprocessing.util, redis.asyncio.cluster, redis.asyncio.sentinel
for module, names in {{
    os: ["fork", "forkpty", "register_at_fork", "getuid", "O_NONBLOCK"],
    signal: ["SIGHUP", "SIGKILL", "SIGALRM"],
    select: ["poll", "epoll"],
    mmap: ["MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_ANON", "MAP_SHARED"],
}}.items():
    for name in names:
        delattr(module, name)
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
sys.platform = "win32"

import kraken_nonce_redis
import {", ".join(f"kraken_nonce_redis.{name}" for name in modules)}

async def main(url):
    await kraken_nonce_redis.asyncio.NonceAllocator.from_url(url, "some-key").next()
    async with kraken_nonce_redis.asyncio.CallLock.from_url(url, "some-key").hold():
        pass

asyncio.run(main(sys.argv[1]))
with kraken_nonce_redis.CallLock.from_url(sys.argv[1], "some-key").hold() as lease:
    print(lease.nonce)
"""
    assert run(sys.executable, "-W", "error", "-c", program, valkey.url, cwd=folder).strip().isdecimal()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """Read what a package index is told."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_links_of_the_package_page(metadata: Message, sdist: Path) -> None:
    """A package index shows the README without our files: its links lead out, and the files named are in the sdist."""
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]*)\)", page))
    assert "<img" not in page
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    named = set(re.findall(r"\(`([^`]+)`\)", page))
    assert "docs/orders.md" in named <= names
    assert "The files named here are in the source distribution." in page


def test_only_redis_is_required(metadata: Message) -> None:
    """Installing the library pulls in redis-py and nothing else."""
    required = metadata.get_all("Requires-Dist", [])
    core = [requirement for requirement in required if "extra ==" not in requirement]
    assert [requirement.split(">=")[0] for requirement in core] == ["redis"]


@pytest.fixture(scope="module")
def python(wheel: Path, folder: Path) -> Path:
    """Return the interpreter of a fresh environment with nothing but the wheel."""
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return environment / "bin" / "python"


def test_installed_wheel_hands_out_nonces(python: Path, folder: Path, valkey: Server) -> None:
    """A script gets rising nonces."""
    said = run(python, "-W", "error", "-c", USE, valkey.url, cwd=folder)
    nonces = [int(line) for line in said.split()]
    assert len(nonces) == 100
    assert all(len(str(nonce)) == 19 for nonce in nonces)
    assert all(earlier < later for earlier, later in itertools.pairwise(nonces))


def test_pyinstaller(python: Path, folder: Path, valkey: Server) -> None:
    """A program that PyInstaller has bundled, told nothing of the Lua, finds it; PyInstaller asks the wheel."""
    run(python, "-m", "pip", "install", "--quiet", "pyinstaller", cwd=folder)
    (folder / "take.py").write_text(USE)
    run(python, "-m", "PyInstaller", "--log-level", "WARN", "--distpath", "bundle", "take.py", cwd=folder)
    said = run(folder / "bundle" / "take" / "take", valkey.url, cwd=folder)
    assert len(said.split()) == 100
