"""One question to the host's own resolver, one answer.

Only what dnspython parses and what answers the question that was asked comes back. Sockets and ids are new for every
question, so that a forged answer has to guess both (RFC 5452).
"""

from __future__ import annotations

import errno
import os
import socket
import time

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from akbox.linux.resolvers import Server
from akbox.linux.waiting import READ, WRITE, Stopped, read_message, wait, write_message

_TRY_S = (1.5, 3.0)  # each server, in each round
_PAYLOAD = 1232


class NoAnswer(Exception):
    """No server answered in time."""


def ask(upstream: list[Server], name: dns.name.Name, rdtype: int, *, dnssec: bool, stop: int) -> dns.message.Message:
    """The answer of the first server that gives one. stop: as in waiting.py. Raises NoAnswer, Stopped."""
    last: Exception | None = None
    kind = dns.rdatatype.RdataType.make(rdtype)
    for limit_s in _TRY_S:
        for server in upstream:
            end = time.monotonic() + limit_s
            try:
                question = dns.message.make_query(name, kind, use_edns=0, payload=_PAYLOAD, want_dnssec=dnssec)
                answer = _by_udp(server, question, end, stop)
                if answer.flags & dns.flags.TC:
                    answer = _by_tcp(server, question, end, stop)
            except Stopped:
                raise
            except (OSError, EOFError, dns.exception.DNSException, ValueError) as error:
                last = error
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return answer
            last = ValueError(dns.rcode.to_text(answer.rcode()))
    raise NoAnswer(f"{last or 'there is no server'}")


def _open(server: Server, kind: socket.SocketKind, end: float, stop: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(*server, type=kind, flags=socket.AI_NUMERICHOST)[0]
    opened = socket.socket(family, kind)
    try:
        opened.setblocking(False)
        error = opened.connect_ex(address)
        if error == errno.EINPROGRESS:
            wait(opened, WRITE, end, stop)
            error = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except OSError:
        opened.close()
        raise
    return opened


def _by_udp(server: Server, question: dns.message.Message, end: float, stop: int) -> dns.message.Message:
    with _open(server, socket.SOCK_DGRAM, end, stop) as s:
        s.send(question.to_wire())
        while True:
            wait(s, READ, end, stop)
            try:
                answer = dns.message.from_wire(s.recv(65535), ignore_trailing=True)
            except (dns.exception.DNSException, ValueError, BlockingIOError):
                continue
            if question.is_response(answer):
                return answer


def _by_tcp(server: Server, question: dns.message.Message, end: float, stop: int) -> dns.message.Message:
    with _open(server, socket.SOCK_STREAM, end, stop) as s:
        write_message(s, question.to_wire(), end, stop)
        answer = dns.message.from_wire(read_message(s, end, stop))
    if not question.is_response(answer):
        raise ValueError("the answer is not to the question")
    return answer
