"""Settings of the documentation's build: ``make docs``, pages in docs/_build/html."""

import os
import posixpath
import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')  # of the hosts, while autodoc imports them

from mmdyn.version import __version__  # noqa: E402

project = 'mmdyn'
author = 'the authors of mmdyn'
copyright = f'{author}, Apache License 2.0'
version = release = __version__

# Address of the repository's files at this version, such as https://HOST/OWNER/mmdyn/blob/main.
# Links to files that are no pages (configs, results) lead there; without it paths are shown.
repository = os.environ.get('MMDYN_REPOSITORY', '')

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']

myst_heading_anchors = 3  # GitHub's anchors work here too

html_theme = 'furo'
html_title = f'mmdyn {release}'
html_copy_source = False
html_theme_options = {'source_repository': '', 'top_of_page_buttons': []}
copybutton_prompt_text = '$ '

autodoc_member_order = 'bysource'
autodoc_default_options = {'show-inheritance': True}
autodoc_preserve_defaults = True
# One line per argument where a signature is long.
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Names of other packages: their documentation is not fetched. Ours have to resolve.
_HOSTS = 'torch|mmengine|mmcv|mmseg|mmdet|timm'
_PACKAGES = f'{_HOSTS}|numpy|np|matplotlib|PIL|abc|collections|contextlib|pathlib|re|rich'
_TORCH = 'Tensor|nn|Module|Parameter|ModuleList|Runner'
nitpick_ignore_regex = [
    (r'py:class', r'mmdyn\.analysis\.measuring\.Name'),  # a type variable
    (r'py:class', r'tuple\[float'),  # of a union, which Sphinx splits at the comma
    (r'py:.*', rf'({_PACKAGES})\..*'),
    (r'py:.*', rf'({_TORCH})(\..*)?'),
    (r'py:class', r'os\.PathLike'),
    # "ValueError, TypeError: why" in one line of a docstring.
    (r'py:exc', r'\w+(, \w+)+'),
]

_LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)')


def lead_outside(app, docname, source):
    """Turn Markdown links to files outside docs/, which are good on a code host, into ours."""
    folder = posixpath.dirname(f'docs/{docname}')

    def replace(match):
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith('docs/'):
            return match[0]
        if repository:
            return f'[{text}]({repository}/{path}{anchor or ""})'
        named = text.strip('`')
        return f'`{path}`' if path.endswith(named) else f'{text} (`{path}`)'

    source[0] = _LINK.sub(replace, source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect('source-read', lead_outside)
