"""The page itself, and the server that it comes from: all that needs gradio."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdyn.app.comparing import Comparer
from mmdyn.app.rendering import message, render
from mmdyn.app.uploads import read_upload
from mmdyn.errors import BadDataError

LOOPBACK = ('localhost', '127.0.0.1', '::1')
"""Names of the machine that no other one reaches it by."""
TITLE = 'mmdyn: dense and sparse, side by side'
SUBTITLE = (
    'A sparse model decides where a picture is worth the full computation. Slide how much it may '
    'keep, and see what that costs and what becomes of the prediction.'
)
HINT = 'Drop a picture on the left, or pick one.'
LABELS = dict(
    keep_ratio=('Keep ratio', 'Share of locations on the slow path, first predictor'),
    tile_ratio=('Tile ratio', 'Share of tiles in full resolution'),
)
"""Label and explanation of each slider."""
WAITING = 8
"""Requests that may wait for the model; further ones are told to come back."""
KEPT_SECONDS = 3600
"""After which an uploaded file is deleted."""
# gradio gives pictures to pick from no names.
_NAME_EXAMPLES = """<script>
new MutationObserver(() =>
  document.querySelectorAll('.gallery-item').forEach(
    (item, number) => item.setAttribute('aria-label', `Example ${number + 1}`))
).observe(document, {childList: true, subtree: true});
</script>"""


def import_gradio(uploads: Path) -> ModuleType:
    """Import gradio, told to report to nobody and to keep its files in the folder of uploads.

    Raises:
        ImportError: if it is not installed.
    """
    # Read when it is imported, the folder also by every component that is made.
    os.environ['GRADIO_TEMP_DIR'] = str(uploads)
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            f'the page needs gradio ({error}): pip install -r requirements/app.txt, or pip install '
            "'mmdyn[app]'"
        ) from error
    return gradio


def make_update(comparer: Comparer, uploads: Path, max_side: int) -> Callable[..., str]:
    """What the page calls: an uploaded file and ratios to HTML, whatever goes wrong.

    Args:
        comparer: of the models; the ratios come in the order of its ``ratios``.
        uploads: folder of the files that may be read.
        max_side: longer side in pixels that larger pictures are shrunk to.
    """
    uploads = uploads.resolve()

    def update(upload: dict[str, Any] | None, *values: float) -> str:
        if upload is None:
            return message(HINT)
        path = _uploaded(upload, uploads)
        if path is None:
            return message('This file was not uploaded here.', error=True)
        try:
            picture, from_hw = read_upload(path, comparer.sparse.reader, max_side)
        except BadDataError as error:
            return message(str(error), error=True)
        try:
            compared = comparer(picture, **dict(zip(comparer.ratios, values, strict=True)))
        except Exception:  # the next picture may do
            logging.getLogger(__name__).exception('the models failed on a picture')
            # Internals are for the log: who sees the page may be untrusted.
            return message(
                'The models failed on this picture; the log of this page says why. Try another.',
                error=True,
            )
        return render(compared, from_hw)

    return update


def _uploaded(upload: Any, uploads: Path) -> Path | None:
    """The file of a request; None for any other: one made by hand may hold anything."""
    try:
        path = Path(upload['path']).resolve()
    except (LookupError, OSError, RuntimeError, TypeError, ValueError):
        return None
    return path if path.is_relative_to(uploads) else None


def build_page(
    comparer: Comparer,
    uploads: Path,
    *,
    max_side: int,
    max_upload: float,
    examples: Sequence[Path] = (),
) -> Any:
    """Lay out the page.

    Args:
        comparer: of the models.
        uploads: folder for what is uploaded; files in it are deleted after an hour.
        max_side: longer side in pixels that larger pictures are shrunk to.
        max_upload: size of the largest file in MiB, to be shown.
        examples: pictures to pick from; the first one is shown at once.

    Returns:
        gradio's ``Blocks``, for :func:`serve`.
    """
    gr = import_gradio(uploads)
    files = [str(path) for path in examples]
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS // 60, KEPT_SECONDS)
    ) as page:
        gr.HTML(f'<h1>{TITLE}</h1><p>{SUBTITLE}</p>', elem_id='title')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    value=files[0] if files else None,
                    label=f'Picture (at most {max_upload:g} MiB)',
                    alt_text='The picture to predict on',
                    type='filepath',
                    image_mode=None,
                    sources=['upload', 'clipboard'],
                    buttons=[],
                    height=230,
                    elem_id='picture',
                )
                picture.async_move_resource_to_block_cache = _leave
                if files:
                    gr.Examples(
                        [[file] for file in files], picture, cache_examples=False, label='Examples'
                    )
                sliders = [
                    gr.Slider(
                        0.05,
                        1.0,
                        value=value,
                        step=0.05,
                        label=LABELS[name][0],
                        info=LABELS[name][1],
                        elem_id=name,
                        elem_classes='ratio',
                    )
                    for name, value in comparer.ratios.items()
                ]
                again = gr.Button('Measure again', elem_id='again')
            with gr.Column(scale=3, min_width=500):
                results = gr.HTML(message(HINT), elem_id='results', label='Results')
        gr.on(
            [page.load, picture.change, again.click, *(slider.change for slider in sliders)],
            make_update(comparer, uploads, max_side),
            [picture, *sliders],
            results,
            # gradio would decode the picture, without our limits.
            preprocess=False,
            api_visibility='private',
            concurrency_limit=1,
            # While one is at work, only the last of further ones waits.
            trigger_mode='always_last',
        )
    return page


async def _leave(path: str) -> str:
    """In place of gradio's, which would fetch a file that is named by an address."""
    return path


