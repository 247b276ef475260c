"""Encrypted connections: to Redis by rediss://, to databases by what their drivers take in a URL. A stranger is refused."""

from __future__ import annotations

import datetime
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.servers import MariaDBServer, PostgresServer, free_port

from lockstep.broker.connection import check_server, connect
from lockstep.errors import BrokerUnavailableError, StoreUnavailableError
from lockstep.store import open_store

HOUR = datetime.timedelta(hours=1)
PATIENCE_SECONDS = 30.0


class Certificates:
    """A certificate for this machine, its key, and two authorities: ours has signed it, the stranger has not."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.stranger = folder / "ours.pem", folder / "stranger.pem"
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        signer = self._authority("ours", self.ours)
        self._authority("stranger", self.stranger)
        key = ec.generate_private_key(ec.SECP256R1())
        here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
        signed = self._builder("localhost", "ours", key.public_key()).add_extension(here, critical=False)
        self.certificate.write_bytes(signed.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    @staticmethod
    def _builder(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + HOUR)
        )

    def _authority(self, name: str, file: Path) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        built = self._builder(name, name, key.public_key()).add_extension(basic, critical=True)
        file.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return key

    def given_to(self, user: str) -> tuple[Path, Path]:
        """Certificate and key as a server's user may read them."""
        for file in (self.certificate, self.key):
            with suppress(PermissionError, LookupError):  # Who is not root starts servers as who they are.
                shutil.chown(file, user)
            file.chmod(0o600)
        return self.certificate, self.key


@pytest.fixture
def certificates() -> Iterator[Certificates]:
    # Not pytest's own folder: the servers' users may not go there.
    with tempfile.TemporaryDirectory(prefix="lockstep-tls-") as folder:
        Path(folder).chmod(0o755)
        yield Certificates(Path(folder))


@pytest.fixture
def redis_url(certificates: Certificates) -> Iterator[Callable[[Path], str]]:
    """The URL of a Redis that speaks nothing but TLS, for who trusts this authority."""
    port = free_port()
    files = [
        "--tls-cert-file",
        certificates.certificate,
        "--tls-key-file",
        certificates.key,
        "--tls-ca-cert-file",
        certificates.ours,
    ]
    arguments = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", "", "--bind", "127.0.0.1"]
    process = subprocess.Popen(["redis-server", *arguments, *map(str, files)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, "redis-server does not start with TLS"
            time.sleep(0.02)
    yield lambda authority: f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
    process.kill()
    process.wait()


def test_redis_over_tls(redis_url: Callable[[Path], str], certificates: Certificates) -> None:
    with connect(redis_url(certificates.ours)) as client:
        check_server(client, redis_url(certificates.ours))
        assert client.set("key", "value")
    with pytest.raises(BrokerUnavailableError, match="certificate verify failed"):
        check_server(connect(redis_url(certificates.stranger)), redis_url(certificates.stranger))


def test_postgres_over_tls(certificates: Certificates) -> None:
    certificate, key = certificates.given_to("postgres")
    server = PostgresServer("ssl = on", f"ssl_cert_file = '{certificate}'", f"ssl_key_file = '{key}'")
    try:
        url = f"{server.url}?sslmode=verify-full&sslrootcert="
        with closing(open_store(f"{url}{certificates.ours}")) as store, store._access.reading() as connection:  # type: ignore[attr-defined]
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert connection.execute(sa.text(query)).scalar_one() is True
        with pytest.raises(StoreUnavailableError, match="certificate verify failed"):
            open_store(f"{url}{certificates.stranger}")
    finally:
        server.close()


def test_mariadb_over_tls(certificates: Certificates) -> None:
    certificate, key = certificates.given_to("mysql")
    server = MariaDBServer(f"--ssl-cert={certificate}", f"--ssl-key={key}", f"--ssl-ca={certificates.ours}")
    try:
        url = f"{server.url}?ssl_ca="
        with closing(open_store(f"{url}{certificates.ours}")) as store, store._access.reading() as connection:  # type: ignore[attr-defined]
            [(_, cipher)] = connection.execute(sa.text("SHOW STATUS LIKE 'Ssl_cipher'")).all()
            assert cipher
        with pytest.raises(StoreUnavailableError, match="certificate verify failed"):
            open_store(f"{url}{certificates.stranger}")
    finally:
        server.close()
