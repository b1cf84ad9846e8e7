"""Sockets, addresses and names (N01-N50). Listeners and the DNS server of services.py must hear what is allowed, and
nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from akbox.conformance.engine import Result
from akbox.conformance.model import AUTO, Case, Control, Entry, Expect, call, deny, ok, py, refused, require, sh, turns
from akbox.conformance.services import services_of
from akbox.conformance.world import World

Check = Callable[[World, Result], None]
P1, P2 = "127.0.0.1:{P1}", "127.0.0.1:{P2}"
TO_P2: dict[str, object] = {"net.connect": ["ip:127.0.0.1:{P2}"]}
UDP_P2: dict[str, object] = {"net.connect": ["udp+ip:127.0.0.1:{P2}"]}
LISTED: dict[str, object] = {
    "net.dns": ["other.test"],
    "net.connect": ["dns:listed.test:{P2}"],
    "net.private": ["listed.test", "other.test"],
}
WILD: dict[str, object] = {"net.connect": ["dns:*.wild.test:{P2}"], "net.private": ["**.wild.test", "wild.test"]}
DEEP: dict[str, object] = {"net.connect": ["dns:**.wild.test:{P2}"], "net.private": ["**.wild.test", "wild.test"]}
SOCKET = 41
NO_SOCKET = Expect(exit=1, errnos=("EACCES",), entry=Entry(nr=SOCKET))


def forget(world: World) -> None:
    services_of(world).clear()


def silent(*names: str) -> Check:
    def check(world: World, result: Result) -> None:
        for name in names:
            require(services_of(world).heard(name) == [], f"{name} was reached\n{result}")

    return check


def reached(name: str, *what: str) -> Check:
    def check(world: World, result: Result) -> None:
        heard = services_of(world).heard(name)
        require(heard, f"{name} was not reached\n{result}")
        require(set(what) <= set(heard), f"{name} heard {heard}\n{result}")

    return check


def unreached(id: str, title: str, command: tuple[str, ...], expect: Expect, kind: str = "tcp", **more: Any) -> Case:
    """Something that must not reach P1, and does reach it outside."""
    return Case(
        id, title, command, expect, prepare=forget, check=silent("P1"), after_control=reached("P1", kind), **more
    )


def reaching(id: str, title: str, command: tuple[str, ...], policy: dict[str, object], what: str = "tcp") -> Case:
    return Case(id, title, command, ok(), policy=policy, prepare=forget, check=reached("P2", what), control=None)


NO_P1 = deny("net.connect", "ip:127.0.0.1:{P1}")
NO_P1_6 = deny("net.connect", "ip:[[]::1]:{P1}")
QUIET = Expect(entry=Entry("net.connect", "ip:127.0.0.1:{P1}"))  # programs that do not say why
CURL = ("curl", "-sS", "-m5")
# The word is put together here, so that the command line is no place to find it.
KEY_SEARCH = (
    "import glob, os\nword = b'akbox-kit-' + b'credential'\ntexts = [repr(os.environ).encode()]\n"
    "for name in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
    "    try: texts.append(open(name, 'rb').read())\n    except OSError: pass\n"
    "print('found' if any(word in text for text in texts) else 'none', len(texts) > 2)\n"
)
UPLOAD = (
    "import socket\n"
    "try:\n    s = socket.create_connection(('127.0.0.1', {P2}), 10)\n    s.sendall(bytes(20000))\n"
    "    print('answered' if s.recv(100) else 'ended')\n"
    "except OSError: print('cut'); exit(1)\n"
)

ADDRESSES = [
    unreached("N01", "curl to a port that is not listed", (*CURL, f"http://{P1}/"), QUIET),
    unreached("N01-listed", "while another one is", (*CURL, f"http://{P1}/"), QUIET, policy=TO_P2),
    reaching("N02", "curl to one that is", (*CURL, f"http://{P2}/"), TO_P2),
    reaching("N02-raw", "connect to one that is", call("tcp", "127.0.0.1", "{P2}"), TO_P2),
    unreached("N03", "the right host, another port", call("tcp", "127.0.0.1", "{P1}"), NO_P1, policy=TO_P2),
    unreached(
        "N03-v6",
        "the right port of another host",
        call("tcp", "::1", "{P1}"),
        NO_P1_6,
        policy={"net.connect": ["ip:127.0.0.1:{P1}"]},
    ),
    unreached("N04-wget", "wget", ("wget", "-q", "-T5", "-t1", "-O-", f"http://{P1}/"), QUIET),
    unreached("N04-nc", "nc", sh("echo | nc -w2 127.0.0.1 {P1}"), QUIET),
    unreached(
        "N04-bash", "bash's /dev/tcp", ("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/{P1} && echo >&3 && cat <&3"), QUIET
    ),
    unreached(
        "N04-ssh",
        "ssh",
        ("ssh", "-o", "ConnectTimeout=3", "-p", "{P1}", "127.0.0.1"),
        QUIET,
        policy={"fs.read": ["/etc/ssh/**"]},
        control=Control(exit=255),
    ),
    Case(
        "N04-ping",
        "ping",
        ("ping", "-c1", "-W2", "127.0.0.1"),
        Expect(errnos=("EACCES", "EPERM")),
        Control(exit=(0, 2)),
    ),
    *(
        unreached(
            f"N06-{way}" if way == "sendto" else f"N07-{way}",
            f"{way} with MSG_FASTOPEN",
            call("fastopen", "127.0.0.1", "{P1}", way),
            Expect(errnos=("EPERM",), entry=Entry("net.send", "msg:fastopen")),
            policy=TO_P2,
        )
        for way in ("sendto", "sendmsg", "sendmmsg")
    ),
    unreached("N09", "MPTCP", call("mptcp", "127.0.0.1", "{P1}"), refused(SOCKET, ("EACCES",)), policy=TO_P2),
    Case(
        "N09-listed",
        "MPTCP to a listed port",
        call("mptcp", "127.0.0.1", "{P2}"),
        refused(SOCKET, ("EACCES",)),
        policy=TO_P2,
        prepare=forget,
        check=silent("P2"),
    ),
    Case(
        "N11",
        "SCTP, UDP-Lite, DCCP, L2TP",
        call("sockets", "2:1:132 2:5:132 2:2:136 10:2:136 2:6:33 2:2:115"),
        NO_SOCKET,
    ),
    unreached("N12", "an IPv4-mapped address", call("tcp", "::ffff:127.0.0.1", "{P1}"), NO_P1, policy=TO_P2),
    reaching("N12-listed", "of a listed one", call("tcp", "::ffff:127.0.0.1", "{P2}"), TO_P2),
    unreached("N12-any", "0.0.0.0 means loopback", call("tcp", "0.0.0.0", "{P1}"), NO_P1, policy=TO_P2),
    *(
        unreached(
            f"N14-{way}",
            f"UDP by {way}",
            call("udp", "127.0.0.1", "{P1}", way),
            deny("net.send", "udp+ip:127.0.0.1:{P1}"),
            kind="udp",
            policy=TO_P2,
        )
        for way in ("sendto", "sendmsg", "sendmmsg")
    ),
    unreached(
        "N14-v6",
        "UDP over IPv6",
        call("udp", "::1", "{P1}", "sendto"),
        deny("net.send", "udp+ip:[[]::1]:{P1}"),
        kind="udp",
    ),
    unreached(
        "N15",
        "UDP on a connected socket",
        call("udp_connected", "127.0.0.1", "{P1}"),
        deny("net.connect", "udp+ip:127.0.0.1:{P1}"),
        kind="udp",
    ),
    reaching("N17", "UDP to a listed port", call("udp", "127.0.0.1", "{P2}", "sendto"), UDP_P2, "udp"),
    reaching("N17-connected", "connected", call("udp_connected", "127.0.0.1", "{P2}"), UDP_P2, "udp"),
    unreached(
        "N17-two",
        "two datagrams, one of them to an unlisted port",
        call("udp_two", "127.0.0.1", "{P2}", "{P1}"),
        ok("ok 1", Entry("net.send", "udp+ip:127.0.0.1:{P1}")),
        kind="udp",
        policy=UDP_P2,
    ),
    unreached(
        "N18",
        "a UDP rule opens no TCP",
        call("tcp", "127.0.0.1", "{P1}"),
        NO_P1,
        policy={"net.connect": ["udp+ip:127.0.0.1:{P1}"]},
    ),
    unreached(
        "N18-tcp",
        "and no TCP rule UDP",
        call("udp", "127.0.0.1", "{P1}", "sendto"),
        deny("net.send", "udp+ip:127.0.0.1:{P1}"),
        kind="udp",
        policy={"net.connect": ["ip:127.0.0.1:{P1}"]},
    ),
    Case(
        "N19",
        "raw and packet sockets, ICMP",
        call("sockets", "2:3:255 2:3:1 2:2:1 10:3:58 10:2:58 17:3:0x300 17:2:0x300"),
        NO_SOCKET,
    ),
    Case(
        "N20",
        "ALG, VSOCK, XDP, TIPC, RDS, BLUETOOTH, KEY, RXRPC, SMC, CAN, PPPOX, QIPCRTR, NFC; garbage above each int",
        call("sockets", "38:5:0 40:1:0 44:3:0 30:1:0 21:5:0 31:3:0 15:3:2 33:2:2 43:1:0 29:3:1 24:1:0 42:2:0 39:5:1"),
        NO_SOCKET,
    ),
    Case("N21", "a good family with garbage above the int", call("socket", "2", "1", "0"), ok()),
    Case(
        "N22",
        "routing netlink works",
        py(
            "import socket; print(socket.if_nameindex()[0][1])\n"
            "print(socket.getaddrinfo('127.0.0.1', 80, flags=socket.AI_ADDRCONFIG)[0][4][0])"
        ),
        ok("lo\n127.0.0.1"),
    ),
    Case(
        "N22-others",
        "AUDIT, XFRM, SOCK_DIAG, NETFILTER, UEVENT",
        call("sockets", "16:3:9 16:3:6 16:3:4 16:3:12 16:3:15"),
        NO_SOCKET,
    ),
    Case(
        "N24", "interfaces in /sys", ("ls", "/sys/class/net"), Expect(errnos=("EACCES", "ENOENT")), Control(stdout="lo")
    ),
    Case(
        "N25",
        "bind a port that is not listed",
        call("bind", "127.0.0.1", "{P3}"),
        deny("net.bind", "ip:127.0.0.1:{P3}"),
    ),
    Case(
        "N25-any",
        "of every address",
        call("bind", "0.0.0.0", "{P3}"),
        deny("net.bind", "ip:0.0.0.0:{P3}"),
        policy={"net.bind": ["ip:127.0.0.1:{P3}"]},
    ),
    Case(
        "N25-listed", "one that is", call("bind", "127.0.0.1", "{P3}"), ok(), policy={"net.bind": ["ip:127.0.0.1:{P3}"]}
    ),
    Case(
        "N25-range",
        "one of a range",
        call("bind", "127.0.0.1", "{P3}"),
        ok(),
        policy={"net.bind": ["ip:127.0.0.0/8:1024-65535"]},
    ),
    Case("N25-zero", "port 0", call("bind", "127.0.0.1", "0"), deny("net.bind", "ip:127.0.0.1:0")),
    Case(
        "N25-zero-listed",
        "port 0 by a rule",
        call("bind", "127.0.0.1", "0"),
        ok(),
        policy={"net.bind": ["ip:127.0.0.1:0"]},
    ),
    Case(
        "N25-listen",
        "bind is not listen",
        call("listen", "127.0.0.1", "{P3}"),
        deny("net.listen", "ip:127.0.0.1:{P3}"),
        policy={"net.bind": ["ip:127.0.0.1:{P3}"]},
    ),
    Case(
        "N25-listen-listed",
        "both",
        call("listen", "127.0.0.1", "{P3}"),
        ok(),
        policy={"net.bind": ["ip:127.0.0.1:{P3}"], "net.listen": ["ip:127.0.0.1:{P3}"]},
    ),
    Case(
        "N25-listen-unbound",
        "listen on a socket that was never bound",
        call("listen_unbound"),
        deny("net.listen", "ip:0.0.0.0:0"),
        policy={"net.listen": ["ip:127.0.0.1:1024-65535"]},
    ),
    unreached(
        "N49", "an empty list means no network", call("tcp", "127.0.0.1", "{P1}"), NO_P1, policy={"net.connect": []}
    ),
    unreached(
        "N49-section",
        "an empty section, too",
        call("tcp", "127.0.0.1", "{P1}"),
        NO_P1,
        policy={"net.dns": [], "net.bind": []},
    ),
    Case(
        "N43",
        "a credential of akbox's own environment, in the agent's and in /proc",
        py(KEY_SEARCH),
        ok("none True"),
        Control(stdout="found True"),
        policy={"fs.read": ["/proc/**"]},
    ),
    Case(
        "N48",
        "more than the budget bytes has",
        py(UPLOAD),
        Expect(exit=1, stdout="cut", entry=Entry("net.send", "budget:bytes")),
        Control(stdout="answered"),
        policy={**TO_P2, "budgets.bytes": 4096},
        prepare=forget,
        check=reached("P2", "tcp"),
    ),
    unreached("N50", "a child's child", sh("sh -c '{K}/try_call tcp 127.0.0.1 {P1}; exit $?'"), NO_P1, policy=TO_P2),
    unreached(
        "N50-daemon", "one that left the session", sh("setsid -w {K}/try_call tcp 127.0.0.1 {P1}"), NO_P1, policy=TO_P2
    ),
]


def no_name(name: str) -> Expect:
    return Expect(entry=Entry("net.dns", name))


def unknown(id: str, title: str, name: str, policy: dict[str, object], command: tuple[str, ...] | None = None) -> Case:
    """A look-up that fails, with nothing asked of anybody."""
    return Case(
        id,
        title,
        command or ("getent", "ahosts", name),
        no_name(name),
        control=None,
        policy=policy,
        prepare=forget,
        check=silent("DNS"),
    )


def found(id: str, title: str, name: str, policy: dict[str, object], answer: str = "127.0.0.1") -> Case:
    return Case(id, title, ("getent", "ahosts", name), ok(answer), control=None, policy=policy)


def withheld(id: str, name: str, policy: dict[str, object] | None = None) -> Case:
    """An allowed name that leads where no name may lead: asked for, and not handed out."""
    mine: dict[str, object] = {"net.connect": [f"dns:{name}:*"], **(policy or {})}
    command = py(
        f"import socket\ntry: print(socket.getaddrinfo('{name}', {{P1}})[0][4])\n"
        "except socket.gaierror as e: print(e.args[1]); exit(1)"
    )
    return Case(
        id,
        f"{name} leads to a private address",
        command,
        no_name(name),
        control=None,
        policy=mine,
        prepare=forget,
        check=silent("P1"),
    )


DIG = ("dig", "+tries=1", "+time=3", "+nocookie")
CONNECTS = "import socket, sys\nfor a in sys.argv[1:]:\n    h, p = a.rsplit(':', 1)\n" + (
    "    try: socket.create_connection((h, int(p)), 5); print('made')\n"
    "    except OSError as e: print(e.strerror or e)\n"
)
FLIP = (
    "import socket\nfirst = socket.gethostbyname('flip.test')\n"
    "try: print('again', socket.gethostbyname('flip.test'))\nexcept OSError: print('none')\n"
    "socket.create_connection((first, {P2}), 5); print('made', first)\n"
    "try: socket.create_connection(('169.254.169.254', {P2}), 5)\nexcept OSError as e: print(e.strerror)\n"
)

NAMES = [
    Case(
        "N26",
        "dig to a name server of its own",
        (*DIG, "secret.exfil.test", "@127.0.0.1"),
        Expect(exit=0, stdout="NXDOMAIN", entry=Entry("net.dns", "secret.exfil.test")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("DNS"),
    ),
    Case(
        "N26-exit",
        "which is told why",
        (*DIG, "secret.exfil.test", "@127.0.0.1"),
        Expect(exit=0, stdout="EDE: 15 (Blocked)", entry=Entry("net.dns", "secret.exfil.test")),
        control=None,
        policy=LISTED,
    ),
    Case(
        "N26-tcp",
        "over TCP",
        (*DIG, "+tcp", "secret.exfil.test", "@127.0.0.1"),
        Expect(exit=0, stdout="NXDOMAIN", entry=Entry("net.dns", "secret.exfil.test")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("DNS"),
    ),
    Case(
        "N26-port",
        "to a name server on another port",
        (*DIG, "secret.exfil.test", "@127.0.0.1", "-p", "{DNS}"),
        Expect(entry=Entry(("net.connect", "net.send"), "udp+ip:127.0.0.1:{DNS}")),
        Control(stdout="127.0.0.1"),
        policy=LISTED,
        prepare=forget,
        check=silent("DNS"),
        after_control=reached("DNS", "secret.exfil.test A"),
    ),
    Case(
        "N26-none",
        "without rules on names nothing is asked",
        (*DIG, "listed.test", "@127.0.0.1"),
        Expect(),
        control=None,
        policy=TO_P2,
        prepare=forget,
        check=silent("DNS"),
    ),
    *(
        Case(
            f"N26-{kind}",
            f"{kind} of a name that is not listed",
            (*DIG, "secret.exfil.test", kind, "@127.0.0.1"),
            Expect(exit=0, stdout="NXDOMAIN", entry=Entry("net.dns", "secret.exfil.test")),
            control=None,
            policy=LISTED,
            prepare=forget,
            check=silent("DNS"),
            interposers=AUTO,
        )
        for kind in ("TXT", "HTTPS", "MX", "SRV", "NULL")
    ),
    unknown("N27", "getaddrinfo of an unlisted name", "secret.exfil.test", LISTED),
    found("N28", "getaddrinfo of a listed one", "listed.test", LISTED),
    found("N28-dns", "of one that may only be looked up", "other.test", LISTED),
    found(
        "N28-cname",
        "one that is another's alias",
        "cname.test",
        {"net.dns": ["cname.test"], "net.private": ["cname.test"]},
    ),
    found("N28-six", "an IPv6 one", "six.test", {"net.dns": ["six.test"], "net.private": ["six.test"]}, "::1"),
    Case(
        "N28-type",
        "other types of a listed name",
        (*DIG, "+short", "listed.test", "TXT", "@192.0.2.1"),
        ok('"text"'),
        control=None,
        policy=LISTED,
    ),
    Case(
        "N28-big",
        "an answer that takes TCP",
        (*DIG, "+short", "big.test", "TXT", "@192.0.2.1"),
        ok("vvvv"),
        control=None,
        policy={"net.dns": ["big.test"]},
    ),
    Case(
        "N29",
        "curl to a listed name, no proxy",
        (*CURL, "http://listed.test:{P2}/"),
        ok("hello"),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=reached("P2", "tcp"),
    ),
    Case(
        "N29-unlisted",
        "and to another port of it",
        (*CURL, "http://listed.test:{P1}/"),
        Expect(entry=Entry("net.connect", "dns:listed.test:{P1}")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("P1"),
    ),
    Case(
        "N29-dns",
        "and to one that may only be looked up",
        (*CURL, "http://other.test:{P2}/"),
        Expect(entry=Entry("net.connect", "dns:other.test:{P2}")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("P2"),
    ),
    Case(
        "N30",
        "its address before anybody asked for it",
        (*py(CONNECTS), P2),
        ok("Permission denied", Entry("net.connect", "ip:127.0.0.1:{P2}")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("P2"),
    ),
    Case(
        "N30-after",
        "afterwards: the listed port, no other",
        (*py(CONNECTS), "listed.test:{P2}", P2, P1),
        ok("made\nmade\nPermission denied", Entry("net.connect", "dns:listed.test:{P1}")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("P1"),
    ),
    *(
        withheld(f"N31-{name}", name)
        for name in (
            "loop.test",
            "loop6.test",
            "mapped.test",
            "metadata.test",
            "metadata6.test",
            "ten.test",
            "lan.test",
        )
    ),
    *(withheld(f"N31-private-{name}", name, {"net.private": [name]}) for name in ("metadata.test", "metadata6.test")),
    Case(
        "N31-hint",
        "a hint in an HTTPS record",
        (*DIG, "hint.test", "HTTPS", "@192.0.2.1"),
        Expect(exit=0, stdout="NXDOMAIN", entry=Entry("net.dns", "hint.test")),
        control=None,
        policy={"net.dns": ["hint.test"]},
    ),
    Case(
        "N31-rule",
        "an ip: rule says where it may lead",
        (*CURL, "http://loop.test:{P2}/"),
        ok("hello"),
        control=None,
        policy={"net.connect": ["dns:loop.test:{P2}", "ip:127.0.0.1:1"]},
    ),
    Case(
        "N32",
        "what was checked is what is dialled, whatever the next answer is",
        py(FLIP),
        ok("none\nmade 127.0.0.1\nPermission denied"),
        control=None,
        policy={"net.connect": ["dns:flip.test:{P2}"], "net.private": ["flip.test"]},
        prepare=forget,
    ),
    unknown("N34-suffix", "a listed name in front of another", "listed.test.evil.test", LISTED),
    unknown("N34-prefix", "a letter before a listed name", "xlisted.test", LISTED),
    found("N34-dot", "a final dot", "listed.test.", LISTED),
    found("N34-case", "capitals", "LISTED.Test", LISTED),
    found(
        "N34-idn",
        "a name in Unicode",
        "xn--bcher-kva.test",
        {"net.dns": ["bücher.test"], "net.private": ["bücher.test"]},
    ),
    Case(
        "N34-bytes",
        "bytes that no host name has",
        (*DIG, "li\\000sted.test", "@127.0.0.1"),
        Expect(exit=0, stdout="NXDOMAIN", entry=Entry("net.dns")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("DNS"),
    ),
    found("N35", "*.wild.test: one label", "sub.wild.test", WILD),
    unknown("N35-apex", "not the name itself", "wild.test", WILD),
    unknown("N35-two", "not two labels", "a.b.wild.test", WILD),
    found("N35-deep", "**.wild.test: any number", "a.b.wild.test", DEEP),
    unknown("N35-deep-apex", "but not the name itself", "wild.test", DEEP),
    Case(
        "N50-names",
        "a child's child",
        sh("sh -c 'curl -sS -m5 http://listed.test:{P1}/; exit $?'"),
        Expect(entry=Entry("net.connect", "dns:listed.test:{P1}")),
        control=None,
        policy=LISTED,
        prepare=forget,
        check=silent("P1"),
    ),
]

# Every way of running it for the cases that go through different code; the others take turns.
WHOLE = (
    "N01",
    "N02",
    "N06-sendto",
    "N14-sendto",
    "N15",
    "N17-two",
    "N25-listed",
    "N26",
    "N28",
    "N28-big",
    "N29",
    "N30-after",
    "N31-hint",
    "N43",
    "N48",
)
CASES = turns([*ADDRESSES, *NAMES], WHOLE)
