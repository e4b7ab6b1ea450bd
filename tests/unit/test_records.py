"""From the rank that makes a record to metrics.jsonl: nothing twice, nothing out of order."""

from __future__ import annotations

import io
import json
import logging

import numpy as np
import pytest

from mpimomentum.runtime import records
from mpimomentum.runtime.records import RecordFile, RecordStream, lines, merge, merge_ranks, path_of


def rows(rank, times):
    return [{"rank": rank, "step": i, "time_s": float(t)} for i, t in enumerate(times)]


def filled(path, what, keep=None):
    file = RecordFile(path)
    if keep is not None:
        file.keep(keep)
    file.append(what)
    file.close()
    return file


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_json_even_where_numbers_are_not_finite():
    text = lines([{"loss": float("nan"), "rank": 0}, {"loss": float("inf")}, {"loss": 1.0}])
    assert [json.loads(line) for line in text.splitlines()] == [
        {"loss": None, "rank": 0},
        {"loss": None},
        {"loss": 1.0},
    ]


def test_a_stream_takes_in_no_more_than_its_limit(tmp_path):
    stream = RecordStream(tmp_path / "r.jsonl", limit=3)
    for i in range(5):
        stream.put({"step": i})
    stream.write()
    stream.put({"step": 5})
    stream.close()
    assert [r["step"] for r in read(tmp_path / "r.jsonl")] == [0, 1, 2, 5]
    assert stream.file.count == 4


def test_a_resumed_stream_drops_what_came_after_the_checkpoint(tmp_path):
    first = RecordStream(tmp_path / "r.jsonl")
    for row in rows(0, range(5)):
        first.put(row)
    state = json.loads(json.dumps(first.state_dict()))
    assert read(tmp_path / "r.jsonl") == rows(0, range(5))  # nothing waits at a checkpoint
    first.put({"step": "lost with the crash"})
    first.write()
    resumed = RecordStream(tmp_path / "r.jsonl")
    resumed.write()  # nothing yet: must not begin anew
    resumed.load_state_dict(state)
    resumed.put({"step": 5})
    resumed.close()
    assert read(tmp_path / "r.jsonl") == [*rows(0, range(5)), {"step": 5}]
    assert resumed.file.count == 6


def test_a_stream_without_records_leaves_an_empty_file(tmp_path):
    filled(tmp_path / "r.jsonl", rows(0, range(5)))
    RecordStream(tmp_path / "r.jsonl").close()
    assert read(tmp_path / "r.jsonl") == []


def test_what_was_appended_can_be_read_at_once(tmp_path):
    file = RecordFile(tmp_path / "metrics" / "r.jsonl")
    file.append(rows(0, range(3)))
    assert read(file.path) == rows(0, range(3))
    file.append(rows(0, range(200)))
    assert len(read(file.path)) == file.count == 203
    assert file.path.stat().st_size == file.nbytes
    file.close()


@pytest.mark.parametrize("keep", [0, 3, 5, 9])
def test_a_resumed_file_has_what_the_checkpoint_knew_and_what_follows(tmp_path, keep):
    path = tmp_path / "r.jsonl"
    filled(path, rows(0, range(5)))
    file = filled(path, rows(1, range(2)), keep)
    assert read(path) == rows(0, range(min(keep, 5))) + rows(1, range(2))
    assert file.count == min(keep, 5) + 2


def test_a_line_that_a_crash_cut_off_is_dropped_on_resume(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(lines(rows(0, range(2))) + '{"rank": 0, "st')
    filled(path, rows(0, [7]), keep=3)
    assert read(path) == rows(0, range(2)) + rows(0, [7])


def test_a_new_file_begins_anew(tmp_path):
    filled(tmp_path / "r.jsonl", rows(0, range(5)))
    filled(tmp_path / "r.jsonl", rows(0, range(2)))
    assert read(tmp_path / "r.jsonl") == rows(0, range(2))


def test_a_refused_write_leaves_whole_pieces(tmp_path, monkeypatch):
    file = RecordFile(tmp_path / "r.jsonl")
    file.append(rows(0, range(2)))

    class Full(io.RawIOBase):
        def __init__(self, disk):
            self.disk = disk

        def write(self, data):
            if len(data) > 10:
                return self.disk.write(data[:10])
            raise OSError(28, "No space left on device")

        def truncate(self, size):
            return self.disk.truncate(size)

    disk, file._file = file._file, Full(file._file)
    with pytest.raises(OSError, match="No space"):
        file.append([{"a": 1}])
    disk.close()
    assert read(file.path) == rows(0, range(2))
    assert file.count == 2


@pytest.mark.parametrize("open_files", [2, 200])
def test_merged_records_are_all_there_in_order_of_time_and_rank(tmp_path, monkeypatch, open_files):
    monkeypatch.setattr(records, "OPEN_FILES", open_files)
    rng = np.random.default_rng(0)
    parts = [rows(r, np.sort(rng.integers(0, 20, 30))) for r in range(5)]
    paths = [filled(path_of(tmp_path, r), part).path for r, part in enumerate(parts)]
    with (tmp_path / "all").open("wb") as target:
        merge(paths, target)
    key = lambda r: (r["time_s"], r["rank"], r["step"])  # noqa: E731
    assert read(tmp_path / "all") == sorted((r for part in parts for r in part), key=key)
    assert sorted((tmp_path / "metrics").iterdir()) == sorted(paths)


def test_files_that_rank_0_does_not_see_stay_where_they_are(tmp_path, caplog):
    files = [filled(path_of(tmp_path, r), rows(r, range(3))) for r in range(2)]
    nbytes = [f.nbytes for f in files]
    with caplog.at_level(logging.WARNING, "mpimomentum"):
        assert not merge_ranks(tmp_path, [*nbytes, 100])
        assert not merge_ranks(tmp_path, [nbytes[0], nbytes[1] + 1])
    assert "ranks [2]" in caplog.text
    assert "ranks [1]" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["metrics"]
    assert merge_ranks(tmp_path, nbytes)
    assert len(read(tmp_path / "metrics.jsonl")) == 6
