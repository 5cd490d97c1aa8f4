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
from pathlib import Path
from typing import Any

from bench import daemon, loads, machine, profile, readme, report
from bench.datapaths import Host
from bench.loads import Loads
from bench.programs import Programs
from bench.spread import FEWEST_ROUNDS, Spread, simultaneous, spread
from bench.workload import Workload, measure, ratio_names, ratios

REPOSITORY = Path(__file__).parents[1]
FULL, QUICK, SUSTAINED = "A full run", "A quick run", "A run of streams of 30 s"
DURATION_MS = {FULL: 60, QUICK: 40, SUSTAINED: 30_000}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute instead of ten")
    parser.add_argument("--sustained", action="store_true", help="streams of 30 s instead")
    parser.add_argument(
        "--null",
        action="store_true",
        help="no acceleration anywhere; exits 1 if an interval then misses 1.0",
    )
    parser.add_argument("--only", metavar="WORD", help="workloads with this in their name")
    parser.add_argument("--rounds", type=int, help="of each workload")
    parser.add_argument("--output", type=Path, help="directory for the results")
    parser.add_argument("--readme", type=Path, help="file whose figures are to be replaced")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < FEWEST_ROUNDS:
        parser.error(f"fewer than {FEWEST_ROUNDS} rounds have no interval")
    return arguments


def _wanted(workloads: list[Workload], arguments: argparse.Namespace) -> list[Workload]:
    if arguments.only:
        return [w for w in workloads if arguments.only in w.name]
    return [w for w in workloads if w.quick] if arguments.quick else workloads


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    kind = SUSTAINED if arguments.sustained else QUICK if arguments.quick else FULL
    results: dict[str, Any] = {"machine": machine.describe(), "kind": kind}
    with ExitStack() as stack:
        host = Host(stack, null=arguments.null)
        programs = REPOSITORY / "build" / "bench" / "load"
        loads.build(programs)
        load = Loads(host, programs, DURATION_MS[kind])
        if arguments.sustained:
            workloads = load.sustained()
        else:
            workloads = [*load.workloads(), *Programs(host, load).workloads()]
        results["workloads"], results["failed"] = [], []
        for workload in _wanted(workloads, arguments):
            rounds = arguments.rounds or (FEWEST_ROUNDS if arguments.quick else workload.rounds)
            try:
                entry = measure(workload, host, rounds)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"bench: {workload.name} failed: {error}", file=sys.stderr, flush=True)
                results["failed"].append(workload.name)
                continue
            results["workloads"].append(entry)
            print(report.line(entry), flush=True)
        if not (arguments.null or arguments.only or arguments.sustained):
            results["profile"] = profile.measure(host, load)
            results["daemon"] = daemon.measure(host, load, quick=arguments.quick)
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
