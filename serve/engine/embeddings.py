"""Prompts that were encoded before: their embeddings, bit for bit, without a forward."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Protocol

from cachetools import LRUCache

from serve.engine.text import Embedding

ENTRY_BYTES = 512  # of memory, counted with every embedding


class Encoder(Protocol):
    def encode(self, prompts: list[str]) -> list[Embedding]: ...


class RememberingEncoder:
    """A TextEncoder that keeps the least recently used embeddings out of `max_bytes`. May be called in any thread."""

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        self._encoder = encoder
        self._known: LRUCache[str, Embedding] = LRUCache(max_bytes, getsizeof=_bytes)
        self._lock = threading.Lock()

    def find(self, prompt: str) -> Embedding | None:
        """What is known; it took no time."""
        with self._lock:
            known = self._known.get(prompt)
        return None if known is None else replace(known, seconds=0.0, executions=0.0, encoding=None)

    def encode(self, prompts: list[str]) -> list[Embedding]:
        """Embedding `i` [L_i, C] belongs to prompt `i`; one forward for those that are new, each once."""
        embeddings = {prompt: known for prompt in prompts if (known := self.find(prompt)) is not None}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in embeddings]
        for prompt, embedding in zip(new, self._encoder.encode(new) if new else (), strict=True):
            embeddings[prompt] = embedding
            self._keep(prompt, embedding)
        return [embeddings[prompt] for prompt in prompts]

    def _keep(self, prompt: str, embedding: Embedding) -> None:
        """A copy: the embedding is a view of its whole batch."""
        if _bytes(embedding) <= self._known.maxsize:
            own = replace(embedding, data=embedding.data.copy())
            own.data.flags.writeable = False
            with self._lock:
                self._known[prompt] = own


def _bytes(embedding: Embedding) -> int:
    return ENTRY_BYTES + embedding.data.nbytes
