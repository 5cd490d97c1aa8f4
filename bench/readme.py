"""The figures of the README, each part between two marks, made from a result file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.datapaths import OURS, TCP, TEXTBOOK, UNIX
from bench.report import Entry, amount, coverage, machine, ratio, table

BEGIN = "<!-- figures: written by `make bench`, not by hand -->"
END = "<!-- end of figures -->"
BEGIN_GAINS = "<!-- gains: written by `make bench`, not by hand -->"
END_GAINS = "<!-- end of gains -->"
# Of the README's first screen: what the median ratio to plain TCP is a ratio of.
GAINS = {
    "rr-64-same-core": "round trips of 64 bytes, between two processes on one core",
    "redis-p1-64": "redis GET, 50 clients without pipelining",
    "nginx": "nginx serving a file of 1 KiB over kept connections",
}
# A row is left out if the upper end of its interval is more than so many times the lower one
WIDEST = 1.5
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


def _says_little(entry: Entry) -> bool:
    """Whether the interval of its ratio to plain TCP is too wide for the first table one sees."""
    found = ratio(entry, f"{OURS}/{TCP}")
    return found is not None and found.high > WIDEST * found.low


def figures(results: dict[str, Any]) -> str:
    entries = {entry["name"]: entry for entry in results["workloads"]}
    rows = []
    for name in SHOWN:
        if name not in entries or _says_little(entries[name]):
            continue
        entry = entries[name]
        rates = [amount(entry["datapaths"][path]["rate"]) for path in (TCP, OURS)]
        against = [ratio(entry, f"{OURS}/{path}") for path in (TCP, UNIX, TEXTBOOK)]
        ratios = [f"{found.median:.2f}" if found else "" for found in against[1:]]
        title = f"{entry['title']} ({entry['unit']})"
        rows.append([title, *rates, str(against[0]), *ratios, coverage(entry)])
    times = ["x TCP", "x UNIX socket", "x textbook sockmap"]
    head = ["", "plain TCP", "sockredird", *times, "redirected"]
    return f"{table(head, rows)}\n{machine(results)}.\n"


def gains(results: dict[str, Any]) -> str:
    entries = {entry["name"]: entry for entry in results["workloads"]}
    lines = []
    for name, words in GAINS.items():
        found = ratio(entries[name], f"{OURS}/{TCP}") if name in entries else None
        if found is not None:
            lines.append(f"* **{found.median:.2f} times** plain TCP: {words}")
    about = results["machine"]
    end = f"Measured by `make bench`, commit {about['commit']}, Linux {about['kernel']}."
    return "\n".join([*lines, "", f"{end} [More of it](#what-it-gains)."]) + "\n"


_PARTS: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
    (BEGIN_GAINS, END_GAINS, gains),
    (BEGIN, END, figures),
)


def replace(text: str, results: dict[str, Any]) -> str:
    """Raises ValueError where the marks are missing."""
    for begin, end, part in _PARTS:
        before, mark, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not mark or not closing:
            raise ValueError(f"no figures between {begin!r} and {end!r}")
        text = f"{before}{begin}\n\n{part(results)}\n{end}{after}"
    return text


def update(path: Path, results: dict[str, Any]) -> None:
    path.write_text(replace(path.read_text(), results))
