"""Certificates and keys against two independent readers: the program openssl, and TLS as every client speaks it."""

import datetime
import re
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deployment.handshakes import shake
from fedloom.deployment import certificates
from fedloom.errors import UserError

NOW = datetime.datetime.now(datetime.UTC)
HOSTS = ["fl.example.org", "192.0.2.7", "2001:db8::7"]

openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="the program openssl is not installed")


class Files:
    """An authority and a server's certificate, as text and as files."""

    def __init__(self, folder, hosts, now=NOW):
        self.ca, self.ca_key = certificates.make_ca(now)
        self.certificate, self.key = certificates.issue(self.ca, self.ca_key, hosts, now)
        self.paths = {}
        for name in ("ca", "certificate", "key"):
            self.paths[name] = folder / f"{name}.pem"
            self.paths[name].write_text(getattr(self, name))

    def shake(self, host, ca=None):
        return shake(ca or self.ca, self.paths["certificate"], self.paths["key"], host)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"), HOSTS)


def run(*command, input=None):
    return subprocess.run(["openssl", *map(str, command)], capture_output=True, text=True, input=input)


@openssl
@pytest.mark.parametrize(
    "option",
    [("-verify_hostname", "fl.example.org"), ("-verify_hostname", "localhost"), ("-verify_ip", "192.0.2.7")]
    + [("-verify_ip", ip) for ip in ("2001:db8::7", "127.0.0.1", "::1")],
)
def test_openssl_accepts_the_chain(files, option):
    strict = ("-x509_strict", "-purpose", "sslserver", "-CAfile", files.paths["ca"])
    assert run("verify", *strict, *option, files.paths["certificate"]).returncode == 0


@openssl
@pytest.mark.parametrize("option", [("-verify_hostname", "other.example.org"), ("-verify_ip", "192.0.2.8")])
def test_openssl_refuses_other_hosts(files, option):
    found = run("verify", "-CAfile", files.paths["ca"], *option, files.paths["certificate"])
    assert found.returncode != 0
    assert "mismatch" in found.stderr


@openssl
def test_openssl_refuses_another_authority(files, tmp_path):
    found = run("verify", "-CAfile", Files(tmp_path, HOSTS).paths["ca"], files.paths["certificate"])
    assert found.returncode != 0


@openssl
def test_what_openssl_reads_in_the_authority(files):
    text = run("x509", "-in", files.paths["ca"], "-noout", "-text").stdout
    assert "NIST CURVE: P-384" in text
    assert re.search(r"Basic Constraints: critical\s+CA:TRUE, pathlen:0\n", text)
    assert re.search(r"Key Usage: critical\s+Certificate Sign\n", text)


@openssl
def test_what_openssl_reads_in_the_servers_certificate(files):
    text = run("x509", "-in", files.paths["certificate"], "-noout", "-text").stdout
    assert "NIST CURVE: P-256" in text
    assert re.search(r"Basic Constraints: critical\s+CA:FALSE\n", text)
    assert re.search(r"Key Usage: critical\s+Digital Signature\n", text)
    assert re.search(r"Extended Key Usage: \s+TLS Web Server Authentication\n", text)


