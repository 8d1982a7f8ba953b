"""PNG masks written as OpenCV writes them, and read as OpenCV and Pillow read them or not at all."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from veason import mask_png
from veason.mask_png import PngError, decode_grey, decode_indices

pictures = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([0, 255])
)
greys = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


@pytest.fixture(params=["zlib-ng", "zlib"], autouse=True)
def inflater(request, monkeypatch):
    """Every test of this file, with zlib-ng where it is installed and with Python's own zlib."""
    if request.param == "zlib":
        monkeypatch.setattr(mask_png, "zlib", zlib)
    elif mask_png.zlib is zlib:
        pytest.skip("zlib-ng is not installed")


@pytest.fixture(params=["numpy", "numba"], autouse=True)
def unfilter(request):
    if request.param == "numba" and not mask_png.use_compiled():
        pytest.skip("numba is not installed")
    yield
    mask_png.use_compiled(False)


def opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.uint8)


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def palette(indices, colour=7, **options):
    image = Image.fromarray(indices, mode="P")
    image.putpalette([colour] * 768)
    return saved(image, **options)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def build(header, stream, *between):
    """A PNG of an IHDR (width, height, depth, colour, 0, 0, interlaced), chunks in between, and one IDAT."""
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *between, chunk(b"IDAT", stream), chunk(b"IEND", b"")]
    return mask_png.SIGNATURE + b"".join(chunks)


def filtered(rows, kinds):
    """Rows of bytes under the filters `kinds`, by the definition of each."""
    padded = np.pad(rows.astype(int), ((1, 0), (1, 0)))
    out = []
    for y, kind in enumerate(kinds, start=1):
        row = [kind]
        for x in range(1, padded.shape[1]):
            a, b, c = padded[y, x - 1], padded[y - 1, x], padded[y - 1, x - 1]
            paeth = min((a, b, c), key=lambda value: abs(a + b - c - value))  # the first among equals
            row.append((padded[y, x] - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        out.append(bytes(row))
    return b"".join(out)


def packed(samples, depth):
    """Rows of bytes of (H, W) samples of `depth` bits."""
    bits = np.unpackbits(samples.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
    return np.packbits(bits.reshape(len(samples), -1), axis=1)


def interlaced(samples, depth, colour, *between):
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7]
    stream = b"".join(filtered(packed(part, depth), [1] * len(part)) for part in parts if part.size)
    return build((*samples.shape[::-1], depth, colour, 0, 0, 1), zlib.compress(stream), *between)


# Writing


@given(arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
@pytest.mark.parametrize("bits", [1, 8])
def test_masks_come_back_as_0_and_255(bits, mask):
    data = mask_png.encode(mask, bits=bits)
    assert data[24:26] == bytes([bits, 0])  # depth and colour type "grey" of the header
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask * np.uint8(255))


def test_any_nonzero_value_is_inside():
    counts = np.array([[0, 1], [2, 255]], np.uint8)
    assert mask_png.encode(counts, bits=1) == mask_png.encode(np.asfortranarray(counts != 0), bits=1)


def noise(height, width, share=0.3):
    return np.random.default_rng(height * width).random((height, width)) < share


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize(
    "mask",
    [
        np.ones((1, 1), bool),
        np.ones((7, 1), bool),
        np.ones((1, 7), bool),
        np.eye(9, 2, dtype=bool),
        np.zeros((480, 854), bool),
        np.tri(480, 854, dtype=bool),
        np.ones((16, 15), bool),  # a window of 256 bytes holds it
        np.ones((17, 15), bool),
        np.ones((128, 127), bool),  # 16,384 bytes: the largest picture with a smaller window
        np.ones((128, 128), bool),
        noise(90, 70),
        noise(480, 854),  # several chunks of pixels, several blocks
        noise(480, 854, 0.001),
    ],
    ids=lambda mask: f"{mask.shape[0]}x{mask.shape[1]}-{mask.sum()}",
)
def test_the_bytes_are_opencvs(mask, bits):
    options = [cv2.IMWRITE_PNG_BILEVEL, 1] if bits == 1 else []
    assert mask_png.encode(mask, bits=bits) == cv2.imencode(".png", mask * np.uint8(255), options)[1].tobytes()


# Reading what is sound


@given(pictures, st.sampled_from([1, 8]))
@example(np.full((480, 854), 255, np.uint8), 8)
@example(np.zeros((1080, 1920), np.uint8), 1)
def test_our_own_masks(mask, bits):
    decoded = decode_grey(mask_png.encode(mask, bits=bits), mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, mask)


@given(greys, st.integers(0, 9), st.sampled_from(range(5)))
def test_grey_values_of_every_level_and_strategy(picture, level, strategy):
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    data = cv2.imencode(".png", picture, options)[1].tobytes()
    assert np.array_equal(decode_grey(data, picture.shape), picture)
    assert np.array_equal(decode_indices(data, picture.shape), picture)


@given(greys, st.booleans())
def test_indices_are_pillows(picture, optimize):
    assert np.array_equal(decode_indices(palette(picture, optimize=optimize), picture.shape), picture)
    bilevel = Image.fromarray(picture > 99)
    assert np.array_equal(decode_indices(saved(bilevel, optimize=optimize), picture.shape), picture > 99)
    assert np.array_equal(decode_grey(saved(bilevel, optimize=optimize), picture.shape), (picture > 99) * 255)
    for top in (2, 4, 16):  # Pillow stores them in 1, 2 and 4 bits
        data = palette(picture % top, bits=top.bit_length() - 1 if top < 16 else 4)
        assert data[24] < 8
        assert np.array_equal(decode_indices(data, picture.shape), pillow(data))
        assert np.array_equal(decode_grey(data, picture.shape), opencv(data))


@given(st.one_of(greys, pictures), st.data())
def test_every_filter(picture, data):
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=len(picture), max_size=len(picture)))
    height, width = picture.shape
    file = build((width, height, 8, 0, 0, 0, 0), zlib.compress(filtered(picture, kinds)))
    assert np.array_equal(opencv(file), picture)  # the file is right
    assert np.array_equal(decode_grey(file, picture.shape), picture)


