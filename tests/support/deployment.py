"""What is in deploy/, read as the tools read it that run it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.support.helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final = DEPLOY / "compose" / "compose.yaml"
BASE: Final = DEPLOY / "kubernetes" / "base"
VALKEY: Final = DEPLOY / "kubernetes" / "valkey"
BIN: Final = Path(sys.executable).parent
"""Where the commands of this environment are."""
MARGIN: Final = 3.0
"""Seconds between the end of the calls and that of the process, as docs/deploy.md says."""

_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
_TIME: Final = re.compile(r"(\d+)s")


def documents(path: Path) -> list[Any]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def manifests() -> Iterator[Any]:
    """Yield what the base has for Kubernetes, without the kustomization itself."""
    for path in sorted(BASE.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from documents(path)


def pod(name: str) -> Any:
    """Return the pod's specification of a Deployment of the base."""
    (found,) = (
        manifest["spec"]["template"]["spec"]
        for manifest in manifests()
        if (manifest["kind"], manifest["metadata"]["name"]) == ("Deployment", name)
    )
    return found


def compose(variables: Mapping[str, str] | None = None) -> Any:
    """Return the compose file; with variables as Compose reads it when they are set."""
    text = COMPOSE.read_text("utf-8")
    if variables is None:
        return yaml.safe_load(text)

    def value(match: re.Match[str]) -> str:
        name, how, default = match.groups()
        return variables[name] if how != "-" else variables.get(name) or default

    return yaml.safe_load(_VARIABLE.sub(value, text))


def seconds(text: str) -> float:
    """Return a time of the compose file."""
    match = _TIME.fullmatch(text)
    assert match, text
    return float(match[1])


@dataclass(frozen=True)
class User:
    """A user of Valkey.

    Attributes:
        name: its name.
        rules: its rules, in the words of ACL SETUSER; in the compose file with ``reset`` and the password.
    """

    name: str
    rules: tuple[str, ...]

    @property
    def permissions(self) -> frozenset[str]:
        """What it may do."""
        return frozenset(rule for rule in self.rules if rule[0] in "+~&" or rule == "resetchannels")


def users_of_compose(read: Any) -> dict[str, User]:
    """Return the users that the compose file gives to Valkey, in the form of its aclfile."""
    users = {}
    for line in read["configs"]["users"]["content"].splitlines():
        word, name, *rules = line.split()
        assert word == "user"
        users[name] = User(name, tuple(rules))
    return users


def values(*, replicated: bool = False) -> Any:
    """Return the values for Valkey's chart."""
    (read,) = documents(VALKEY / "values.yaml")
    if replicated:
        read |= documents(VALKEY / "values-replicated.yaml")[0]
    return read


def users_of_values(read: Any) -> dict[str, User]:
    """Return the users that the chart makes."""
    return {name: User(name, tuple(user["permissions"].split())) for name, user in read["auth"]["aclUsers"].items()}


def option(command: list[str], name: str) -> str:
    """Return the value of an option on a command line."""
    return command[command.index(name) + 1]
