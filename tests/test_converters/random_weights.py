"""Random weights that differ between layers, and models that load them."""

import torch


def randomise(model, seed=0):
    """Add noise to every parameter, including constant ones; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def initialised(model, content, folder, **settings):
    """The model with weights from a file of this content, loaded through its ``init_cfg``."""
    torch.save(content, folder / 'source.pth')
    checkpoint = str(folder / 'source.pth')
    model.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **settings)
    model.init_weights()
    return model.eval()
