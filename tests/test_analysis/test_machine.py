"""Description of the machine."""

import getpass
import platform

import mmengine
import torch

from mmdyn.analysis.machine import describe, describe_machine, versions
from mmdyn.version import __version__


def test_names_hardware_and_versions_but_nobody():
    machine, packages = describe_machine(), versions()
    assert machine['threads'] == torch.get_num_threads()
    assert machine['gpu'] is None
    assert packages['mmdyn'] == __version__ and packages['mmengine'] == mmengine.__version__
    text = describe(machine, packages)
    for part in (machine['isa'], torch.__version__, platform.python_version()):
        assert part in text
    names = {platform.node(), getpass.getuser()} - {''}
    values = [str(value) for value in (*machine.values(), *packages.values())]
    assert not any(value in names or value.startswith('/') for value in values)


def test_what_is_not_known_is_left_out():
    machine = dict(describe_machine(), ram_gib=None, gpu='A GPU')
    text = describe(machine, {'mmdyn': '1'})
    assert text.startswith('A GPU; ') and 'GiB' not in text and 'None' not in text
