"""loader/header.py lays structs out, and numbers enumerations, as the programs' compiler does.

The compiler itself is asked: what header.py says is put as assertions behind the program text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockredird.kernel import child
from sockredird.loader import header, records
from sockredird.loader.header import BPF_DIR, HEADERS, record

pytestmark = pytest.mark.compiles

_COMPILE = """
import sys
from sockredird.loader import compiler
from sockredird.loader.btf import KernelTypes

text = compiler.source() + sys.stdin.read()
compiler.source = lambda: text
compiler._compile(compiler._flags(KernelTypes()))
"""
ENUMS = ("addresses", "mode", "side", "event_kind", "request")


def compiles(assertions: list[str]) -> tuple[bool, str]:
    """Whether the programs do with these assertions, and what the compiler said."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", _COMPILE],
        env=child.environment(),
        input="".join(f'_Static_assert({one}, "false");\n' for one in assertions),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process.returncode == 0, process.stderr


def structs() -> list[str]:
    texts = [(BPF_DIR / name).read_text() for name in HEADERS]
    return re.findall(r"^struct (\w+) \{", "\n".join(texts), re.MULTILINE)


def sizes() -> Iterator[str]:
    for name in structs():
        found = record(name)
        yield f"sizeof(struct {name}) == {found.size}"
        yield f"__alignof__(struct {name}) == {found.alignment}"
        for field, at in found.offsets.items():
            yield f"__builtin_offsetof(struct {name}, {field}) == {at}"


def values() -> Iterator[str]:
    for enum in ENUMS:
        yield from (f"{name} == {value}" for value, name in enumerate(header.enumerators(enum)))
    for value, cause in enumerate(records.CAUSES):
        yield f"CAUSE_{cause.upper() or 'NONE'} == {value}"
    yield f"CAUSES == {len(records.CAUSES)}"
    yield "CAUSES <= CAUSE_SLOTS && !(CAUSE_SLOTS & (CAUSE_SLOTS - 1))"
    yield f"EXCLUDED == {records.EXCLUDED}u"


def test_as_the_compiler_does() -> None:
    assertions = [*sizes(), *values()]
    assert len(structs()) > 20
    assert "__builtin_offsetof(struct flow, client_port) == 40" in assertions
    succeeded, said = compiles(assertions)
    assert succeeded, said


WRONG = [
    "sizeof(struct flow) == 44",  # the sum of its members
    "__builtin_offsetof(struct walked, charged) == 20",
    "__alignof__(struct pair) == 8",
    "NATIVE == 1",
    "CAUSE_DISABLE == 1",
    "CAUSES == 1",
]


def test_the_compiler_contradicts() -> None:
    succeeded, said = compiles(WRONG)
    assert not succeeded
    assert [one for one in WRONG if f"_Static_assert({one}" in said] == WRONG
