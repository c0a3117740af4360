"""Keys and certificates, all as PEM text: a CA of one's own, a server's certificate signed by it, nodes' key pairs.

Certificates follow RFC 5280 as strictly as OpenSSL's X509_V_FLAG_X509_STRICT asks. Nothing here reads the clock.
"""

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedloom.errors import UserError

CA_DAYS = 3652
"""Ten years."""
SERVER_DAYS = 825
"""The most that Apple's systems accept; both ends counted."""
EARLY = timedelta(days=1)
"""Certificates begin in the past: a client's clock may be behind."""
EVERYWHERE = ("localhost", "127.0.0.1", "::1")
"""Every server is also reached from its own machine."""


def make_ca(now: datetime) -> tuple[str, str]:
    """A new authority that signs certificates of servers and nothing else.

    Args:
        now: with a time zone.

    Returns:
        Its certificate and its private key (P-384).
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"fedloom CA {secrets.token_hex(4)}")  # clients tell authorities from each other by their names
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _begun(name, name, key.public_key(), now - EARLY, now - EARLY + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _pem(certificate), _private_pem(key)


def issue(ca: str, ca_key: str, hosts: Iterable[str], now: datetime, key: str = "") -> tuple[str, str]:
    """A server's certificate, signed by `ca`.

    Args:
        ca: the authority's certificate.
        ca_key: its private key.
        hosts: DNS names and IP addresses it is for, in any order; those of EVERYWHERE are added.
        now: with a time zone; the certificate ends with the authority's at the latest.
        key: the server's private key if it stays; empty: a new one is made (P-256).

    Returns:
        The certificate and the server's private key.
    """
    authority, signer = x509.load_pem_x509_certificate(ca.encode()), _elliptic(ca_key)
    own = _elliptic(key) if key else ec.generate_private_key(ec.SECP256R1())
    end = now - EARLY + timedelta(days=SERVER_DAYS, seconds=-1)
    issuer = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    certificate = (
        _begun(
            _name("fedloom server"),
            authority.subject,
            own.public_key(),
            now - EARLY,
            min(end, authority.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(hosts)), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return _pem(certificate), key or _private_pem(own)


def node_keys() -> tuple[str, str]:
    """A new key pair of a client (P-384): private, public."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _private_pem(key), public_pem(key)


def public_of(private: str, where: str) -> str:
    """The public half of a client's key, as the server knows it.

    Raises:
        UserError: `private` is no such key; the message begins with `where`.
    """
    key = read_key(private, where)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(
            f"{where} is a key of another kind than fedloom makes (elliptic curve P-384); ask for a new join file"
        )
    return public_pem(key)


def names_of(pem: str) -> tuple[str, ...]:
    """DNS names and IP addresses a certificate is for; its common name counts for nothing, as in browsers."""
    found = _alternative_names(pem)
    if found is None:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def covers(pem: str, host: str) -> bool:
    """Whether a client that connects to `host` takes this certificate for it (RFC 6125: `*` stands for one label)."""
    host = host.lower().strip("[]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(host)) in names_of(pem)
    except ValueError:
        parent = host.partition(".")[2]
        names = {name.lower() for name in names_of(pem)}
        return host in names or ("." in parent and f"*.{parent}" in names)


def expires(pem: str) -> datetime:
    """The last second a certificate is good for, in UTC."""
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc


def begins(pem: str) -> datetime:
    """The first second a certificate is good for, in UTC."""
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_before_utc


def fingerprint(pem: str) -> str:
    """`SHA256:ab:cd:...` of the first certificate, to be read out over the telephone."""
    return "SHA256:" + x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex(":")


def read_certificates(text: str, where: str) -> str:
    """The certificates in a PEM text and nothing else of it: comments may be in any alphabet, TLS wants ASCII.

    Raises:
        UserError: there is none, or one is damaged; the message begins with `where`.
    """
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        for one in found:
            _ = one.extensions, one.public_key()  # read lazily; a client would stumble over them only later
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{where} holds no certificate that can be read; {_PEM} CERTIFICATE-----") from error
    return "".join(map(_pem, found))


def read_key(text: str, where: str) -> PrivateKeyTypes:
    """The private key in a PEM text.

    Raises:
        UserError: there is none, or it has a password; the message begins with `where`.
    """
    try:
        return serialization.load_pem_private_key(text.encode(), password=None)
    except TypeError as error:
        raise UserError(f"{where} has a password; take it off first: openssl pkey -in KEY -out NEW") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{where} holds no private key that can be read; {_PEM} PRIVATE KEY-----") from error


def public_pem(key: PrivateKeyTypes) -> str:
    """The public half of a key: PEM of SubjectPublicKeyInfo."""
    return _public_pem(key.public_key())


def certified_key(pem: str) -> str:
    """The public key a certificate is about: PEM of SubjectPublicKeyInfo."""
    return _public_pem(x509.load_pem_x509_certificate(pem.encode()).public_key())


_PEM = "PEM text is expected, which begins with -----BEGIN"


def _begun(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """What all certificates have."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Certificates, or else what a handshake needs; nothing more."""
    no = (False,) * 4
    return x509.KeyUsage(not signs_certificates, *no, signs_certificates, *no[1:])


def _alternatives(hosts: Iterable[str]) -> Sequence[x509.GeneralName]:
    """Every host once, as what it is."""
    found: list[x509.GeneralName] = []
    for host in dict.fromkeys((*hosts, *EVERYWHERE)):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _alternative_names(pem: str) -> x509.SubjectAlternativeName | None:
    extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _elliptic(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"a {type(key).__name__} where fedloom's own key was expected")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _public_pem(key: PublicKeyTypes) -> str:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
