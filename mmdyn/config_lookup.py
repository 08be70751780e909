"""Finds configs by name: ``_base_ = 'mmdyn::...'``, ``'mmseg::...'`` and ``'mmdet::...'``.

mmengine finds another package's configs by its *distribution* name and, on the original line,
through a folder that editable installs don't have. This module resolves our own names from a
wheel, an editable install or a checkout, on both OpenMMLab lines, and fixes mmengine's look-up of
the hosts on the maintained line.
"""

import difflib
import importlib.metadata
import importlib.util
from pathlib import Path

from mmdyn.compat import check_versions

PREFIX = 'mmdyn::'


def config_root() -> Path:
    """Folder of mmdyn's configs.

    Raises:
        FileNotFoundError: if this copy of mmdyn has none.
    """
    package = Path(__file__).resolve().parent
    # The first is a copy in wheels and a symlink in checkouts; the second is for checkouts without
    # symlinks (a zip download, Windows).
    candidates = (package / '.mim' / 'configs', package.parent / 'configs')
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise FileNotFoundError(
        f'mmdyn at {package} has no configs, neither in {candidates[0]} nor in {candidates[1]}. '
        'Reinstall mmdyn.'
    )


def _near_names(name: str, root: Path) -> list[str]:
    """Names of our configs similar to `name`, best first."""
    known = [path.relative_to(root).as_posix() for path in sorted(root.rglob('*.py'))]
    # The same file name in another folder ranks before a similar spelling.
    same_file = [other for other in known if Path(other).name == Path(name).name]
    similar = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    return [PREFIX + other for other in dict.fromkeys(same_file + similar)]


def find_config(name: str) -> Path:
    """Find one of mmdyn's configs; prefix and suffix are optional.

    Raises:
        FileNotFoundError: if there is none of that name; the message lists similar ones.
    """
    root = config_root()
    relative = name.removeprefix(PREFIX)
    for path in (root / relative, root / f'{relative}.py'):
        if path.is_file():
            return path
    near = _near_names(relative if relative.endswith('.py') else f'{relative}.py', root)
    hint = f'Similar names: {", ".join(near)}.' if near else 'No name is similar.'
    raise FileNotFoundError(
        f'mmdyn has no config {PREFIX + relative!r}. {hint} All configs are in {root}.'
    )


def resolve_config_path(name_or_path: str | Path) -> str:
    """Resolve the CONFIG argument of our tools to a file.

    Args:
        name_or_path: a path, one of our configs (``mmdyn::...``) or a host's (``mmseg::...``,
            ``mmdet::...``).

    Raises:
        FileNotFoundError: if there is no such config.
        ImportError: if the package before ``::`` is not installed.
        ValueError: if mmengine does not know the package before ``::``, or the folder of a host's
            config is missing.
    """
    name = str(name_or_path)
    if name.startswith(PREFIX):
        return str(find_config(name))
    if '::' in name:
        from mmengine.config import Config

        if '/' not in name:
            raise ValueError(
                f'cannot resolve the config {name!r}: the name must include its folder, as in '
                "'mmseg::swin/FILE.py'"
            )
        try:
            path, _ = Config._get_cfg_path(name, '')
        except AssertionError as error:  # mmengine on an unknown package
            raise ValueError(f'cannot resolve the config {name!r}: {error}') from error
        return str(path)
    if Path(name).is_file():
        return name
    if Path(name).is_dir():
        raise FileNotFoundError(f'the config {name!r} is a folder: name a file in it')
    message = f'the config {name!r} does not exist.'
    near = _near_names(Path(name).with_suffix('.py').name, config_root())
    if near:
        message += f' mmdyn has {", ".join(near)}.'
    raise FileNotFoundError(message)


def _name_hosts_by_module() -> None:
    """Let mmengine look hosts up by module if the distribution it expects is not installed.

    mmengine looks for the distribution ``mmsegmentation``, which has another name on the maintained
    line, but falls back to a module of the given name.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    for module in ('mmseg', 'mmdet', 'mmpretrain'):
        try:
            importlib.metadata.distribution(MODULE2PACKAGE.get(module, module))
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(module) is not None:
                MODULE2PACKAGE[module] = module
    MODULE2PACKAGE['mmdyn'] = 'mmdyn'


def _resolve_our_bases() -> None:
    """Make `Config` resolve ``_base_ = 'mmdyn::...'`` without mmengine's look-up.

    mmengine's look-up refuses names without a folder (our configs are flat) and misses editable
    installs on the original line. The returned scope is None, not 'mmdyn', so that unprefixed types
    in our configs use their `default_scope`, the host's.
    """
    from mmengine.config import Config

    original = Config._get_cfg_path
    if getattr(original, 'resolves_mmdyn', False):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            check_versions()
            return str(find_config(cfg_path)), None
        return original(cfg_path, filename)

    get_cfg_path.resolves_mmdyn = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)


def install() -> None:
    """Enable the look-up in mmengine, if installed; idempotent. Called by ``import mmdyn``."""
    try:
        import mmengine.config  # noqa: F401
    except ImportError:
        return
    _name_hosts_by_module()
    _resolve_our_bases()
