"""Whether a program is being made of what runs."""

import torch


def is_compiling() -> bool:
    """Whether torch follows the calls to make a program of them: compiling or exporting.

    Torch before 2.3 has it under another name.
    """
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()
