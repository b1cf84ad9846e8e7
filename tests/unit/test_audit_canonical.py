"""RFC 8785 and strict JSON."""

import json
import math
import runpy
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from akbox.kernel.canonical import CanonicalError, canonical, interoperable, number
from akbox.kernel.strictjson import StrictJSONError, depth, parse

VERIFY_LOG = Path(__file__).parents[2] / "scripts" / "verify-log"
OTHER = runpy.run_path(str(VERIFY_LOG))

# RFC 8785 appendix B: IEEE 754 bits and their JSON text.
RFC_NUMBERS = [
    ("0000000000000000", "0"), ("8000000000000000", "0"), ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"), ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"), ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"), ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"), ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"), ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"), ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"), ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"), ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"), ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"), ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]  # fmt: skip
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS)
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert number(value).decode() == text
    assert OTHER["number"](value) == text


def test_the_example_of_the_rfc() -> None:
    value = json.loads(
        '{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        '"string":"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/","literals":[null,true,false]}'
    )
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_are_sorted_by_utf16() -> None:
    keys = ["€", "\r", "\ufb33", "1", "😀", "\x80", "ö"]  # RFC 8785 3.2.3
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]


@given(JSON_VALUES)
def test_canonical_is_a_fixed_point_and_keeps_the_value(value: object) -> None:
    text = canonical(value)
    assert canonical(json.loads(text)) == text
    assert parse(text, wide_ints=True) == json.loads(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53 + 1, -(2**64), "\ud800", {1: 2}, {"a"}, {"\udfff": 1}])
def test_what_has_no_canonical_form_is_an_error(value: object) -> None:
    with pytest.raises(CanonicalError):
        canonical(value)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CanonicalError):
        canonical(value)


def test_interoperable_makes_anything_canonical() -> None:
    odd = {"big": 2**64, "neg": -(2**60), "inf": math.inf, "lone": "a\ud800b", "raw": b"\xff/x", "\udc80": (1, True)}
    assert json.loads(canonical(interoperable(odd))) == {
        "big": "18446744073709551616", "neg": str(-(2**60)), "inf": "inf", "lone": "a\\ud800b", "raw": "\\xff/x",
        "\\udc80": [1, True],
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b'{"a":1,"a":2}', b'{"b":{"a":1,"a":1}}', b"NaN", b"[Infinity]", b"-Infinity", b"{} {}", b"{}\0",
        b"\xef\xbb\xbf{}", b'"\xff"', b'"\\ud800"', b'{"\\udc00":1}', b"1e999", b"18446744073709551616", b"[1,]",
        b"-9223372036854775809", b"'a'", b'"\n"', b"[" * 65 + b"]" * 65,
        b"[" * 900_000, b'{"a":' * 65 + b"1" + b"}" * 65,
        b'"' + b'\\"' * 300_000, b"01", b"\x00",
    ],
)  # fmt: skip
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(StrictJSONError):
        parse(data)


def test_strict_json_takes_what_is_right() -> None:
    assert parse(b" [" + b"[" * 63 + b"]" * 63 + b"] ") is not None
    assert parse(b'{"a":18446744073709551615,"b":-9223372036854775808,"c":"\\ud83d\\ude00 [[[","d":1.5}') == {
        "a": 2**64 - 1, "b": -(2**63), "c": "😀 [[[", "d": 1.5,
    }  # fmt: skip
    assert parse(b'"' + b"[" * 1000 + b'"') == "[" * 1000


def test_depth() -> None:
    assert [depth(1), depth([]), depth({"a": [{}]}), depth([[], [[1]]])] == [0, 1, 3, 3]


@given(JSON_VALUES)
@example(2.0**-24)  # the shortest digits are not the exact value rounded half to even
def test_the_independent_verifier_writes_the_same_canonical_json(value: object) -> None:
    assert OTHER["canonical"](value).encode() == canonical(value)


def test_the_independent_verifier_imports_nothing_of_akbox() -> None:
    done = subprocess.run(["python3", "-I", VERIFY_LOG], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: verify-log" in done.stderr
    assert not [
        line for line in VERIFY_LOG.read_text().splitlines() if "import" in line and "akbox" in line and "." in line
    ]
