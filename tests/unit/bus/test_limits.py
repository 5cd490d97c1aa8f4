"""Calls under way and refusals are counted by sender, and together."""

from __future__ import annotations

import logging

import pytest

from sockredird.bus import limits


def test_a_sender_has_so_many_calls_under_way() -> None:
    calls = limits.Calls()
    for serial in range(limits.CALLS_PER_SENDER):
        assert calls.begin(":1.1", serial, answer_wanted=True) == ""
    assert "32 calls" in calls.begin(":1.1", 99, answer_wanted=True)
    assert calls.begin(":1.2", 99, answer_wanted=True) == ""
    assert calls.end(":1.1", 0)
    assert calls.begin(":1.1", 99, answer_wanted=True) == ""


def test_many_senders_leave_one_call_to_each() -> None:
    calls = limits.Calls()
    for number in range(limits.CALLS_IN_ALL):
        assert calls.begin(f":2.{number % 256}", number, answer_wanted=True) == ""
    assert "one at a time" in calls.begin(":2.1", 1000, answer_wanted=True)
    assert calls.begin(":1.1", 1, answer_wanted=True) == ""
    assert "one at a time" in calls.begin(":1.1", 2, answer_wanted=True)


def test_a_serial_that_is_under_way() -> None:
    """The refusal of the second does not end the first."""
    calls = limits.Calls()
    assert calls.begin(":1.1", 1, answer_wanted=True) == ""
    assert "serial 1" in calls.begin(":1.1", 1, answer_wanted=True)
    assert len(calls) == 1


def test_an_answer_that_nobody_wants() -> None:
    calls = limits.Calls()
    calls.begin(":1.1", 1, answer_wanted=False)
    assert "serial 1" in calls.begin(":1.1", 1, answer_wanted=True)
    assert not calls.end(":1.1", 1)
    assert len(calls) == 0
    assert calls.end(":1.1", 1)


def test_refusals_are_logged_once_per_sender_and_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    refusals = limits.Refusals(lambda: now)
    for _ in range(1000):
        refusals.note(":1.1", "Enable: not allowed")
    for sender in range(1000):
        refusals.note(f":2.{sender}", "Enable: not allowed")
    assert len(caplog.records) == limits.REFUSALS_LOGGED
    assert caplog.records[0].getMessage() == ":1.1: Enable: not allowed"
    now = 60.0
    refusals.note(":1.1", "Enable: not allowed")
    said = [record.getMessage() for record in caplog.records[limits.REFUSALS_LOGGED :]]
    more = "1980 more calls were answered with errors meanwhile"
    assert said == [more, ":1.1: Enable: not allowed"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
