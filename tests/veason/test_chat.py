"""One answer from a server: retries, waits, limits, nonsense, the server's own words, and no key anywhere."""

import asyncio
import datetime
import email.utils
import gzip
import ipaddress
import json
import os
import re
import ssl
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from chat_server import TEXT, Act, ChatServer, completion

from veason import chat, server_access
from veason.chat import Chat, GaveUp, Pace, Request, retry_after
from veason.completion import Completion, Malformed, ServerError, read_completion, read_error
from veason.errors import DataError

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Expression: a\nKeyframe: 0s"}]}]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.01)


def ask(server: ChatServer, *, count: int = 1, api_key: str | None = None, per_minute: float | None = None, **settings):
    """The replies to `count` requests at once, or the exceptions; and the client."""

    async def run(url: str):
        async with Chat(Request(model="m", **settings), base_url=url, api_key=api_key, per_minute=per_minute) as it:
            asking = (it.ask(MESSAGES, seed=seed) for seed in range(count))
            return await asyncio.gather(*asking, return_exceptions=True), it

    with server.serve() as url:
        return asyncio.run(run(url))


def script(*acts: Act):
    """The acts in the order of arrival; afterwards good answers."""
    return lambda asked: acts[asked.arrival] if asked.arrival < len(acts) else Act()


def test_a_request_says_everything():
    server = ChatServer()
    (reply,), _ = ask(server, temperature=0.3, max_tokens=77)
    assert (reply.text, reply.finish_reason, reply.model) == (TEXT, "stop", "m-1")
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
    body = {"model": "m", "messages": MESSAGES, "temperature": 0.3, "max_tokens": 77, "seed": 0}
    assert server.asked[0].body == body


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (Act(status=500), "HTTP 500"),
        (Act(status=503), "HTTP 503"),
        (Act(status=429, headers={"retry-after": "0"}), "HTTP 429"),
        (Act(ending="reset"), "connection"),
        (Act(ending="cut"), "connection"),
        (Act(body=completion()[:50]), "malformed"),
        (Act(body=b""), "malformed"),
        (Act(body=b"\xff\x00"), "malformed"),
        (Act(body=b"[" * 100_000), "malformed"),
        (Act(body=b'{"error": {"message": "overloaded"}}'), "HTTP 200 with an error"),
        (Act(body=b'{"error": {"message": "overloaded", "code": 503}}'), "HTTP 200 with error 503"),
        (Act(body=b'{"id": null, "choices": null}'), "malformed"),
        (Act(body=b'{"choices": []}'), "malformed"),
        (Act(body=gzip.compress(completion())[:40], headers={"content-encoding": "gzip"}), "malformed"),
        (Act(body=completion(), headers={"content-encoding": "br"}), "malformed"),
        (Act(body=b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'), "malformed"),
        (Act(body=b" " * (chat.MAX_BODY + 1)), "malformed"),
        (Act(delay=60), "timeout"),
    ],
)
def test_what_the_server_does_wrong_is_asked_again(act, kind):
    (reply,), client = ask(ChatServer(script(act)), timeout=1.0 if kind == "timeout" else 60.0)
    assert reply.text == TEXT
    assert client.problems == {kind: 1}


def test_after_all_retries_the_last_problem_is_told():
    server = ChatServer(script(*[Act(status=500, body=b'{"error": {"message": "disk full"}}')] * 9))
    (error,), _ = ask(server, max_retries=3)
    assert isinstance(error, GaveUp)
    assert str(error).startswith("HTTP 500")
    assert "disk full" in str(error)
    assert len(server.asked) == 4


def test_further_fields_go_along():
    server = ChatServer()
    ask(server, extra={"logit_bias": {"7": -100}})
    assert server.asked[0].body["logit_bias"] == {"7": -100}


def test_the_variable_of_the_key_is_named():
    with pytest.raises(DataError, match="set MY_KEY in the environment"):
        Chat(Request(model="m"), base_url="https://teacher.example/v1", api_key=None, key_name="MY_KEY")


