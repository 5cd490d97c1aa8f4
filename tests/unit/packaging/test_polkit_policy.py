"""The action that the daemon asks about is the one that is installed."""

from __future__ import annotations

from xml.etree import ElementTree

from sockredird.bus.authority import ACTION
from support.checkout import REPOSITORY

POLICY = REPOSITORY / "polkit" / "org.sockredir.policy"


def test_action() -> None:
    actions = ElementTree.parse(POLICY).getroot().findall("action")
    assert [action.get("id") for action in actions] == [ACTION]
    for action in actions:
        defaults = {str(element.tag): element.text for element in action.iterfind("defaults/*")}
        assert defaults.keys() == {"allow_any", "allow_inactive", "allow_active"}
        # whoever sits at the machine is not therefore its administrator
        assert {str(value).removesuffix("_keep") for value in defaults.values()} == {"auth_admin"}
