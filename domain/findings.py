"""Findings: what scanners see, what a policy makes of it, and why.

A scanner hands over evidence (``ScannerReport``); only ``judge`` turns evidence into a verdict,
because only it knows the policy. Not knowing is never the same as clean: a scanner that could
not do its work is ``error``, one that looked at nothing is ``no_data``, one that is missing is
``not_run``, and none of these passes (design: "Verdicts fail closed").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from domain.errors import Failed
from domain.verdict import Verdict, worst

ONLINE = "online"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Severity(StrEnum):
    """How bad a finding is. Compare with ``rank``: as strings, "critical" sorts before "low"."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return _RANK[self]

    def reaches(self, threshold: Severity) -> bool:
        return self.rank >= threshold.rank


_RANK = {severity: rank for rank, severity in enumerate(Severity)}
_WORDS = {
    "info": Severity.LOW,
    "style": Severity.LOW,
    "low": Severity.LOW,
    "medium": Severity.MEDIUM,
    "moderate": Severity.MEDIUM,
    "warning": Severity.MEDIUM,
    "high": Severity.HIGH,
    "important": Severity.HIGH,
    "error": Severity.HIGH,
    "critical": Severity.CRITICAL,
}


def severity_of(word: object) -> Severity | None:
    """The severity a tool or database means by ``word``; None when it says nothing we know."""
    return _WORDS.get(word.strip().lower()) if isinstance(word, str) else None


class Scanner(StrEnum):
    """The scanners of a release, by the name of the tool that works behind each."""

    BANDIT = "bandit"
    OSV = "osv"
    DETECT_SECRETS = "detect-secrets"
    HADOLINT = "hadolint"
    SCHEMATHESIS = "schemathesis"

    @property
    def looks_at(self) -> str:
        return _LOOKS_AT[self]


_LOOKS_AT = {
    Scanner.BANDIT: "static analysis",
    Scanner.OSV: "dependencies",
    Scanner.DETECT_SECRETS: "secrets",
    Scanner.HADOLINT: "container file",
    Scanner.SCHEMATHESIS: "API fuzz",
}


class Finding(_Frozen):
    """One thing a scanner found."""

    scanner: Scanner
    id: str = Field(min_length=1, description="The tool's rule, or the advisory: CVE-2023-32681.")
    aliases: tuple[str, ...] = Field((), description="Other names of the same problem.")
    severity: Severity
    rated: bool = Field(True, description="False: the source gave no severity; counts as high.")
    title: str
    where: str = Field(description="file:line, package and version, or API operation.")
    detail: str = ""
    fix: str = ""
    url: str = ""

    @model_validator(mode="after")
    def _unknown_is_high(self) -> Finding:
        if not self.rated and not self.severity.reaches(Severity.HIGH):
            raise ValueError("a finding without a known severity counts as high")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)

    @property
    def place(self) -> str:
        """``where`` without the line number: lines move, an allowance should not."""
        head, colon, tail = self.where.rpartition(":")
        return head if colon and tail.isdigit() else self.where


