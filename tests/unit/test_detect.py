"""What the detector finds, what it leaves alone, and that no text keeps it busy."""

from __future__ import annotations

import base64
import random
import string
import time

import pytest

from akbox.kernel.detect import MASK, entropy, find, luhn, removed, scan, scrubbed

R = random.Random(7)


def rand(n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(R.choice(alphabet) for _ in range(n))


def b64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


JWT = ".".join((b64('{"alg": "HS256", "typ": "JWT"}'), b64('{"sub": "1234567890"}'), rand(43)))
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join(rand(64) for _ in range(8)) + "\n-----END RSA PRIVATE KEY-----"
SECRETS = {
    "api key (anthropic)": [f"sk-ant-api03-{rand(80)}"],
    "api key (openai)": [f"sk-{rand(48)}", f"sk-proj-{rand(60)}"],
    "api key (stripe)": [f"sk_live_{rand(24)}"],
    "api key (aws)": ["AKIA" + rand(16, string.ascii_uppercase + "234567") for _ in range(3)],
    "api key (google)": [f"AIza{rand(35)}"],
    "api key (github)": [f"ghp_{rand(36)}", f"github_pat_{rand(22)}_{rand(59)}"],
    "api key (gitlab)": [f"glpat-{rand(20)}"],
    "api key (slack)": ["xoxb-" + rand(12, string.digits) + "-" + rand(12, string.digits) + "-" + rand(24)],
    "api key (hugging face)": [f"hf_{rand(34)}"],
    "api key (npm)": [f"npm_{rand(36)}"],
    "jwt": [JWT],
    "private key": [PEM, PEM.replace("\n", "\\n")],
    "bearer token": [rand(40)],
    "password in a URL": ["x7Gh-29Kq"],
    "password": ["Tr0ub4dor&3-ok", rand(20)],
    "card number": ["4012888888881881", "4539 1488 0343 6467", "3714 496353 98431", "6011000990139424"],
    "capability": [f"akc1.{rand(60)}.{rand(43)}"],
}
AROUND = {
    "bearer token": "Authorization: Bearer {}", "password in a URL": "postgres://admin:{}@db.example.org/x",
    "password": "DB_PASSWORD={}",
}  # fmt: skip


@pytest.mark.parametrize("kind", SECRETS)
def test_it_is_found(kind: str) -> None:
    for secret in SECRETS[kind]:
        for frame in ("{}", "The key is {}.", '{{"k": "{}"}}', "a\n{}\nb", "({})"):
            text = frame.format(AROUND.get(kind, "{}").format(secret))
            kinds = [f.kind for f in find(text)]
            assert kinds, (kind, text)
            clean, _ = removed(text)
            assert secret not in clean
            assert MASK in clean


@pytest.mark.parametrize(
    "text",
    [
        "sk-your-api-key-here", "sk-xxxxxxxxxxxxxxxxxxxxxxxx", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "x" * 36,
        "eyJhbGciOiJ9.eyJ9.abc",
        "password = os.environ['DB_PASSWORD']", "password: str", "api_key=${API_KEY}", "PASSWORD=<your password>",
        "token = self.get_access_token(user)", "secret_key = settings.secret_key", "password=getpass()",
        "password=hunter",
        "4111 1111 1111 1112", "1234567890123456", "0000000000000000", "order 4111-11-11", "id=4111111111111111",
        "sha256 " + "0123456789abcdef" * 4, "550e8400-e29b-41d4-a716-446655440000", "3.141592653589793238",
        "1700000000000000000", "https://user@example.org/x", "https://user:password@example.org",
        "Bearer authentication is used",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----", "if '-----BEGIN RSA PRIVATE KEY-----' in text:",
        "-----BEGIN CERTIFICATE-----\n" + rand(64) * 4, "commit 3f786850e387550fdab836ed7e6dc881de23001b", "é" * 100,
        "",
    ],
)  # fmt: skip
def test_it_is_left_alone(text: str) -> None:
    assert find(text) == []


def test_json_values() -> None:
    key = SECRETS["api key (anthropic)"][0]
    value = {"a": ["ok", {"b": f"use {key}"}], "n": 4012888888881881, key: True, "t": True}
    found = scan(value)
    assert sorted((f.kind, f.path) for f in found) == [
        ("api key (anthropic)", " (key)"), ("api key (anthropic)", "/a/1/b"), ("card number", "/n"),
    ]  # fmt: skip
    assert scan(scrubbed({k: v for k, v in value.items() if k != "n"})) == []


def test_card_numbers_need_their_check_digit() -> None:
    assert luhn("4111111111111111")
    hits = sum(bool(find(f"card {rand(16, string.digits)} ok")) for _ in range(2000))
    assert hits < 2000 * 0.05  # one in ten has the check digit, and of those few an issuer


def test_entropy() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a-",
        "sk-",
        "password=",
        "eyJ",
        "4111 ",
        "9",
        "://",
        "a://b:",
        "bearer ",
        "xoxb-a-",
        "akc1.",
        "x_",
        "P" * 50,
    ],
)
def test_no_text_keeps_it_busy(part: str) -> None:
    """A megabyte of what each shape begins with: seconds would mean that it goes back and forth."""
    text = (part * (1 << 20))[: 1 << 20]
    began = time.process_time()
    find(text)
    assert time.process_time() - began < 10, part
