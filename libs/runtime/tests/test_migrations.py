"""Migrations against a real PostgreSQL."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from contracts.ids import new_process_id
from runtime import migrations
from runtime.migrations import Migration, MigrationError

BEFORE = Migration("books", "0001_before_books.sql", "before", "create schema books; create table books.book (id int)")
AFTER = Migration("books", "0002_after_tidy.sql", "after", "alter table books.book add column title text")
BOTH = [BEFORE, AFTER]


async def applied(dsn: str, what: list[Migration], through: migrations.Phase = "after") -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return await migrations.apply(connection, what, through=through)
    finally:
        await connection.close()


async def columns(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        "select column_name from information_schema.columns where table_schema = 'books' order by ordinal_position"
    )
    await connection.close()
    return [row["column_name"] for row in rows]


async def test_each_file_is_applied_once_in_order(dsn: str) -> None:
    assert await applied(dsn, BOTH) == ["books/0001_before_books.sql", "books/0002_after_tidy.sql"]
    assert await columns(dsn) == ["id", "title"]
    assert await applied(dsn, BOTH) == []


async def test_after_files_wait_until_no_old_code_is_left(dsn: str) -> None:
    assert await applied(dsn, BOTH, through="before") == ["books/0001_before_books.sql"]
    assert await columns(dsn) == ["id"]
    assert await applied(dsn, BOTH) == ["books/0002_after_tidy.sql"]


async def test_of_four_processes_at_once_one_applies_each_file(dsn: str) -> None:
    slow = Migration(
        "books", "0003_before_slow.sql", "before", "select pg_sleep(0.3); create table books.page (id int)"
    )
    done = await asyncio.gather(*(applied(dsn, [BEFORE, AFTER, slow]) for _ in range(4)))
    assert sorted(name for names in done for name in names) == [
        "books/0001_before_books.sql",
        "books/0002_after_tidy.sql",
        "books/0003_before_slow.sql",
    ]


async def test_file_that_was_changed_after_it_had_been_applied_is_refused(dsn: str) -> None:
    await applied(dsn, BOTH)
    changed = Migration("books", BEFORE.name, "before", BEFORE.sql + " -- harmless?")
    with pytest.raises(MigrationError, match=r"0001_before_books\.sql was changed"):
        await applied(dsn, [changed, AFTER])


async def test_database_that_is_newer_than_the_code_is_refused(dsn: str) -> None:
    await applied(dsn, BOTH)
    with pytest.raises(MigrationError, match=r"newer than this code.*books/0002_after_tidy.sql"):
        await applied(dsn, [BEFORE])


async def test_schemas_of_others_do_not_make_a_database_newer(dsn: str) -> None:
    await applied(dsn, BOTH)
    other = Migration("shelf", "0001_before_shelf.sql", "before", "create schema shelf")
    assert await applied(dsn, [other]) == ["shelf/0001_before_shelf.sql"]


async def test_file_that_fails_leaves_nothing_and_can_be_applied_once_repaired(dsn: str) -> None:
    broken = Migration("books", AFTER.name, "after", "create table books.half (id int); select 1 / 0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await applied(dsn, [BEFORE, broken])
    assert await columns(dsn) == ["id"], "books.half is gone with its transaction"
    assert await applied(dsn, BOTH) == ["books/0002_after_tidy.sql"]


async def test_file_without_transaction_may_build_an_index_concurrently(dsn: str) -> None:
    index = Migration(
        "books", "0002_before_index.sql", "before",
        "-- no transaction\ncreate index concurrently book_id on books.book (id)",
    )  # fmt: skip
    done = await asyncio.gather(*(applied(dsn, [BEFORE, index]) for _ in range(2)))
    assert sorted(name for names in done for name in names) == [
        "books/0001_before_books.sql",
        "books/0002_before_index.sql",
    ]


async def test_lock_is_free_again_after_a_failure(dsn: str) -> None:
    broken = Migration("books", "0001_before_books.sql", "before", "select 1 / 0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await applied(dsn, [broken])
    async with asyncio.timeout(5):
        await applied(dsn, BOTH)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose migrations a test writes."""
    name = new_process_id("library").replace("-", "_")
    (tmp_path / name / "sql" / "migrations").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text('"""A library."""')
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_files_are_found_in_the_order_of_their_numbers(package: str, tmp_path: Path) -> None:
    folder = tmp_path / package / "sql" / "migrations"
    for name in ("0002_after_b.sql", "0001_before_a.sql", "notes.txt"):
        (folder / name).write_text("select 1")
    found = migrations.found(package, "books")
    assert [(item.name, item.phase) for item in found] == [
        ("0001_before_a.sql", "before"),
        ("0002_after_b.sql", "after"),
    ]


def test_file_named_otherwise_is_refused(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "sql" / "migrations" / "1_fix.sql").write_text("select 1")
    with pytest.raises(MigrationError, match=r"1_fix\.sql"):
        migrations.found(package, "books")


def test_number_that_is_taken_is_refused(package: str, tmp_path: Path) -> None:
    for name in ("0001_before_a.sql", "0001_before_b.sql"):
        (tmp_path / package / "sql" / "migrations" / name).write_text("select 1")
    with pytest.raises(MigrationError, match=r"0001_before_b\.sql: number 0001"):
        migrations.found(package, "books")