def test_a_refused_request_is_not_repeated():
    server = ChatServer(script(Act(status=400, body=b'{"error": {"message": "picture too large"}}')))
    (error,), _ = ask(server)
    assert isinstance(error, GaveUp)
    assert "HTTP 400" in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_only_the_user_can_put_right_stops_at_once(status):
    key = "sk-secret-0123456789"
    body = json.dumps({"error": {"message": f"bad key {key} or sk-secre..."}}).encode()
    server = ChatServer(script(Act(status=status, body=body)))
    (error,), _ = ask(server, api_key=key)
    assert isinstance(error, DataError)
    assert f"HTTP {status} for model 'm'" in str(error)
    assert "127.0.0.1" in str(error)
    assert "sk-secre" not in str(error)
    assert len(server.asked) == 1
    assert server.asked[0].headers["authorization"] == f"Bearer {key}"


def test_an_empty_account_is_no_rate_limit():
    body = b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'
    (error,), _ = ask(ChatServer(script(Act(status=429, body=body))))
    assert isinstance(error, DataError)
    assert "top up" in str(error)


def test_retry_after_in_seconds_is_waited_for():
    server = ChatServer(script(Act(status=429, headers={"Retry-After": "1"})))
    (reply,), _ = ask(server)
    assert reply.text == TEXT
    assert server.asked[1].time - server.asked[0].time >= 0.99


def test_retry_after_as_a_date_is_waited_for():
    dates, arrivals = [], []

    def later(asked):
        arrivals.append(time.time())
        dates.append(int(time.time()) + 2)
        wait = {"Retry-After": email.utils.formatdate(dates[0], usegmt=True)}
        return Act() if asked.arrival else Act(status=429, headers=wait)

    (reply,), _ = ask(ChatServer(later))
    assert reply.text == TEXT
    assert arrivals[1] >= dates[0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3),
        ("0.5", 0.5),
        ("-4", 0),
        ("1e9", 600),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 99999999 00:00:00 GMT", None),
    ],
)
def test_retry_after_by_hand(header, seconds):
    assert retry_after({} if header is None else {"retry-after": header}, now=10) == seconds


def test_the_rate_limit_counts_every_request():
    server, start = ChatServer(script(Act(status=500))), time.monotonic()
    replies, _ = ask(server, count=4, per_minute=600)
    assert all(reply.text == TEXT for reply in replies)
    assert len(server.asked) == 5
    assert time.monotonic() - start >= 0.39  # a tenth of a second apart


def test_a_pace_by_hand():
    pace = Pace(60)
    assert [pace.wait(now) for now in (10.0, 10.0, 10.5, 20.0, 20.0)] == [0, 1, 1.5, 0, 1]
    assert [Pace(None).wait(5.0) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (completion("  hello\n"), "  hello\n"),
        (completion(None), ""),  # nothing but hidden reasoning
        (completion("a \ud800 b"), "a ? b"),
    ],
)
def test_completions_that_can_be_read(body, text):
    assert read_completion(body).text == text


@pytest.mark.parametrize(
    "document",
    [[], {}, {"choices": None}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": [{"text": "x"}]}],
)
def test_completions_without_content(document):
    with pytest.raises(Malformed, match="no choices"):
        read_completion(json.dumps(document).encode())


def test_completions_of_wrong_types():
    choice = {"message": {"content": "x"}, "finish_reason": 3}
    reply = read_completion(
        json.dumps(
            {"choices": [choice], "model": [], "usage": {"prompt_tokens": -1, "completion_tokens": "9"}}
        ).encode()
    )
    assert (reply.finish_reason, reply.model, reply.prompt_tokens, reply.completion_tokens) == (None, "", 0, 0)
    with pytest.raises(Malformed, match="content is list"):
        read_completion(b'{"choices": [{"message": {"content": ["x"]}}]}')


def reading(**message) -> Completion:
    finish = message.pop("finish_reason", "stop")
    return read_completion(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode())


ANSWER = '<answer>{"keyframe_timestamp": 0, "bbox_2d_list": []}</answer>'


@pytest.mark.parametrize(
    ("message", "text", "whole"),
    [
        ({"content": None, "reasoning_content": f"<think>a</think>{ANSWER}"}, "", f"<think>a</think>{ANSWER}"),
        ({"content": "", "reasoning": f"a</think>{ANSWER}"}, "", f"a</think>{ANSWER}"),
        ({"reasoning_content": "only thoughts"}, "", "only thoughts"),
        ({"content": ANSWER, "reasoning_content": "a\n"}, ANSWER, f"<think>a</think>{ANSWER}"),
        ({"content": f"\n\n{ANSWER}", "reasoning": "<think>a"}, f"\n\n{ANSWER}", f"<think>a</think>{ANSWER}"),
        ({"content": f"<think>b</think>{ANSWER}", "reasoning": "hidden"}, f"<think>b</think>{ANSWER}", None),
        ({"content": ANSWER, "reasoning_content": None, "reasoning": ""}, ANSWER, None),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", None),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}, {"text": ANSWER}]},
            ANSWER,
            f"<think>a</think>{ANSWER}",
        ),
    ],
)
def test_thinking_that_a_server_took_out_of_the_text_is_not_lost(message, text, whole):
    reply = reading(**message)
    assert reply.text == text
    assert reply.whole == (text if whole is None else whole)