def serve(page: Any, uploads: Path, *, upload_bytes: int, host: str, port: int | None) -> None:
    """Serve the page in threads of its own, and return.

    Args:
        page: see :func:`build_page`.
        uploads: folder for what is uploaded.
        upload_bytes: size of the largest file.
        host: address to listen at.
        port: None = the first free one from 7860.

    Raises:
        OSError: if nothing can listen there.
    """
    check_free(host, port)
    gr = import_gradio(uploads)
    from starlette.middleware import Middleware

    from mmdyn.app.gate import Gate

    gate = Middleware(Gate, host=host, uploads=uploads, upload_bytes=upload_bytes)
    page.queue(max_size=WAITING, api_open=False)
    page.launch(
        # A part of the page's address too, in which IPv6 has brackets.
        server_name=f'[{host}]' if ':' in host and '[' not in host else host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        max_file_size=upload_bytes,
        app_kwargs=dict(middleware=[gate]),
        # System fonts: other ones would be fetched.
        theme=gr.themes.Default(
            font=[gr.themes.Font('system-ui'), gr.themes.Font('sans-serif')],
            font_mono=[gr.themes.Font('ui-monospace'), gr.themes.Font('monospace')],
        ),
        css_paths=Path(__file__).with_name('style.css'),
        head=_NAME_EXAMPLES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
    )


def check_free(host: str, port: int | None) -> None:
    """Refuse to listen where that is not possible; gradio would try for minutes.

    Raises:
        OSError: if the address is none of this machine's, or the port is taken.
    """
    address = host.strip('[]')
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    try:
        socket.create_server((address, port or 0), family=family).close()
    except OSError as error:
        raise OSError(
            f'--host {host}, --port {port or "any"}: {error.strerror}; give an address of this '
            "machine's and a free port"
        ) from error


def wait(page: Any) -> None:
    """Wait for Ctrl-C, a KeyboardInterrupt, and stop the server, whatever it is at.

    gradio's own way waits for predictions and connections, and ends as if nothing had happened.
    """
    try:
        threading.Event().wait()
    finally:
        logging.disable()  # of what is cut off nobody is to be told
        page.server.should_exit = page.server.force_exit = True
        page.server.thread.join(1)
