"""Start a flow that changes an environment, follow it, and say how it ended."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform as machine
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.application_file import read_flags
from blocks.file_store import FileStore
from blocks.journal import Journal
from blocks.records import Records
from deployments import accounts, registration
from deployments.console import Console, nearest, table
from deployments.follow import first_line, follow
from deployments.runs import PrefectServer, Run
from domain.application import FILE_NAME, Application, Strategy, parse
from domain.backup_report import BackupReport
from domain.contract import check_way_back
from domain.drill_report import RecoveryReport
from domain.errors import (
    CATALOGUE,
    AwaitingApproval,
    Failed,
    NeedsPerson,
    OutcomeUnknown,
    SlipwayError,
    Unauthorised,
    UsageError,
)
from domain.journal import GENESIS, Outcome, Release, live, previous_live, unfinished
from domain.load_report import LoadReport
from domain.plan import Plan, Version, counts_done, plan_release, plan_rollback
from domain.release import Report, version_of
from domain.rollout import Target
from sandbox import control
from sandbox.home import Home

SANDBOX = "sandbox"
_CODED = re.compile(r"error\[(?P<code>SLP\d{3})\]: (?P<text>.*)")
_KINDS: Mapping[int, type[SlipwayError]] = {
    kind.exit_code: kind
    for kind in (UsageError, Failed, NeedsPerson, Unauthorised, AwaitingApproval, OutcomeUnknown)
}


@dataclass(frozen=True)
class Place:
    """Where flows run: the Prefect server, its UI, and the store that holds what they wrote."""

    api: str
    ui: str
    store: Path
    sandbox: Home | None = None

    def url(self, run: str) -> str:
        return f"{self.ui}/runs/flow-run/{run}"

    def journal(self, application: str, environment: str) -> Journal:
        return Journal(FileStore(self.store), application, environment)

    def report(self, run: str) -> Report | None:
        return Records(FileStore(self.store)).report(run)

    def backup_report(self, run: str) -> BackupReport | None:
        return Records(FileStore(self.store)).backup_report(run)

    def recovery_report(self, run: str) -> RecoveryReport | None:
        return Records(FileStore(self.store)).recovery_report(run)

    def load_report(self, run: str) -> LoadReport | None:
        return Records(FileStore(self.store)).load_report(run)


@dataclass(frozen=True)
class Started:
    """What a flow is started with."""

    deployment: str
    name: str
    tags: tuple[str, ...]
    parameters: Mapping[str, Any]


# --- where ----------------------------------------------------------------------------------


def find_place(home: Home, platform: str, console: Console) -> Place:
    """The place of a platform block: the running sandbox, or the server at PREFECT_API_URL.

    Raises:
        UsageError: SLP010, nothing runs there, or the server has no such block.
    """
    if platform == SANDBOX:
        addresses = control.require(home).addresses
        store = Path(addresses["store"])
        return Place(addresses["prefect_api"], addresses["prefect_ui"], store, home)
    api = console.environ.get("PREFECT_API_URL", "")
    if not api:
        raise UsageError(
            "SLP010",
            f"the environment runs on platform `{platform}`, and no Prefect server is named",
            help="set PREFECT_API_URL to the server that has this platform block",
        )
    with open_server(api, console) as server:
        block = server.block("slipway-platform", platform)
    if block is None:
        raise UsageError(
            "SLP010",
            f"the Prefect server has no platform block named {platform!r}",
            help="save a Slipway Platform block of that name in the Prefect UI",
            where=api,
        )
    ui = str(block.get("ui_url") or api.removesuffix("/api"))
    return Place(api, ui, Path(str(block["store_root"])))


def open_server(api: str, console: Console) -> PrefectServer:
    return PrefectServer(api, key=console.environ.get("PREFECT_API_KEY", ""), on_lost=console.warn)


def read_application(path: Path) -> tuple[Application, Path]:
    """The parsed application.yaml of a folder, and the folder.

    Raises:
        UsageError: SLP001, SLP002 or SLP080.
    """
    file = path if path.name == FILE_NAME else path / FILE_NAME
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            "SLP001",
            f"tried to read {file}: {(seen or str(error)).lower()}",
            help=f"pass the folder that holds {FILE_NAME}, or write one: slipway init {path}",
            where=str(file),
        ) from error
    application = parse(text, str(file))
    read_flags(application, file)
    return application, file.parent.resolve()


def known_applications(store: Path) -> dict[str, list[str]]:
    """Environments by application, as far as the journal knows them."""
    found: dict[str, list[str]] = {}
    for key in FileStore(store).list("journal"):
        parts = key.split("/")
        if len(parts) == 4 and parts[2] not in found.setdefault(parts[1], []):
            found[parts[1]].append(parts[2])
    return found


def require_known(store: Path, application: str, environment: str | None = None) -> list[str]:
    """The environments of an application that was released before.

    Raises:
        UsageError: SLP006 for the application, SLP003 for the environment.
    """
    known = known_applications(store)
    if application not in known:
        raise UsageError(
            "SLP006",
            f"nothing was ever released under the name {application!r}",
            help=nearest(application, known),
        )
    if environment is not None and environment not in known[application]:
        raise UsageError(
            "SLP003",
            f"{application} was never released to {environment!r}",
            help=nearest(environment, known[application]),
        )
    return known[application]


# --- plans ----------------------------------------------------------------------------------


def read_version(application: Application, source: Path, asked: str) -> str:
    """The version that the release is going to have; git is asked only when nothing says it.

    Raises:
        UsageError: SLP000, ``asked`` is not a version that application.yaml could hold.
    """
    if asked:
        _check_version(asked)
    if asked or application.version:
        return version_of(application, asked, "")
    from blocks.builder import read_revision

    return version_of(application, asked, str(read_revision(source)))


def _check_version(asked: str) -> None:
    options = Application.model_json_schema()["properties"]["version"]["anyOf"]
    pattern = next(option["pattern"] for option in options if "pattern" in option)
    if not re.fullmatch(pattern, asked):
        raise UsageError(
            "SLP000",
            f"--version is {asked!r}, which does not match {pattern}",
            help="use letters, digits, dots and dashes, such as 1.2.0",
        )


def make_plan(journal: Journal, application: Application, version: str, strategy: Strategy) -> Plan:
    current = live(journal.history())
    return plan_release(
        application,
        journal.environment,
        version=version,
        strategy=strategy,
        live=_version(current) if current else None,
        number=journal.next_release(),
    )


def find_rollback(journal: Journal, number: int) -> tuple[Release, Release]:
    """The live release and the one to go back to; ``number`` 0 is the version before.

    Raises:
        UsageError: SLP006.
    """
    history = journal.history()
    current = live(history)
    back = (
        previous_live(history)
        if not number
        else next(
            (r for r in history if r.number == number and r.outcome is Outcome.PROMOTED), None
        )
    )
    where = f"{journal.application} in {journal.environment}"
    see = f"slipway history {journal.application} --environment {journal.environment}"
    if current is None:
        raise UsageError("SLP006", f"nothing is live of {where}", help=f"see `{see}`")
    if back is None or back.number == current.number:
        what = f"release {number} that was live and is not now" if number else "earlier version"
        raise UsageError("SLP006", f"{where} has no {what} to go back to", help=f"see `{see}`")
    check_way_back(journal.entries, back, where)
    return current, back


def make_rollback_plan(place: Place, journal: Journal, current: Release, back: Release) -> Plan:
    record = Records(FileStore(place.store)).record(back.digest)
    return plan_rollback(
        record.application,
        journal.environment,
        back_to=_version(back),
        live=_version(current),
        present={},
    )


def _version(release: Release) -> Version:
    targets = tuple(Target.model_validate(t) for t in release.data.get("candidate", ()))
    return Version(release.version, targets)


def show_plan(plan: Plan, console: Console) -> None:
    styles = {"add": "green", "change": "yellow", "check": "blue", "remove": "red"}
    console.say(console.paint(plan.title, "bold"))
    for line in plan.lines:
        console.say(
            f"  {console.paint(f'{line.symbol} {line.word}', styles[line.change])} {line.text}"
        )
    console.say(plan.summary())


def warn_unfinished(journal: Journal, console: Console) -> None:
    held = unfinished(journal.history())
    if held:
        console.warn(
            f"release {held.number} ({held.version}) of {held.actor} has not ended since "
            f"{held.started_at:%Y-%m-%d %H:%M} UTC (run {held.run}); this one queues behind it, "
            "or repairs what it left"
        )


def confirm(console: Console, platform: str, application: str, given: str, command: str) -> None:
    """Users depend on what changes now: somebody has to type the application's name.

    The sandbox is for practice, so it asks nobody.

    Raises:
        UsageError: SLP007.
    """
    if platform != SANDBOX:
        require_typed(console, application, given, command)


def require_typed(console: Console, application: str, given: str, command: str) -> None:
    """Raises UsageError SLP007 unless the application's name is given or typed."""
    if given == application:
        return
    typed = given
    if not given and console.interactive:
        console.say(f"This changes what users of {application} get.")
        typed = input(f"Type the application's name to go on ({application}): ").strip()
    if typed != application:
        seen = f"{typed!r} is not its name" if typed else "nobody confirmed it"
        raise UsageError(
            "SLP007",
            f"this changes what users of {application} depend on, and {seen}",
            help=f"run: {command} --confirm {application}",
        )


