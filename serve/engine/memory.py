"""Device memory: what a step and a decoding need, what can never fit, and what is reserved for work under way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from serve.engine.schedule import Shape
from serve.errors import TooLargeForMemory
from serve.step_times import interpolate

CAPTION_TOKENS = 32
Points = dict[int, float]  # bytes by size; replaced as a whole, so that other threads may read them

CONTROL_ROOM = 1.4  # of a step with a ControlNet, beside one without; union 2.1 was measured at 1.35
HEADROOM = 1.05  # of what was measured: allocators lose some to rounding and fragments


@dataclass(frozen=True, slots=True)
class Vram:
    """Bytes: in tensors, taken from the device by this process, and what it may take."""

    used: int
    reserved: int
    total: int


class Meter(Protocol):
    """The device's allocator. `peak` runs work and returns the bytes that it needed above those before it."""

    def read(self) -> Vram: ...

    def peak(self, work: Callable[[], object]) -> int: ...

    def free(self) -> None:
        """Gives back what is cached."""

    def alive(self) -> bool: ...


class CudaMeter:
    """`forget` lets go of what is recorded for speed."""

    def __init__(self, device: torch.device, limit: int | None, forget: Callable[[], None] = lambda: None) -> None:
        self._device = torch.device(device.type, torch.cuda.current_device())
        self._forget = forget
        total = torch.cuda.get_device_properties(self._device).total_memory
        self._total = total if limit is None else min(limit, total)
        if self._total < total:
            torch.cuda.set_per_process_memory_fraction(self._total / total, self._device)

    def read(self) -> Vram:
        return Vram(torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device), self._total)

    def peak(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def free(self) -> None:
        self._forget()
        torch.cuda.empty_cache()

    def alive(self) -> bool:
        """A CUDA error that is not about memory stays: every later call fails with it."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True


class Memory:
    """Measured at warm-up, reserved before each step. Without a meter, on a CPU, everything fits.

    Made when the weights are loaded: what is used then is always used. `set_aside` bytes are for what comes later.
    """

    def __init__(self, meter: Meter | None = None, set_aside: int = 0) -> None:
        self._meter = meter
        vram = self.vram()
        self.capacity = vram.total - vram.used - set_aside if vram else 0
        self._reserved = 0
        self._steps: Points = {}
        self._decodes: Points = {}
        self._encodes: Points = {}
        self._batched_below = math.inf

    def vram(self) -> Vram | None:
        return self._meter.read() if self._meter else None

    def free(self) -> None:
        if self._meter:
            self._meter.free()

    def alive(self) -> bool:
        return self._meter is None or self._meter.alive()

    def measure_step(self, shape: Shape, members: int, work: Callable[[], object]) -> bool:
        """Runs it; False when it does not fit."""
        size = _step_size(shape, members)
        needed = self._measure(work)
        self._steps = self._with(self._steps, size, needed)
        return needed is not None

    def measure_decode(self, pixels: int, work: Callable[[], object]) -> bool:
        needed = self._measure(work)
        self._decodes = self._with(self._decodes, pixels, needed)
        return needed is not None

    def measure_encode(self, pixels: int, work: Callable[[], object]) -> None:
        self._encodes = self._with(self._encodes, pixels, self._measure(work))

    def did_not_fit(self, shape: Shape, members: int) -> None:
        """A batch ran out of memory, whatever took it: none so large is tried again. A picture alone still is."""
        self._batched_below = min(self._batched_below, _step_size(shape, members))

    def fit_together(self, shape: Shape, members: int) -> bool:
        """Whether a step of so many may be tried; of one always."""
        if members == 1:
            return True
        return _step_size(shape, members) < self._batched_below and self.fits(self.step_bytes(shape, members))

    def refuse(self, shape: Shape) -> None:
        """A picture ran out of memory with nothing beside it, in a step or decoded: none of this size is taken."""
        self._steps = self._with(self._steps, _step_size(shape, 1), None)
        self._decodes = self._with(self._decodes, shape.pixels, None)

    def step_bytes(self, shape: Shape, members: int = 1) -> int:
        return _needs(self._steps, _step_size(shape, members))

    def decode_bytes(self, pixels: int, members: int = 1) -> int:
        return members * _needs(self._decodes, pixels)

    def encode_bytes(self, pixels: int) -> int:
        """Of an input picture."""
        return _needs(self._encodes, pixels)

    def reserve(self, needed: int) -> bool:
        """False when it does not fit now. With nothing else reserved it is up to the device."""
        if self._meter and self._reserved and self._reserved + needed > self.capacity:
            return False
        self._reserved += needed
        return True

    def release(self, needed: int) -> None:
        self._reserved -= needed

    def fits(self, needed: int) -> bool:
        """With nothing beside it."""
        return self._meter is None or needed <= self.capacity

    def check(self, shape: Shape) -> None:
        """Raises TooLargeForMemory."""
        if not self._takes(shape):
            raise TooLargeForMemory.of(shape.width, shape.height, self._largest_px(shape.captions, shape.pixels))

    def check_input(self, width: int, height: int) -> None:
        """Raises TooLargeForMemory where a picture can be drawn, but not be encoded."""
        if not self.fits(self.encode_bytes(width * height)):
            raise TooLargeForMemory.of(width, height, self._largest_input_px(width * height))

    def max_px(self, cap_px: int, rows: int) -> int | None:
        """The side of the largest square that fits; None when `cap_px`, the largest that is served, does."""
        captions = (CAPTION_TOKENS,) * rows
        if self._takes(Shape(cap_px, cap_px, captions)):
            return None
        return self._largest_px(captions, cap_px**2)

    def max_input_px(self, cap_px: int) -> int | None:
        """The same of a picture to begin with, which is encoded."""
        return None if self.fits(self.encode_bytes(cap_px**2)) else self._largest_input_px(cap_px**2)

    def _largest_input_px(self, below_pixels: int) -> int:
        sides = range(int(below_pixels**0.5) // 16 * 16, 0, -16)
        return next((side for side in sides if self.fits(self.encode_bytes(side * side))), 0)

    def _takes(self, shape: Shape) -> bool:
        return self.fits(self.step_bytes(shape)) and self.fits(self.decode_bytes(shape.pixels))

    def _largest_px(self, captions: tuple[int, ...], below_pixels: int) -> int:
        sides = range(int(below_pixels**0.5) // 16 * 16, 0, -16)
        return next((side for side in sides if self._takes(Shape(side, side, captions))), 0)

    def _measure(self, work: Callable[[], object]) -> int | None:
        if self._meter is None:
            work()
            return 0
        for _ in range(2):  # what is cached or recorded may be in the way
            try:
                return self._meter.peak(work)
            except torch.OutOfMemoryError as error:
                error.__traceback__ = None  # its frames hold what is to be freed
            self._meter.free()
        return None

    def _with(self, points: Points, size: int, needed: int | None) -> Points:
        """One more point, None saying that it is more than there is: what smaller ones suggest, if that is more."""
        if needed is None:
            needed = max(self.capacity + 1, _needs(points, size))
        return {**points, size: max(points.get(size, 0), needed)}


def _step_size(shape: Shape, members: int) -> int:
    size = shape.tokens * shape.rows * members
    return size if shape.controlnet is None else int(size * CONTROL_ROOM)


def _needs(points: Points, size: int) -> int:
    """Beyond the largest that was measured by the square of the size: attention may need it."""
    if not points:
        return 0
    largest = max(points)
    beyond = max(1.0, size / largest)
    return int(HEADROOM * interpolate(points, min(size, largest)) * beyond**2)
