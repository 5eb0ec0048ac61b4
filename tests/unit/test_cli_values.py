# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written on the command line, as values: sizes, whole numbers, groups; and a size as it is shown."""

import argparse

import pytest

from diffengine.cli.analyze import UsageError, parse_groups
from diffengine.cli.status import mib
from diffengine.cli.values import size, whole_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4096),
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("64 mb", 64 << 20),
        ("1G", 1 << 30),
        ("2TiB", 2 << 40),
        (" 7B ", 7),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1e6", "64X", "64MM", "1" * 16, "0x10", "٣", "64M 1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size; write for example 64M"):
        size(text)


def test_whole_numbers_keep_to_their_range() -> None:
    parse = whole_number(2, 2**64 - 1)
    assert [parse(text) for text in ("2", "007", str(2**64 - 1))] == [2, 7, 2**64 - 1]
    for text in ("1", str(2**64), "", "-3", "+3", "3.0", " 3", "3 ", "three", "1_000", "٣", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 2 to"):
            parse(text)


def test_groups_are_indices_of_images() -> None:
    images = ["a.raw", "dir/b.raw", "c=1.raw", "d.raw"]
    assert parse_groups([], images) == {}
    assert parse_groups(["web=d.raw,a.raw", "db=c=1.raw"], images) == {"web": (3, 0), "db": (2,)}


def test_an_image_that_is_given_twice_is_in_the_group_twice() -> None:
    assert parse_groups(["web=a.raw"], ["a.raw", "b.raw", "a.raw"]) == {"web": (0, 2)}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["web"], "not of the form NAME=IMAGE"),
        (["=a.raw"], "not of the form NAME=IMAGE"),
        (["web="], "not of the form NAME=IMAGE"),
        (["web=a.raw,"], " is not among the images"),
        (["web=x.raw"], "x.raw is not among the images; name it as an IMAGE too"),
        (["web=a.raw,a.raw"], "a.raw is in a group already"),
        (["web=a.raw", "db=b.raw,a.raw"], "a.raw is in a group already"),
        (["web=a.raw", "web=b.raw"], "there is a group web already"),
    ],
)
def test_groups_that_can_not_be(texts: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as told:
        parse_groups(texts, ["a.raw", "b.raw"])
    assert told.value.exit_code == 2


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 MiB"), (-4096, "0.0 MiB"), (-(1 << 20), "-1.0 MiB"), (3 << 29, "1,536.0 MiB")]
)
def test_a_size_that_is_shown(count: int, text: str) -> None:
    assert mib(count) == text