def test_a_refusal_is_a_withheld_answer_in_the_servers_words():
    reply = reading(content=None, refusal="I cannot help with that.")
    assert (reply.text, reply.finish_reason) == ("I cannot help with that.", "content_filter")


def test_an_event_stream_that_nobody_asked_for_is_read():
    pieces = [
        {"model": "m-1", "choices": [{"delta": {"role": "assistant", "content": "", "reasoning_content": "thin"}}]},
        {"choices": [{"delta": {"reasoning_content": "king"}}]},
        {"choices": [{"delta": {"content": "An "}}]},
        {"choices": [{"delta": {"content": "answer"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]
    lines = [": a comment", *(f"data: {json.dumps(piece)}" for piece in pieces), "data: [DONE]", ""]
    reply = read_completion("\n\n".join(lines).encode())
    assert (reply.text, reply.reasoning, reply.finish_reason, reply.model) == ("An answer", "thinking", "stop", "m-1")
    assert (reply.prompt_tokens, reply.completion_tokens) == (3, 4)
    with pytest.raises(ServerError, match="overloaded"):
        read_completion(b'data: {"error": {"message": "overloaded"}}\n\n')


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": {"message": "no pictures", "code": 404}}, "no pictures"),
        ({"error": "no pictures"}, "no pictures"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "too hot"}}},
         "Provider returned error: too hot"),
        ({"detail": "the request is larger than 1 MB"}, "the request is larger than 1 MB"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "unknown field"}, {"loc": ["body", "n"], "msg": "too many"}]},
         "body.seed: unknown field; body.n: too many"),
        ({"detail": {"message": "busy"}}, "busy"),
        ({"object": "error", "message": "no model", "code": 404}, "no model"),
        ([{"error": {"message": "quota of the project", "status": "RESOURCE_EXHAUSTED"}}], "quota of the project"),
        ({"errors": [{"msg": "one"}, {"msg": "two"}]}, "one; two"),
        ({"what": 1}, '{"what": 1}'),
        (None, "null"),
    ],
)  # fmt: skip
def test_the_servers_own_sentence_is_found_wherever_it_stands(document, words):
    assert str(read_error(413, json.dumps(document).encode())) == words


def test_words_of_bodies_that_are_no_whole_json():
    assert str(read_error(500, b"upstream is gone")) == "upstream is gone"
    assert str(read_error(500, b"")) == "(an empty body)"
    cut = b'{"detail": [{"msg": "a \\"field\\" is missing", "input": "' + b"A" * 9000
    assert str(read_error(422, cut)) == 'a "field" is missing'
    page = b"<!doctype html><html><head><title>Bad\n gateway</title>"
    assert str(read_error(502, page)) == "a web page titled 'Bad gateway' instead of JSON"


@pytest.mark.parametrize("depth", [1, 50_000])
def test_nested_words_end(depth):
    body = b'{"error": ' * depth + b"1" + b"}" * depth
    assert str(read_error(500, body)).startswith('{"error": ')


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (Act(b'{"error": {"message": "No credit left", "code": "insufficient_quota"}}'), "top up.*No credit left"),
        (Act(b'{"error": {"message": "No credit left", "type": "insufficient_quota"}}', 429), "top up.*No credit left"),
        (Act(b'{"error": {"message": "No credit left", "type": "exceeded_current_quota_error"}}', 429),
         "top up.*No credit left"),
        (Act(b'{"error": {"message": "No credit left", "code": "QuotaExceeded", "type": "TooManyRequests"}}', 429),
         "top up.*No credit left"),
        (Act(b'{"error": {"message": "Overdue", "code": "AccountOverdueError", "type": "Forbidden"}}', 403),
         "top up.*Overdue"),
        (Act(b'{"code": "Arrearage", "message": "Access denied"}', 400), "top up.*Access denied"),
        (Act(b'{"error": {"message": "No endpoint takes pictures", "code": 404}}'),
         "HTTP 200 with error 404 for model 'm'.*No endpoint takes pictures"),
        (Act(b"<html><title>Log in</title>"), "no address of a chat server; check --base-url.*titled 'Log in'"),
        (Act(b"<html>", 405), "takes no chat requests; check --base-url"),
    ],
)  # fmt: skip
def test_hopeless_errors_stop_at_once_in_the_servers_words(act, message):
    server = ChatServer(lambda asked: act)
    (error,), _ = ask(server)
    assert isinstance(error, DataError)
    assert re.search(message, str(error))
    assert len(server.asked) == 1


