"""The page, of gradio's components, and the server that it comes from."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mmdyn.analysis.rows import Row, table
from mmdyn.apis import Inference
from mmdyn.app.comparing import Comparer
from mmdyn.engine.picture_reader import Reader
from mmdyn.errors import BadDataError
from mmdyn.pictures import FORMATS, Picture, resized, size_of
from mmdyn.visualization.inference import classes_in, decision_panels, predicted

LOOPBACK = ('localhost', '127.0.0.1', '::1')
KEPT_BYTES = 2**28  # of uploads and results
# What the page asks for. gradio has more routes, which take recordings or fetch addresses.
_ROUTES = re.compile(
    r'/(config|favicon\.ico|theme\.css|(assets|static)/.*|gradio_api/(file=/.*|heartbeat/.*'
    r'|queue/(data|join)|run/predict|cancel|startup-events|theme\.css|upload(_progress)?))?'
)


def build_page(comparer: Comparer, *, max_side: int, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Lay out the page; pictures are shrunk to ``max_side`` pixels, the first example is shown."""
    files = [str(path) for path in examples]
    with gr.Blocks(title='mmdyn', analytics_enabled=False, delete_cache=(60, 3600)) as page:
        gr.Markdown(_about(comparer))
        with gr.Row():
            with gr.Column(scale=2, min_width=270):
                upload = dict(type='filepath', sources=['upload', 'clipboard'], buttons=[])
                picture = gr.Image(*files[:1], label='Picture', height=230, **upload)
                picture.async_move_resource_to_block_cache = _unmoved
                if files:
                    gr.Examples([[file] for file in files], picture)
                sliders = [
                    gr.Slider(0.05, 1.0, ratio, step=0.05, label=name.replace('_', ' '))
                    for name, ratio in comparer.ratios.items()
                ]
                again = gr.Button('Measure again')
            shown = dict(format='png', interactive=False)
            predictions = gr.ImageSlider(label='Prediction', scale=4, **shown)
            columns = dict(headers=['', 'dense', 'sparse'], column_widths=['22%', '39%', '39%'])
            figures = gr.Dataframe(label='Medians [quartiles]', wrap=True, scale=4, **columns)
        shown |= dict(columns=5, height=330, object_fit='contain')
        panels = gr.Gallery(label='Where the sparse model computed', **shown)
        colours = gr.HighlightedText(label='Colours', show_inline_category=False)
        gr.on(
            [page.load, picture.change, again.click, *(slider.change for slider in sliders)],
            make_update(comparer, max_side),
            [picture, *sliders],
            [predictions, figures, panels, colours],
            preprocess=False,  # gradio would decode the picture, without our limits
            api_visibility='private',
            concurrency_limit=1,
            trigger_mode='always_last',  # of what is asked meanwhile, only the last is computed
        )
    return page


def _about(comparer: Comparer) -> str:
    models = {'Sparse': comparer.sparse.loaded, 'Dense (highest ratios)': comparer.dense.loaded}
    lines = [f'- {kind}: `{m.name}` ({m.weights}), {m.device}' for kind, m in models.items()]
    hint = 'Drop a picture, or pick one, and set how much the sparse model may keep.'
    return '\n'.join(['# Dense and sparse, side by side', hint, *lines])


async def _unmoved(path: str) -> str:
    """In place of gradio's function, which would download a picture that is named by a URL."""
    return path


def make_update(comparer: Comparer, max_side: int) -> Callable[..., tuple]:
    """What the page calls: an uploaded file and the ratios in, the components' values out."""

    def update(upload: dict | None, *values: float) -> tuple:
        if upload is None:
            return (None,) * 4
        path = Path(upload['path']).resolve()
        try:
            if not path.is_relative_to(Path(get_upload_folder()).resolve()):  # gradio lets it pass
                raise BadDataError(f'{path} was not uploaded here')
            picture = read_picture(path, comparer.sparse.reader, max_side)
            os.utime(path)  # kept for longer than what nobody uses
            found = comparer(picture, **dict(zip(comparer.ratios, values, strict=True)))
        except BadDataError as error:
            said = escape(str(error).replace(str(path), path.name), quote=False)
            raise gr.Error(said, duration=None, print_exception=False) from error
        return show(*found)

    return update


def read_picture(path: Path, reader: Reader, max_side: int) -> Picture:
    """Read an untrusted picture, shrunk to a longer side of ``max_side`` pixels.

    Raises:
        mmdyn.errors.BadDataError: if it can't be read, or (before it is decoded) is too large.
    """
    reader.check(path)
    if reader.is_mmcvs and size_of(path) is None:  # OpenCV reads more, of sizes not checked
        raise BadDataError(f'{path} is not a readable picture: use {", ".join(FORMATS)}')
    picture = reader.read(path)
    hw = picture.image.shape[:2]
    small = tuple(max(1, round(side * max_side / max(hw))) for side in hw)
    return replace(picture, image=resized(picture.image, small)) if small < hw else picture


