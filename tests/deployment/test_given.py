"""Certificates of one's own, made by the program openssl as an administrator would make them."""

import datetime
import shutil
import subprocess

import pytest

from fedloom.deployment.given import Given, refusal, take
from fedloom.errors import UserError

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="the program openssl is not installed")

NOW = datetime.datetime.now(datetime.UTC) + datetime.timedelta(
    hours=3
)  # the files are made after this line, in a long run of tests long after


def openssl(folder, *command):
    subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def authority(folder, name, kind=("rsa:2048",)):
    openssl(folder, "req", "-x509", "-newkey", *kind, "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            "-subj", f"/CN={name}", "-days", "30")  # fmt: skip


def signed(folder, name, by, extensions="subjectAltName=DNS:fl.example.org,IP:192.0.2.7", days="20"):
    (folder / "extensions").write_text(extensions)
    openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", "request",
            "-subj", f"/CN={name}")  # fmt: skip
    openssl(folder, "x509", "-req", "-in", "request", "-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", days, "-extfile", "extensions")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """root signs server and middle; middle signs inner; other is of somebody else."""
    folder = tmp_path_factory.mktemp("given")
    authority(folder, "root")
    authority(folder, "other")
    signed(folder, "server", "root")
    signed(folder, "middle", "root", "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign")
    signed(folder, "inner", "middle")
    signed(folder, "client", "root", "subjectAltName=DNS:fl.example.org\nextendedKeyUsage=clientAuth")
    signed(folder, "nameless", "root", "keyUsage=digitalSignature")
    (folder / "chain.pem").write_text((folder / "inner.pem").read_text() + (folder / "middle.pem").read_text())
    (folder / "turned.pem").write_text((folder / "middle.pem").read_text() + (folder / "inner.pem").read_text())
    return folder


def given(folder, certificate="server", key="server", ca="root"):
    return Given(folder / f"{certificate}.pem", folder / f"{key}.key", folder / f"{ca}.pem")


def test_files_that_fit(folder):
    found = take(given(folder), ["fl.example.org", "192.0.2.7"], NOW)
    assert found.key == (folder / "server.key").read_text()
    assert found.ca_key == ""
    assert "CERTIFICATE" in found.ca


def test_a_chain_with_one_between(folder):
    found = take(given(folder, "chain", "inner"), ["fl.example.org"], NOW)
    assert found.certificate.count("BEGIN CERTIFICATE") == 2


def test_a_certificate_that_is_its_own_authority(tmp_path):
    authority(tmp_path, "alone", ("rsa:2048", "-addext", "subjectAltName=DNS:fl.example.org"))
    assert take(given(tmp_path, "alone", "alone", "alone"), ["fl.example.org"], NOW)


def test_keys_with_parameters_before_them(tmp_path):
    """What `openssl ecparam -genkey` writes: two PEM blocks."""
    openssl(tmp_path, "ecparam", "-name", "prime256v1", "-genkey", "-out", "alone.key")
    openssl(tmp_path, "req", "-x509", "-key", "alone.key", "-out", "alone.pem", "-subj", "/CN=alone",
            "-addext", "subjectAltName=DNS:fl.example.org")  # fmt: skip
    assert (tmp_path / "alone.key").read_text().startswith("-----BEGIN EC PARAMETERS")
    assert take(given(tmp_path, "alone", "alone", "alone"), ["fl.example.org"], NOW)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"key": "other"}, "other.key is not the private key of .*server.pem"),
        ({"ca": "other"}, "refuse .*unable to get local issuer"),
        ({"certificate": "inner", "key": "inner"}, "refuse .*those between it and the CA"),
        ({"certificate": "turned", "key": "inner"}, "server's own comes first"),
        ({"certificate": "client", "key": "client"}, "refuse .*unsuitable certificate purpose"),
        ({"certificate": "nameless", "key": "nameless"}, "no host at all"),
        ({"certificate": "gone"}, "certificate .*gone.pem cannot be read: No such file"),
        ({"key": "gone"}, "private key .*gone.key cannot be read"),
    ],
)
def test_files_that_do_not_fit(folder, files, words):
    with pytest.raises(UserError, match=words):
        take(given(folder, **files), ["fl.example.org"], NOW)


def test_another_host(folder):
    with pytest.raises(UserError, match=r"connect to new\.example\.org would refuse .*it is for fl\.example\.org, 192"):
        take(given(folder), ["fl.example.org", "new.example.org"], NOW)


@pytest.mark.parametrize(("days", "words"), [(21, "server.pem expired on"), (-1, "check this machine's clock")])
def test_dates(folder, days, words):
    with pytest.raises(UserError, match=words):
        take(given(folder), ["fl.example.org"], NOW + datetime.timedelta(days=days))


def test_a_key_with_a_password_is_refused_without_asking_for_it(folder):
    openssl(folder, "pkey", "-in", "server.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")
    with pytest.raises(UserError, match=r"locked\.key has a password"):
        take(given(folder, key="locked"), ["fl.example.org"], NOW)


def test_swapped_and_binary_files(folder):
    files = given(folder)
    with pytest.raises(UserError, match=r"server\.key holds no certificate"):
        take(Given(files.key, files.certificate, files.ca), ["fl.example.org"], NOW)
    openssl(folder, "x509", "-in", "server.pem", "-outform", "der", "-out", "der.pem")
    with pytest.raises(UserError, match=r"der\.pem is no PEM text"):
        take(given(folder, "der"), ["fl.example.org"], NOW)


def test_the_refusal_of_files_that_are_no_pair(folder):
    found = refusal((folder / "root.pem").read_text(), folder / "server.pem", folder / "other.key")
    assert found == "key values mismatch"