@given(greys, st.sampled_from([1, 2, 4, 8]), st.booleans(), st.data())
def test_every_depth(picture, depth, stepwise, data):
    samples = picture >> (8 - depth)
    height, width = samples.shape
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    for colour, between in ((0, ()), (3, (chunk(b"PLTE", bytes(k * 37 % 256 for k in range(3 << depth))),))):
        if stepwise:
            file = interlaced(samples, depth, colour, *between)
        else:
            stream = zlib.compress(filtered(packed(samples, depth), kinds))
            file = build((width, height, depth, colour, 0, 0, 0), stream, *between)
        assert np.array_equal(decode_indices(file, samples.shape), samples)
        assert np.array_equal(decode_grey(file, samples.shape), opencv(file))
        assert colour == 0 or np.array_equal(pillow(file), samples)


def test_the_distances_and_lengths_of_large_streams():
    """Noise, repeats far apart, long runs and a stored block: 300 KB that zlib packs with every kind of symbol."""
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (40, 1000), np.uint8)
    picture = np.concatenate([part, np.repeat(part, 3, 0), part % 7, np.zeros((100, 1000), np.uint8), part // 9])
    rows = np.pad(picture, ((0, 0), (1, 0))).tobytes()
    for level in (0, 1, 6, 9):
        file = build((1000, len(picture), 8, 0, 0, 0, 0), zlib.compress(rows, level))
        assert np.array_equal(decode_grey(file, picture.shape), picture)


def test_the_stream_may_come_in_parts_with_texts_before_and_bytes_behind():
    mask = np.eye(9, dtype=np.uint8) * 255
    stream = zlib.compress(filtered(mask, [1] * 9))
    file = mask_png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0)) + chunk(b"tEXt", b"a\0b")
    file += b"".join(chunk(b"IDAT", bytes([byte])) for byte in stream) + chunk(b"IEND", b"")
    for behind in (b"", b"\0", bytes(5000), b"IEND", file):
        assert np.array_equal(decode_grey(file + behind, (9, 9)), mask)
        assert np.array_equal(decode_indices(file + behind, (9, 9)), mask)