def test_a_web_page_amid_good_answers_is_asked_again():
    server = ChatServer(script(Act(), Act(b"<html>maintenance</html>")))

    async def run(url):
        async with Chat(Request(model="m"), base_url=url, api_key=None) as it:
            return [(await it.ask(MESSAGES, seed=0)).text for _ in range(2)]

    with server.serve() as url:
        assert asyncio.run(run(url)) == [TEXT, TEXT]
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [413, 422])
def test_a_refused_request_says_the_servers_detail(status):
    (error,), _ = ask(ChatServer(lambda asked: Act(b'{"detail": "larger than 1 MB"}', status)))
    assert isinstance(error, GaveUp)
    assert str(error) == f"HTTP {status}: larger than 1 MB"


def test_a_content_filter_that_answers_with_an_error_withholds_one_answer():
    body = b'{"error": {"message": "The prompt was filtered", "code": "content_filter"}}'
    (reply,), _ = ask(ChatServer(lambda asked: Act(body, 400)))
    assert (reply.text, reply.finish_reason) == ("The prompt was filtered", "content_filter")


REFUSALS = {
    "max_tokens": b'{"error": {"message": "Unsupported parameter: \'max_tokens\' is not supported with this model. Use '
    b'\'max_completion_tokens\' instead.", "param": "max_tokens", "code": "unsupported_parameter"}}',
    "seed": b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "unknown field"}]}',
    "temperature": b'{"error": {"message": "Unsupported value: \'temperature\' does not support 0.7 with this model. '
    b'Only the default (1) value is supported.", "param": "temperature", "code": "unsupported_value"}}',
}


def test_fields_that_a_model_refuses_are_left_out_for_the_rest_of_the_run(caplog):
    def strict(asked):
        refused = next((name for name in REFUSALS if name in asked.body), None)
        return Act(REFUSALS[refused], 422 if refused == "seed" else 400) if refused else Act()

    server = ChatServer(strict)
    replies, client = ask(server, count=6, max_tokens=77, max_retries=0)
    assert [reply.text for reply in replies] == [TEXT] * 6
    assert client.problems == {}
    assert server.asked[-1].body == {"model": "m", "messages": MESSAGES, "max_completion_tokens": 77}
    told = [record.getMessage() for record in caplog.records if record.name == "veason.chat"]
    assert len(told) == 3  # once each, though six requests were refused
    assert "refuses max_tokens" in told[0]
    assert "max_completion_tokens is sent instead" in told[0]


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "max_tokens is too large: 9999. This model supports at most 4096 tokens"}}',
        b'{"error": {"message": "temperature must be between 0 and 2", "param": "temperature"}}',
        b'{"error": {"message": "unsupported picture", "param": "messages.1.content"}}',
        b'{"error": {"message": "unknown field top_p", "param": "top_p"}}',
    ],
)
def test_a_value_that_is_wrong_is_no_refused_field(body):
    server = ChatServer(lambda asked: Act(body, 400))
    (error,), _ = ask(server)
    assert isinstance(error, GaveUp)
    assert len(server.asked) == 1


def test_a_field_that_is_refused_for_ever_is_left_out_once():
    server = ChatServer(lambda asked: Act(REFUSALS["max_tokens"], 400))
    (error,), _ = ask(server)
    assert isinstance(error, GaveUp)
    assert "Use 'max_completion_tokens' instead" in str(error)
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [200, 400, 500])
def test_bodies_without_end_are_left_unread(status):
    server = ChatServer(lambda asked: Act(b" " * 65536, status, ending="endless"))
    tracemalloc.start()
    try:
        (error,), _ = ask(server, max_retries=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, GaveUp)
    assert server.sent < 64 << 20
    assert peak < 64 << 20


