"""What is remembered stays remembered when it cannot be read, and counters stay counters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sockredird.config import Scope
from sockredird.control.state import Intent
from sockredird.control.totals import Totals
from sockredird.errors import LoadFailed

from ..kernel.test_files import no_descriptors


def test_out_of_descriptors_is_not_disabled(tmp_path: Path) -> None:
    path = tmp_path / "enabled.json"
    intent = Intent(path)
    intent.remember({"only_ports": [7]})
    with no_descriptors():
        with pytest.raises(LoadFailed, match="nothing was changed"):
            intent.remembered()
        with pytest.raises(LoadFailed):
            intent.usable(Scope())
    assert intent.remembered() == {"only_ports": [7]}
    # and to disable does not need to read it
    with no_descriptors():
        intent.remember(None)
    assert intent.remembered() is None
    assert not path.exists()


WRONG = [-1, 1 << 63, 1 << 64, 10**30, True, 1.5, "7", None, [], {}]


@pytest.mark.parametrize("wrong", WRONG, ids=map(str, WRONG))
def test_what_cannot_be_a_counter(tmp_path: Path, wrong: object) -> None:
    path = tmp_path / "counters.json"
    path.write_text(
        json.dumps({"redirected_bytes": wrong, "redirected_messages": 7, "generation": wrong})
    )
    totals = Totals(path)
    totals.load()
    stats = totals.stats([])
    assert (stats["redirected_bytes"], stats["redirected_messages"]) == (0, 7)
    assert all(0 <= value < 1 << 64 for value in stats.values())
