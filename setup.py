"""Packaging of mmdyn. Tool settings are in pyproject.toml, pinned environments in requirements/."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What a wheel carries under mmdyn/.mim, where MIM, mmengine and our own look-up find it.
MIM_FILES = ('configs', 'tools', 'model-index.yml')
NOT_PACKAGED = shutil.ignore_patterns('__pycache__', '*.pyc', 'setup_env.sh')


def read_version() -> str:
    """The version from mmdyn/version.py, without importing mmdyn (and so torch)."""
    text = (ROOT / 'mmdyn' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if match is None:
        raise RuntimeError("mmdyn/version.py has no line of the form __version__ = '1.2.3'")
    return match[1]


def read_requirements(name: str) -> list[str]:
    """The requirements of requirements/NAME.txt, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    stripped = (line.partition('#')[0].strip() for line in lines)
    return [line for line in stripped if line]


class BuildWithMim(build_py):
    """Copies configs, tools and the model index into the wheel's ``mmdyn/.mim``.

    In a checkout these are symlinks, which serve editable installs. Copying from the real
    folders, and not through the links, also works where a checkout or an unpacked source
    archive has no symlinks.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmdyn' / '.mim'
        # A build/ folder left by an earlier run may hold files that are gone from the source.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM_FILES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=NOT_PACKAGED)
            else:
                shutil.copy2(source, target / name)


readme = ROOT / 'README.md'

setup(
    name='mmdyn',
    version=read_version(),
    description='Dynamic spatial sparsity for Swin, ConvNeXt and ViT backbones in mmseg and mmdet',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/2207.01580'},
    keywords='computer vision, semantic segmentation, object detection, dynamic sparsity',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmdyn', 'mmdyn.*']),
    entry_points={'console_scripts': ['mmdyn = mmdyn.__main__:main']},
    cmdclass={'build_py': BuildWithMim},
    include_package_data=False,
    python_requires='>=3.10,<3.13',
    # Only what is the same on both OpenMMLab lines. Naming mmengine, mmcv, mmseg or mmdet here
    # would pull one line's distributions over the other's files; mmdyn/compat.py checks the
    # modules at import instead, and names the remedy.
    install_requires=['matplotlib', 'numpy', 'Pillow', 'rich', 'timm>=1.0.3'],
    extras_require={
        'optional': read_requirements('optional'),
        'dev': read_requirements('dev'),
        'export': read_requirements('export'),
        'app': read_requirements('app'),
        'docs': read_requirements('docs'),
    },
    zip_safe=False,
)
