"""Network patterns: host names, and what may be connected to, bound or listened on. Grammar only.

Addresses are ipaddress networks; an IPv4-mapped IPv6 network is its IPv4 network, because the kernel sends such
packets as IPv4 (RFC 4291, 2.5.5.2). Names are A-labels in lower case without a final dot (RFC 5890).
"""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct

from akbox.policy.patterns import PatternError, check_text

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z"  # compiled when a host is named
PORT_MAX = 65535
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

# Suffixes under which anybody may register a name. Not the whole list (it changes weekly and has 10,000 lines): the
# ones that make a wildcard an obvious mistake. A single label after the wildcard is always refused.
PUBLIC_SUFFIXES = frozenset(
    (
        *(
            "co.uk",
            "org.uk",
            "ac.uk",
            "gov.uk",
            "com.au",
            "net.au",
            "org.au",
            "co.nz",
            "co.jp",
            "ne.jp",
            "or.jp",
            "com.br",
        ),
        *("com.cn", "com.mx", "com.tr", "co.in", "co.kr", "co.za", "com.sg", "com.hk", "com.tw"),
        *(
            "github.io",
            "gitlab.io",
            "pages.dev",
            "workers.dev",
            "vercel.app",
            "netlify.app",
            "herokuapp.com",
            "web.app",
        ),
        *("firebaseapp.com", "azurewebsites.net", "cloudfront.net", "amazonaws.com", "s3.amazonaws.com", "appspot.com"),
        *(
            "blob.core.windows.net",
            "run.app",
            "ngrok.io",
            "ngrok.app",
            "ngrok-free.app",
            "trycloudflare.com",
            "fly.dev",
        ),
        *("onrender.com", "surge.sh", "blogspot.com"),
    )
)


class HostPattern(Struct, frozen=True):
    """`wild` is "" for the name itself, "*" for exactly one label before it, "**" for one or more; name "" with "*" is
    all."""

    wild: str
    name: str


class Endpoint(Struct, frozen=True):
    """A host pattern or a network, a port range (both ends included), and the protocols it covers ("tcp", "udp")."""

    host: HostPattern | None
    network: Network | None
    low: int
    high: int
    protocol: str


