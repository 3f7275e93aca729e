"""What depends on settings, checked before any work is done; every error names its field, the limit and what to do."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from serve import sizes
from serve.api.generation import MAX_SEED, Quality
from serve.errors import Fragment, InvalidRequest, ModelNotFound, PromptTooLong
from serve.presets.choice import Choice, Wrapped
from serve.presets.file import Alias
from serve.settings import LimitSettings, Settings
from serve.sizes import MAX_ASPECT, MIN_SIDE_PX, WrongSize, parse_size
from serve.tokens import PromptTokens


def model(name: str | None, settings: Settings, aliases: Mapping[str, Alias]) -> str:
    """The served name, which every alias stands for: those of the settings, and those of the presets."""
    names = model_names(settings, aliases)
    if name is not None and name not in names:
        there = ", ".join(names)
        raise ModelNotFound(f"no model {name[:64]!r}", param="model", hint=f"leave model out or send one of: {there}")
    return settings.served_model_name if name is None else names[name]


def model_names(settings: Settings, aliases: Mapping[str, Alias]) -> dict[str, str]:
    """The model behind each name: the served ones first, then what other names they have."""
    named = {name: model for model in settings.served for name in settings.of(model).model_names}
    others = {alias.name: alias.model or settings.served_model_name for alias in aliases.values()}
    return (
        {name: name for name in settings.served} | named | {name: others[name] for name in others if name not in named}
    )


def size(text: str | None, settings: Settings) -> tuple[int, int]:
    """Width and height in pixels."""
    if text is None or text == "auto":
        return settings.default_px, settings.default_px
    try:
        return parse_size(text, settings.cap_px)
    except WrongSize as error:
        raise InvalidRequest(
            f"size {text[:32]!r}: {error.reason}",
            param="size",
            hint=f'send size: "auto" for {settings.default_px}x{settings.default_px}, or WIDTHxHEIGHT with both sides '
            f"a multiple of 16 from {MIN_SIDE_PX} to {settings.cap_px} and neither over {MAX_ASPECT} times the other",
        ) from None


def own_size(picture: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """Width and height to draw a picture of this width and height in, where none are asked for."""
    try:
        return sizes.own_size(*picture, settings.cap_px)
    except WrongSize as error:
        raise InvalidRequest(
            f"image is {picture[0]}x{picture[1]}: {error.reason}", param="image", hint="crop it, or send a size"
        ) from None


def wrapped_text(prompt: Wrapped, choice: Choice, limits: LimitSettings, tokens: PromptTokens) -> int:
    """The number of tokens of a prompt with the words of its preset. Errors speak of what the user wrote."""
    own = prompt.text[prompt.start : prompt.end]
    _characters("prompt", own, limits)
    try:
        return tokens.check(prompt.text, limits.prompt_tokens, own=slice(prompt.start, prompt.end))
    except PromptTooLong as error:
        message = f"{error.message}, the words of {choice} included" if choice else error.message
        fragment = prompt.own(error.fragment)
        raise PromptTooLong(message, param="prompt", hint=error.hint, fragment=fragment) from None


def text(param: str, prompt: str, limits: LimitSettings, tokens: PromptTokens) -> int:
    """The number of tokens, chat template included."""
    _characters(param, prompt, limits)
    return tokens.check(prompt, limits.prompt_tokens, param)


def _characters(param: str, prompt: str, limits: LimitSettings) -> None:
    excess = len(prompt) - limits.prompt_characters
    if excess > 0:
        raise PromptTooLong(
            f"{param} has {len(prompt)} characters, the limit is {limits.prompt_characters}",
            param=param,
            hint=f"shorten it by {excess} characters",
            fragment=Fragment(limits.prompt_characters, len(prompt), prompt[limits.prompt_characters :]),
        )


def not_blank(param: str, prompt: str) -> None:
    if not prompt.strip():
        blank = Fragment(0, len(prompt), prompt)
        raise InvalidRequest(f"{param} is blank", param=param, hint="say what the picture shows", fragment=blank)


def steps(asked: int | None, quality: Quality | None, settings: Settings) -> int:
    """An explicit number wins over a named quality, which wins over the default."""
    if asked is None:
        return settings.quality_steps.get(quality, settings.default_steps) if quality else settings.default_steps
    if asked > settings.limits.max_steps:
        raise InvalidRequest(
            f"num_inference_steps is {asked}, the limit is {settings.limits.max_steps}",
            param="num_inference_steps",
            hint=f"send 1 to {settings.limits.max_steps}; left out it is {settings.default_steps}",
        )
    return asked


def seed(asked: int | None, n: int) -> int:
    """The first of n seeds; a random one where none is asked for."""
    last = MAX_SEED - (n - 1)
    if asked is None:
        return secrets.randbelow(last + 1)
    if asked > last:
        raise InvalidRequest(f"seed {asked} + {n - 1} is over 2^53-1", param="seed", hint=f"send at most {last}")
    return asked
