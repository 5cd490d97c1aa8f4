"""The result of a check, with a sentence that says what it means for the user."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"
NOT_TRIED = "not tried"  # what a detail begins with then
_AS_THE_KERNEL_IS = frozenset({"fentry", "splice", "fionread_redirected", "fionread_tcp"})
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """`detail` is for everybody; `private` and `advice` for who may know what others run.

    `advice` is what to type about it.
    """

    name: str
    status: str
    detail: str
    private: str = ""
    advice: str = ""

    @property
    def note(self) -> bool:
        """A warning that nothing on this host changes: the kernel is like that."""
        tried = not self.detail.startswith(NOT_TRIED)
        return self.status == WARN and self.name in _AS_THE_KERNEL_IS and tried

    def told(self, everything: bool) -> dict[str, Any]:
        answer: dict[str, Any] = asdict(self) | {"note": self.note}
        private = answer.pop("private")
        if everything and private:
            answer["detail"] += f": {private}"
        if not everything:
            answer["advice"] = ""
        return answer


def some(items: list[str]) -> str:
    """The first few programs, rules or units for a finding, and how many more there are."""
    more = len(items) - SHOWN
    return "; ".join(items[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def failed(findings: list[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.status == FAIL), None)
