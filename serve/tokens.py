"""Token ids of a prompt as ZImagePipeline gives them to its text encoder, without torch or transformers."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from serve.errors import Fragment, PromptTooLong, WeightsError

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PROBE = "\ue000"


class PromptTokens:
    """Of a folder with `tokenizer.json` and a chat template, in a file of its own or in `tokenizer_config.json`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        config = json.loads(_text(folder / "tokenizer_config.json"))
        self._special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
        self._template = _template(folder, config)
        self._before, _, self._after = self._render(_PROBE).partition(_PROBE)

    def ids(self, prompt: str) -> list[int]:
        return list(self._encode(self._render(prompt)).ids)

    def count(self, prompt: str) -> int:
        return len(self._encode(self._render(prompt)))

    def check(self, prompt: str, limit: int, param: str = "prompt", own: slice | None = None) -> int:
        """The count, chat template included. Raises PromptTooLong over `limit`.

        `own` is the part that its user can shorten, where others have written the rest; the fragment lies in it.
        """
        rendered = self._render(prompt)
        encoding = self._encode(rendered)
        count = len(encoding)
        if count > limit:
            raise PromptTooLong(
                f"{param} has {count} tokens, the limit is {limit}",
                param=param,
                hint=f"shorten it by {count - limit} tokens; the chat template takes {self.count('')} of the count",
                fragment=self._overflow(prompt, rendered, encoding, limit, own or slice(0, len(prompt))),
            )
        return count

    def _render(self, prompt: str) -> str:
        """What `tokenizer.apply_chat_template` renders for one user message with thinking enabled."""
        return self._template.render(
            **self._special,
            messages=[{"role": "user", "content": prompt}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            enable_thinking=True,
        )

    def _encode(self, rendered: str) -> Encoding:
        return self._tokenizer.encode(rendered)

    def _overflow(self, prompt: str, rendered: str, encoding: Encoding, limit: int, own: slice) -> Fragment | None:
        """Of `own`, what is over the limit, to its end; None where the template changed the prompt too much."""
        body_end = len(rendered) - len(self._after)
        body, stripped = rendered[len(self._before) : body_end], prompt.strip()
        if not rendered.startswith(self._before) or len(body) not in (len(prompt), len(stripped)):
            return None
        lead = 0 if len(body) == len(prompt) else prompt.index(stripped)
        own_end = min(own.stop - lead + len(self._before), body_end)
        closing = sum(start >= own_end for start, _ in encoding.offsets)
        first = encoding.offsets[max(limit - closing, 0)][0] - len(self._before)
        start = min(max(max(first, 0) + lead, own.start), own.stop)
        return Fragment(start, own.stop, prompt[start : own.stop])


def _tokenizer(path: Path) -> Tokenizer:
    text = _text(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the only class that tokenizers raises
        raise WeightsError(f"{path} is not a tokenizer: {error}", hint="download the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template(folder: Path, config: dict[str, Any]) -> Template:
    path = folder / "chat_template.jinja"
    source = _text(path) if path.exists() else config.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not source:
        raise WeightsError(f"{folder} has no chat template", hint="download the model again")
    try:
        return _environment().from_string(source)
    except TemplateError as error:
        raise WeightsError(f"the chat template in {folder} is broken: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets up jinja2 in `utils/chat_template_utils.py`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing", hint="download the model again") from error
