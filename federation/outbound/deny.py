"""Addresses that are never connected to, checked on the address that is dialled, not on a name."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The IANA special-purpose registries: what does not lead to another machine on the public internet.
DEFAULT_NETWORKS = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "100::/64",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)
# Forms of IPv6 that carry an IPv4 address, by the bit at which it begins, counted from the right.
_EMBEDDING = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)


class DenyList:
    """The networks of `federation.ip_denylist`; the word `default` stands for `DEFAULT_NETWORKS`."""

    def __init__(self, networks: Iterable[str]) -> None:
        names = [
            name for given in networks for name in (DEFAULT_NETWORKS if given == "default" else (given,))
        ]
        self._networks = tuple(ipaddress.ip_network(name, strict=False) for name in names)
        self._known = lru_cache(maxsize=4096)(self._look_up)

    def denies(self, address: str) -> bool:
        """Whether an IP address (without brackets) must not be connected to; what is no address is denied."""
        return self._known(address)

    def _look_up(self, address: str) -> bool:
        try:
            parsed: Address = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return bool(self._networks)
        return any(
            form.version == network.version and form in network
            for form in (parsed, *_embedded(parsed))
            for network in self._networks
        )


def _embedded(address: Address) -> tuple[Address, ...]:
    if not isinstance(address, ipaddress.IPv6Address):
        return ()
    return tuple(
        ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
        for network, shift in _EMBEDDING
        if address in network and int(address) > 1
    )
