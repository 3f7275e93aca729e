"""Is a port free? Ray Serve would share one with another listener, and each would get half of the requests."""

from __future__ import annotations

import socket

from serve.errors import ConfigError


def check_port(host: str, port: int) -> None:
    """Raises ConfigError when something listens there, or nothing may."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} is not free: {error.strerror}",
                param="http_options.port",
                hint=f"stop what listens there (ss -ltnp 'sport = :{port}'), or take another: make serve PORT=8123",
            ) from None
