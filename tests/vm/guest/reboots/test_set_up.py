"""PostgreSQL and its client for the boots that follow, beside redis of before_reboot."""

from __future__ import annotations

import database


def test_database_is_set_up() -> None:
    database.set_up()
