"""Renders a MiniScenes picture: textured stuff, and things whose class is their outline.

The scenes are made so that content decides where computation pays: large, plain areas of stuff
(sky, ground, water, road) and a few tight groups of things (disc, bar, triangle, post, cross,
ring). All things share the same signal colours, which no stuff has: things are easy to detect, and
only their outline tells the class.

Everything is laid out in unit coordinates (x to the right, y down, both 0..1 over the picture), and
the order of random numbers does not depend on the picture's size, so a seed gives the same scene at
any size.

Shapes used below: S is the side of the (square) picture in pixels; h, w those of a window. An area
is a list of (P, 2) outlines (x, y): the first is filled, a second one cut out.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmdyn.checks import check_integer

STUFF_CLASSES = ('sky', 'ground', 'water', 'road')
THING_CLASSES = ('disc', 'bar', 'triangle', 'post', 'cross', 'ring')
CLASSES = STUFF_CLASSES + THING_CLASSES
"""Class names; the index of a name is its label."""

PALETTE = [
    [135, 190, 235],
    [110, 160, 70],
    [40, 90, 190],
    [128, 128, 128],
    [230, 60, 60],
    [250, 160, 30],
    [250, 230, 60],
    [200, 70, 220],
    [60, 220, 200],
    [255, 255, 255],
]
"""One RGB colour (0..255) per class, for drawing label maps."""

MIN_SIZE = 32
"""Smallest side in pixels, at which the smallest things are still visible."""

# Odd, so that the middle sub-pixel is the centre of the pixel, where the label is sampled from the
# mask that the anti-aliased edge is averaged from.
_SUPERSAMPLE = 3

# Ranges of hue, saturation and value (each 0..1) of the colours of a class. They overlap on
# purpose: grey water, grey sky and grey road all occur.
_STUFF_COLOURS = {
    'sky': (
        ((0.52, 0.64), (0.15, 0.50), (0.75, 1.00)),  # clear
        ((0.03, 0.13), (0.15, 0.45), (0.80, 1.00)),  # sunset
        ((0.50, 0.70), (0.00, 0.12), (0.65, 0.92)),  # overcast
    ),
    'ground': (
        ((0.18, 0.38), (0.25, 0.60), (0.35, 0.72)),  # grass
        ((0.08, 0.15), (0.25, 0.50), (0.50, 0.85)),  # sand
        ((0.02, 0.10), (0.25, 0.55), (0.28, 0.55)),  # soil
    ),
    'water': (
        ((0.48, 0.62), (0.35, 0.75), (0.30, 0.75)),  # open
        ((0.40, 0.50), (0.20, 0.45), (0.28, 0.55)),  # pond
    ),
    'road': (
        ((0.55, 0.70), (0.00, 0.10), (0.25, 0.60)),  # asphalt
        ((0.98, 1.08), (0.10, 0.25), (0.40, 0.60)),  # brick
    ),
}
# Range of strengths and knots (down, across) of a fine and a coarse grain.
_GRAINS = {
    'ground': ((6, 13, 80, 80), (2, 8, 12, 12)),
    'water': ((4, 11, 44, 7), (1, 4, 4, 4)),  # ripples: long across, short down
    'road': ((1, 3, 100, 100), (0, 4, 5, 5)),
}

# Magenta to red, shared by all things.
_THING_COLOUR = ((0.85, 1.02), (0.65, 1.00), (0.75, 1.00))
# Knots of a thing's surface: plain, grain like the ground, ripples like water, patches, shading.
_THING_GRAINS = (None, (80, 80), (44, 7), (16, 16), (2, 2))
# Diameter of the circle around a thing as a fraction of the side (26 to 44 of 128 pixels), before
# the scale of its group and the factor of its shape; and its maximum.
_THING_DIAMETER = (26 / 128, 44 / 128)
_MAX_DIAMETER = 52 / 128
# Thin outlines are drawn larger, so that classes have similar numbers of pixels.
_DIAMETER_FACTOR = dict(disc=0.85, bar=1.25, triangle=1.15, post=1.25, cross=1.10, ring=1.00)
# Things are roughly upright: arbitrary rotations would take longer to learn and turn bars into
# posts.
_MAX_LEAN = math.radians(12)
# A darker rim separates things from the stuff whatever their colours, so that detecting a thing is
# easy and classifying it depends on shape. Half of the line lies inside.
_RIM_WIDTH = 3 / 128
_RIM_DEPTH = np.float32(0.7)
# Minimum distance (RGB, 0..255) between a thing and its background.
_MIN_CONTRAST = 110.0


class SceneObject(NamedTuple):
    """The visible part of one thing.

    Attributes:
        class_id: index into ``CLASSES``, of a thing.
        mask: bool (S, S), True where the thing is visible; never empty.
    """

    class_id: int
    mask: np.ndarray


class Scene(NamedTuple):
    """A rendered scene.

    Attributes:
        image: uint8 (S, S, 3), RGB.
        labels: uint8 (S, S), indices into ``CLASSES``; every pixel has one.
        instances: the things from back to front; their masks don't overlap and together cover
            exactly the pixels labelled as things.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: tuple[SceneObject, ...]


