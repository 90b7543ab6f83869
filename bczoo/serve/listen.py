"""Where a server listens: a Unix socket that only its owner can open, or a TCP port of this machine.

Place in the pipeline: :mod:`bczoo.serve.commands` opens them, :class:`bczoo.serve.server.Server` accepts from them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator

from bczoo.core.errors import UserError

REFERENCE_PATH = "/tmp/uds.recap"
BACKLOG = 128  # connections that wait to be accepted


@contextlib.contextmanager
def listen_on_unix(path: str) -> Iterator[socket.socket]:
    """A listening Unix socket, mode 0600 from its first moment; its file goes when it closes.

    The file of a server that died is replaced. Anything else that is there already is an error.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UserError("Python has no Unix sockets on this system; use --tcp 127.0.0.1:8089")
    if not path or path.startswith("\0"):
        raise UserError(
            f"a Unix socket needs a path, got {path!r}: abstract sockets have no owner that could be checked"
        )
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listening:
        before = os.umask(0o177)
        try:
            listening.bind(path)
        except OSError as error:
            raise UserError(f"cannot make the Unix socket {path!r} ({error}); choose another --socket") from error
        finally:
            os.umask(before)
        ours = os.lstat(path)
        try:
            listening.listen(BACKLOG)
            yield listening
        finally:  # before it closes: until then its inode number cannot come back on another file
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(path), ours):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a server that is no more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot make the Unix socket {path!r} ({error}); choose another --socket") from error
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{path} exists and is not a socket; remove it or choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            try:
                os.unlink(path)
            except OSError as error:
                raise UserError(f"the old socket {path} cannot be removed ({error}); choose another") from error
            return
        except (TimeoutError, BlockingIOError):
            pass  # somebody is there, with no time for us
        except OSError as error:
            raise UserError(f"{path} is in the way and does not open ({error}); choose another --socket") from error
    raise UserError(f"another server listens on {path}; stop it or choose another --socket")


@contextlib.contextmanager
def listen_on_tcp(address: str, public: bool = False) -> Iterator[socket.socket]:
    """A listening TCP socket.

    Args:
        address: ``host:port``; port 0 takes a free one.
        public: allow addresses that other machines can reach.
    """
    family, place = resolve_tcp(address)
    if not public and not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
        raise UserError(
            f"{address} can be reached from other machines, and the protocol has no authentication: whoever connects "
            "can play. Use 127.0.0.1, or --public true where the network can be trusted"
        )
    listening = socket.socket(family, socket.SOCK_STREAM)
    with listening:
        if os.name == "posix":  # elsewhere it would share the port with a server that runs
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
            listening.listen(BACKLOG)
        except OSError as error:
            raise UserError(f"cannot listen on {address} ({error}); choose another --tcp") from error
        yield listening


def resolve_tcp(address: str) -> tuple[socket.AddressFamily, tuple]:
    """Family and socket address of ``host:port`` or ``[host]:port``."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed) or not (port.isascii() and port.isdigit()):
        raise UserError(f"--tcp needs host:port such as 127.0.0.1:8089 or [::1]:8089, got {address!r}")
    if int(port) > 65535:
        raise UserError(f"a port is at most 65535, got {port}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"the host of {address!r} is not known ({error})") from error
    family, _, _, _, place = found[0]
    return family, place


def address_option(listening: socket.socket) -> str:
    """The option of a client that reaches this socket."""
    name = listening.getsockname()
    if isinstance(name, str):
        return f"--socket {name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"--tcp {host}:{name[1]}"
