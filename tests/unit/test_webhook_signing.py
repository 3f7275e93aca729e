"""Signatures, checked with the verifiers that receivers use."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from serve.errors import ConfigError
from serve.settings import Settings, WebhookSettings
from serve.webhooks.signing import Keys, new_secret, open_keys

BODY = json.dumps({"type": "job.succeeded", "data": {"prompt": "☃"}}, ensure_ascii=False)


def test_both_verifiers_take_it_and_refuse_another_body() -> None:
    secret = new_secret()
    headers = Keys((secret,)).headers("anonymous", "msg_1", time.time(), BODY)
    assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert Webhook(secret).verify(BODY, headers) == json.loads(BODY)
    client = OpenAI(api_key="none", webhook_secret=secret)
    client.webhooks.verify_signature(BODY, headers)
    assert client.webhooks.unwrap(BODY, headers).type == "job.succeeded"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + " ", headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.verify_signature(BODY + " ", headers)


def test_after_a_change_of_secrets_both_are_good() -> None:
    new, old = new_secret(), new_secret()
    headers = open_keys(Settings(webhooks={"secret": new, "previous_secret": old})).headers(
        "anonymous", "msg_1", time.time(), BODY
    )
    for secret in (new, old):
        Webhook(secret).verify(BODY, headers)


def test_a_user_cannot_forge_what_another_one_gets() -> None:
    keys = Keys((new_secret(),))
    headers = keys.headers("alice", "msg_1", time.time(), BODY)
    Webhook(keys.of("alice")[0]).verify(BODY, headers)
    for other in (keys.of("bob")[0], keys.secrets[0]):
        with pytest.raises(WebhookVerificationError):
            Webhook(other).verify(BODY, headers)


def test_the_secret_is_made_once_and_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    assert open_keys(settings) == open_keys(settings)
    assert os.stat(tmp_path / "webhook_secret").st_mode & 0o777 == 0o600
    assert open_keys(settings).secrets[0] == (tmp_path / "webhook_secret").read_text()


def test_a_secret_key_is_enough_for_all_processes(tmp_path: Path) -> None:
    keys = open_keys(Settings(data=tmp_path, secret_key="k" * 32))
    assert keys == open_keys(Settings(data=tmp_path / "elsewhere", secret_key="k" * 32))
    assert keys != open_keys(Settings(data=tmp_path, secret_key="K" * 32))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_secret_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "webhook_secret").write_text("whsec_short")
    with pytest.raises(ConfigError, match="webhook_secret"):
        open_keys(Settings(data=tmp_path))


@pytest.mark.parametrize("length", [24, 25, 26, 32, 64])
def test_a_good_secret(length: int) -> None:
    WebhookSettings(secret=f"whsec_{base64.b64encode(bytes(length)).decode()}")


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "secret", "whsec_AAAA", "AAAA" * 10, "whsec_" + "AAAA" * 22, "whsec_" + "AAA*" * 10]
)
def test_a_bad_secret_stops_the_start(secret: str) -> None:
    with pytest.raises(ValidationError, match="base64"):
        WebhookSettings(secret=secret)
