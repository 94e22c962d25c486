"""The bundle store: one name, one content, whatever happens in between."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from blocks import bundles
from blocks.bundles import MANIFEST, BundleStore, Manifest, Packed, find_python, pack
from domain.artifact import Entry, ServiceBundle, digest_of, listing_digest
from domain.errors import Failed, NeedsPerson


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


KEY = digest_of("inputs")
OTHER_KEY = digest_of("other inputs")


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "store")


def make_tree(root: Path, **files: str) -> Path:
    for name, content in {"app/main.py": "print('hello')\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / MANIFEST).write_text(Manifest().to_json())
    return root


def add(store: BundleStore, tree: Path, key: str = KEY) -> str:
    with store.scratch() as scratch:
        packed = pack(tree, scratch / "archive")
        store.put(packed, {"sbom": b"{}", "provenance": b"{}"})
    store.remember(
        ServiceBundle(digest=packed.digest, size_bytes=packed.size_bytes, built_from=key)
    )
    return packed.digest


def nothing_half_made(store: BundleStore) -> bool:
    return not list((store.root / "partial").iterdir())


# --- packing ------------------------------------------------------------------------------


def test_archives_are_equal_to_the_byte_whatever_the_folder_time_or_umask(tmp_path: Path) -> None:
    archives = []
    for name, umask, moment in (("a", 0o022, 1), ("bb", 0o077, 2_000_000_000)):
        before = os.umask(umask)
        try:
            tree = make_tree(tmp_path / name, **{"app/z.txt": "z", "app/a/b.txt": "b"})
            (tree / "app/run").write_text("#!/bin/sh\n")
            (tree / "app/run").chmod(0o744 if umask else 0o755)
            (tree / "app/link").symlink_to("a/b.txt")
            for path in tree.rglob("*"):
                os.utime(path, (moment, moment), follow_symlinks=False)
            archives.append(pack(tree, tmp_path / f"{name}.tar.gz"))
        finally:
            os.umask(before)
    one, two = archives
    assert one.digest == two.digest
    assert one.archive.read_bytes() == two.archive.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "app/main.py").write_text("print('hellO')\n"),
        lambda tree: (tree / "app/main.py").chmod(0o755),
        lambda tree: (tree / "app/main.py").rename(tree / "app/other.py"),
        lambda tree: (tree / "app/new").symlink_to("main.py"),
        lambda tree: (tree / "app/new").write_text(""),
    ],
)
def test_a_change_of_content_changes_the_digest(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    tree = make_tree(tmp_path / "tree")
    before = pack(tree, tmp_path / "1").digest
    change(tree)
    assert pack(tree, tmp_path / "2").digest != before


def test_bytecode_and_empty_folders_are_not_packed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    before = pack(tree, tmp_path / "1").digest
    (tree / "app/__pycache__").mkdir()
    (tree / "app/__pycache__/main.cpython-311.pyc").write_bytes(b"x")
    (tree / "app/empty").mkdir()
    assert pack(tree, tmp_path / "2").digest == before


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret", "inner/../../../secret"])
def test_a_link_to_a_place_outside_is_refused(tmp_path: Path, target: str) -> None:
    tree = make_tree(tmp_path / "tree", **{"app/inner/x": ""})
    (tree / "app/link").symlink_to(target)
    with pytest.raises(Failed, match="leaves the source") as caught:
        pack(tree, tmp_path / "archive")
    assert caught.value.code == "SLP020"


def test_links_that_only_together_lead_outside_are_refused(tmp_path: Path) -> None:
    """Read as text, ``deep/er/up/../..`` stays inside; followed, it does not."""
    tree = make_tree(tmp_path / "tree", **{"app/deep/er/x": ""})
    (tree / "app/deep/er/up").symlink_to("..")
    (tree / "app/out").symlink_to("deep/er/up/../..")
    with pytest.raises(Failed, match="out -> "):
        pack(tree, tmp_path / "archive")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    os.mkfifo(tree / "app/pipe")
    with pytest.raises(Failed, match="neither a file nor a link"):
        pack(tree, tmp_path / "archive")


def test_a_file_name_that_is_not_utf8_survives(store: BundleStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / os.fsdecode(b"app/caf\xe9")).write_text("x")
    digest = add(store, tree)
    assert (store.materialize(digest) / os.fsdecode(b"app/caf\xe9")).read_text() == "x"


# --- storing ------------------------------------------------------------------------------


def test_putting_twice_keeps_the_first(store: BundleStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    digest = add(store, tree)
    inode = store.path(digest).stat().st_ino
    assert add(store, tree) == digest
    assert store.path(digest).stat().st_ino == inode
    assert store.sidecar(digest, "sbom") == b"{}"
    assert nothing_half_made(store)


def test_the_index_finds_what_the_inputs_became(store: BundleStore, tmp_path: Path) -> None:
    assert store.find(KEY) is None
    digest = add(store, make_tree(tmp_path / "tree"))
    found = store.find(KEY)
    assert found is not None and found.digest == digest
    assert found.size_bytes == store.path(digest).stat().st_size


def test_the_first_build_of_the_same_inputs_stays_the_one(
    store: BundleStore, tmp_path: Path
) -> None:
    first = add(store, make_tree(tmp_path / "1"))
    second = add(store, make_tree(tmp_path / "2", **{"app/time.txt": "now"}), OTHER_KEY)
    kept = store.remember(ServiceBundle(digest=second, size_bytes=1, built_from=KEY))
    assert kept.digest == first


def test_an_index_entry_without_its_bundle_is_not_trusted(
    store: BundleStore, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree")
    digest = add(store, tree)
    store.path(digest).unlink()
    assert store.find(KEY) is None
    assert add(store, tree) == digest and store.find(KEY) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": "latest"}', b'"x"'])
def test_an_unreadable_index_entry_costs_a_build_and_no_more(
    store: BundleStore, tmp_path: Path, content: bytes
) -> None:
    tree = make_tree(tmp_path / "tree")
    add(store, tree)
    next((store.root / "keys").iterdir()).write_bytes(content)
    assert store.find(KEY) is None
    add(store, tree)
    assert store.find(KEY) is not None


def _flip(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip,
    "cut off": lambda archive: archive.write_bytes(archive.read_bytes()[:-30]),
    "empty": lambda archive: archive.write_bytes(b""),
    "text": lambda archive: archive.write_text("<html>404</html>"),
    "a tar without its compression": lambda a: a.write_bytes(gzip.decompress(a.read_bytes())),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_bundle_is_never_used_and_the_file_is_named(
    store: BundleStore, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    digest = add(store, make_tree(tmp_path / "tree"))
    damage(store.path(digest))
    for use in (store.materialize, store.verify, store.check, lambda _: store.find(KEY)):
        with pytest.raises(NeedsPerson) as caught:
            use(digest)
        assert caught.value.code == "SLP021"
        assert caught.value.where == str(store.path(digest))
    assert nothing_half_made(store)
    assert not (store.root / "unpacked").exists() or not list((store.root / "unpacked").iterdir())


def test_another_bundle_under_the_name_is_noticed(store: BundleStore, tmp_path: Path) -> None:
    digest = add(store, make_tree(tmp_path / "1"))
    other = add(store, make_tree(tmp_path / "2", **{"app/x": "x"}), OTHER_KEY)
    store.path(digest).write_bytes(store.path(other).read_bytes())
    for use in (store.materialize, store.verify):
        with pytest.raises(NeedsPerson, match="its content has the digest"):
            use(digest)


def test_a_lost_record_is_damage(store: BundleStore, tmp_path: Path) -> None:
    digest = add(store, make_tree(tmp_path / "tree"))
    store.path(digest).with_suffix("").with_suffix(".json").unlink()
    with pytest.raises(NeedsPerson, match="record"):
        store.check(digest)


def test_a_missing_bundle_is_said_to_be_missing(store: BundleStore) -> None:
    for use in (store.materialize, store.verify, store.check):
        with pytest.raises(Failed) as caught:
            use(digest_of("never built"))
        assert caught.value.code == "SLP022"


# --- hostile archives ---------------------------------------------------------------------


def _member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def _link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, type=tarfile.SYMTYPE, linkname=target)


HOSTILE = {
    "absolute path": [_member("/tmp/evil", b"x")],
    "path with ..": [_member("app/../../evil", b"x")],
    "absolute link": [_link("app/link", "/etc")],
    "link outside": [_link("app/link", "../../evil")],
    "write through a link": [_link("app/link", "."), _member("app/link/evil", b"x")],
    "links that together lead out": [
        _member("app/deep/er/x", b""),
        _link("app/deep/er/up", ".."),
        _link("app/out", "deep/er/up/../../.."),
    ],
    "hard link": [_member("app/hard", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "device": [_member("app/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "the same name twice": [_member("app/x", b"1"), _member("app/x", b"2")],
    "a file as a folder": [_member("app/x", b"1"), _member("app/x/y", b"2")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_writes_nothing_outside(
    store: BundleStore, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    """Even one whose digest is right, as a hostile builder could make it."""
    entries = []
    for info, content in members:
        path = info.name
        kind = "link" if info.issym() else "file"
        entries.append(Entry(path, kind, info.linkname or sha256_of(content), info.size))
    try:
        digest = listing_digest(entries)
    except ValueError:
        digest = digest_of("cannot be named")
    archive = store.path(digest)
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(NeedsPerson) as caught:
        store.materialize(digest)
    assert caught.value.code == "SLP021"
    assert nothing_half_made(store)
    assert not list(tmp_path.rglob("evil"))


# --- unpacking ----------------------------------------------------------------------------


def test_a_materialised_bundle_is_read_only_and_dated_by_its_build(
    store: BundleStore, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", **{"app/run.sh": "#!/bin/sh\n"})
    (tree / "app/run.sh").chmod(0o700)
    digest = add(store, tree)
    before = os.umask(0o077)
    try:
        found = store.materialize(digest)
    finally:
        os.umask(before)
    assert stat.S_IMODE((found / "app/main.py").stat().st_mode) == 0o444
    assert stat.S_IMODE((found / "app/run.sh").stat().st_mode) == 0o555
    built = store.path(digest).stat().st_mtime
    assert (found / "app/main.py").stat().st_mtime == pytest.approx(built)
    assert store.materialize(digest) == found


def test_a_copy_of_the_source_is_writable(store: BundleStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", **{"app/tool": "#!/bin/sh\n"})
    (tree / "app/tool").chmod(0o755)
    (tree / "app/link").symlink_to("main.py")
    copy = store.copy_source(add(store, tree), tmp_path / "copy")
    assert stat.S_IMODE((copy / "main.py").stat().st_mode) == 0o644
    assert stat.S_IMODE((copy / "tool").stat().st_mode) == 0o755
    assert (copy / "link").is_symlink()


def test_a_manifest_of_a_later_slipway_is_refused(store: BundleStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / MANIFEST).write_text('{"format": 99, "new": true}')
    with pytest.raises(Failed, match="format 99") as caught:
        store.materialize(add(store, tree))
    assert caught.value.code == "SLP022"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (Manifest("requirements.lock", "3.4", "cpython-34", "linux-x86_64"), "Python 3.4"),
        (Manifest("requirements.lock", None, None, None), ""),
        (Manifest("requirements.lock", find_python().minor, "cpython-99", "vms"), "cpython-99"),
    ],
)
def test_a_bundle_for_another_python_says_which(
    store: BundleStore, tmp_path: Path, manifest: Manifest, said: str
) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / MANIFEST).write_text(manifest.to_json())
    digest = add(store, tree)
    if not said:
        store.materialize(digest)
        return
    with pytest.raises(Failed, match=said) as caught:
        store.materialize(digest)
    assert caught.value.code == "SLP022"
    assert nothing_half_made(store)


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    return output


def test_processes_that_materialise_at_once_agree(store: BundleStore, tmp_path: Path) -> None:
    many = {f"app/{number}.txt": "x" * 2000 for number in range(400)}
    digest = add(store, make_tree(tmp_path / "tree", **many))
    code = """
        import sys
        from pathlib import Path
        from blocks.bundles import BundleStore
        store = BundleStore(Path(sys.argv[1]))
        sys.stdin.readline()
        found = store.materialize(sys.argv[2])
        assert len(list((found / "app").iterdir())) == 401
        print(found)
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(store.root), digest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = []
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        outputs.append(process.communicate(timeout=60)[0].strip())
    assert set(outputs) == {str(store.materialize(digest))}
    assert nothing_half_made(store)


