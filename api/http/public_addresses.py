"""Decides which addresses belong to the public internet, so that a client's URL cannot reach the private network."""

from ipaddress import IPv4Network, IPv6Network, ip_address

PUBLIC_V6 = IPv6Network("2000::/3")  # all allocated addresses; everything else is local, mapped or reserved
NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # IETF protocols
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/23"),  # IETF protocols, Teredo among them, which leads to an IPv4 address
    IPv6Network("2002::/16"),  # 6to4, which leads to an IPv4 address
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: str) -> bool:
    """Return True if the address, as the resolver writes it, is one host of the public internet."""
    found = ip_address(address)
    if found.version == 6 and found not in PUBLIC_V6:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved:
        return False
    return not any(found in network for network in NOT_PUBLIC if network.version == found.version)
