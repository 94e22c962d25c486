"""Beginning, continuing and taking over releases of an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger, runtime

from blocks.epochs import Epochs
from blocks.journal import Journal
from blocks.platform import Platform
from blocks.records import Records
from domain.application import Application, Strategy
from domain.contract import check_way_back
from domain.errors import Failed, NeedsPerson, SlipwayError, UsageError
from domain.journal import Kind, Outcome, Release, live, previous_live, unfinished
from domain.load_gate import refusal
from domain.release import (
    BuildRecord,
    policy_for,
    refuse_repeat,
    targets,
    workload_name,
)
from domain.rollout import Action, Judge, State, Target, next_action
from domain.routing import Counts
from domain.verdict import Verdict
from tasks.locks import environment_lock
from tasks.rollout import Rollout, Side


def open_journal(
    platform: Platform, application: str, environment: str, actor: str = ""
) -> Journal:
    return Journal(platform.store, application, environment, actor=actor or "prefect", run=run_id())


def run_id() -> str:
    """Id of the flow run that a person started, also from inside its subflows."""
    return str(runtime.flow_run.root_flow_run_id or "none")


def refuse_early(platform: Platform, record: BuildRecord, environment: str) -> None:
    """Say before the tests, and not after, that there is nothing to release, or not yet.

    Raises:
        UsageError: it is live already. Failed: SLP188, it has not passed its load test.
    """
    journal = open_journal(platform, record.application.name, environment)
    refuse_repeat(journal.history(), record.version, record.digest)
    require_load(platform, record, environment)
    require_epoch(platform, record.application, environment)


def require_epoch(platform: Platform, application: Application, environment: str) -> None:
    """Raises Failed SLP203: since a failover users are in another cloud."""
    if platform.epochs is None:
        return
    # Whatever the new version declares: it is the environment that was failed over.
    newest = Epochs(platform.epoch_store(), application.name, environment).newest()
    if newest is not None and newest.side != platform.side:
        raise Failed(
            "SLP203",
            f"users of {application.name} in {environment} are served by {newest.side} since "
            f"{newest.claimed_at:%Y-%m-%d %H:%M} UTC, so a release to {platform.side} would reach "
            "nobody",
            help=f"bring them back first: slipway failback {application.name} -e {environment}",
        )


def require_load(platform: Platform, record: BuildRecord, environment: str) -> None:
    """Raises Failed SLP188 when the environment asks for a load test that this build lacks."""
    application = record.application
    gate = application.environment(environment).require_load
    if gate is None:
        return
    reports = Records(platform.store).load_reports()
    if why := refusal(reports, application.name, record.digest, gate, datetime.now(UTC)):
        raise Failed(
            "SLP188",
            f"{application.name} {record.version} may not go to {environment} yet: {why}",
            help=f"run `slipway load {application.name} -e {gate.environment} --profile "
            f"{gate.profile}`, then release again",
        )


def begin(
    platform: Platform,
    record: BuildRecord,
    environment: str,
    *,
    strategy: Strategy,
    actor: str = "",
    back_to: Release | None = None,
    override: str = "",
) -> Rollout:
    """Start a release: finish what an earlier one left, look at what is live, write the start.

    Args:
        back_to: the earlier release whose workloads serve again; no migration is run then.
        override: what was accepted without a pass, by whom and why.

    Raises:
        UsageError: SLP004, SLP005 (a repeat).
        NeedsPerson: SLP055 when an unfinished release could not be put back.
    """
    application = record.application.name
    journal = open_journal(platform, application, environment, actor)
    take_over(platform, journal)
    history = journal.history()
    if back_to is None:
        refuse_repeat(history, record.version, record.digest)
    stable = live(history)
    number = journal.next_release()
    names = (
        dict(back_to.workloads)
        if back_to
        else {
            service: workload_name(application, environment, service, number)
            for service in record.application.services
        }
    )
    counts = platform.edge.counts(application, environment)
    policy = policy_for(
        record,
        environment,
        strategy,
        migrate=back_to is None,
        stable=Records(platform.store).record(stable.digest) if stable else None,
        first=stable is None,
    )
    start = {
        "version": record.version,
        "digest": record.digest,
        "revision": record.revision,
        "strategy": strategy.value,
        "policy": policy.model_dump(mode="json"),
        "workloads": names,
        "candidate": [t.model_dump() for t in targets(record, environment, names)],
        "stable": list(stable.data["candidate"]) if stable else [],
        "stable_digest": stable.digest if stable else None,
        "previous": stable.number if stable else None,
        "back_to": back_to.number if back_to else None,
        "override": override,
        "counts": {w: c.model_dump(include={"requests", "errors"}) for w, c in counts.items()},
    }
    try:
        journal.append(number, Kind.STARTED, start)
    except Failed:
        if journal.next_release() == number:
            raise
        # Nobody acts; a refused release was only noted under our number in the meantime.
        return begin(platform, record, environment, strategy=strategy, actor=actor,
                     back_to=back_to, override=override)  # fmt: skip
    return resume(platform, journal, number)


def resume(platform: Platform, journal: Journal, number: int) -> Rollout:
    """The rollout of a started release, from the journal alone."""
    data = next(e.data for e in journal.entries if e.release == number and e.kind is Kind.STARTED)
    records = Records(platform.store)
    return Rollout(
        platform=platform,
        journal=journal,
        number=number,
        candidate=_side(records, data["digest"], data["candidate"]),
        stable=_side(records, data["stable_digest"], data["stable"])
        if data["stable_digest"]
        else None,
        before={w: Counts.model_validate(c) for w, c in data["counts"].items()},
        log=_logger(),
    )


def take_over(platform: Platform, journal: Journal, *, go_on: bool = False) -> Release | None:
    """Put back what a release that never ended has left; None when there is none.

    The first append makes its process stop, should it still live. One whose steps had all
    passed is brought to its end instead: its version is what was judged and what users have.

    Args:
        go_on: nobody wants the environment for another version, so one that declares
            ``interrupted: continue`` collects the evidence of its step anew and goes on.
    """
    found = unfinished(journal.history())
    if found is None:
        return None
    journal.append(found.number, Kind.TAKEN_OVER, {"from_run": found.run})
    rollout = resume(platform, journal, found.number)
    if not (go_on and rollout.state().policy.interrupted == "continue"):
        rollout.stop_requested = f"release {found.number} was interrupted (run {found.run})"
    rollout.drive()
    ended = release_of(journal, found.number)
    if ended.outcome is Outcome.ROLLBACK_FAILED:
        raise error_of(journal, ended)
    return ended


@contextmanager
def holding(platform: Platform, application: str, environment: str) -> Iterator[None]:
    """Nobody else changes the environment, and whatever ends the block leaves it whole.

    Raises:
        Failed: SLP054 when it did not become free within an hour.
    """
    with (
        environment_lock(application, environment),
        undone_when_stopped(platform, application, environment),
    ):
        yield


@contextmanager
def undone_when_stopped(platform: Platform, application: str, environment: str) -> Iterator[None]:
    """Whatever ends the block, cancellation at any line of it too: a release that this run began
    is not left half done.

    A cancelled run has some seconds to live: enough to give the traffic back. Should that fail
    or not be enough, the next release of the environment does it.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SlipwayError) or error.code not in ("SLP054", "SLP060"):
            _undo(platform, application, environment, error)
        raise


