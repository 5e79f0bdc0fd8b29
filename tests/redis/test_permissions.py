"""The permissions that the docs list: enough for everything, and not one too many."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import Pace, StorePermissionDenied
from kraken_nonce_redis._redis import commands, journal, name_records, scripts, trail
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.permissions import CLUSTER_COMMANDS, COMMANDS, least_permissions
from tests.support.helpers import KEYS, fails

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from kraken_nonce_redis._threads.store import Store
    from tests.support.faces import Face
    from tests.support.servers import Server
    from tests.support.topologies import ClusterTopology

pytestmark = pytest.mark.matrix

USER = "bot"
PASSWORD = "s3cret-w0rd"
NOTED = ["cool-down", "cool-down-ended", "unknown", "forgotten", "unlocked"]
DOCS = Path(__file__).parents[2] / "docs" / "redis.md"


def give(server: Server, words: Iterable[str]) -> None:
    """Make the user anew with these permissions, on a server that has forgotten everything."""
    with server.admin() as admin:
        admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *words)
        admin.flushall()
        admin.script_flush()


def do_everything(first: Any, second: Any) -> list[str]:
    """Run every script, in every way that makes a difference to what it calls, as two processes; and listen.

    Returns the kinds of what is in the log.
    """
    one, two = store_for(first), store_for(second)
    member, waiter, quitter = "1111:1", "2222:1", "2222:2"
    pace = Pace(min_interval=0.001, tier="pro").settings(1, startup_protection=True)

    def ask(who: str, ticket: int | None = 0) -> commands.Answer:
        run = one.run if who == member else two.run
        return run(commands.acquire(KEYS, who, 30, ticket=ticket, priority="normal", pace=pace))

    one.run(commands.reserve(KEYS, 1))
    one.run(commands.advance(KEYS, time.time_ns(), 10**9))
    assert isinstance(ask(member), commands.Granted)
    for who in (waiter, quitter):
        answer = ask(who)
        assert isinstance(answer, commands.Waiting)
        assert isinstance(ask(who, answer.ticket), commands.Waiting)
    two.run(commands.heartbeat(KEYS, "2222", waiter))
    two._listener.open()
    one.run(commands.cool_down(KEYS, 60, "test"))
    one.run(commands.cool_down(KEYS, 0, ""))
    one.run(commands.reset_startup(KEYS))
    one.run(commands.ping(KEYS))
    extended = one.run(commands.extend(KEYS, member, 5, journal.intent("key", "AddOrder", ["id"])))
    assert isinstance(extended, commands.Extended)
    nonces = extended.nonces
    record = name_records.NameRecord("id", "name", "0f", 1, 1.0, "0f")
    assert isinstance(one.run(name_records.keep(KEYS, member, record)), name_records.Kept)
    assert len(one.run(name_records.read_all(KEYS))) == 1
    two.run(commands.release(KEYS, quitter))
    assert one.run(commands.inspect(KEYS)).waiting == 1
    assert one.run(commands.release(KEYS, member, nonces[0], nonces[0], known=False)) == "released"
    assert len(one.run(journal.pending(KEYS))) == 1
    for outcome in ("reported", "known"):
        assert one.run(journal.settle(KEYS, nonces[0], outcome))
    time.sleep(0.01)
    assert isinstance(ask(waiter, 1), commands.Granted)
    assert two.run(commands.unlock(KEYS, waiter))
    assert two.run(commands.release(KEYS, waiter)) == "lost"
    time.sleep(0.01)
    assert isinstance(ask(member, None), commands.Granted)
    assert one.run(commands.release(KEYS, member)) == "released"  # with nobody else who wants the lock
    return noted(one)


def noted(store: Store) -> list[str]:
    """Return the kinds of what is in the log, the oldest first."""
    return [entry.kind for entry in reversed(store.run(trail.read(KEYS.log)).entries)]


def user_clients(server: Server, **options: Any) -> list[redis.Redis]:
    """Connect as two processes of the user."""
    return [server.client(username=USER, password=PASSWORD, **options) for _ in range(2)]


def test_the_listed_rights_are_enough(real_server: Server) -> None:
    """A user with the listed permissions and no others can do everything."""
    give(real_server, least_permissions())
    assert do_everything(*user_clients(real_server)) == ["raised", *NOTED]


def test_without_the_right_to_add_to_the_log(real_server: Server) -> None:
    """A user of the time before there was a log can do all that it could: it costs the entries and nothing else."""
    give(real_server, [one for one in least_permissions() if one != "+xadd"])
    assert do_everything(*user_clients(real_server)) == []


@pytest.mark.parametrize("missing", [one for one in least_permissions() if one not in ("resetchannels", "+xadd")])
def test_each_of_the_listed_rights_is_needed(real_server: Server, missing: str) -> None:
    """With one permission fewer, something is refused, and the error says that it is for want of permissions."""
    give(real_server, [one for one in least_permissions() if one != missing])
    with fails(StorePermissionDenied):
        do_everything(*user_clients(real_server))


def test_a_namespace_of_its_own(real_server: Server) -> None:
    """Users may be kept to their namespaces."""
    give(real_server, least_permissions("another"))
    with fails(StorePermissionDenied):
        do_everything(*user_clients(real_server))


def test_in_a_cluster(face: Face, cluster: ClusterTopology) -> None:
    """A cluster's user needs two permissions more, one of them only while slots move."""
    nodes = cluster.servers
    login = f"redis+cluster://{USER}:{PASSWORD}@"
    try:
        for missing in ("", *CLUSTER_COMMANDS):
            for node in nodes:
                with node.admin() as admin:
                    words = [one for one in least_permissions(cluster=True) if one != missing]
                    admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *words)
            # With an option that changes nothing, so that each is a process of its own.
            url = f"{cluster.url.replace('redis+cluster://', login)}?socket_timeout={2 + len(missing)}"
            nonces = face.allocator_from_url(url)
            if not missing:
                before = nonces.next()
                assert face.lock_from_url(url).ping() > 0
            source, target = cluster.begin_migration(KEYS.state)
            try:
                cluster.move_keys(KEYS.state, source, target)
                if missing:
                    with fails(StorePermissionDenied):
                        nonces.next()
                else:
                    assert nonces.next() > before
            finally:
                cluster.end_migration(KEYS.state, target)
    finally:
        for node in nodes:
            with node.admin() as admin:
                admin.acl_deluser(USER)


@pytest.mark.once
def test_the_scripts_need_no_others() -> None:
    """A command that a script calls is listed, and none is that no script calls."""
    sources = (scripts.load(name).source for name in scripts.names())
    called = {
        f"+{command.lower()}" for source in sources for command in re.findall(r"redis\.p?call\(\s*'(\w+)'", source)
    }
    assert called | {"+eval", "+evalsha", "+subscribe"} == set(COMMANDS)


@pytest.mark.once
def test_the_docs_list_them() -> None:
    """What is in the docs is what the package says."""
    text = DOCS.read_text()
    assert " ".join(COMMANDS) in " ".join(text.split())
    for permission in (*least_permissions(), *CLUSTER_COMMANDS):
        assert permission in text