# --- acting ---------------------------------------------------------------------------------


def who() -> str:
    """Who asks, for the journal: the CI's actor, else the person at this machine."""
    if actor := os.environ.get("GITHUB_ACTOR"):
        return f"{actor} (GitHub Actions)"
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{machine.node() or 'localhost'}"


def start(
    place: Place, started: Started, console: Console, *, detach: bool, plan: Plan | None = None
) -> int:
    """Create the run, follow it and report; returns the exit code.

    The first Ctrl-C leaves the run alone and says how to watch or cancel it.
    """
    if place.sandbox is not None:
        # After an upgrade the server still holds the old forms, and a run by them would crash.
        registration.ensure(place.sandbox, control.require(place.sandbox), console)
    with open_server(place.api, console) as server:
        run = server.start(started.deployment, started.parameters, started.name, started.tags)
        console.say(f"run {run.name}: {place.url(run.id)}")
        if detach:
            document = {"run": run.id, "run_url": place.url(run.id), "outcome": None}
            console.finish(place.url(run.id), document, next=_watch(run.id))
            return 0
        shown = [plan.title, *map(str, plan.lines)] if plan else []
        return follow_to_end(place, server, run, console, shown)


def follow_to_end(
    place: Place, server: PrefectServer, run: Run, console: Console, shown: Sequence[str] = ()
) -> int:
    try:
        ended = follow(server, run, console, mute=shown)
    except KeyboardInterrupt:
        return _detached(place, run, console)
    return conclude(place, ended, console)


