"""The age keys that the sandbox encrypts backups for, one a cloud and one that stays offline.

A file each, as ``age-keygen`` writes them, so that ``age -d -i FILE`` opens a backup.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pyrage

from sandbox.home import Home, writing

NAMES = ("aws", "gcp", "offline")
OFFLINE = frozenset({"offline"})
"""Keys that no server is told: in production they lie in a safe."""


def ensure(home: Home) -> dict[str, tuple[str, str]]:
    """Public and private key by name; made when they are not there, and never replaced.

    Raises:
        UsageError: SLP016, the folder cannot be used. Failed: SLP015.
    """
    with writing(home.keys):
        home.keys.mkdir(mode=0o700, exist_ok=True)
        return {name: _ensure(home.keys / f"{name}.key") for name in NAMES}


def _ensure(file: Path) -> tuple[str, str]:
    if not file.exists():
        identity = pyrage.x25519.Identity.generate()
        text = f"# public key: {identity.to_public()}\n{identity}\n"
        fresh = file.with_suffix(f".{secrets.token_hex(4)}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as written:
            written.write(text)
        try:
            os.link(fresh, file)  # two that start at once must end with one key
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    secret = file.read_text().strip().splitlines()[-1]
    return str(pyrage.x25519.Identity.from_str(secret).to_public()), secret
