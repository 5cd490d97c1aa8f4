"""PostgreSQL and pgbench as services that start with the host."""

from __future__ import annotations

from pathlib import Path

from services import CONNECTIONS, redirecting, write_unit
from shell import sh
from status import soon

PORT = 5432
CLIENT = "database-client"
PASSWORD = "guest"
# pgbench polls before it reads, and so do the sessions of PostgreSQL; twenty questions a second.
LOAD = f"/usr/bin/pgbench -n -S -h 127.0.0.1 -U postgres -c {CONNECTIONS} -R 20 -T 1000000 postgres"


def set_up() -> None:
    """Enables both; the client comes back until the database takes connections."""
    sh("systemctl start postgresql; until pg_isready; do sleep 1; done")
    sh(f"psql -c \"alter role postgres password '{PASSWORD}'\"", user="postgres")
    sh("pgbench -q -i postgres", user="postgres")
    Path("/srv/pgpass").write_text(f"*:*:*:postgres:{PASSWORD}\n")
    Path("/srv/pgpass").chmod(0o600)
    write_unit(
        CLIENT,
        command=LOAD,
        order="After=postgresql.service sockredird.service",
        target="multi-user.target",
    )
    drop_in = Path(f"/etc/systemd/system/{CLIENT}.service.d")
    drop_in.mkdir(exist_ok=True)
    (drop_in / "again.conf").write_text(
        "[Service]\nEnvironment=PGPASSFILE=/srv/pgpass\nRestart=always\nRestartSec=1\n"
    )
    sh(f"systemctl daemon-reload; systemctl enable postgresql {CLIENT}")


def check() -> None:
    soon(lambda: len(redirecting(PORT)) == CONNECTIONS, f"those of {CLIENT} are accelerated")
    assert sh(f"systemctl is-active {CLIENT}") == "active\n"
