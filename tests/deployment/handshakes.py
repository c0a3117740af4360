"""Real TLS handshakes on loopback: what every client's library says about a certificate."""

import socket
import ssl
import threading


def shake(ca, certificate, key, host):
    """Connect to a server with these files (paths) as if it were `host`; trust the PEM text `ca`.

    Returns the refusal's words, or "" where client and server spoke. Strict, as Python 3.13 is by itself.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=ca)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer, args=(listener, server))
        thread.start()
        try:
            return _ask(listener.getsockname(), client, host)
        finally:
            thread.join()


def _answer(listener, context):
    plain, _ = listener.accept()
    try:
        with plain, context.wrap_socket(plain, server_side=True) as secure:
            secure.sendall(secure.recv(4))
    except (ssl.SSLError, ConnectionError):
        pass  # the client refused


def _ask(address, context, host):
    try:
        with socket.create_connection(address, 10) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
            secure.sendall(b"ping")
            assert secure.recv(4) == b"ping"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""
