"""Who may manage, as the real polkit has it: with a rule, with a password, and without polkit."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shell import TIMEOUT_S, Failed, sh
from status import BUSCTL, state

pytestmark = pytest.mark.userland
# Users of the guest: VISITOR may nothing, OPERATOR what the rule lets him, ADMIN has a password
VISITOR, OPERATOR, ADMIN = "visitor", "manager", "admin"
PASSWORD = "open sesame"
DENIED = 4  # sockredirctl's exit status
CALLS = 8
CHANGES = ("Enable", "Disable", "Reload")
SHOWS = ("Connections u 0", "Explain a{sv} 1 port u 22", "Subscribe")
RULES = Path("/etc/polkit-1/rules.d/10-sockredir-test.rules")
RULE = f"""
polkit.addRule(function(action, subject) {{
    if (action.id == "org.sockredir.manage" && subject.user == "{OPERATOR}")
        return polkit.Result.YES;
}});
"""
PERMISSIVE = Path("/etc/dbus-1/system.d/zz-sockredir-test.conf")
PERMISSIVE_POLICY = """
<busconfig>
  <policy context="default"><allow send_destination="org.sockredir"/></policy>
</busconfig>
"""
ACTIVATION = Path("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service")
RELOAD_BUS = "systemctl reload dbus"


@pytest.fixture(scope="module")
def rule() -> Iterator[None]:
    RULES.write_text(RULE)
    sh("systemctl restart polkit")
    yield
    RULES.unlink()
    sh("systemctl restart polkit")


@contextmanager
def refused(text: str = "") -> Iterator[None]:
    """The command fails for this reason, and acceleration is as it was."""
    before = state()
    with pytest.raises(Failed, match=text or "authentication"):
        yield
    assert state() == before


def test_the_action_is_declared(installed: None) -> None:
    answer = sh("pkaction --verbose --action-id org.sockredir.manage")
    assert "implicit any:      auth_admin" in answer


@pytest.mark.parametrize("call", CHANGES + SHOWS)
def test_somebody_is_refused(enabled: None, call: str) -> None:
    with refused():
        sh(BUSCTL.format("call", call), user=VISITOR)


def test_client_of_somebody_says_denied(enabled: None) -> None:
    with pytest.raises(Failed) as caught:
        sh("sockredirctl disable", user=VISITOR)
    assert caught.value.status == DENIED
    assert len(caught.value.output.splitlines()) == 1
    assert state() == "enabled"


def test_anybody_may_read(enabled: None) -> None:
    sh(BUSCTL.format("call", "Stats"), user=VISITOR)
    sh("sockredirctl stats", user=VISITOR)
    sh("sockredirctl status", user=VISITOR)


def test_somebody_with_a_rule_may_manage(disabled: None, rule: None) -> None:
    sh("sockredirctl enable", user=OPERATOR)
    assert state() == "enabled"
    sh("sockredirctl list", user=OPERATOR)
    with refused():
        sh(BUSCTL.format("call", "Disable"), user=VISITOR)
    sh(BUSCTL.format("call", "Disable"), user=OPERATOR)
    assert state() == "disabled"


def test_two_callers_at_a_time_are_each_themselves(enabled: None, rule: None) -> None:
    call = BUSCTL.format("call", "Connections u 0") + " >/dev/null 2>&1 && echo yes || echo no"
    loops = " & ".join(
        f"runuser -u {user} -- sh -c 'for i in $(seq {CALLS}); do {call}; done' > /tmp/{user}"
        for user in (VISITOR, OPERATOR)
    )
    sh(f"{loops}; wait")
    assert Path(f"/tmp/{OPERATOR}").read_text().split() == ["yes"] * CALLS
    assert Path(f"/tmp/{VISITOR}").read_text().split() == ["no"] * CALLS


def wait_until_hidden(keyboard: int) -> None:
    """Whoever prompts turns the echo off then, and throws away what was typed before."""
    deadline = time.monotonic() + TIMEOUT_S
    while termios.tcgetattr(keyboard)[3] & termios.ECHO:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def on_terminal(command: list[str], answers: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command on a terminal; each prompt for a secret is answered."""
    keyboard, terminal = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    output = ""
    waiting = dict(answers)
    while select.select([keyboard], [], [], TIMEOUT_S)[0]:
        try:
            output += os.read(keyboard, 4096).decode()
        except OSError:  # EIO: nobody has the terminal open any more
            break
        for prompt in [prompt for prompt in waiting if prompt in output]:
            wait_until_hidden(keyboard)
            os.write(keyboard, f"{waiting.pop(prompt)}\n".encode())
    process.kill()  # nothing, if it has ended
    os.close(keyboard)
    print(output)
    assert not waiting, output
    return process.wait(), output


@pytest.mark.parametrize(("password", "status"), [("wrong", DENIED), (PASSWORD, 0)])
def test_password_of_an_administrator(disabled: None, password: str, status: int) -> None:
    """pkttyagent asks for it on the terminal of sockredirctl."""
    sh(f"echo '{ADMIN}:{PASSWORD}' | chpasswd")
    command = ["runuser", "-u", VISITOR, "--", "sockredirctl", "enable"]
    found, output = on_terminal(command, {"Password:": password})
    assert found == status
    assert "org.sockredir.manage" in output
    assert state() == ("disabled" if status else "enabled")


def test_with_polkit_masked_only_root_may_manage(enabled: None) -> None:
    sh("systemctl mask --runtime --now polkit")
    try:
        with refused("only root"):
            sh(BUSCTL.format("call", "Disable"), user=VISITOR)
    finally:
        sh("systemctl unmask --runtime polkit")


def test_permissive_bus_policy_changes_nothing(enabled: None) -> None:
    PERMISSIVE.write_text(PERMISSIVE_POLICY)
    try:
        sh(RELOAD_BUS)
        for call in CHANGES + SHOWS:
            with refused():
                sh(BUSCTL.format("call", call), user=VISITOR)
    finally:
        PERMISSIVE.unlink()
        sh(RELOAD_BUS)


def test_without_polkit_only_root_may_manage(enabled: None) -> None:
    sh("systemctl stop polkit")
    hidden = ACTIVATION.rename(ACTIVATION.with_suffix(".hidden"))
    try:
        sh(RELOAD_BUS)
        with refused("only root"):
            sh(BUSCTL.format("call", "Disable"), user=VISITOR)
        sh(BUSCTL.format("call", "Stats"), user=VISITOR)
        sh("sockredirctl disable")
        assert state() == "disabled"
    finally:
        hidden.rename(ACTIVATION)
        sh(RELOAD_BUS)
