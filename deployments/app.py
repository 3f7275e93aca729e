"""Wiring and nothing else: which process is built from what."""

from collections.abc import Mapping
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
    folders = {model: resolve(settings.of(model)) for model in settings.served}
    for folder in folders.values():
        verify(folder)
    settings = _with_files(settings, folders)
    check_assets(settings)
    check_tracing(settings)
    settings = settings.model_copy(update={"data": settings.data.resolve(), "presets": _hot_file(settings.presets)})
    placed = RequestRouterConfig(request_router_class=f"{PlacedRouter.__module__}.{PlacedRouter.__name__}")
    node = home(settings)
    text_encoders, denoisers = {}, {}
    for model, folder in folders.items():
        own, tail = settings.of(model), settings.tail(model)
        encoder = serve.deployment(TextEncoder, name=f"TextEncoder{tail}")
        denoiser = serve.deployment(Denoiser, name=f"Denoiser{tail}", request_router_config=placed)
        text_encoders[model] = encoder.bind(own, folder, node)
        denoisers[model] = denoiser.bind(own, folder, node)
    dispatcher = serve.deployment(Dispatcher).bind(settings, text_encoders, denoisers, node)
    return serve.deployment(serve.ingress()(Gateway)).bind(settings, folders, dispatcher, node)


def _with_files(settings: Settings, folders: Mapping[str, Path]) -> Settings:
    """With the paths of each model's adapters and ControlNets."""
    found = {model: _located(settings.of(model), folder) for model, folder in folders.items()}
    models = {model: of.model_copy(update=found[model]) for model, of in settings.models.items()}
    return settings.model_copy(update={**found[settings.served_model_name], "models": models})


def _located(settings: Settings, folder: Path) -> dict[str, object]:
    return {
        "adapters": adapters.FILES.located(settings, folder),
        "controlnets": controlnets.FILES.located(settings, folder),
    }
