"""The pool: opens while the database is away, and names the errors after which nothing is known."""

from typing import Any

import pytest

from runtime import postgres


async def test_pool_opens_while_the_database_is_away_and_finds_it_later(own_nats: Any) -> None:
    servers = own_nats.servers
    await servers.stop("postgres")
    pool = await postgres.pool(
        servers.credentials.dsn("metering", servers.ports.postgres), name="test", size=2, command_timeout_s=2
    )
    with pytest.raises(postgres.UNKNOWN_OUTCOME):
        await pool.fetchval("select 1")
    await servers.start("postgres")
    assert await pool.fetchval("select current_setting('application_name')") == "test"
    await pool.close()


async def test_killed_database_is_an_unknown_outcome_and_the_pool_heals(own_nats: Any) -> None:
    servers = own_nats.servers
    pool = await postgres.pool(
        servers.credentials.dsn("metering", servers.ports.postgres),
        name="test",
        size=1,
        command_timeout_s=2,
        server_settings={"jit": "off"},
    )
    assert await pool.fetchval("show jit") == "off"
    await servers.kill("postgres")
    with pytest.raises(postgres.UNKNOWN_OUTCOME):
        await pool.fetchval("select 1")
    await servers.start("postgres")
    assert await pool.fetchval("select 1") == 1
    await pool.close()


async def test_statement_that_takes_too_long_is_an_unknown_outcome(own_nats: Any) -> None:
    servers = own_nats.servers
    pool = await postgres.pool(
        servers.credentials.dsn("metering", servers.ports.postgres), name="test", size=1, command_timeout_s=0.2
    )
    with pytest.raises(postgres.UNKNOWN_OUTCOME):
        await pool.fetchval("select pg_sleep(5)")
    await pool.close()
