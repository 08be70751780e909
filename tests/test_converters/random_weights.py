"""Weights that no two layers share, and models that load them."""

import torch


def randomise(model, seed=0):
    """Adds noise to every parameter, those that start at 0 or 1 too; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def initialised(model, content, folder, **settings):
    """The model with the weights of a file of this content, read by its ``init_cfg``."""
    torch.save(content, folder / 'source.pth')
    checkpoint = str(folder / 'source.pth')
    model.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **settings)
    model.init_weights()
    return model.eval()
