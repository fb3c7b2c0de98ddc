"""The tables of a profile store, and how a file of an older version comes to have them."""

from __future__ import annotations

import hashlib
import sqlite3

from edge_runtime.store.item import searched_text
from edge_runtime.store.posting_lists import MAX_SLOTS
from edge_runtime.store.word_index import add_to_index

SCHEMA_VERSION = 2
APPLICATION_ID = 0x436F4765  # "CoGe": tells our files from other SQLite files
_INDEXED_AT_ONCE = MAX_SLOTS  # items whose words are held in memory

_VERSION_1 = (
    "CREATE TABLE profile (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL)",
    """CREATE TABLE history (
        id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, text TEXT NOT NULL, date TEXT)""",
)
_VERSION_2 = (
    "ALTER TABLE history ADD COLUMN origin TEXT",
    "ALTER TABLE history ADD COLUMN title_counts INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE history ADD COLUMN digest BLOB",
    "CREATE INDEX history_digest ON history (digest)",
    "CREATE INDEX history_date ON history (date, id)",
    "CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE, items INTEGER NOT NULL)",
    # How many words are in so many items: what the mean of all words' weights is made from.
    "CREATE TABLE word_items (items INTEGER PRIMARY KEY, words INTEGER NOT NULL)",
    "CREATE TABLE totals (id INTEGER PRIMARY KEY CHECK (id = 1), items INTEGER NOT NULL, changes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (1, 0, 0)",
    "CREATE TABLE recent (item INTEGER PRIMARY KEY, words BLOB NOT NULL, counts BLOB NOT NULL)",
    "CREATE TABLE segments (id INTEGER PRIMARY KEY AUTOINCREMENT, items BLOB NOT NULL, lengths BLOB NOT NULL)",
    "CREATE TABLE postings (id INTEGER PRIMARY KEY, slots BLOB NOT NULL, counts BLOB NOT NULL)",
    "CREATE TABLE encoders (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE)",
    # AUTOINCREMENT: an id stands for one vector for ever, so what was read once need not be read again.
    """CREATE TABLE vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL, encoder INTEGER NOT NULL,
        vector BLOB NOT NULL, UNIQUE (encoder, item))""",
    "CREATE INDEX vectors_item ON vectors (item)",
)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make all tables, in an open transaction on an empty file."""
    for statement in (*_VERSION_1, *_VERSION_2):
        connection.execute(statement)
    _mark(connection)


def move_to_version_2(connection: sqlite3.Connection) -> None:
    """Give a file of version 1 what version 2 has, in an open transaction."""
    for statement in _VERSION_2:
        connection.execute(statement)
    connection.create_function("digest_of", 3, item_digest, deterministic=True)
    connection.execute("UPDATE history SET digest = digest_of(title, text, origin)")
    last = 0
    query = "SELECT id, title, text, title_counts FROM history WHERE id > ? ORDER BY id LIMIT ?"
    while rows := connection.execute(query, (last, _INDEXED_AT_ONCE)).fetchall():
        add_to_index(connection, [(item_id, searched_text(*parts)) for item_id, *parts in rows])
        last = rows[-1][0]
    _mark(connection)


def item_digest(title: str, text: str, origin: str | None) -> bytes:
    """16 bytes by which an import knows a past text again."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (title, text, origin or ""):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def _mark(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