def canonical_host(text: str) -> str:
    """A host name as it is compared: A-labels, lower case, no final dot. Raises PatternError."""
    name = text.removesuffix(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise PatternError(f"not a host name: {error}", "write its A-label form (xn--…)") from error
    labels = name.split(".")
    if len(name) > 253 or not all(re.match(LABEL, label) for label in labels):
        raise PatternError(
            f"not a host name: {text!r}", "letters, digits and - in labels of at most 63, joined by dots"
        )
    return name


def parse_host(text: str) -> HostPattern:
    """Parse `example.com`, `*.example.com`, `**.example.com` or `*`; raises PatternError."""
    check_text(text)
    if "://" in text or "/" in text or "@" in text:
        bare = re.sub(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", "", text).split("/")[0].rpartition("@")[2].split(":")[0]
        raise PatternError("this is a URL, not a host name", f'write "{bare}"' if bare else "write only the host name")
    if text == "*":
        return HostPattern("*", "")
    if text.startswith("[") or _is_address(text):
        raise PatternError("this is an address, not a host name", f'write "ip:{text}:PORT" in net.connect')
    if ":" in text:
        raise PatternError(
            "a host name has no port here", f'write "{text.partition(":")[0]}", the port belongs to net.connect'
        )
    wild, dot, rest = text.partition(".")
    if wild not in ("*", "**"):
        if "*" in text:
            raise PatternError("a wildcard must be the whole first label", "write *.example.com or **.example.com")
        return HostPattern("", canonical_host(text))
    if not dot or "*" in rest:
        raise PatternError("a wildcard must be the whole first label", "write *.example.com, **.example.com or *")
    name = canonical_host(rest)
    if "." not in name or name in PUBLIC_SUFFIXES:
        raise PatternError(f"{text} covers names of everybody under {name}", f"name the domain: {wild}.example.{name}")
    return HostPattern(wild, name)


def match_host(pattern: HostPattern, host: str) -> bool:
    """`host` must be canonical (canonical_host)."""
    if not pattern.wild:
        return host == pattern.name
    if not pattern.name:
        return True
    head = host.removesuffix("." + pattern.name)
    return head != host and head != "" and (pattern.wild == "**" or "." not in head)


def parse_endpoint(text: str, *, ip_only: bool = False) -> Endpoint:
    """Parse `[udp+]dns:HOST:PORT`, `[udp+]ip:ADDR[/BITS]:PORT` or `[udp+]ip:[V6][/BITS]:PORT`; raises PatternError."""
    check_text(text)
    protocol, rest = ("udp", text[4:]) if text.startswith("udp+") else ("tcp", text)
    scheme, colon, rest = rest.partition(":")
    if not colon or scheme not in ("dns", "ip"):
        raise PatternError("must start with dns: or ip:", _endpoint_hint(text))
    if "://" in text:
        raise PatternError("this is a URL", _endpoint_hint(rest))
    where, colon, port = rest.rpartition(":")
    if not colon or (scheme == "ip" and where.startswith("[") and "]" not in where):
        raise PatternError("the port is missing", f'write "{text}:443", or :* for every port')
    low, high = parse_ports(port)
    if scheme == "dns":
        if ip_only:
            raise PatternError("only an address can be bound or listened on", 'write "ip:127.0.0.1:PORT"')
        return Endpoint(parse_host(where), None, low, high, protocol)
    return Endpoint(None, parse_network(where), low, high, protocol)


def _endpoint_hint(text: str) -> str:
    found = re.match(r"(?:([a-z]+)://)?(?:[^/@]*@)?([A-Za-z0-9.*_-]+)(?::(\d+))?", text)
    if not found:
        return 'write "dns:example.com:443" or "ip:192.0.2.1:443"'
    scheme, host, port = found.groups()
    kind = "ip" if _is_address(host) else "dns"
    return f'write "{kind}:{host}:{port or ("80" if scheme == "http" else "443")}"'


def parse_ports(text: str) -> tuple[int, int]:
    """`443`, `8000-8100` or `*`: the lowest and the highest port; raises PatternError."""
    if text == "*":
        return 0, PORT_MAX
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    if not found:
        raise PatternError(f"not a port: {text!r}", "write a number, lo-hi or *")
    low, high = int(found[1]), int(found[2] or found[1])
    if max(low, high) > PORT_MAX:
        raise PatternError(f"port {max(low, high)} is over {PORT_MAX}", f"write a number from 0 to {PORT_MAX}")
    if low > high:
        raise PatternError(f"the range {text} is empty", f"write {high}-{low}")
    return low, high


def parse_network(text: str) -> Network:
    """`10.0.0.0/8`, `192.0.2.1`, `[2001:db8::]/32`; IPv4-mapped networks become IPv4. Raises PatternError."""
    address, _, bits = text.partition("/")
    bracketed = address.startswith("[") and address.endswith("]")
    bare = address[1:-1] if bracketed else address
    if "%" in bare:
        raise PatternError("an address may not name an interface", f'write "{bare.split("%")[0]}"')
    if ":" in bare and not bracketed:
        raise PatternError(
            "an IPv6 address is written in brackets", f'write "ip:[{bare}]{"/" + bits if bits else ""}:PORT"'
        )
    try:
        parsed = ipaddress.ip_address(bare)
    except ValueError as error:
        raise PatternError(
            f"not an address: {address!r}", 'write "ip:192.0.2.1:443", or "dns:NAME:443" for a name'
        ) from error
    if bracketed and parsed.version == 4:
        raise PatternError("brackets are for IPv6", f'write "ip:{bare}:PORT"')
    if "/" in text and (not bits.isascii() or not bits.isdigit() or int(bits) > parsed.max_prefixlen):
        raise PatternError(f"bad prefix length {bits!r}", f"write a number from 0 to {parsed.max_prefixlen}")
    length = int(bits) if bits else parsed.max_prefixlen
    network = ipaddress.ip_network((parsed, length), strict=False)
    if network.network_address != parsed:
        fixed = f"[{network.network_address}]" if parsed.version == 6 else str(network.network_address)
        raise PatternError(f"{bare}/{length} has bits set beyond its prefix", f"write {fixed}/{length}")
    if isinstance(network, ipaddress.IPv6Network) and length >= 96 and network.network_address in MAPPED:
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, length - 96))
    return network


def canonical_address(address: Address) -> Address:
    """IPv4-mapped IPv6 as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
