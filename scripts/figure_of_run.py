#!/usr/bin/env python
"""Write one figure of ``mpimomentum report`` to a file, for a document.

Such as::

    python scripts/figure_of_run.py runs/mine "Where the time goes" docs/time-split.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpimomentum.reports.figures import figures
from mpimomentum.reports.history import History
from mpimomentum.reports.run_directory import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="of the run")
    parser.add_argument("title", help="of the figure, as on the page")
    parser.add_argument("out", type=Path, help="file to write, SVG")
    options = parser.parse_args()
    run = RunDirectory.open(options.directory)
    drawn = {picture.title: picture for picture in figures([(run.name, History.of(run))])}
    if options.title not in drawn:
        parser.error(f"no figure {options.title!r}; there are {', '.join(map(repr, drawn))}")
    options.out.write_bytes(drawn[options.title].svg)
    print(drawn[options.title].caption)


if __name__ == "__main__":
    main()