def _detached(place: Place, run: Run, console: Console) -> int:
    console.say("")
    text = "interrupted; the run goes on"
    document = {"run": run.id, "run_url": place.url(run.id), "outcome": None, "detached": True}
    console.say(text)
    console.finish(place.url(run.id), document, next=_watch(run.id))
    return 130


def _watch(run: str) -> list[str]:
    return [f"slipway watch {run}", f"slipway cancel {run}"]


def conclude(place: Place, run: Run, console: Console) -> int:
    """Print the report of an ended run; returns the exit code that it stands for."""
    if (saved := place.backup_report(run.id)) is not None:
        return accounts.conclude(saved, error_of(saved.error), place.url(run.id), console)
    if (tested := place.load_report(run.id)) is not None:
        from deployments import loading

        error = error_of(tested.error)
        return loading.conclude(place, tested, error, place.url(run.id), console)
    if (recovered := place.recovery_report(run.id)) is not None:
        from deployments import recovering

        error = error_of(recovered.error)
        return recovering.conclude(place, recovered, error, place.url(run.id), console)
    report = place.report(run.id)
    if report is None:
        return _without_report(place, run, console)
    url = place.url(run.id)
    code = exit_code(report, run)
    document = {**report.model_dump(mode="json"), "run": run.id, "run_url": url}
    _tell(report, run, place, console)
    error = error_of(report.error)
    undo = report.undo if report.outcome is Outcome.PROMOTED else ""
    if error is not None and not console.json:
        console.error(error)
        print(url, flush=True)
        console.hints(_after(report))
    else:
        console.finish(url, document, next=_after(report), undo=undo)
        if error is not None:
            _annotate(error, console)
    return code


