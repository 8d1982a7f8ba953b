"""The teacher over a real socket: the real client, every expression, every way to misbehave, hostile requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib

import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from demo.recognition import TOLERANCE, InquiryError, WorldIndex, difference, read_inquiry
from demo.teacher import FAULTS, ServerOptions, main, serve
from demo.writer import build_world, read_scenes
from veason import masks
from veason.datasets.revos import ReVOS
from veason.errors import DataError
from veason.frames import linspace

MODEL = ServerOptions.model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher") / "world"
    build_world(root, videos=4, seed=3)
    return root


@pytest.fixture(scope="module")
def samples(root):
    """(data set, sample, keyframe) of every expression with a target, the keyframe where it is largest."""
    found = []
    for split in ("train", "valid"):
        dataset = ReVOS(root, split=split)
        for sample in dataset:
            tracks = dataset.object_rles(sample)
            areas = [sum(masks.area(track[t]) for track in tracks if track[t]) for t in range(len(sample))]
            if tracks:
                found.append((dataset, sample, int(np.argmax(areas))))
    return found


@pytest.fixture(scope="module")
def url(root):
    with serve(root) as url:
        yield url


def draw(dataset, sample, frame_id, *, shrink=1.0):
    """A frame as a teacher gets to see it: boxes of two red pixels, smaller."""
    picture = Image.open(sample.frame_path(frame_id)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for track in dataset.object_rles(sample):
        if track[frame_id]:
            y, x = np.nonzero(masks.decode(track[frame_id], sample.size))
            box = (int(x.min()), int(y.min()), int(x.max()), int(y.max()))
            pen.rectangle(box, outline=(255, 0, 0), width=2)
    return picture.resize((round(picture.width * shrink), round(picture.height * shrink)))


def data_url(picture, *, quality=75):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def ask(expression, keyframe, pictures):
    """Messages of a request; `pictures`: data URL by timestamp."""
    content = [_text("Frames, one every few of 9s:")]
    for stamp, picture in pictures.items():
        content += [_text(f"({stamp}s)"), _image(picture)]
    task = f"Think in three steps.\nExpression: {expression}\nKeyframe: {keyframe}s\nNo lists."
    return [{"role": "system", "content": "You see."}, {"role": "user", "content": [*content, _text(task)]}]


def _text(text):
    return {"type": "text", "text": text}


def _image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def ask_about(dataset, sample, keyframe, *, shrink=1.0, quality=75):
    shown = sorted({*linspace(len(sample), 8), keyframe})
    pictures = {t: data_url(draw(dataset, sample, t, shrink=shrink), quality=quality) for t in shown}
    return ask(sample.expression, keyframe, pictures)


def client(url, *, retries=0):
    return openai.OpenAI(base_url=url, api_key="any", max_retries=retries, timeout=600)


def stats(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as response:
        return json.load(response)


def raw(url, data):
    """Returns all bytes of the response to some bytes on a new connection."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def post(url, body, *, length=None):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: {length or len(body)}\r\n\r\n"
    head, _, body = raw(url, head.encode() + body).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def test_the_real_client_gets_a_true_thought_with_its_usage(url, root, samples):
    dataset, sample, keyframe = samples[0]
    got = client(url).chat.completions.create(model=MODEL, messages=ask_about(dataset, sample, keyframe))
    names = [shape.name for shape in read_scenes(root)[sample.video].shapes]
    thought = got.choices[0].message.content
    assert all((names[i] in thought) == (i in sample.obj_ids) for i in range(len(names)))
    assert f"{keyframe}s" in thought
    assert (got.object, got.model, got.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.prompt_tokens > 8 * 6 * 8  # eight frames of 168 x 224 pixels
    assert [model.id for model in client(url).models.list()] == [MODEL]


@pytest.mark.parametrize(("shrink", "quality"), [(1.0, 75), (0.6, 50)])
def test_every_expression_is_known_again_through_red_boxes_and_compression(root, samples, shrink, quality):
    index = WorldIndex(root)
    for dataset, sample, keyframe in samples:
        inquiry = read_inquiry(ask_about(dataset, sample, keyframe, shrink=shrink, quality=quality))
        assert index.recognise(inquiry) == sample
    assert len(samples) > 20


def test_the_expression_is_read_as_prompts_write_it(root, samples):
    dataset, sample, keyframe = samples[0]
    messages = ask_about(dataset, sample, keyframe)
    messages[1]["content"][-1] = _text(f"Expression:   {sample.expression.upper()}.\n Keyframe: ({keyframe}s)")
    assert WorldIndex(root).recognise(read_inquiry(messages)) == sample


def test_pictures_of_another_world_are_not_known(root, samples, tmp_path):
    build_world(tmp_path / "other", videos=3, seed=4)
    index, refused = WorldIndex(root), 0
    many = [(sample, keyframe) for _, sample, keyframe in samples if len(sample) >= 8]
    for other in {sample.video: sample for sample in ReVOS(tmp_path / "other", split="train")}.values():
        for sample, keyframe in many[::5]:
            shown = [t for t in linspace(len(sample), 8) if t < len(other)]
            pictures = {t: data_url(Image.open(other.frame_path(t))) for t in shown}
            keyframe = min(shown, key=lambda t: abs(t - keyframe))
            with pytest.raises(InquiryError, match="do not know this picture"):
                index.recognise(read_inquiry(ask(sample.expression, keyframe, pictures)))
            refused += 1
    assert refused >= 6


def test_some_red_in_a_cell_is_no_difference_and_other_colours_are():
    known = np.full((1, 12, 12, 3), 100.0)
    boxed = known.copy()
    boxed[0, :3] = 0.5 * known[0, :3] + 0.5 * np.array([255, 0, 0])  # a quarter of the cells, half covered
    assert difference(boxed, known) == pytest.approx(0)
    boxed[0, :3] = [100, 100, 160]  # blue: 60 levels in one channel of three
    assert difference(boxed, known) == pytest.approx(20)
    assert difference(boxed, known) > TOLERANCE


PIXEL = data_url(Image.new("RGB", (8, 8)))
TASK = "Expression: the sun\nKeyframe: 4s"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text only", "list of parts"),
        ([_text(TASK)], "no picture"),
        (["(4s)", TASK], "list of parts"),
        ([{"type": "video"}], "must be a text or an image_url"),
        ([{"type": "image_url", "image_url": {"link": "x"}}], "must be a text or an image_url"),
        ([_image(PIXEL), _text(TASK)], "picture 1 has no timestamp"),
        ([_text("4s"), _image(PIXEL), _image(PIXEL), _text(TASK)], "picture 2 has no timestamp"),
        ([_text("4s"), _image("file:///a.jpg"), _text(TASK)], "picture 1: wanted data:image/jpeg"),
        ([_text("4s"), _image(PIXEL), _text("Keyframe: 4s")], "wanted one line 'Expression: …'"),
        ([_text("4s"), _image(PIXEL), _text(TASK + "\nExpression: the moon")], "found .'the moon', 'the sun'"),
        ([_text("4s"), _image(PIXEL), _text("Expression: the sun\nKeyframe:")], "wanted one line 'Keyframe: …'"),
        (
            [_text("4s"), _image(PIXEL), _text("Expression: the sun\nKeyframe: 5s")],
            "one of the timestamps .4., found '5s'",
        ),
        ([_text("4s"), _image(PIXEL)] * 65, "more than 64 pictures"),
    ],
)
def test_what_a_request_lacks_is_named(content, message):
    with pytest.raises(InquiryError, match=message):
        read_inquiry([{"role": "user", "content": content}])