def show(found: Sequence[Inference], rows: Sequence[Row], macs: Sequence[int]) -> tuple:
    """Predictions, figures, decisions and colours, as the page's components take them."""
    (dense, sparse), (headings, cells) = found, table(rows)
    kept = [f'{choice.fraction:.0%}' for choice in sparse.choices]
    kept += [f'{choice.fraction:.0%} of tiles' for choice in [sparse.tiles] if choice is not None]
    figures = [
        ('kept', 'all', ', '.join(kept)),
        ('GMACs, backbone', *(f'{one / 1e9:.3f}' for one in macs)),
        *list(zip(headings, *cells, strict=True))[1:],  # without the models' names
        ('instances', *(str(len(one.instances())) for one in found))
        if sparse.labels is None
        else ('same class', '', f'{(sparse.labels == dense.labels).mean():.1%} of pixels'),
    ]
    panels = decision_panels(sparse)
    legend = [(sparse.palette[i], sparse.classes[i]) for one in found for i in classes_in(one)]
    legend += [(rgb, f'kept by {count}') for panel in panels for rgb, count in panel.legend]
    colours = {name: f'#{bytes(rgb).hex()}' for rgb, name in legend}
    height, width = sparse.picture.image.shape[:2]
    label = f'Prediction at {width}x{height}: dense on the left, sparse on the right'
    return (
        gr.update(value=tuple(map(predicted, found)), label=label),
        list(map(list, figures)),
        [(panel.image, panel.title) for panel in panels],
        gr.update(value=[(name, name) for name in colours], color_map=colours),
    )


def serve(page: gr.Blocks, uploads: Path, *, max_bytes: int, host: str, port: int | None) -> None:
    """Serve the page in threads of its own, and return.

    ``uploads`` is gradio's folder, ``max_bytes`` the largest file. No ``port``: one from 7860 on.

    Raises:
        OSError: if nothing can listen there.
    """
    address = host.strip('[]')
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    try:  # gradio would try for minutes
        socket.create_server((address, port or 0), family=family).close()
    except OSError as error:
        raise OSError(f'--host {host}, --port {port or "any"}: {error.strerror}') from error
    host = f'[{address}]' if ':' in address else address
    names = ['localhost', '127.0.0.1', '[::1]', host]
    if address not in LOOPBACK:  # any IPv4 address too: no site's name ends in a number
        machine = socket.gethostname().lower()
        names += [machine, f'{machine}.local', *(f'*.{number}' for number in range(256))]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=names)  # against DNS rebinding
    own = Middleware(guard, uploads=uploads, max_bytes=max_bytes)
    where = dict(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True)
    off = ('share', 'ssr_mode', 'run_history', 'enable_monitoring', 'mcp_server')
    where |= dict.fromkeys(off, False) | dict(footer_links=[], max_file_size=max_bytes)
    page.queue(max_size=8, api_open=False).launch(app_kwargs=dict(middleware=[hosts, own]), **where)


def guard(app: ASGIApp, uploads: Path, max_bytes: int) -> ASGIApp:
    """Middleware that lets through what this page sends, and bounds all its files together."""
    examples, longest = set(uploads.rglob('*')), max_bytes + 2**16  # a form around the file

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        answer = app
        if scope['type'] == 'http':
            headers = Headers(scope=scope)
            origin = headers.get('origin')
            if origin is not None and origin.partition('://')[2] != headers.get('host'):
                answer = PlainTextResponse('Requests from other pages are refused.', 403)
            elif not _ROUTES.fullmatch(scope['path']):
                answer = PlainTextResponse('Not found.', 404)
            elif 'transfer-encoding' in headers or int(headers.get('content-length', 0)) > longest:
                answer = PlainTextResponse('The file is too large, or of unknown size.', 413)
            elif scope['method'] == 'POST':
                make_room(set(uploads.rglob('*')) - examples, KEPT_BYTES + longest)
        with suppress(ClientDisconnect):  # an upload was given up
            await answer(scope, receive, send)

    return guarded


def make_room(files: Iterable[Path], room: int) -> None:
    """Delete the files not used for longest until the others fit in ``room`` bytes."""
    with suppress(OSError):  # gradio deletes some at the same time
        for file in sorted(filter(Path.is_file, files), key=os.path.getmtime, reverse=True):
            room -= file.stat().st_size
            if room < 0:
                file.unlink()


def wait(page: gr.Blocks) -> None:
    """Wait for Ctrl-C and stop the server; gradio's way waits for predictions, and returns."""
    try:
        threading.Event().wait()
    finally:
        logging.disable()  # of what is cut off nobody is to be told
        page.server.should_exit = page.server.force_exit = True
        page.server.thread.join(1)
