"""Full disks: a message, and no partial files."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
from PIL import Image

from mmdyn import cli
from mmdyn.engine.config import load_config
from mmdyn.engine.picture_reader import Reader, pictures_in
from mmdyn.whole_files import remove_parts, whole_file, write_checkpoint, write_json, write_text
from tests.test_reliability.examples import some
from tests.test_reliability.trainings import Place, Training, read_losses


def test_a_training_says_so_and_goes_on_once_there_is_room(tmp_path, figure):
    whole, place = Place(tmp_path / 'whole', 3), Place(tmp_path / 'full', 3)
    assert whole.train().wait() == 0
    assert place.train('--cfg-options', 'train_cfg.max_iters=2').wait() == 0
    size = (place.work_dir / 'iter_2.pth').stat().st_size
    place.log.unlink()

    assert place.train(file_limit=size // 2).wait() == cli.BAD_INPUT
    said = place.log.read_text()
    (message,) = [line for line in said.splitlines() if line.startswith('error:')]
    assert f'{place.work_dir}/iter_3.pth cannot be written: File too large' in message
    assert '--resume' in message
    assert 'Traceback' not in said
    assert set(place.checkpoints()) == {'best_mIoU_iter_2.pth', 'iter_1.pth', 'iter_2.pth'}
    assert (place.work_dir / 'last_checkpoint').read_text().endswith('iter_2.pth')
    assert not list(place.work_dir.rglob('.part.*'))

    assert place.train().wait() == 0
    assert dict(read_losses(place.losses)) == dict(read_losses(whole.losses))
    message = message.replace(str(place.work_dir), 'WORK_DIR')
    figure('A disk that is full', 'how', 'files that may not grow (RLIMIT_FSIZE)')
    figure('A disk that is full', 'the message', f'`{message}`')
    figure('A disk that is full', 'the last checkpoint', 'whole; the training went on from it')


MEASURED = '--num-images 1 --rounds 1 --threads 1 --device cpu'
DRAWN = (
    '--cfg-options default_hooks.visualization.type=SegVisualizationHook'
    ' default_hooks.visualization.interval=1'
)
# Command line, function from which on the disk is full, and a file of the result.
WRITER, EVALUATOR = 'mmdyn.apis.writing:Writer.__enter__', 'mmengine.evaluator:Evaluator.process'
JSON, EXPORT = 'mmdyn.whole_files:write_json', 'mmdyn.deploy.job:write'
BARS, CSV = 'mmdyn.visualization.bars:draw_bars', 'mmdyn.analysis.rows:write_csv'
DRAWING = 'vis_data/vis_image/test_0.png_1.png'
TOOLS = [
    ('infer MODEL {pictures} --device cpu --out {out}', WRITER, '0.png'),
    ('infer MODEL {video} --device cpu --out {out}', WRITER, 'clip.mp4'),
    ('test MODEL --work-dir {work} --out {out}', EVALUATOR, '0.png'),
    (f'test MODEL --work-dir {{work}} --show-dir {{out}} {DRAWN}', EVALUATOR, DRAWING),
    ('export MODEL --format torch-export --out {out}/graph.pt2', EXPORT, 'graph.pt2'),
    ('export MODEL --format onnx --out {out}/graph.onnx', EXPORT, 'graph.onnx'),
    ('get_flops MODEL --shape 64 64 --out {out}/flops.json', JSON, 'flops.json'),
    (f'benchmark MODEL {MEASURED} --plot {{out}}/times.png', BARS, 'times.png'),
    (f'sweep MODEL --keep-ratio 0.5 --no-random {MEASURED} --out {{out}}', CSV, 'sweep.csv'),
]


@pytest.mark.parametrize(
    ('line', 'function', 'result'), some(TOOLS, 2), ids=lambda word: word.split(' ')[0]
)
def test_a_tool_says_so_and_what_was_there_stays(world, tmp_path, line, function, result):
    tool, *words = line.replace('MODEL', '{config} {checkpoint}').split()
    if tool == 'export':
        pytest.importorskip('onnxscript')
    names = {**world, 'out': tmp_path / 'out', 'work': tmp_path / 'work'}
    file = names['out'] / result
    file.parent.mkdir(parents=True)
    file.write_text('before')
    os.mkfifo(tmp_path / 'log')  # not affected by the limit
    log = os.open(tmp_path / 'log', os.O_RDWR | os.O_NONBLOCK)
    run = Training(
        *(word.format(**names) for word in words),
        log=tmp_path / 'log',
        tool=tool,
        environment={'MPLCONFIGDIR': str(tmp_path)},
        file_limit=2000 if result == 'clip.mp4' else 100,  # larger than results.json
        limit_at=function,
    )
    code, said = run.wait(), os.read(log, 1 << 20).decode()
    os.close(log)
    assert code == cli.BAD_INPUT, said
    (message,) = [one for one in said.splitlines() if one.startswith('error:')]
    assert str(file) in message
    assert 'Traceback' not in said
    assert file.read_text() == 'before'
    assert not list(names['out'].rglob('.part.*'))


@pytest.fixture
def no_room():
    """Limit files of this process to 1000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ('write', 'content'),
    [
        (write_json, list(range(1000))),
        (write_text, 'row ' * 1000),
        (write_checkpoint, dict(text='row ' * 1000)),
    ],
)
def test_a_result_is_whole_or_what_it_was(tmp_path, no_room, write, content):
    path = tmp_path / 'result'
    path.write_text('before')
    with pytest.raises(OSError) as error:
        write(path, content)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == 'before'
    assert os.listdir(tmp_path) == ['result']


