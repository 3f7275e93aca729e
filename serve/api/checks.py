"""What depends on settings, checked before any work is done; every error names its field, the limit and what to do."""

from __future__ import annotations

import re
import secrets

from serve.api.generation import MAX_SEED, Quality
from serve.errors import Fragment, InvalidRequest, ModelNotFound, PromptTooLong
from serve.settings import LimitSettings, Settings
from serve.tokens import PromptTokens

MIN_SIDE_PX = 64
MAX_ASPECT = 3

_SIZE = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def model(name: str | None, settings: Settings) -> str:
    """The served name, which every alias stands for."""
    if name is not None and name not in settings.model_names:
        there = ", ".join(settings.model_names)
        raise ModelNotFound(f"no model {name[:64]!r}", param="model", hint=f"leave model out or send one of: {there}")
    return settings.served_model_name


def size(text: str | None, settings: Settings) -> tuple[int, int]:
    """Width and height in pixels."""
    if text is None or text == "auto":
        return settings.default_px, settings.default_px
    match = _SIZE.fullmatch(text)
    wrong = _wrong_sides(int(match[1]), int(match[2]), settings.cap_px) if match else "not WIDTHxHEIGHT"
    if match and not wrong:
        return int(match[1]), int(match[2])
    raise InvalidRequest(
        f"size {text[:32]!r}: {wrong}",
        param="size",
        hint=f'send size: "auto" for {settings.default_px}x{settings.default_px}, or WIDTHxHEIGHT with both sides '
        f"a multiple of 16 from {MIN_SIDE_PX} to {settings.cap_px} and neither over {MAX_ASPECT} times the other",
    )


def _wrong_sides(width: int, height: int, cap_px: int) -> str | None:
    short, long = sorted((width, height))
    if long > cap_px:
        return f"{long} is over this model's {cap_px} pixels"
    if short < MIN_SIDE_PX:
        return f"{short} is under {MIN_SIDE_PX} pixels"
    if short % 16 or long % 16:
        return "both sides must be multiples of 16"
    if long > MAX_ASPECT * short:
        return f"the ratio of the sides is over {MAX_ASPECT}:1"
    return None


def text(param: str, prompt: str, limits: LimitSettings, tokens: PromptTokens) -> int:
    """The number of tokens, chat template included."""
    excess = len(prompt) - limits.prompt_characters
    if excess > 0:
        raise PromptTooLong(
            f"{param} has {len(prompt)} characters, the limit is {limits.prompt_characters}",
            param=param,
            hint=f"shorten it by {excess} characters",
            fragment=Fragment(limits.prompt_characters, len(prompt), prompt[limits.prompt_characters :]),
        )
    return tokens.check(prompt, limits.prompt_tokens, param)


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
