"""The collector of code blocks: a broken block does not pass, and none is passed over."""

import pytest

from tests.test_docs.commands import check, commands_of, inline_commands
from tests.test_docs.fences import fences_of
from tests.test_docs.workplace import run_command, run_python


def page(tmp_path, text):
    path = tmp_path / 'page.md'
    path.write_text(text)
    return path


def block(language, text, note=None):
    return f'{"" if note is None else f"<!-- {note} -->"}\n```{language}\n{text}\n```\n'


def test_blocks_of_a_page_share_names_and_count(tmp_path):
    text = '# A\n' + block('python', 'a = 2') + 'text\n' + block('python', 'assert a == 2')
    assert run_python(page(tmp_path, text), tmp_path) == 2


def test_a_broken_block_fails_with_its_line(tmp_path):
    text = '# A\n\ntext\n' + block('python', 'import math\nmath.no_such_thing')
    with pytest.raises(AttributeError) as error:
        run_python(page(tmp_path, text), tmp_path)
    assert error.traceback[-1].lineno + 1 == 7


def test_a_config_of_a_wrong_type_fails(tmp_path):
    text = block(
        'python',
        "model = dict(backbone=dict(type='mmdyn.None'))",
        'config on mmdyn::upernet_dynswin_mini.py',
    )
    with pytest.raises(KeyError, match=r'mmdyn\.None'):
        run_python(page(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    'text',
    [
        block('', 'what is this?'),
        block('console', '$ ls'),
        block('python', 'a = 1', 'not run:'),
        block('python', 'a = 1', 'skip this'),
        block('bash', 'make test', 'run with a => b'),
    ],
)
def test_a_block_of_which_nothing_is_known_fails(text, tmp_path):
    (fence,) = fences_of(page(tmp_path, text))
    with pytest.raises(ValueError, match='what is to be done'):
        fence.kind()


def test_a_fence_that_is_not_closed_fails(tmp_path):
    with pytest.raises(ValueError, match='not closed'):
        fences_of(page(tmp_path, block('python', 'a = 1') + '```python\nb = 2\n'))


def test_what_is_to_be_replaced_must_be_there(tmp_path):
    (fence,) = fences_of(page(tmp_path, block('python', 'size = 512', 'run with 512 => 64')))
    assert fence.code() == 'size = 64\n'
    (fence,) = fences_of(page(tmp_path, block('python', 'size = 256', 'run with 512 => 64')))
    with pytest.raises(ValueError, match="'512'"):
        fence.code()


def test_commands_are_told_apart_by_a_shell():
    script = """
    D=path/to/data   # a comment
    OPTIONS="a=$D b=2"
    for model in one two; do
        python tools/train.py $model --cfg-options $OPTIONS \\
            c='3 4'
    done
    git clone <this repository> mmdyn && cd mmdyn
    """
    train = [
        ['python', 'tools/train.py', model, '--cfg-options', 'a=path/to/data', 'b=2', 'c=3 4']
        for model in ('one', 'two')
    ]
    assert commands_of(script) == [
        *train,
        ['git', 'clone', 'PLACEHOLDER', 'mmdyn'],
        ['cd', 'mmdyn'],
    ]


@pytest.mark.parametrize(
    'script', ['no_such_program x', 'python tools/train.py $UNSET', "make 'test", 'ls | sort']
)
def test_a_script_that_a_shell_refuses_fails(script):
    with pytest.raises(ValueError):
        commands_of(script)


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('python tools/no_such_tool.py', 'there is no tools/no_such_tool.py'),
        ('python tools/test.py CONFIG CHECKPOINT --keep-ration 0.7', 'unrecognized arguments'),
        ('python tools/test.py CONFIG CHECKPOINT --keep-ratio much', 'invalid float'),
        ('python benchmarks/mini_seeds.py --sede 1', 'unrecognized arguments'),
        ('mmdyn tarin CONFIG', 'no tool tarin'),
        ('mmdyn flops CONFIG --shape 1 2 3', '--shape takes'),
        ('make tset', 'the Makefile has no tset'),
        ('make demo TORCH_INDX=x', 'the Makefile has no TORCH_INDX'),
        ('bash tools/dist_trian.sh CONFIG 8', 'there is no tools/dist_trian.sh'),
        ('pip install -r requirements/none.txt', 'there is no requirements/none.txt'),
    ],
)
def test_a_wrong_command_fails(command, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check(command.split(), tmp_path)


@pytest.mark.parametrize('config', ['configs/no_such.py', 'mmdyn::no_such.py', 'mmseg::swin/no.py'])
def test_a_config_that_is_not_there_fails(config, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError)):
        check(['python', 'tools/train.py', config], tmp_path)


def test_commands_within_the_text(tmp_path):
    text = (
        '| `python tools/sweep.py --model A CONFIG CHECKPOINT --model ...` | `tools/test.py` |\n'
        'and `python tools/benchmark.py CONFIG [CHECKPOINT]\n--stock`, `make test`\n'
    )
    assert inline_commands(page(tmp_path, text)) == [
        ['python', 'tools/sweep.py', '--model', 'A', 'CONFIG', 'CHECKPOINT'],
        ['python', 'tools/benchmark.py', 'CONFIG', 'CHECKPOINT', '--stock'],
        ['make', 'test'],
    ]


@pytest.mark.parametrize('command', ['python tools/test.py no.py no.pth', 'pip install x'])
def test_a_command_that_fails_or_is_no_tool_of_ours_is_no_success(command):
    with pytest.raises(ValueError):
        run_command(command.split())
