"""Addresses: every spelling of one is one, and what nobody could connect to is refused in words."""

import pytest

from fedloom.deployment.addresses import Address, is_loopback, parse_address
from fedloom.errors import UserError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org:9092", "fl.example.org", 9092),
        (" FL.Example.ORG.:1 ", "fl.example.org", 1),
        ("fl_server:65535", "fl_server", 65535),
        ("192.0.2.7:9092", "192.0.2.7", 9092),
        ("[2001:DB8:0:0::7]:9092", "2001:db8::7", 9092),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example", 80),
    ],
)
def test_an_address_is_read_and_written_alike(text, host, port):
    found = parse_address(text)
    assert found == Address(host, port)
    assert parse_address(str(found)) == found


@pytest.mark.parametrize("text", ["fl.example.org", "192.0.2.7", "[2001:db8::7]", "2001:db8::7", "fl.example.org:9092"])
def test_a_port_can_be_left_out_where_one_is_known(text):
    assert parse_address(text, 9092).port == 9092


def test_the_port_that_is_written_goes_before_the_known_one():
    assert parse_address("fl.example.org:1", 9092).port == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fl.example.org", "names no port"),
        ("2001:db8::7", "names no port"),
        ("https://fl.example.org:9092", "host and port alone"),
        ("fl.example.org:https", "the port is 'https'"),
        ("fl.example.org:", "the port is ''"),
        ("fl.example.org:0", "from 1 to 65535"),
        ("fl.example.org:65536", "from 1 to 65535"),
        ("fl.example.org:" + "9" * 5000, "from 1 to 65535"),
        ("fl.example.org:٩٠", "from 1 to 65535"),
        ("0.0.0.0:9092", "where a server listens"),
        ("[::]:9092", "where a server listens"),
        ("[fe80::1%eth0]:9092", "without %eth0"),
        ("bücher.example:9092", "xn--"),
        ("300.1.2.3:9092", "four numbers"),
        ("-a.example:9092", "no host name"),
        ("a..b:9092", "no host name"),
        ("a b:9092", "no host name"),
        (":9092", "no host name"),
        ("[2001:db8::7:9092", "names no port"),
        ("[2001:db8::7]9092", "names no port"),
        ("a" * 64 + ":9092", "no host name"),
        ("a." * 127 + "ab:9092", "no host name"),
    ],
)
def test_what_is_no_address_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_address(text)


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "::1"])
def test_the_machine_itself(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.org", "0.0.0.0", "10.0.0.1", "::", "fl.example.org"])
def test_other_machines(host):
    assert not is_loopback(host)
