from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from domain.advisories import (
    Advisory,
    Package,
    findings_of,
    match,
    parse_advisory,
    read_pins,
    too_old,
)
from domain.errors import Failed
from domain.findings import Severity

LINUX = {"sys_platform": "linux", "python_version": "3.12", "platform_system": "Linux"}


def advisory(
    *events: dict[str, str],
    versions: list[str] | None = None,
    package: str = "shop",
    ecosystem: str = "PyPI",
    kind: str = "ECOSYSTEM",
    **changes: Any,
) -> Advisory:
    affected: dict[str, Any] = {"package": {"ecosystem": ecosystem, "name": package}}
    if events:
        affected["ranges"] = [{"type": kind, "events": list(events)}]
    if versions is not None:
        affected["versions"] = versions
    record = {"id": "GHSA-1", "modified": "2024-01-01T00:00:00Z", "affected": [affected]}
    return parse_advisory(json.dumps(record | changes))


def affects(record: Advisory, version: str) -> bool:
    return record.affects(Package(name="shop", version=version))


def test_introduced_is_inside_and_fixed_is_outside() -> None:
    record = advisory({"introduced": "1.2"}, {"fixed": "2.0"})
    assert [v for v in ("1.1.9", "1.2", "1.2.0", "1.9", "2.0", "2.0.1") if affects(record, v)] == [
        "1.2",
        "1.2.0",
        "1.9",
    ]


def test_last_affected_is_inside() -> None:
    record = advisory({"introduced": "0"}, {"last_affected": "2.0"})
    assert affects(record, "2.0") and not affects(record, "2.0.post1")


def test_a_pre_release_of_the_fix_is_still_affected() -> None:
    record = advisory({"introduced": "0"}, {"fixed": "2.0"})
    assert affects(record, "2.0rc1") and affects(record, "2.0.dev3")
    assert not affects(record, "2.0+cpu")


def test_several_ranges_in_one_list_of_events_whatever_their_order() -> None:
    record = advisory(
        {"fixed": "2.0.7"}, {"introduced": "2.0"}, {"fixed": "1.26.18"}, {"introduced": "0"}
    )
    assert affects(record, "1.26.17") and affects(record, "2.0.1")
    assert not affects(record, "1.26.18") and not affects(record, "1.27")
    assert not affects(record, "2.0.7")


def test_a_limit_ends_the_range() -> None:
    record = advisory({"introduced": "0"}, {"limit": "3.0"})
    assert affects(record, "2.9") and not affects(record, "3.0")
    assert affects(advisory({"introduced": "0"}, {"limit": "*"}), "99")


def test_listed_versions_count_in_any_spelling() -> None:
    record = advisory(versions=["1.0", "1.1.0"])
    assert affects(record, "1.0.0") or affects(record, "1.0")
    assert affects(record, "1.1.0") and affects(record, "1.0+local")
    assert not affects(record, "1.2")


def test_a_listed_version_counts_outside_of_every_range() -> None:
    record = advisory({"introduced": "2"}, {"fixed": "3"}, versions=["1.5"])
    assert affects(record, "1.5") and affects(record, "2.5") and not affects(record, "1.6")


def test_names_are_compared_normalised() -> None:
    record = advisory({"introduced": "0"}, package="Zope.Interface")
    assert record.affects(Package(name="zope_interface", version="1"))


def test_another_ecosystem_says_nothing() -> None:
    record = advisory({"introduced": "0"}, ecosystem="npm")
    assert not affects(record, "1") and record.python_names == frozenset()


def test_a_withdrawn_record_says_nothing() -> None:
    record = advisory({"introduced": "0"}, withdrawn="2024-02-01T00:00:00Z")
    assert not affects(record, "1")
    assert findings_of(Package(name="shop", version="1"), [record]) == ()


@pytest.mark.parametrize(
    "record",
    [
        advisory({"introduced": "0"}, {"fixed": "abc123"}, kind="GIT"),
        advisory(),
        advisory({"introduced": "0"}, {"fixed": "one-point-five"}),
        advisory({"introduced": "final"}),
    ],
    ids=["commits only", "no version at all", "odd fix", "odd start"],
)
def test_what_cannot_be_ruled_out_counts_as_affected(record: Advisory) -> None:
    assert affects(record, "1.0")


def test_a_version_that_cannot_be_compared_counts_as_affected() -> None:
    assert affects(advisory({"introduced": "5"}, {"fixed": "6"}), "release-of-monday")
    assert affects(advisory(versions=["release-of-monday"]), "release-of-monday")


releases = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda v: f"{v[0]}.{v[1]}")


@given(st.lists(st.tuples(releases, releases), min_size=1, max_size=4), releases, st.randoms())
def test_disjoint_ranges_mean_what_intervals_mean(
    pairs: list[tuple[str, str]], version: str, random: Any
) -> None:
    bounds = sorted({Version(v) for pair in pairs for v in pair})
    intervals = list(zip(bounds[::2], bounds[1::2], strict=False))
    events = [e for a, b in intervals for e in ({"introduced": str(a)}, {"fixed": str(b)})]
    random.shuffle(events)
    if not events:
        return
    inside = any(a <= Version(version) < b for a, b in intervals)
    assert affects(advisory(*events), version) == inside


