"""``slipway doctor``: what this machine must have, each check with the way to mend it.

Nothing is asked over a network; all of it takes a second or two.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from deployments.console import Console
from domain.errors import SlipwayError
from sandbox import control, ports
from sandbox.control import State
from sandbox.home import Home, Memory

Level = Literal["ok", "warn", "fail"]

_SYMBOLS = {"ok": ("✔", "green"), "warn": ("!", "yellow"), "fail": ("✖", "red")}
_PINS = {"prefect": ">=3.8.8,<3.10", "fastapi": "<0.151"}
_SCANNERS = ("bandit", "detect-secrets", "hadolint", "schemathesis")
_NEEDED_BYTES, _WANTED_BYTES = 2**30, 4 * 2**30
_NEEDED_FILES, _WANTED_FILES = 1024, 4096
_PROJECT_BEGAN = 1_735_689_600  # 2025-01-01: no correct clock shows an earlier time
_INSTALL = "run: make install"


@dataclass(frozen=True)
class Found:
    """What one check saw."""

    name: str
    level: Level
    seen: str
    fix: str = ""


def show(home: Home, console: Console) -> int:
    """Print every check; returns 1 when one fails."""
    found = list(examine(home))
    lines = []
    for one in found:
        symbol, style = _SYMBOLS[one.level]
        word = console.paint(f"{symbol} {one.level:<4}", style, sys.stdout)
        lines.append(f"{word}  {one.name}: {one.seen}")
        lines += [f"         fix: {one.fix}"] if one.fix else []
    failed = sum(one.level == "fail" for one in found)
    warned = sum(one.level == "warn" for one in found)
    lines.append(f"{len(found)} checks, {failed} failed, {warned} with a warning")
    document = {
        "ok": not failed,
        "checks": [
            {"name": f.name, "level": f.level, "seen": f.seen, "fix": f.fix or None} for f in found
        ],
    }
    console.finish("\n".join(lines), document, next=[] if failed else ["slipway status"])
    return 1 if failed else 0


def examine(home: Home) -> Iterator[Found]:
    """Every check, in the order in which one would mend things."""
    yield _python()
    for package, limits in _PINS.items():
        yield _pinned(package, limits)
    yield from _programs()
    yield _state(home)
    yield _disk(home)
    yield _files()
    yield _clock(home)
    yield from _sandbox(home)


def _python() -> Found:
    seen = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Found("Python", "ok", seen)
    return Found("Python", "fail", f"{seen}; 3.11 to 3.13 are supported", "make PYTHON=python3.12")


def _pinned(package: str, limits: str) -> Found:
    from packaging.specifiers import SpecifierSet

    try:
        seen = version(package)
    except PackageNotFoundError:
        return Found(package, "fail", "not installed", _INSTALL)
    if SpecifierSet(limits).contains(seen):
        return Found(package, "ok", f"{seen} ({limits})")
    return Found(package, "fail", f"{seen} is outside {limits}", _INSTALL)


def _programs() -> Iterator[Found]:
    from sandbox import parts

    yield _looked_up("uv", _uv, "fail", _INSTALL)
    yield _looked_up("git", lambda: _which("git"), "warn", "install git: versions come from it")
    for name in _SCANNERS:
        yield _looked_up(name, lambda name=name: _which(name), "fail", _INSTALL)  # type: ignore[misc]
    try:
        parts.check_installed()
        yield Found("sandbox programs", "ok", "prefect, traefik, redis, PostgreSQL, moto, gcs")
    except SlipwayError as error:
        yield Found("sandbox programs", "fail", error.cause, error.help)


def _looked_up(name: str, find: Callable[[], str], missing: Level, fix: str) -> Found:
    try:
        return Found(name, "ok", find())
    except (FileNotFoundError, ImportError):
        return Found(name, missing, "not found", fix)


def _uv() -> str:
    from uv import find_uv_bin

    return str(find_uv_bin())


def _which(name: str) -> str:
    ours = str(Path(sys.executable).parent)
    found = shutil.which(name, path=ours) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(name)
    return found


def _state(home: Home) -> Found:
    folder = _existing(home.root)
    name, fix = "state directory", "make it writable, or name another: SLIPWAY_HOME=DIR"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Found(name, "fail", f"{folder} is not writable", fix)
    try:
        Memory.load(home)
    except SlipwayError as error:
        return Found(name, "fail", error.cause, error.help)
    return Found(name, "ok", str(home.root))


def _disk(home: Home) -> Found:
    free = shutil.disk_usage(_existing(home.root)).free
    seen = f"{free / 2**30:.1f} GiB free"
    if free < _NEEDED_BYTES:
        return Found("disk", "fail", f"{seen}, 1 GiB is needed", "free some space")
    if free < _WANTED_BYTES:
        return Found("disk", "warn", f"{seen}, 4 GiB are comfortable", "free some space")
    return Found("disk", "ok", seen)


def _files() -> Found:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    name, fix = "open files", f"run: ulimit -n {_WANTED_FILES}"
    if soft != resource.RLIM_INFINITY and soft < _NEEDED_FILES:
        return Found(name, "fail", f"limit {soft}, {_NEEDED_FILES} are needed", fix)
    if soft != resource.RLIM_INFINITY and soft < _WANTED_FILES:
        return Found(name, "warn", f"limit {soft}, {_WANTED_FILES} are comfortable", fix)
    return Found(name, "ok", f"limit {soft}")


def _clock(home: Home) -> Found:
    now = time.time()
    fix = "set the clock; release times and advisories' ages depend on it"
    if now < _PROJECT_BEGAN:
        return Found("clock", "fail", f"{time.strftime('%Y-%m-%d', time.gmtime(now))}", fix)
    try:
        ahead = home.state_file.stat().st_mtime - now
    except OSError:
        ahead = 0.0
    if ahead > 60:
        return Found("clock", "warn", f"the sandbox was used {ahead:.0f} s in the future", fix)
    return Found("clock", "ok", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)))


def _sandbox(home: Home) -> Iterator[Found]:
    status = control.status(home)
    if status is None:
        yield Found("sandbox", "warn", "not running", "slipway up")
        yield from _taken_ports(home)
        return
    for part in status.parts:
        if part.state is not State.READY:
            seen = f"{part.state}: {part.reason}"
            yield Found(f"sandbox {part.name}", "fail", seen, f"read {part.log}")
    if status.ready:
        yield Found("sandbox", "ok", f"{len(status.parts)} parts ready")


def _taken_ports(home: Home) -> Iterator[Found]:
    try:
        remembered = Memory.load(home).ports
    except SlipwayError:
        return  # said by the check of the state directory
    taken = [f"{port} ({name})" for name, port in remembered.items() if ports.answers(port)]
    if taken:
        fix = "nothing to do: others are chosen; `slipway down` ends what a kill left behind"
        yield Found("ports", "warn", f"in use by somebody: {', '.join(taken)}", fix)


def _existing(path: Path) -> Path:
    """The nearest folder that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
