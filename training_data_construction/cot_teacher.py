"""The teacher: a chat server (`veason.chat`) whose own thinking is left out of its answers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from veason.chat import Chat
from veason.completion import Completion

_THOUGHT = re.compile(r".*</\s{0,9}think(?:ing)?\s{0,9}>", re.IGNORECASE | re.DOTALL)


class Teacher(Chat):
    """Asks a server for chains of thought."""

    async def ask(self, messages: list[dict[str, Any]], *, seed: int) -> Completion:
        """The teacher's answer without the white space around it.

        Whatever stands before the last ``</think>`` is how the teacher came to its answer: it goes to `reasoning`, as
        it does where the server has split it off. An answer that stands behind such a tag in the server's reasoning
        field is taken from there.
        """
        reply = await super().ask(messages, seed=seed)
        said = reply.text if reply.text.strip() else reply.reasoning
        if thought := _THOUGHT.match(said):
            return replace(reply, text=said[thought.end() :].strip(), reasoning=thought[0])
        return replace(reply, text=reply.text.strip())