def test_records_of_one_vulnerability_become_one_finding() -> None:
    package = Package(name="shop", version="1.0")
    told = [
        advisory({"introduced": "0"}, {"fixed": "2.0"}, id="PYSEC-7", aliases=["CVE-7"]),
        advisory(
            {"introduced": "0"},
            {"fixed": "1.5"},
            id="GHSA-7",
            aliases=["CVE-7"],
            summary="Bad things",
            database_specific={"severity": "MODERATE"},
        ),
        advisory({"introduced": "0"}, id="OTHER-8"),
    ]
    one, other = sorted(match([package], told), key=lambda f: f.id)
    assert (one.id, one.aliases) == ("CVE-7", ("GHSA-7", "PYSEC-7"))
    assert one.severity is Severity.MEDIUM and one.rated and one.title == "Bad things"
    assert one.fix == "upgrade shop to 1.5 or later"
    assert other.id == "OTHER-8" and other.severity is Severity.HIGH and not other.rated
    assert other.fix == "no fixed version is named"


def test_aliases_join_through_a_third_record_in_any_order() -> None:
    package = Package(name="shop", version="1.0")
    told = [
        advisory({"introduced": "0"}, id="A", aliases=["X"]),
        advisory({"introduced": "0"}, id="B", aliases=["Y"]),
        advisory({"introduced": "0"}, id="C", aliases=["X", "Y"]),
    ]
    for order in (told, told[::-1], [told[2], told[0], told[1]]):
        (only,) = match([package], order)
        assert {only.id, *only.aliases} == {"A", "B", "C", "X", "Y"}


def test_the_fix_is_the_lowest_one_above_the_version_in_use() -> None:
    record = advisory(
        {"introduced": "0"}, {"fixed": "1.26.18"}, {"introduced": "2.0.0"}, {"fixed": "2.0.7"}
    )
    (found,) = match([Package(name="shop", version="2.0.1")], [record])
    assert found.fix == "upgrade shop to 2.0.7 or later"


def test_a_malicious_package_is_critical() -> None:
    (found,) = match(
        [Package(name="shop", version="1")], [advisory({"introduced": "0"}, id="MAL-2024-1")]
    )
    assert found.severity is Severity.CRITICAL


def test_a_vector_without_a_rating_is_shown_and_counts_as_high() -> None:
    vector = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H"
    record = advisory({"introduced": "0"}, severity=[{"type": "CVSS_V3", "score": vector}])
    (found,) = match([Package(name="shop", version="1")], [record])
    assert found.detail == vector and found.severity is Severity.HIGH and not found.rated


def test_null_lists_are_empty_lists() -> None:
    record = advisory({"introduced": "0"}, aliases=None, references=None, severity=None)
    assert affects(record, "1")


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", '{"id": "X"}', '{"modified": "2024-01-01T00:00:00Z"}']
)
def test_what_is_no_osv_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an OSV record"):
        parse_advisory(text)


def test_age_is_judged_on_both_sides() -> None:
    newest = date(2026, 11, 1)
    assert too_old(newest, date(2026, 11, 8), 7) is None
    assert "8 days old; the policy allows 7" in str(too_old(newest, date(2026, 11, 9), 7))
    assert too_old(newest, date(2026, 10, 31), 7) is None
    assert "after today" in str(too_old(newest, date(2026, 10, 30), 7))


def test_a_lock_is_read_with_hashes_markers_comments_and_continued_lines() -> None:
    text = """\
# made by a tool
--require-hashes
Jinja2==3.1.6 \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb
    # via flask
colorama==0.4.6 ; sys_platform == "win32" --hash=sha256:cccc
uvloop[extra]==0.22.1 ; sys_platform != 'win32'  # fast
odd===2024.1 --hash=sha256:dddd
"""
    pins = read_pins(text, LINUX, "requirements.lock")
    assert list(map(str, pins.packages)) == ["jinja2 3.1.6", "uvloop 0.22.1", "odd 2024.1"]
    assert pins.left_out == ('colorama 0.4.6 (sys_platform == "win32")',)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("requests", "unpinned requirement: requests"),
        ("requests>=2", "unpinned"),
        ("requests==2.*", "unpinned"),
        ("requests==2.0,!=2.1", "unpinned"),
        ("requests @ https://example.org/requests.whl", "unpinned"),
        ("-r other.txt", "'-r'"),
        ("--requirement=other.txt", "'--requirement'"),
        ("-e .", "'-e'"),
        ("./local/folder", "cannot read"),
        ("https://example.org/x.whl", "cannot read"),
        ("!!!", "cannot read"),
    ],
)
def test_a_line_that_pins_nothing_cannot_be_looked_up(line: str, cause: str) -> None:
    with pytest.raises(Failed) as caught:
        read_pins(f"flask==3.1.3\n\n{line}\n", LINUX, "requirements.lock")
    assert caught.value.code == "SLP041" and cause in caught.value.cause
    assert caught.value.where == "requirements.lock:3"


def test_an_empty_lock_pins_nothing() -> None:
    assert read_pins("# nothing\n\n", LINUX).packages == ()
