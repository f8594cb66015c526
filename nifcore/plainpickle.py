"""A reader of pickles that hold plain data, and of nothing else.

A pickle is a program for a stack machine; the standard library's reader lets it call any function.
Here only the operations that build dictionaries, strings, bytes, integers and floats exist. The
published encoder writes its files in this subset (protocol 4).
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from typing import Any

from nifcore.errors import CorruptBitstream

_MAX_OPERATIONS = 10_000
"""Ten times what the deepest network needs; bounds time and memory whatever the file's size."""

_MAX_PROTOCOL = 5

# Operations with an argument of fixed size.
_FIXED = {
    pickle.PROTO: "<B",
    pickle.FRAME: "<Q",
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
    pickle.BINPUT: "<B",
    pickle.LONG_BINPUT: "<I",
    pickle.BINGET: "<B",
    pickle.LONG_BINGET: "<I",
}
# Operations whose argument follows its own length.
_COUNTED = {
    pickle.SHORT_BINUNICODE: "<B",
    pickle.BINUNICODE: "<I",
    pickle.SHORT_BINBYTES: "<B",
    pickle.BINBYTES: "<I",
    pickle.LONG1: "<B",
}
_NAMES = {operation.code.encode("latin-1"): operation.name for operation in pickletools.opcodes}
_BARE = {pickle.EMPTY_DICT, pickle.MARK, pickle.SETITEM, pickle.SETITEMS, pickle.MEMOIZE}


def read_plain_pickle(data: bytes) -> Any:
    """Return the object that a pickle describes, executing nothing.

    Args:
        data: a pickle of protocol 2 to 5 made of dict (with str keys), str, bytes, int and float.

    Returns:
        A tree of new objects; no dictionary occurs in it twice, so it has no cycles.

    Raises:
        CorruptBitstream: damaged, too long, or made with any other operation, which is named.
    """
    machine = _Machine()
    position = 0
    for _ in range(_MAX_OPERATIONS):
        operation = data[position : position + 1]
        if operation == pickle.STOP:
            if position + 1 != len(data):
                raise CorruptBitstream(f"{len(data) - position - 1} bytes follow the pickle's end")
            return machine.result()
        argument, following = _argument(data, operation, position)
        try:
            machine.run(operation, argument)
        except IndexError as error:
            raise CorruptBitstream(
                f"pickle operation {_NAMES[operation]} at byte {position} lacks its operands"
            ) from error
        position = following
    raise CorruptBitstream(f"the pickle has more than {_MAX_OPERATIONS:,} operations")


def _argument(data: bytes, operation: bytes, position: int) -> tuple[Any, int]:
    """Return the argument of the operation at ``position`` and where the next one stands."""
    if operation in _BARE:
        return None, position + 1
    layout = _FIXED.get(operation) or _COUNTED.get(operation)
    if layout is None:
        raise CorruptBitstream(_refusal(operation, position))
    start = position + 1 + struct.calcsize(layout)
    if start > len(data):
        raise CorruptBitstream(f"the pickle is cut off at byte {position}")
    (value,) = struct.unpack_from(layout, data, position + 1)
    if operation in _FIXED:
        return value, start
    if start + value > len(data):
        raise CorruptBitstream(
            f"the pickle is cut off: at byte {position}, {value:,} bytes are announced and "
            f"{len(data) - start:,} are left"
        )
    content = data[start : start + value]
    if operation == pickle.LONG1:
        return int.from_bytes(content, "little", signed=True), start + value
    if operation in (pickle.SHORT_BINUNICODE, pickle.BINUNICODE):
        try:
            return content.decode("utf-8", "surrogatepass"), start + value
        except UnicodeDecodeError as error:
            raise CorruptBitstream(f"the text at byte {start} is no UTF-8: {error}") from error
    return content, start + value


def _refusal(operation: bytes, position: int) -> str:
    if not operation:
        return f"not a pickle, or one that is cut off after {position} bytes"
    if position == 0 or operation not in _NAMES:
        return f"not a pickle, or a damaged one: byte {position} is 0x{operation.hex()}"
    return (
        f"pickle operation {_NAMES[operation]} at byte {position} is refused; accepted are those "
        "for dict, str, bytes, int and float"
    )


class _Machine:
    """The stack, the stacks below its marks, and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, operation: bytes, argument: Any) -> None:
        """Do one operation.

        Raises:
            IndexError: the stack holds less than the operation takes.
            CorruptBitstream: the operation makes no sense here.
        """
        if operation == pickle.EMPTY_DICT:
            self._stack.append({})
        elif operation == pickle.MARK:
            self._below.append(self._stack)
            self._stack = []
        elif operation == pickle.SETITEMS:
            items = self._stack
            self._stack = self._below.pop()
            self._set(items)
        elif operation == pickle.SETITEM:
            value, key = self._stack.pop(), self._stack.pop()
            self._set([key, value])
        elif operation == pickle.MEMOIZE:
            self._memo[len(self._memo)] = self._stack[-1]
        elif operation in (pickle.BINPUT, pickle.LONG_BINPUT):
            self._memo[argument] = self._stack[-1]
        elif operation in (pickle.BINGET, pickle.LONG_BINGET):
            self._recall(argument)
        elif operation == pickle.PROTO:
            if argument > _MAX_PROTOCOL:
                raise CorruptBitstream(f"pickle protocol {argument}; 2 to {_MAX_PROTOCOL} is known")
        elif operation != pickle.FRAME:
            self._stack.append(argument)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise CorruptBitstream("the pickle sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                raise CorruptBitstream(f"dictionary key {key!r:.60} is no string or occurs twice")
            target[key] = value

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise CorruptBitstream(f"the pickle recalls entry {index}, which it did not store")
        value = self._memo[index]
        if isinstance(value, dict):
            # The only way to a cycle, or to a tree far larger than the file.
            raise CorruptBitstream("the pickle uses a dictionary twice")
        self._stack.append(value)

    def result(self) -> Any:
        if len(self._stack) != 1 or self._below:
            raise CorruptBitstream(f"the pickle ends with {len(self._stack)} objects; expected one")
        return self._stack[0]
