"""The result of a check, with a sentence that says what it means for the user."""

from __future__ import annotations

from dataclasses import asdict, dataclass

PASS, WARN, FAIL = "pass", "warn", "fail"


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


def failed(findings: list[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.status == FAIL), None)
