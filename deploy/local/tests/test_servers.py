import asyncio
import os
import signal
import socket
import stat
import sys
import tempfile
from pathlib import Path

import asyncpg
import nats
import pytest
from rig.servers import DockerServers, EmbeddedServers, make_streams

from contracts import streams
from contracts.permissions import METERING, PROVISIONER
from hub_local import servers
from hub_local.credentials import ADMIN
from hub_local.folder import DataFolder, TakenError, is_free, runs
from hub_local.servers import ServerError, postgres_binaries
from runtime.provision import provision

Servers = EmbeddedServers | DockerServers


async def admin_of(servers: Servers) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(servers.credentials.dsn(ADMIN, servers.ports.postgres, "postgres"))


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_committed_rows_survive_kill_nine_of_the_database(own_infra: Servers) -> None:
    connection = await admin_of(own_infra)
    await connection.execute("create table kept (n int)")
    await connection.executemany("insert into kept values ($1)", [(n,) for n in range(500)])
    await own_infra.kill("postgres")
    connection.terminate()
    await own_infra.start("postgres")
    connection = await admin_of(own_infra)
    assert await connection.fetchval("select count(*) from kept") == 500
    await connection.close()


async def test_stored_messages_survive_kill_nine_of_nats(own_infra: Servers) -> None:
    url = own_infra.credentials.nats_url(PROVISIONER, own_infra.ports.nats)
    metering = await nats.connect(
        own_infra.credentials.nats_url(METERING, own_infra.ports.nats), inbox_prefix=b"_INBOX.metering"
    )
    for n in range(100):
        await metering.jetstream().publish("hub.v1.usage.recorded.chat", str(n).encode(), stream="USAGE")
    await own_infra.kill("nats")
    await metering.close()
    await own_infra.start("nats")
    client = await nats.connect(url, inbox_prefix=b"_INBOX.provisioner")
    assert (await client.jetstream().stream_info("USAGE")).state.messages == 100
    await client.close()


async def test_streams_come_back_after_the_store_was_wiped(own_infra: Servers) -> None:
    url = own_infra.credentials.nats_url(PROVISIONER, own_infra.ports.nats)
    client = await nats.connect(url, inbox_prefix=b"_INBOX.provisioner")
    js = client.jetstream()
    await js.delete_stream("CALLS")
    await provision(js)
    assert (await js.consumer_info("CALLS", "metering-settle")).config.ack_wait == streams.SETTLE.ack_wait_s
    await client.close()
    await make_streams(own_infra)


async def test_ports_and_passwords_are_the_same_at_the_next_start(tmp_path: Path) -> None:
    first = EmbeddedServers(tmp_path / "hub")
    await first.open()
    ports, credentials = first.ports, first.credentials
    await first.close()
    second = EmbeddedServers(tmp_path / "hub")
    await second.open()
    assert (second.ports, second.credentials) == (ports, credentials)
    await second.close()


async def test_a_first_start_that_was_killed_half_way_is_begun_again(tmp_path: Path) -> None:
    half_made = tmp_path / "hub" / "postgres" / "data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    servers = EmbeddedServers(tmp_path / "hub")
    await servers.open()
    await servers.start("postgres")
    connection = await admin_of(servers)
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    await servers.close()
    assert not half_made.exists()


async def test_a_taken_folder_names_its_owner(tmp_path: Path) -> None:
    async with DataFolder(tmp_path):
        with pytest.raises(TakenError, match=rf"another hub runs on .*pid {os.getpid()}"):
            await DataFolder(tmp_path).lock()
    async with DataFolder(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


async def test_a_port_that_a_stranger_took_is_replaced(tmp_path: Path) -> None:
    async with DataFolder(tmp_path) as folder:
        before = folder.ports(["nats"])["nats"]
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", before))
            stranger.listen()
            assert not is_free("127.0.0.1", before)
            after = folder.ports(["nats"])["nats"]
        assert after != before
        assert folder.ports(["nats"])["nats"] == after


async def test_secrets_are_readable_by_their_owner_only(own_infra: Servers) -> None:
    root = own_infra.folder.root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for name in ("credentials.json", "nats/nats.conf"):
        mode = stat.S_IMODE((root / name).stat().st_mode)
        assert mode == 0o600 or isinstance(own_infra, DockerServers), name


async def test_the_database_server_is_not_root(own_infra: Servers) -> None:
    """PostgreSQL refuses root by itself; this holds under root only because the launcher gives root up."""
    if isinstance(own_infra, DockerServers):
        pytest.skip("the container has a user of its own")
    pid = own_infra.pids()["postgres"]
    inside = proc(pid, "uid_map").split()
    if os.geteuid() == 0:
        assert inside[:2] == ["65534", "0"], "root outside is nobody inside"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
async def test_without_user_namespaces_the_database_runs_as_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "postgres_identity", lambda: "setuid")
    reachable = all(parent.stat().st_mode & 0o001 for parent in postgres_binaries().parents)
    with tempfile.TemporaryDirectory() as root:
        started = EmbeddedServers(Path(root) / "hub")
        os.chmod(root, 0o711)  # noqa: PTH101, S103
        if not reachable:
            with pytest.raises(ServerError, match="user nobody cannot pass"):
                await started.open()
            started.folder.unlock()
            return
        await started.open()
        await started.start("postgres")
        pid = started.pids()["postgres"]
        assert "Uid:\t65534\t65534" in proc(pid, "status")
        await started.stop("postgres")
        await started.close()


async def test_a_wrong_password_is_refused(own_infra: Servers) -> None:
    dsn = own_infra.credentials.dsn(ADMIN, own_infra.ports.postgres, "postgres")
    secret = own_infra.credentials.postgres[ADMIN]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn.replace(secret, "wrong"))


async def test_servers_die_with_whoever_started_them(tmp_path: Path) -> None:
    """`kill -9` of the supervisor: the kernel ends its servers, and the folder is free for the next one."""
    script = (
        "import asyncio, pathlib, sys\n"
        "from rig.servers import EmbeddedServers\n"
        "async def main():\n"
        "    servers = EmbeddedServers(pathlib.Path(sys.argv[1]))\n"
        "    await servers.open()\n"
        "    await servers.start()\n"
        "    print(*servers.pids().values(), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path / "hub"),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdout is not None
    pids = [int(text) for text in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    again = EmbeddedServers(tmp_path / "hub")
    await again.open()  # waits until the old servers have let go of the folder
    await again.start()
    assert not any(runs(pid) for pid in pids)
    await again.close()
