"""What the doctor finds, and what it says to install."""

import subprocess
import sys

import pytest

from mmdyn.convolutions import precision
from tests.test_tools.segmentation import ROOT, load_tool

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')


def examine(capsys):
    """The exit code, and the text of each row by its name."""
    code = load_tool('doctor').main([])
    lines = filter(None, capsys.readouterr().out.splitlines())
    return code, {line[:16].rstrip(): line[16:] for line in lines}


def block(monkeypatch, *names):
    """Has modules missing, and forgets afterwards what was done about it."""
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_where_all_is_installed_both_hosts_work(capsys):
    code, rows = examine(capsys)
    assert code == 0
    assert rows['segmentation'] == rows['detection'] == 'yes'
    assert rows['torch'] == sys.modules['torch'].__version__
    assert rows['mmcv'].endswith('with compiled operators')
    assert rows['Python'].endswith(sys.executable)


def test_without_operators_there_is_segmentation_and_how_to_get_detection(monkeypatch, capsys):
    block(monkeypatch, 'mmcv._ext')
    code, rows = examine(capsys)
    assert code == 0 and rows['segmentation'] == 'yes'
    assert 'no compiled operators' in rows['mmcv']
    assert rows['detection'].startswith('no: ') and 'make setup-det' in rows['detection']


def test_without_hosts_it_names_what_to_install(monkeypatch, capsys):
    block(monkeypatch, 'mmseg', 'mmdet')
    code, rows = examine(capsys)
    assert code == 2
    assert 'pip install onedl-mmsegmentation' in rows['segmentation']
    assert 'pip install onedl-mmdetection' in rows['detection']
    assert rows['mmseg'] == 'not installed'


@pytest.mark.parametrize(
    ('missing', 'remedy'),
    [
        ('torch', 'pip install torch'),
        ('mmengine', 'mmengine=='),
        ('mmcv', 'pip install onedl-mmcv'),
    ],
)
def test_it_runs_without_what_mmdyn_needs(missing, remedy):
    # In a process of its own: here all of it is loaded.
    source = f'import sys; sys.modules[{missing!r}] = None\nfrom mmdyn.__main__ import main\n'
    source += "sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, '-c', source], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    (row,) = (row for row in done.stdout.splitlines() if row.startswith('segmentation'))
    assert ' no: ' in row and remedy in row


def test_a_cpu_without_the_instructions_has_no_reduced_precision(monkeypatch, capsys):
    monkeypatch.setattr(precision, 'cpu_flags', frozenset)
    _, rows = examine(capsys)
    assert 'avx512_vnni' in rows['int8 on CPU'] and rows['int8 on CPU'].startswith('no: ')
    assert rows['bfloat16 on CPU'].startswith('no: ')
