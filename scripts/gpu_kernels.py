"""Times the CUDA kernels against a copy: the table of ``gpu_check.py``.

CUDA events around every call, 5 calls to warm up, median of 30; the GPU is kept busy until all
calls are queued, so that Python's part is not in it. Inputs are random and rotate over at least
512 MB, so that the cache (50 or 60 MB) does not hold them. A fraction is the bytes an operation
must move (each input read once, each output written once) over its time, divided by the same for a
device-to-device copy of 1e9 float32 in the same run: the strictest of the sizes. Goals: 0.85 at 1e9
elements, 0.6 at 25e6 where the copy's bandwidth allows no less than 24 us.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM_UP, CALLS = 5, 30
ROTATE_BYTES = 512_000_000
GOALS = {1_000_000_000: 0.85, 25_000_000: 0.60}
SHORTEST_S = 24e-6
SEGMENTS = 161  # as many parameters as ResNet-50 has

Call = Callable[[], object]


@dataclass
class Timing:
    """One operation at one size."""

    name: str
    n: int
    bytes: float
    seconds: float
    fraction: float  # of the copy's bandwidth
    goal: float | None


def copy_bandwidth() -> float:
    """Return the bytes per second, read and written, of a copy of 1e9 float32."""
    import torch

    n = 1_000_000_000
    x, y = torch.ones(n, device="cuda"), torch.empty(n, device="cuda")
    return 8 * n / seconds([lambda: y.copy_(x)])


def seconds(calls: list[Call]) -> float:
    """Return the median time of one call; they take turns."""
    import torch

    for i in range(max(WARM_UP, len(calls))):
        calls[i % len(calls)]()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * CALLS)]
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # about 25 ms, in which all is queued
    for i in range(CALLS):
        events[2 * i].record()
        calls[i % len(calls)]()
        events[2 * i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(
        start.elapsed_time(end) / 1e3 for start, end in zip(events[::2], events[1::2], strict=True)
    )


def time_all(n: int, copy: float) -> Iterator[Timing]:
    """Time every operation on n coordinates, and print it."""
    import torch

    print(f"\n{n:,} elements\n{'':<22}{'ms':>9}{'TB/s':>7}{'of copy':>9}{'goal':>6}")
    for name, (per_element, make) in operations().items():
        bytes_ = per_element * n
        sets = max(1, math.ceil(ROTATE_BYTES / bytes_))
        calls = [make(n) for _ in range(sets)]
        time_s = seconds(calls)
        del calls
        torch.cuda.empty_cache()
        goal = GOALS.get(n) if bytes_ / copy >= SHORTEST_S else None
        timing = Timing(name, n, bytes_, time_s, bytes_ / time_s / copy, goal)
        said = "" if goal is None else f"{goal:6.2f}" + (" missed" * (timing.fraction < goal))
        speed = f"{time_s * 1e3:9.3f}{bytes_ / time_s / 1e12:7.2f}{timing.fraction:9.2f}"
        print(f"{name:<22}{speed}{said}", flush=True)
        yield timing


def operations() -> dict[str, tuple[float, Callable[[int], Call]]]:
    """Return bytes per coordinate, and what makes a call for n, of every operation."""
    import torch

    import mpimomentum as mm

    def vector(n: int, dtype: Any = torch.float32) -> Any:
        return torch.randn(n, device="cuda", dtype=dtype)

    def rows(k: int, n: int) -> Any:
        m = -(-n // 8)
        return torch.randint(0, 256, (k, m), device="cuda", dtype=torch.uint8)

    def segments(n: int) -> tuple[Any, Any]:
        """Return a scale for each of 161 segments of different sizes, and where they end."""
        sizes = torch.arange(1, SEGMENTS + 1, dtype=torch.float64).square()
        ends = (sizes.cumsum(0) / sizes.sum() * n).long()
        ends[-1] = n
        return torch.rand(SEGMENTS, device="cuda"), ends.cuda()

    def pack(dtype: Any) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            x, bits = vector(n, dtype), rows(1, n)[0]
            return lambda: mm.sign.pack(x, bits)

        return make

    def unpack(n: int) -> Call:
        bits, out = rows(1, n)[0], vector(n)
        return lambda: mm.sign.unpack(bits, n, out=out)

    def signum(n: int) -> Call:
        m, g, bits = vector(n), vector(n), rows(1, n)[0]
        return lambda: mm.sign.signum(m, g, 0.9, bits)

    def apply(decay: float) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            x, bits = vector(n), rows(1, n)[0]
            return lambda: mm.sign.apply(x, bits, 1e-3, decay)

        return make

    def descend(n: int) -> Call:
        x, bits, (scale, ends) = vector(n), rows(1, n)[0], segments(n)
        return lambda: mm.sign.descend(x, bits, scale, ends)

    def ef(n: int) -> Call:
        p, g, bits, (scale, ends) = vector(n), vector(n), rows(1, n)[0], segments(n)
        l1 = torch.empty(len(ends), device="cuda", dtype=torch.float64)
        return lambda: mm.sign.ef(p, g, 0.1, scale, ends, bits, l1)

    def decode(k: int) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            votes, out, (scale, ends) = rows(k, n), vector(n), segments(n)
            scales = scale.repeat(k, 1)
            return lambda: mm.sign.decode(votes, scales, ends, out)

        return make

    def vote(k: int) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            votes, out = rows(k, n), rows(1, n)[0]
            return lambda: mm.sign.vote(votes, out)

        return make

    def count(n: int) -> Call:
        votes, out = rows(8, n), torch.empty(n, device="cuda", dtype=torch.uint16)
        return lambda: mm.sign.count(votes, n, out)

    def average(n: int) -> Call:
        x, y, out = vector(n), vector(n), vector(n)
        return lambda: mm.mix.average(x, y, out)

    def average_unaligned(n: int) -> Call:
        x, y, out = vector(n + 1)[1:], vector(n + 3)[3:], vector(n)
        return lambda: mm.mix.average(x, y, out)

    def exchange(n: int) -> Call:
        x, y, delta = vector(n), vector(n), vector(n)
        return lambda: mm.mix.exchange(x, y, delta)

    def mix(n: int) -> Call:
        xs, out = [vector(n) for _ in range(4)], vector(n)
        return lambda: mm.mix.mix(xs, [0.25] * 4, out)

    def heavy_ball(n: int) -> Call:
        x, m, g = vector(n), vector(n), vector(n)
        return lambda: mm.mix.heavy_ball(x, m, g, 1e-3, 0.9)

    def server_step(n: int) -> Call:
        x, v, u = vector(n), vector(n), vector(n)
        return lambda: mm.mix.server_step(x, v, u, 0.9)

    def encode(format: str, differs: bool) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            x, error = vector(n), vector(n) if differs else None
            out = mm.wire.encode(x, format)
            return lambda: mm.wire.encode(x, format, out, error)

        return make

    def wire_decode(format: str, adds: bool) -> Callable[[int], Call]:
        def make(n: int) -> Call:
            out = vector(n)
            wire = mm.wire.encode(out, format)
            if adds:
                return lambda: mm.wire.decode_add(wire, format, out, 1e-3)
            return lambda: mm.wire.decode(wire, format, out)

        return make

    def on_wires() -> Iterator[tuple[str, tuple[float, Callable[[int], Call]]]]:
        for format in mm.wire.FORMATS:
            wire = mm.wire.nbytes(format, 1 << 20) / (1 << 20)  # of an element, with its scales
            yield f"{format} encode", (4 + wire, encode(format, False))
            yield f"{format} encode, error", (12 + wire, encode(format, True))
            yield f"{format} decode", (4 + wire, wire_decode(format, False))
            yield f"{format} decode_add", (8 + wire, wire_decode(format, True))

    return dict(on_wires()) | {
        "pack": (4 + 1 / 8, pack(torch.float32)),
        "pack bfloat16": (2 + 1 / 8, pack(torch.bfloat16)),
        "unpack": (4 + 1 / 8, unpack),
        "signum": (12 + 1 / 8, signum),
        "apply": (8 + 1 / 8, apply(0.0)),
        "apply, weight decay": (8 + 1 / 8, apply(0.01)),
        "descend, 161 segments": (8 + 1 / 8, descend),
        "ef, 161 segments": (12 + 1 / 8, ef),
        "decode 4 rows": (4 + 4 / 8, decode(4)),
        "decode 31 rows": (4 + 31 / 8, decode(31)),
        "vote of 3": (4 / 8, vote(3)),
        "vote of 8": (9 / 8, vote(8)),
        "vote of 31": (32 / 8, vote(31)),
        "vote of 128": (129 / 8, vote(128)),
        "count of 8": (2 + 8 / 8, count),
        "average": (12, average),
        "average, unaligned": (12, average_unaligned),
        "exchange": (16, exchange),
        "mix of 4": (20, mix),
        "heavy_ball": (20, heavy_ball),
        "server_step": (20, server_step),
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e9, 25e6], metavar="N")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    copy = copy_bandwidth()
    print(f"device-to-device copy of 1e9 float32: {copy / 1e12:.2f} TB/s")
    found = {"device": torch.cuda.get_device_name(), "copy_bytes_per_s": copy}
    timings = []
    for n in args.sizes:
        for timing in time_all(int(n), copy):
            timings.append(asdict(timing))
            if args.out:  # now: the time may be over before all are timed
                args.out.write_text(json.dumps(found | {"timings": timings}))


if __name__ == "__main__":
    main()
