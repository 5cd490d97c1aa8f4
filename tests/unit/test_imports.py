"""Imports go down only: from each package to those below it in the table."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.checkout import REPOSITORY

# From the top down. What is not in a package here (errors, config, the version) is for everybody;
# the command line is for nobody.
ORDER = ("service", "bus", "control", "check", "observe", "datapath", "loader", "kernel")
# The client's table of metrics serves the scrape endpoint, too.
EXCEPTIONS = {("service/endpoint.py", "sockredirctl")}


def imported(text: str) -> Iterator[str]:
    """The modules that a source file imports, wherever in it, as dotted names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def upward(module: str, names: Iterator[str]) -> list[str]:
    """Those of `names` that a module, by its path below sockredird/, may not import."""
    package = module.partition("/")[0]
    found = []
    for name in names:
        top, _, rest = name.partition(".")
        below = rest.partition(".")[0]
        if top == "sockredirctl" and (module, top) not in EXCEPTIONS:
            found.append(name)
        if top != "sockredird" or module == "__main__.py":
            continue
        if below in ORDER and package in ORDER and ORDER.index(below) < ORDER.index(package):
            found.append(name)
        if below == "__main__" or (below in ORDER[:-1] and package not in ORDER):
            found.append(name)
    return found


def test_imports_go_down() -> None:
    root = REPOSITORY / "sockredird"
    wrong = {}
    for path in root.rglob("*.py"):
        module = path.relative_to(root).as_posix()
        assert module.partition("/")[0] in {*ORDER, "__init__.py", "__main__.py"} | {
            "errors.py",
            "config.py",
        }, f"{module} is in no package"
        if names := upward(module, imported(path.read_text())):
            wrong[module] = names
    assert not wrong


def test_an_upward_import_is_found() -> None:
    text = "def f():\n    from sockredird.bus.calls import ask_bus\n"
    assert upward("kernel/netlink.py", imported(text)) == ["sockredird.bus.calls.ask_bus"]
    assert not upward("service/daemon.py", imported(text))


def test_each_package_says_what_it_owns() -> None:
    for package in ORDER:
        tree = ast.parse((REPOSITORY / "sockredird" / package / "__init__.py").read_text())
        assert ast.get_docstring(tree), f"{package} has no docstring"
