"""Show what is installed, what works with it, and what to install for the rest."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout, not installed

from mmdyn import __version__, cli, compat
from mmdyn.errors import one_line

OPTIONAL = ('timm', 'gradio', 'onnx', 'onnxscript', 'onnxruntime', 'openvino')
INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'amx_int8')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; ends the process with code 2 if it makes no sense."""
    epilog = 'Exit codes: 0 segmentation or detection works, 2 neither does.'
    return argparse.ArgumentParser(description=__doc__, epilog=epilog).parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints what is installed and what works; returns the exit code."""
    parse_args(argv)
    warnings.simplefilter('ignore')  # of the libraries
    _print_row('mmdyn', f'{__version__}, {Path(compat.__file__).parent}')
    _print_row('Python', f'{platform.python_version()}, {sys.executable}')
    for name in ('torch', *compat.SUPPORTED):
        _print_row(name, _version(name))
    for name in OPTIONAL:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            _print_row(name, importlib.metadata.version(name))
    _print_row('CPU', _or_why(_cpu))
    _print_row('GPU', _or_why(_gpu))
    print()
    works = {name: _check(name, check) for name, check in CHECKS.items()}
    return 0 if works['segmentation'] or works['detection'] else cli.BAD_INPUT


def _print_row(name: str, text: str) -> None:
    print(f'{name:16}{text}', flush=True)


def _check(name: str, check: Callable[[], None]) -> bool:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some libraries print on import
            _require_torch()
            check()
    except Exception as error:
        _print_row(name, f'no: {one_line(error)}')
        return False
    _print_row(name, 'yes')
    return True


def _require_torch() -> None:
    if importlib.util.find_spec('torch') is None:
        raise ImportError('torch is not installed: pip install torch==2.10.0 torchvision==0.25.0')
    importlib.import_module('torch')


def _require_host(name: str) -> None:
    compat.check_versions()
    compat.require_host(name)
    importlib.import_module('mmdyn.models')


def _require_gradio() -> None:
    if importlib.util.find_spec('gradio') is None:
        raise ImportError("pip install -r requirements/app.txt, or pip install 'mmdyn[app]'")


def _precision(name: str) -> None:
    importlib.import_module('mmdyn.convolutions.precision').choose_precision(name)


CHECKS: dict[str, Callable[[], None]] = {
    'segmentation': lambda: _require_host('mmseg'),
    'detection': lambda: _require_host('mmdet'),
    'export': lambda: importlib.import_module('mmdyn.deploy.graphs').require_packages('onnx'),
    'web page': _require_gradio,
    'bfloat16 on CPU': lambda: _precision('bfloat16'),
    'int8 on CPU': lambda: _precision('int8'),
}


def _or_why(function: Callable[[], str]) -> str:
    try:
        return function()
    except Exception as error:  # absent, broken, of a version that lacks something
        return one_line(error)


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return 'not installed'
    found = _or_why(lambda: importlib.import_module(name).__version__)
    if name == 'mmcv' and found[:1].isdigit():
        try:
            importlib.import_module('mmcv._ext')
            found += ', with compiled operators'
        except Exception as error:  # absent, or of another torch
            found += f', no compiled operators ({one_line(error)})'
    return found


def _cpu() -> str:
    from mmdyn.analysis.machine import describe_machine
    from mmdyn.convolutions.precision import cpu_flags

    machine = describe_machine()
    known = ' '.join(name for name in INSTRUCTIONS if name in cpu_flags())
    return (
        f'{machine["cpu"]}, {machine["threads"]} thread(s) on {machine["cores"]} core(s), {known}'
    )


def _gpu() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    built = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'
    return ', '.join(names) or f'none, torch is built for {built}'


if __name__ == '__main__':
    sys.exit(cli.run(main))
