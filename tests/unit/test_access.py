"""Keys, roles and settings of access, without a server."""

import hashlib
import hmac
import time
from dataclasses import replace

import pytest
from pydantic import ValidationError

from serve.access import quotas
from serve.access.caller import ANONYMOUS, NOBODY, Caller
from serve.access.keys import FRESH_S, MISS_S, ApiKey, KeyRing, create
from serve.access.roles import GRANTS, Right, highest, terms
from serve.access_settings import ROLES, AccessSettings, LdapSettings, OidcSettings, is_loopback
from serve.errors import InvalidRequest
from serve.quota import Amount, Quota, Usage

PEPPER = b"p" * 32
LDAP = {"url": "ldaps://ldap.example.org", "user_dn": "uid={user},dc=example"}


class Shelf:
    """Where a KeyRing looks, and how often it did."""

    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.looks = 0
        self.now = 1000.0
        self.ring = KeyRing(self.load, PEPPER, lambda: self.now)

    async def load(self) -> list[ApiKey]:
        self.looks += 1
        return list(self.keys)

    def make(self, **how) -> str:
        text, key = create(PEPPER, name="a", role="user", **how)
        self.keys.append(key)
        return text


def test_a_key_is_256_random_bits_and_stored_as_its_hmac():
    made = [create(PEPPER, name="a", role="user") for _ in range(100)]
    assert len({text for text, _ in made}) == 100
    text, key = made[0]
    assert len(text) == len("zk_") + 43
    assert key.digest == hmac.new(PEPPER, text.encode(), hashlib.sha256).hexdigest()
    assert (key.last_four, key.user, text in repr(key)) == (text[-4:], "a", False)


@pytest.mark.parametrize("how", [{"name": " a"}, {"name": "a\n"}, {"role": "king"}, {"user": "anonymous"}])
def test_bad_keys_are_refused(how):
    with pytest.raises(InvalidRequest):
        create(PEPPER, **{"name": "a", "role": "user"} | how)


async def test_a_ring_looks_rarely_and_sees_a_revocation_in_time():
    shelf = Shelf()
    text = shelf.make()
    for _ in range(100):
        assert await shelf.ring.find(text) is not None
    assert shelf.looks == 1
    shelf.keys = [replace(shelf.keys[0], revoked_at=1.0)]
    shelf.now += FRESH_S
    assert await shelf.ring.find(text) is None
    assert await shelf.ring.by_id(shelf.keys[0].id) is None
    assert await shelf.ring.any()


async def test_guesses_do_not_make_a_ring_look_more_often():
    shelf = Shelf()
    for number in range(100):
        assert await shelf.ring.find("zk_" + f"{number:043}") is None
    assert shelf.looks == 1
    text = shelf.make()
    shelf.now += MISS_S
    assert await shelf.ring.find(text) is not None


async def test_an_expired_key_and_what_is_no_key_are_nobodys():
    shelf = Shelf()
    expired = shelf.make(ttl_s=-1)
    assert shelf.keys[0].valid(time.time() - 10)
    for text in (expired, "", "zk_", expired + "x", "é" * 46):
        assert await shelf.ring.find(text) is None


def test_a_role_may_what_the_ones_below_it_may():
    assert GRANTS["viewer"] < GRANTS["preset_only"] <= GRANTS["user"] < GRANTS["admin"] == frozenset(Right)
    assert not any(NOBODY.may(right) for right in Right)
    assert all(ANONYMOUS.may(right) for right in Right)
    assert not ANONYMOUS.owns("ada")
    assert highest(["viewer", "user"], None) == "user"
    assert highest([], "viewer") == "viewer"


@pytest.mark.parametrize("role", ROLES)
def test_only_admins_own_everything(role):
    caller = Caller(user="ada", role=role, via="key")
    assert caller.owns("ada")
    assert caller.owns("bob") is (role == "admin")


def test_a_users_quota_counts_before_the_roles():
    settings = AccessSettings(
        roles={"user": {"images_per_day": 10, "images_per_minute": 2, "interactive": False}},
        users={"ada": {"images_per_day": 99}, "bob": {"images_per_day": None}},
    )
    assert terms(settings, "ada", "user")["quota"] == Quota(images_per_day=99, images_per_minute=2)
    assert terms(settings, "bob", "user")["quota"] == Quota(images_per_minute=2)
    assert terms(settings, "eve", "viewer") == {"quota": Quota(), "interactive": True}


def test_the_headers_of_a_quota():
    usage = Usage(at=90.5, minute=Amount(images=1, pixel_steps=7), day=Amount(images=9, pixel_steps=8))
    quota = Quota(images_per_minute=4, images_per_day=10, pixel_steps_per_day=5)
    assert quotas.headers(usage.windows(quota)) == {
        "RateLimit-Policy": '"images-per-minute";q=4;w=60, "images-per-day";q=10;w=86400, '
        '"pixel-steps-per-day";q=5;w=86400',
        "RateLimit": '"images-per-minute";r=3;t=30, "images-per-day";r=1;t=86310, "pixel-steps-per-day";r=0;t=86310',
        "x-ratelimit-limit-images": "10",
        "x-ratelimit-remaining-images": "1",
        "x-ratelimit-reset-images": "86310s",
    }
    assert quotas.headers([]) == {}


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.evil.org")],
)
def test_which_hosts_are_this_machine(host, loopback):
    assert is_loopback(host) is loopback


def test_open_is_short_for_the_mode():
    assert AccessSettings.model_validate("open") == AccessSettings(mode="open")


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (OidcSettings, {"issuer": "http://login.example.org", "audience": "a"}),
        (OidcSettings, {"issuer": "https://login.example.org", "audience": "a", "algorithms": ["HS256"]}),
        (OidcSettings, {"issuer": "https://login.example.org", "audience": "a", "algorithms": []}),
        (OidcSettings, {"issuer": "https://login.example.org", "audience": "a", "algorithms": ["none"]}),
        (LdapSettings, LDAP | {"url": "ldap://ldap.example.org"}),
        (LdapSettings, LDAP | {"search_base": "dc=example"}),
        (LdapSettings, {"url": "ldaps://ldap.example.org"}),
        (LdapSettings, LDAP | {"user_dn": "uid=ada"}),
        (AccessSettings, {"mode": "off"}),
        (AccessSettings, {"roles": {"king": {}}}),
        (AccessSettings, {"roles": {"user": {"images_per_day": 0}}}),
        (AccessSettings, {"users": {"ada": {"image_per_day": 1}}}),
        (AccessSettings, {"metrics_token": "short"}),
    ],
)
def test_settings_that_would_let_anybody_in_or_mean_nothing_are_refused(model, values):
    with pytest.raises(ValidationError):
        model.model_validate(values)
