"""What torch of the original OpenMMLab line can't do, for the tests that need it."""

import pytest
import torch
from packaging.version import Version

_BEFORE = Version(torch.__version__) < Version('2.3')

needs_half_on_cpu = pytest.mark.skipif(_BEFORE, reason='torch 2.1 multiplies no fp16 on a CPU')
needs_shared_graphs = pytest.mark.skipif(
    _BEFORE, reason='torch 2.1 compiles the same code once for each module'
)
needs_export = pytest.mark.skipif(_BEFORE, reason='torch before 2.10 exports nothing of ours')
