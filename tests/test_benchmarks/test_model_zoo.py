"""benchmarks/model_zoo.py, and claims in the metafiles."""

import copy
from pathlib import Path

import pytest
from mmengine.fileio import load

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmdyn.config_lookup import resolve_config_path
from tests.test_benchmarks import load_benchmark

zoo = load_benchmark('model_zoo')

METAFILES = zoo.read()
MODELS = {model['Name']: model for _, model in zoo.models_of(METAFILES)}
TWINS = {name: model['Metadata'].get('Dense Twin', {}) for name, model in MODELS.items()}
CLAIMS = [
    (name, claim)
    for name, model in MODELS.items()
    for claim in (model['Metadata']['GMACs'], TWINS[name], *model.get('Results', []))
    if 'Metrics' in claim or 'Backbone' in claim
]


def test_pages_are_up_to_date():
    assert zoo.main(['--check']) == 0


def test_check_notices_a_figure_that_no_page_has(monkeypatch, capsys):
    changed = copy.deepcopy(METAFILES)
    next(iter(changed.values()))['Models'][0]['Metadata']['GMACs']['Backbone']['dense twin'] = 123.4
    monkeypatch.setattr(zoo, 'read', lambda: changed)
    assert zoo.main(['--check']) == 1
    assert 'out of date: benchmarks/model_zoo.md' in capsys.readouterr().out


@pytest.mark.parametrize('name, claim', CLAIMS, ids=[name for name, _ in CLAIMS])
def test_a_figure_says_where_it_is_from(name, claim):
    assert ('Measured' in claim) != ('Quoted' in claim)
    if 'Measured' in claim:
        python, script, *_ = claim['Measured'].split()
        assert python == 'python' and (zoo.ROOT / script).is_file()
    for metric in claim.get('Metrics', {}):
        if 'Measured' in claim:
            page = (zoo.ROOT / claim['Page']).read_text()
            by_hand = page.partition(zoo.BEGIN)[0] + page.rpartition(zoo.END)[2]
            assert zoo.value_of(claim, metric) in by_hand


@pytest.mark.parametrize('name', [name for name, twin in TWINS.items() if 'Quoted' in twin])
def test_what_is_quoted_is_what_the_host_ships(name):
    twin = TWINS[name]
    config = Path(resolve_config_path(twin['Config']))
    (metafile,) = config.parent.glob('metafile.y*ml')
    (row,) = (row for row in load(metafile)['Models'] if row['Name'] == config.stem)
    results = row['Results'] if isinstance(row['Results'], list) else [row['Results']]
    published = {name: value for result in results for name, value in result['Metrics'].items()}
    assert twin['Metrics'].items() <= published.items()
    host, folder = twin['Config'].split('::')[0], config.parent.name
    assert twin['Quoted'].startswith(f'{host}/.mim/configs/{folder}/{metafile.name} of ')


@pytest.mark.parametrize('name', MODELS)
def test_a_model_claims_what_there_is(name):
    model = MODELS[name]
    assert (zoo.ROOT / model['Config']).is_file()
    if 'Config' in TWINS[name]:
        assert Path(resolve_config_path(TWINS[name]['Config'])).is_file()
    # Trained configs have results, others say so; no weights are released.
    assert ('Results' in model) != ('Status' in model['Metadata'])
    if model['Metadata']['Training Data'] in ('ADE20K', 'COCO'):
        assert model['Metadata']['Status'] == 'not trained'
    assert 'Weights' not in model
    # MIM joins lists in the metadata with commas.
    lists = [value for value in model['Metadata'].values() if isinstance(value, list)]
    assert all(isinstance(item, str) for value in lists for item in value)


@pytest.mark.parametrize(
    'name', ['upernet_dynswin_mini', 'upernet_dynconvnext_mini', 'upernet_dynhead_mini']
)
def test_multiply_adds_are_what_is_counted(name):
    found = zoo.measure(MODELS[name])
    assert found.items() <= MODELS[name]['Metadata'].items()
