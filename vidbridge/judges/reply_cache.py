"""Replies of judges on disk: what was judged once is not asked again, by this run, its resumption or another run."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Collection, Iterator, Mapping

from vidbridge.errors import ConfigError

_BUSY_S = 30.0  # how long to wait for another process that writes
_CHUNK = 500  # keys a query; SQLite allows 999 in old builds
_EVICTED = 0.1  # the part of the rows that go when the file is full, those unused for longest


class ReplyCache:
    """A table key -> reply in one SQLite file, for many threads and processes of one machine.

    The write-ahead log lets all read while one writes; it needs a local disk. Without a ``path`` the
    table lives in memory and goes with the process.
    """

    def __init__(self, path: str | None = None, max_mb: float = 1024.0) -> None:
        if max_mb <= 0:
            raise ValueError(f"judge.cache.max_mb must be positive, got {max_mb}")
        self.path = path
        self.max_bytes = max_mb * 1e6
        self._lock = threading.Lock()
        self._connection = self._connect()

    def get(self, keys: Collection[str]) -> dict[str, str]:
        """The replies that are known."""
        found: dict[str, str] = {}
        wanted = list(keys)
        with self._open() as connection:
            for first in range(0, len(wanted), _CHUNK):
                chunk = wanted[first : first + _CHUNK]
                marks = ",".join("?" * len(chunk))
                found |= dict(connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", chunk))
            now = time.time()
            connection.executemany("UPDATE replies SET used = ? WHERE key = ?", [(now, key) for key in found])
        return found

    def put(self, replies: Mapping[str, str]) -> None:
        """Keep these; of two replies to one request the first stays, so that all runs see the same."""
        now = time.time()
        with self._open() as connection:
            rows = [(key, reply, now) for key, reply in replies.items()]
            connection.executemany("INSERT OR IGNORE INTO replies (key, reply, used) VALUES (?, ?, ?)", rows)
            while _used_bytes(connection) > self.max_bytes:
                (count,) = connection.execute("SELECT COUNT(*) FROM replies").fetchone()
                if not count:
                    break
                oldest = "SELECT key FROM replies ORDER BY used LIMIT ?"
                connection.execute(f"DELETE FROM replies WHERE key IN ({oldest})", (max(1, int(count * _EVICTED)),))

    def __len__(self) -> int:
        with self._open() as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM replies").fetchone()
        return int(count)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction, one thread at a time."""
        with self._lock, self._as_config_errors(), self._connection:
            yield self._connection

    def _connect(self) -> sqlite3.Connection:
        with self._as_config_errors():
            if self.path is not None:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path or ":memory:", timeout=_BUSY_S, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, used REAL NOT NULL)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_use ON replies (used)")
            return connection

    @contextmanager
    def _as_config_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            message = f"judge.cache.path: cannot use {self.path}: {error}; delete it or name another"
            raise ConfigError(message) from error


def _used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something; what was deleted is used again before the file grows."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
