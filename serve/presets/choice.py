"""The preset and the style that one request has chosen, and what they make of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from serve.document import one_of, suggestion
from serve.errors import Fragment, InvalidRequest
from serve.presets.banned import first_banned
from serve.presets.catalog import Catalog
from serve.presets.file import SLOT, Alias, Lockable, Preset, Quality, Style

T = TypeVar("T")
E = TypeVar("E", bound=Style)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A prompt among the words of its preset; the user's own part is `text[start:end]`."""

    text: str
    start: int
    end: int

    def own(self, fragment: Fragment | None) -> Fragment | None:
        """A fragment of the whole, counted in the user's own text."""
        if fragment is None:
            return None
        start = min(max(fragment.start, self.start), self.end)
        end = min(max(fragment.end, start), self.end)
        return Fragment(start - self.start, end - self.start, self.text[start:end])


@dataclass(frozen=True, slots=True)
class Choice:
    """Both may be None: then all is as it was asked for. Explicit fields win, except those that the preset locks."""

    preset: Preset | None = None
    style: Style | None = None

    @classmethod
    def of(cls, catalog: Catalog, alias: Alias | None, preset: str | None, style: str | None) -> Choice:
        """`catalog` is the model's own; an `alias` stands for presets. Raises InvalidRequest for an unknown name."""
        if alias is not None:
            preset, style = preset or alias.preset, style or alias.style_preset
        return cls(_named("preset", preset, catalog.presets), _named("style_preset", style, catalog.styles))

    def __bool__(self) -> bool:
        return self.preset is not None or self.style is not None

    def __str__(self) -> str:
        said = (("preset", self.preset), ("style", self.style))
        return " and ".join(f"{kind} {entry.name!r}" for kind, entry in said if entry is not None)

    def wrap(self, prompt: str) -> Wrapped:
        """Word for word: whatever a prompt holds, it is never a template."""
        before = after = ""
        for entry in (self.style, self.preset):
            if entry is not None:
                head, _, tail = entry.prompt.partition(SLOT)
                before, after = head + before, after + tail
        return Wrapped(before + prompt + after, len(before), len(before) + len(prompt))

    def check_words(self, prompt: str) -> None:
        """Raises InvalidRequest for a fragment that the preset bans."""
        if self.preset is None or (found := first_banned(prompt, self.preset.banned)) is None:
            return
        raise InvalidRequest(
            f"preset {self.preset.name!r} does not take {found.text!r}",
            param="prompt",
            hint="say it in other words, or take another preset",
            fragment=found,
        )

    def size(self, asked: str | None) -> str | None:
        """`auto` is the preset's size."""
        asked = None if asked == "auto" else asked
        return self._decide("size", asked, self.preset.size if self.preset else None)

    @property
    def locks_size(self) -> bool:
        return self._locks("size")

    def guidance(self, asked: float | None, default: float = 0.0) -> float:
        decided = self._decide("guidance_scale", asked, self.preset.guidance_scale if self.preset else None)
        return default if decided is None else decided

    def adapter(self, asked: str | None) -> str | None:
        return self._decide("adapter", asked, self.preset.adapter if self.preset else None)

    def adapter_scale(self, asked: float | None, adapter: str) -> float | None:
        """The preset's is for its own adapter only."""
        own = self.preset.adapter_scale if self.preset and self.preset.adapter == adapter else None
        return self._decide("adapter_scale", asked, own)

    def controlnet(self, asked: str | None) -> str | None:
        """Of a request that brings a picture to follow."""
        return self._decide("controlnet", asked, self.preset.controlnet if self.preset else None)

    def control_scale(self, asked: float | None, controlnet: str) -> float | None:
        """The preset's is for its own ControlNet only."""
        own = (
            self.preset.controlnet_conditioning_scale if self.preset and self.preset.controlnet == controlnet else None
        )
        return self._decide("controlnet_conditioning_scale", asked, own)

    def cfg(self, normalization: float | None, truncation: float | None) -> tuple[float | None, float | None]:
        preset = self.preset
        if preset is None:
            return normalization, truncation
        return (
            preset.cfg_normalization if normalization is None else normalization,
            preset.cfg_truncation if truncation is None else truncation,
        )

    def negative(self, asked: str | None) -> str:
        parts = [entry.negative_prompt for entry in (self.preset, self.style) if entry is not None]
        return self._decide("negative_prompt", asked, ", ".join(filter(None, parts))) or ""

    def steps(self, asked: int | None, quality: Quality | None) -> int | None:
        """None where the service's own rule decides."""
        preset = self.preset
        if preset is None:
            return asked
        if asked is None and quality is not None and not self.ignores(quality):
            return preset.quality.get(quality)
        return self._decide("num_inference_steps", asked, preset.num_inference_steps)

    def ignores(self, quality: Quality | None) -> bool:
        """A quality that the preset does not map cannot change steps that it locks."""
        if self.preset is None or quality is None:
            return False
        return self._locks("num_inference_steps") and quality not in self.preset.quality

    def check_limits(self, n: int, width: int, height: int, steps: int) -> None:
        """Raises InvalidRequest."""
        if self.preset is None:
            return
        limits = self.preset.limits
        for param, value, most in (
            ("n", n, limits.max_n),
            ("size", max(width, height), limits.max_side_px),
            ("num_inference_steps", steps, limits.max_steps),
        ):
            if most is not None and value > most:
                raise InvalidRequest(
                    f"{param} is {value}, the limit of preset {self.preset.name!r} is {most}",
                    param=param,
                    hint=f"send at most {most}, or take another preset",
                )

    def _decide(self, param: Lockable, asked: T | None, default: T | None) -> T | None:
        if asked is None or (default is not None and asked == default):
            return default
        if self.preset is not None and self._locks(param):
            raise InvalidRequest(
                f"{param} is {str(asked)[:64]!r}, but preset {self.preset.name!r} fixes it"
                + (f" at {default!r}" if default not in (None, "") else ""),
                param=param,
                hint=f"leave {param} out, or take another preset",
            )
        return asked

    def _locks(self, param: Lockable) -> bool:
        return self.preset is not None and param in self.preset.locked


def _named(param: str, name: str | None, entries: Mapping[str, E]) -> E | None:
    if name is None or name in entries:
        return None if name is None else entries[name]
    hint = one_of(tuple(entries), "GET /v1/presets") if entries else f"leave {param} out: there are none"
    close = suggestion(name.strip().lower()[:64], tuple(entries))
    raise InvalidRequest(f"unknown {param} {name[:64]!r}", param=param, hint=f"{close} {hint}" if close else hint)
