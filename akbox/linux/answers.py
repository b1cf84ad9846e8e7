"""What a DNS query of the agent is answered: allowed names by the host's resolver, every other by NXDOMAIN.

Refusals carry the extended error 15, "Blocked" (RFC 8914), for clients that speak EDNS. Every address that is handed
out was pinned before, and no address is handed out that a name may not lead to.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from msgspec import Struct

from akbox.linux.pins import Pins
from akbox.linux.resolvers import Server
from akbox.linux.upstream import NoAnswer, ask
from akbox.policy.matcher import ALLOW, DENY, NO_RULE
from akbox.policy.netpatterns import Address, canonical_host
from akbox.policy.patterns import PatternError

_TTL_MIN_S, _TTL_MAX_S = 30, 3600
_PIN_GRACE_S = 5  # for a connect that is on its way when the TTL is over
_HOSTS_TTL_S = 60
_PAYLOAD = 1232
_PLAIN_UDP_BYTES = 512
_IPV4HINT, _IPV6HINT = 4, 6  # SvcParamKeys of RFC 9460
_META_TYPES = range(128, 256)  # QTYPEs that are no data: AXFR, ANY, TKEY, …


class Lookup(Struct, frozen=True):
    """One query and what came of it, for the log. `addresses`: those handed out; of a refused answer, those
    withheld."""

    host: str
    rdtype: int
    allowed: bool
    rule: int
    error: int
    addresses: tuple[Address, ...] = ()


class Answerer(Struct, frozen=True):
    """Answers queries; `note` is called with each before its answer leaves, and may raise to stop it."""

    decide: Callable[[str], tuple[int, int]]  # a canonical name's verdict: the decision, the rule's number or NO_RULE
    pins: Pins
    upstream: list[Server]
    stop: int  # as in waiting.py

    def answer(self, wire: bytes, note: Callable[[Lookup], None], *, udp: bool) -> bytes | None:
        """The reply to one query; None for what is no query."""
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return _unreadable(wire)
        if query.flags & dns.flags.QR:
            return None
        reply = self._reply(query, note)
        limit = max(query.payload, _PLAIN_UDP_BYTES) if query.edns >= 0 else _PLAIN_UDP_BYTES
        return _to_wire(query, reply, min(limit, _PAYLOAD) if udp else 65535)

    def _reply(self, query: dns.message.Message, note: Callable[[Lookup], None]) -> dns.message.Message:
        if query.opcode() != dns.opcode.QUERY:
            return _response(query, dns.rcode.NOTIMP)
        if len(query.question) != 1 or query.question[0].rdclass != dns.rdataclass.IN:
            return _response(query, dns.rcode.REFUSED)
        name, rdtype = query.question[0].name, int(query.question[0].rdtype)
        host = _host_of(name)
        decision, rule = (DENY, NO_RULE) if host is None else self.decide(host)
        if rdtype in _META_TYPES:
            return _response(query, dns.rcode.NOTIMP)
        if host is None or decision != ALLOW:
            note(Lookup(host or _printable(name), rdtype, False, rule, errno.EACCES))
            return _response(
                query, dns.rcode.NXDOMAIN, dns.edns.EDECode.BLOCKED, "no rule of the policy allows this name"
            )
        return self._look_up(query, host, rdtype, rule, note)

    def _look_up(
        self, query: dns.message.Message, host: str, rdtype: int, rule: int, note: Callable[[Lookup], None]
    ) -> dns.message.Message:
        name = query.question[0].name
        if host in self.pins.hosts and rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            given = [a for a in self.pins.hosts[host] if (a.version == 4) == (rdtype == dns.rdatatype.A)]
            reply = _response(query, dns.rcode.NOERROR)
            if given:
                texts = [str(a) for a in given]
                reply.answer.append(
                    dns.rrset.from_text(
                        name, _HOSTS_TTL_S, "IN", dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype)), *texts
                    )
                )
            note(Lookup(host, rdtype, True, rule, 0, tuple(given)))
            return reply
        try:
            wants_dnssec = bool(query.ednsflags & dns.flags.DO)
            answer = ask(self.upstream, dns.name.from_text(host + "."), rdtype, dnssec=wants_dnssec, stop=self.stop)
        except NoAnswer as error:
            note(Lookup(host, rdtype, True, rule, errno.ETIMEDOUT))
            return _response(query, dns.rcode.SERVFAIL, dns.edns.EDECode.NETWORK_ERROR, f"the host's resolver: {error}")
        return self._hand_out(query, answer, Lookup(host, rdtype, True, rule, 0), note)

    def _hand_out(
        self, query: dns.message.Message, answer: dns.message.Message, lookup: Lookup, note: Callable[[Lookup], None]
    ) -> dns.message.Message:
        """The answer without what may not be handed out, its addresses pinned."""
        reply = _response(query, answer.rcode())
        given: list[tuple[Address, int]] = []
        withheld: list[Address] = []
        for rrset in answer.answer:
            kept = dns.rrset.RRset(rrset.name, rrset.rdclass, rrset.rdtype, rrset.covers)
            ttl_s = min(max(rrset.ttl, _TTL_MIN_S), _TTL_MAX_S)
            for rdata in rrset:
                addresses = _addresses(rdata)
                refused = [a for a in addresses if self.pins.refusal(lookup.host, a)]
                withheld += refused
                if not refused:
                    kept.add(rdata, ttl_s)
                    given += [(a, ttl_s) for a in addresses]
            if kept:
                reply.answer.append(kept)
        if withheld:
            note(Lookup(lookup.host, lookup.rdtype, False, NO_RULE, errno.EACCES, tuple(withheld)))
            if not given:
                text = f"it leads to {withheld[0]} ({self.pins.refusal(lookup.host, withheld[0])})"
                return _response(query, dns.rcode.NXDOMAIN, dns.edns.EDECode.BLOCKED, text)
        for address, ttl_s in given:
            self.pins.pin(lookup.host, address, ttl_s + _PIN_GRACE_S)
        note(Lookup(lookup.host, lookup.rdtype, True, lookup.rule, 0, tuple(a for a, _ in given)))
        if not reply.answer:
            reply.authority = [r for r in answer.authority if r.rdtype == dns.rdatatype.SOA]
        return reply


def _host_of(name: dns.name.Name) -> str | None:
    """None for a name that no rule can be about: the root, and labels of other bytes than a host name's."""
    try:
        return canonical_host(name.to_text(omit_final_dot=True))
    except PatternError:
        return None