def test_no_room_for_a_copy_of_the_config_is_not_the_configs_fault(tmp_path, no_room, capsys):
    config = tmp_path / 'long.py'
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    config.write_text('# long\n' * 400)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises(SystemExit) as end, cli.exit_on_bad_input():
        load_config(str(config))
    said = capsys.readouterr().err
    assert end.value.code == cli.BAD_INPUT
    assert 'cannot be written: File too large' in said and str(config) not in said


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / '.part.12.rows.json').touch()
    (tmp_path / 'mine.part.png').touch()
    write_json(tmp_path / 'rows.json', [1])
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['mine.part.png', 'rows.json']
    assert json.loads((tmp_path / 'rows.json').read_text()) == [1]


def test_what_killed_writers_left_is_no_picture(tmp_path):
    (tmp_path / '.part.12.0.png').touch()
    Image.new('RGB', (8, 8)).save(tmp_path / '0.png')
    assert pictures_in(tmp_path, Reader()) == [tmp_path / '0.png']


@pytest.mark.parametrize('name', ['a' * 250 + '.json', 'ü' * 125 + '.json'])
def test_the_longest_of_names_can_be_written(tmp_path, name):
    write_json(tmp_path / name, [1])
    assert os.listdir(tmp_path) == [name]


def test_another_files_error_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / 'rows.json'):
        (tmp_path / 'nowhere').read_text()
    assert error.value.filename == str(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('number', 'remedy'),
    [(errno.ENOSPC, 'make room'), (errno.EROFS, 'make room'), (errno.EACCES, 'another path')],
)
def test_only_what_can_go_on_later_gets_a_remedy(capsys, number, remedy):
    with pytest.raises(SystemExit) as end, cli.exit_on_bad_input('make room') as prepared:
        prepared()
        raise OSError(number, os.strerror(number), 'iter_3.pth')
    said = capsys.readouterr().err
    assert end.value.code == cli.BAD_INPUT
    for text in ('iter_3.pth', os.strerror(number), remedy):
        assert text in said


def test_links_and_what_is_no_file_stay(tmp_path):
    (tmp_path / 'link.json').symlink_to(tmp_path / 'rows.json')
    write_json(tmp_path / 'link.json', [1])
    assert (tmp_path / 'link.json').is_symlink()
    assert json.loads((tmp_path / 'rows.json').read_text()) == [1]
    (tmp_path / 'null').symlink_to('/dev/null')
    write_json(tmp_path / 'null', [1])
    assert os.readlink(tmp_path / 'null') == '/dev/null'
    assert Path('/dev/null').is_char_device()
