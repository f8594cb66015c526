from __future__ import annotations

import os
import pickle
import pickletools
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nifcore.errors import CorruptBitstream
from nifcore.plainpickle import read_plain_pickle

LEAVES = (
    st.text(max_size=300)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.binary(max_size=300)
)
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(st.text(max_size=20), inner, max_size=6), max_leaves=30
)


@given(TREES, st.sampled_from([4, 5]))
@example({"a": b"x" * 70_000, "b": "y" * 70_000}, 4)
@example({}, 5)
def test_plain_data_is_read_as_the_standard_library_reads_it(tree: Any, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(tree, protocol)) == tree


@given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=5))
def test_protocol_2_and_3_without_bytes(tree: dict[str, Any]) -> None:
    assert read_plain_pickle(pickle.dumps(tree, 2)) == tree
    assert read_plain_pickle(pickle.dumps(tree, 3)) == tree


class Trap:
    """Runs a command when an unwary reader loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "sprung"
    data = pickle.dumps({"head.weight": Trap(trap)}, protocol)
    with pytest.raises(
        CorruptBitstream, match=r"pickle operation \w+ at byte \d+ is refused|not a pickle"
    ):
        read_plain_pickle(data)
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists()


@pytest.mark.parametrize(
    ("value", "operation"),
    [
        (None, "NONE"),
        (True, "NEWTRUE"),
        ([1], "EMPTY_LIST"),
        ((1, 2), "TUPLE2"),
        ({1}, "EMPTY_SET"),
        (OrderedDict(), "STACK_GLOBAL"),
        (np.float64(1), "STACK_GLOBAL"),
        (bytearray(b"x"), "STACK_GLOBAL"),
        (print, "STACK_GLOBAL"),
    ],
)
def test_other_types_are_refused_by_the_name_of_the_operation(value: Any, operation: str) -> None:
    with pytest.raises(CorruptBitstream, match=f"pickle operation {operation} at byte"):
        read_plain_pickle(pickle.dumps({"a": value}, 4))


def test_every_other_operation_is_refused() -> None:
    plain = {
        "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "MEMOIZE",
        "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "SHORT_BINUNICODE", "BINUNICODE",
        "SHORT_BINBYTES", "BINBYTES", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    }  # fmt: skip
    refused = 0
    for operation in pickletools.opcodes:
        if operation.name not in plain:
            with pytest.raises(CorruptBitstream):
                read_plain_pickle(operation.code.encode("latin-1") + b"0\n0\n" * 9 + b".")
            refused += 1
    assert refused == len(pickletools.opcodes) - len(plain)


def test_a_dictionary_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(CorruptBitstream, match="uses a dictionary twice"):
        read_plain_pickle(pickle.dumps(loop, 4))


def test_a_tree_larger_than_its_file_is_refused() -> None:
    level: dict[str, Any] = {"leaf": 1}
    for _ in range(40):
        level = {"a": level, "b": level}
    with pytest.raises(CorruptBitstream, match="uses a dictionary twice"):
        read_plain_pickle(pickle.dumps(level, 4))


P = b"\x80\x04"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        P,
        b"hello, no pickle",
        P + b"}",  # no end
        P + b".",  # nothing
        P + b"}}.",  # two objects
        P + b"}(.",  # an open mark
        P + b"}.more",
        P + b"u.",  # items without a mark
        P + b"(u.",  # items of nothing
        P + b"}(K\x01u.",  # a key without a value
        P + b"}(K\x01K\x02u.",  # a key that is no string
        P + b"}(}K\x02u.",  # a key that has no hash
        P + b"}(\x8c\x01aK\x01\x8c\x01aK\x02u.",  # the same key twice
        P + b"K\x01\x8c\x01aK\x02s.",  # an item of a number
        P + b"s.",
        P + b"\x94.",  # stores nothing
        P + b"h\x07.",  # recalls what is not there
        P + b"B\xff\xff\xff\xffabc.",  # four gigabytes in three bytes
        P + b"X\xff\xff\xff\x7fabc.",
        P + b"\x8e" + b"\xff" * 8 + b"abc.",
        P + b"\x8e" + b"\xff\xff\xff\xff\xff\0\0\0" + b"abc.",
        P + b"\x8b\xff\xff\xff\x7f.",
        P + b"\x8c\x02\xff\xff.",  # no UTF-8
        b"\x80\x09}.",  # a protocol to come
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_malformed_pickles_are_refused_cheaply(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(CorruptBitstream):
        read_plain_pickle(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("operation", [b"}", b"(", b"K\x01", b"\x94"])
def test_a_flood_of_operations_is_stopped(operation: bytes) -> None:
    flood = P + b"}" + operation * 1_000_000 + b"."
    tracemalloc.start()
    with pytest.raises(CorruptBitstream, match="more than 10,000 operations"):
        read_plain_pickle(flood)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * len(flood)


@given(st.binary(max_size=200))
def test_random_bytes_give_plain_data_or_are_refused(data: bytes) -> None:
    for candidate in (data, P + data + b"."):
        try:
            value = read_plain_pickle(candidate)
        except CorruptBitstream:
            continue
        assert isinstance(value, dict | str | int | float | bytes)
