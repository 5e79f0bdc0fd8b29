"""Old nonces, read from what older programs left behind; no server needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraken_nonce_redis import migration
from kraken_nonce_redis.errors import InvalidArgument
from kraken_nonce_redis.migration import NAMES, UNITS, OldNonce

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_760_000_000_123_456_789
YEAR = 365 * 86_400 * 10**9
UNIT_NAMES = [unit for unit, _ in UNITS]

moments = st.integers(NOW - 10 * YEAR, NOW + YEAR)
units = st.sampled_from(UNITS)
spellings: list[Callable[[int], Any]] = [int, str]


@given(moments, units)
def test_any_whole_number_of_a_known_unit_is_recognised(moment: int, unit: tuple[str, int]) -> None:
    """Whatever unit an old program counted in, its last nonce is found to be that unit, and exact."""
    name, length = unit
    old = migration.recognise(str(moment // length), NOW)
    assert old == OldNonce(str(moment // length), name, moment // length * length)


@given(moments, st.sampled_from(UNITS[:4]))
def test_a_fraction_is_kept_and_never_rounded_down(moment: int, unit: tuple[str, int]) -> None:
    """`time.time()` written to a file is read to the last digit, upwards where digits end."""
    name, length = unit
    digits = len(str(length)) - 1
    written = f"{moment // length}.{moment % length:0{digits}}05"
    old = migration.recognise(written, NOW)
    assert old.unit == name
    assert moment <= old.nonce <= moment + 1


@given(st.integers(0, 10**25))
def test_a_number_is_one_moment_near_the_present_or_refused(number: int) -> None:
    """A value that is no recent time in any unit is refused; none is stretched to fit."""
    fits = [length for _, length in UNITS if migration._EARLIEST <= number * length <= NOW + migration._SLACK]
    if not fits:
        with pytest.raises(InvalidArgument, match="is not a time between 2011"):
            migration.recognise(str(number), NOW)
    else:
        assert migration.recognise(str(number), NOW).nonce == number * fits[0]
        assert len(fits) == 1


@given(
    moments,
    units,
    st.sampled_from(NAMES),
    st.sampled_from(spellings),
    st.sampled_from(["{0}", '{{"kraken": {0}}}', '{{"keys": [{{"x": 1.5, "state": {0}}}], "issued": 3}}']),
)
def test_a_json_state_is_read_wherever_its_last_nonce_stands(
    moment: int, unit: tuple[str, int], name: str, spell: Callable[[int], Any], frame: str
) -> None:
    """A state file is read by the usual names of its nonce, as number or text, however nested."""
    state = json.dumps({name: spell(moment // unit[1]), "saved_at": "2025-10-09T08:53:20Z"})
    old = migration.read(frame.format(state).encode(), NOW)
    assert (old.unit, old.nonce) == (unit[0], moment // unit[1] * unit[1])


@given(st.binary(max_size=200) | st.text().map(str.encode) | st.from_regex(r"[\[{\"0-9.eE+-]{1,40}").map(str.encode))
def test_any_other_content_is_refused_with_an_error_of_ours(content: bytes) -> None:
    """The wrong file gives a reason and not a traceback."""
    try:
        old = migration.read(content, NOW)
    except InvalidArgument as error:
        assert error.parameter in {"file", "nonce"}  # noqa: PT017 - either outcome is right
    else:
        assert migration._EARLIEST <= old.nonce <= NOW + migration._SLACK


@pytest.mark.parametrize(
    ("content", "unit", "nonce"),
    [
        ("1759999999", "seconds", 1759999999000000000),
        ("1759999999.25\n", "seconds", 1759999999250000000),
        ("1759999999123", "milliseconds", 1759999999123000000),
        ("1759999999123.5", "milliseconds", 1759999999123500000),
        ("1759999999123456\r\n", "microseconds", 1759999999123456000),
        ("175999999912345678", "ticks of 10 ns", 1759999999123456780),
        ("1759999999123456789", "nanoseconds", 1759999999123456789),
        ("\ufeff 1759999999123456789 ", "nanoseconds", 1759999999123456789),
        ('"1759999999123456789"', "nanoseconds", 1759999999123456789),
        ('{"lastNonce": 1759999999123}', "milliseconds", 1759999999123000000),
        ('{"last-nonce": "1759999999123", "nonce": 1759999999123000000}', "nanoseconds", 1759999999123000000),
    ],
)
def test_the_usual_files(content: str, unit: str, nonce: int) -> None:
    """The files that krakenex, ccxt and home-grown managers leave are read as they are."""
    old = migration.read(content.encode(), NOW)
    assert (old.unit, old.nonce) == (unit, nonce)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe1\x007\x00", "not UTF-8 text"),
        (b"9" * 70_000, "longer than 65536 bytes"),
        (b"1759999999123\n1759999999124\n", "neither one decimal number nor JSON"),
        (b"1_759_999_999_123", "neither one decimal number nor JSON"),
        (b"1e99999999999999999999999", "neither one decimal number nor JSON"),
        (b"[" * 60_000, "neither one decimal number nor JSON"),
        (b"-1759999999123", "is not a time"),
        (b"0", "is not a time"),
        (b"62000.1", "is not a time"),
        (b"1e-999999999", "is not a time"),
        (b"9" * 5_000, "a number of 5000 characters is not a time"),
        (b"1.759999999123457e+18", "last digits are lost"),
        (b"NaN", "last digits are lost"),
        (b"Infinity", "last digits are lost"),
        ('"\u0661\u0667\u0665"'.encode(), "without sign, exponent or separators"),
        (b"{}", "has no number under any of the names"),
        (b"null", "has no number under any of the names"),
        (b"[1759999999123]", "has no number under any of the names"),
        (b'{"nonce": true}', "has no number under any of the names"),
        (b'{"a": {"nonce": 1759999999123}, "b": {"nonce": 1759999999124}}', "has 2 different nonces"),
    ],
)
def test_what_is_unclear_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    """Nothing is guessed: raising a nonce can't be undone."""
    with pytest.raises(InvalidArgument, match=reason):
        migration.read(content, NOW)


def test_a_refusal_shows_nothing_of_the_file() -> None:
    """The wrong file may hold API keys; they don't end up in a terminal or a log."""
    for content in ("my-api-key\nmy-secret\n", '{"my-api-key": {"nonce": "my-secret"}}', '"my-api-key"'):
        with pytest.raises(InvalidArgument) as caught:
            migration.read(content.encode(), NOW)
        assert "my-" not in str(caught.value)


def test_the_units_are_named_as_the_docs_name_them() -> None:
    """The unit that is reported is one of five."""
    assert UNIT_NAMES == ["seconds", "milliseconds", "microseconds", "ticks of 10 ns", "nanoseconds"]
