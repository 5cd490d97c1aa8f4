"""A stand-in for polkit on the bus: it says what the test tells it to say, when the test does."""

from __future__ import annotations

from dataclasses import dataclass

from dbus_next import Message, MessageType

from support.daemon.bus import PERMISSIVE_POLICY, SHIPPED_POLICY
from support.daemon.client import Client

NAME = "org.freedesktop.PolicyKit1"
ACTION = "org.sockredir.manage"
_RULES = """
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
"""


def with_polkit(policy: str) -> str:
    """A bus policy that lets root serve polkit's name, and everybody call it."""
    return policy.replace("</busconfig>", f'<policy user="root">{_RULES}</policy></busconfig>')


SHIPPED = with_polkit(SHIPPED_POLICY.read_text())
PERMISSIVE = with_polkit(PERMISSIVE_POLICY)


@dataclass(frozen=True)
class Check:
    """One CheckAuthorization call that waits for its answer."""

    call: Message
    caller: str
    action: str
    interactive: bool
    number: str


class Polkit(Client):
    def __init__(self, address: str) -> None:
        super().__init__(address)
        assert self.ask_bus("RequestName", "su", NAME, 0) == 1

    def _keep(self, message: Message) -> bool:
        if message.message_type != MessageType.METHOD_CALL:
            return super()._keep(message)
        # kept with the signals, and awaited like them; dbus-next itself would answer others
        self.signals.append(message)
        self._arrived.set()
        return True

    def await_check(self) -> Check:
        call = self._await("CheckAuthorization")
        (kind, details), action, more, flags, number = call.body
        assert (kind, list(details), more) == ("system-bus-name", ["name"], {})
        return Check(call, details["name"].value, action, bool(flags & 1), number)

    def await_cancellation(self) -> str:
        """The number of the check that nobody waits for any more."""
        return str(self._await("CancelCheckAuthorization").body[0])

    def _await(self, member: str) -> Message:
        call = self.await_signal(lambda message: message.member == member)
        self.signals.remove(call)
        return call

    def answer(self, check: Check, authorised: bool, *, challenge: bool = False) -> None:
        body = [[authorised, challenge, {}]]
        self.send(Message.new_method_return(check.call, "(bba{ss})", body))

    def answer_nonsense(self, check: Check) -> None:
        self.send(Message.new_method_return(check.call, "s", ["yes"]))

    def answer_error(self, check: Check) -> None:
        error = "org.freedesktop.PolicyKit1.Error.Failed"
        self.send(Message.new_error(check.call, error, "the rules cannot be read"))

    def uid_of(self, name: str) -> int:
        return int(self.ask_bus("GetConnectionUnixUser", "s", name))
