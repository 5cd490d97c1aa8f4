"""sockredirctl(8) has each counter and each cause, with what happens for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sockredird.datapath.causes import SENTENCES
from sockredird.loader.header import causes
from sockredird.loader.records import PLAIN_COUNTERS
from support.checkout import REPOSITORY

PAGE = (REPOSITORY / "man" / "sockredirctl.8").read_text()
WORDS = {
    "DECLINES": "declined",
    "RETIRES": "retired",
    "PAUSES": "paused",
    "LISTENER": "learned",
    "UNPROFITABLE": "unprofitable",
}


def section(name: str) -> str:
    found = re.search(rf"^\.Sh {name}$(.*?)^\.Sh ", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {name}"
    return found[1]


def described() -> dict[str, set[str]]:
    """The causes in the manual, and what it says happens for each."""
    items = re.findall(r"^\.It Li (\w+) Pq (.+)$", section("CAUSES"), re.MULTILINE)
    return {name: set(words.split(" , ")) for name, words in items}


def wrong(
    known: Mapping[str, Collection[str]],
    sentences: Collection[str],
    manual: Mapping[str, set[str]],
) -> set[str]:
    """Causes that lack a sentence, or are not in the manual as they are in causes.h."""
    return {
        name
        for name in {*known, *sentences, *manual}
        if name not in sentences
        or name not in known
        or manual.get(name) != {WORDS[flag] for flag in known[name]}
    }


def test_causes() -> None:
    assert wrong(causes(), SENTENCES, described()) == set()


def test_the_example_of_a_new_cause_follows_the_last_row() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^-\tCAUSE\((\w+),", text, re.MULTILINE) == [list(causes())[-1].upper()]


def test_what_is_missing_is_found() -> None:
    known, manual = {**causes(), "weather": {"RETIRES"}}, described()
    everywhere = {**manual, "weather": {"retired"}}
    assert wrong(known, {*SENTENCES, "weather"}, everywhere) == set()
    assert wrong(known, SENTENCES, everywhere) == {"weather"}
    assert wrong(known, {*SENTENCES, "weather"}, manual) == {"weather"}
    assert wrong(known, {*SENTENCES, "weather"}, {**manual, "weather": {"learned"}}) == {"weather"}
    assert wrong(causes(), {*SENTENCES, "weather"}, manual) == {"weather"}


def test_counters() -> None:
    named = re.findall(r"\w+", section("COUNTERS"))
    assert {*PLAIN_COUNTERS, "declined_connections", "retired_connections"} <= {*named}
