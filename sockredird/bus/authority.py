"""Who may call: root, and users that polkit authorises for org.sockredir.manage."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from dbus_next import DBusError, Message, Variant
from dbus_next.aio import MessageBus

from sockredird.bus.calls import ask_bus, departed, departure_rule, driver_call, result, tell
from sockredird.errors import AccessDenied

ACTION = "org.sockredir.manage"
POLKIT = "org.freedesktop.PolicyKit1"
_ALLOW_USER_INTERACTION = 1
_NO_POLKIT = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    # the unit that the bus would have started for it is gone, or masked
    "org.freedesktop.systemd1.",
)

# Less than the 25 s that most callers wait, so that they get the reason. polkit's rules may run
# programs.
ANSWER_TIMEOUT_S = 20.0
# A check with interaction lasts until somebody has typed a password. The bus limits how many calls
# of the daemon may lack a reply, so one user must not take them all.
CHECKS_PER_UID = 8


@dataclass(frozen=True)
class Caller:
    name: str  # unique on the bus, and never given to another connection
    interactive: bool  # somebody may be asked for a password


class Authority:
    """Decides about the callers of one bus connection. Where it cannot find out, it denies."""

    def __init__(self, bus: MessageBus, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._bus = bus
        self._answer_timeout_s = answer_timeout_s
        self._numbers = itertools.count(1)
        self._checks: Counter[int] = Counter()
        self._departures: dict[asyncio.Future[None], str] = {}
        bus.add_message_handler(self._note_departure)

    async def require(self, caller: Caller) -> None:
        """Returns if the caller may manage, if need be after somebody has typed a password.

        Raises AccessDenied otherwise, and when the caller leaves the bus meanwhile.
        """
        try:
            uid = int(await ask_bus(self._bus, "GetConnectionUnixUser", caller.name))
            if uid == 0:
                return
            with self._counted(uid):
                authorised, challenge, _details = await self._check(caller)
        except AccessDenied:
            raise
        except Exception as error:  # of polkit, the bus or dbus-next, or for a malformed answer
            raise AccessDenied(_failure(error)) from error
        if authorised is not True:
            raise AccessDenied(_refusal(uid, caller, challenge=bool(challenge)))

    async def is_root(self, caller: Caller) -> bool:
        """Whether the caller is root, without asking polkit; False if it has left the bus."""
        try:
            return int(await ask_bus(self._bus, "GetConnectionUnixUser", caller.name)) == 0
        except (DBusError, TimeoutError):  # gone
            return False

    @contextmanager
    def _counted(self, uid: int) -> Iterator[None]:
        if self._checks[uid] >= CHECKS_PER_UID:
            raise AccessDenied(
                f"{CHECKS_PER_UID} calls of uid {uid} are already waiting for authorisation: "
                "answer or cancel one of them, or try sudo"
            )
        self._checks[uid] += 1
        try:
            yield
        finally:
            self._checks[uid] -= 1
            if self._checks[uid] == 0:
                del self._checks[uid]

    async def _check(self, caller: Caller) -> list[Any]:
        """polkit's answer: whether it authorises, whether it would after a password, details."""
        number = f"check-{next(self._numbers)}"
        question = _polkit(
            "CheckAuthorization",
            "(sa{sv})sa{ss}us",
            # polkit asks the bus who has this name; a pid could be another process's by then
            ["system-bus-name", {"name": Variant("s", caller.name)}],
            ACTION,
            {},
            _ALLOW_USER_INTERACTION if caller.interactive else 0,
            number,
        )
        async with self._departure(caller.name) as departure:
            answer = asyncio.ensure_future(self._bus.call(question))
            try:
                await asyncio.wait(
                    {answer, departure},
                    timeout=None if caller.interactive else self._answer_timeout_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if answer.done():
                    (body,) = result(answer.result())
                    return list(body)
            finally:
                if not answer.done():
                    answer.cancel()
                    tell(self._bus, _polkit("CancelCheckAuthorization", "s", number))
            if departure.done():
                raise AccessDenied("the caller has left the bus")
            raise AccessDenied(
                f"polkit has not answered within {self._answer_timeout_s:g} s: "
                "see systemctl status polkit, or try sudo"
            )

    # -- callers that leave ------------------------------------------------------------------

    @asynccontextmanager
    async def _departure(self, name: str) -> AsyncIterator[asyncio.Future[None]]:
        """A future that is done when `name` is off the bus."""
        departure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._departures[departure] = name
        try:
            await ask_bus(self._bus, "AddMatch", departure_rule(name))
            # it may have left before the rule was there
            if not await ask_bus(self._bus, "NameHasOwner", name) and not departure.done():
                departure.set_result(None)
            yield departure
        finally:
            del self._departures[departure]
            tell(self._bus, driver_call("RemoveMatch", departure_rule(name)))

    def _note_departure(self, message: Message) -> None:
        name = departed(message)
        for departure, followed in self._departures.items():
            if followed == name and not departure.done():
                departure.set_result(None)


def _polkit(member: str, signature: str, *body: Any) -> Message:
    return Message(
        destination=POLKIT,
        path=f"/{POLKIT.replace('.', '/')}/Authority",
        interface=f"{POLKIT}.Authority",
        member=member,
        signature=signature,
        body=list(body),
    )


def _failure(error: Exception) -> str:
    if not isinstance(error, DBusError):
        return f"polkit cannot be asked ({type(error).__name__}: {error}): try sudo"
    if error.type.startswith(_NO_POLKIT):
        return "only root may do this, since polkit is not running: try sudo"
    return f"polkit could not decide ({error.type}: {error}): try sudo"


def _refusal(uid: int, caller: Caller, *, challenge: bool) -> str:
    if not challenge:
        return (
            f"polkit does not allow uid {uid} the action {ACTION}: "
            "try sudo, or add a rule to /etc/polkit-1/rules.d"
        )
    if caller.interactive:
        return (
            "authentication failed or was dismissed, or there is no agent to ask for a password: "
            "try again in a terminal with pkttyagent, or try sudo"
        )
    return (
        "polkit requires authentication, which this call does not let it ask for: "
        "try busctl --allow-interactive-authorization=yes, or sudo"
    )
