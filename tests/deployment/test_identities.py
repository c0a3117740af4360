"""Certificates in a server's folder as time passes, with a real handshake wherever a client has to accept them."""

from datetime import timedelta

import pytest

from deployment.homes import HOST, NOW, create, files, own, spoken
from fedloom.deployment import certificates, joining
from fedloom.deployment.home import Home
from fedloom.errors import UserError


@pytest.fixture
def home(tmp_path):
    return create(tmp_path / "home")


def test_a_start_without_news_changes_nothing(home):
    before = files(home.path)
    assert home.update() == ()
    assert home.update([HOST + ":9092"]) == ()
    assert files(home.path) == before


def test_a_new_address_gets_into_the_certificate_and_the_old_one_stays(home):
    old = home.invite("site-a")
    before = files(home.path)
    words = home.update(["192.0.2.9:77"])
    assert "it was not for 192.0.2.9" in words[0]
    assert "192.0.2.9:77" in words[1]
    for host in ("192.0.2.9", HOST, "localhost"):
        assert spoken(home, host, old.ca) == ""
    changed = {name for name, data in files(home.path).items() if data != before.get(name)}
    assert changed == {"server.pem", "home.json"}
    assert home.invite("site-b").addresses == ("192.0.2.9:77",)
    assert home.update() == ()


def test_another_port_needs_no_other_certificate(home):
    before = home.certificate.read_text()
    assert home.update([HOST + ":1"]) == ("join files made from now on name fl.example.org:1",)
    assert home.certificate.read_text() == before


@pytest.mark.parametrize(("days", "renewed"), [(700, False), (793, False), (794, True), (1000, True)])
def test_a_certificate_that_ends_soon_is_made_anew(tmp_path, days, renewed):
    home = create(tmp_path / "home", now=NOW - timedelta(days=days))
    before = home.certificate.read_text()
    words = home.update(now=NOW)
    assert (home.certificate.read_text() != before) == renewed == any("it ends on" in word for word in words)
    assert spoken(home, HOST) == ""
    assert home.update(now=NOW) == ()


def test_an_authority_that_ends(tmp_path):
    home = create(tmp_path / "home", now=NOW - timedelta(days=3640))
    assert "the CA ends on" in home.update(now=NOW)[0]
    again = home.update(now=NOW)
    assert len(again) == 1
    assert "the CA ends on" in again[0]  # the certificate cannot last longer, so it is not made again and again
    with pytest.raises(UserError, match=r"the CA in .* ended on .*invite every client anew"):
        home.update(now=NOW + timedelta(days=20))


def test_a_certificate_that_does_not_fit_is_made_anew(tmp_path, home):
    other = create(tmp_path / "other")
    home.certificate.write_bytes(other.certificate.read_bytes())
    assert spoken_or_none(home) != ""
    assert "made anew: key values mismatch" in home.update()[0]
    assert spoken(home, HOST) == ""


def spoken_or_none(home):
    try:
        return spoken(home, HOST)
    except OSError as error:  # the server itself cannot start with these
        return str(error)


def test_a_file_that_is_gone(home):
    (home.path / "ca.key").unlink()
    with pytest.raises(UserError, match=r"ca\.key cannot be read: No such file.*Put a copy back"):
        home.update()


def test_a_certificate_of_ones_own(tmp_path):
    given = own(tmp_path / "own", [HOST])
    home = create(tmp_path / "home", certificate=given)
    assert home.settings.tls == "given"
    assert not (home.path / "ca.key").exists()
    assert spoken(home, HOST, home.invite("site-a").ca) == ""
    assert home.update() == ()
    with pytest.raises(UserError, match=r"connect to new\.example\.org would refuse the certificate"):
        home.update(["new.example.org"])
    assert home.settings.addresses == ("fl.example.org:9092",)
    with pytest.raises(UserError, match=r"server\.pem expired on"):
        home.update(now=NOW + timedelta(days=900))


def test_a_certificate_of_ones_own_must_fit_from_the_start(tmp_path):
    given = own(tmp_path / "own", ["other.example.org"])
    with pytest.raises(UserError, match=r"is for other\.example\.org"):
        create(tmp_path / "home", certificate=given)
    assert not (tmp_path / "home").exists()


def test_a_renewed_certificate_of_ones_own(tmp_path):
    ca = certificates.make_ca(NOW)
    home = create(tmp_path / "home", certificate=own(tmp_path / "first", [HOST], ca))
    join = home.invite("site-a")
    second = own(tmp_path / "second", [HOST, "new.example.org"], ca)
    assert "given is used from now on" in home.update(["new.example.org"], second)[0]
    assert spoken(home, "new.example.org", join.ca) == ""
    assert home.update(certificate=second) == ()


def test_another_authority_only_while_nobody_trusts_the_old_one(tmp_path, home):
    given = own(tmp_path / "own", [HOST])
    join = home.invite("site-a")
    before = files(home.path)
    with pytest.raises(UserError, match=r"1 clients \(site-a\) were invited with another CA"):
        home.update(certificate=given)
    assert files(home.path) == before
    home.revoke("site-a")
    home.update(certificate=given)
    assert home.settings.tls == "given"
    assert spoken(home, HOST, home.invite("site-a").ca) == ""
    assert spoken(home, HOST, join.ca) != ""


def test_without_tls_on_loopback_only(tmp_path):
    home = Home.create(tmp_path / "home", ["127.0.0.1"], "127.0.0.1", 9092, insecure=True)
    assert not home.secure
    assert set(files(home.path)) == {"home.json", "server.lock"}
    join = joining.parse(home.invite("site-a").text, "here")
    assert (join.ca, join.addresses) == ("", ("127.0.0.1:9092",))
    assert home.update() == ()
    with pytest.raises(UserError, match="another machine's address"):
        home.update([HOST])
    with pytest.raises(UserError, match="was made for a server without TLS"):
        home.update(certificate=own(tmp_path / "own", ["127.0.0.1"]))


def test_what_is_not_possible_without_tls(tmp_path):
    with pytest.raises(UserError, match=r"may listen on 127\.0\.0\.1 only, not on 0\.0\.0\.0"):
        create(tmp_path / "home", ["127.0.0.1"], insecure=True)
    with pytest.raises(UserError, match="another machine's address"):
        Home.create(tmp_path / "home", [HOST], "127.0.0.1", 9092, insecure=True)
    with pytest.raises(UserError, match="both asked for"):
        create(tmp_path / "home", insecure=True, certificate=own(tmp_path / "own", [HOST]))
