import io
import sys

from mmdyn.analysis.progress import Meter


def test_meter_prints_share_and_time_left_where_there_is_no_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr('mmdyn.analysis.progress.LINE_INTERVAL', 0)
    with Meter({'one': 1, 'two': 3}) as meter:
        with meter.stage('one', 2) as advance:
            advance()
            advance()
        with meter.stage('two', 3) as advance:
            advance()
    lines = out.getvalue().splitlines()
    assert any('12%' in line and 'one 1/2' in line and 'left' in line for line in lines)
    assert any('50%' in line and 'two 1/3' in line for line in lines)
    assert '100%' in lines[-1]
