"""Sockets: only the owner gets in, old ones are replaced, nothing else is."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from bczoo.core.errors import UserError
from bczoo.serve.listen import address_option, listen_on_tcp, listen_on_unix, resolve_tcp


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative path stays short whatever the temporary folder is called
    return "s.sock"


def test_a_unix_socket_is_its_owners_alone_from_its_first_moment(path, monkeypatch):
    seen = []

    class Watched(socket.socket):
        def bind(self, place):
            super().bind(place)
            seen.append(stat.S_IMODE(os.lstat(place).st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        with listen_on_unix(path) as listening:
            assert seen == [0o600]
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
            assert address_option(listening) == f"--socket {path}"
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not os.path.lexists(path)


def test_the_socket_of_a_dead_server_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with listen_on_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_living_server_keeps_its_socket(path):
    with listen_on_unix(path):
        with pytest.raises(UserError, match=r"another server listens on s.sock; stop it"), listen_on_unix(path):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_what_is_no_socket_stays(path):
    with open(path, "w") as f:
        f.write("precious")
    with pytest.raises(UserError, match="exists and is not a socket"), listen_on_unix(path):
        pass
    with open(path) as f:
        assert f.read() == "precious"
    os.unlink(path)
    os.symlink("elsewhere", path)
    with pytest.raises(UserError, match="exists and is not a socket"), listen_on_unix(path):
        pass


def test_a_socket_that_is_no_longer_ours_stays(path):
    with listen_on_unix(path):
        os.unlink(path)
        with open(path, "w"):
            pass
    assert os.path.exists(path)
    os.unlink(path)
    with listen_on_unix(path):
        os.unlink(path)  # and its absence is no error


@pytest.mark.parametrize(
    "bad, told",
    [
        ("", "needs a path"),
        ("\0hidden", "abstract sockets have no owner"),
        ("x" * 200, "cannot make the Unix socket .*too long"),
        ("missing/s.sock", "cannot make the Unix socket 'missing/s.sock'.*choose another --socket"),
    ],
)
def test_paths_that_cannot_be(path, bad, told):
    with pytest.raises(UserError, match=told), listen_on_unix(bad):
        pass


def test_tcp_takes_a_free_port_of_this_machine():
    with listen_on_tcp("127.0.0.1:0") as listening:
        option, address = address_option(listening).split()
        assert option == "--tcp" and int(address.rpartition(":")[2]) > 0
        with socket.create_connection(resolve_tcp(address)[1]):
            pass
        with pytest.raises(UserError, match=r"cannot listen on .*in use.*choose another --tcp"), listen_on_tcp(address):
            pass


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_other_machines_are_let_in_only_on_request(address):
    with pytest.raises(UserError, match="no authentication"), listen_on_tcp(address):
        pass


def test_other_machines_are_let_in_on_request():
    with listen_on_tcp("0.0.0.0:0", public=True) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("address", ["8089", ":8089", "127.0.0.1", "::1:8089", "127.0.0.1:http", "127.0.0.1:-1", ""])
def test_addresses_that_cannot_be(address):
    with pytest.raises(UserError, match=r"needs host:port such as 127.0.0.1:8089"):
        resolve_tcp(address)


def test_ports_that_cannot_be():
    with pytest.raises(UserError, match="at most 65535, got 65536"):
        resolve_tcp("127.0.0.1:65536")