@openssl
def test_the_authority_signs_no_other_authority(files, tmp_path):
    """pathlen:0 is for the case that somebody gets a certificate signed that says CA:TRUE."""
    inner, inner_key = certificates.make_ca(NOW)
    request = x509.load_pem_x509_certificate(inner.encode())
    signer = serialization.load_pem_private_key(files.ca_key.encode(), None)
    middle = (
        x509.CertificateBuilder(
            x509.load_pem_x509_certificate(files.ca.encode()).subject, request.subject, request.public_key(), 7,
            request.not_valid_before_utc, request.not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(signer, hashes.SHA256())
    )  # fmt: skip
    leaf, _ = certificates.issue(inner, inner_key, HOSTS, NOW)
    (tmp_path / "middle").write_bytes(middle.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "leaf").write_text(leaf)
    found = run("verify", "-CAfile", files.paths["ca"], "-untrusted", tmp_path / "middle", tmp_path / "leaf")
    assert "path length constraint exceeded" in found.stderr


@openssl
def test_the_fingerprint_is_openssls(files):
    text = run("x509", "-in", files.paths["ca"], "-noout", "-fingerprint", "-sha256").stdout
    assert certificates.fingerprint(files.ca) == "SHA256:" + text.strip().partition("=")[2].lower()


@openssl
def test_how_long_they_last(files):
    def dates(path):
        lines = run("x509", "-in", path, "-noout", "-startdate", "-enddate").stdout.split("\n")
        return [datetime.datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y GMT") for line in lines[:2]]

    start, end = dates(files.paths["certificate"])
    assert datetime.timedelta(days=824) < end - start < datetime.timedelta(days=825)
    assert certificates.begins(files.certificate).replace(tzinfo=None) == start < NOW.replace(tzinfo=None)
    assert certificates.expires(files.certificate).replace(tzinfo=None) == end
    start, end = dates(files.paths["ca"])
    assert end - start == datetime.timedelta(days=3652)


@openssl
@pytest.mark.parametrize("curve", ["server", "node"])
def test_openssl_reads_the_keys(files, curve):
    private, public = (files.key, certificates.certified_key(files.certificate))
    if curve == "node":
        private, public = certificates.node_keys()
    assert private.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert run("pkey", "-pubout", input=private).stdout == public


def test_a_certificate_does_not_outlive_its_authority():
    ca, ca_key = certificates.make_ca(NOW - datetime.timedelta(days=3600))
    certificate, _ = certificates.issue(ca, ca_key, HOSTS, NOW)
    assert certificates.expires(certificate) == certificates.expires(ca)


def test_a_certificate_made_anew_keeps_its_key(files):
    again, key = certificates.issue(files.ca, files.ca_key, ["new.example.org"], NOW, files.key)
    assert key == files.key
    assert again != files.certificate
    assert certificates.certified_key(again) == certificates.certified_key(files.certificate)


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1", "::1"])
def test_a_client_speaks_to_the_right_host(files, host):
    assert files.shake(host) == ""
    assert certificates.covers(files.certificate, host)


@pytest.mark.parametrize("host", ["other.example.org", "sub.fl.example.org", "example.org", "192.0.2.8", "2001:db8::8"])
def test_a_client_refuses_the_wrong_host(files, host):
    assert "mismatch" in files.shake(host)
    assert not certificates.covers(files.certificate, host)


def test_a_client_refuses_another_authority(files):
    other, _ = certificates.make_ca(NOW)
    assert "unable to get local issuer" in files.shake("localhost", ca=other)


def test_a_client_refuses_what_has_expired(tmp_path):
    old = Files(tmp_path, HOSTS, NOW - datetime.timedelta(days=830))
    assert "expired" in old.shake("localhost")


@pytest.mark.parametrize(
    "host",
    ["a.example.org", "A.Example.org", "a.b.example.org", "example.org", "x.org", "org", "192.0.2.7", "192.0.2.9"],
)
def test_stars_cover_what_a_client_accepts(tmp_path, host):
    """The oracle is the TLS library itself."""
    files = Files(tmp_path, ["*.example.org", "*.org", "192.0.2.7"])
    assert certificates.covers(files.certificate, host) == (files.shake(host) == "")


def test_spellings_of_a_host(files):
    assert certificates.covers(files.certificate, "FL.example.org.")
    assert certificates.covers(files.certificate, "[2001:DB8:0::7]")


def test_a_certificate_without_names_is_for_nobody(files):
    assert certificates.names_of(files.ca) == ()
    assert not certificates.covers(files.ca, "localhost")


def test_names_are_written_once(files):
    once, _ = certificates.issue(files.ca, files.ca_key, ["a.org", "localhost", "a.org", "127.0.0.1"], NOW)
    assert sorted(certificates.names_of(once)) == ["127.0.0.1", "::1", "a.org", "localhost"]


def test_node_keys_are_as_flower_wants_them():
    asymmetric = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    private, public = certificates.node_keys()
    theirs = asymmetric.bytes_to_private_key(private.encode())
    assert theirs.curve.name == "secp384r1"
    assert asymmetric.uses_nist_ec_curve(theirs.public_key())
    assert asymmetric.private_key_to_bytes(theirs) == private.encode()
    assert asymmetric.public_key_to_bytes(theirs.public_key()) == public.encode()
    assert asymmetric.verify_signature(
        asymmetric.bytes_to_public_key(public.encode()), b"x", asymmetric.sign_message(theirs, b"x")
    )
    assert certificates.public_of(private, "here") == public


def test_keys_and_authorities_are_never_the_same():
    assert certificates.node_keys() != certificates.node_keys()
    first, second = (x509.load_pem_x509_certificate(certificates.make_ca(NOW)[0].encode()) for _ in range(2))
    assert first.subject != second.subject


def test_comments_around_certificates_are_left_out(files):
    text = f"Zertifikat für Zoë\n{files.ca}\nund noch eines\n{files.certificate}"
    assert certificates.read_certificates(text, "here") == files.ca + files.certificate


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate(text):
    with pytest.raises(UserError, match=r"^here holds no certificate"):
        certificates.read_certificates(text, "here")


def test_what_is_no_key_of_a_node(files):
    with pytest.raises(UserError, match=r"^here holds no private key"):
        certificates.public_of(files.ca, "here")
    with pytest.raises(UserError, match=r"^here is a key of another kind"):
        certificates.public_of(files.key, "here")
    locked = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(UserError, match=r"^here has a password"):
        certificates.public_of(locked.decode(), "here")
