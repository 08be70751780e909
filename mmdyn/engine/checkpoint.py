"""The checkpoints that a config names, and checks of them before a run begins."""

from collections.abc import Iterator

from mmengine.config import Config

from mmdyn.config_parts import is_pretrained, parts
from mmdyn.converters.reading import check_checkpoint
from mmdyn.hub import timm_model_name

_CHECKPOINT_KEYS = ('pretrained', 'teacher_checkpoint', 'teacher_ckpt')


def config_checkpoints(cfg: Config) -> Iterator[tuple[str, str]]:
    """The checkpoints that a config's model will load when it is initialised.

    Yields:
        The key ('model.backbone.init_cfg.checkpoint'), and the path or address.
    """
    for place, part in parts(cfg.get('model'), 'model'):
        # A Pretrained initialisation, or a teacher.
        loads = is_pretrained(part) or place.endswith('.teacher')
        for key, value in part.items():
            named = key in _CHECKPOINT_KEYS or (loads and key == 'checkpoint')
            if named and isinstance(value, str):
                yield f'{place}.{key}', value


def check_config_checkpoints(cfg: Config, trust: bool = False) -> None:
    """Check every local checkpoint that a training with this config reads, ``load_from`` too.

    Raises:
        FileNotFoundError, ValueError: As :func:`check_checkpoint`, naming the config's key.
    """
    # Backbones of ours take timm's names too.
    named = [(key, path) for key, path in config_checkpoints(cfg) if not timm_model_name(path)]
    if cfg.get('load_from'):
        named.append(('load_from', cfg.load_from))
    for key, path in named:
        try:
            check_checkpoint(path, trust)
        except (OSError, ValueError) as error:
            raise type(error)(f'{key}: {error}') from error
