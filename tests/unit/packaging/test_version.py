"""sockredird/__init__.py has the version; what else names one is compared with it.

pyproject.toml takes it from there, and the Makefile takes the package's from the changelog.
"""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from sockredird import __version__
from support.checkout import REPOSITORY

MAN_PAGES = sorted((REPOSITORY / "man").glob("*.[58]"))
DATE = re.compile(r"^\.Dd (\w+ \d+, \d{4})$", re.MULTILINE)


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"nothing matches {pattern}"
    return found[1]


def test_it_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_debian_changelog() -> None:
    """The newest entry comes first; behind the dash is the revision of the packaging."""
    changelog = (REPOSITORY / "packaging" / "debian" / "changelog").read_text()
    assert first(r"\Asockredird \(([^)]+)-\d+\) ", changelog) == __version__


def test_news() -> None:
    """The newest release comes first; what is not released yet may stand above it."""
    news = (REPOSITORY / "NEWS.md").read_text()
    assert first(r"^## (\d[\d.]*)", news) == __version__


@pytest.mark.parametrize("page", MAN_PAGES, ids=lambda page: page.name)
def test_man_pages(page: Path) -> None:
    text = page.read_text()
    assert first(r"^\.Os sockredird (\S+)$", text) == __version__
    assert datetime.strptime(first(DATE.pattern, text), "%B %d, %Y")


def test_there_are_man_pages() -> None:
    assert len(MAN_PAGES) >= 4


def test_pyproject_has_no_version_of_its_own() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"] == {"attr": "sockredird.__version__"}
