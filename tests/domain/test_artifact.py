"""Names of bundles and artifacts, lock files, and the provenance statement."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.artifact import (
    BUILD_TYPE,
    Artifact,
    BuildFacts,
    Entry,
    Package,
    Revision,
    ServiceBundle,
    digest_of,
    listing_digest,
    parse_lock,
    provenance,
    short,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64

names = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
files = st.builds(
    Entry,
    path=names,
    kind=st.sampled_from(["file", "link"]),
    content=st.text(string.hexdigits, max_size=8),
    size=st.integers(0, 2**40),
    executable=st.booleans(),
)
listings = st.lists(files, unique_by=lambda entry: entry.path, max_size=8)


@given(listings, st.integers())
def test_the_order_of_a_listing_does_not_matter(entries: list[Entry], seed: int) -> None:
    shuffled = list(entries)
    Random(seed).shuffle(shuffled)
    assert listing_digest(shuffled) == listing_digest(entries)


@given(listings, listings)
def test_different_listings_have_different_digests(one: list[Entry], two: list[Entry]) -> None:
    assert (listing_digest(one) == listing_digest(two)) == (sorted(one) == sorted(two))


@given(files, st.sampled_from(["path", "kind", "content", "size", "executable"]))
def test_every_field_of_an_entry_counts(entry: Entry, field: str) -> None:
    changed = {
        "path": entry.path + "x",
        "kind": "link" if entry.kind == "file" else "file",
        "content": entry.content + "0",
        "size": entry.size + 1,
        "executable": not entry.executable,
    }
    other = Entry(**{**entry.__dict__, field: changed[field]})
    assert listing_digest([other]) != listing_digest([entry])


def test_a_name_cannot_imitate_two_files() -> None:
    two = [Entry("a", "file", "1"), Entry("b", "file", "2")]
    one = [Entry('a","file",false,0,"1"]\n["b', "file", "2")]
    assert listing_digest(one) != listing_digest(two)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "", "a\0b", ".."]
)
def test_paths_that_leave_or_confuse_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        listing_digest([Entry(path, "file", "1")])


def test_contradicting_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        listing_digest([Entry("a", "file", "1"), Entry("a", "link", "b")])
    with pytest.raises(ValueError, match="both a file and the folder"):
        listing_digest([Entry("a", "link", "/etc"), Entry("a/passwd", "file", "1")])
    with pytest.raises(ValueError, match="both a file and the folder"):
        listing_digest(
            [Entry("a", "file", "1"), Entry("a-b", "file", "1"), Entry("a/b", "file", "")]
        )


def test_file_names_that_are_not_utf8_have_a_digest() -> None:
    assert listing_digest([Entry("caf\udce9", "file", "1")]).startswith("sha256:")


def _artifact(version: str = "1.0.0", **digests: str) -> Artifact:
    bundles = {
        name: ServiceBundle(digest=digest, size_bytes=1, built_from=A)
        for name, digest in digests.items()
    }
    return Artifact(application="shop", version=version, services=bundles)


def test_an_artifact_is_named_by_its_services_and_not_by_its_version() -> None:
    assert _artifact(web=A).digest == _artifact("2.0.0", web=A).digest
    assert _artifact(web=A, jobs=B).digest == _artifact(jobs=B, web=A).digest
    assert len({_artifact(web=A).digest, _artifact(web=B).digest, _artifact(api=A).digest}) == 3
    assert _artifact(web=A).digest == digest_of({"web": A})
    assert _artifact(web=A).short == short(_artifact(web=A).digest)
    assert len(_artifact(web=A).short) == 12


def test_an_artifact_survives_json() -> None:
    artifact = _artifact(web=A, jobs=B)
    again = Artifact.model_validate_json(artifact.model_dump_json())
    assert again == artifact and again.digest == artifact.digest


def test_an_artifact_of_nothing_and_a_bad_digest_are_refused() -> None:
    with pytest.raises(ValidationError):
        _artifact()
    with pytest.raises(ValidationError):
        _artifact(web="latest")


HASHED = f"""\
# made by a tool
--index-url https://example.invalid/simple
Click==8.1.7 \\
    --hash=sha256:{"1" * 64} \\
    --hash=sha256:{"2" * 64}
    # via -r requirements.in
