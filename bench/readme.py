"""The figures of the README: a table between two marks, made from a result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.datapaths import OURS, TCP, TEXTBOOK, UNIX
from bench.report import amount, machine, ratio, table

BEGIN = "<!-- figures: written by `make bench`, not by hand -->"
END = "<!-- end of figures -->"
SHOWN = (
    "rr-64-same-core",
    "rr-8192-same-core",
    "rr-64-two-cores",
    "redis-p1-64",
    "redis-p16-64",
    "redis-p1-4096",
    "pgbench-select",
    "memcached-64",
    "nginx",
    "proxy",
    "stream-65536-up",
    "crr",
)


def figures(results: dict[str, Any]) -> str:
    entries = {entry["name"]: entry for entry in results["workloads"]}
    rows = []
    for name in SHOWN:
        if name not in entries:
            continue
        entry = entries[name]
        rates = [amount(entry["datapaths"][path]["rate"]) for path in (TCP, OURS)]
        against = [ratio(entry, f"{OURS}/{path}") for path in (TCP, UNIX, TEXTBOOK)]
        ratios = [f"{found.median:.2f}" if found else "" for found in against[1:]]
        rows.append([f"{entry['title']} ({entry['unit']})", *rates, str(against[0]), *ratios])
    head = ["", "plain TCP", "sockredird", "x TCP", "x UNIX socket", "x textbook sockmap"]
    return f"{table(head, rows)}\n{machine(results)}.\n"


def replace(text: str, results: dict[str, Any]) -> str:
    """Raises ValueError where the marks are missing."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"no figures between {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{figures(results)}\n{END}{after}"


def update(path: Path, results: dict[str, Any]) -> None:
    path.write_text(replace(path.read_text(), results))
