"""Where a file of a data set is, and what is said when it is not there or is something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def found(folder: Path, names: Sequence[str], expected: str, remedy: str) -> Path:
    """Return the first file of `names` that `folder` holds.

    Parameters
    ----------
    folder : Path
    names : sequence of str
        Names under which it may go.
    expected : str
        What the file holds.
    remedy : str
        How to get it.

    Raises
    ------
    FileNotFoundError
        If there is none; the message has all of the above.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
    raise FileNotFoundError(
        f"{folder / names[0]} not found{others}; "
        f"expected {expected}; in that folder: {_content(folder)}. {remedy}"
    )


def unexpected(path: Path, expected: str, found: str, remedy: str) -> ValueError:
    """Return the error that says what was expected in `path` and what was found."""
    return ValueError(f"{path}: expected {expected}, found {found}. {remedy}")


def _content(folder: Path) -> str:
    """Return what `folder` holds, in words, cut to a few names."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
