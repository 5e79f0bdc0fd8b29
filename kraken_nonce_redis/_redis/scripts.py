"""The Lua scripts: found, put together and hashed once per process."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_INCLUDE = re.compile(r"^ *-- include: (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script as the server runs it: the verb with the library parts that it includes."""

    name: str
    source: str = field(repr=False)
    sha: str


def folder() -> Traversable:
    """Return the folder with the Lua files: inside an installed or bundled package, beside it in a checkout."""
    package = resources.files("kraken_nonce_redis")
    installed = package / "lua"
    return installed if installed.is_dir() else package / ".." / "lua"


def _whole(path: Traversable, included: set[str]) -> str:
    """Return a file with others in the place of the lines that include them, each once."""

    def include(line: re.Match[str]) -> str:
        name = line[1]
        if name in included:
            return ""
        included.add(name)
        return _whole(folder() / "lib" / f"{name}.lua", included)

    return _INCLUDE.sub(include, path.read_text("utf-8"))


@functools.cache
def load(name: str) -> Script:
    """Return the script ``lua/<name>.lua`` with its includes."""
    source = _whole(folder() / f"{name}.lua", set())
    # The server names scripts by SHA-1; nothing rests on its strength.
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha)


def names() -> list[str]:
    """Return the names of all scripts."""
    return sorted(path.name.removesuffix(".lua") for path in folder().iterdir() if path.name.endswith(".lua"))