RGB = np.random.default_rng(1).integers(0, 256, (7, 9, 3), np.uint8)
DEEP = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1040
FLAT = zlib.compress(b"".join(b"\0" + bytes(range(y, y + 9)) for y in range(7)))
OTHERS = {
    "colour": saved(Image.fromarray(RGB)),
    "colour with alpha": saved(Image.fromarray(np.dstack([RGB, RGB[..., 0]]))),
    "grey with alpha": saved(Image.fromarray(RGB[..., :2], mode="LA")),
    "16 bit": saved(Image.fromarray(DEEP)),
    "16 bit in colour": cv2.imencode(".png", np.dstack([DEEP] * 3))[1].tobytes(),
    "transparent": saved(Image.fromarray(RGB[..., 0]), transparency=5),
    "transparent palette": palette(RGB[..., 0], transparency=bytes(range(256))),
    "gamma": build((9, 7, 8, 0, 0, 0, 0), FLAT, chunk(b"gAMA", struct.pack(">I", 45455))),
    "sRGB": build((9, 7, 8, 0, 0, 0, 0), FLAT, chunk(b"sRGB", b"\0")),
    "background": build((9, 7, 8, 0, 0, 0, 0), FLAT, chunk(b"bKGD", b"\0\5"), chunk(b"sBIT", b"\3")),
    "interlaced": interlaced(RGB[..., 0], 8, 0),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_as_grey_as_opencv_makes_them(kind):
    assert np.array_equal(decode_grey(OTHERS[kind], (7, 9)), opencv(OTHERS[kind]))


SHAPE = np.pad(np.ones((3, 4), np.uint8), ((2, 2), (1, 4)))
BLACK = {
    "16 bits with 255 inside": saved(Image.fromarray(SHAPE.astype(np.uint16) * 255)),
    "a palette of black": palette(SHAPE, colour=0),
    "a blue of 1": saved(Image.fromarray(np.dstack([SHAPE * 0, SHAPE * 0, SHAPE]))),
    "the mask as alpha": saved(Image.fromarray(np.dstack([SHAPE * 0] * 3 + [SHAPE * 255]))),
}


@pytest.mark.parametrize("kind", BLACK)
def test_a_mask_that_is_all_black_as_grey_is_no_empty_one(kind):
    with pytest.raises(PngError, match=r"values up to \d+, all of which are black as 8-bit grey; masks are 0 and 255"):
        decode_grey(BLACK[kind], (7, 9))


@pytest.mark.parametrize("mode", ["I;16", "RGB", "RGBA", "LA", "P"])
def test_an_empty_mask_of_any_kind_stays_one(mode):
    picture = Image.new(mode, (9, 7), (0, 0, 0, 255) if mode == "RGBA" else (0, 255) if mode == "LA" else 0)
    assert not decode_grey(saved(picture), (7, 9)).any()


def test_what_has_indices_and_what_has_none():
    assert np.array_equal(decode_indices(OTHERS["transparent palette"], (7, 9)), RGB[..., 0])
    assert np.array_equal(decode_indices(OTHERS["transparent"], (7, 9)), RGB[..., 0])
    assert np.array_equal(decode_indices(saved(Image.fromarray(DEEP // 1040)), (7, 9)), DEEP // 1040)
    with pytest.raises(PngError, match=r"of 16 bits with the value 64480, where indices go to 255"):
        decode_indices(OTHERS["16 bit"], (7, 9))
    with pytest.raises(PngError, match="RGB, which has no indices"):
        decode_indices(OTHERS["colour"], (7, 9))
    with pytest.raises(PngError, match="grey with alpha"):
        decode_indices(OTHERS["grey with alpha"], (7, 9))


# Reading what is not

PLAIN = (9, 7, 8, 0, 0, 0, 0)
BROKEN = {
    "nothing": (b"", r"empty \(0 bytes\)"),
    "no PNG": (b"GIF89a" + bytes(100), "not a PNG file"),
    "the signature alone": (mask_png.SIGNATURE, "cut off after 8 bytes"),
    "another size": (saved(Image.new("L", (9, 8))), "8x9, expected 7x9"),
    "no such filter": (build(PLAIN, zlib.compress(b"\x07" + bytes(69))), "filter 7"),
    "no such filter in colour": (build((9, 7, 8, 2, 0, 0, 0), zlib.compress(b"\x05" + bytes(195))), "filter 5"),
    "too short": (build(PLAIN, zlib.compress(bytes(60))), "fewer pixels"),
    "too long": (build(PLAIN, zlib.compress(bytes(90))), "more pixels"),
    "without its end": (build(PLAIN, zlib.compress(bytes(70))[:-4]), "fewer pixels"),
    "a wrong Adler-32": (build(PLAIN, zlib.compress(bytes(70))[:-1] + b"\x07"), "cannot be unpacked"),
    "no zlib stream": (build(PLAIN, b"\x78\x01\xff" + bytes(90)), "cannot be unpacked"),
    "with a dictionary": (build(PLAIN, b"\x78\xbb" + zlib.compress(bytes(70))[2:]), "unpacked|fewer"),
    "no pixels": (build((0, 7, 8, 0, 0, 0, 0), FLAT), "no picture has"),
    "3 bits": (build((9, 7, 3, 0, 0, 0, 0), FLAT), "no picture has 3 bits"),
    "huge": (build((1 << 31, 1 << 31, 8, 0, 0, 0, 0), b""), "2147483648x2147483648, expected"),
    "no stream": (mask_png.SIGNATURE + chunk(b"IEND", b""), "does not begin with a header"),
    "no palette": (build((9, 7, 8, 3, 0, 0, 0), FLAT), "no palette"),
    "two headers": (build(PLAIN, FLAT, chunk(b"IHDR", struct.pack(">IIBBBBB", *PLAIN))), "no place there"),
    "an unknown critical chunk": (build(PLAIN, FLAT, chunk(b"ABCD", b"")), "no place there"),
    "cut off": (saved(Image.new("L", (9, 7)))[:-13], "cut off"),
    "a wrong CRC": (build(PLAIN, FLAT)[:-1] + b"\x07", "fails its check sum"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_said(kind):
    data, words = BROKEN[kind]
    for decode in (decode_grey, decode_indices):
        with pytest.raises(PngError, match=words):
            decode(data, (7, 9))


def test_texts_between_the_pixels_are_refused():
    half = len(FLAT) // 2
    data = mask_png.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *PLAIN)) + chunk(b"IDAT", FLAT[:half])
    data += chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", FLAT[half:]) + chunk(b"IEND", b"")
    with pytest.raises(PngError, match="other chunks lie between"):
        decode_grey(data, (7, 9))


def test_a_header_of_another_size_is_enough(monkeypatch):
    monkeypatch.setattr(mask_png, "_samples", lambda *_: pytest.fail("nothing of it may be unpacked"))
    bomb = build((60_000, 60_000, 8, 0, 0, 0, 0), zlib.compress(bytes(1 << 20)))
    with pytest.raises(PngError, match="60000x60000, expected 7x9"):
        decode_grey(bomb, (7, 9))
    assert mask_png.header(bomb[:33]).size == (60_000, 60_000)


def test_a_stream_is_unpacked_no_further_than_the_picture_goes():
    bomb = build(PLAIN, zlib.compress(bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(PngError, match="more pixels"):
        decode_grey(bomb, (7, 9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


TRI = np.tri(30, 40, dtype=np.uint8)
SOUND = {
    "ours": mask_png.encode(TRI),
    "ours of 1 bit": mask_png.encode(TRI, bits=1),
    "Pillow's": saved(Image.fromarray(TRI * 200)),
    "a palette": palette(TRI * 3),
    "interlaced": interlaced(TRI * 9, 4, 0),
}


def agrees(data, size=TRI.shape):
    """The file is refused, or read as Pillow does; True if it was read."""
    try:
        found = decode_indices(data, size)
    except PngError:
        with pytest.raises(PngError):  # and never read by the one and refused by the other
            decode_grey(data, size)
        return False
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image).astype(np.uint8)
        if image.mode == "L" and data[24] < 8:
            expected = expected // (255 // ((1 << data[24]) - 1))  # Pillow spreads grey of 2 and 4 bits
    assert np.array_equal(found, expected)
    assert np.array_equal(decode_grey(data, size), opencv(data))
    return True


@pytest.mark.parametrize("kind", SOUND)
def test_every_flipped_bit_is_noticed(kind):
    data = SOUND[kind]
    assert agrees(data)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            assert not agrees(bytes(damaged)), (place, bit)


@pytest.mark.parametrize("kind", SOUND)
def test_every_cut_is_noticed(kind):
    assert not any(agrees(SOUND[kind][:length]) for length in range(len(SOUND[kind])))


def split(data):
    """Chunks of a PNG, each whole."""
    at, parts = 8, []
    while at < len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4])
        parts.append(data[at:stop])
        at = stop
    return parts


@given(st.data())
def test_spliced_chunks_give_what_pillow_reads_or_nothing(data):
    every = [part for file in SOUND.values() for part in split(file)]
    chosen = split(SOUND[data.draw(st.sampled_from(sorted(SOUND)))])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(chosen)))
        chosen[place : place + data.draw(st.integers(0, 1))] = data.draw(st.lists(st.sampled_from(every), max_size=2))
    agrees(mask_png.SIGNATURE + b"".join(chosen))


@given(st.data())
def test_hostile_streams_give_what_zlib_gives_or_nothing(data):
    """A few bytes of a stream are changed, and the check sum of its chunk made right again."""
    stream = bytearray(zlib.compress(filtered(TRI, [0] * 30), data.draw(st.sampled_from([0, 1, 9]))))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    agrees(build((40, 30, 8, 0, 0, 0, 0), bytes(stream)))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_at_all(content, framed):
    data = build((40, 30, 8, 0, 0, 0, 0), content) if framed else mask_png.SIGNATURE + content
    with pytest.raises(PngError):
        decode_grey(data, (30, 40))
