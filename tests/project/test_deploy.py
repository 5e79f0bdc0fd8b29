"""What is in deploy/ is valid, by validators that need no network, and says the same as the library and its pages."""

from __future__ import annotations

import re
import shlex
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml

from kraken_nonce_redis import CallLock
from kraken_nonce_redis.doctor import diagnose, examine
from kraken_nonce_redis.permissions import least_permissions
from tests.support import deployment
from tests.support.deployment import BASE, BIN, COMPOSE, DEPLOY, MARGIN
from tests.support.helpers import ROOT, environment
from tests.support.servers import HOST
from tests.support.servers import VALKEY as KIND

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import PrivateServer
    from tests.support.servers import Server

pytestmark = pytest.mark.once

KUBERNETES = ("1.31", "1.34", "1.37")
PASSWORDS = {
    "KRAKEN_API_KEY": "key",
    "KRAKEN_API_SECRET": "c2VjcmV0",
    "VALKEY_BOT_PASSWORD": "b0" * 12,
    "VALKEY_OPERATOR_PASSWORD": "0b" * 12,
    "GRAFANA_PASSWORD": "f0" * 12,
}


def passes(command: str, *arguments: str | Path) -> None:
    """Run a validator, which must be installed; fail with what it said."""
    done = subprocess.run([BIN / command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# By the validators.


def test_yaml() -> None:
    """All YAML is in one style, without keys that come twice."""
    passes("yamllint", "--strict", DEPLOY)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes(version: str) -> None:
    """Kubernetes takes the manifests, and knows each of their fields."""
    paths = [path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml"]
    passes("kubernetes-validate", "--strict", "-k", version, *paths, DEPLOY / "kubernetes" / "secrets.example.yaml")


def test_compose() -> None:
    """Compose takes its file."""
    passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_dockerfile() -> None:
    """The Dockerfile follows the rules of hadolint."""
    passes("hadolint", DEPLOY / "Dockerfile")


# In itself.


def test_kustomization() -> None:
    """The base takes all that is in its folder, and puts it where secrets and Valkey are."""
    (base,) = deployment.documents(BASE / "kustomization.yaml")
    assert {*base["resources"], "kustomization.yaml"} == {path.name for path in BASE.iterdir()}
    (name,) = (manifest["metadata"]["name"] for manifest in deployment.manifests() if manifest["kind"] == "Namespace")
    secrets = deployment.documents(DEPLOY / "kubernetes" / "secrets.example.yaml")
    assert {base["namespace"], *(secret["metadata"]["namespace"] for secret in secrets)} == {name}
    images = {image["name"] for image in base["images"]}
    containers = [container for name in ("bot", "exporter") for container in deployment.pod(name)["containers"]]
    assert {container["image"] for container in containers} == images


def test_secrets() -> None:
    """Each secret that a container or the chart asks for is among the examples, and these hold none."""
    secrets = deployment.documents(DEPLOY / "kubernetes" / "secrets.example.yaml")
    there = {(secret["metadata"]["name"], key) for secret in secrets for key in secret["stringData"]}
    assert {value for secret in secrets for value in secret["stringData"].values()} == {""}
    read = deployment.values()
    asked = {(read["auth"]["usersExistingSecret"], name) for name in read["auth"]["aclUsers"]}
    for name in ("bot", "exporter"):
        environment = deployment.pod(name)["containers"][0]["env"]
        references = [entry["valueFrom"]["secretKeyRef"] for entry in environment if "valueFrom" in entry]
        asked |= {(reference["name"], reference["key"]) for reference in references}
    assert asked == there
    example = (DEPLOY / "compose" / "env.example").read_text("utf-8")
    lines = [line for line in example.splitlines() if not line.startswith("#")]
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text("utf-8")))
    assert {line.removesuffix("=") for line in lines} == required


def test_images() -> None:
    """Each image has a version, and none is one of Bitnami's, which are no longer kept."""
    images = [service["image"] for service in deployment.compose()["services"].values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    for path in DEPLOY.rglob("*"):
        assert not path.is_file() or "bitnami" not in path.read_text("utf-8").lower(), path


def test_mounted_files() -> None:
    """What the compose file mounts is there."""
    services = deployment.compose()["services"]
    mounted = [volume for service in services.values() for volume in service.get("volumes", ()) if volume[0] == "."]
    assert mounted
    for volume in mounted:
        assert (COMPOSE.parent / volume.split(":")[0]).is_file(), volume


def test_the_same_bots_in_both() -> None:
    """Compose and Kubernetes run the same command and the same probe, three times."""
    bot = deployment.compose()["services"]["bot"]
    (manifest,) = (m for m in deployment.manifests() if m["metadata"]["name"] == "bot" and m["kind"] == "Deployment")
    (container,) = deployment.pod("bot")["containers"]
    assert container["command"] == bot["command"]
    assert ["CMD", *container["readinessProbe"]["exec"]["command"]] == bot["healthcheck"]["test"]
    assert manifest["spec"]["replicas"] == bot["deploy"]["replicas"] == 3
    exporter = deployment.compose()["services"]["exporter"]
    assert deployment.pod("exporter")["containers"][0]["command"] == exporter["command"]
    (port,) = (port["containerPort"] for port in container["ports"])
    assert str(port) == deployment.option(bot["command"], "--metrics")


def test_time_to_end() -> None:
    """A bot has the time to end that docs/deploy.md counts, and so has an order that must be settled."""
    assert f"preStop + seconds + {MARGIN:g}" in (ROOT / "docs" / "deploy.md").read_text("utf-8")
    bot, pod = deployment.compose()["services"]["bot"], deployment.pod("bot")
    needed = float(deployment.option(bot["command"], "--shutdown")) + MARGIN
    assert "lifecycle" not in pod["containers"][0]  # no preStop
    assert needed <= pod["terminationGracePeriodSeconds"]
    assert needed <= deployment.seconds(bot["stop_grace_period"])
    assert needed - MARGIN > 10 + 8  # call_timeout and settle_waits, by default


@pytest.mark.parametrize("name", ["bot", "exporter"])
def test_no_more_than_needed(name: str) -> None:
    """A container is not root, changes nothing of its image, and has no token for Kubernetes."""
    pod = deployment.pod(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = str(pod["securityContext"]["runAsUser"])
    assert f"\nUSER {user}:{user}\n" in (DEPLOY / "Dockerfile").read_text("utf-8")
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    service = deployment.compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_disruptions() -> None:
    """The budget is that of the bots."""
    (budget,) = (manifest for manifest in deployment.manifests() if manifest["kind"] == "PodDisruptionBudget")
    (bots,) = (m for m in deployment.manifests() if m["metadata"]["name"] == "bot" and m["kind"] == "Deployment")
    assert budget["spec"]["selector"] == bots["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] < bots["spec"]["replicas"]


# On a Valkey that is set up like this.


def settings_of_compose() -> list[str]:
    """Return the options of the server in the compose file, without its users."""
    program, *options = deployment.compose()["services"]["valkey"]["command"]
    assert program == "valkey-server"
    place = options.index("--aclfile")
    assert options[place + 1] == deployment.compose()["services"]["valkey"]["configs"][0]["target"]
    return options[:place] + options[place + 2 :]


def settings_of_chart() -> list[str]:
    """Return the options that the chart's server reads from its file."""
    lines = [shlex.split(line) for line in deployment.values()["valkeyConfig"].splitlines()]
    return [word for name, *words in lines for word in (f"--{name}", *words)]


@pytest.fixture(params=["compose", "chart"])
def deployed(request: pytest.FixtureRequest, private_server: PrivateServer, tmp_path: Path) -> Server:
    """Start a Valkey with the settings and users of the compose file, or of the values for the chart."""
    acl = tmp_path / "users.acl"
    acl.write_text("user default on nopass ~* &* +@all\n", "utf-8")
    if request.param == "compose":
        settings = settings_of_compose()
        users = deployment.compose(PASSWORDS)["configs"]["users"]["content"]
    else:
        settings = settings_of_chart()
        passwords = {"bot": PASSWORDS["VALKEY_BOT_PASSWORD"], "operator": PASSWORDS["VALKEY_OPERATOR_PASSWORD"]}
        users = "".join(  # as the chart's script writes them, which knows no password but by its hash
            f"user {user.name} on >{passwords.get(user.name, 'other')} {' '.join(user.rules)}\n"
            for user in deployment.users_of_values(deployment.values()).values()
        )
    server = private_server(KIND, *settings, "--aclfile", str(acl))
    acl.write_text(users, "utf-8")
    client = server.client()
    for finding in diagnose(examine(client)):
        if finding.topic in {"settings", "persistence", "eviction"}:
            assert finding.level == "ok", finding
    settings_there: dict[str, Any] = client.config_get("append*")
    assert (settings_there["appendonly"], settings_there["appendfsync"]) == ("yes", "always")
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.acl_load()
    return server


def test_bots_user(deployed: Server) -> None:
    """A bot's user takes the lock, with as many permissions as that needs; who doesn't log in sees nothing."""
    url = f"redis://bot:{PASSWORDS['VALKEY_BOT_PASSWORD']}@{HOST}:{deployed.port}/0"
    with CallLock.from_url(url, "key").hold(timeout=5) as lease:
        assert lease.nonce
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.get("other")
    refused = (redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError)
    with redis.Redis.from_url(deployed.url) as client, pytest.raises(refused):
        client.keys("*")


def test_exporter(deployed: Server) -> None:
    """The exporter, run as the compose file runs it, reads Valkey as its own user."""
    service = deployment.compose(PASSWORDS)["services"]["exporter"]
    program, *words = service["command"]
    words[words.index("--listen") + 1] = f"{HOST}:0"
    url = service["environment"]["KRAKEN_NONCE_REDIS_URL"].replace("@valkey:6379/", f"@{HOST}:{deployed.port}/")
    with subprocess.Popen(
        [BIN / program, *words],
        env=environment() | {"KRAKEN_NONCE_REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as exporter:
        try:
            assert exporter.stdout is not None
            with urllib.request.urlopen(exporter.stdout.readline().strip(), timeout=30) as answer:
                assert b"\nkraken_nonce_up 1.0\n" in answer.read()
        finally:
            exporter.terminate()


def test_permissions() -> None:
    """Both have the same users, with the permissions that the library names."""
    compose, chart = deployment.users_of_compose(deployment.compose()), deployment.users_of_values(deployment.values())
    assert compose["bot"].permissions == chart["bot"].permissions == set(least_permissions())
    operator = set(least_permissions(role="operator"))
    assert compose["operator"].permissions == chart["operator"].permissions == operator
    assert compose["default"].permissions == {"+ping"}


def test_replicated() -> None:
    """With replicas, a master that reaches none of them takes no writes, and its users have that of replication."""
    read = deployment.values(replicated=True)
    assert 1 <= read["replica"]["minReplicasToWrite"] <= read["replica"]["replicas"]
    assert read["replica"]["replicationUser"] in read["auth"]["aclUsers"]
    assert read["replica"]["persistence"]["size"] == read["dataStorage"]["requestedSize"]
    assert read["deploymentStrategy"] == "Recreate"


def test_prometheus() -> None:
    """Prometheus looks for its rules where they are mounted, and for the bots and the exporter where these listen."""
    services = deployment.compose()["services"]
    read = yaml.safe_load((COMPOSE.parent / "prometheus.yml").read_text("utf-8"))
    targets = {volume.split(":")[1] for volume in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in read["rule_files"]} < targets
    jobs = {job["job_name"]: job for job in read["scrape_configs"]}
    (found,) = jobs["bot"]["dns_sd_configs"]
    assert found["names"] == ["bot"]
    assert str(found["port"]) == deployment.option(services["bot"]["command"], "--metrics")
    listen = deployment.option(services["exporter"]["command"], "--listen")
    assert jobs["kraken-nonce-exporter"]["static_configs"] == [{"targets": [listen.replace("0.0.0.0", "exporter")]}]
