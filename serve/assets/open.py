"""The asset store that the settings name."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from serve.assets.local import LocalAssets
from serve.assets.objects import ObjectAssets, reason
from serve.assets.store import AssetStore
from serve.errors import ConfigError
from serve.settings import S3Settings, Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

PATIENCE_S = 60.0  # a store that is away for half a minute fails no picture
CHECK_S = 10.0
PROBE = ".zimage-start"


def open_assets(settings: Settings) -> AssetStore:
    if settings.assets.store == "s3":
        return ObjectAssets(_s3(settings.assets.s3, PATIENCE_S))
    return LocalAssets(settings.data / "assets")


def check_assets(settings: Settings) -> None:
    """Writes an object and removes it. Raises ConfigError where the bucket does not take it."""
    if settings.assets.store != "s3":
        return
    s3 = settings.assets.s3
    where = f"assets.s3: bucket {s3.bucket!r}" + (f" at {s3.endpoint}" if s3.endpoint else "")
    try:
        store = _s3(s3, CHECK_S)
        obstore.put(store, PROBE, b"")
        obstore.delete(store, PROBE)
    except (BaseError, OSError, ValueError) as error:
        what, hint = _diagnosed(error)
        raise ConfigError(f"{where} {what}", param="assets.s3", hint=hint) from error


def _s3(s3: S3Settings, patience_s: float) -> S3Store:
    """Settings win over AWS_* of the environment, which names the credentials."""
    assert s3.bucket is not None
    config = {"endpoint": s3.endpoint, "region": s3.region, "virtual_hosted_style_request": s3.virtual_hosted}
    client: ClientConfig = {
        "allow_http": (s3.endpoint or "").startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=30),
    }
    retry: RetryConfig = {
        "max_retries": 30 if patience_s > CHECK_S else 2,
        "retry_timeout": timedelta(seconds=patience_s),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
    }
    given = {name: value for name, value in config.items() if value not in (None, False)}
    return S3Store(s3.bucket, prefix=s3.prefix or None, config=given, client_options=client, retry_config=retry)  # type: ignore[arg-type]


def _diagnosed(error: Exception) -> tuple[str, str]:
    text = reason(error)
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
        return "does not exist", "create it, or correct assets.s3.bucket and region"
    if "169.254.169.254" in text:
        return "has no credentials here", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    if "403" in text or "401" in text:
        return f"refuses these credentials: {text}", "they need to get, put, list and delete objects of this bucket"
    return f"does not answer: {text}", "correct assets.s3.endpoint, or start the store"
