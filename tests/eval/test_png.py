"""Compiled reading of PNGs against OpenCV's and zlib's: the same pixels, and no harm from broken or hostile files."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from eval import png
from veason import mask_png

pytest.importorskip("numba")

pictures = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([0, 255])
)
greys = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@pytest.fixture
def compiled():
    assert png.use_compiled()
    yield
    png.use_compiled(False)


def opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def build(header, stream, *between):
    return png.START + chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + b"".join(between) + chunk(
        b"IDAT", stream) + chunk(b"IEND", b"")  # fmt: skip


def filtered(picture, kinds):
    """The rows of a picture under the filters `kinds`, by the definition of each."""
    padded = np.pad(picture.astype(int), ((1, 0), (1, 0)))
    rows = []
    for y, kind in enumerate(kinds, start=1):
        row = [kind]
        for x in range(1, padded.shape[1]):
            a, b, c = padded[y, x - 1], padded[y - 1, x], padded[y - 1, x - 1]
            paeth = min((a, b, c), key=lambda value: abs(a + b - c - value))  # the first among equals
            row.append((padded[y, x] - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        rows.append(bytes(row))
    return b"".join(rows)


@settings(max_examples=80, deadline=None)
@given(pictures, st.sampled_from([1, 8]))
@example(np.full((480, 854), 255, np.uint8), 8)
@example(np.zeros((1080, 1920), np.uint8), 1)
def test_our_own_masks(mask, bits):
    decoded = png.decode_plain(mask_png.encode(mask, bits=bits), mask.shape)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, mask)


@settings(max_examples=80, deadline=None)
@given(greys, st.integers(0, 9), st.sampled_from(range(5)))
def test_grey_values_of_every_level_and_strategy(picture, level, strategy):
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    data = cv2.imencode(".png", picture, options)[1].tobytes()
    assert np.array_equal(png.decode_plain(data, picture.shape), picture)


@settings(max_examples=60, deadline=None)
@given(pictures, st.booleans())
def test_pillow_writes_them_too(mask, bilevel):
    file = io.BytesIO()
    Image.fromarray(mask if not bilevel else mask > 0).save(file, "PNG", optimize=bool(mask[0, 0]))
    assert np.array_equal(png.decode_plain(file.getvalue(), mask.shape), mask)


@settings(max_examples=80, deadline=None)
@given(greys, st.data())
def test_every_filter(picture, data):
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=len(picture), max_size=len(picture)))
    height, width = picture.shape
    file = build((width, height, 8, 0, 0, 0, 0), zlib.compress(filtered(picture, kinds)))
    assert np.array_equal(opencv(file), picture)  # the file is right
    assert np.array_equal(png.decode_plain(file, picture.shape), picture)


def test_the_distances_and_lengths_of_large_streams():
    """Noise, repeats far apart, long runs and a stored block: 300 KB that zlib packs with every kind of symbol."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 1000), np.uint8)
    picture = np.concatenate([noise, np.repeat(noise, 3, 0), noise % 7, np.zeros((100, 1000), np.uint8), noise // 9])
    rows = np.pad(picture, ((0, 0), (1, 0))).tobytes()
    for level in (0, 1, 6, 9):
        file = build((1000, len(picture), 8, 0, 0, 0, 0), zlib.compress(rows, level))
        assert np.array_equal(png.decode_plain(file, picture.shape), picture)


def test_the_stream_may_come_in_parts_with_texts_between():
    mask = np.eye(9, dtype=np.uint8) * 255
    stream = zlib.compress(filtered(mask, [1] * 9))
    file = png.START + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0)) + chunk(b"tEXt", b"a\0b")
    file += b"".join(chunk(b"IDAT", bytes([byte])) for byte in stream) + chunk(b"IEND", b"")
    assert np.array_equal(png.decode_plain(file, (9, 9)), mask)


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


OTHERS = {
    "palette": saved(Image.new("P", (9, 7), 3)),
    "colour": saved(Image.new("RGB", (9, 7), (200, 10, 10))),
    "16 bit": saved(Image.fromarray(np.full((7, 9), 60000, np.uint16))),
    "transparent": saved(Image.new("L", (9, 7), 5), transparency=5),
    "another size": saved(Image.new("L", (9, 8))),
    "gamma": build((9, 7, 8, 0, 0, 0, 0), zlib.compress(bytes(70)), chunk(b"gAMA", struct.pack(">I", 45455))),
    "interlaced": build((9, 7, 8, 0, 0, 0, 1), zlib.compress(bytes(80))),
    "no such filter": build((9, 7, 8, 0, 0, 0, 0), zlib.compress(b"\x07" + bytes(69))),
    "too short": build((9, 7, 8, 0, 0, 0, 0), zlib.compress(bytes(60))),
    "too long": build((9, 7, 8, 0, 0, 0, 0), zlib.compress(bytes(90))),
    "with a dictionary": build((9, 7, 8, 0, 0, 0, 0), b"\x78\xbb" + zlib.compress(bytes(70))[2:]),
    "huge": build((1 << 31, 1 << 31, 8, 0, 0, 0, 0), b""),
    "no stream": png.START + chunk(b"IEND", b""),
    "cut off": saved(Image.new("L", (9, 7)))[:-30],
    "nothing": b"",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_else_is_opencvs(kind, compiled):
    data = OTHERS[kind]
    assert png.decode_plain(data, (7, 9)) is None
    if data:
        expected, found = opencv(data), png.read_grey(data, (7, 9))
        assert found is expected is None or np.array_equal(found, expected)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_noticed(place, value):
    data = bytearray(mask_png.encode(np.tri(30, 40, dtype=np.uint8)))
    place %= len(data) - 1
    place = max(place, len(png.START))
    changed = data[place] != value
    data[place] = value
    found = png.decode_plain(bytes(data), (30, 40))
    if place < len(data) - 12:  # what follows is the end, which holds nothing
        assert (found is None) == changed


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_streams_give_what_zlib_gives_or_nothing(data):
    """A few bytes of a stream are changed and its check sum made right again."""
    from eval.compiled_png import PADDING, inflate

    content = data.draw(st.binary(max_size=300)) * data.draw(st.integers(1, 4))
    stream = bytearray(zlib.compress(content, data.draw(st.sampled_from([0, 1, 9])))[2:-4])
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    out, decoder = np.zeros(len(content), np.uint8), zlib.decompressobj(-15)
    whole = inflate(np.frombuffer(stream + bytes(PADDING), np.uint8), out)
    try:
        expected = decoder.decompress(bytes(stream))
    except zlib.error:
        return  # zlib refuses; whatever we made of it stayed in bounds
    if decoder.eof:
        assert whole == (len(expected) == len(content))
        assert not whole or out.tobytes() == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_at_all(stream, length):
    from eval.compiled_png import PADDING, inflate

    inflate(np.frombuffer(bytearray(stream) + bytes(PADDING), np.uint8), np.zeros(length, np.uint8))


def test_switched_off_and_on():
    assert png.use_compiled(False) is False
    data = mask_png.encode(np.ones((5, 6), bool))
    assert np.array_equal(png.read_grey(data, (5, 6)), np.full((5, 6), 255))