def render_scene(seed: int | Sequence[int], size: int = 128) -> Scene:
    """Render the scene of a seed.

    Args:
        seed: a non-negative integer, or a sequence of them.
        size: side of the picture in pixels, at least ``MIN_SIZE``. A seed gives the same scene at
            every size.

    Raises:
        TypeError: if ``size`` is not an integer.
        ValueError: if ``size`` is too small, or ``seed`` is negative.
    """
    check_size(size)
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    labels = np.zeros((size, size), np.uint8)

    _paint_stuff(rng, image, labels)
    things = _paint_things(rng, image, labels)
    image *= _light(rng, size)[..., None]
    noise = rng.uniform(1.0, 6.0) * rng.standard_normal(image.shape, np.float32)
    image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return Scene(image, labels, tuple(thing for thing in things if thing.mask.any()))


def render_mosaic(seed: Sequence[int], rows: int = 4, size: int = 128) -> np.ndarray:
    """Draw ``rows`` x ``rows`` scenes side by side: a large picture of small things.

    Args:
        seed: the scenes' seeds are it and one more number each.
        rows: of scenes, and columns.
        size: side of a scene in pixels.

    Returns:
        (rows * size, rows * size, 3) uint8, RGB.
    """
    scenes = [render_scene((*seed, index), size).image for index in range(rows * rows)]
    lines = [np.hstack(scenes[start : start + rows]) for start in range(0, rows * rows, rows)]
    return np.vstack(lines)


def check_size(size: int) -> int:
    """Validate a side in pixels, an integer of at least ``MIN_SIZE``, and return it."""
    if check_integer('size', size) < MIN_SIZE:
        raise ValueError(f'size must be at least {MIN_SIZE} pixels, got {size}')
    return int(size)


# Drawing: outlines become an anti-aliased cover and an exact mask


def _draw(size, area, window=None, line=None):
    """Draw an area, or its edges as lines of a width in pixels, with supersampling.

    The window is (rows, columns) slices of the picture, None = all.
    """
    rows, columns = window or (slice(0, size), slice(0, size))
    origin = np.array([columns.start, rows.start])
    extent = (np.array([columns.stop, rows.stop]) - origin) * _SUPERSAMPLE
    mask = Image.new('L', tuple(extent.tolist()))
    draw = ImageDraw.Draw(mask)
    for outline, fill in zip(area, (255, 0), strict=False):
        closed = outline if line is None else np.concatenate([outline, outline[:1]])
        # Pillow has pixel centres at integers, hence the half.
        points = ((closed * size - origin) * _SUPERSAMPLE - 0.5).ravel().tolist()
        if line is None:
            draw.polygon(points, fill=fill)
        else:
            draw.line(points, fill=255, width=round(line * _SUPERSAMPLE))
    return mask


def _share(mask):
    """Fraction of each pixel that a drawing covers, float (h, w)."""
    return np.asarray(mask.reduce(_SUPERSAMPLE), np.float32) / 255


def _centres(mask):
    """Whether a drawing covers each pixel's centre, bool (h, w)."""
    middle = _SUPERSAMPLE // 2
    return np.asarray(mask)[middle::_SUPERSAMPLE, middle::_SUPERSAMPLE] > 0


def _blend(image, cover, colour):
    """Blend ``colour`` (broadcast to (h, w, 3)) into ``image`` in place, weighted by ``cover``."""
    image += cover[..., None] * (colour - image)


