"""The connection to the system bus: what of it reaches dbus-next, and when.

Everybody on this host may send. So a call is judged by its header, in this order: its size, whether
there is such a member, how many calls its sender has under way, and who the sender is. What is
refused is answered here, and dbus-next never sees it.
"""

from __future__ import annotations

import array
import asyncio
import contextvars
import io
import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dbus_next import BusType, DBusError, Message, MessageType
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio import MessageBus
from dbus_next.constants import ErrorType, MessageFlag
from dbus_next.signature import SignatureTree

from sockredird.bus import limits, wire
from sockredird.bus.authority import Authority, Caller
from sockredird.bus.calls import CALL_TIMEOUT_S, DRIVER
from sockredird.bus.wire import Frame, Header
from sockredird.errors import AccessDenied, BusUnavailable, printable

log = logging.getLogger(__name__)

_CHUNK = 64 << 10
_CHUNKS_PER_TURN = 16  # of the event loop, which has others to serve
_DESCRIPTORS = 253  # the most that come with one message: SCM_MAX_FD
# dbus-next keeps the parsed form of each signature it has met, which are of others' choosing
_SIGNATURES_KEPT = 256
_DRIVER_SIGNALS = {"NameOwnerChanged": "sss", "NameAcquired": "s", "NameLost": "s"}
_STANDARD = "org.freedesktop.DBus."

# Who called, for the members of the object: dbus-next does not tell a handler. The handler's task
# keeps a copy of the context, however long it waits.
caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


@dataclass(frozen=True)
class Member:
    """One that may be called, by somebody who may manage unless it is open to all."""

    signature: str
    is_open: bool
    descriptors: int = 0


Members = Mapping[tuple[str, str], Member]  # by interface and name

STANDARD_MEMBERS: Members = {
    (f"{_STANDARD}Introspectable", "Introspect"): Member("", True),
    (f"{_STANDARD}Peer", "Ping"): Member("", True),
    (f"{_STANDARD}Peer", "GetMachineId"): Member("", True),
    (f"{_STANDARD}Properties", "Get"): Member("ss", True),
    (f"{_STANDARD}Properties", "GetAll"): Member("s", True),
    (f"{_STANDARD}Properties", "Set"): Member("ssv", False),
    (f"{_STANDARD}ObjectManager", "GetManagedObjects"): Member("", False),
}