@pytest.mark.parametrize(("status", "message"), [(200, "longer than 4194304 bytes"), (500, "HTTP 500: the end")])
def test_a_compressed_body_is_never_unpacked_whole(status, message):
    text = b'{"error": {"message": "the end"}, "x": "'
    bomb = gzip.compress(text + b" " * (400 << 20), compresslevel=6)
    act = Act(bomb, status, headers={"content-encoding": "gzip"})
    tracemalloc.start()
    try:
        (error,), _ = ask(ChatServer(lambda asked: act), max_retries=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(error)
    assert peak < 64 << 20


def test_an_error_that_never_ends_is_told_with_what_came(monkeypatch):
    monkeypatch.setattr(chat, "ERROR_SECONDS", 0.3)

    async def run():
        async def talk(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 400 X\r\ncontent-length: 9999\r\n\r\n" + b'{"error"')
            await asyncio.sleep(60)

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with Chat(Request(model="m"), base_url=url, api_key=None) as it:
            with pytest.raises(GaveUp, match="HTTP 400"):
                await it.ask(MESSAGES, seed=0)
        server.close()

    asyncio.run(run())


def test_compressed_answers_are_read():
    act = Act(gzip.compress(completion()), headers={"content-encoding": "gzip"})
    (reply,), _ = ask(ChatServer(lambda asked: act))
    assert reply.text == TEXT


def members(*parts: bytes) -> bytes:
    return b"".join(map(gzip.compress, parts))


@pytest.mark.parametrize(
    "body",
    [
        members(completion()[:30], completion()[30:]),
        members(b"", completion()[:30], b"", completion()[30:], b""),
        members(completion()[:30]) + b"\0" * 100 + members(completion()[30:]) + b"\0" * 7,  # padded
        members(*(bytes([byte]) for byte in completion())),
    ],
)
def test_a_gzip_body_may_have_several_members(body):
    """RFC 1952, 2.2: a gzip file is a series of members, one after another."""
    (reply,), client = ask(ChatServer(lambda asked: Act(body, headers={"content-encoding": "gzip"})))
    assert reply.text == TEXT
    assert not client.problems


@pytest.mark.parametrize("behind", [b"behind", b"\n", b"\0\0\n"])
@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bytes_behind_a_compressed_body_are_ignored(encoding, pack, behind):
    act = Act(pack(completion()) + behind, headers={"content-encoding": encoding})
    (reply,), client = ask(ChatServer(lambda asked: act))
    assert reply.text == TEXT
    assert not client.problems


def test_a_second_member_that_is_damaged_is_refused():
    act = Act(members(completion()) + b"\x1f\x8bdamaged", headers={"content-encoding": "gzip"})
    (error,), _ = ask(ChatServer(lambda asked: act), max_retries=0)
    assert isinstance(error, GaveUp)
    assert "cannot be unpacked" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        members(*[b" " * (1 << 20)] * 5),  # five megabytes in all
        members(b"") * 250_000,  # five megabytes that unpack to nothing
    ],
)
def test_members_are_bounded_together(body):
    act = Act(body, headers={"content-encoding": "gzip"})
    tracemalloc.start()
    try:
        (error,), _ = ask(ChatServer(lambda asked: act), max_retries=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than 4194304 bytes" in str(error)
    assert peak < 64 << 20


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_goes_to_the_host_of_a_redirect(status):
    there = ChatServer()
    with there.serve() as elsewhere:
        location = elsewhere.replace("127.0.0.1", "localhost") + "/chat/completions?key=sk-secret-0123456789"
        server = ChatServer(lambda asked: Act(b"", status, headers={"location": location}))
        (error,), _ = ask(server)
    assert isinstance(error, DataError)
    assert "a redirect to http://localhost:" in str(error)
    assert "would take the prompts and pictures from 127.0.0.1 along" in str(error)
    assert "give it as --base-url" in str(error)
    assert "secret" not in str(error)
    assert there.asked == []


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_on_the_same_server_that_makes_a_get_of_it_is_not_followed(status):
    server = ChatServer(lambda asked: Act(b"", status, headers={"location": "/v2/chat/completions"}))
    (error,), _ = ask(server)
    assert isinstance(error, DataError)
    assert re.search(r"redirect to http://127.0.0.1:\d+/v2; .*would make another kind of request of it; ", str(error))
    assert len(server.asked) == 1


def test_a_redirect_on_the_same_server_is_followed_with_the_request():
    server = ChatServer(script(Act(b"", 307, headers={"location": "/v1/chat/completions/"})))
    (reply,), _ = ask(server)
    assert reply.text == TEXT
    assert server.asked[0].body == server.asked[1].body
    circle = ChatServer(lambda asked: Act(b"", 308, headers={"location": "/v1/chat/completions"}))
    (error,), _ = ask(circle, max_retries=0)
    assert "redirects again and again" in str(error)
    assert len(circle.asked) == 3


KEY = "sk-abcdefghijklmnopqrstuvwx"


def test_white_space_around_a_key_is_no_part_of_it():
    server = ChatServer()
    ask(server, api_key=f" {KEY}\r\n")
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-abc\ndefghijkl", "sk-abcdefghijklé", "sk-abc\x00defghijkl", "“sk-abcdefghijkl”"])
def test_a_key_that_no_header_can_hold_is_refused_at_once_and_not_shown(key):
    with pytest.raises(DataError, match=r"^MY_KEY: holds") as error:
        Chat(Request(model="m"), base_url="http://127.0.0.1:9/v1", api_key=key, key_name="MY_KEY")
    for start in range(len(key) - 3):
        assert key[start : start + 4] not in str(error.value)


def test_an_answer_that_repeats_the_key_is_kept_without_it():
    (reply,), _ = ask(ChatServer(lambda asked: Act(completion(f"you sent {KEY}, thanks"))), api_key=KEY)
    assert reply.text == "you sent ***, thanks"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"it begins {KEY[:12]}...", "it begins ***..."),
        (f"it ends ...{KEY[-15:]}", "it ends ...***"),
        (f"in two: {KEY[:13]} {KEY[13:]}", "in two: *** ***"),
        (f"a few letters: {KEY[3:14]}", f"a few letters: {KEY[3:14]}"),  # 11 of them tell nothing
    ],
)
def test_an_answer_that_repeats_a_part_of_the_key_is_kept_without_it(text, kept):
    (reply,), _ = ask(ChatServer(lambda asked: Act(completion(text))), api_key=KEY)
    assert reply.text == kept


