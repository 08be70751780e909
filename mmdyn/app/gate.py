"""What the page's server refuses before gradio sees it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mmdyn.app.hosts import is_own_name

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
# A form has lines around its file.
_OVERHEAD = 2**16


class Gate:
    """Lets through what the page itself sends, if it was loaded from this server.

    Args:
        app: the ASGI application behind it.
        host: name or address that the server listens at.
        uploads: folder of uploaded files; what is in it already is never deleted.
        upload_bytes: size of the largest file.
    """

    def __init__(self, app: ASGIApp, *, host: str, uploads: Path, upload_bytes: int) -> None:
        self._app = app
        self._host = host
        self._uploads = uploads
        self._examples = set(uploads.glob('*'))
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
        found = [_measure(entry) for entry in self._uploads.glob('*')]
        room = self._room - self._coming
        for _, size, entry in sorted(found, reverse=True):
            if entry in self._examples:
                continue
            room -= size
            if room < 0:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(
                    missing_ok=True
                )


def _measure(entry: Path) -> tuple[float, int, Path]:
    """When a file or folder was written, its bytes, itself; 0 if it is gone."""
    with suppress(FileNotFoundError):
        size = sum(one.stat().st_size for one in (entry, *entry.rglob('*')))
        return entry.stat().st_mtime, size, entry
    return 0.0, 0, entry
