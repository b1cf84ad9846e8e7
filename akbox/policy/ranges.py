"""Addresses that a name may not lead to by itself: who answers for a name chooses where it leads, a policy's author
does not.

An answer of 127.0.0.1 or 169.254.169.254 for an allowed name (DNS rebinding) would open what no rule is about.
"""

from __future__ import annotations

import ipaddress

from akbox.policy.netpatterns import Address, canonical_address

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, GCP, Azure, OpenStack, DigitalOcean, Oracle
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "fd00:ec2::254",  # AWS over IPv6
        "fd00:ec2::23",
        "fd20:ce::254",  # GCP over IPv6
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle, older
        "168.63.129.16",  # Azure's host agent
    )
)
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def kind_of(address: Address) -> str:
    """What kind of address it is that a name may not lead to: "cloud metadata", "link-local", "loopback", "private
    network", …; "" for one of the public Internet."""
    address = canonical_address(address)
    if address in METADATA:
        return "cloud metadata"
    if address.is_unspecified:
        return "unspecified"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "multicast"
    if address.is_link_local:
        return "link-local"
    if address.is_loopback:
        return "loopback"
    inner = _embedded(address)
    if inner is not None:
        return kind_of(inner)
    return "" if address.is_global else "private network"


def may_be_private(kind: str) -> bool:
    """May net.private let a name lead to an address of this kind? Not to metadata and its like."""
    return kind in ("", "loopback", "private network", "this machine's network")


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a translator or tunnel would make of it."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
