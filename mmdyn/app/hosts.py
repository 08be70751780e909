"""Which names the page's server answers to."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def is_own_name(header: str, listening: str) -> bool:
    """Whether a Host header, with or without a port, names this server.

    Where other machines are let in, every address will do: the page of another site whose name
    was made to lead here (DNS rebinding) is asked for by that name, and never by an address.

    Args:
        header: the header.
        listening: name or address that the server listens at.
    """
    try:
        name = urlsplit(f'//{header}').hostname or ''
    except ValueError:
        return False
    if is_loopback(name) or name == listening.strip('[]').lower():
        return True
    if is_loopback(listening):
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        own = socket.gethostname().lower()
        return name in (own, own.partition('.')[0], f'{own}.local')


def check_free(host: str, port: int | None) -> None:
    """Refuse to listen where that is not possible; gradio would try for minutes.

    Args:
        host: name or address.
        port: None = any.

    Raises:
        OSError: if the address is none of this machine's, or the port is taken.
    """
    address = host.strip('[]')
    try:
        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port or 0))
    except OSError as error:
        place = f'--host {host}' if port is None else f'--host {host} --port {port}'
        raise OSError(
            f"{place}: {error.strerror}; give an address of this machine's and a free port"
        ) from error