def _annotate(error: SlipwayError, console: Console) -> None:
    """The error for people: with --json stdout already has it, within the report."""
    Console(quiet=True, color=console.color, environ=console.environ).error(error)


def exit_code(report: Report, run: Run) -> int:
    """0 only when the new version is live."""
    match report.outcome:
        case Outcome.PROMOTED:
            return 0
        case Outcome.ROLLBACK_FAILED:
            return 3
        case _ if run.state == "CANCELLED":
            return 130
        case Outcome.REFUSED if report.error and report.error.get("exit_code"):
            return int(report.error["exit_code"])
        case _:
            return 1


def error_of(raw: Mapping[str, Any] | None) -> SlipwayError | None:
    """The error that ``SlipwayError.to_dict`` was made from."""
    if not raw:
        return None
    kind = _KINDS.get(int(raw.get("exit_code") or 1), Failed)
    return kind(
        str(raw["code"]),
        str(raw["message"]),
        help=str(raw.get("hint") or ""),
        where=raw.get("where"),
        detail=str(raw.get("detail") or ""),
    )


def _tell(report: Report, run: Run, place: Place, console: Console) -> None:
    console.say("")
    for stage in report.stages:
        line = f"{stage.outcome.symbol} {stage.name:<8} {stage.outcome:<8} {stage.seconds:6.1f} s"
        console.say(f"  {line}  {stage.summary}".rstrip())
    if report.release is not None and report.outcome is Outcome.PROMOTED:
        journal = place.journal(report.application, report.environment)
        done = counts_done(e for e in journal.entries if e.release == report.release)
        console.say(f"done: {done.done()}")
    console.say(f"{console.outcome(report.outcome)} {report.sentence()}")
    if report.url:
        console.say(f"serves at {report.url}")
    console.job_summary(_summary(report, place.url(run.id)))


def _summary(report: Report, url: str) -> str:
    rows = "\n".join(
        f"| {s.name} | {s.outcome.symbol} {s.outcome} | {s.seconds:.1f} | "
        f"{s.summary.replace('|', '/')} |"
        for s in report.stages
    )
    stages = f"\n\n| stage | outcome | seconds | |\n|---|---|---|---|\n{rows}" if rows else ""
    undo = f"\n\nTo undo: `{report.undo}`" if report.undo else ""
    return f"### {report.outcome}: {report.sentence()}{stages}\n\n[The run]({url}){undo}"


def _after(report: Report) -> Sequence[str]:
    place = f"{report.application} --environment {report.environment}"
    match report.outcome:
        case Outcome.PROMOTED:
            return ["slipway status", f"slipway history {place}"]
        case Outcome.ROLLBACK_FAILED:
            return ["slipway status", f"slipway recover {place}"]
        case _:
            return [f"slipway history {place}"]


