"""Real programs on the scope that is the default, the whole host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shell import sh
from status import counted, counters


@contextmanager
def service(name: str) -> Iterator[None]:
    sh(f"systemctl start {name}")
    try:
        yield
    finally:
        sh(f"systemctl stop {name}")


def test_redis(enabled: None) -> None:
    with service("redis-server"), counted() as change:
        assert sh("redis-cli -h 127.0.0.1 ping") == "PONG\n"
        assert sh("redis-cli -h 127.0.0.1 -r 100 incr count").split()[-1] == "100"
        # more than a buffer, both ways
        sh("head -c 300000 /dev/urandom | base64 -w0 > /tmp/value")
        sh("redis-cli -h 127.0.0.1 -x set value < /tmp/value")
        sh("redis-cli -h 127.0.0.1 get value | head -c -1 | cmp - /tmp/value")
        # that sleeps inside recv(), and is left on TCP; this polls
        before = counters()["redirected_messages"]
        sh("redis-benchmark -h 127.0.0.1 -c 4 -n 200 -t get -q")
    assert change.connections >= 4 + 4
    # of 400, but for those that show how the programs read
    assert counters()["redirected_messages"] - before > 200


def test_postgresql(enabled: None) -> None:
    with service("postgresql"):
        sh("until pg_isready; do sleep 1; done")
        sh("psql -c \"alter role postgres password 'guest'\"", user="postgres")
        psql = "PGPASSWORD=guest psql -h 127.0.0.1 -U postgres -At"
        with counted() as change:
            # so often in one session that its first messages are not all, and that there are many
            # points at which all is read: a direction begins to be redirected at such a one
            rows = sh(psql + 50 * " -c 'select * from generate_series(1, 2000)'")
            assert rows.split() == 50 * [str(number) for number in range(1, 2001)]
            sh(f"{psql} -c 'create table numbers (n int)'")
            sh(f"seq 20000 | {psql} -c 'copy numbers from stdin'")
            assert sh(f"{psql} -c 'select sum(n) from numbers'") == "200010000\n"
    assert change.connections == 4
    assert change.messages > 5


def test_nginx(enabled: None) -> None:
    page = "/var/www/html/page"
    sh(f"head -c 1000000 /dev/urandom > {page}")
    with service("nginx"), counted() as change:
        sh(f"curl -sSf http://127.0.0.1/page | cmp - {page}")
        sh("curl -sSf http://127.0.0.1/page http://127.0.0.1/page -o /dev/null -o /dev/null")
    assert change.connections == 2
    assert change.messages > 5
