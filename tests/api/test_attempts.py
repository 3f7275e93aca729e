"""Wrong keys and passwords, again and again: refused for a while, and nobody else with them."""

import asyncio
import base64

import pytest
from starlette.requests import HTTPConnection

from serve.access.attempts import Attempts, address_of
from serve.access.authenticate import Authenticator
from serve.access.identity import Identity
from serve.access.keys import KeyRing
from serve.access.sessions import Sessions
from serve.access_settings import AccessSettings
from serve.errors import TooManySignIns

WRONG = {"Authorization": "Bearer zk_" + "A" * 43}


async def test_a_key_that_stays_wrong_is_told_to_wait_and_the_right_one_never(guarded, door, refused):
    async with guarded(failed_sign_ins_per_minute=3) as service, door(service.app) as client:
        for _ in range(3):
            refused(await client.post("/v1/session", headers=WRONG), 401, "unauthenticated")
        for method, path in (("POST", "/v1/session"), ("GET", "/v1/me"), ("GET", "/v2/models/z-image-turbo")):
            answer = await client.request(method, path, headers=WRONG)
            assert answer.status_code == 429
            assert 50 <= int(answer.headers["Retry-After"]) <= 60
        error = refused(await client.get("/v1/me", headers=WRONG), 429, "too_many_sign_ins")
        right = await client.get("/v1/me", headers=service.headers("ada"))
        nothing = await client.get("/v1/me")
        expired = await client.get("/v1/me", headers={"Authorization": "Bearer e30.e30.e30"})
    assert "more than 3 failed sign-ins within 60 s" in error["message"]
    assert (right.status_code, nothing.status_code, expired.status_code) == (200, 401, 401)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_window_begins_with_the_first_failure_and_ends_a_minute_later():
    clock = Clock()
    attempts = Attempts(2, clock)
    attempts.failed("eve")
    clock.now = 30
    attempts.failed("eve")
    attempts.check("ada")
    with pytest.raises(TooManySignIns) as refused:
        attempts.check("eve")
    assert refused.value.retry_after == 30
    clock.now = 61
    attempts.check("eve")


def test_what_is_remembered_is_bounded():
    attempts = Attempts(1)
    for number in range(20_000):
        attempts.failed(str(number))
    assert len(attempts._windows) == 10_000


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_one_customers(host, counted):
    assert address_of(HTTPConnection({"type": "http", "client": (host, 1), "headers": []})) == counted


class Directory:
    """Knows one password, and counts how often it is asked."""

    asked = 0

    async def identify(self, user: str, password: str) -> Identity | None:
        self.asked += 1
        await asyncio.sleep(0.001)
        return Identity(user=user, role="user") if password == "right" else None


def by_password(user: str, password: str) -> HTTPConnection:
    said = base64.b64encode(f"{user}:{password}".encode())
    headers = [(b"authorization", b"Basic " + said)]
    return HTTPConnection({"type": "http", "client": ("192.0.2.7", 1), "headers": headers})


async def test_a_directory_is_asked_about_no_more_guesses_than_that_even_at_once():
    async def load():
        return []

    settings = AccessSettings(mode="required", failed_sign_ins_per_minute=5)
    access = Authenticator(settings, KeyRing(load, b"p"), Sessions(b"k" * 32, 60), exposed=False)
    access._ldap = directory = Directory()
    guesses = [access.caller(by_password("ada", str(number))) for number in range(100)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert directory.asked == 5
    assert sum(isinstance(answer, TooManySignIns) for answer in answers) == 95
    with pytest.raises(TooManySignIns):
        await access.caller(by_password("ADA", "right"))
    assert (await access.caller(by_password("eve", "right"))).user == "eve"