class Allowance(_Frozen):
    """One entry of the allow-list: what may be there, why, and until when."""

    id: str = Field(description="Rule or advisory, or a pattern such as DL30*; aliases count.")
    scanner: Scanner = Field(description="The scanner whose finding is allowed.")
    path: str | None = Field(None, description="Pattern for the place; None: anywhere.")
    reason: str = Field(description="Why this may stay; a person reads it in the verdict.")
    expires: date = Field(description="The last day on which the entry allows anything.")

    @field_validator("id")
    @classmethod
    def _names_something(cls, value: str) -> str:
        if not value.strip("*?[]! \t"):
            raise ValueError(f"{value!r} would allow everything; name a rule or an advisory")
        return value

    @field_validator("reason")
    @classmethod
    def _says_why(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("an allowance needs a reason")
        return value.strip()

    def in_force(self, today: date) -> bool:
        return today <= self.expires

    def covers(self, finding: Finding) -> bool:
        """Whether the entry speaks of this finding, in force or not."""
        return (
            finding.scanner is self.scanner
            and any(fnmatchcase(name, self.id) for name in finding.names)
            and (self.path is None or fnmatchcase(finding.place, self.path))
        )


class ScanPolicy(_Frozen):
    """What an environment demands of a scan."""

    fail_on: Severity = Field(
        Severity.HIGH, description="The lowest severity that stops a release."
    )
    advisories: str = Field(
        ONLINE,
        min_length=1,
        description="'online' (the OSV API), or a directory of OSV files, relative to "
        "application.yaml.",
    )
    advisories_max_age_days: int = Field(
        7, ge=0, le=36_500, description="Older advisories are an error, not a clean result."
    )
    fuzz_max_examples: int = Field(
        25, ge=1, le=10_000, description="Generated requests for each API operation, at most."
    )
    fuzz_seconds: float = Field(
        120, gt=0, le=3_600, description="The fuzz must end within; it is an error if it does not."
    )
    allow: tuple[Allowance, ...] = Field(
        (), description="Findings that may stay, each with a reason and a last day."
    )


class ScannerReport(_Frozen):
    """Evidence: what one scanner looked at and what it found, before any policy.

    Exactly one of three holds: it worked, it could not work (``problem``), or there was nothing
    of its kind (``not_applicable``, a fact with its reason, never a choice).
    """

    scanner: Scanner
    scope: str = Field("", description="The service or part it looked at; empty: all.")
    tool: str = Field("", description="Name and version of the tool.")
    checked: int = Field(0, ge=0, description="Files, packages or requests it looked at.")
    checked_against: str = Field(
        "", description="What was compared with what: '83 packages against 12 advisories of ...'."
    )
    findings: tuple[Finding, ...] = ()
    problem: str | None = Field(None, description="Why it could not do its work.")
    remedy: str = Field("", description="What to do about the problem.")
    detail: str = Field("", description="The last lines of the tool, when there is a problem.")
    not_applicable: str | None = Field(None, description="Why there is nothing for it to do.")
    seconds: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _one_story(self) -> ScannerReport:
        if self.not_applicable is not None and (self.problem is not None or self.findings):
            raise ValueError("a scanner with a problem or a finding was applicable")
        if "" in (self.problem, self.not_applicable):
            raise ValueError("a problem, or a reason for not scanning, cannot be empty")
        if any(finding.scanner is not self.scanner for finding in self.findings):
            raise ValueError("a report holds the findings of its own scanner only")
        return self

    @property
    def label(self) -> str:
        return f"{self.scanner} ({self.scope})" if self.scope else str(self.scanner)

    @property
    def evidence(self) -> Verdict:
        """Whether it did its work; says nothing of what it found."""
        if self.not_applicable is not None:
            return Verdict.NOT_RUN
        if self.problem is not None:
            return Verdict.ERROR
        return Verdict.PASS if self.checked else Verdict.NO_DATA


class Allowed(_Frozen):
    """A finding that may stay, and the entry that says so."""

    finding: Finding
    allowance: Allowance


class JudgedReport(_Frozen):
    """One scanner's evidence with the verdict that the policy gives it."""

    report: ScannerReport
    verdict: Verdict
    reason: str
    refused: tuple[Finding, ...] = ()
    tolerated: tuple[Finding, ...] = Field((), description="Below the threshold.")
    allowed: tuple[Allowed, ...] = ()


class ScanVerdict(_Frozen):
    """What a release may do after all scans: only ``pass`` goes on."""

    verdict: Verdict
    reasons: tuple[str, ...] = Field(description="One sentence for each scanner, worst first.")
    counts: dict[Severity, int] = Field(description="Findings that no entry allows, by severity.")
    fail_on: Severity
    scanners: tuple[JudgedReport, ...]
    missing: tuple[Scanner, ...] = Field((), description="Expected, but handed in no report.")
    expired: tuple[Allowance, ...] = Field((), description="Entries that no longer allow.")
    unused: tuple[Allowance, ...] = Field((), description="Entries in force that met nothing.")

    @property
    def refused(self) -> tuple[Finding, ...]:
        return tuple(f for judged in self.scanners for f in judged.refused)

    @property
    def tolerated(self) -> tuple[Finding, ...]:
        return tuple(f for judged in self.scanners for f in judged.tolerated)

    @property
    def allowed(self) -> tuple[Allowed, ...]:
        return tuple(a for judged in self.scanners for a in judged.allowed)

    @property
    def worst_first(self) -> tuple[Finding, ...]:
        """Every finding that no entry allows."""
        return tuple(sorted(self.refused + self.tolerated, key=_worst_first))

    @property
    def summary(self) -> str:
        """The verdict as one sentence."""
        found = ", ".join(
            f"{number} {severity}"
            for severity in reversed(Severity)
            if (number := self.counts[severity])
        )
        asked = [one.report for one in self.scanners if one.report.not_applicable is None]
        blind = sum(not report.evidence.advances for report in asked) + len(self.missing)
        allowed = f", {len(self.allowed)} allowed" if self.allowed else ""
        return (
            f"{self.verdict}: {found or 'no findings'}{allowed} from "
            f"{len(asked) + len(self.missing) - blind} scanners"
            + (f", {blind} could not work" if blind else "")
            + f"; the limit is {self.fail_on}"
        )

    def as_error(self) -> Failed | None:
        """The error that stops a release; None for a pass."""
        if self.verdict.advances:
            return None
        detail = "\n".join(self.reasons)
        if self.verdict is Verdict.FAIL:
            first = min(self.refused, key=_worst_first)
            return Failed(
                "SLP040",
                f"{len(self.refused)} findings at or above {self.fail_on}; the worst: "
                f"{first.id} in {first.where}, {first.title}",
                help=first.fix or "fix it, or allow it with a reason and an expiry date",
                where=first.where,
                detail=detail,
            )
        blind = next((one.report for one in self.scanners if one.report.problem), None)
        return Failed(
            "SLP041",
            f"the scan is incomplete: {self._blindness()}",
            help=(f"{blind.remedy}; or " if blind and blind.remedy else "repair it, or ")
            + "release with --accept-incomplete-scan REASON, which the journal keeps",
            detail="\n".join(filter(None, (detail, blind.detail if blind else ""))),
        )

    def _blindness(self) -> str:
        """What is missing, in a few words."""
        blind = [
            one
            for one in self.scanners
            if not one.verdict.advances and one.report.not_applicable is None
        ]
        parts = [
            f"{one.report.label}: {one.report.problem or 'it looked at nothing'}"
            for one in blind[:1]
        ]
        parts += [f"and {len(blind) - 1} more"] * (len(blind) > 1)
        parts += [f"{scanner} handed in no report" for scanner in self.missing]
        return " ".join(parts) or "no scanner ran"


def judge(
    reports: Iterable[ScannerReport],
    policy: ScanPolicy,
    today: date,
    expected: Iterable[Scanner] = tuple(Scanner),
) -> ScanVerdict:
    """Judge all evidence of one scan.

    Every scanner in ``expected`` must have handed in a report, be it that it had nothing to do.
    The result does not depend on the order of reports, findings or allowances.
    """
    judged = sorted((_judge_one(report, policy, today) for report in reports), key=_by_trust)
    missing = tuple(sorted(set(expected) - {one.report.scanner for one in judged}))
    verdicts = [one.verdict for one in judged if one.report.not_applicable is None]
    verdicts += [Verdict.NOT_RUN for _ in missing]
    findings = [finding for one in judged for finding in one.report.findings]
    open_findings = [finding for one in judged for finding in one.refused + one.tolerated]
    allow = sorted(policy.allow, key=_stable)
    return ScanVerdict(
        verdict=worst(verdicts),
        reasons=(
            *(f"{scanner}: not_run, it handed in no report" for scanner in missing),
            *(f"{one.report.label}: {one.reason}" for one in judged),
        ),
        counts={s: sum(f.severity is s for f in open_findings) for s in Severity},
        fail_on=policy.fail_on,
        scanners=tuple(judged),
        missing=missing,
        expired=tuple(entry for entry in allow if not entry.in_force(today)),
        unused=tuple(
            entry
            for entry in allow
            if entry.in_force(today) and not any(map(entry.covers, findings))
        ),
    )


def _judge_one(report: ScannerReport, policy: ScanPolicy, today: date) -> JudgedReport:
    allowed: list[Allowed] = []
    open_findings: list[Finding] = []
    expired: list[Finding] = []
    for finding in sorted(report.findings, key=_worst_first):
        entries = sorted((e for e in policy.allow if e.covers(finding)), key=_stable)
        if entry := next((e for e in entries if e.in_force(today)), None):
            allowed.append(Allowed(finding=finding, allowance=entry))
            continue
        open_findings.append(finding)
        if entries:
            expired.append(finding)
    refused = tuple(f for f in open_findings if f.severity.reaches(policy.fail_on))
    verdict = worst([report.evidence, Verdict.FAIL] if refused else [report.evidence])
    return JudgedReport(
        report=report,
        verdict=verdict,
        reason=_reason(report, verdict, refused, len(open_findings), len(allowed), len(expired)),
        refused=refused,
        tolerated=tuple(f for f in open_findings if not f.severity.reaches(policy.fail_on)),
        allowed=tuple(allowed),
    )


def _reason(
    report: ScannerReport,
    verdict: Verdict,
    refused: Sequence[Finding],
    open_findings: int,
    allowed: int,
    expired: int,
) -> str:
    if report.not_applicable is not None:
        return f"not applicable, {report.not_applicable}"
    seen = f"{len(refused)} over the limit, {open_findings - len(refused)} below, {allowed} allowed"
    late = f"; the allowance of {expired} has expired" if expired else ""
    against = f"; {report.checked_against}" if report.checked_against else ""
    if report.problem is not None and not report.findings:
        return f"{verdict}, {report.problem}"
    trouble = f"; {report.problem}" if report.problem is not None else ""
    if verdict is Verdict.NO_DATA:
        trouble = "; it looked at nothing"
    return f"{verdict}, {seen}{late}{trouble}{against}"


def _worst_first(finding: Finding) -> tuple[int, str]:
    return -finding.severity.rank, finding.model_dump_json()


def _by_trust(judged: JudgedReport) -> tuple[bool, int, str]:
    applicable = judged.report.not_applicable is None
    return not applicable, -_TRUST[judged.verdict], judged.model_dump_json()


_TRUST = {verdict: rank for rank, verdict in enumerate(Verdict)}


def _stable(entry: Allowance) -> str:
    return entry.model_dump_json()
