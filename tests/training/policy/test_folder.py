"""Files that appear whole or not at all, also on a full disk, and folders that one process holds."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from paragone_training.errors import DiskFullError, FolderTakenError, RunError
from paragone_training.policy.rows import (
    locked,
    need_space,
    read_json_file,
    read_table,
    write_json,
    write_table,
)

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float64())])


FULL_DISK = """
# A limit on the size of files stands for a disk without room: both end in an OSError in the middle of writing. It is
# set in a process of its own, because it would cut off whatever else writes there: the log of the tests, say.
import os, resource, signal, sys
from pathlib import Path
import pyarrow as pa
from paragone_training.errors import DiskFullError
from paragone_training.policy.rows import write_folder, write_table, write_text

path, schema = Path(sys.argv[2]), pa.schema([("name", pa.string()), ("value", pa.float64())])
names = [f"name {number} {os.urandom(8).hex()}" for number in range(2000)]
text = "\\n".join(names)
write = {
    "table": lambda: write_table(path, {"name": names, "value": [0.5] * 2000}, schema),
    "text": lambda: write_text(path, text),
    "folder": lambda: write_folder(path, lambda folder: (folder / "weights").write_text(text) and None),
}[sys.argv[1]]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write()
except DiskFullError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["table", "text", "folder"])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(kind, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, kind, str(tmp_path / "file")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "free some and resume the run" in said
    assert list(tmp_path.iterdir()) == []


def test_a_table_survives_the_disk_with_its_gaps(tmp_path):
    write_table(tmp_path / "one.parquet", {"value": [0.5, None], "name": ["a", "b"]}, SCHEMA)
    assert list(read_table(tmp_path / "one.parquet", SCHEMA)) == [("a", 0.5), ("b", None)]


def test_what_cannot_be_read_says_how_to_go_on(tmp_path):
    (tmp_path / "one.parquet").write_text("no table")
    with pytest.raises(RunError, match="remove it, and resuming computes it again"):
        read_table(tmp_path / "one.parquet", SCHEMA)
    with pytest.raises(RunError, match="cannot be read"):
        read_json_file(tmp_path / "none.json")


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "one.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_something_large_is_begun(tmp_path):
    need_space(tmp_path, 1, "nothing")
    with pytest.raises(DiskFullError, match=r"the next iterate needs 1000000000\.00 GB in"):
        need_space(tmp_path, 10**18, "the next iterate")


def test_a_folder_is_held_by_one_process_and_free_after_a_kill(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from paragone_training.policy.rows import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderTakenError, match=str(other.pid)), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