def _printable(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)[:255] or "."


def _addresses(rdata: object) -> list[Address]:
    """Every address in a record that a client may connect to."""
    texts: list[str] = []
    rdtype = getattr(rdata, "rdtype", None)
    if rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
        texts.append(rdata.address)  # type: ignore[attr-defined]
    elif rdtype in (dns.rdatatype.SVCB, dns.rdatatype.HTTPS):
        for key in (_IPV4HINT, _IPV6HINT):
            hint = rdata.params.get(key)  # type: ignore[attr-defined]
            texts += hint.addresses if hint is not None else ()
    return [ipaddress.ip_address(text) for text in texts]


def _response(
    query: dns.message.Message, rcode: int, error: dns.edns.EDECode | None = None, text: str = ""
) -> dns.message.Message:
    reply = dns.message.make_response(query, recursion_available=True, our_payload=_PAYLOAD)
    reply.set_rcode(dns.rcode.Rcode(rcode))
    if error is not None and query.edns >= 0:
        reply.use_edns(0, payload=_PAYLOAD, options=[dns.edns.EDEOption(error, text)])
    return reply


def _to_wire(query: dns.message.Message, reply: dns.message.Message, limit: int) -> bytes:
    try:
        return reply.to_wire(max_size=limit)
    except dns.exception.TooBig:
        cut = _response(query, reply.rcode())
        cut.flags |= dns.flags.TC
        return cut.to_wire(max_size=limit)


def _unreadable(wire: bytes) -> bytes | None:
    """FORMERR, made of the header alone; nothing for less than a header or for a response."""
    if len(wire) < 12 or wire[2] & 0x80:
        return None
    flags = bytes([0x80 | wire[2] & 0x79, 0x80 | dns.rcode.FORMERR])
    return wire[:2] + flags + b"\0" * 8