def test_words_of_an_answer_that_a_user_name_shares_stay():
    """A key is drawn at random; the user and the password of an address may be words."""

    async def run(url):
        url = url.replace("http://", "http://videosegmentation:hunter2hunter2@")
        async with Chat(Request(model="m"), base_url=url, api_key=KEY) as it:
            return await it.ask(MESSAGES, seed=0)

    said = "the segmentation of hunter2hunter2"
    with ChatServer(lambda asked: Act(completion(said))).serve() as url:
        assert asyncio.run(run(url)).text == "the segmentation of ***"


def test_a_key_given_as_the_name_of_its_variable_is_not_shown():
    with pytest.raises(DataError, match="not the key itself") as error:
        Chat(Request(model="m"), base_url="https://teacher.example/v1", api_key=None, key_name=KEY)
    assert "abcdef" not in str(error.value)


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_no_part_of_a_key_in_any_message(status):
    """Whatever a server quotes: the whole, the head, the tail, a password of the address, a value of its query."""
    quoted = f"{KEY} {KEY[:9]}... ...{KEY[-9:]} {KEY[:5]}****{KEY[-4:]} hunter2hunter2 querysecret \x1b[31mred"
    body = json.dumps({"error": {"message": quoted}}).encode()

    async def run(url):
        url = url.replace("http://", "http://user:hunter2hunter2@") + "?key=querysecret"
        async with Chat(Request(model="m", max_retries=0), base_url=url, api_key=KEY) as it:
            return await asyncio.gather(it.ask(MESSAGES, seed=0), return_exceptions=True)

    with ChatServer(lambda asked: Act(body, status)).serve() as url:
        (error,) = asyncio.run(run(url))
    for part in (KEY[:5], KEY[-4:], KEY[5:12], "hunter2", "querysecret", "\x1b"):
        assert part not in str(error) + repr(error)
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:pw123@host/v1?key=abc", "https://host/v1"),
        ("me:pw123@host/v1", "host/v1"),
        ("http://me:pw123@[::1/v1", "[::1/v1"),
        ("host:8000", "host:8000"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address, shown):
    assert server_access.public_url(address) == shown


