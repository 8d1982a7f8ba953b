"""Builds the tiny policy's tokenizer: a token for each known word and each integer to 999, bytes for everything else.

It is a byte-level BPE without merges: a piece of text that is in the vocabulary is one token, any other becomes its
bytes, so every text can be restored exactly. The special tokens are those of Qwen2.5-VL.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from demo.expressions import NUMBERS
from demo.scene import COLOURS, KINDS
from veason import prompt

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

INTEGERS = 1000
"""Each integer from 0 to one below this is a token."""

TAGS = r"</?(?:think|answer)>"
KEYS = r"\{\"keyframe_timestamp\": |, \"bbox_2d_list\": "
PIECES = rf"{TAGS}|{KEYS}|, (?=\d)| ?\p{{L}}+|\d{{1,3}}| ?[^\s\p{{L}}\d<>\[\]{{}}]+|\[+|\]+| ?[<>{{}}]|\s"
"""Pieces that a text is cut into before the vocabulary is looked up: the reply format's tags and keys whole, the comma
between numbers, words, digits, signs, single spaces."""

PHRASES = """
the shape shapes that is are which of one two three all except and both another an a
growing grows grow shrinking shrinks shrink moving moves move to left right upwards downwards does do not still
leftmost rightmost topmost lowest largest smallest fastest on at far top bottom picture beginning end in
leaves leave comes come into later first last the hidden hides hide by front behind cross each other fills whole
frame frames id: size: sizes: box: target: target is seen best largest there so no none it its visible area keyframe
The video shows This I see and I answer. It is the, same as They Sizes Frame
The target keyframe At middle shape 0:12, 3:15.
<think> </think><answer>{"keyframe_timestamp": 0, "bbox_2d_list": [[0, 0, 0, 0], [0, 0, 0, 0]]}</answer> [[0]]
(0s) [[ ]] ]]} [ ] . .</ ." ?" ". ?". ? ,
"""
"""Words and signs of the world's expressions, of short chains of thought, and of the reply format."""

CHAT_TEMPLATE = """\
{%- if messages and messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' }}
{%- if turn.content is string -%}
{{ turn.content }}
{%- else -%}
{%- for part in turn.content -%}
{%- if part.type == 'text' -%}
{{ part.text }}
{%- elif part.type in ('image', 'image_url') -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
"""The turns of a Qwen chat, each between two marks; an image is a pad between vision marks."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer with its chat template; it is the same every time."""
    cut = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    cutter = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    texts = [f"system\nuser\nassistant\n{prompt.SYSTEM}\n", re.sub(r"\$\w+", " ", prompt.load_template())]
    texts += PHRASES.split("\n")
    for word in [*COLOURS, *KINDS, *(f"{kind}s" for kind in KINDS), *NUMBERS.values(), *PHRASES.split()]:
        texts += [word, f" {word}"]  # at the start of a text or after a bracket, and elsewhere
    # bytes first, then integers, then the pieces of the known texts in the order in which they come
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(str(number) for number in range(INTEGERS))]
    pieces += [piece for text in texts for piece, _ in cutter.pre_tokenize_str(text)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cutter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL if token not in (TURN_END, END_OF_TEXT)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
