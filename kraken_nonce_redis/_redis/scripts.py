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

_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


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


def _parts(source: str) -> list[str]:
    """Return a source and, before it, those that it includes, each once."""
    parts: list[str] = []
    for name in _INCLUDE.findall(source):
        included = (folder() / "lib" / f"{name}.lua").read_text("utf-8")
        parts += [part for part in _parts(included) if part not in parts]
    return [*parts, source]


@functools.cache
def load(name: str) -> Script:
    """Return the script ``lua/<name>.lua`` with its includes."""
    source = "\n".join(_parts((folder() / f"{name}.lua").read_text("utf-8")))
    # The server names scripts by SHA-1; nothing rests on its strength.
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha)


def names() -> list[str]:
    """Return the names of all scripts."""
    return sorted(path.name.removesuffix(".lua") for path in folder().iterdir() if path.name.endswith(".lua"))
