"""What the documentation names has to be there: files, directories, and the pages it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.checkout import REPOSITORY

# Where a name without its whole path may be
PLACES = [REPOSITORY, REPOSITORY / "sockredird", REPOSITORY / "sockredird" / "bpf"]
BY_HAND = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").glob("*.md"),
    *(REPOSITORY / "docs" / "architecture").glob("*.md"),
    REPOSITORY / "docs" / "benchmarks" / "README.md",
]
GENERATED = {"semantics.md", "kernels.md", "first-day.md"}
PAGES = sorted(page for page in BY_HAND if page.name not in GENERATED)
FILE = re.compile(r"`([\w./-]*\w(?:\.(?:c|h|py)|/))`")
FUNCTION = re.compile(r"`([\w/]+\.(?:c|h|py)): (\w+)\(\)`")
LINK = re.compile(r"\]\(([^)\s]+)\)", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(text: str) -> str:
    """Without indented and fenced blocks, which show commands and their output."""
    return re.sub(r"^(?: {4}|\t).*$|^```[\s\S]*?^```$", "", text, flags=re.MULTILINE)


def find(name: str) -> Path:
    found = [place / name for place in PLACES if (place / name).exists()]
    assert found, f"{name} is not there"
    return found[0]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def missing_link(page: Path, target: str) -> bool:
    if target.startswith(("http://", "https://")):
        return False
    path, _, anchor = target.partition("#")
    to = page.parent / path if path else page
    return not to.exists() or (anchor != "" and anchor not in anchors(to))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files(page: Path) -> None:
    for name in FILE.findall(prose(page.read_text())):
        if not name.startswith("/"):
            find(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions(page: Path) -> None:
    for name, function in FUNCTION.findall(page.read_text()):
        assert re.search(rf"\b{function}\(", find(name).read_text()), f"no {function}() in {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    links = LINK.findall(page.read_text())
    assert not [target for target in links if missing_link(page, target)]


def test_names_and_links_are_found() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert {"bpf/causes.h", "sockredird/datapath/"} <= {*FILE.findall(prose(text))}
    assert "architecture/invariants.md" in LINK.findall(text)
    assert FILE.findall(prose("    cp `a/`\n```\n`b/`\n```\n`c/` and `d.py`\n")) == ["c/", "d.py"]


def test_a_missing_page_or_heading_is_found() -> None:
    page = REPOSITORY / "README.md"
    assert missing_link(page, "docs/gone.md")
    assert missing_link(page, "docs/architecture.md#gone")
    assert not missing_link(page, "docs/architecture.md#life-of-a-connection-in-eight-steps")


def test_every_package_and_directory_of_the_c_is_in_the_architecture() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    source = REPOSITORY / "sockredird"
    packages = [p.parent.name for p in source.glob("*/__init__.py")]
    assert not [name for name in packages if f"`sockredird/{name}/`" not in text]
    parts = [p.name for p in (source / "bpf").iterdir() if p.is_dir() and any(p.glob("*.[ch]"))]
    assert not [name for name in parts if f"`{name}/`" not in text]
