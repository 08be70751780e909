import torch

from mmdyn.sparsity import Decision


def decision(mask, ratio=0.5, valid=None):
    """A decision on a map of a single row; ``mask`` is (B, N) of 0 and 1."""
    mask = torch.as_tensor(mask, dtype=torch.float)
    return Decision(mask.detach().log(), mask, ratio, (1, mask.shape[1]), valid)
