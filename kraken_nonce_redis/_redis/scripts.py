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


@functools.cache
def load(name: str) -> Script:
    """Return the script ``lua/<name>.lua`` with its includes."""
    texts, parts = _files()
    source = _whole(texts[name], parts, set())
    # The server names scripts by SHA-1; nothing rests on its strength.
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha)


def names() -> list[str]:
    """Return the names of all scripts."""
    return sorted(_files()[0])


@functools.cache
def _files() -> tuple[dict[str, str], dict[str, str]]:
    """Return the texts of all scripts and of all parts that they include, by name.

    All are read when the first one is needed, since an upgrade may replace the files while the process lives.
    """
    return _texts(folder()), _texts(folder() / "lib")


def _texts(folder: Traversable) -> dict[str, str]:
    files = (path for path in folder.iterdir() if path.name.endswith(".lua"))
    return {path.name.removesuffix(".lua"): path.read_text("utf-8") for path in files}


def _whole(text: str, parts: dict[str, str], included: set[str]) -> str:
    """Return a text with others in the place of the lines that include them, each once."""

    def include(line: re.Match[str]) -> str:
        name = line[1]
        if name in included:
            return ""
        included.add(name)
        return _whole(parts[name], parts, included)

    return _INCLUDE.sub(include, text)