def test_the_last_timestamp_before_a_picture_is_its_own():
    content = [_text("every 9s of 100"), _text("from 2s, at (4s) "), _image(PIXEL), _text("(12s)"), _image(PIXEL)]
    inquiry = read_inquiry([{"role": "user", "content": [*content, _text(TASK)]}])
    assert (inquiry.frame_ids, inquiry.keyframe, inquiry.expression) == ((4, 12), 4, "the sun")
    assert inquiry.thumbnails.shape == (2, 12, 12, 3)


def test_questions_that_have_no_answer_are_refused(url, root, samples):
    dataset, sample, keyframe = samples[0]
    messages = ask_about(dataset, sample, keyframe)
    task = messages[1]["content"][-1]
    absent = next(s for s in ReVOS(root, split="train") if s.video == sample.video and not s.anno_ids)
    for text, message in (
        (f"Expression: the moon\nKeyframe: {keyframe}s", "no video of this world"),
        (f"Expression: {absent.expression}\nKeyframe: {keyframe}s", "has no target here"),
        (f"Expression: {sample.expression}\nKeyframe: 77s", "must be one of the timestamps"),
    ):
        task["text"] = text
        with pytest.raises(openai.BadRequestError, match=message):
            client(url).chat.completions.create(model=MODEL, messages=messages)


