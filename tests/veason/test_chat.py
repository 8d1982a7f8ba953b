"""One answer from a server in any weather: retries, waits, limits, nonsense."""

import asyncio
import email.utils
import json
import time

import pytest
from chat_server import TEXT, Act, ChatServer, completion

from veason import chat
from veason.chat import Chat, GaveUp, Pace, Request, retry_after
from veason.completion import Malformed, read_completion
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
        (Act(body=b'{"error": {"message": "overloaded"}}'), "malformed"),
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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://teacher.example/v1", "set OPENAI_API_KEY"),
        ("https://user:pw@teacher.example/v1", r"^https://teacher\.example/v1 wants"),
        ("127.0.0.1:8000", "no http"),
        ("ftp://127.0.0.1/v1", "no http"),
    ],
)
def test_addresses_that_cannot_be_asked(url, message):
    with pytest.raises(DataError, match=message):
        chat.check_access(url, None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_needs_no_key(host):
    assert chat.check_access(f"http://{host}:8000/v1", None)
