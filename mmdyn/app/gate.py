"""What the page's server refuses before gradio sees it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mmdyn.app.page import LOOPBACK

KEPT_UPLOADS = 10
"""Files of the largest size that are kept at once; older ones are deleted for new ones."""

_API = '/gradio_api/'
_UPLOAD = f'{_API}upload'
# What gradio's page asks for, if it is made of a picture, sliders, a button and HTML. Its other
# routes take recordings, forward requests, fetch addresses or tell of the machine.
_GET = (
    '/assets/',
    '/config',
    '/favicon.ico',
    '/static/',
    '/theme.css',
    f'{_API}file=/',
    f'{_API}heartbeat/',
    f'{_API}queue/data',
    f'{_API}startup-events',
    f'{_API}upload_progress',
)
_POST = (_UPLOAD, f'{_API}queue/join', f'{_API}run/predict', f'{_API}cancel')
_OVERHEAD = 2**16  # bytes of a form around its file


def is_own_name(header: str, listening: str) -> bool:
    """Whether a Host header, with or without a port, names this server.

    gradio does not look at it. The page of another site whose name was made to lead here (DNS
    rebinding) asks by that name, and never by an address.

    Args:
        header: the header.
        listening: name or address that the server listens at.
    """
    try:
        name = urlsplit(f'//{header}').hostname or ''
    except ValueError:
        return False
    listening = listening.strip('[]').lower()
    if name in (*LOOPBACK, listening):
        return True
    if listening in LOOPBACK:
        return False
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    own = socket.gethostname().lower()
    return name in (own, own.partition('.')[0], f'{own}.local')


class Gate:
    """Lets through what the page itself sends, if it was loaded from this server.

    gradio bounds the size of a file; this bounds forms of several files and all uploads together.

    Args:
        app: the ASGI application behind it.
        host: name or address that the server listens at.
        uploads: folder of uploaded files; what is in it already is never deleted.
        upload_bytes: size of the largest file.
    """

    def __init__(self, app: ASGIApp, *, host: str, uploads: Path, upload_bytes: int) -> None:
        self._app, self._host, self._uploads = app, host, uploads
        self._examples = set(uploads.rglob('*'))
        self._body_bytes = upload_bytes + _OVERHEAD
        self._room = KEPT_UPLOADS * self._body_bytes
        self._coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refusal(scope['method'], scope['path'], headers)
        if refused is not None:
            code, reason = refused
            await PlainTextResponse(reason, code)(scope, receive, send)
            return
        size = int(headers.get('content-length', 0)) if scope['path'] == _UPLOAD else 0
        self._coming += size
        try:
            if size:
                self._make_room()
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass  # an upload was given up
        finally:
            self._coming -= size

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason, if it is to be refused."""
        host, origin = headers.get('host', ''), headers.get('origin')
        if not is_own_name(host, self._host):
            return 400, f'Unknown host {host!r}: start the page with --host {host or "NAME"}.'
        if origin is not None and origin.partition('://')[2] != host:
            return 403, 'Requests from other pages are refused.'
        if method in ('GET', 'HEAD'):
            return None if path == '/' or path.startswith(_GET) else (404, 'Not found.')
        if method != 'POST' or path not in _POST:
            return 404, 'Not found.'
        length = headers.get('content-length', '')
        if not length.isdecimal() or 'transfer-encoding' in headers:
            return 411, 'Say how long the content is.'
        if int(length) > self._body_bytes:
            return 413, 'The file is too large.'
        if path == _UPLOAD and self._coming + int(length) > self._room:
            return 503, 'Too many uploads at once: try again later.'
        return None

    def _make_room(self) -> None:
        """Delete the oldest uploads, aborted ones too, until there is room for what comes."""
        written = {}
        for file in set(self._uploads.rglob('*')) - self._examples:
            with suppress(FileNotFoundError):
                written[file] = file.stat()
        room = self._room - self._coming
        for file in sorted(written, key=lambda file: written[file].st_mtime, reverse=True):
            room -= written[file].st_size
            if room < 0 and file.is_file():
                with suppress(OSError):  # gone, or its folder holds more
                    file.unlink()
                    file.parent.rmdir()
