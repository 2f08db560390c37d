"""Network interfaces: can what they receive be mapped?

The kernel maps whole pages of payload and nothing else. So a network card has to put headers elsewhere (header split),
and a frame has to carry a multiple of 4,096 bytes. Loopback, and what connects containers of one host, hand over the
sender's pages as they are.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from zcrpc.doctor.finding import Finding
from zcrpc.doctor.host import PAGE

# TCP/IPv4 and /IPv6 headers, and the timestamps that Linux sends by default.
_HEADERS: Final = (20 + 20 + 12, 40 + 20 + 12)
_SYS: Final = Path("/sys/class/net")

# linux/netlink.h, genetlink.h, ethtool_netlink.h
_GENERIC: Final = 16
_CONTROL: Final = 16
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2
_RINGS_GET: Final = 15
_SIOCGIFADDR: Final = 0x8915
_NESTED: Final = 1 << 15
_DEVICE_NAME: Final = 2
_TCP_DATA_SPLIT: Final = 11
_SPLIT: Final = {1: False, 2: True}


@dataclass(slots=True, frozen=True)
class Interface:
    """What is known of one.

    driver: "" for one without a device: loopback, veth, a bridge.
    header_split: None where the driver does not say.
    """

    name: str
    mtu: int
    driver: str
    header_split: bool | None

    @property
    def is_loopback(self) -> bool:
        return self.name == "lo"


def look(name: str) -> Interface:
    """An interface by name. OSError if there is none."""
    if name not in (each for _, each in socket.if_nameindex()):
        raise OSError(errno.ENODEV, f"there is no interface {name!r}")
    directory = _SYS / name
    mtu = int((directory / "mtu").read_text())
    driver = directory / "device" / "driver"
    return Interface(name, mtu, driver.resolve().name if driver.exists() else "", header_split(name))


def all_up() -> list[Interface]:
    """Those that are up, loopback first."""
    found = []
    for _, name in socket.if_nameindex():
        with suppress(OSError, ValueError):
            if name == "lo" or (_SYS / name / "operstate").read_text().strip() == "up":
                found.append(look(name))
    return sorted(found, key=lambda each: not each.is_loopback)


def towards(host: str) -> Interface:
    """The interface by which a host is reached. OSError if it cannot be found."""
    family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(where)  # sends nothing
        own = sock.getsockname()[0].partition("%")[0]
    if ip_address(own).is_loopback or own == where[0]:
        return look("lo")  # the host's own addresses are reached over loopback
    for name in _named(own):
        return look(name)
    raise OSError(errno.ENODEV, f"whose address {own} is cannot be found out; give --interface")


def _named(own: str) -> Iterator[str]:
    """The interfaces that have an address."""
    address = ip_address(own)
    if isinstance(address, IPv6Address):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            if bytes.fromhex(digits) == address.packed:
                yield name
        return
    for _, name in socket.if_nameindex():
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if ioctl(sock, _SIOCGIFADDR, struct.pack("40s", name.encode()))[20:24] == address.packed:
                yield name


def finding(interface: Interface) -> Finding:
    """Whether what comes in by it can be mapped."""
    found = f"MTU {interface.mtu:,}, {interface.driver or 'no driver'}"
    if interface.is_loopback:
        return Finding("", "good", found, "hands over the sender's pages: payloads can be mapped")
    if not interface.driver:
        return Finding("", "unknown", found, "maps if the other end is on this host; not measured")
    payload = interface.mtu - _HEADERS[0]
    fits = payload >= PAGE and payload % PAGE == 0
    split = {True: "splits headers", False: "header split off", None: "header split unknown"}[interface.header_split]
    found = f"{found}, {split}"
    if fits and interface.header_split:
        return Finding("", "good", found, f"frames carry {payload // PAGE} whole pages: payloads can be mapped")
    to_do = []
    if not interface.header_split:
        to_do.append(f"ethtool -G {interface.name} tcp-data-split on, if the card can")
    if not fits:
        to_do.append(f"MTU {PAGE + _HEADERS[0]:,} or {2 * PAGE + _HEADERS[0]:,} at all ends, if the network takes it")
    means = "payloads are copied" if interface.header_split is False or not fits else "payloads may have to be copied"
    return Finding("", "note", found, means, "; ".join(to_do))


# ---- header split, which only netlink tells; `ethtool -g` asks the same


def header_split(name: str) -> bool | None:
    """Whether an interface splits headers; None if its driver does not say, or nobody can be asked."""
    try:
        family = _ask(_CONTROL, _GET_FAMILY, _attribute(_FAMILY_NAME, b"ethtool\0"))
        (number,) = struct.unpack("=H", family[_FAMILY_ID])
        device = _attribute(1 | _NESTED, _attribute(_DEVICE_NAME, name.encode() + b"\0"))
        rings = _ask(number, _RINGS_GET, device)
    except (OSError, KeyError, struct.error):
        return None
    return _SPLIT.get(rings.get(_TCP_DATA_SPLIT, b"\0")[0])


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(family: int, command: int, attributes: bytes) -> dict[int, bytes]:
    """The attributes of the answer to a generic netlink message. OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC) as sock:
        sock.settimeout(1.0)
        message = struct.pack("=BBH", command, 1, 0) + attributes
        sock.sendto(struct.pack("=IHHII", 16 + len(message), family, 1, 1, 0) + message, (0, 0))
        answer = sock.recv(1 << 16)
    length, kind, *_ = struct.unpack_from("=IHHII", answer)
    if kind == 2:  # NLMSG_ERROR
        raise OSError(-struct.unpack_from("=i", answer, 16)[0], "netlink")
    found, at = {}, 20
    while at + 4 <= length:
        size, number = struct.unpack_from("=HH", answer, at)
        found[number & ~_NESTED] = answer[at + 4 : at + size]
        at += max((size + 3) & ~3, 4)
    return found
