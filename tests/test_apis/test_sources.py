"""Sources of pictures."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdyn.apis import Pictures


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(('b.png', 'a.jpg', 'deep/c.png')):
        path = tmp_path / 'pictures' / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new('RGB', (8, 6), (200, 10 * i, 0)).save(path)
    (tmp_path / 'pictures' / 'notes.txt').write_text('no picture')
    return tmp_path / 'pictures'


def make_video(path, frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (32, 24))
    for i in range(frames):
        writer.write(np.full((24, 32, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_files_folders_patterns_arrays_and_videos(folder, tmp_path):
    video = make_video(tmp_path / 'clip.mp4')
    array = np.zeros((5, 7, 3), np.uint8)
    image = Image.new('RGB', (4, 3), (9, 8, 7))
    sources = [folder / 'b.png', folder, str(folder / '*.png'), array, image, video]
    pictures = Pictures(sources)
    assert len(pictures) == 1 + 3 + 1 + 1 + 1 + 3
    read = list(pictures)
    names = [picture.name for picture in read]
    assert names[:7] == ['b', 'a', 'b_2', 'c', 'b_3', 'array', 'array_2']
    assert names[7:] == ['clip_000000', 'clip_000001', 'clip_000002']
    assert len(set(names)) == len(names)
    assert read[0].path == folder / 'b.png' and read[5].path is None and read[7].path == video
    # BGR, like the hosts.
    assert read[6].image.shape == (3, 4, 3) and tuple(read[6].image[0, 0]) == (7, 8, 9)
    assert read[0].image.shape == (6, 8, 3) and tuple(read[0].image[0, 0]) == (0, 0, 200)
    assert [picture.name for picture in pictures] == names, 'they can be read again'


@pytest.mark.parametrize(
    ('source', 'error', 'said'),
    [
        ('nowhere.png', FileNotFoundError, 'nowhere.png is no file'),
        ('notes.txt', ValueError, 'neither a picture'),
        ('broken.mp4', ValueError, 'not a readable video'),
        (np.zeros((4, 4), np.uint8), ValueError, r'\(4, 4\) uint8'),
        (np.zeros((4, 4, 3)), ValueError, 'float64'),
        (7, TypeError, 'got int'),
        (b'0.png', TypeError, 'got bytes'),
        ('', FileNotFoundError, "''"),
        ('x' * 5000, FileNotFoundError, 'xxx'),
        ([], ValueError, 'no pictures'),
    ],
)
def test_what_can_not_be_read_is_known_at_once(folder, source, error, said, monkeypatch):
    (folder / 'broken.mp4').write_bytes(b'nothing of a video')
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=said):
        Pictures(source)
    if not isinstance(source, list):
        with pytest.raises(error, match=said):
            Pictures([source])
