"""Rules of nft that inspect packets on lo are distinguished from others."""

from __future__ import annotations

import pytest

from sockredird.check import host_facts


@pytest.mark.parametrize(
    ("rule", "inside"),
    [
        ('iifname "lo" @th,160,32 0x47455420 drop', True),
        ('iifname "eth0" @th,160,32 0x47455420 drop', False),
        ('oifname != "lo" quota over 1 mbytes drop', False),
        ("tcp dport 80 queue to 3", True),
        ("ct original bytes > 1000 drop", True),
        ("tcp dport 80 counter packets 4 bytes 3 accept", False),
        ('iif "lo" accept', False),
    ],
)
def test_rules_of_nft(rule: str, inside: bool) -> None:
    assert host_facts.looks_inside(rule) is inside
