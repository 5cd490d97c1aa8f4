"""Every cause of bpf/causes.h has a sentence in datapath/causes.py, and no other name has one."""

from __future__ import annotations

import pytest

from sockredird.datapath.causes import SENTENCES, sentence
from sockredird.loader.records import CAUSES, LEARNED_FOR_GOOD

NAMES = [name for name in CAUSES if name]


def test_each_cause_has_a_sentence() -> None:
    assert len(NAMES) > 20
    assert set(SENTENCES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_more_than_the_name(name: str) -> None:
    words = sentence(name).split()
    assert len(words) >= 3
    assert words[0] != name


def test_who_did_it() -> None:
    """Where a program did it, the sentence begins with whoever that was."""
    assert all(sentence(name, who="redis").startswith("redis ") for name in LEARNED_FOR_GOOD)
    assert sentence("map_full", who="redis") == SENTENCES["map_full"]