def test_threads_that_need_a_bundle_at_once_unpack_it_once(
    store: BundleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite, its candidate and a scan begin at the same moment."""
    digest = add(store, make_tree(tmp_path / "tree"))
    unpacked: list[str] = []
    original = BundleStore._unpack

    def counted(self: BundleStore, archive: Path, digest: str, tree: Path) -> None:
        unpacked.append(digest)
        original(self, archive, digest, tree)

    monkeypatch.setattr(BundleStore, "_unpack", counted)
    start = threading.Barrier(3)

    def work() -> Path:
        start.wait(20)
        return store.materialize(digest)

    with ThreadPoolExecutor(3) as pool:
        found = {future.result() for future in [pool.submit(work) for _ in range(3)]}
    assert len(found) == 1
    assert unpacked == [digest]


@pytest.mark.parametrize("point", ["os.link", "Path.rename", "os.utime"])
def test_a_killed_process_leaves_nothing_that_counts(
    store: BundleStore, tmp_path: Path, point: str
) -> None:
    tree = make_tree(tmp_path / "tree")
    code = """
        import os, signal, sys
        from pathlib import Path
        from blocks.bundles import BundleStore, pack
        def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
        owner, _, name = sys.argv[3].rpartition(".")
        store = BundleStore(Path(sys.argv[1]))
        if name == "link": setattr({"os": os, "Path": Path}[owner], name, die)
        with store.scratch() as scratch:
            packed = pack(Path(sys.argv[2]), scratch / "archive")
            store.put(packed, {"sbom": b"{}"})
        setattr({"os": os, "Path": Path}[owner], name, die)
        store.materialize(packed.digest)
    """
    process = _python(code, store.root, tree, point)
    _ended(process)
    assert process.returncode == -signal.SIGKILL
    assert list((store.root / "partial").iterdir()), "the kill came too late to prove anything"
    unpacked = store.root / "unpacked"
    assert not unpacked.exists() or not list(unpacked.iterdir())
    digest = add(store, tree)
    store.verify(digest)
    assert (store.materialize(digest) / "app/main.py").exists()
    assert nothing_half_made(store), "what the killed process left is swept away"


def test_work_in_progress_of_a_living_process_is_left_alone(store: BundleStore) -> None:
    with store.scratch() as mine:
        (mine / "file").write_text("x")
        with store.scratch() as other:
            assert other != mine
        assert (mine / "file").exists()
    assert nothing_half_made(store)


# --- disk full ----------------------------------------------------------------------------


def test_a_disk_that_fills_up_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the full disk; the kernel refuses the write."""
    tree = make_tree(tmp_path / "tree")
    (tree / "app/big").write_bytes(os.urandom(300_000))
    code = """
        import resource, sys
        from pathlib import Path
        from blocks.bundles import BundleStore, pack
        from domain.errors import Failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        store = BundleStore(Path(sys.argv[1]))
        try:
            with store.scratch() as scratch:
                store.put(pack(Path(sys.argv[2]), scratch / "archive"), {})
        except Failed as error:
            print(error.code)
    """
    process = _python(code, store.root, tree)
    assert _ended(process) == "SLP015\n" and process.returncode == 0
    assert nothing_half_made(store)
    assert not (store.root / "bundles").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_while_unpacking_leaves_nothing(
    store: BundleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    digest = add(store, make_tree(tmp_path / "tree"))

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(bundles.os, "fchmod", full)
        with pytest.raises(Failed) as caught:
            store.materialize(digest)
    assert caught.value.code == "SLP015" and str(store.root) in str(caught.value)
    assert nothing_half_made(store)
    assert (store.materialize(digest) / "app/main.py").exists()


def test_other_errors_of_the_disk_are_not_called_full(store: BundleStore) -> None:
    with pytest.raises(PermissionError), store.scratch():
        raise PermissionError(errno.EACCES, "no")


# --- cleaning up --------------------------------------------------------------------------


def test_cleaning_up_is_planned_then_done(store: BundleStore, tmp_path: Path) -> None:
    kept = add(store, make_tree(tmp_path / "1"))
    gone = add(store, make_tree(tmp_path / "2", **{"app/x": "x"}), OTHER_KEY)
    for digest in (kept, gone):
        store.materialize(digest)
    environment = store.environments() / f"{gone.removeprefix('sha256:')}-1"
    environment.mkdir(parents=True)
    plan = store.plan_cleanup({kept}, spare=timedelta(seconds=-5))
    assert {removal.kind for removal in plan.removals} == {
        "bundle",
        "unpacked bundle",
        "test environment",
    }
    assert {removal.digest for removal in plan.removals} == {gone}
    assert store.has(gone), "a plan removes nothing"
    assert store.collect(plan) == plan.size_bytes > 0
    assert not store.has(gone) and store.has(kept)
    assert store.find(OTHER_KEY) is None and store.find(KEY) is not None
    assert not environment.exists() and not list(store.root.rglob(f"*{gone[7:]}*"))
    assert store.collect(plan) >= 0, "doing it twice is harmless"


def test_old_logs_go_and_new_ones_stay(store: BundleStore) -> None:
    for name, moment in (("old", 1), ("new", None)):
        (store.root / "logs" / name).mkdir(parents=True)
        os.utime(store.root / "logs" / name, (moment, moment) if moment else None)
    plan = store.plan_cleanup(set())
    assert [removal.path.name for removal in plan.removals] == ["old"]
    store.collect(plan)
    assert os.listdir(store.root / "logs") == ["new"]


def test_what_is_young_is_spared(store: BundleStore, tmp_path: Path) -> None:
    add(store, make_tree(tmp_path / "tree"))
    assert store.plan_cleanup(set()).removals == ()


def test_an_interpreter_is_found_and_an_unknown_one_is_named() -> None:
    own = find_python()
    assert own.minor == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert find_python(own.minor) == own
    with pytest.raises(Failed, match=r"Python 3\.4 was looked for"):
        find_python("3.4")


def test_a_packed_bundle_knows_its_archive(tmp_path: Path) -> None:
    packed: Packed = pack(make_tree(tmp_path / "tree"), tmp_path / "archive")
    assert packed.size_bytes == packed.archive.stat().st_size
    assert packed.archive_sha256 == sha256_of(packed.archive.read_bytes())
