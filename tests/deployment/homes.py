"""Homes and certificates to try, and what clients say to them."""

from datetime import UTC, datetime

from deployment.handshakes import shake
from fedloom.deployment import certificates
from fedloom.deployment.given import Given
from fedloom.deployment.home import Home

NOW = datetime.now(UTC)
HOST = "fl.example.org"


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def create(path, addresses=(HOST,), **options):
    return Home.create(path, addresses, "0.0.0.0", 9092, **options)


def spoken(home, host, ca=None):
    """What a client says that connects to this home's server: nothing if it accepts it."""
    return shake(ca or home.ca.read_text(), home.certificate, home.key, host)


def own(folder, hosts, ca=None, now=NOW):
    """A certificate of somebody else's authority, as files."""
    folder.mkdir()
    authority, signer = ca or certificates.make_ca(now)
    pem, key = certificates.issue(authority, signer, hosts, now)
    for name, text in {"server": pem, "key": key, "ca": authority}.items():
        (folder / name).write_text(text)
    return Given(folder / "server", folder / "key", folder / "ca")
