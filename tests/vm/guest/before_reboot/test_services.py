"""Services for the next boot: two that start before acceleration is restored, and two after it."""

from __future__ import annotations

import services


def test_services_are_set_up() -> None:
    services.set_up()
