"""python3 -m bench: see --help, and docs/benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbus_next import DBusError

from bench import blocks, daemon, loads, machine, profile, readme, report
from bench.host import Host
from bench.loads import Loads
from bench.programs import Programs
from bench.spread import FEWEST_ROUNDS, Spread, simultaneous, spread
from bench.workload import Workload, measure, ratio_names, ratios

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kind:
    """`duration` in ms is that of one measurement; SHORT counts connections instead."""

    option: str
    title: str
    duration: int


FULL = Kind("", "A full run", 60)
QUICK = Kind("--quick", "A quick run", 40)
SUSTAINED = Kind("--sustained", "A run of streams of 30 s", 30_000)
SHORT = Kind("--short", "A run of short connections", 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in (
        (QUICK, "a minute instead of twenty"),
        (SUSTAINED, "streams of 30 s instead"),
        (SHORT, "a connection per request instead, in blocks"),
    ):
        kinds.add_argument(kind.option, dest="kind", action="store_const", const=kind, help=text)
    parser.set_defaults(kind=FULL)
    parser.add_argument(
        "--null",
        action="store_true",
        help="no acceleration anywhere; exits 1 if an interval then misses 1.0",
    )
    parser.add_argument(
        "--only",
        metavar="WORD",
        nargs="+",
        help="workloads of these names, or with one of these in their name",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIRECTORY",
        help="another checkout: compares its sockredird with this one's, and both with plain TCP",
    )
    parser.add_argument("--rounds", type=int, help="of each workload")
    parser.add_argument("--output", type=Path, help="directory for the results")
    parser.add_argument("--readme", type=Path, help="file whose figures are to be replaced")
    arguments = parser.parse_args()
    if arguments.base is not None:
        arguments.base = arguments.base.resolve(strict=True)
    if arguments.rounds is not None and arguments.rounds < FEWEST_ROUNDS:
        parser.error(f"fewer than {FEWEST_ROUNDS} rounds have no interval")
    return arguments


def _wanted(workloads: list[Workload], arguments: argparse.Namespace) -> list[Workload]:
    if arguments.only:
        names = {w.name for w in workloads}
        return [
            w
            for w in workloads
            if any(
                w.name == word or (word not in names and word in w.name) for word in arguments.only
            )
        ]
    return [w for w in workloads if w.quick] if arguments.kind is QUICK else workloads


def _rounds(workload: Workload, arguments: argparse.Namespace) -> int:
    """Twice as many beside another checkout, as a difference of 2 % matters there."""
    if arguments.kind is QUICK:
        return FEWEST_ROUNDS
    more = 2 if arguments.base and workload.rounds > FEWEST_ROUNDS else 1
    return more * workload.rounds


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    kind = arguments.kind
    results: dict[str, Any] = {"machine": machine.describe(arguments.base), "kind": kind.title}
    with ExitStack() as stack:
        host = Host(stack, null=arguments.null, base=arguments.base)
        programs = REPOSITORY / "build" / "bench" / "load"
        loads.build(programs)
        load = Loads(host, programs, kind.duration)
        if kind is SUSTAINED:
            workloads = load.sustained()
        elif kind is SHORT:
            workloads = blocks.workloads(host, programs)
        else:
            workloads = [*load.workloads(), *Programs(host, load).workloads()]
        results["workloads"], results["failed"] = [], []
        for workload in _wanted(workloads, arguments):
            rounds = arguments.rounds or _rounds(workload, arguments)
            try:
                entry = measure(workload, host, rounds)
            except (RuntimeError, OSError, subprocess.SubprocessError, DBusError) as error:
                print(f"bench: {workload.name} failed: {error}", file=sys.stderr, flush=True)
                results["failed"].append(workload.name)
                continue
            results["workloads"].append(entry)
            if kind is SHORT and not arguments.null:
                del entry["rounds"]  # a thousand
            print(report.line(entry), flush=True)
        whole = kind in (FULL, QUICK) and not (arguments.null or arguments.only)
        if whole:
            results["profile"] = profile.measure(host, load)
        if whole and not arguments.base:
            results["daemon"] = daemon.measure(host, load, quick=kind is QUICK)
    results["seconds"] = round(time.monotonic() - started)
    return results


def judge_null(results: dict[str, Any]) -> int:
    """With nothing accelerated, each ratio's interval has to contain 1.0."""
    family = sum(len(ratio_names(list(w["datapaths"]))) for w in results["workloads"])
    confidence = simultaneous(family)
    wrong = 0
    for workload in results["workloads"]:
        for name in workload["ratios"]:
            found: Spread = spread(ratios(workload["rounds"], name), confidence)
            if not found.contains(1.0):
                print(f"{workload['name']}: {name} is {found}, and both are plain TCP")
                wrong += 1
    print(f"{family} ratios of plain TCP to plain TCP, {wrong} without 1.0 in their interval")
    return 1 if wrong else 0


def main() -> int:
    arguments = _arguments()
    if os.geteuid() != 0:
        sys.exit("bench: needs root (BPF programs are loaded): sudo make bench")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))
    results = _run(arguments)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1)
        (arguments.output / "results.json").write_text(report.compact(text) + "\n")
        (arguments.output / "results.md").write_text(report.markdown(results))
        from bench import plots  # matplotlib takes a second to import

        plots.draw(results, arguments.output)
    if arguments.readme is not None:
        readme.update(arguments.readme, results)
    if results["failed"]:
        sys.exit(f"bench: failed: {', '.join(results['failed'])}")
    return judge_null(results) if arguments.null else 0


if __name__ == "__main__":
    sys.exit(main())
