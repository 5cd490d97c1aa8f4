"""The result of a check, with a sentence that says what it means for the user."""

from __future__ import annotations

from dataclasses import asdict, dataclass

PASS, WARN, FAIL = "pass", "warn", "fail"
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Anybody may see `detail`. `private` names what others run, and is for root only."""

    name: str
    status: str
    detail: str
    private: str = ""

    def told(self, everything: bool) -> dict[str, str]:
        answer = asdict(self)
        private = answer.pop("private")
        if everything and private:
            answer["detail"] += f": {private}"
        return answer


def some(items: list[str]) -> str:
    """The first few programs, rules or units for a finding, and how many more there are."""
    more = len(items) - SHOWN
    return "; ".join(items[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def failed(findings: list[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.status == FAIL), None)