def _undo(platform: Platform, application: str, environment: str, error: BaseException) -> None:
    log = _logger()
    try:
        journal = open_journal(platform, application, environment)
        left = unfinished(journal.history())
        if left is None or left.run != run_id():
            return
        why = error.cause if isinstance(error, SlipwayError) else "the run was cancelled"
        log(f"stopping: {type(error).__name__}; going back")
        resume(platform, journal, left.number).cancel(why)
    except SlipwayError as second:  # the first error is the one to tell
        log(f"could not go back: {second}")


def trial(platform: Platform, journal: Journal) -> Rollout | None:
    """The release that waits for its last verdict, begun by this run or left by another.

    One that another run left half-way is none of ours: `recover` takes it back.
    """
    left = unfinished(journal.history())
    if left is None:
        return None
    rollout = resume(platform, journal, left.number)
    if left.run == run_id():
        return rollout
    state = replace(rollout.state(), since=journal.now())  # however long ago that was
    if not on_trial(state, next_action(state, rollout.observe(state))):
        return None
    journal.append(left.number, Kind.TAKEN_OVER, {"from_run": left.run})
    return rollout


def on_trial(state: State, action: Action) -> bool:
    """All traffic has moved and only the last verdict is missing."""
    last = state.step == len(state.policy.steps) - 1
    return last and isinstance(action, Judge) and action.subject == "candidate"