def _without_report(place: Place, run: Run, console: Console) -> int:
    """Flows that move no traffic leave none; of the others it means that nobody knows."""
    url = place.url(run.id)
    document = {"run": run.id, "run_url": url, "outcome": None, "state": run.state_name}
    application, environment = run.tag("app"), run.tag("env")
    if run.state == "CANCELLED":
        console.finish(url, document, next=["slipway status"])
        return 130
    if run.state == "COMPLETED" and run.tag("kind") not in ("release", "rollback", "retry"):
        console.say(f"{console.paint('✔', 'green')} {run.message}")
        console.finish(url, {**document, "message": run.message}, next=["slipway status"])
        return 0
    error = _said(run, url)
    if error is None or _left_open(place, run, application, environment):
        error = OutcomeUnknown(
            "SLP071",
            f"run {run.name} ended {run.state_name} and left no report"
            + (f": {first_line(run.message)}" if run.message else ""),
            help=(
                f"repair what it left: slipway recover {application} --environment {environment}"
                if application and environment
                else "read its log in the UI"
            ),
            where=url,
        )
    console.error(error, document=document, next=["slipway status"])
    return error.exit_code


def _said(run: Run, url: str) -> SlipwayError | None:
    """The error that a state's message tells of."""
    match = _CODED.search(run.message)
    if run.state != "FAILED" or match is None or match["code"] not in CATALOGUE:
        return None
    kind = _KINDS.get(CATALOGUE[match["code"]].exit_code, Failed)
    cause, _, help = match["text"].partition("; ")
    return kind(match["code"], cause, help=help or CATALOGUE[match["code"]].fix, where=url)


def _left_open(place: Place, run: Run, application: str, environment: str) -> bool:
    """Whether the run wrote the start of a release and not its end."""
    if not (application and environment):
        return False
    held = unfinished(place.journal(application, environment).history())
    return held is not None and held.run == run.id


# --- the journal for people -----------------------------------------------------------------


def read_raw(store: Path, application: str, environment: str) -> dict[int, bytes]:
    """Stored entries by number, of a journal that may be damaged."""
    files = FileStore(store)
    found = {}
    for key in files.list(f"journal/{application}/{environment}"):
        content, name = files.read(key), key.rsplit("/", 1)[-1].removesuffix(".json")
        if content is not None and name.isdigit():
            found[int(name)] = content
    return found


def head_of(raw: Mapping[int, bytes]) -> str:
    """The hash of the newest entry; to be noted elsewhere."""
    return hashlib.sha256(raw[max(raw)]).hexdigest() if raw else GENESIS


def release_document(release: Release) -> dict[str, Any]:
    """One release as ``--json`` prints it."""
    ended = release.finished_at
    return {
        "release": release.number,
        "version": release.version,
        "digest": release.digest,
        "strategy": release.strategy,
        "outcome": release.outcome,
        "reason": release.reason,
        "actor": release.actor,
        "run": release.run,
        "started_at": release.started_at.isoformat(),
        "finished_at": ended.isoformat() if ended else None,
        "seconds": (ended - release.started_at).total_seconds() if ended else None,
        "requests": release.data.get("requests"),
        "failed_requests": release.data.get("failed_requests"),
    }


def show_history(releases: Sequence[Release], current: Release | None, console: Console) -> str:
    """Newest first; reasons below their line, so that no column is ever cut."""
    rows, reasons = [], []
    for release in reversed(releases):
        ended = release.finished_at
        rows.append(
            (
                f"{'→' if current and release.number == current.number else ' '} {release.number}",
                release.version,
                release.digest.removeprefix("sha256:")[:12],
                release.strategy,
                release.outcome or "unfinished",
                f"{release.started_at:%Y-%m-%d %H:%M}",
                f"{(ended - release.started_at).total_seconds():.0f} s" if ended else "",
                release.actor,
            )
        )
        shown = release.reason if release.outcome is not Outcome.PROMOTED else ""
        reasons.append(f"      {shown}" if shown else "")
    heads = ("  #", "version", "digest", "strategy", "outcome", "started UTC", "took", "by")
    head, *lines = table(heads, rows).splitlines()
    woven = [part for pair in zip(lines, reasons, strict=True) for part in pair if part]
    return "\n".join([head, *woven])
