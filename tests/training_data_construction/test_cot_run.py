"""The teacher's own: the client itself is tested in tests/veason/test_chat.py."""

import asyncio

from chat_server import Act, ChatServer, completion

from training_data_construction.cot_run import Teacher
from veason.chat import Request


def test_answers_come_without_the_white_space_around_them():
    async def ask(url):
        async with Teacher(Request(model="m"), base_url=url, api_key=None) as teacher:
            return await teacher.ask([], seed=0)

    with ChatServer(lambda asked: Act(completion("  hello\n"))).serve() as url:
        assert asyncio.run(ask(url)).text == "hello"