def release_of(journal: Journal, number: int) -> Release:
    return next(r for r in journal.history() if r.number == number)


def error_of(journal: Journal, release: Release) -> SlipwayError:
    """What a release that was not promoted ends with: its cause and the log that shows it."""
    cause: dict[str, Any] = {}
    for entry in journal.entries:
        if entry.release == release.number and entry.kind is Kind.ABORTING:
            cause = cause or dict(entry.data)
    detail = str(cause.get("detail", ""))
    if release.outcome is Outcome.ROLLBACK_FAILED:
        return NeedsPerson(
            "SLP055",
            release.reason,
            help="see docs/three_in_the_morning.md, section `rollback failed`",
            detail=detail,
        )
    serving = "the old version serves" if release.previous else "nothing was live before"
    return Failed(
        str(cause.get("code", "SLP053")),
        release.reason,
        help=f"{serving}; correct the cause and release again",
        detail=detail,
    )


def target_release(journal: Journal, wanted: int) -> Release:
    """What a rollback goes back to: release number ``wanted``, or the version before (0).

    Raises:
        UsageError: SLP004 when it is what serves, SLP006 when there is no such promoted release.
    """
    history = journal.history()
    current = live(history)
    if wanted:
        found = next(
            (r for r in history if r.number == wanted and r.outcome is Outcome.PROMOTED), None
        )
    else:
        found = previous_live(history)
    if found is None:
        asked = f"release {wanted}" if wanted else "an earlier version"
        promoted = ", ".join(str(r.number) for r in history if r.outcome is Outcome.PROMOTED)
        raise UsageError(
            "SLP006",
            f"looked for {asked} of {journal.application} in {journal.environment} to go back "
            f"to; promoted were: {promoted or 'none'}",
            help=f"see `slipway history {journal.application} --environment {journal.environment}`",
        )
    check_way_back(journal.entries, found, f"{journal.application} in {journal.environment}")
    if current and found.workloads == current.workloads:
        raise UsageError(
            "SLP004",
            f"release {found.number} is what serves in {journal.environment} already",
            help="choose another with --to, or run `slipway recover` if it does not serve",
        )
    return found


def check_live(platform: Platform, journal: Journal) -> None:
    """Judge what is live at its public address.

    Raises:
        UsageError: SLP006 when nothing is live.
        Failed: SLP053 with the first check that did not pass.
    """
    current = live(journal.history())
    if current is None:
        raise UsageError(
            "SLP006",
            f"nothing of {journal.application} is live in {journal.environment}",
            help="release it first",
        )
    for check in resume(platform, journal, current.number).look("candidate"):
        if check.verdict is not Verdict.PASS:
            raise Failed(
                "SLP053",
                check.reason,
                help=f"see `slipway status`; go back with `slipway rollback {journal.application} "
                f"--environment {journal.environment}`",
            )


def restore_live(platform: Platform, journal: Journal) -> str:
    """Start the live version's workloads again if the cluster lost them; a sentence about it.

    A cluster that was shut down has forgotten what ran; the journal has not.
    """
    current = live(journal.history())
    if current is None:
        return "nothing is live"
    rollout = resume(platform, journal, current.number)
    missing = rollout.restore()
    if not missing:
        return f"{current.version} serves"
    return f"{current.version} serves again; started {', '.join(missing)}"


def _side(records: Records, digest: str, found: list[dict[str, Any]]) -> Side:
    return Side(records.record(digest), tuple(Target.model_validate(t) for t in found))


def _logger() -> Callable[[str], None]:
    return get_run_logger().info
