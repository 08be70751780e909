"""Weights that no two layers share."""

import torch


def randomise(model, seed=0):
    """Adds noise to every parameter, those that start at 0 or 1 too; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model
