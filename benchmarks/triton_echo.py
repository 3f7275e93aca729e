"""NVIDIA Triton with a trivial model, for benchmarks/protocol_overhead.py; its Python has nvidia-pytriton."""

from __future__ import annotations

import argparse
import zlib
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig


@batch  # type: ignore[untyped-decorator]
def echo(prompt: Any) -> dict[str, Any]:
    """A picture of one colour, which is the prompt's."""
    colours = [zlib.crc32(text[0]).to_bytes(4, "big")[:3] for text in prompt]
    pictures = [np.tile(np.frombuffer(colour, np.uint8), (64, 64, 1)) for colour in colours]
    return {"generated_image": np.stack(pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    config = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, http_address="127.0.0.1")
    with Triton(config=config, security_config=TritonSecurityConfig(access_token="benchmark")) as triton:
        triton.bind(
            model_name="echo",
            infer_func=echo,
            inputs=[Tensor(name="prompt", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="generated_image", dtype=np.uint8, shape=(-1, -1, 3))],
            config=ModelConfig(max_batch_size=16),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