class Connection(MessageBus):  # type: ignore[misc]
    """Lives on the event loop."""

    def __init__(self) -> None:
        super().__init__(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
        self.refusals = limits.Refusals()
        self._authority = Authority(self)
        self._members: Members = {}
        self._framer = wire.Framer()
        self._descriptors = _Descriptors()
        self._calls = limits.Calls()
        self._waiting_bytes = 0
        self._waiting_descriptors = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def authority(self) -> Authority:
        return self._authority

    def admit(self, members: Members) -> None:
        """From here on these may be called; before, none."""
        self._members = {**STANDARD_MEMBERS, **members}

    # -- what dbus-next calls ----------------------------------------------------------------

    def _message_reader(self) -> None:
        try:
            for _ in range(_CHUNKS_PER_TURN):
                try:
                    data, ancillary, flags, _ = self._sock.recvmsg(
                        _CHUNK,
                        socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize),
                        socket.MSG_CMSG_CLOEXEC,
                    )
                except BlockingIOError:
                    return
                if not data:
                    raise EOFError("the bus has hung up")
                self._receive(data, _received(ancillary), bool(flags & socket.MSG_CTRUNC))
        except Exception as error:
            self._finalize(error)

    def _on_message(self, message: Message) -> None:
        """dbus-next logs a traceback for whatever a handler raises, an error answer included."""
        try:
            self._process_message(message)
        except DBusError as error:  # sent to the caller
            self.refusals.note(message.sender or "", f"{message.member}: {error}")
        except Exception as error:
            self.refusals.note(message.sender or "", f"{message.member} failed: {error!r}")

    def _finalize(self, error: Exception | None = None) -> None:
        """dbus-next takes a socket that is full for a broken one, and would hang up.

        Its writer waits for room anyway: it has kept what it could not send, and stays registered.
        """
        if not isinstance(error, BlockingIOError):
            self._descriptors.close()
            for task in self._tasks:
                task.cancel()
            super()._finalize(error)

    def send(self, message: Message) -> asyncio.Future[None]:
        """Raises ConnectionError once disconnected.

        dbus-next would take over the descriptor that was its own, which a new connection to the bus
        may have by then.
        """
        if not self.connected:
            raise ConnectionError("the bus is gone, and whoever waits for this with it")
        wanted = True
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            wanted = self._calls.end(message.destination or "", message.reply_serial)
        if not wanted:
            unsent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            unsent.set_result(None)
            return unsent
        sent: asyncio.Future[None] = super().send(message)
        return sent

    def _default_get_machine_id_handler(self, message: Message, send_reply: object) -> None:
        """dbus-next asks the bus for it, and sends a reply that has another signature."""
        text = Path("/etc/machine-id").read_text().strip()
        self.send(Message.new_method_return(message, "s", [text]))

    # -- what arrives ------------------------------------------------------------------------

    def _receive(self, data: bytes, descriptors: list[int], cut: bool) -> None:
        """`cut`: the kernel had more descriptors than there was room for in our table."""
        if descriptors or cut:
            # the kernel ends what it returns behind the bytes that they came with
            self._descriptors.add(self._framer.position + len(data) - 1, descriptors)
        for frame in self._framer.feed(data):
            mine = self._descriptors.take(frame)
            try:
                self._judge(frame, mine)
            except Exception as error:
                _close(mine)
                self.refusals.note(
                    frame.header.sender if frame.header else "", f"cannot be read: {error!r}"
                )
        self._descriptors.drop_before(self._framer.unframed)

    def _judge(self, frame: Frame, descriptors: list[int]) -> None:
        header = frame.header
        if header is None:
            _close(descriptors)
            self.refusals.note(
                "", f"a header longer than {wire.FIELDS_LIMIT} bytes, or malformed, is ignored"
            )
        elif header.kind == wire.METHOD_CALL:
            self._judge_call(frame, header, descriptors)
        else:
            _close(descriptors)  # nobody answers us with any
            if header.kind in (wire.METHOD_RETURN, wire.ERROR):
                self._take_answer(frame, header)
            elif header.kind == wire.SIGNAL:
                self._take_signal(frame, header)

    def _take_signal(self, frame: Frame, header: Header) -> None:
        """Only the bus cannot be imitated: of the others we read no more than the header."""
        if header.sender != DRIVER:
            self._on_message(_without_body(header))
        elif frame.raw and _DRIVER_SIGNALS.get(header.member) == header.signature:
            self._on_message(_unmarshalled(frame, []))

    def _take_answer(self, frame: Frame, header: Header) -> None:
        """That of a call of ours."""
        if header.reply_serial not in self._method_return_handlers:
            return
        if frame.raw:
            self._on_message(_unmarshalled(frame, []))
            return
        self._on_message(
            Message(
                message_type=MessageType.ERROR,
                error_name=ErrorType.LIMITS_EXCEEDED,
                reply_serial=header.reply_serial,
                sender=header.sender,
                signature="s",
                body=[f"an answer of {header.body_bytes} bytes"],
            )
        )

    def _judge_call(self, frame: Frame, header: Header, descriptors: list[int]) -> None:
        if not header.sender.startswith(":"):  # the bus sees to it that each caller has a name
            _close(descriptors)
            return
        member = self._members.get((header.interface, header.member))
        if not frame.raw:
            _close(descriptors)
            text = f"a body of {header.body_bytes} bytes: at most {wire.BODY_LIMIT} are read"
            self._refuse(header, ErrorType.LIMITS_EXCEEDED.value, text)
            return
        if member is None or member.signature != header.signature:
            _close(descriptors)
            text = (
                f'{header.interface}.{header.member} with signature "{header.signature}" '
                "could not be found"
            )
            self._refuse(header, ErrorType.UNKNOWN_METHOD.value, text)
            return
        # more than it takes would be ours to close, and anybody could exhaust our table
        _close(descriptors[member.descriptors :])
        descriptors = descriptors[: member.descriptors]
        if why := self._too_much(frame, header, descriptors):
            _close(descriptors)
            self._refuse(header, ErrorType.LIMITS_EXCEEDED.value, why)
            return
        interactive = bool(header.flags & wire.ALLOW_INTERACTIVE_AUTHORIZATION)
        call = _Call(frame, header, member, descriptors, Caller(header.sender, interactive))
        if member.is_open:
            self._dispatch(call)
            return
        task = asyncio.ensure_future(self._authorise(call))
        self._tasks.add(task)
        task.add_done_callback(lambda task: _close(descriptors) if task.cancelled() else None)
        task.add_done_callback(self._tasks.discard)

    def _too_much(self, frame: Frame, header: Header, descriptors: list[int]) -> str:
        """Why this call is more than may be under way; empty if it is not, and is under way now."""
        size = len(frame.raw)
        if size > limits.SMALL_BYTES and self._waiting_bytes + size > limits.WAITING_BYTES:
            return "too many large calls wait for authorisation: try again"
        if descriptors and self._waiting_descriptors >= limits.WAITING_DESCRIPTORS:
            return "too many file descriptors wait for authorisation: try again"
        wanted = not header.flags & wire.NO_REPLY_EXPECTED
        return self._calls.begin(header.sender, header.serial, answer_wanted=wanted)

    async def _authorise(self, call: _Call) -> None:
        """The body is unmarshalled once the sender is known to be one who may manage."""
        size, held = len(call.frame.raw), len(call.descriptors)
        self._waiting_bytes += size
        self._waiting_descriptors += held
        try:
            await self._authority.require(call.caller)
        except AccessDenied as error:
            _close(call.descriptors)
            name = f"org.sockredir.Error.{error.name}"
            self._refuse(call.header, name, str(error), counted=True)
            return
        finally:
            self._waiting_bytes -= size
            self._waiting_descriptors -= held
        self._dispatch(call)

    def _dispatch(self, call: _Call) -> None:
        """Hands it to dbus-next, and its descriptors to the handler."""
        try:
            message = _unmarshalled(call.frame, call.descriptors)
            if call.member.descriptors and (not call.descriptors or message.body[0] != 0):
                raise wire.Malformed("no file descriptor came with the call")
        except Exception as error:
            _close(call.descriptors)
            text = f"the arguments cannot be read: {error}"
            self._refuse(call.header, ErrorType.INVALID_ARGS.value, text, counted=True)
            return
        # Calls that want no answer count, too, until they are carried out: send() drops the answer
        message.flags &= ~MessageFlag.NO_REPLY_EXPECTED
        caller.set(call.caller)
        self._on_message(message)

    def _refuse(self, header: Header, name: str, text: str, *, counted: bool = False) -> None:
        """`counted`: among the calls under way, which it is no more."""
        text = printable(text)
        self.refusals.note(header.sender, f"{header.member}: {text}")
        if counted:
            self._calls.end(header.sender, header.serial)
        if header.flags & wire.NO_REPLY_EXPECTED or not self.connected:
            return
        # not by send(), which would take this for the answer to a call of the same serial
        super().send(
            Message(
                message_type=MessageType.ERROR,
                destination=header.sender,
                reply_serial=header.serial,
                error_name=name,
                signature="s",
                body=[text],
            )
        )


