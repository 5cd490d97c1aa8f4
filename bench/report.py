"""Results as text: a line while they come in, and the Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bench.datapaths import AGAIN, OURS, TCP, TEXTBOOK, UNIX
from bench.spread import Spread

Entry = dict[str, Any]
AGAINST = (TCP, UNIX, TEXTBOOK)
_HEADS = {TCP: "plain TCP", UNIX: "UNIX socket", TEXTBOOK: "textbook sockmap"}


def ratio(entry: Entry, name: str) -> Spread | None:
    found = entry["ratios"].get(name)
    return Spread(**found) if found else None


def coverage(entry: Entry) -> str:
    """The share of the messages that is redirected, in per cent."""
    found = entry.get("coverage")
    return "" if found is None else f"{100 * found:.3g} %"


def _digits(entry: Entry) -> str:
    """Plain TCP's ratio to itself is measured where thousandths matter."""
    return ".3f" if AGAIN in entry["datapaths"] else ""


def line(entry: Entry) -> str:
    digits = _digits(entry)
    ratios = ", ".join(f"{name} {ratio(entry, name):{digits}}" for name in entry["ratios"])
    return f"{entry['name']:<20} {ratios}"


def amount(value: float) -> str:
    """Three digits that say something, e.g. '131 k'."""
    for unit in ("", " k", " M"):
        if value < 1000:
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}{unit}"
        value /= 1000
    return f"{value:.1f} G"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown; a column that is empty in each row is left out."""
    lines = [list(head), *map(list, rows)]
    kept = [at for at in range(len(lines[0])) if not at or any(cells[at] for cells in lines[1:])]
    heads, *lines = ([cells[at] for at in kept] for cells in lines)
    lines = [heads, ["---", *("--:" for _ in heads[1:])], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def machine(results: Entry) -> str:
    about = results["machine"]
    return (
        f"{about['date']}, commit {about['commit']}, Linux {about['kernel']}, "
        f"{about['distribution']}, {about['cpus']} CPUs of {about['cpu']} "
        f"(virtualization: {about['virtual']}), {about['memory_mib'] / 1024:.0f} GiB"
        + (f"; the base is commit {about['base']}" if "base" in about else "")
    )


def _groups(results: Entry) -> list[str]:
    return list(dict.fromkeys(entry["group"] for entry in results["workloads"]))


def _verdict(entry: Entry, name: str) -> str:
    """A mark where the target is missed: by the median, or for certain."""
    target = entry["targets"].get(name)
    found = ratio(entry, name)
    if target is None or found is None or found.median >= target:
        return ""
    return f" (wanted {target:g})"


def _ratios(results: Entry, group: str) -> str:
    entries = [entry for entry in results["workloads"] if entry["group"] == group]
    datapaths = entries[0]["datapaths"]
    if OURS not in datapaths or set(datapaths) - {OURS, *AGAINST}:
        return _edges(entries)
    times = [f"x {_HEADS[name]}" for name in AGAINST]
    head = ["", "plain TCP", "sockredird", *times, "redirected"]
    rows = []
    for entry in entries:
        cells = [f"{entry['title']} ({entry['unit']})"]
        cells += [amount(entry["datapaths"][name]["rate"]) for name in (TCP, OURS)]
        for name in AGAINST:
            found = ratio(entry, f"{OURS}/{name}")
            missed = _verdict(entry, f"{OURS}/{name}")
            cells.append(f"{found}{missed}" if found else "")
        rows.append([*cells, coverage(entry)])
    return table(head, rows)


def _edges(entries: list[Entry]) -> str:
    """Of datapaths that are not to differ from another."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["ratios"]))
    rows = []
    for entry in entries:
        cells = [f"{entry['title']} ({entry['unit']})"]
        cells.append(amount(entry["datapaths"][TCP]["rate"]))
        for name in names:
            found = ratio(entry, name)
            shown = f"{found:{_digits(entry)}}{_verdict(entry, name)}" if found else ""
            cells.append(shown)
        rows.append(cells)
    heads = [name.replace("/", " / ").replace(TCP, "plain TCP") for name in names]
    return table(["", "plain TCP", *heads], rows)


def _cpu(results: Entry) -> str:
    rows = []
    for entry in results["workloads"]:
        cells = [entry["title"], entry["operation"]]
        for name in (TCP, OURS, TEXTBOOK, UNIX):
            figures = entry["datapaths"].get(name)
            cells.append(
                f"{figures['client_cpu_us']:.2f} + {figures['server_cpu_us']:.2f}"
                if figures
                else ""
            )
        rows.append(cells)
    return table(["", "per", TCP, OURS, TEXTBOOK, UNIX], rows)


def _latency(results: Entry) -> str:
    rows = []
    for entry in results["workloads"]:
        if "p50_us" not in entry["datapaths"][TCP]:
            continue
        cells = [entry["title"]]
        for name in (TCP, OURS, TEXTBOOK, UNIX):
            figures = entry["datapaths"].get(name)
            keys = ("p50_us", "p99_us", "p99.9_us")
            cells.append(" / ".join(f"{figures[key]:.1f}" for key in keys) if figures else "")
        rows.append(cells)
    return table(["", TCP, OURS, TEXTBOOK, UNIX], rows) if rows else ""


def _profile(profile: Entry) -> str:
    rows = [
        [
            name,
            f"{figures['message_ns']:.0f}",
            f"{figures['connection_ns']:.0f}",
            f"{figures['callbacks']:.0f}",
            *(str(figures.get(f"{kind}_instructions", "")) for kind in ("message", "connection")),
        ]
        for name, figures in profile.items()
    ]
    times = ["ns per message (sk_msg)", "ns per connection (sock_ops)", "callbacks"]
    head = ["", *times, "instructions (sk_msg)", "instructions (sock_ops)"]
    return table(head, rows)


def _daemon(figures: Entry) -> str:
    rows = [
        [entry["title"], f"{Spread(**entry['figure'])} {entry['unit']}", f"<= {entry['target']:g}"]
        for entry in figures.values()
    ]
    return table(["", "median (of the runs, 99 %)", "wanted"], rows)


def markdown(results: Entry) -> str:
    parts = ["# Benchmark results\n", f"{machine(results)}.\n"]
    parts.append(
        f"{results['kind']}, in {results['seconds']} s. Each "
        "ratio is the median of the ratios of its rounds, with the interval that has the median "
        "in it with 99 % confidence; above 1 is faster. README.md says how it is measured.\n"
    )
    for group in _groups(results):
        parts += [f"## {group}\n", _ratios(results, group)]
    parts += ["## CPU time\n", "Microseconds per operation, client + server.\n", _cpu(results)]
    if latency := _latency(results):
        text = "Microseconds: median / 99 % / 99.9 % of the requests.\n"
        parts += ["## Latency\n", text, latency]
    if "profile" in results:
        text = "By the kernel's own count, which adds about 50 ns to each run.\n"
        parts += ["## The programs\n", text, _profile(results["profile"])]
    if "daemon" in results:
        parts += ["## The daemon\n", _daemon(results["daemon"])]
    versions = ", ".join(f"{name} {v}" for name, v in results["machine"]["versions"].items())
    parts.append(f"Programs: {versions}.\n")
    return "\n".join(parts)


def compact(text: str) -> str:
    """json.dumps() with its innermost objects on one line: a round is a line."""
    return re.sub(r"\{[^{}\[\]]*\}", lambda found: re.sub(r"\s*\n\s*", " ", found[0]).strip(), text)
