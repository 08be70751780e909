"""Finding configs by name: ``_base_ = 'mmdyn::...'``, ``'mmseg::...'`` and ``'mmdet::...'``.

mmengine finds another package's configs through its *distribution* name and, for the original
line, through a folder that an editable install does not have. This module makes our own names
resolve wherever mmdyn was imported from (wheel, editable install, checkout), on both OpenMMLab
lines, and mends mmengine's look-up of the hosts on the maintained one.
"""

import difflib
import importlib.metadata
import importlib.util
from pathlib import Path

from mmdyn.compat import check_versions

PREFIX = 'mmdyn::'


def config_root() -> Path:
    """The folder with mmdyn's configs.

    Raises:
        FileNotFoundError: This copy of mmdyn has none.
    """
    package = Path(__file__).resolve().parent
    # The first is a copy in wheels and a symlink in checkouts; the second serves checkouts that
    # lost their symlinks (a zip download, Windows).
    candidates = (package / '.mim' / 'configs', package.parent / 'configs')
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise FileNotFoundError(
        f'mmdyn at {package} has no configs: neither {candidates[0]} nor {candidates[1]} is there. '
        'Install mmdyn again.'
    )


def _near_names(name: str, root: Path) -> list[str]:
    """Our configs' names that resemble `name`, best first."""
    known = [path.relative_to(root).as_posix() for path in sorted(root.rglob('*.py'))]
    # A right file name in the wrong folder comes before a similar spelling.
    same_file = [other for other in known if Path(other).name == Path(name).name]
    similar = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    return [PREFIX + other for other in dict.fromkeys(same_file + similar)]


def find_config(name: str) -> Path:
    """The file of one of mmdyn's configs, whose prefix and suffix may be left out.

    Raises:
        FileNotFoundError: There is none of that name; the message lists similar ones.
    """
    root = config_root()
    relative = name.removeprefix(PREFIX)
    for path in (root / relative, root / f'{relative}.py'):
        if path.is_file():
            return path
    near = _near_names(relative if relative.endswith('.py') else f'{relative}.py', root)
    hint = f'Near names: {", ".join(near)}.' if near else 'No name comes near.'
    raise FileNotFoundError(
        f'mmdyn has no config {PREFIX + relative!r}. {hint} All of them are under {root}.'
    )


def resolve_config_path(name_or_path: str | Path) -> str:
    """The file behind what a user gives our tools as CONFIG.

    Args:
        name_or_path: A path, one of our configs (``mmdyn::...``) or a host's (``mmseg::...``,
            ``mmdet::...``).

    Raises:
        FileNotFoundError: There is no such config.
        ImportError: The package before ``::`` is not installed.
        ValueError: What stands before ``::`` is no package that mmengine knows, or a host's config
            is named without its folder.
    """
    name = str(name_or_path)
    if name.startswith(PREFIX):
        return str(find_config(name))
    if '::' in name:
        from mmengine.config import Config

        if '/' not in name:
            raise ValueError(
                f'cannot resolve the config {name!r}: a name of this form needs its folder, as in '
                "'mmseg::swin/FILE.py'"
            )
        try:
            path, _ = Config._get_cfg_path(name, '')
        except AssertionError as error:  # mmengine's way to refuse an unknown package
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
    """Let mmengine look a host up by module where the distribution it expects is not installed.

    mmengine looks for the distribution ``mmsegmentation``; the maintained line's is called
    otherwise, but mmengine falls back to a module of the name it is given.
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
    """Make `Config` resolve ``_base_ = 'mmdyn::...'`` itself, without mmengine's look-up.

    mmengine's own refuses names without a folder (our configs are flat) and, on the original
    line, misses editable installs. Returning the scope None, and not 'mmdyn', leaves unprefixed
    types in our configs to their `default_scope`, which is the host's.
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
    """Teach mmengine, if it is installed, the names above.

    Called by ``import mmdyn``; doing it twice is harmless.
    """
    try:
        import mmengine.config  # noqa: F401
    except ImportError:
        return
    _name_hosts_by_module()
    _resolve_our_bases()