def _blur(cover, radius):
    """Blur a float (h, w) array; ``radius`` in pixels."""
    picture = Image.fromarray(np.rint(cover * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _noise(rng, shape, rows, columns):
    """Smooth noise (h, w) with mean 0 and deviation 1, from a grid of random knots."""
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    field = np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC))
    return (field - field.mean()) / (field.std() + 1e-6)


def _grid(size):
    """x and y (S, S) of the pixel centres in unit coordinates."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(centres, centres)


def _colour(rng, ranges):
    """Draw an RGB colour, float (3,) in 0..255, from ranges of hue, saturation and value."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in ranges)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) * 255


def _rotation(angle):
    """(2, 2) matrix that rotates row vectors by ``angle`` in radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _circle(count):
    """(count, 2) evenly spaced points of the unit circle."""
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


# Stuff


def _paint_stuff(rng, image, labels):
    """Fill the whole picture with stuff: a landscape, a coast or a view from above."""
    paint = partial(_paint_region, rng, image, labels)
    kind = rng.choice(['landscape', 'coast', 'aerial'], p=[0.45, 0.33, 0.22])
    if kind == 'aerial':
        paint('ground')
        if rng.random() < 0.8:
            if rng.random() < 0.6:  # a river
                body = _strip(_path_across(rng)[0], rng.uniform(0.18, 0.36) / 2)
            else:
                body = _lake(rng, 0.1, 0.9)
            paint('water', body)
        if rng.random() < 0.85:
            _paint_road(rng, image, labels, *_path_across(rng))
        return

    horizon = rng.uniform(0.28, 0.55)
    tilt = rng.normal(0, 0.05)
    paint('sky')
    if kind == 'coast':
        paint('water', _below(rng, horizon, tilt, waves=0.0))
        shore = horizon + (1 - horizon) * rng.uniform(0.3, 0.75)
        slope = rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)
        paint('ground', _below(rng, shore, slope, waves=0.03))
        if rng.random() < 0.45:
            _paint_road(rng, image, labels, *_path_away(rng, shore))
    else:
        paint('ground', _below(rng, horizon, tilt, waves=rng.uniform(0, 0.05)))
        if rng.random() < 0.6:
            paint('water', _lake(rng, horizon + 0.15, 0.92))
        if rng.random() < 0.75:
            _paint_road(rng, image, labels, *_path_away(rng, horizon))


def _paint_region(rng, image, labels, name, outline=None):
    """Fill an outline (None = everything) with a new texture of the named stuff."""
    size = len(labels)
    texture = _stuff_texture(rng, size, name)
    if outline is None:
        image[:] = texture
        labels[:] = CLASSES.index(name)
        return
    mask = _draw(size, [outline])
    _blend(image, _share(mask), texture)
    labels[_centres(mask)] = CLASSES.index(name)


def _paint_road(rng, image, labels, line, half_width):
    """Paint a road along a line, with bright markings that are labelled road as well."""
    _paint_region(rng, image, labels, 'road', _strip(line, half_width))
    if rng.random() < 0.3:
        return
    paint = np.float32(rng.uniform(170, 245))
    period = int(rng.integers(3, 6))
    for start in range(0, len(line) - 1, 2 * period):
        dash = slice(start, start + period)
        if len(line[dash]) > 1:
            mask = _draw(len(labels), [_strip(line[dash], half_width[dash] * 0.06)])
            _blend(image, _share(mask) * np.float32(0.8), paint)


def _stuff_texture(rng, size, name):
    """Texture of the named stuff, float (S, S, 3): a slow gradient of colour, and grain."""
    colours = _STUFF_COLOURS[name]
    base = _colour(rng, colours[rng.integers(len(colours))])
    drift = rng.normal(0, 8, 3).astype(np.float32)
    _, y = _grid(size)
    texture = base + drift * (y[..., None] - 0.5) * 2
    if name == 'sky':
        # Soft clouds, wider than high.
        clouds = np.clip(_noise(rng, y.shape, 9, 4) - rng.uniform(0.2, 1.2), 0, 1.5)
        white = np.float32(rng.uniform(190, 255))
        _blend(texture, clouds * np.float32(rng.uniform(0, 0.5)), white)
        return texture
    for low, high, rows, columns in _GRAINS[name]:
        texture += (rng.uniform(low, high) * _noise(rng, y.shape, rows, columns))[..., None]
    return texture


def _below(rng, height, slope, waves):
    """Outline of the area below a wavy line through (0.5, height)."""
    x = np.linspace(-0.1, 1.1, 40)
    y = height + slope * (x - 0.5)
    for _ in range(3):
        y = y + waves * rng.uniform(0, 0.7) * np.sin(
            2 * math.pi * (rng.uniform(0.5, 3) * x + rng.uniform())
        )
    return np.concatenate([np.stack([x, y], 1), [[1.1, 1.1], [-0.1, 1.1]]])


def _lake(rng, top, bottom):
    """A wobbly flat ellipse with its centre between two heights."""
    angle = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    radius = 1 + sum(
        rng.uniform(0, 0.12) * np.sin(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5)
    )
    half = np.array([rng.uniform(0.22, 0.45), rng.uniform(0.12, 0.24)])
    middle = np.array([rng.uniform(0.1, 0.9), rng.uniform(top, max(top, bottom))])
    return middle + half * _circle(60) * radius[:, None]


def _path_across(rng):
    """Centre line (P, 2) and half widths (P,) of a bent strip across the picture."""
    t = np.linspace(-1.3, 1.3, 60)
    bend = rng.uniform(-0.3, 0.3) * t**2 + rng.uniform(-0.1, 0.1) * np.sin(5 * t)
    angle = rng.uniform(0, math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = rng.uniform(0.25, 0.75, 2)
    line = middle + t[:, None] * along + bend[:, None] * across
    return line, np.full(len(t), rng.uniform(0.07, 0.14))


def _path_away(rng, horizon):
    """Centre line (P, 2) and half widths (P,) of a road to the horizon."""
    t = np.linspace(0, 1, 40)
    far, near = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.9)
    x = far + (near - far) * t + rng.uniform(-0.15, 0.15) * np.sin(math.pi * t)
    y = horizon + 0.02 + (1.06 - horizon) * t
    return np.stack([x, y], 1), 0.012 + rng.uniform(0.12, 0.26) * t**1.2


def _strip(line, half_width):
    """Outline of a strip along a line (P, 2); half widths (P,) or one for all."""
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    side = normal * np.broadcast_to(half_width, len(line))[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


# Things


def _paint_things(rng, image, labels):
    """Paint groups of things over the stuff; returns the instances from back to front.

    Some may be completely hidden.
    """
    size = len(labels)
    shadow_offset = rng.normal(0, 0.012, 2)
    shadow_depth = np.float32(rng.uniform(0.0, 0.45))
    things: list[SceneObject] = []
    for name, centre, diameter in _place_things(rng):
        area = _area(rng, name)
        turn = _turn(rng) * (diameter / 2)
        area = [outline @ turn + centre for outline in area]
        # Only the thing's surroundings are processed: a fifth of the work.
        window = _window(size, centre, diameter / 2 + 0.06)
        view = image[window]

        shadow = _draw(size, [outline + shadow_offset for outline in area], window)
        view *= 1 - shadow_depth * _blur(_share(shadow), 0.008 * size)[..., None]
        mask = _draw(size, area, window)
        inside = _centres(mask)
        texture = _thing_texture(rng, view, inside, diameter)
        rim = _share(_draw(size, area, window, line=_RIM_WIDTH * size))
        _blend(view, _share(mask), texture * (1 - _RIM_DEPTH * rim)[..., None])

        for thing in things:
            thing.mask[window] &= ~inside
        things.append(SceneObject(CLASSES.index(name), np.zeros((size, size), bool)))
        things[-1].mask[window] = inside
        labels[window][inside] = CLASSES.index(name)
    return things


def _window(size, centre, reach):
    """(rows, columns) slices of the pixels within ``reach`` of a point."""
    low = np.clip(np.floor((centre - reach) * size), 0, size).astype(int)
    high = np.clip(np.ceil((centre + reach) * size), 0, size).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _place_things(rng):
    """Choose the things: a list of (class name, centre (2,), diameter)."""
    groups = [rng.uniform(0.16, 0.84, 2) for _ in range(rng.integers(1, 4))]
    scales = rng.uniform(0.8, 1.15, len(groups))
    names = rng.permutation(np.repeat(THING_CLASSES, 2))[: rng.integers(3, 7)].tolist()
    low, high = np.log(_THING_DIAMETER)
    placed = []
    for name in names:
        group = int(rng.integers(len(groups)))
        diameter = math.exp(rng.uniform(low, high)) * scales[group] * _DIAMETER_FACTOR[name]
        diameter = min(diameter, _MAX_DIAMETER)
        # Increase the distance from the group's centre until no neighbour is hidden.
        for spread in np.linspace(0.06, 0.25, 20):
            centre = groups[group] + rng.normal(0, spread, 2)
            if np.all(abs(centre - 0.5) < 0.45) and _is_free(centre, diameter, placed):
                placed.append((name, centre, diameter))
                break
    return placed


def _is_free(centre, diameter, placed):
    """Whether a thing and its neighbours would remain mostly visible."""
    for _, other, other_diameter in placed:
        small, large = sorted((diameter / 2, other_diameter / 2))
        if np.linalg.norm(centre - other) < large + 0.25 * small:
            return False
    return True


def _turn(rng):
    """(2, 2) matrix: a squeeze to 85 % or more along some axis, then a lean to either side."""
    squeeze = np.diag([1.0, rng.uniform(0.85, 1.0)])
    axis = rng.uniform(0, 2 * math.pi)
    lean = rng.uniform(-_MAX_LEAN, _MAX_LEAN)
    return _rotation(lean) @ _rotation(-axis) @ squeeze @ _rotation(axis)


def _area(rng, name):
    """Area of a thing within the unit circle."""
    if name == 'disc':
        return [_circle(48)]
    if name == 'ring':
        return [_circle(48), _circle(48) * rng.uniform(0.42, 0.58)]
    if name in ('bar', 'post'):
        # Bars are horizontal, posts vertical: 2.5 to 3.5 times as long as wide.
        angle = math.atan2(rng.uniform(0.28, 0.40), 1)
        x, y = math.cos(angle), math.sin(angle)
        if name == 'post':
            x, y = y, x
        return [np.array([[x, y], [-x, y], [-x, -y], [x, -y]])]
    if name == 'triangle':
        angle = 2 * math.pi * (np.arange(3) / 3 + rng.uniform(-0.04, 0.04, 3))
        return [np.stack([np.cos(angle), np.sin(angle)], 1)]
    # A cross: twelve corners, arms of half width w.
    w = rng.uniform(0.24, 0.34)
    arm = np.array([[1, w], [w, w], [w, 1]])
    quarter = np.array([[0, 1], [-1, 0]])
    parts = [arm @ np.linalg.matrix_power(quarter, k) for k in range(4)]
    # The corner of an arm is at (1, w): scale it to the circle.
    return [np.concatenate(parts) / math.hypot(1, w)]


def _thing_texture(rng, view, inside, diameter):
    """Texture with a colour that contrasts with the background: float (h, w, 3).

    ``view`` (h, w, 3) is the background, ``inside`` (h, w) the pixels of the thing; knots are as
    dense as those of the stuff.
    """
    behind = view[inside].mean(0) if inside.any() else view.mean((0, 1))
    # A fixed number of draws, so that later random numbers don't depend on the outcome.
    colours = [_colour(rng, _THING_COLOUR) for _ in range(8)]
    contrast = [float(np.linalg.norm(colour - behind)) for colour in colours]
    enough = [k for k, value in enumerate(contrast) if value >= _MIN_CONTRAST]
    base = colours[enough[0] if enough else int(np.argmax(contrast))]

    strength = rng.uniform(3, 12)
    knots = _THING_GRAINS[rng.integers(len(_THING_GRAINS))]
    if knots is None:
        return np.broadcast_to(base, view.shape)
    rows, columns = (max(2, round(k * (diameter + 0.12))) for k in knots)
    return base + np.float32(strength) * _noise(rng, inside.shape, rows, columns)[..., None]


def _light(rng, size):
    """Brightness factor, float (S, S): overall level, a gradient, and wide soft shadows."""
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0, 0.35)
    factor = rng.uniform(0.75, 1.15) + slope * (
        math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)
    )
    for _ in range(rng.integers(0, 3)):
        middle, half = rng.uniform(0, 1, 2), rng.uniform(0.12, 0.4, 2)
        cover = _share(_draw(size, [middle + half * _circle(32)]))
        factor = factor * (1 - rng.uniform(0.15, 0.4) * _blur(cover, 0.04 * size))
    return factor.astype(np.float32)