@dataclass(frozen=True)
class _Call:
    frame: Frame
    header: Header
    member: Member
    descriptors: list[int]
    caller: Caller


class _Descriptors:
    """Received, and not yet given to the message they came with: told by its place in the stream.

    Their number in a header would not do: not every header is read.
    """

    def __init__(self) -> None:
        self._groups: deque[tuple[int, list[int]]] = deque()

    def add(self, position: int, group: list[int]) -> None:
        self._groups.append((position, group))

    def take(self, frame: Frame) -> list[int]:
        """Those of `frame`, whose they are from now on. Those of messages before it are closed."""
        self.drop_before(frame.start)
        taken: list[int] = []
        while self._groups and self._groups[0][0] < frame.end:
            taken += self._groups.popleft()[1]
        return taken

    def drop_before(self, position: int) -> None:
        while self._groups and self._groups[0][0] < position:
            _close(self._groups.popleft()[1])

    def close(self) -> None:
        while self._groups:
            _close(self._groups.popleft()[1])


def _received(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _unmarshalled(frame: Frame, descriptors: list[int]) -> Message:
    """Raises Malformed, and whatever dbus-next raises."""
    if len(SignatureTree._cache) > _SIGNATURES_KEPT:
        SignatureTree._cache.clear()
    unmarshaller = Unmarshaller(io.BytesIO(frame.raw))
    unmarshaller.unix_fds = descriptors
    message = unmarshaller.unmarshall()
    if message is None:
        raise wire.Malformed("its arrays are longer than its body")
    return message


def _without_body(header: Header) -> Message:
    return Message(
        message_type=MessageType.SIGNAL,
        path=header.path,
        interface=header.interface,
        member=header.member,
        sender=header.sender,
        serial=header.serial,
    )


async def connect() -> Connection:
    """A connection to the system bus. Raises BusUnavailable."""
    try:
        bus = Connection()
        return await asyncio.wait_for(bus.connect(), CALL_TIMEOUT_S)
    except Exception as error:  # dbus-next raises whatever its socket or its parser raised
        raise BusUnavailable(
            f"cannot reach the D-Bus system bus ({error}): is dbus.service running, "
            "or is DBUS_SYSTEM_BUS_ADDRESS set to a private bus?"
        ) from error
