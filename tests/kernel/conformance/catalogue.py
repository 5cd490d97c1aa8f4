"""Behaviours of a TCP socket, by area; each a function that notes down what a program sees."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel.conformance.scene import Scene

# What the connection went through before the behaviour is looked at
FRESH = "fresh"  # established, nothing sent yet
USED = "used"  # both directions have carried data; accelerated: both redirect
LEFT = "left"  # has carried messages; accelerated: retired, TCP again
JOINED = "joined"  # has left, and was joined again; accelerated: both directions redirect
STATES = (FRESH, USED, LEFT, JOINED)
SIDES = ("client", "server")  # which end is Scene.near


@dataclass(frozen=True)
class Variant:
    state: str
    side: str

    def __str__(self) -> str:
        return f"{self.state} {self.side}"


VARIANTS = tuple(Variant(*pair) for pair in itertools.product(STATES, SIDES))
ALONE = Variant(FRESH, "client")


@dataclass(frozen=True)
class Behaviour:
    function: Callable[[Scene], None]
    area: str
    title: str
    variants: tuple[Variant, ...]
    pair: bool
    redirects: bool
    guarded: bool
    accelerated: int

    @property
    def name(self) -> str:
        return self.function.__name__


BEHAVIOURS: dict[str, Behaviour] = {}


def _add(
    function: Callable[[Scene], None],
    *,
    variants: tuple[Variant, ...],
    pair: bool,
    redirects: bool,
    accelerated: int,
    guarded: bool = False,
) -> None:
    assert function.__name__ not in BEHAVIOURS, f"two behaviours {function.__name__}"
    module = inspect.getmodule(function)
    assert module and module.__doc__ and function.__doc__, f"{function} has no title"
    title = function.__doc__.splitlines()[0].rstrip(".")
    if not re.match(r"\w+\(", title):  # the name of a function keeps its case
        title = title[0].upper() + title[1:]
    BEHAVIOURS[function.__name__] = Behaviour(
        function=function,
        area=module.__doc__.splitlines()[0].rstrip("."),
        title=title,
        variants=variants,
        pair=pair,
        redirects=redirects,
        guarded=guarded,
        accelerated=accelerated,
    )


Function = Callable[["Scene"], None]


def behaviour(*, redirects: bool = True, guarded: bool = False) -> Callable[[Function], Function]:
    """Runs on an established pair, in every state and from both sides.

    Both ends are on the sockhash before, where they are to be accelerated; `redirects`: and a
    message that the behaviour sends is redirected, unless the connection has left. `guarded`: the
    guard keeps all of them from being redirected, as the behaviour begins with setsockopt().
    """

    def decorate(function: Function) -> Function:
        _add(
            function,
            variants=VARIANTS,
            pair=True,
            redirects=redirects and not guarded,
            accelerated=1,
            guarded=guarded,
        )
        return function

    return decorate


def establishing(*, accelerated: int, redirects: bool = True) -> Callable[[Function], Function]:
    """Makes its own connections, of which so many are accelerated where that is wanted."""

    def decorate(function: Function) -> Function:
        _add(function, variants=(ALONE,), pair=False, redirects=redirects, accelerated=accelerated)
        return function

    return decorate