def test_the_query_of_an_address_goes_along_and_the_path_is_kept():
    server = ChatServer()

    async def run(url):
        for address in (f"{url}?api-version=7", f"{url}/chat/completions", f" {url}/ "):
            async with Chat(Request(model="m"), base_url=address, api_key=None) as it:
                await it.ask(MESSAGES, seed=0)

    with server.serve() as url:
        asyncio.run(run(url))
    paths = [asked.path for asked in server.asked]
    assert paths == ["/v1/chat/completions?api-version=7", "/v1/chat/completions", "/v1/chat/completions"]


@pytest.fixture
def remote(monkeypatch):
    """An environment without proxies and certificates, and a way to open a client for a server elsewhere."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT"):
            monkeypatch.delenv(name)
    return lambda url="https://teacher.example/v1": Chat(Request(model="m"), base_url=url, api_key=KEY)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ALL_PROXY", "socks5://u:hunter2@127.0.0.1:1080",
         r"^ALL_PROXY=socks5://127\.0\.0\.1:1080: .*pip install socksio.*unset ALL_PROXY"),
        ("https_proxy", "http://u:hunter2@proxy:abc", r"^https_proxy=.*Invalid port"),
        ("HTTP_PROXY", "ftp://proxy:1", r"^HTTP_PROXY=ftp://proxy:1: no proxy's address"),
        ("HTTPS_PROXY", "http://", r"^HTTPS_PROXY=.*names no host"),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_named_with_its_variable(remote, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(DataError, match=message) as error:
        remote()
    assert "hunter2" not in str(error.value)
    remote("http://127.0.0.1:9/v1")  # this machine is asked without a proxy
    monkeypatch.setenv("NO_PROXY", "other.example, .teacher.example")
    remote()  # and so is a host that is named


def test_a_proxy_that_wants_a_password_stops_at_once(remote, monkeypatch):
    asked = []

    async def refuse(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def run():
        proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
        async with remote() as it:
            with pytest.raises(DataError, match="the proxy wants a user and a password") as error:
                await it.ask(MESSAGES, seed=0)
        proxy.close()
        return str(error.value)

    assert "hunter2" not in asyncio.run(run())
    assert len(asked) == 1
    assert KEY.encode() not in asked[0]


def test_certificates_that_cannot_be_read_are_named_with_their_variable(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/file")
    for url in ("https://teacher.example/v1", "https://localhost:9/v1"):
        with pytest.raises(DataError, match=r"^SSL_CERT_FILE=/no/file: no certificates can be read"):
            remote(url)
    remote("http://127.0.0.1:9/v1")  # nobody's certificate is checked
    (tmp_path / "empty.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(DataError, match=r"^SSL_CERT_FILE=.*empty\.pem: no certificates"):
        remote()
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", "/no/folder")
    with pytest.raises(DataError, match=r"^SSL_CERT_DIR=/no/folder: no certificates.*no such folder"):
        remote()


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context for ``localhost``, signed by itself; the certificate is ``folder/cert.pem``."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    )
    made = made.add_extension(names, False).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_a_certificate_of_the_environment_holds_for_this_machine_too(remote, monkeypatch, tmp_path):
    context = certificate(tmp_path)

    async def run(url):
        async with Chat(Request(model="m", max_retries=3), base_url=url, api_key=None) as it:
            return await asyncio.gather(it.ask(MESSAGES, seed=0), return_exceptions=True)

    with ChatServer().serve(context) as url:
        (error,) = asyncio.run(run(url))
        assert isinstance(error, DataError)
        assert "is not trusted" in str(error)
        assert "SSL_CERT_FILE" in str(error)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
        (reply,) = asyncio.run(run(url))
    assert reply.text == TEXT


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://teacher.example/v1", "set OPENAI_API_KEY"),
        ("http://[::1/v1", "no http"),
        ("http://127.0.0.1:99999/v1", "no http"),
        ("http://127.0.0.1:x/v1", "no http"),
        ("https://user:pw@teacher.example/v1", r"^https://teacher\.example/v1 wants"),
        ("127.0.0.1:8000", "no http"),
        ("ftp://127.0.0.1/v1", "no http"),
    ],
)
def test_addresses_that_cannot_be_asked(url, message):
    with pytest.raises(DataError, match=message):
        server_access.check_access(url, None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0"])
def test_this_machine_needs_no_key(host):
    assert server_access.check_access(f"http://{host}:8000/v1", None)
