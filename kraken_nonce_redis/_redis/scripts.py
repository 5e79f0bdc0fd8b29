"""The Lua scripts: found, put together and hashed once per process."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script as the server runs it: the verb with the library parts that it includes."""

    name: str
    source: str = field(repr=False)
    sha: str


def folder() -> Path:
    """Return the folder with the Lua files: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "lua"
    return installed if installed.is_dir() else _PACKAGE.parent / "lua"


def _parts(path: Path) -> list[Path]:
    """Return the file and, before it, all that it includes, each once."""
    parts: list[Path] = []
    for name in _INCLUDE.findall(path.read_text("utf-8")):
        parts += [part for part in _parts(folder() / "lib" / f"{name}.lua") if part not in parts]
    return [*parts, path]


@functools.cache
def load(name: str) -> Script:
    """Return the script ``lua/<name>.lua`` with its includes."""
    source = "\n".join(part.read_text("utf-8") for part in _parts(folder() / f"{name}.lua"))
    # The server names scripts by SHA-1; nothing rests on its strength.
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, source, sha)


def names() -> list[str]:
    """Return the names of all scripts."""
    return sorted(path.stem for path in folder().glob("*.lua"))
