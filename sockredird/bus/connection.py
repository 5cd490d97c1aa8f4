"""The connection to the system bus, on which dbus-next sees only what was checked before.

Everybody on this host may send. So a call is checked by its header, in this order: its size,
whether there is such a member, how many calls its sender has under way, and who the sender is. A
call that is refused is answered here, and dbus-next never sees it.
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
# dbus-next keeps the parsed form of each signature that it has met, and callers choose them
_SIGNATURES_KEPT = 256
_DRIVER_SIGNALS = {"NameOwnerChanged": "sss", "NameAcquired": "s", "NameLost": "s"}
_STANDARD = "org.freedesktop.DBus."

# Who called, for the members of the object, as dbus-next does not pass it to a handler. The
# handler's task keeps a copy of the context, however long it waits.
caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


@dataclass(frozen=True)
class Member:
    """One that may be called: by all if it is open, otherwise by those who may manage.

    `descriptors`: how many file descriptors a call has to bring.
    """

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
        """Lets these members, and the standard ones, be called; before that, none can be."""
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
        """Logs what a handler raises in a line; dbus-next would log a traceback of each."""
        try:
            self._process_message(message)
        except DBusError as error:  # sent to the caller
            self.refusals.note(message.sender or "", f"{message.member}: {error}")
        except Exception as error:
            self.refusals.note(message.sender or "", f"{message.member} failed: {error!r}")

    def _finalize(self, error: Exception | None = None) -> None:
        """Ends the connection, unless `error` says no more than that the socket is full.

        dbus-next would hang up then. Its writer has kept what it could not send, and waits for
        room.
        """
        if not isinstance(error, BlockingIOError):
            self._descriptors.close()
            for task in self._tasks:
                task.cancel()
            super()._finalize(error)

    def send(self, message: Message) -> asyncio.Future[None]:
        """Sends a message, unless it answers a call that wants no answer.

        Raises ConnectionError once disconnected: dbus-next would use the number of its former
        descriptor, which a new connection to the bus may have by then.
        """
        if not self.connected:
            raise ConnectionError("the D-Bus system bus is gone")
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
        """Replaces dbus-next's own, whose reply has a wrong signature."""
        text = Path("/etc/machine-id").read_text().strip()
        self.send(Message.new_method_return(message, "s", [text]))

    # -- what arrives ------------------------------------------------------------------------

    def _receive(self, data: bytes, descriptors: list[int], cut: bool) -> None:
        """`cut`: our table had no room for all descriptors that the kernel had for us."""
        if descriptors or cut:
            # recvmsg(2) returns no bytes beyond those that the descriptors came with
            self._descriptors.add(self._framer.position + len(data) - 1, descriptors)
        for frame in self._framer.feed(data):
            mine = self._descriptors.take(frame)
            try:
                self._handle(frame, mine)
            except Exception as error:
                _close(mine)
                self.refusals.note(
                    frame.header.sender if frame.header else "",
                    f"a message cannot be read: {error!r}",
                )
        self._descriptors.drop_before(self._framer.unframed)

    def _handle(self, frame: Frame, descriptors: list[int]) -> None:
        header = frame.header
        if header is None:
            _close(descriptors)
            self.refusals.note(
                "",
                f"ignored a message whose header is malformed, or over {wire.FIELDS_LIMIT} bytes",
            )
        elif header.kind == wire.METHOD_CALL:
            self._handle_call(frame, header, descriptors)
        else:
            _close(descriptors)  # no answer that we expect has any
            if header.kind in (wire.METHOD_RETURN, wire.ERROR):
                self._take_answer(frame, header)
            elif header.kind == wire.SIGNAL:
                self._take_signal(frame, header)

    def _take_signal(self, frame: Frame, header: Header) -> None:
        """Reads signals of the bus itself, and only the header of others'."""
        if header.sender != DRIVER:
            self._on_message(_without_body(header))
        elif frame.raw and _DRIVER_SIGNALS.get(header.member) == header.signature:
            self._on_message(_unmarshalled(frame, []))

    def _take_answer(self, frame: Frame, header: Header) -> None:
        """Passes on an answer to a call of ours, and drops any other."""
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
                body=[f"the answer has {header.body_bytes} bytes, too many to be read"],
            )
        )

    def _handle_call(self, frame: Frame, header: Header, descriptors: list[int]) -> None:
        if not header.sender.startswith(":"):  # the bus itself names each caller so
            _close(descriptors)
            return
        member = self._members.get((header.interface, header.member))
        if not frame.raw:
            _close(descriptors)
            text = f"the body has {header.body_bytes} bytes: at most {wire.BODY_LIMIT} are read"
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
        # descriptors that the member does not take are closed, or anybody could fill our table
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
        """Why this call exceeds a limit; otherwise empty, and the call is under way from now on."""
        size = len(frame.raw)
        if size > limits.SMALL_BYTES and self._waiting_bytes + size > limits.WAITING_BYTES:
            return "too many large calls wait for authorisation: try again later"
        if descriptors and self._waiting_descriptors >= limits.WAITING_DESCRIPTORS:
            return "too many file descriptors wait for authorisation: try again later"
        wanted = not header.flags & wire.NO_REPLY_EXPECTED
        return self._calls.begin(header.sender, header.serial, answer_wanted=wanted)

    async def _authorise(self, call: _Call) -> None:
        """Dispatches the call if its sender may manage; until then its body is not unmarshalled."""
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
        """Passes the call to dbus-next, and its descriptors to the handler."""
        try:
            message = _unmarshalled(call.frame, call.descriptors)
            if call.member.descriptors and (not call.descriptors or message.body[0] != 0):
                raise wire.Malformed("no file descriptor came with the call")
        except Exception as error:
            _close(call.descriptors)
            text = f"the arguments cannot be read: {error}"
            self._refuse(call.header, ErrorType.INVALID_ARGS.value, text, counted=True)
            return
        # a call that wants no answer counts, too, until it is carried out: send() drops the answer
        message.flags &= ~MessageFlag.NO_REPLY_EXPECTED
        caller.set(call.caller)
        self._on_message(message)

    def _refuse(self, header: Header, name: str, text: str, *, counted: bool = False) -> None:
        """Answers the call with an error, and logs it. `counted`: it was among those under way."""
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
    """Descriptors that were received, by the place in the stream of the message they came with.

    Their number in the header would not do, since not every header is read.
    """

    def __init__(self) -> None:
        self._groups: deque[tuple[int, list[int]]] = deque()

    def add(self, position: int, group: list[int]) -> None:
        self._groups.append((position, group))

    def take(self, frame: Frame) -> list[int]:
        """Those of `frame`, which the caller closes. Those of messages before it are closed."""
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
