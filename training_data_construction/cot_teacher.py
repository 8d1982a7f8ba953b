"""The teacher: a chat server (`veason.chat`) whose answers are kept without the white space around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from veason.chat import Chat
from veason.completion import Completion


class Teacher(Chat):
    """Asks a server for chains of thought."""

    async def ask(self, messages: list[dict[str, Any]], *, seed: int) -> Completion:
        reply = await super().ask(messages, seed=seed)
        return replace(reply, text=reply.text.strip())
