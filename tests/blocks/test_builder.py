"""Building bundles with the real uv and git, from wheels made here, so without an index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from blocks import builder
from blocks.builder import (
    BuildRequest,
    build,
    list_source,
    matches,
    read_revision,
)
from blocks.bundles import BundleStore
from domain.errors import Failed, NeedsPerson, SlipwayError
from tests.scenarios.world import wait_until

Wheels = Mapping[str, str]


def make_wheel(
    folder: Path, name: str, version: str, *, requires: str = "", code: str = "", script: str = ""
) -> str:
    """Write a small real wheel; returns its SHA-256."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
    metadata += "License-Expression: MIT\n" + (f"Requires-Dist: {requires}\n" if requires else "")
    files = {
        f"{name}/__init__.py": code or f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {name}:main\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), content)
    return hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wheels]:
    folder = tmp_path_factory.mktemp("wheels")
    greet = "import salute, sys\ndef main():\n    print(salute.WORD, *sys.argv[1:])\n"
    hashes = {
        "salute": make_wheel(folder, "salute", "1.0", code="WORD = 'hello'\n"),
        "salute2": make_wheel(folder, "salute", "2.0", code="WORD = 'good day'\n"),
        "greet": make_wheel(folder, "greet", "1.0", requires="salute", code=greet, script="greet"),
        "checker": make_wheel(folder, "checker", "1.0", requires="salute<2"),
    }
    return folder, hashes


@pytest.fixture
def wheels(
    wheelhouse: tuple[Path, Wheels], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Wheels:
    monkeypatch.setenv("UV_FIND_LINKS", str(wheelhouse[0]))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return wheelhouse[1]


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "store")


def lock_text(wheels: Wheels, salute: str = "1.0") -> str:
    word = wheels["salute" if salute == "1.0" else "salute2"]
    return (
        f"greet==1.0 --hash=sha256:{wheels['greet']}\n"
        f"salute=={salute} \\\n    --hash=sha256:{word}\n    # via greet\n"
    )


def make_source(folder: Path, lock: str | None = None) -> BuildRequest:
    folder.mkdir(parents=True)
    (folder / "app.py").write_text("print('app')\n")
    (folder / "static").mkdir()
    (folder / "static/style.css").write_text("body {}\n")
    if lock is not None:
        (folder / "requirements.lock").write_text(lock)
    found = folder / "requirements.lock" if lock is not None else None
    return BuildRequest("shop", "web", folder, found)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")


def nothing_counts(store: BundleStore) -> bool:
    """No bundle, no index entry, nothing half made."""
    places = [store.root / name for name in ("bundles", "keys", "unpacked", "partial")]
    return not any(list(place.iterdir()) for place in places if place.exists())


# --- reproducible -------------------------------------------------------------------------


def test_the_same_source_is_not_built_twice(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels))
    first, second = build(request, store), build(request, store)
    assert first.rebuilt and not second.rebuilt
    assert second.bundle == first.bundle and second.packages == first.packages == 2
    assert "nothing was built" in second.reason and first.bundle.short in second.reason


def test_another_folder_time_and_umask_give_the_same_bytes(tmp_path: Path, wheels: Wheels) -> None:
    archives = []
    for name, umask, moment in (("a", 0o022, 1_000_000_000), ("other/long", 0o077, 1_700_000_000)):
        before = os.umask(umask)
        try:
            request = make_source(tmp_path / name / "source", lock_text(wheels))
            for path in request.source.rglob("*"):
                os.utime(path, (moment, moment))
            store = BundleStore(tmp_path / name / "store")
            result = build(replace(request, commands=("python -c 'import greet'",)), store)
        finally:
            os.umask(before)
        archives.append((result.bundle, store.path(result.bundle.digest).read_bytes()))
    assert archives[0] == archives[1]


