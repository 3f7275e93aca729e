"""A picture comes aboard: what is computed once for it, before its first step."""

from __future__ import annotations

from serve.engine.controlnet import Controlled
from serve.engine.decode import Decoder
from serve.engine.flight import Flight, Generation, OnStep, Outcome
from serve.engine.forward import Transformer
from serve.engine.lora import Extension
from serve.engine.memory import Memory
from serve.engine.reference import begin, with_room
from serve.engine.schedule import Entry


def board(
    generation: Generation,
    outcome: Outcome,
    on_step: OnStep,
    *,
    transformer: Transformer,
    decoder: Decoder,
    memory: Memory,
    now: float,
) -> Flight:
    """Raises TooLargeForMemory. `now` is the engine's clock."""
    g, shape = generation, generation.shape
    memory.check(shape)
    if g.encodes:
        memory.check_input(g.width, g.height)
    extension = None if g.adapter is None else transformer.extend(g.adapter, g.adapter_scale)
    schedule = transformer.schedule(g.steps, (g.height // 16) * (g.width // 16), extension)
    begun = begin(
        g.reference,
        lambda: transformer.noise(g.seed, g.height, g.width),
        lambda reference: decoder.encoder.begin(reference, g.seed, schedule.sigmas[g.skipped]),
        memory.free,
    )
    flight = Flight(
        generation=g,
        entry=Entry(g.id, shape, g.steps_taken, now, g.deadline, g.alone),
        captions=[transformer.caption(embedding, extension) for embedding in g.embeddings],
        schedule=schedule,
        latents=begun.latents,
        outcome=outcome,
        on_step=on_step,
        step=g.skipped,
        kept=begun.kept,
        extension=extension,
        control=_control(g, transformer, decoder, memory, extension),
    )
    flight.take_only_needed()
    return flight


def _control(
    g: Generation, transformer: Transformer, decoder: Decoder, memory: Memory, extension: Extension | None
) -> Controlled | None:
    if g.control is None:
        return None
    net, picture, masked = g.control.net, g.control.picture, g.control.masked
    latents = with_room(lambda: decoder.encoder.control(picture, masked), memory.free)
    return transformer.control(net, latents, g.control.scale, g.steps, extension)