def test_a_keyframe_without_the_target_is_refused(url, samples):
    dataset, sample, away = next(
        (dataset, sample, t)
        for dataset, sample, _ in samples
        for t in range(len(sample))
        if all(track[t] is None for track in dataset.object_rles(sample))
    )
    with pytest.raises(openai.BadRequestError, match=f"the target is not visible at {away}s; choose another keyframe"):
        client(url).chat.completions.create(model=MODEL, messages=ask_about(dataset, sample, away))


def test_the_same_request_gets_the_same_text_and_another_seed_another(url, root, samples):
    messages = ask_about(*samples[0])
    texts = [
        client(url).chat.completions.create(model=MODEL, messages=messages, seed=seed).choices[0].message.content
        for seed in (1, 1, *range(2, 8))
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 2


def test_the_limit_on_tokens_and_the_name_of_the_model_count(url, samples):
    messages = ask_about(*samples[0])
    got = client(url).chat.completions.create(model=MODEL, messages=messages, max_tokens=5)
    assert (got.choices[0].finish_reason, got.usage.completion_tokens) == ("length", 5)
    with pytest.raises(openai.NotFoundError, match=f"no model 'gpt' here; ask for '{MODEL}'"):
        client(url).chat.completions.create(model="gpt", messages=messages)
    with pytest.raises(openai.BadRequestError, match="one whole answer"):
        client(url).chat.completions.create(model=MODEL, messages=messages, stream=True)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_way_to_misbehave_is_what_it_says_and_is_counted(kind, root, samples):
    with serve(root, fail_rate=1, fail_kinds=(kind,), hang=0.01) as url:
        _check_fault(kind, url, ask_about(*samples[0]))
        counts = stats(url)
    assert counts["failures"] == {kind: 1}
    assert (counts["requests"], counts["answered"], counts["refused"], counts["in_flight"]) == (1, 0, 0, 0)


def _check_fault(kind, url, messages):
    def create():
        return client(url).chat.completions.create(model=MODEL, messages=messages)

    if kind in ("500", "503"):
        with pytest.raises(openai.InternalServerError) as caught:
            create()
        assert caught.value.status_code == int(kind)
    elif kind == "429":
        with pytest.raises(openai.RateLimitError) as caught:
            create()
        assert caught.value.response.headers["retry-after"] in ("0", "1")
    elif kind in ("hang", "reset", "cut"):
        with pytest.raises(openai.APIConnectionError):
            create()
    elif kind == "truncated":
        with pytest.raises(json.JSONDecodeError):
            create()
    else:
        choice = create().choices[0]
        assert (choice.finish_reason == "length") == (kind == "length")
        assert (choice.message.content == "") == (kind == "empty")
        assert ("red b" in choice.message.content or "in red." in choice.message.content) == (kind == "boxes")


def test_the_clients_own_retries_get_through(root, samples):
    with serve(root, fail_rate=0.5, fail_kinds=("429", "503", "reset"), seed=1) as url:
        for _ in range(4):
            got = client(url, retries=10).with_options(timeout=20)
            assert got.chat.completions.create(model=MODEL, messages=ask_about(*samples[0])).choices[0].message.content
        counts = stats(url)
    assert counts["answered"] == 4
    assert sum(counts["failures"].values()) == counts["requests"] - 4 > 0


def test_failures_come_at_the_rate_asked_for_and_the_same_again():
    options = ServerOptions(seed=7, fail_rate=0.3)
    faults = [options.fault(arrival) for arrival in range(2000)]
    assert 500 < sum(fault is not None for fault in faults) < 700
    assert set(faults) == {None, *FAULTS}
    assert faults == [ServerOptions(seed=7, fail_rate=0.3).fault(arrival) for arrival in range(2000)]


def test_many_slow_requests_are_in_flight_together(root, samples):
    messages = ask_about(*samples[0])

    async def all_at_once(url):
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as many:
            asked = [many.chat.completions.create(model=MODEL, messages=messages, seed=i) for i in range(64)]
            return await asyncio.gather(*asked)

    with serve(root, delay=0.5) as url:
        answers = asyncio.run(all_at_once(url))
        counts = stats(url)
    assert all(answer.choices[0].message.content for answer in answers)
    assert (counts["answered"], counts["in_flight"]) == (64, 0)
    assert 2 <= counts["max_in_flight"] <= 64  # how many depends on how fast they can be sent


def test_the_most_in_flight_is_counted_and_leaving_the_block_stops_them_all(root):
    with contextlib.ExitStack() as sockets:
        with serve(root, delay=600) as url:
            address = ("127.0.0.1", int(url.removesuffix("/v1").rpartition(":")[2]))
            waiting = [sockets.enter_context(socket.create_connection(address, timeout=30)) for _ in range(128)]
            for connection in waiting:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            while stats(url)["in_flight"] < 128:
                time.sleep(0.01)
            assert stats(url)["max_in_flight"] == 128
        assert all(connection.recv(1) == b"" for connection in waiting)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def bomb(side, *, rows):
    """A PNG that claims side x side pixels and brings so many black rows, in a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(rows * (side // 8 + 1)))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def chat(picture, **fields):
    return json.dumps({"model": MODEL, "messages": ask("the red circle", 0, {0: picture}), **fields}).encode()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{not JSON", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"[]", 400, "must be a JSON object, found list"),
        (b"{}", 404, "no model 'None'"),
        (json.dumps({"model": MODEL}).encode(), 400, "messages must be a list"),
        (chat("data:image/png;base64,%%%%"), 400, "broken base64"),
        (chat("data:image/jpeg;base64,abc"), 400, "broken base64"),
        (chat("data:image/jpeg;base64,"), 400, "cannot be decoded"),
        (chat("data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ=="), 400, "cannot be decoded"),
        (chat("http://127.0.0.1:1/a.jpg"), 400, "nothing is fetched"),
        (chat("data:image/png;base64," + "A" * (6 << 20)), 400, "larger than 4 MiB"),
        (chat(bomb(9000, rows=9000)), 400, "9000 x 9000 pixels"),
        (chat(bomb(60000, rows=1)), 400, "decompression bomb"),
        (chat("x", seed="one"), 400, "seed must be an int"),
        (chat("x", max_tokens=0), 400, "positive int, found 0"),
    ],
)
def test_hostile_bodies_are_refused_and_the_teacher_keeps_running(body, status, message, url):
    assert post(url, body)[0] == status
    assert message in post(url, body)[1]
    assert raw(url, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 52428800\r\n\r\n", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET /" + b"a" * 100_000, 431),
        (b"hello\r\n\r\n", 400),
        (b"GET /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_broken_http_is_refused(data, status, url):
    assert int(raw(url, data).split()[1]) == status
    assert stats(url)["in_flight"] == 0


def test_a_body_far_too_large_that_really_comes_still_gets_its_refusal(url):
    with pytest.raises(openai.APIStatusError) as caught:
        client(url).chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * (20 << 20)}])
    assert caught.value.status_code == 413


def test_a_client_that_leaves_early_harms_nobody(root, samples):
    dataset, sample, keyframe = samples[0]
    messages = ask_about(dataset, sample, keyframe)
    with serve(root, delay=0.3) as url:
        with pytest.raises(openai.APITimeoutError):
            client(url).with_options(timeout=0.05).chat.completions.create(model=MODEL, messages=messages)
        assert client(url).chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_stops_on_a_signal(number, root, tmp_path):
    command = [sys.executable, "-m", "demo.teacher", "--world", str(root)]
    command += ["--port-file", str(tmp_path / "port"), "--model", "seer"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        url = line.removeprefix("listening on ").strip()
        assert url == f"http://127.0.0.1:{(tmp_path / 'port').read_text().strip()}/v1"
        assert [model.id for model in client(url).models.list()] == ["seer"]
        process.send_signal(number)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert errors == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-rate", "2"], "a share from 0 to 1"),
        (["--fail-kinds", "500,sulk"], "choose from 500, 503"),
        (["--delay", "-1"], "seconds from 0 to 3600"),
        (["--port", "70000"], "choose another port"),
        (["--world", "/nowhere"], "make one with python -m demo.world"),
    ],
)
def test_wrong_options_are_told(options, message, root, capsys):
    assert main(["--world", str(root), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_told(root, url):
    with pytest.raises(DataError, match="cannot listen on"), serve(root, port=int(url.split(":")[2].split("/")[0])):
        pass
