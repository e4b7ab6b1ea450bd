"""Read the pickles of CIFAR without letting them run anything.

A pickle may name any function and have it called. Here a name is looked up in a short table and
stands for a function of this file; numpy's own are not called, since they trust what they are
given. What comes out are plain containers, numbers, strings, bytes and arrays of bytes. Anything
else is refused before it is imported.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Refused(ValueError):
    """The pickle asks for something that these files have no need of."""


class _StandIn:
    """What a name in a pickle becomes: can be called, and neither looked into nor changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise Refused("a change of a function")


class _Bytes:
    """numpy's dtype; only that of unsigned bytes can be had."""

    __slots__ = ()

    def __init__(self, name: object, *_: object) -> None:
        if name not in ("u1", b"u1", "|u1", b"|u1"):
            raise Refused(f"an array of dtype {name!r} instead of unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: bytes have none."""


class _Array:
    """An array of bytes while it is read; ``value`` is a numpy array afterwards."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take numpy's state: version, shape, dtype, whether in Fortran's order, content."""
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Bytes) or not isinstance(content, bytes):
            raise Refused("an array that is not of bytes")
        self.value = np.frombuffer(content, dtype=np.uint8)
        self.value = self.value.reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: Any, dtype: object, shape: Any, order: Any) -> _Array:
    """Make an array as protocol 5 writes it."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Make bytes as Python 3 writes them in protocol 2."""
    if encoding != "latin1":
        raise Refused(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "dtype"): _StandIn(_Bytes),
    ("numpy", "ndarray"): _StandIn(_Array),  # only ever named, as an argument of the next two
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): _StandIn(_Array) for core in ("core", "_core")
    },
    **{
        (f"numpy.{core}.numeric", "_frombuffer"): _StandIn(_from_buffer)
        for core in ("core", "_core")
    },
    ("_codecs", "encode"): _StandIn(_encode),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, without importing anything."""
        if (module, name) not in _KNOWN:
            raise Refused(f"a call of {module}.{name}, which is not made")
        return _KNOWN[module, name]


def loads(content: bytes) -> Any:
    """Return the plain data in a pickle, arrays as read-only uint8 numpy arrays.

    Arrays are looked for among the values of a dictionary at the top, where CIFAR has them. What
    Python 2 wrote as a string comes as bytes.

    Raises
    ------
    Refused
        If it asks for anything else; nothing of that was executed.
    ValueError
        If it is not a pickle, or not a whole one.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"no whole pickle ({str(error) or type(error).__name__})") from error
    if isinstance(value, dict):
        return {k: v.value if isinstance(v, _Array) else v for k, v in value.items()}
    return value