tomli==2.0.1 ; python_version < '3.11' --hash=sha256:{"3" * 64}
uvicorn[standard]==0.30.0 --hash=sha256:{"4" * 64}  # trailing
"""


def test_a_hashed_lock() -> None:
    lock = parse_lock(HASHED)
    assert lock.is_hashed and lock.unhashed == ()
    assert lock.hashes("click", "8.1.7") == ("1" * 64, "2" * 64)
    assert lock.hashes("click", "8.1.8") == ()
    assert lock.hashes("Uvicorn", "0.30.0") == ("4" * 64,)
    assert [package.version for package in lock.packages] == ["8.1.7", "2.0.1", "0.30.0"]


@pytest.mark.parametrize(
    ("line", "unhashed"),
    [
        ("flask>=3", ("flask",)),
        ("Flask_Login==1.0", ("flask-login",)),
        ("-e .", (".",)),
        ("--editable=./lib", ("./lib",)),
        ("./lib", ("./lib",)),
        ("lib @ file:///srv/lib", ("lib",)),
    ],
)
def test_lines_without_a_hash_are_named(line: str, unhashed: tuple[str, ...]) -> None:
    lock = parse_lock(HASHED + line + "\n")
    assert not lock.is_hashed
    assert lock.unhashed[0].split(" ")[0] == unhashed[0]


def test_includes_are_seen() -> None:
    lock = parse_lock("-r base.txt\n-c pins.txt\n--requirement=more.txt\n")
    assert lock.includes == ("base.txt", "pins.txt", "more.txt")


def test_nothing_and_an_include_alone_are_not_hashed() -> None:
    assert not parse_lock("").is_hashed
    assert not parse_lock("-r base.txt").is_hashed


@given(st.text(max_size=300))
def test_any_text_can_be_read_as_a_lock(text: str) -> None:
    parse_lock(text)


def _facts(**changes: object) -> BuildFacts:
    start = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    values: dict[str, object] = {
        "name": "shop/web",
        "digest": A,
        "built_from": B,
        "source_digest": B,
        "revision": Revision("c" * 40, True, "https://example.invalid/shop.git"),
        "builder": "urn:slipway:builder:local",
        "builder_version": "1",
        "invocation": "run-1",
        "started": start,
        "finished": start + timedelta(seconds=3),
        "lock_digest": A,
        "packages": (Package("Click", "8.1.7", ("1" * 64,)), Package("six", "1", ("2", "3"))),
    }
    return BuildFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_the_statement_has_the_in_toto_and_slsa_shape() -> None:
    statement = provenance(_facts())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "shop/web", "digest": {"sha256": "a" * 64}}]
    definition = statement["predicate"]["buildDefinition"]
    assert set(definition) == {
        "buildType",
        "externalParameters",
        "internalParameters",
        "resolvedDependencies",
    }
    assert definition["buildType"] == BUILD_TYPE
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == "urn:slipway:builder:local"
    assert details["metadata"] == {
        "invocationId": "run-1",
        "startedOn": "2026-03-01T12:00:00Z",
        "finishedOn": "2026-03-01T12:00:03Z",
    }


def test_the_statement_names_source_lock_and_packages() -> None:
    source, lock, click, six = provenance(_facts())["predicate"]["buildDefinition"][
        "resolvedDependencies"
    ]
    assert source["digest"] == {"sha256": "b" * 64, "gitCommit": "c" * 40}
    assert source["uri"] == "git+https://example.invalid/shop.git"
    assert source["annotations"]["dirty"] is True
    assert lock == {"name": "lock", "digest": {"sha256": "a" * 64}}
    assert click["uri"] == "pkg:pypi/click@8.1.7" and click["digest"] == {"sha256": "1" * 64}
    assert "digest" not in six and six["annotations"] == {"accepted_sha256": ["2", "3"]}


def test_a_source_outside_of_version_control_says_so() -> None:
    source = provenance(_facts(revision=Revision(), lock_digest=None, packages=()))["predicate"][
        "buildDefinition"
    ]["resolvedDependencies"]
    assert len(source) == 1
    assert source[0]["annotations"]["revision"] == "unversioned"
    assert "gitCommit" not in source[0]["digest"] and "uri" not in source[0]


def test_a_revision_reads_as_commit_and_dirt() -> None:
    assert str(Revision("c" * 40)) == "c" * 40
    assert str(Revision("c" * 40, dirty=True)) == "c" * 40 + "-dirty"
