"""Results as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.datapaths import OURS, TCP, TEXTBOOK, UNIX
from bench.loads import RR, STREAMS, kib
from bench.report import ratio

COLOURS = {TCP: "#777777", OURS: "#0b6e4f", TEXTBOOK: "#c1666b", UNIX: "#4281a4"}
Entry = dict[str, Any]


def draw(results: Entry, directory: Path) -> None:
    """ratios.svg of everything; latency.svg and streams.svg by size, where sizes were measured."""
    # the same results give the same file, and text stays text
    matplotlib.rcParams.update(
        {"svg.hashsalt": "sockredird", "svg.fonttype": "none", "font.size": 9}
    )
    _ratios(results["workloads"], directory / "ratios.svg")
    _by_size(
        [e for e in _in_group(results, RR) if e["name"].endswith("-same-core")],
        "p50_us",
        "round trip on one core, median, µs",
        directory / "latency.svg",
    )
    _by_size(
        [e for e in _in_group(results, STREAMS) if e["name"].endswith("-up")],
        "rate",
        "stream, MB/s",
        directory / "streams.svg",
    )


def _in_group(results: Entry, group: str) -> list[Entry]:
    return [entry for entry in results["workloads"] if entry["group"] == group]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _ratios(workloads: list[Entry], path: Path) -> None:
    """A line per workload: how many times as fast as plain TCP, with the interval."""
    entries = [entry for entry in workloads if OURS in entry["datapaths"]][::-1]
    if not entries:
        return
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.24 * len(entries)))
    for offset, name in ((-0.2, TEXTBOOK), (0, UNIX), (0.2, OURS)):
        for row, entry in enumerate(entries):
            found = ratio(entry, f"{name}/{TCP}")
            if found is not None:
                at = row + offset
                axes.plot([found.low, found.high], [at, at], color=COLOURS[name], linewidth=1)
                axes.plot(found.median, at, "o", color=COLOURS[name], markersize=3.5)
        axes.plot([], [], "o-", color=COLOURS[name], markersize=3.5, label=name)
    axes.axvline(1, color=COLOURS[TCP], linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = [0.25, 0.5, 0.71, 1, 1.41, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries])
    axes.set_ylim(-0.7, len(entries) - 0.3)
    axes.set_xlabel("times plain TCP (log), median and its 99 % interval")
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def _by_size(entries: list[Entry], key: str, label: str, path: Path) -> None:
    sizes = [int(entry["name"].split("-")[1]) for entry in entries]
    if len(sizes) < 2:
        return
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for name in filter(entries[0]["datapaths"].__contains__, COLOURS):
        values = [entry["datapaths"][name][key] for entry in entries]
        axes.plot(sizes, values, "o-", color=COLOURS[name], markersize=4, label=name)
    _size_axis(axes, sizes)
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(linewidth=0.3)
    axes.legend()
    _save(figure, path)


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [kib(size) for size in sizes])
    axes.set_xlabel("bytes per message")
