"""What Python runs at its start when ``kraken-nonce run`` has put this folder on its path.

It has ``kraken_nonce_redis.ccxt.patch()`` called as soon as ccxt is imported; a process without ccxt pays nothing. It
imports nothing of ours before that, since the program may have a Python of its own, and gives way to the
``sitecustomize`` that Python would have run.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OURS = "kraken_nonce_redis.ccxt"


class _Patching:
    """Loads a module as its own loader does, and then patches ccxt."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return cast("ModuleType | None", self._loader.create_module(spec))

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        try:
            ours = importlib.import_module(_OURS)
        except ImportError as error:
            raise ImportError(
                f"kraken-nonce run: this Python ({sys.executable}) has ccxt, but can't import {_OURS} ({error}): "
                "pip install 'kraken-nonce-redis[ccxt]'"
            ) from error
        if hasattr(ours, "patch"):  # else it is being imported, and that is what imports ccxt
            ours.patch()


class _Finder:
    """Finds ccxt and our module for it as usual, with a loader that patches."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in {"ccxt", _OURS}:
            return None
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)
            spec: Any = None if finder is self or find is None else find(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Patching(spec.loader)
                return cast("ModuleSpec", spec)
        return None


def _give_way() -> None:
    """Run the ``sitecustomize`` that is next on the path, if there is one."""
    here = Path(__file__).parent
    others = [place for place in sys.path if Path(place) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _Finder())
_give_way()
