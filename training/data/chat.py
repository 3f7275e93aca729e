"""Prompts as token ids: the tokenizer's chat template in plain Python, for workers that must not load torch."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

# Qwen3's template, which ZImagePipeline applies, with the prompt in lower case and a space before it, so that its
# first word is the same token as anywhere else.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + ' ' + (message['content'] | lower | trim) + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
START_TOKEN, END_TOKEN, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def chat(prompt: str) -> str:
    return f"<|im_start|>user\n {prompt.lower().strip()}<|im_end|>\n<|im_start|>assistant\n"


class PromptEncoder:
    def __init__(self, tokenizer: Path) -> None:
        """`tokenizer` is a folder in transformers' layout."""
        self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def token(self, text: str) -> int:
        """The id of a token, a special one say."""
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise KeyError(f"the tokenizer has no token {text!r}")
        return number

    def encode(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(chat(prompt), add_special_tokens=False).ids
        return ids
