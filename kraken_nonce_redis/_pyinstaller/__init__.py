"""For PyInstaller, which finds this by the entry point ``pyinstaller40``: bundles get the Lua."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Return where the hook is."""
    return [str(Path(__file__).parent)]
