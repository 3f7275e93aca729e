"""Wiring and nothing else: which process is built from what."""

from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from deployments.denoiser import Denoiser
from deployments.dispatcher import Dispatcher
from deployments.gateway import Gateway
from deployments.nodes import home
from deployments.placement import PlacedRouter
from deployments.text_encoder import TextEncoder
from serve import adapters, controlnets
from serve.assets.open import check_assets
from serve.settings import Settings
from serve.tracing.open import check_tracing
from serve.weights import resolve, verify


def _hot_file(path: Path | None) -> Path | None:
    """Absolute, but no link is followed: Kubernetes changes a ConfigMap by pointing one elsewhere."""
    return None if path is None else path.absolute()


def build(settings: Settings) -> Application:
    """The application of config/serve.yaml. Raises WeightsError or ConfigError before any replica starts.

    Ray Serve reads the annotation of `settings` at run time, so it must not be a string.
    """
    folder = resolve(settings)
    verify(folder)
    found = {"adapters": adapters.located(settings, folder), "controlnets": controlnets.located(settings, folder)}
    settings = settings.model_copy(update=found)
    check_assets(settings)
    check_tracing(settings)
    settings = settings.model_copy(update={"data": settings.data.resolve(), "presets": _hot_file(settings.presets)})
    placed = RequestRouterConfig(request_router_class=f"{PlacedRouter.__module__}.{PlacedRouter.__name__}")
    node = home(settings)
    text_encoder = serve.deployment(TextEncoder).bind(settings, folder, node)
    denoiser = serve.deployment(Denoiser, request_router_config=placed).bind(settings, folder, node)
    dispatcher = serve.deployment(Dispatcher).bind(settings, text_encoder, denoiser, node)
    return serve.deployment(serve.ingress()(Gateway)).bind(settings, folder, dispatcher, node)
