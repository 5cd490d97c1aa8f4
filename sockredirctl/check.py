"""`sockredirctl check`: how the running kernel behaves, and what on this host to know before."""

from __future__ import annotations

import argparse
import json
import sys

from sockredirctl import render
from sockredirctl.client import Client
from sockredirctl.errors import ClientError

Finding = dict[str, str]
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red"}


async def run(client: Client, arguments: argparse.Namespace) -> None:
    """Raises ClientError if a check fails, once all are shown."""
    findings: list[Finding] = await client.call("Check")
    if arguments.json:
        print(json.dumps(findings))
    elif sys.stdout.isatty():
        _show(render.printable(findings))
    else:
        print(text(render.printable(findings)))
    failed = [finding["name"] for finding in findings if finding["status"] == "fail"]
    if failed:
        sys.stdout.flush()
        raise ClientError(f"not fit for acceleration: {', '.join(failed)}")


def text(findings: list[Finding]) -> str:
    """A line for each, to be searched."""
    width = max(len(finding["name"]) for finding in findings)
    return "\n".join(f"{f['status']}  {f['name']:<{width}}  {f['detail']}" for f in findings)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console  # takes a while to import
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in findings:
        status = finding["status"]
        # as text: what others called their programs is no markup
        table.add_row(Text(status, _COLOURS[status]), finding["name"], Text(finding["detail"]))
    Console(highlight=False).print(table)
