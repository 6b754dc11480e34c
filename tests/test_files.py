import contextlib
import os
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_trady import files
from hf_trady.files import atomic_files, atomic_path, write_text


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_what_the_block_wrote_is_what_the_file_holds_and_nothing_else_is_there(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("files")
    for content in contents:
        with atomic_path(folder / "file.bin") as temporary:
            temporary.write_bytes(content)
        assert (folder / "file.bin").read_bytes() == content and names_in(folder) == ["file.bin"]


@given(st.text(max_size=50))
@settings(max_examples=50, deadline=None)
def test_text_is_written_as_utf8(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("files") / "file.txt"
    write_text(file, text)
    assert file.read_bytes() == text.replace("\n", os.linesep).encode("utf-8")


@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
def test_the_directory_is_made(tmp_path, as_type):
    write_text(as_type(tmp_path / "a" / "b" / "file.txt"), "new")
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "new"


def test_a_file_beside_the_working_directory_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("file.txt", "new")
    assert names_in(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["before", "half written", "written"])
def test_a_block_that_raises_leaves_what_was_there_and_nothing_more(tmp_path, old, error, when):
    file = tmp_path / "file.txt"
    if old is not None:
        file.write_text(old)
        file.chmod(0o640)
    with pytest.raises(error), atomic_path(file) as temporary:
        if when != "before":
            temporary.write_text("half" if when == "half written" else "all of it")
        raise error
    assert names_in(tmp_path) == ([] if old is None else ["file.txt"])
    assert old is None or (file.read_text() == old and mode_of(file) == 0o640)


def test_files_come_to_their_places_together_or_not_at_all(tmp_path):
    write_text(tmp_path / "a", "old")
    for error in (None, OSError):
        with contextlib.suppress(OSError), atomic_files(tmp_path) as temporary:
            assert temporary.parent == tmp_path
            write_text(temporary / "a", "new" if error is None else "newer")
            write_text(temporary / "in" / "b", "new")
            assert (tmp_path / "a").read_text() == ("old" if error is None else "new")
            if error is not None:
                raise error
        assert names_in(tmp_path) == ["a", "in"] and names_in(tmp_path / "in") == ["b"]
        assert (tmp_path / "a").read_text() == (tmp_path / "in" / "b").read_text() == "new"


def test_text_that_utf8_cannot_hold_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.txt", "new \ud800")
    assert (tmp_path / "file.txt").read_text() == "old" and names_in(tmp_path) == ["file.txt"]


def test_a_block_that_takes_its_file_away_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.unlink()
    assert (tmp_path / "file.txt").read_text() == "old" and names_in(tmp_path) == ["file.txt"]


def test_the_old_file_is_whole_until_the_block_ends_and_the_temporary_one_lies_beside_it(tmp_path):
    file = tmp_path / "file.txt"
    write_text(file, "old")
    with atomic_path(file) as temporary:
        assert temporary.parent == file.parent and temporary != file
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_of_two_writers_each_has_a_file_of_its_own(tmp_path):
    file = tmp_path / "file.txt"
    with atomic_path(file) as one, atomic_path(file) as other:
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one" and names_in(tmp_path) == ["file.txt"]  # the last to end


def test_a_killed_process_leaves_the_old_file_whole(tmp_path):
    file = tmp_path / "file.txt"
    write_text(file, "old")
    script = f"""
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.atomic_path({str(file)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert file.read_text() == "old"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
@pytest.mark.parametrize("exists", [True, False])
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path, umask, mask, exists):
    umask(mask)
    (tmp_path / "ordinary.txt").write_text("")
    if exists:
        write_text(tmp_path / "file.txt", "old")
    write_text(tmp_path / "file.txt", "new")
    assert mode_of(tmp_path / "file.txt") == mode_of(tmp_path / "ordinary.txt") == 0o666 & ~mask
    assert umask(mask) == mask  # and the umask is what it was