CHANGES: dict[str, Callable[[BuildRequest], BuildRequest | int | None]] = {
    "a byte": lambda r: (r.source / "static/style.css").write_text("body {;\n"),
    "the executable bit": lambda r: (r.source / "app.py").chmod(0o755),
    "a new file": lambda r: (r.source / "new.py").write_text(""),
    "a name": lambda r: (r.source / "app.py").rename(r.source / "main.py") and None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_source_is_another_bundle(
    tmp_path: Path, store: BundleStore, change: Callable[[BuildRequest], object]
) -> None:
    request = make_source(tmp_path / "source")
    before = build(request, store).bundle
    change(request)
    after = build(request, store)
    assert after.rebuilt and after.bundle.digest != before.digest


def test_a_touched_file_is_no_change(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    before = build(request, store).bundle
    os.utime(request.source / "app.py", (1, 1))
    (request.source / "app.py").chmod(0o600)
    assert not build(request, store).rebuilt
    assert build(request, store).bundle == before


def test_a_change_of_the_lock_is_another_bundle(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels))
    before = build(request, store).bundle
    (request.source / "requirements.lock").write_text(lock_text(wheels, "2.0"))
    after = build(request, store).bundle
    assert after.digest != before.digest
    found = store.materialize(after.digest) / "venv/bin/greet"
    assert subprocess.check_output([found, "you"], text=True) == "good day you\n"


def test_a_change_of_the_commands_or_of_what_is_left_out_is_noticed(
    tmp_path: Path, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source")
    plain = build(request, store).bundle
    made = build(replace(request, commands=("echo built > made.txt",)), store).bundle
    smaller = build(replace(request, exclude=("*.css",)), store).bundle
    assert len({plain.digest, made.digest, smaller.digest}) == 3
    assert (store.materialize(made.digest) / "app/made.txt").read_text() == "built\n"
    assert not (request.source / "made.txt").exists(), "commands run in a copy"
    assert not (store.materialize(smaller.digest) / "app/static").exists()


# --- it runs ------------------------------------------------------------------------------


def test_a_console_script_runs_where_the_bundle_is_unpacked(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    digest = build(make_source(tmp_path / "source", lock_text(wheels)), store).bundle.digest
    elsewhere = BundleStore(tmp_path / "another machine" / "store")
    shutil.copytree(store.root / "bundles", elsewhere.root / "bundles")
    shutil.rmtree(tmp_path / "uv-cache")
    found = elsewhere.materialize(digest)
    assert subprocess.check_output([found / "venv/bin/greet", "x"], text=True) == "hello x\n"
    code = "import sys, greet; print(sys.prefix)"
    prefix = subprocess.check_output([found / "venv/bin/python", "-c", code], text=True)
    assert prefix.strip() == str(found / "venv")


def test_no_file_of_a_bundle_names_the_machine(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels))
    with (request.source / "requirements.lock").open("a") as lock:
        lock.write("./plugin\n")
    add_project(request.source / "plugin")
    digest = build(request, store).bundle.digest
    found = store.materialize(digest)
    machine = {"venv/pyvenv.cfg"}  # made while unpacking
    for path in found.rglob("*"):
        name = path.relative_to(found).as_posix()
        if path.is_file() and not path.is_symlink() and name not in machine:
            assert str(tmp_path).encode() not in path.read_bytes(), name
    assert not list(found.rglob("*.pyc")) and not list(found.rglob("uv_cache.json"))
    subprocess.run([found / "venv/bin/python", "-c", "import plugin"], check=True)


def add_project(folder: Path) -> None:
    """A project without dependencies, whose build backend is itself."""
    (folder / "plugin").mkdir(parents=True)
    (folder / "plugin/__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "plugin"\nversion = "1"\n'
    )
    (folder / "backend.py").write_text(BACKEND)


BACKEND = """\
import pathlib, zipfile

FILES = {
    "plugin/__init__.py": "",
    "plugin-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: plugin\\nVersion: 1\\n",
    "plugin-1.dist-info/WHEEL":
        "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "plugin-1.dist-info/RECORD": "",
}

def build_wheel(folder, config=None, metadata=None):
    pathlib.Path("leftover.txt").write_text("a build writes beside its source")
    name = "plugin-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for path, content in FILES.items():
            wheel.writestr(path, content)
    return name
"""


def test_an_editable_project_is_installed_as_a_copy(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", "-e ./plugin\n")
    add_project(request.source / "plugin")
    result = build(request, store)
    assert result.unhashed == ("./plugin",)
    found = store.materialize(result.bundle.digest)
    shutil.rmtree(tmp_path / "source")
    subprocess.run([found / "venv/bin/python", "-c", "import plugin"], check=True)
    assert not list((found / "app").rglob("leftover.txt"))


def test_build_commands_see_the_packages_and_no_secret(
    tmp_path: Path, wheels: Wheels, store: BundleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-7741")
    monkeypatch.setenv("PREFECT_API_KEY", "canary-7741")
    request = make_source(tmp_path / "source", lock_text(wheels))
    result = build(replace(request, commands=("greet there > word.txt; env > env.txt",)), store)
    app = store.materialize(result.bundle.digest) / "app"
    assert (app / "word.txt").read_text() == "hello there\n"
    environ = (app / "env.txt").read_text()
    assert "canary-7741" not in environ and "SOURCE_DATE_EPOCH=" in environ


def test_tests_run_on_the_versions_that_ship(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    digest = build(make_source(tmp_path / "source", lock_text(wheels)), store).bundle.digest
    test_lock = tmp_path / "requirements-test.lock"
    test_lock.write_text(f"checker==1.0 --hash=sha256:{wheels['checker']}\n")
    found = builder.test_environment(store, digest, test_lock)
    code = "import checker, greet, salute; print(salute.WORD)"
    assert subprocess.check_output([found / "bin/python", "-c", code], text=True) == "hello\n"
    made = (found / "pyvenv.cfg").stat().st_mtime_ns
    assert builder.test_environment(store, digest, test_lock) == found
    assert (found / "pyvenv.cfg").stat().st_mtime_ns == made, "it is kept"
    assert builder.test_environment(store, digest, None) != found


def test_a_test_lock_that_contradicts_the_bundle_is_refused(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels, "2.0"))
    digest = build(request, store).bundle.digest
    test_lock = tmp_path / "requirements-test.lock"
    test_lock.write_text(f"checker==1.0 --hash=sha256:{wheels['checker']}\n")
    with pytest.raises(Failed, match="uv pip install") as caught:
        builder.test_environment(store, digest, test_lock)
    assert caught.value.code == "SLP020" and "salute" in caught.value.detail
    assert caught.value.where and Path(caught.value.where).exists()
    assert not store.environments().exists() or not list(store.environments().iterdir())


# --- what is said of it -------------------------------------------------------------------


def test_the_bill_of_materials_is_valid_and_complete(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    digest = build(make_source(tmp_path / "source", lock_text(wheels)), store).bundle.digest
    text = store.sidecar(digest, "sbom").decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    greet, salute = document["components"]
    assert greet["purl"] == "pkg:pypi/greet@1.0"
    assert greet["hashes"] == [{"alg": "SHA-256", "content": wheels["greet"]}]
    assert salute["licenses"][0]["license"]["id"] == "MIT"
    edges = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert edges["pkg:pypi/greet@1.0"] == ["pkg:pypi/salute@1.0"]
    assert document["metadata"]["component"]["bom-ref"] == digest
    assert "timestamp" not in document["metadata"]


def test_the_bill_of_materials_is_the_same_every_time(tmp_path: Path, wheels: Wheels) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels))
    texts = set()
    for name in ("one", "two"):
        store = BundleStore(tmp_path / name)
        texts.add(store.sidecar(build(request, store).bundle.digest, "sbom"))
    assert len(texts) == 1


def test_the_provenance_names_revision_lock_and_run(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source", lock_text(wheels))
    checkout(request.source)
    result = build(request, store, invocation="run-17")
    statement = json.loads(store.sidecar(result.bundle.digest, "provenance"))
    hexadecimal = result.bundle.digest.removeprefix("sha256:")
    assert statement["subject"] == [{"name": "shop/web", "digest": {"sha256": hexadecimal}}]
    predicate = statement["predicate"]
    source, lock, *packages = predicate["buildDefinition"]["resolvedDependencies"]
    assert source["digest"]["gitCommit"] == git(request.source, "rev-parse", "HEAD")
    assert source["annotations"]["dirty"] is False
    content = (request.source / "requirements.lock").read_bytes()
    assert lock["digest"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert [package["uri"] for package in packages] == [
        "pkg:pypi/greet@1.0",
        "pkg:pypi/salute@1.0",
    ]
    assert predicate["runDetails"]["metadata"]["invocationId"] == "run-17"


def test_packages_without_a_hash_are_recorded(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    result = build(make_source(tmp_path / "source", "greet==1.0\n"), store)
    assert result.unhashed == ("greet",) and result.packages == 2
    statement = json.loads(store.sidecar(result.bundle.digest, "provenance"))
    parameters = statement["predicate"]["buildDefinition"]["internalParameters"]
    assert parameters["packages_without_hash"] == ["greet"]


# --- the source ---------------------------------------------------------------------------


def test_a_checkout_ships_what_git_tracks_and_what_is_new(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source").source
    (source / ".gitignore").write_text("*.log\nsecrets/\n")
    (source / "kept.log").write_text("")
    checkout(source)
    git(source, "add", "--force", "kept.log")
    (source / "ignored.log").write_text("")
    (source / "secrets").mkdir()
    (source / "secrets/key").write_text("")
    (source / "new.py").write_text("")
    (source / ".env").write_text("PASSWORD=x")
    (source / ".venv").mkdir()
    (source / ".venv/big").write_text("")
    (source / "app.py").unlink()
    assert list_source(source) == (".gitignore", "kept.log", "new.py", "static/style.css")


def test_a_folder_outside_of_git_ships_all_but_rubbish(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source").source
    for rubbish in (".venv", "node_modules", "__pycache__", ".slipway", "lib/node_modules"):
        (source / rubbish).mkdir(parents=True)
        (source / rubbish / "x").write_text("")
    (source / "x.pyc").write_text("")
    assert list_source(source, ("static",)) == ("app.py",)
    assert read_revision(source).commit is None and str(read_revision(source)) == "unversioned"


def test_a_folder_that_an_outer_checkout_ignores_is_not_part_of_it(tmp_path: Path) -> None:
    outer = make_source(tmp_path / "outer").source
    (outer / ".gitignore").write_text("work/\n")
    checkout(outer)
    inner = make_source(outer / "work" / "inner").source
    assert list_source(inner) == ("app.py", "static/style.css")
    assert read_revision(inner).commit is None


def test_a_checkout_that_git_cannot_read_is_an_error(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source").source
    (source / ".git").mkdir()
    (source / ".env").write_text("PASSWORD=x")
    with pytest.raises(Failed, match="git rev-parse") as caught:
        list_source(source)
    assert caught.value.code == "SLP020" and "not a git repository" in caught.value.detail


def test_the_revision_says_when_the_source_was_changed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source").source
    checkout(source)
    git(source, "remote", "add", "origin", "https://user:canary-7741@example.invalid/shop.git")
    clean = read_revision(source)
    assert clean.commit == git(source, "rev-parse", "HEAD") and not clean.dirty
    assert clean.repository == "https://example.invalid/shop.git"
    (source / "app.py").write_text("changed")
    assert read_revision(source).dirty


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("docs/a.md", "docs", True),
        ("docs/a.md", "docs/", True),
        ("docs/a.md", "*.md", True),
        ("docs/a.md", "docs/*.md", True),
        ("lib/docs/a.md", "docs/*.md", False),
        ("lib/docs/a.md", "/docs", False),
        ("lib/docs/a.md", "docs", True),
        ("docs2/a.md", "docs", False),
    ],
)
def test_globs_of_what_is_left_out(path: str, glob: str, expected: bool) -> None:
    assert matches(path, [glob]) is expected


def test_a_link_that_leaves_the_source_is_refused(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    (tmp_path / "secret").write_text("x")
    (request.source / "link").symlink_to("../secret")
    with pytest.raises(Failed, match=r"link -> \.\./secret leaves the source"):
        build(request, store)
    assert nothing_counts(store)


def test_a_link_inside_of_the_source_is_kept(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    (request.source / "static/main.css").symlink_to("style.css")
    found = store.materialize(build(request, store).bundle.digest)
    assert os.readlink(found / "app/static/main.css") == "style.css"


# --- what goes wrong ----------------------------------------------------------------------


def _fails(request: BuildRequest, store: BundleStore) -> SlipwayError:
    with pytest.raises(SlipwayError) as caught:
        build(request, store)
    assert nothing_counts(store)
    return caught.value


def test_a_missing_source_and_an_empty_one(tmp_path: Path, store: BundleStore) -> None:
    (tmp_path / "empty").mkdir()
    assert "not there" in _fails(BuildRequest("a", "b", tmp_path / "none"), store).cause
    assert "holds no file" in _fails(BuildRequest("a", "b", tmp_path / "empty"), store).cause


def test_a_submodule_ships_with_its_checkout(tmp_path: Path) -> None:
    inner = make_source(tmp_path / "inner").source
    checkout(inner)
    source = make_source(tmp_path / "source").source
    checkout(source)
    local = ("-c", "protocol.file.allow=always")
    git(source, *local, "submodule", "--quiet", "add", str(inner), "lib")
    assert {"lib/app.py", "lib/static/style.css"} <= set(list_source(source))
    git(source, "submodule", "--quiet", "deinit", "--force", "lib")
    with pytest.raises(Failed, match=r"submodule lib .* not checked out"):
        list_source(source)
    assert "app.py" in list_source(source, ("lib",))


def test_a_file_that_goes_away_meanwhile_is_named(
    tmp_path: Path, store: BundleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_source(tmp_path / "source")
    listed = builder.list_source

    def then_remove(folder: Path, exclude: tuple[str, ...]) -> tuple[str, ...]:
        found = listed(folder, exclude)
        (folder / "app.py").unlink()
        return found

    monkeypatch.setattr(builder, "list_source", then_remove)
    error = _fails(request, store)
    assert error.code == "SLP020" and "app.py could not be read" in error.cause


def test_a_missing_lock_says_how_to_make_it(tmp_path: Path, store: BundleStore) -> None:
    request = replace(make_source(tmp_path / "source"), lock=tmp_path / "source/none.lock")
    error = _fails(request, store)
    assert error.code == "SLP020" and "none.lock" in error.cause
    assert "uv pip compile --generate-hashes" in error.help


def test_a_wrong_hash_is_never_installed(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    text = lock_text(wheels).replace(wheels["salute"], "0" * 64)
    error = _fails(make_source(tmp_path / "source", text), store)
    assert error.code == "SLP020" and "not the one that the lock file names" in error.cause
    assert "salute" in error.detail


def test_a_hashed_lock_that_forgot_a_package_fails_now(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    text = f"greet==1.0 --hash=sha256:{wheels['greet']}\n"
    error = _fails(make_source(tmp_path / "source", text), store)
    assert error.code == "SLP020" and "salute" in error.detail


def test_an_unknown_package_is_no_matter_of_the_network(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    error = _fails(make_source(tmp_path / "source", "no-such-thing==1\n"), store)
    assert error.code == "SLP020" and "no-such-thing" in error.detail


def test_an_index_that_does_not_answer_may_be_asked_again(
    tmp_path: Path, wheels: Wheels, store: BundleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    error = _fails(make_source(tmp_path / "source", "salute==1.0\n"), store)
    assert error.code == "SLP014" and "index did not answer" in error.cause


def test_a_lock_outside_of_the_source_may_not_include_others(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    (tmp_path / "requirements.lock").write_text("-r base.lock\n")
    request = replace(make_source(tmp_path / "source"), lock=tmp_path / "requirements.lock")
    assert "lies outside of the source" in _fails(request, store).cause


def test_a_lock_outside_of_the_source_travels_with_the_bundle(
    tmp_path: Path, wheels: Wheels, store: BundleStore
) -> None:
    (tmp_path / "shared.lock").write_text(lock_text(wheels))
    request = replace(make_source(tmp_path / "source"), lock=tmp_path / "shared.lock")
    digest = build(request, store).bundle.digest
    (tmp_path / "shared.lock").unlink()
    found = builder.test_environment(store, digest, None)
    subprocess.run([found / "bin/python", "-c", "import greet"], check=True)


def test_an_unknown_python_is_named(tmp_path: Path, store: BundleStore) -> None:
    error = _fails(replace(make_source(tmp_path / "source"), python="3.4"), store)
    assert error.code == "SLP022" and "Python 3.4" in error.cause


def test_a_failing_command_shows_its_last_lines(tmp_path: Path, store: BundleStore) -> None:
    command = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo line $i; done; exit 3"
    error = _fails(replace(make_source(tmp_path / "source"), commands=(command,)), store)
    assert error.code == "SLP020" and "exit code 3" in error.cause
    assert error.detail.splitlines()[-1] == "line 50" and len(error.detail.splitlines()) == 20
    assert error.where and Path(error.where).exists()


def test_a_command_that_hangs_is_stopped_with_its_children(
    tmp_path: Path, store: BundleStore
) -> None:
    mark = tmp_path / "pid"
    request = replace(
        make_source(tmp_path / "source"),
        commands=(f"sleep 300 & echo $! > {mark}; wait",),
        time_limit=timedelta(seconds=2),
    )
    error = _fails(request, store)
    assert error.code == "SLP020" and "did not end within 2 s" in error.cause
    child = int(mark.read_text())
    wait_until(lambda: has_ended(child), "the child to end", 10)


def test_a_damaged_bundle_is_not_built_over(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    archive = store.path(build(request, store).bundle.digest)
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(NeedsPerson) as caught:
        build(request, store)
    assert caught.value.code == "SLP021" and str(archive) in caught.value.help
    archive.unlink()
    assert build(request, store).rebuilt, "the help is right"


def _build_in_a_process(request: BuildRequest, store: BundleStore, prelude: str) -> int:
    code = f"""
        import os, resource, signal, sys
        from pathlib import Path
        from blocks.builder import BuildRequest, build
        from blocks.bundles import BundleStore
        from domain.errors import Failed
        {prelude}
        try:
            build(BuildRequest("shop", "web", Path(sys.argv[1]), commands=tuple(sys.argv[3:])),
                  BundleStore(Path(sys.argv[2])))
        except Failed as error:
            sys.exit(int(error.code[3:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(request.source), str(store.root)]
    return subprocess.run([*command, *request.commands], timeout=60).returncode


@pytest.mark.parametrize(
    ("prelude", "commands"),
    [
        ("", ("echo half > made.txt", "kill -9 $PPID")),
        ("os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)", ()),
        ("os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)", ()),
    ],
    ids=["in a build command", "while the archive is written", "before it has its name"],
)
def test_a_killed_build_leaves_nothing_that_counts_as_a_bundle(
    tmp_path: Path, store: BundleStore, prelude: str, commands: tuple[str, ...]
) -> None:
    request = replace(make_source(tmp_path / "source"), commands=commands)
    assert _build_in_a_process(request, store, prelude) == -signal.SIGKILL
    assert not list((store.root / "bundles").glob("*.tar.gz"))
    assert not (store.root / "keys").exists()
    result = build(replace(request, commands=()), store)
    assert result.rebuilt and not list((store.root / "partial").iterdir())
    store.verify(result.bundle.digest)


def test_a_build_killed_before_the_index_was_written_is_found_good_by_the_next(
    tmp_path: Path, store: BundleStore
) -> None:
    request = make_source(tmp_path / "source")
    prelude = "BundleStore.remember = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    assert _build_in_a_process(request, store, prelude) == -signal.SIGKILL
    assert len(list((store.root / "bundles").glob("*.tar.gz"))) == 1
    assert build(request, store).rebuilt and not build(request, store).rebuilt
    assert len(list((store.root / "bundles").glob("*.tar.gz"))) == 1


def test_a_disk_that_fills_up_says_so(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    (request.source / "big").write_bytes(os.urandom(300_000))
    prelude = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    assert _build_in_a_process(request, store, prelude) == 15
    assert nothing_counts(store)


def test_two_builds_at_once_agree(tmp_path: Path, store: BundleStore) -> None:
    request = make_source(tmp_path / "source")
    code = """
        import sys
        from pathlib import Path
        from blocks.builder import BuildRequest, build
        from blocks.bundles import BundleStore
        sys.stdin.readline()
        source, store = map(Path, sys.argv[1:])
        print(build(BuildRequest("shop", "web", source), BundleStore(store)).bundle.digest)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(request.source), str(store.root)]
    started = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    digests = {process.communicate(timeout=60)[0] for process in started}
    assert len(digests) == 1
    store.verify(digests.pop().strip())


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
