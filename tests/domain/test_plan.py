"""A plan says what the rollout then does, whatever the world's timing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.application import Application, Service, Strategy
from domain.artifact import Artifact, ServiceBundle, digest_of
from domain.journal import Entry, Kind, next_entry
from domain.plan import Counts, Plan, Version, counts_done, plan_release, plan_rollback
from domain.release import BuildRecord, policy_for, targets, workload_name
from domain.rollout import (
    Advance,
    Finish,
    Group,
    Judge,
    Observation,
    Policy,
    Retire,
    Route,
    Scale,
    Stop,
    Target,
    Wait,
    describe,
    next_action,
    replay,
)
from domain.verdict import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)


def application(
    replicas: int = 2, services: int = 1, private: bool = False, migrate: bool = True
) -> Application:
    names = ["web", "api", "jobs"][:services]
    return Application.model_validate(
        {
            "name": "shop",
            "services": {
                name: Service(
                    command="run",
                    routes=(f"/{name}",) if not (private and index) else (),
                    replicas={"default": replicas + index},
                    depends_on=tuple(names[:index]) if private else (),
                )
                for index, name in enumerate(names)
            },
            "database": {"migrate": "migrate up"} if migrate else None,
        }
    )


def version(app: Application, name: str, number: int) -> Version:
    workloads = {s: workload_name(app.name, "production", s, number) for s in app.services}
    return Version(name, tuple(targets(record(app, name), "production", workloads)))


def record(app: Application, name: str) -> BuildRecord:
    digest = digest_of(name)
    bundle = ServiceBundle(digest=digest, size_bytes=1, built_from=digest)
    artifact = Artifact(
        application=app.name, version=name, services=dict.fromkeys(app.services, bundle)
    )
    return BuildRecord.of(app, artifact, "unversioned")


def carry_out(
    policy: Policy, candidate: tuple[Target, ...], stable: tuple[Target, ...], slow: list[int]
) -> list[Entry]:
    """The journal of a release in a world whose replicas take ``slow`` ticks to become ready."""
    entries: list[Entry] = []

    def write(kind: Kind, **data: object) -> None:
        entries.append(
            next_entry(entries, at=seen.now, application="shop", environment="production",
                       release=1, kind=kind, actor="t", run="r", data=data)
        )  # fmt: skip

    groups = {t.workload: Group(t.workload, t.replicas, t.replicas) for t in stable}
    weights = {t.service: {t.workload: 100} for t in stable if t.public}
    seen = Observation(START, groups, weights)
    write(
        Kind.STARTED,
        policy=policy.model_dump(mode="json"),
        candidate=[t.model_dump() for t in candidate],
        stable=[t.model_dump() for t in stable],
    )
    delays, due = list(slow), 0
    for _ in range(500):
        action = next_action(replay(entries), seen)
        if isinstance(action, Finish):
            write(Kind.FINISHED, outcome=action.outcome, reason=action.reason)
            assert action.outcome == "PROMOTED", action
            return entries
        groups = dict(seen.groups)
        match action:
            case Scale(sizes=sizes):
                due = delays.pop() if delays else 0
                for w, n in sizes.items():
                    groups[w] = Group(w, n, min(n, groups.get(w, Group(w, 0, 0)).ready))
            case Route(weights=moved, mirrors=mirrors, testers=testers):
                seen = replace(seen, weights=moved, mirrors=mirrors, testers=testers,
                               verdict=Verdict.NOT_RUN, evidence=Verdict.NOT_RUN)  # fmt: skip
            case Judge(subject="preflight"):
                seen = replace(seen, preflight=Verdict.PASS)
            case Judge():
                seen = replace(seen, verdict=Verdict.PASS, evidence=Verdict.PASS)
            case Retire(workloads=workloads):
                groups |= {w: replace(groups[w], expires=True) for w in workloads}
            case Stop(workloads=workloads):
                groups = {w: g for w, g in groups.items() if w not in workloads}
        if isinstance(action, Advance):
            write(Kind.STEP_PASSED)
            seen = replace(seen, verdict=Verdict.NOT_RUN, evidence=Verdict.NOT_RUN)
        elif not isinstance(action, Wait | Judge):
            write(Kind.DONE, **describe(action))
        if due:
            due -= 1
        else:
            groups = {w: replace(g, ready=g.desired) for w, g in groups.items()}
        seen = replace(seen, groups=groups, now=seen.now + timedelta(seconds=1))
    raise AssertionError("the release did not end")


@settings(max_examples=80)
@given(
    strategy=st.sampled_from(Strategy),
    replicas=st.integers(1, 6),
    services=st.integers(1, 3),
    private=st.booleans(),
    migrate=st.booleans(),
    first=st.booleans(),
    slow=st.lists(st.integers(0, 5), max_size=6),
)
def test_the_counts_of_a_plan_are_those_of_the_journal_afterwards(
    strategy: Strategy,
    replicas: int,
    services: int,
    private: bool,
    migrate: bool,
    first: bool,
    slow: list[int],
) -> None:
    app = application(replicas, services, private, migrate)
    live = None if first else version(app, "1.0.0", 1)
    plan = plan_release(app, "production", version="1.1.0", strategy=strategy, live=live, number=2)
    policy = policy_for(record(app, "1.1.0"), "production", strategy, migrate=True, first=first)
    entries = carry_out(
        policy, version(app, "1.1.0", 2).targets, live.targets if live else (), slow
    )
    assert counts_done(entries) == plan.counts


@settings(max_examples=30)
@given(replicas=st.integers(1, 5), services=st.integers(1, 3), kept=st.booleans())
def test_a_rollback_plan_moves_everything_once(replicas: int, services: int, kept: bool) -> None:
    app = application(replicas, services)
    old, new = version(app, "1.0.0", 1), version(app, "1.1.0", 2)
    present = {t.workload: t.replicas for t in old.targets} if kept else {}
    plan = plan_rollback(app, "production", back_to=old, live=new, present=present)
    assert plan.counts == Counts(start=services, move=1, stop=services)
    assert not [line for line in plan.lines if "migration" in line.text]


def test_a_plan_reads_as_symbol_and_word_with_what_is_removed_last() -> None:
    app = application()
    plan = plan_release(
        app,
        "production",
        version="1.1.0",
        strategy=Strategy.BLUE_GREEN,
        live=version(app, "1.0.0", 1),
        number=2,
    )
    lines = [str(line) for line in plan.lines]
    assert lines == [
        "~ build 1 bundle: web",
        "? scan source and packages; refuse severity high and above",
        "~ run migration `migrate up`",
        "+ start 2 replicas of web 1.1.0",
        "? check 1.1.0 on its private address, before any user",
        "~ move 100% of traffic to 1.1.0",
        "? check 1.1.0 through the edge; it goes back on failure",
        "- stop web 1.0.0 after 10m",
    ]
    assert plan.summary() == "plan: 1 to start, 1 to migrate, 1 to move, 1 to stop"


@pytest.mark.parametrize(
    ("strategy", "line", "migrations"),
    [
        (Strategy.ROLLING, "- contract `drop`, no earlier version can serve after it", 1),
        (
            Strategy.BLUE_GREEN,
            "- contract `drop`, not before 10m have passed: `slipway recover` runs it",
            0,
        ),
    ],
)
def test_a_declared_contraction_is_planned_last(
    strategy: Strategy, line: str, migrations: int
) -> None:
    app = Application.model_validate(
        {
            **application(migrate=False).model_dump(exclude_unset=True),
            "database": {"contract": "drop", "contract_after": "release"},
        }
    )
    plan = plan_release(
        app, "production", version="2", strategy=strategy, live=version(app, "1", 1), number=2
    )
    assert str(plan.lines[-1]) == line and plan.counts.migrate == migrations
    policy = policy_for(record(app, "2"), "production", strategy, migrate=True)
    entries = carry_out(policy, version(app, "2", 2).targets, version(app, "1", 1).targets, [])
    assert counts_done(entries) == plan.counts


def test_flags_that_a_release_carries_are_planned_with_their_steps() -> None:
    app = Application.model_validate(
        {
            **application().model_dump(exclude_unset=True),
            "flags": {"file": "f.json", "carry": {"basket": ["10%", "100%"]}},
        }
    )
    plan = plan_release(
        app,
        "production",
        version="2",
        strategy=Strategy.ROLLING,
        live=version(app, "1", 1),
        number=2,
    )
    assert [str(line) for line in plan.lines if line.word == "carry"] == [
        "+ carry flag basket, off, or at its share; ramps by 10%, 100% when asked"
    ]


def test_a_rolling_plan_shows_every_batch() -> None:
    app = application(replicas=2, migrate=False)
    plan = plan_release(
        app,
        "production",
        version="2",
        strategy=Strategy.ROLLING,
        live=version(app, "1", 1),
        number=2,
    )
    moves = [line.text for line in plan.lines if line.word == "move"]
    assert moves == ["50% of traffic to 2", "100% of traffic to 2"]
    assert "start 2 replicas of web 2 (now 1)" in _text(plan)


@pytest.mark.parametrize("strategy", Strategy)
def test_the_document_of_a_plan_has_what_is_shown(strategy: Strategy) -> None:
    plan = plan_release(application(), "staging", version="1", strategy=strategy, live=None)
    document = plan.to_dict()
    assert len(document["actions"]) == len(plan.lines)
    assert document["counts"]["move"] == plan.counts.move


def test_a_journal_without_a_start_did_nothing() -> None:
    assert counts_done([]) == Counts()


def _text(plan: Plan) -> str:
    return "\n".join(f"{line.word} {line.text}" for line in plan.lines)
