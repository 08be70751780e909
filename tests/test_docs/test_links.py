"""Links in the Markdown pages, and paths that they mention, exist."""

import re
from pathlib import Path

import pytest

from tests.test_docs.fences import ROOT, without_fences

PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/*.md', 'configs/*/README.md', 'benchmarks/*.md')
    for path in ROOT.glob(pattern)
)
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_PATH = re.compile(r'`((?:benchmarks|configs|docs|mmdyn|requirements|tests|tools)/[\w./-]+\.\w+)`')


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings on a code host."""
    found: list[str] = []
    for heading in re.findall(r'^#+ (.*)', without_fences(page.read_text('utf-8')), re.MULTILINE):
        shown = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).lower()
        anchor = re.sub(r'[^\w\- ]', '', shown).strip().replace(' ', '-')
        count = found.count(anchor)
        found.append(f'{anchor}-{count}' if count else anchor)
    return set(found)


def broken(page: Path, text: str) -> list[str]:
    """Broken links and paths of a page."""
    text = without_fences(text)
    wrong = [path for path in _PATH.findall(text) if not (ROOT / path).is_file()]
    for link in _LINK.findall(text):
        target, _, anchor = link.partition('#')
        if re.match(r'[a-z]+:', target):
            continue
        path = (page.parent / target).resolve() if target else page
        known = not anchor or path.suffix != '.md' or anchor in anchors_of(path)
        if path.suffix == '.py' and anchor:  # of a line: the definition that is meant
            lines = path.read_text(encoding='utf-8').splitlines()
            known = bool(re.match(r'\s*(def|class) ', lines[int(anchor.removeprefix('L')) - 1]))
        if not path.exists() or ROOT not in path.parents or not known:
            wrong.append(link)
    return wrong


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text(encoding='utf-8')) == []


def test_what_leads_nowhere_is_found():
    good = '[a](flops.md#macs-and-flops), [b](https://x.org/#y), [c](../README.md)\n'
    good += '[d](../mmdyn/__main__.py#L17)\n'
    fenced = '```text\n[a](nowhere.md)\n```\n'
    bad = '[a](flops.md#no-such-heading) [b](#nowhere) ![c](images/no.png) `tools/no.py` '
    bad += '[e](../mmdyn/__main__.py#L1)'
    wrong = ['tools/no.py', 'flops.md#no-such-heading', '#nowhere', 'images/no.png']
    wrong.append('../mmdyn/__main__.py#L1')
    assert broken(ROOT / 'docs' / 'finetune.md', good + fenced + bad) == wrong
