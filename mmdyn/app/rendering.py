"""What was compared, as a piece of HTML that holds its pictures itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from mmdyn.app.comparing import Compared, Side
from mmdyn.visualization.inference import classes_in, decision_panels, predicted

SMALL = 256
"""Pictures narrower than this are shown with hard edges: enlarged, they would only blur."""


def render(compared: Compared, from_hw: tuple[int, int]) -> str:
    """Predictions, figures, legend and decisions.

    Args:
        compared: one picture through both models.
        from_hw: (h, w) that the picture had in its file.
    """
    dense, sparse = compared.dense, compared.sparse
    predictions = _prediction('Dense', dense) + _prediction('Sparse', sparse)
    panels = decision_panels(sparse.inference)
    figures = ''.join(
        _figure(panel.image, panel.title, f'Where the sparse model computed: {panel.title}')
        for panel in panels
    )
    legends = ''.join(_legend(panel.title.capitalize(), panel.legend) for panel in panels)
    notes = ''.join(f'<li>{note}</li>' for note in _notes(compared, from_hw))
    return (
        f'<div class="top">{predictions}{_table(compared)}</div>{_classes(dense, sparse)}'
        f'<h2>Where the sparse model computed</h2><div class="panels">{figures}</div>'
        f'{legends}<ul class="notes">{notes}</ul>'
    )


def message(text: str, *, error: bool = False) -> str:
    """A line of text in place of results; read out at once if it is an error."""
    kind = 'class="message error" role="alert"' if error else 'class="message" role="status"'
    return f'<p {kind}>{escape(text)}</p>'


def _figure(image: np.ndarray, caption: str, alt: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format='PNG', compress_level=1)
    png = base64.b64encode(stream.getvalue()).decode('ascii')
    kind = ' class="small"' if image.shape[1] < SMALL else ''
    return (
        f'<figure><img{kind} src="data:image/png;base64,{png}" alt="{escape(alt)}">'
        f'<figcaption>{escape(caption)}</figcaption></figure>'
    )


def _prediction(kind: str, side: Side) -> str:
    names = [side.inference.classes[i] for i in classes_in(side.inference)]
    alt = f'Prediction of the {kind.lower()} model: {", ".join(names) or "nothing found"}'
    return _figure(predicted(side.inference), kind, alt)


def _table(compared: Compared) -> str:
    sides, gained = (compared.dense, compared.sparse), compared.speedup
    rows = [
        *_kept(compared.sparse),
        ('GMACs, model', *(f'{side.macs.total / 1e9:.3f}' for side in sides)),
        ('GMACs, backbone', *(f'{_of_backbone(side) / 1e9:.3f}' for side in sides)),
        ('ms (median)', *(f'{side.latency.median:.1f}' for side in sides)),
        ('speed-up (median)', '1', f'<strong>{gained.median:.2f}x</strong>'),
        ('its quartiles', '', f'{gained.lower:.2f}x to {gained.upper:.2f}x'),
        _agreement(*sides),
    ]
    body = ''.join(
        f'<tr><th scope="row">{name}</th><td>{left}</td><td>{right}</td></tr>'
        for name, left, right in rows
    )
    return (
        '<table><thead><tr><td></td><th scope="col">dense</th><th scope="col">sparse</th></tr>'
        f'</thead><tbody>{body}</tbody></table>'
    )


def _kept(sparse: Side) -> list[tuple[str, str, str]]:
    inference, rows = sparse.inference, []
    if inference.choices:
        kept = ', '.join(f'{100 * choice.fraction:.0f}' for choice in inference.choices)
        rows.append(('locations kept', 'all', f'{kept} %'))
    if inference.tiles is not None:
        rows.append(('tiles in full', 'all', f'{100 * inference.tiles.fraction:.0f} %'))
    return rows


def _of_backbone(side: Side) -> int:
    """Multiply-adds of the backbone, with its predictors if it has any."""
    groups = side.macs.by_group()
    return groups['backbone'] + (groups['predictors'] if side.inference.choices else 0)


def _agreement(dense: Side, sparse: Side) -> tuple[str, str, str]:
    ours, theirs = sparse.inference.labels, dense.inference.labels
    if ours is not None:
        return 'same class', '', f'{100 * (ours == theirs).mean():.1f} % of pixels'
    return 'instances found', *(str(len(side.inference.instances())) for side in (dense, sparse))


def _classes(*sides: Side) -> str:
    inference = sides[0].inference
    hits = dict.fromkeys(i for side in sides for i in classes_in(side.inference))
    return _legend('Classes', [(inference.palette[i], inference.classes[i]) for i in hits])


def _legend(title: str, entries: Sequence[tuple[Iterable[int], str]]) -> str:
    if not entries:
        return ''
    items = ''.join(
        f'<li><span class="swatch" style="background:rgb({",".join(map(str, colour))})"></span>'
        f'{escape(name)}</li>'
        for colour, name in entries
    )
    return f'<div class="legend"><span>{title}:</span><ul>{items}</ul></div>'


def _notes(compared: Compared, from_hw: tuple[int, int]) -> list[str]:
    dense, sparse = compared.dense, compared.sparse
    height, width = sparse.inference.picture.image.shape[:2]
    size = f'{width}x{height} pixels'
    if (height, width) != from_hw:
        size += f', shrunk from {from_hw[1]}x{from_hw[0]}'
    where = f'{sparse.model.device}'
    if where == 'cpu':
        where += f' with {compared.threads} thread(s)'
    if dense.model is not sparse.model:
        models = (
            f'Dense is {_named(dense)}, a model of its own; sparse is {_named(sparse)}. Their '
            'weights differ, so their predictions would differ at ratio 1 too.'
        )
    else:
        models = (
            f'Dense is the same model, {_named(sparse)}, with every ratio at its highest: it '
            'still asks its predictors.'
        )
    notes = [
        f'{size}. Bright: slow path; dark: fast path.',
        'GMACs: 10<sup>9</sup> multiply-adds, as executed on this picture, which papers call '
        f'GFLOPs. ms: the whole model, on {where}, {len(sparse.latency.samples)} rounds after a '
        "warm-up, in which the two models take turns; speed-up: of each round's two times.",
        models,
    ]
    if unknown := sorted({*dense.macs.unknown, *sparse.macs.unknown}):
        notes.append(
            f'GMACs are a lower bound: what {escape(", ".join(unknown))} cost is not known.'
        )
    return notes


def _named(side: Side) -> str:
    return f'{escape(side.model.name)} ({escape(side.model.weights)})'
