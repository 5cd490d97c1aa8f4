"""Tables, plots and the README's figures, from a committed result file."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from bench import readme, report
from support.checkout import REPOSITORY

COMMITTED = REPOSITORY / "docs" / "benchmarks" / "results.json"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(COMMITTED.read_text())
    return loaded


def test_the_readme_has_the_figures_of_the_committed_results(results: dict[str, Any]) -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert text == readme.replace(text, results)


def test_the_committed_table_is_that_of_the_committed_results(results: dict[str, Any]) -> None:
    assert (COMMITTED.parent / "results.md").read_text() == report.markdown(results)


def test_every_workload_is_in_the_table(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    assert not [w["title"] for w in results["workloads"] if w["title"] not in text]


def test_a_missed_target_is_marked(results: dict[str, Any]) -> None:
    workload = results["workloads"][0]
    missed = {**workload, "targets": {"sockredird/tcp": 99.0}}
    text = report.markdown({**results, "workloads": [missed]})
    assert "(wanted 99)" in text
    met = {**workload, "targets": {"sockredird/tcp": 0.01}}
    assert "wanted 0.01" not in report.markdown({**results, "workloads": [met]})


def test_the_same_results_are_compact_and_the_same() -> None:
    value = {"a": [{"b": 1, "c": {"d": [1, 2], "e": "x"}}], "f": {"g": 1.5}}
    text = report.compact(json.dumps(value, indent=1))
    assert json.loads(text) == value
    assert re.search(r'"f": \{ "g": 1.5 \}', text)


AMOUNTS = {0.5: "0.50", 7.125: "7.12", 42.0: "42.0", 999.0: "999", 131072: "131 k", 2.5e6: "2.50 M"}


@pytest.mark.parametrize(("value", "text"), AMOUNTS.items())
def test_amounts_have_three_digits(value: float, text: str) -> None:
    assert report.amount(value) == text


def test_only_what_is_between_the_marks_is_replaced(results: dict[str, Any]) -> None:
    text = (
        f"before\n{readme.BEGIN_GAINS}\nold\n{readme.END_GAINS}\n"
        f"between\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    )
    replaced = readme.replace(text, results)
    assert replaced.startswith(f"before\n{readme.BEGIN_GAINS}\n")
    assert f"{readme.END_GAINS}\nbetween\n{readme.BEGIN}\n" in replaced
    assert replaced.endswith(f"{readme.END}\nafter\n")
    assert "old" not in replaced
    assert all(words in replaced for words in readme.GAINS.values())
    assert readme.replace(replaced, results) == replaced


def test_the_readme_leaves_out_what_says_little(results: dict[str, Any]) -> None:
    shown = {name for name in readme.SHOWN if _title(results, name) in readme.figures(results)}
    wide = copy.deepcopy(results)
    for entry in wide["workloads"]:
        if entry["name"] == "rr-64-same-core":
            found = entry["ratios"]["sockredird/tcp"]
            found["high"] = found["low"] * 1.6
    left = {name for name in readme.SHOWN if _title(wide, name) in readme.figures(wide)}
    assert shown - left == {"rr-64-same-core"}


def _title(results: dict[str, Any], name: str) -> str:
    (title,) = (e["title"] for e in results["workloads"] if e["name"] == name)
    return f"| {title} ("


@pytest.mark.parametrize(
    "missing", [readme.BEGIN_GAINS, readme.END_GAINS, readme.BEGIN, readme.END]
)
def test_a_readme_without_marks_is_refused(results: dict[str, Any], missing: str) -> None:
    text = f"{readme.BEGIN_GAINS}\n{readme.END_GAINS}\n{readme.BEGIN}\n{readme.END}\n"
    readme.replace(text, results)
    with pytest.raises(ValueError, match="no figures"):
        readme.replace(text.replace(missing, ""), results)
