"""Features that torch lacks on the original OpenMMLab line, for tests that need them."""

import pytest
import torch
from packaging.version import Version

_BEFORE = Version(torch.__version__) < Version('2.3')

HALVES = [torch.bfloat16] if _BEFORE else [torch.float16, torch.bfloat16]
"""16-bit dtypes of CPU products."""

needs_half_on_cpu = pytest.mark.skipif(_BEFORE, reason='torch 2.1 multiplies no fp16 on a CPU')
needs_lean_attention = pytest.mark.skipif(
    _BEFORE, reason='torch 2.1 keeps the attention scores of all windows at once'
)
needs_shared_graphs = pytest.mark.skipif(
    _BEFORE, reason='torch 2.1 compiles the same code once for each module'
)
needs_whole_graphs = pytest.mark.skipif(
    _BEFORE, reason='torch 2.1 breaks the graph of a whole model'
)
EXPORTS = not _BEFORE
"""Whether :mod:`mmdyn.deploy` and its requirements are available."""

needs_export = pytest.mark.skipif(_BEFORE, reason='torch before 2.10 exports nothing of ours')
of_the_maintained_line = pytest.mark.skipif(
    _BEFORE, reason='says what the maintained OpenMMLab line brings'
)
