"""Users of a real directory: Debian's slapd, run as a process of this test's own on a loopback port."""

import base64
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from serve.access.ldap import Directory
from serve.access_settings import LdapSettings
from serve.errors import Forbidden, Unavailable

BASE = "dc=example,dc=org"
SLAPD = shutil.which("slapd") or next(iter(map(str, Path("/usr/sbin").glob("slapd"))), None)
CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {folder}/pid
modulepath /usr/lib/ldap
moduleload back_mdb
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
database mdb
suffix "{base}"
rootdn "cn=root,{base}"
rootpw root
directory {folder}/db
access to attrs=userPassword by anonymous auth by * none
access to * by users read by anonymous search
"""
ENTRIES = f"""dn: {BASE}
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: ou=groups,{BASE}
objectClass: organizationalUnit
ou: groups

dn: uid=ada,ou=people,{BASE}
objectClass: inetOrgPerson
cn: Ada
sn: Lovelace
uid: ada
userPassword: pass:word

dn: uid=bob,ou=people,{BASE}
objectClass: inetOrgPerson
cn: Bob
sn: B
uid: bob
userPassword: bobs

dn: cn=painters,ou=groups,{BASE}
objectClass: groupOfNames
cn: painters
member: uid=ada,ou=people,{BASE}

dn: cn=admins,ou=groups,{BASE}
objectClass: groupOfNames
cn: admins
member: uid=ada,ou=people,{BASE}
"""
DIRECT = {"user_dn": f"uid={{user}},ou=people,{BASE}"}
SEARCHED = {"search_base": f"ou=people,{BASE}", "bind_dn": f"cn=root,{BASE}", "bind_password": "root"}
GROUPS = {
    "group_base": f"ou=groups,{BASE}",
    "roles": {f"CN=Painters, ou=groups,{BASE}": "user", f"cn=admins,ou=groups,{BASE}": "admin"},
}


def certify(folder: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def directory():
    """Its ports without and with TLS, and the certificate to trust."""
    if SLAPD is None:
        pytest.skip("slapd is not installed: make test-deps")
    user = pwd.getpwnam("nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    with tempfile.TemporaryDirectory(prefix="zimage-slapd-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "db").mkdir()
        (folder / "conf").write_text(CONFIG.format(folder=folder, base=BASE))
        (folder / "entries").write_text(ENTRIES)
        certify(folder)
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        plain, tls = free_ports(2)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        add = [SLAPD, "-T", "add", "-f", f"{folder}/conf", "-l", f"{folder}/entries"]
        subprocess.run(add, check=True, cwd=folder, **as_user)
        urls = f"ldap://127.0.0.1:{plain} ldaps://127.0.0.1:{tls}"
        run = [SLAPD, "-d", "0", "-f", f"{folder}/conf", "-h", urls]
        with (folder / "log").open("w") as log, subprocess.Popen(run, cwd=folder, stderr=log, **as_user) as process:
            until_open(plain)
            yield plain, tls, folder / "cert.pem"
            process.terminate()


def until_open(port: int) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


@pytest.fixture(params=[DIRECT, SEARCHED], ids=["direct", "searched"])
def users(request, directory) -> Directory:
    return Directory(LdapSettings(url=f"ldap://127.0.0.1:{directory[0]}", **request.param, **GROUPS))


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


async def test_a_password_comes_in_by_http_basic(guarded, door, directory, refused):
    ldap = {"url": f"ldap://127.0.0.1:{directory[0]}", **DIRECT, **GROUPS}
    async with guarded(ldap=ldap) as service, door(service.app) as client:
        me = (await client.get("/v1/me", headers=basic("ada", "pass:word"))).json()
        wrong = await client.get("/v1/me", headers=basic("ada", "wrong"))
        unknown = await client.get("/v1/me", headers=basic("eve", "wrong"))
        bob = await client.get("/v1/me", headers=basic("bob", "bobs"))
        junk = await client.get("/v1/me", headers={"Authorization": "Basic é%".encode()})
        bearer = await client.get(
            "/v1/me", headers={"Authorization": basic("ada", "pass:word")["Authorization"].replace("Basic", "Bearer")}
        )
    assert (me["user"], me["role"], me["via"]) == ("ldap:ada", "admin", "ldap")
    for response in (wrong, unknown, junk, bearer):
        refused(response, 401, "unauthenticated")
        assert 'Basic realm="zimage"' in response.headers["WWW-Authenticate"]
    refused(bob, 403, "forbidden")


async def test_the_right_password_gives_the_highest_role(users):
    identity = await users.identify("ada", "pass:word")
    assert (identity.user, identity.role) == ("ldap:ada", "admin")
    assert await users.identify("ADA", "pass:word") == identity


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("ada", ""),
        ("ada", "\0"),
        ("ada", "pass:wor"),
        ("ada", "bobs"),
        ("eve", "pass:word"),
        ("", "pass:word"),
        ("*", "pass:word"),
        ("a*", "pass:word"),
        ("ada)(uid=*", "pass:word"),
        ("ada,ou=people", "pass:word"),
        ("ada ", "pass:word"),
        ("uid=ada", "pass:word"),
        ("ada\0", "pass:word"),
        ("x" * 129, "pass:word"),
    ],
)
async def test_nobody_else_comes_in(users, user, password):
    assert await users.identify(user, password) is None


async def test_what_is_put_into_names_and_filters_is_escaped(users, directory, monkeypatch):
    """Names like these do not get so far; if they did, they would still be names."""
    for user in ("*", "ada)(uid=*", "ada,ou=people", "x)(|(uid=ada"):
        assert users._ask(user, "pass:word") is None


async def test_without_a_mapped_group_there_is_no_role_or_the_default(directory):
    url = f"ldap://127.0.0.1:{directory[0]}"
    with pytest.raises(Forbidden):
        await Directory(LdapSettings(url=url, **DIRECT)).identify("bob", "bobs")
    by_default = Directory(LdapSettings(url=url, **DIRECT, default_role="viewer"))
    assert (await by_default.identify("bob", "bobs")).role == "viewer"


async def test_an_accepted_password_is_remembered_and_never_as_it_is(users, monkeypatch):
    identity = await users.identify("ada", "pass:word")

    def gone(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(users, "_ask", gone)
    assert await users.identify("ada", "pass:word") == identity
    assert "pass:word" not in repr(vars(users))
    with pytest.raises(AssertionError, match="asked again"):
        await users.identify("ada", "another")


async def test_tls_takes_a_trusted_certificate_of_that_host(directory):
    _, port, certificate = directory
    here = DIRECT | {"default_role": "viewer"}
    trusted = Directory(LdapSettings(url=f"ldaps://localhost:{port}", ca_file=certificate, **here))
    assert await trusted.identify("bob", "bobs") is not None
    for settings in (
        {"url": f"ldaps://localhost:{port}"},
        {"url": f"ldaps://127.0.0.1:{port}", "ca_file": certificate},
    ):
        with pytest.raises(Unavailable):
            await Directory(LdapSettings(**settings, **here)).identify("bob", "bobs")


async def test_start_tls_takes_a_trusted_certificate(directory):
    port, _, certificate = directory
    here = DIRECT | {"default_role": "viewer", "start_tls": True}
    trusted = Directory(LdapSettings(url=f"ldap://localhost:{port}", ca_file=certificate, **here))
    assert await trusted.identify("bob", "bobs") is not None
    with pytest.raises(Unavailable):
        await Directory(LdapSettings(url=f"ldap://localhost:{port}", **here)).identify("bob", "bobs")


async def test_a_directory_that_is_away_or_refuses_the_searcher_is_said_so(directory):
    wrong = SEARCHED | {"bind_password": "wrong"}
    for settings in ({"url": "ldap://127.0.0.1:9", **DIRECT}, {"url": f"ldap://127.0.0.1:{directory[0]}", **wrong}):
        with pytest.raises(Unavailable):
            await Directory(LdapSettings(**settings)).identify("ada", "pass:word")
