"""Writing what is made of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.telemetry import replacing


@contextlib.contextmanager
def written(out: Path) -> Iterator[BinaryIO]:
    """Open a file for what is made; it is there in whole or not at all.

    Raises
    ------
    BadInput
        If that is not possible there.
    """
    if not out.parent.is_dir():
        raise BadInput(f"out={out}: there is no directory {out.parent}; choose another --out")
    if out.is_dir():
        raise BadInput(f"out={out} is a directory; choose a file as --out")
    try:
        with replacing(out) as file:
            yield file
    except OSError as error:
        raise BadInput(f"out={out}: {error}; choose a writable --out, with room") from error
