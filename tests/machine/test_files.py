"""Files that are there whole or not at all, and what is said when the disk refuses."""

import contextlib
import errno
import fcntl
import functools
import os
import resource
import socket
from pathlib import Path

import pytest

from runner.errors import StorageError
from runner.machine import files
from runner.machine.files import (
    append_synced,
    new_folder,
    open_log,
    open_regular,
    read_end,
    read_whole,
    remove_leftovers,
    replace_whole,
    require_writable,
    sync_folder,
    temporary_sibling,
    unwritable,
    write_output,
    write_synced,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse(monkeypatch, owner, name, code):
    """Let a function fail as the system would."""

    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, refused)


def test_a_file_and_the_folders_above_it_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_synced(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(StorageError, match="File exists"):
        write_synced(path, b"new")
    assert path.read_bytes() == b"content"


def test_a_file_is_replaced_by_the_other_one(tmp_path):
    path = tmp_path / "a" / "file"
    for content in (b"first", b"", b"second"):
        replace_whole(path, content)
        assert path.read_bytes() == content
        assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_processes_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    path, replace = tmp_path / "file", Path.replace

    def second_comes_first(self, target):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            replace_whole(path, b"second")
        return replace(self, target)

    for is_random in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", second_comes_first)
            if is_random:
                replace_whole(path, b"first")
                assert path.read_bytes() == b"first"
            else:  # negative control
                patch.setattr(files.secrets, "token_hex", lambda length: "0")
                with pytest.raises(StorageError):
                    replace_whole(path, b"first")
        assert [entry.name for entry in tmp_path.iterdir() if ".tmp-" not in entry.name] == ["file"]


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder" / "file"
    replace_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError):
            replace_whole(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_advice_is_that_of_the_caller(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        replace_whole(tmp_path / "file" / "below", b"", fix="another FILE")
    assert caught.value.fix == "another FILE"


def test_the_content_is_on_the_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path, monkeypatch
):
    calls, fsync, rename = [], os.fsync, Path.replace

    def synced(descriptor):
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-")[0]))
        fsync(descriptor)

    def renamed(self, target):
        calls.append(("rename", Path(target).name))
        return rename(self, target)

    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    replace_whole(tmp_path / "folder" / "file", b"content")
    assert calls == [("sync", "file.tmp"), ("rename", "file"), ("sync", "folder")]


# ── Reading what anybody may have put there ────────────────────────────────────────────────────


def odd_files(folder):
    """Everything that is no regular file, by kind, and names that none can have."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "to pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):
        made.bind("socket")
    names = ("pipe", "folder", "loop", "zero", "to pipe", "socket")
    return [folder / name for name in (*names, "none", "a\0b", "\ud800", "a" * 300)]


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path):
    for path in odd_files(tmp_path):
        for read in (open_regular, read_whole, functools.partial(read_end, at_most=5)):
            with pytest.raises(OSError, match=r"."):
                read(path)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_whole(tmp_path / name) == b"content"
        assert read_end(tmp_path / name, 3) == b"ent"
        assert read_end(tmp_path / name, 30) == b"content"


def test_a_file_larger_than_its_bound_or_than_memory_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_whole(path, at_most=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes: 5"):
        read_whole(path, at_most=4)
    os.truncate(path, 2**42)  # without a block on the disk
    with pytest.raises(OSError, match="larger than"):
        read_whole(path)
    assert read_end(path, 3) == bytes(3)


def test_appending_needs_a_regular_file(tmp_path):
    for path in odd_files(tmp_path)[:6]:
        with pytest.raises(StorageError):
            append_synced(path, b"row")
    append_synced(tmp_path / "log", b"row\n")
    append_synced(tmp_path / "log", b"row\n")
    with open_log(tmp_path / "log") as log:
        log.write("line\n")
        assert (tmp_path / "log").read_text() == "row\nrow\nline\n"


def test_new_folders_never_meet(tmp_path):
    made = [new_folder(tmp_path / "a" / "b") for _ in range(3)]
    assert [path.name for path in made] == ["b", "b-2", "b-3"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        new_folder(tmp_path / "file" / "b")


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    temporary_sibling(tmp_path / "file").touch()
    temporary_sibling(tmp_path / "link").symlink_to("kept")
    folder = temporary_sibling(tmp_path / "folder")
    folder.mkdir()
    (folder / "file").touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["kept", "file"]
    remove_leftovers(tmp_path / "nowhere")


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "loop", tmp_path / "folder", tmp_path / ("a" * 300), tmp_path / "a\0b"):
        with pytest.raises(StorageError) as caught:
            write_output(path, b"content")
        assert caught.value.fix == "another FILE"


# ── Refused ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", [write_synced, replace_whole])
@pytest.mark.parametrize("code", FULL)
def test_a_full_disk_says_what_is_needed_and_what_is_free(tmp_path, monkeypatch, write, code):
    refuse(monkeypatch, os, "fsync", code)
    with pytest.raises(StorageError, match=r"\(needs 2\.5 MB, free [\d.]+ MB\)") as caught:
        write(tmp_path / "file", bytes(2_500_000))
    assert os.strerror(code) in caught.value.what
    assert caught.value.exit_code == 4
    assert str(tmp_path / "file") in caught.value.where
    assert "outputs=" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_other_refusals_do_not_speak_of_space(tmp_path, monkeypatch):
    refuse(monkeypatch, os, "open", errno.EACCES)
    with pytest.raises(StorageError) as caught:
        write_synced(tmp_path / "file", b"content")
    assert caught.value.what == "cannot write: Permission denied"


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (os, "open"), (Path, "replace")])
def test_a_refusal_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, owner, name):
    path = tmp_path / "file"
    replace_whole(path, b"old")
    with monkeypatch.context() as patch:
        refuse(patch, owner, name, errno.ENOSPC)
        with pytest.raises(StorageError) as caught:
            replace_whole(path, b"new")
    assert str(path) in caught.value.where
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    replace_whole(path, b"new")  # negative control: nothing but the refusal was in the way
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("write", [write_synced, replace_whole])
def test_an_interrupt_leaves_nothing_of_a_new_file(tmp_path, monkeypatch, write):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (write_synced, replace_whole):
        with pytest.raises(StorageError) as caught:
            write(tmp_path / "file" / "other", b"content")
        assert str(tmp_path / "file" / "other") in caught.value.where
    assert (tmp_path / "file").read_text() == "in the way"


def test_file_systems_that_cannot_sync_a_folder_are_no_reason_to_stop(tmp_path, monkeypatch):
    sync_folder(tmp_path / "nowhere")
    refuse(monkeypatch, os, "fsync", errno.EINVAL)
    sync_folder(tmp_path)
    with pytest.raises(StorageError):  # negative control: a file must be synced
        write_synced(tmp_path / "file", b"content")


def test_an_error_without_words_and_a_disk_that_is_gone(tmp_path):
    assert unwritable(tmp_path / "file", OSError("odd")).what == "cannot write: odd"
    gone = unwritable(tmp_path / "gone" / "file", OSError(errno.ENOSPC, "No space left"), 10)
    assert gone.what == "cannot write: No space left"


@pytest.mark.parametrize("below", ["", "run", "a/b/c"])
def test_whether_a_folder_can_be_written_is_known_without_making_it(tmp_path, below):
    require_writable(tmp_path / "new" / below)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory") as caught:
        require_writable(tmp_path / "file" / below)
    assert caught.value.where == str(tmp_path / "file" / below)
    assert caught.value.exit_code == 4


# ── macOS ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_refused", [False, True])
@pytest.mark.parametrize("is_folder", [False, True])
def test_the_drive_is_flushed_where_the_system_can(tmp_path, monkeypatch, is_refused, is_folder):
    calls = []

    def flush(descriptor, command):
        calls.append(command)
        if is_refused:
            raise OSError(errno.ENOTSUP, "this file system cannot")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", flush)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    if is_folder:
        sync_folder(tmp_path)
    else:
        write_synced(tmp_path / "file", b"content")
    assert calls == ([51, "fsync"] if is_refused else [51])


def test_memory_where_the_system_has_no_name_for_it(monkeypatch):
    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert files.memory() == 2**33
