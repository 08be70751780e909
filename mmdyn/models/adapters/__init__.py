"""Host models that train a sparse backbone, for the hosts that are installed."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmdyn.compat import has_host
from mmdyn.config_parts import class_of, parts
from mmdyn.models.adapters.mixin import SparseTrainingMixin, derive
from mmdyn.models.backbones.base import DynamicBackbone
from mmdyn.registry import MODELS

# From names of host models to the registered adapters that train a sparse backbone.
ADAPTERS: dict[str, str] = {}
_MIXINS: dict[type, type[SparseTrainingMixin]] = {}

if has_host('mmseg'):
    from mmseg.models import BaseSegmentor

    from mmdyn.models.adapters.mmseg import SEGMENTORS, SparseSegmentorMixin

    ADAPTERS |= {name: f'mmdyn.{cls.__name__}' for name, cls in SEGMENTORS.items()}
    _MIXINS[BaseSegmentor] = SparseSegmentorMixin

if has_host('mmdet'):
    from mmdet.models import BaseDetector

    from mmdyn.models.adapters.mmdet import DETECTORS, SparseDetectorMixin

    ADAPTERS |= {name: f'mmdyn.{cls.__name__}' for name, cls in DETECTORS.items()}
    _MIXINS[BaseDetector] = SparseDetectorMixin

_REMEDY = (
    'use a model that can be adapted (mmseg: EncoderDecoder, CascadeEncoderDecoder; mmdet: most '
    'two-stage, single-stage, MaskFormer and DETR detectors), or a dense backbone. A class of your '
    'own that adds mmdyn.sparsity.keep_ratio_loss itself declares it with the class attribute '
    'adds_keep_ratio_loss = True'
)


def adapter_of(model: type) -> type:
    """The class that trains a sparse backbone in a host's model or one of your own.

    Raises:
        ValueError: if it can't be adapted: a segmentor or detector must inherit the methods that
            read its images, see ``HOSTS`` and ``METHODS`` of the adapters.
    """
    if isinstance(model, type):
        if issubclass(model, SparseTrainingMixin):
            return model
        for base, mixin in _MIXINS.items():
            if issubclass(model, base):
                return derive(model, mixin)
    name = getattr(model, '__name__', model)
    raise ValueError(f'{name} is neither a segmentor of mmseg nor a detector of mmdet: {_REMEDY}')


@MODELS.register_module()
def sparse_model(host: str | type, **kwargs: Any) -> nn.Module:
    """Build the adapter of a model without a registered one, such as one of your own.

    ``host`` is the model's ``type``; the other arguments are the adapter's.
    """
    scope = DefaultScope.get_current_instance()
    return adapter_of(class_of(host, scope and scope.scope_name))(**kwargs)


def use_adapter(cfg: Config, *, training: bool = True) -> str | None:
    """Replace a stock model that has a sparse backbone by our adapter.

    Models of your own are adapted too if they inherit the methods that read the images. Teachers
    (config keys that contain the word) are left alone.

    Args:
        cfg: a whole config; changed in place.
        training: whether the model will be trained; else a model that can't be adapted is left as
            it is, without kept fractions in its results and treatment of padding.

    Returns:
        The change, for the log; None if there was none.

    Raises:
        ValueError: if the model will be trained and can't be adapted, or has a sparse backbone
            elsewhere than at ``model.backbone``.
    """
    model, scope = cfg.get('model') or {}, cfg.get('default_scope')
    places = [
        place
        for place, part in parts(model, 'model')
        if 'teacher' not in place and is_dynamic(part, scope)
    ]
    stock = model.get('type')
    cls = class_of(stock, scope)
    # A class in no registry is reported when the model is built.
    if not places or cls is None or cls is sparse_model or is_trusted(cls):
        return None
    name = getattr(cls, '__name__', stock)
    try:
        adapter = adapter_of(cls)
        for place in places:
            if place != 'model.backbone':
                raise _misplaced(name, place)
    except ValueError:
        if training:
            raise
        return None
    if adapter is cls:
        return None
    if MODELS.module_dict.get(adapter.__name__) is adapter:
        model['type'] = f'mmdyn.{adapter.__name__}'
    else:
        # The full name, so that a dumped config can be read: the class may be in no registry.
        whole = f'{cls.__module__}.{cls.__qualname__}'
        model['host'] = whole if class_of(whole, None) is cls else stock
        model['type'] = 'mmdyn.sparse_model'
    backbone = getattr(model['backbone']['type'], '__name__', model['backbone']['type'])
    return (
        f"model.type '{name if isinstance(stock, type) else stock}' -> '{model['type']}', "
        f"which trains the sparse backbone '{backbone}' with its keep-ratio loss"
    )


def check_adapted(model: nn.Module) -> None:
    """Check that every trainable sparse backbone of a model gets its keep-ratio loss.

    This includes backbones that a class of your own builds. ``model`` must be unwrapped.

    Raises:
        ValueError: if one does not.
    """
    if is_trusted(type(model)):
        return
    known = model.backbone if isinstance(model, SparseTrainingMixin) else None
    for place, part in model.named_modules():
        if isinstance(part, DynamicBackbone) and part is not known:
            if any(parameter.requires_grad for parameter in part.parameters()):
                raise _misplaced(type(model).__name__, f'model.{place}')


def is_dynamic(part: dict, scope: str | None) -> bool:
    """Whether a dict in a model's config is a sparse backbone or a subclass of one."""
    kind = class_of(part.get('type'), scope)
    return isinstance(kind, type) and issubclass(kind, DynamicBackbone)


def is_trusted(model: Any) -> bool:
    """Whether a model's class declares that it adds the keep-ratio loss itself."""
    return bool(getattr(model, 'adds_keep_ratio_loss', False))


def _misplaced(name: str, place: str) -> ValueError:
    return ValueError(
        f'{name} would train the sparse backbone at {place} without the keep-ratio loss, which '
        f'only model.backbone of an adapted model gets. Move it there, or {_REMEDY}'
    )


__all__ = ['ADAPTERS', 'adapter_of', 'check_adapted', 'is_dynamic', 'sparse_model', 'use_adapter']
