"""What is checked of a server that is asked over HTTP: its address, and the secret that it wants."""

from __future__ import annotations

import os

import httpx

from egrpo.base.errors import UserError


def checked_url(url: str, key: str, secret_key: str, path: str) -> str:
    """The address as it is given.

    Args:
        url: Not empty.
        key: The setting that holds it.
        secret_key: The setting that names the environment variable of a secret.
        path: What follows the host, as the message shows it.

    Raises:
        UserError: it is no address of a server, or holds a user or password.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"{key}={url} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.host or (parts.port or 80) > 65535:
        raise UserError(f"{key}={url}: give http://HOST:PORT{path} or https://HOST{path}")
    if parts.userinfo:
        raise UserError(
            f"{key} holds a user or password for {parts.host}, which the run's files would keep: put the secret into "
            f"an environment variable and name that with {secret_key}=..."
        )
    return str(url)


def secret(variable: str | None, key: str) -> str:
    """What an environment variable holds, blanks around it left out; "" where none is named.

    Args:
        variable: Its name.
        key: The setting that names it.

    Raises:
        UserError: it is not set, or cannot stand in a header.
    """
    if not variable:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{key}={variable}: the environment variable {variable} is not set")
    if not all("!" <= character <= "~" for character in value):
        raise UserError(
            f"{key}={variable}: the value of {variable} cannot stand in a header "
            "(blanks, line breaks or characters outside ASCII)"
        )
    return value
