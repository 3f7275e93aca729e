"""A real OpenID provider (npm's oidc-provider) as a process of a test's own."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from joserfc.jwk import RSAKey

from tests.ports import free_port

SCRIPT = Path(__file__).parent / "provider.mjs"
SECRET = "a secret: of/the page"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})


def modules() -> Path | None:
    """Where `make test-deps` puts oidc-provider; ESM knows no NODE_PATH, so the script runs beside it."""
    places = [Path(os.environ["ZIMAGE_NPM"])] if "ZIMAGE_NPM" in os.environ else [Path(".npm")]
    return next((place for place in places if (place / "node_modules" / "oidc-provider").is_dir()), None)


@contextmanager
def provider(folder: Path, port: int | None = None, home: str = "http://door") -> Iterator[str]:
    """The URL of a provider that runs, and knows the page at `home` as its client."""
    place = modules()
    if shutil.which("node") is None or place is None:
        pytest.skip("node or npm's oidc-provider is not installed: make test-deps")
    shutil.copy(SCRIPT, folder)
    (folder / "node_modules").symlink_to((place / "node_modules").absolute())
    command = ["node", str(folder / SCRIPT.name)]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    config = {"port": port or free_port(), "jwks": {"keys": [KEY.as_dict(private=True)]}}
    config |= {"redirect_uris": [f"{home}/auth/oidc/callback"], "post_logout_redirect_uris": [f"{home}/"]}
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log, **piped) as process:
        process.stdin.write(json.dumps(config))
        process.stdin.close()
        assert process.stdout.readline().strip() == "listening", (folder / "log").read_text()
        yield f"http://127.0.0.1:{config['port']}"
        process.terminate()


def page_settings(issuer: str, **changes) -> dict:
    """`access.oidc` of a service whose page signs in there."""
    return {
        "issuer": issuer,
        "audience": "urn:zimage",
        "role_claim": "realm.roles",
        "roles": {"painters": "user"},
        "client_id": "page",
        "client_secret": SECRET,
        "label": "the studio",
    } | changes


async def visited(url: str, name: str | None) -> str:
    """Where the provider sends a browser that comes by `url` and signs in as `name`, or says no where that is None."""
    home = httpx.URL(url).params["redirect_uri"]
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url)
        for _ in range(12):
            if answer.has_redirect_location:
                place = answer.headers["Location"]
                if place.startswith(home):
                    return place
                answer = await browser.get(answer.url.join(place))
                continue
            assert answer.status_code == 200, answer.text
            if name is None:
                answer = await browser.get(answer.url.join(re.search(r'href="([^"]+/abort)"', answer.text)[1]))
                continue
            form = dict(re.findall(r'name="(\w+)" value="(\w+)"', answer.text)) | {"login": name, "password": "x"}
            answer = await browser.post(answer.url.join(re.search(r'action="([^"]+)"', answer.text)[1]), data=form)
    raise AssertionError(answer.text)
