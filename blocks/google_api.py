"""Clients of Google's admin APIs, by the official library and the documents that it ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import google.auth
import google_auth_httplib2
import httplib2
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import service_account
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError

from domain.errors import Failed

RETRIES = 1
_SECONDS = 5
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def client(name: str, version: str, endpoint: str, account: Mapping[str, Any] | None) -> Any:
    """The client of an API; nothing is asked of it yet.

    Args:
        endpoint: of an emulator; empty: Google's own.
        account: the JSON of a service account; without, the machine's own credentials.

    Raises:
        GoogleAuthError: this machine has none.
    """
    credentials: Any = AnonymousCredentials()  # an emulator's
    if account:
        credentials = service_account.Credentials.from_service_account_info(
            account, scopes=[_SCOPE]
        )
    elif not endpoint:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    http = google_auth_httplib2.AuthorizedHttp(credentials, http=httplib2.Http(timeout=_SECONDS))
    options = {"api_endpoint": f"{endpoint.rstrip('/')}/"} if endpoint else None
    return build(name, version, http=http, client_options=options, cache_discovery=False)


@contextmanager
def asking(code: str, service: str, what: str, help: str) -> Iterator[None]:
    """Turns every way in which Google's library fails into ours.

    Raises:
        Failed: with the given code.
    """
    try:
        yield
    except HttpError as error:
        raise Failed(code, f"asked {service} to {what}: {error.status_code} {error.reason}",
                     help=help) from error  # fmt: skip
    except (httplib2.HttpLib2Error, GoogleAuthError, OSError) as error:
        raise Failed(code, f"asked {service} to {what}: {error}", help=help) from error
