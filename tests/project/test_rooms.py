"""Which part of the package knows which: the table of rooms in docs/development.md, held against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "kraken_nonce_redis"
ROW: Final = re.compile(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)

FOR_ALL: Final = {"errors", "_arguments", "_clock"}
"""The rooms that every other one may import."""
OWN: Final = {"_calls.guards"}
"""Modules that are a room of their own within another one."""
LIBRARIES: Final = {
    "_redis": {
        "redis.crc",
        "redis.exceptions",
        "redis.connection.DefaultParser",
        "redis.event",
        "redis.maint_notifications",
    },
    "_core": set[str](),
    "_calls": set[str](),
}
"""The rooms without I/O, and what they may use of other people's libraries."""
OF_PYTHON: Final = frozenset(
    {
        *(
            "__future__",
            "collections",
            "contextlib",
            "contextvars",
            "copy",
            "copyreg",
            "dataclasses",
            "datetime",
            "decimal",
            "enum",
        ),
        *(
            "functools",
            "hashlib",
            "heapq",
            "hmac",
            "itertools",
            "json",
            "logging",
            "math",
            "os",
            "pathlib",
            "random",
            "re",
            "secrets",
            "threading",
            "time",
            "typing",
        ),
        *("email.utils", "importlib.resources", "urllib.parse", "uuid", "weakref"),
    }
)
"""What rooms without I/O use of Python's."""
OF_THREADING: Final = {"Lock", "RLock"}
OF_TIME: Final = {"time"}


def room_of(name: str) -> str:
    """Return the room of a module or of what is in it, by its full name."""
    parts = name.split(".")[1:]
    if ".".join(parts[:2]) in OWN:
        return ".".join(parts[:2])
    return parts[0] if parts and list(PACKAGE.glob(parts[0])) + list(PACKAGE.glob(f"{parts[0]}.py")) else "__init__"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the room of each module, and what is in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield room_of(".".join(parts)), ast.parse(path.read_text("utf-8"))


def imports(module: ast.Module) -> Iterator[str]:
    """Yield the full name of all that a module imports from elsewhere, for types as well."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, "a relative import stays in its room"


def table() -> dict[str, set[str]]:
    """Return what each room may import, as developers read it."""
    text = (ROOT / "docs" / "development.md").read_text("utf-8")
    rows = re.search(r"^\| room \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert rows
    return {room: set(re.findall(r"`([\w.]+)`", allowed)) for room, allowed in ROW.findall(rows[0])}


def test_rooms_import_what_the_table_says() -> None:
    """A room knows no other than those that its row names, and every room has a row."""
    allowed = table()
    assert set(allowed) == {room for room, _ in modules()}
    for room, module in modules():
        known = {room_of(name) for name in imports(module) if name.split(".")[0] == PACKAGE.name}
        assert known <= allowed[room] | FOR_ALL | {room}, f"{room} imports {known - allowed[room] - FOR_ALL - {room}}"


def test_rooms_for_all_know_nobody_else() -> None:
    """What every room may import leads to no other room, so that there is no circle."""
    for room in FOR_ALL:
        assert table()[room] == set()


@pytest.mark.parametrize("room", LIBRARIES)
def test_rooms_without_io(room: str) -> None:
    """What decides reads and sends nothing, and waits for nothing: tests drive it without a socket or a thread."""
    for where, module in modules():
        if where != room:
            continue
        for name in imports(module):
            library = name.split(".")[0]
            if library != PACKAGE.name:
                assert any(f"{name}.".startswith(f"{known}.") for known in {*OF_PYTHON, *LIBRARIES[room]}), name
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                allowed = {"threading": OF_THREADING, "time": OF_TIME}.get(node.value.id)
                assert allowed is None or node.attr in allowed, ast.unparse(node)
