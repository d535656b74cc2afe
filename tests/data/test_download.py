import errno
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runner.data import download
from runner.data.download import fetch, unpack
from runner.errors import ArtefactError, ConfigError, StorageError
from runner.machine.locks import locked

ROOT = Path(__file__).parents[2]
CONTENT = hashlib.shake_256(b"any").digest(1_000_000)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.01)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


class Server:
    """A web server with one file and the faults that a test asks for."""

    def __init__(self):
        self.content = CONTENT
        self.ranges = []  # the Range header of each request, None where there was none
        self.statuses = []  # answered to the first requests instead of the file
        self.drops = 0  # requests still to be cut half-way
        self.reset = False  # cut with a reset instead of an orderly close
        self.ignores_range = False
        self.wrong_range = False
        self.tells_total = True
        self.delay = 0.0
        fault = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                fault.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.tgz"

    def answer(self, request):
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.statuses:
            status = self.statuses.pop(0)
            if status != 200:
                request.send_error(status)
                return
        first = 0
        if asked and not self.ignores_range:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(self.content):
                request.send_response(416)
                if self.tells_total:
                    request.send_header("Content-Range", f"bytes */{len(self.content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            if self.wrong_range:
                first = 7
                self.wrong_range = False
            request.send_response(206)
            last = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[first:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        time.sleep(self.delay)
        if self.drops:
            self.drops -= 1
            request.wfile.write(body[: len(body) // 2])
            if self.reset:
                time.sleep(0.1)  # a reset throws away what was not read yet
                request.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                request.connection.close()
                request.wfile = request.rfile = io.BytesIO()
            return
        try:
            request.wfile.write(body)
        except ConnectionError:  # the client was killed, as some tests want
            request.wfile = io.BytesIO()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def left_in(folder):
    """The names in the folder, lock files aside."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_fetches_and_reports_progress(server, tmp_path):
    target = tmp_path / "new" / "file.tgz"
    seen = []

    def progress(done, total):
        assert not target.exists()  # a part is never seen under the final name
        seen.append((done, total))

    assert fetch(server.url, target, checksum=CHECKSUM, progress=progress) == target

    assert target.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert left_in(target.parent) == ["file.tgz"]


def test_md5_and_upper_case_are_accepted(server, tmp_path):
    checksum = "MD5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest().upper()

    fetch(server.url, tmp_path / "file", checksum=checksum)

    assert (tmp_path / "file").read_bytes() == CONTENT


def test_existing_file_is_returned_without_a_request(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == b"mine"
    assert server.ranges == []


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_dropped_connection_is_continued(server, tmp_path, reset):
    server.drops, server.reset = 2, reset

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges[0] is None
    assert [value is None for value in server.ranges[1:]] == [False, False]


def test_many_drops_are_survived_while_bytes_arrive(server, tmp_path):
    server.drops = 3 * download._NUM_RETRIES

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT


def test_part_of_an_earlier_call_is_continued(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:700_000])

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["bytes=700000-"]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ignores_range = True
    (tmp_path / "file.part").write_bytes(b"other bytes" * 1000)
    seen = []

    fetch(
        server.url,
        tmp_path / "file",
        checksum=CHECKSUM,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_server_with_the_wrong_range_starts_over(server, tmp_path):
    server.wrong_range = True
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("tells_total", [True, False])
@pytest.mark.parametrize("extra", [0, 5], ids=["whole", "too long"])
def test_part_that_is_complete_or_too_long(server, tmp_path, extra, tells_total):
    server.tells_total = tells_total
    (tmp_path / "file.part").write_bytes(CONTENT + bytes(extra))

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT
    if tells_total and not extra:
        assert len(server.ranges) == 1  # nothing was sent twice


def test_wrong_bytes_are_thrown_away(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"

    with pytest.raises(StorageError) as caught:
        fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert left_in(tmp_path) == []
    text = str(caught.value)
    found = "sha256:" + hashlib.sha256(server.content).hexdigest()
    for piece in (server.url, str(tmp_path / "file"), CHECKSUM, found, "data.root=PATH"):
        assert piece in text
    assert caught.value.exit_code == 4

    server.content = CONTENT
    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_not_found_is_final(server, tmp_path):
    server.statuses = [404]

    with pytest.raises(StorageError, match="404") as caught:
        fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert len(server.ranges) == 1
    for piece in (server.url, str(tmp_path / "file"), "data.root=PATH"):
        assert piece in str(caught.value)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("status", [503, 429])
def test_passing_trouble_of_the_server_is_waited_out(server, tmp_path, status):
    server.statuses = [status, status]

    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert (tmp_path / "file").read_bytes() == CONTENT


def test_lasting_trouble_keeps_the_part_for_later(server, tmp_path):
    server.drops = 1
    server.statuses = [200] + [503] * 10

    with pytest.raises(StorageError, match="503"):
        fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    # The drop itself was the first failure in a row; the last of them is not followed by a try.
    assert len(server.ranges) == 1 + download._NUM_RETRIES
    assert left_in(tmp_path) == ["file.part"]
    assert (tmp_path / "file.part").read_bytes() == CONTENT[: len(CONTENT) // 2]

    server.statuses = []
    fetch(server.url, tmp_path / "file", checksum=CHECKSUM)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_no_network(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(StorageError, match="refused") as caught:
            fetch(url, tmp_path / "file", checksum=CHECKSUM)

    for piece in (url, str(tmp_path / "file"), "data.root=PATH"):
        assert piece in str(caught.value)
    assert left_in(tmp_path) == []


def test_full_disk_is_named(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        fetch(server.url, tmp_path / "file", checksum=CHECKSUM)

    assert str(tmp_path / "file.part") in caught.value.where
    assert "free some space" in caught.value.fix
    assert not (tmp_path / "file").exists()


def test_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "taken").write_bytes(b"")

    with pytest.raises(StorageError) as caught:
        fetch(server.url, tmp_path / "taken" / "file", checksum=CHECKSUM)

    assert str(tmp_path / "taken") in caught.value.where


@pytest.mark.parametrize("checksum", ["", "abc", "md5:123", "sha1:" + "0" * 40, "md5:" + "g" * 32])
def test_malformed_checksum_is_refused(tmp_path, checksum):
    with pytest.raises(ConfigError):
        fetch("http://127.0.0.1/", tmp_path / "file", checksum=checksum)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "no address", "http://x/ż"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(ConfigError):
        fetch(url, tmp_path / "file", checksum=CHECKSUM)


def start(code, *arguments):
    """Start Python code in another process, with warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )


FETCH = """
import os, sys
from pathlib import Path
from runner.data.download import fetch
url, target, checksum, limit = sys.argv[1:]
def progress(done, total):
    if done > int(limit):
        os.kill(os.getpid(), 9)
fetch(url, Path(target), checksum=checksum, progress=progress)
"""


def test_two_processes_download_once(server, tmp_path):
    server.delay = 1.0
    target = tmp_path / "file"

    processes = [start(FETCH, server.url, target, CHECKSUM, 10**9) for _ in range(2)]

    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert server.ranges == [None]
    assert target.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["file"]


def test_killed_download_is_continued(server, tmp_path):
    target = tmp_path / "file"
    process = start(FETCH, server.url, target, CHECKSUM, 600_000)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert left_in(tmp_path) == ["file.part"]

    fetch(server.url, target, checksum=CHECKSUM)

    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 2
    assert server.ranges[1] is not None


# Unpacking

FILES = {"set/a/1.png": b"one", "set/a/2 ż.png": b"", "set/b/._3.png": b"three" * 1000}


def tar_bytes(files=FILES, *, mode="w:gz", entries=(), **options):
    """A tar archive of files, then of entries: pairs of a TarInfo and content or None."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode=mode, **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o4777
            tar.addfile(info, io.BytesIO(content))
        for info, content in entries:
            tar.addfile(info, None if content is None else io.BytesIO(content))
    return output.getvalue()


def zip_bytes(files=FILES, *, entries=(), method=zipfile.ZIP_DEFLATED):
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in entries:
            archive.writestr(info, content)
    return output.getvalue()


def tar_entry(name, kind=tarfile.REGTYPE, link="", size=0, pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    info.pax_headers = pax or {}
    return info


def zip_entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


GOOD = {
    "tgz": tar_bytes(),
    "tar": tar_bytes(mode="w"),
    "tar in pax format": tar_bytes(
        {"x" * 200 + "/" + "y" * 90: b"long"}, format=tarfile.PAX_FORMAT
    ),
    "tar in gnu format": tar_bytes(
        {"x" * 200 + "/" + "y" * 90: b"long"}, format=tarfile.GNU_FORMAT
    ),
    "tar with ./ and folders": tar_bytes(
        {},
        entries=[
            (tar_entry("./", tarfile.DIRTYPE), None),
            (tar_entry("./set", tarfile.DIRTYPE), None),
            (tar_entry("./set/1", size=3), b"one"),
        ],
    ),
    "tar that ends with a zip": tar_bytes({"inner.zip": zip_bytes()}, mode="w"),
    "zip": zip_bytes(),
    "stored zip": zip_bytes(method=zipfile.ZIP_STORED),
    "zip with folders": zip_bytes({"set/": b"", "set/1": b"one"}),
}
EXPECTED = {
    "tar in pax format": {"x" * 200 + "/" + "y" * 90: b"long"},
    "tar in gnu format": {"x" * 200 + "/" + "y" * 90: b"long"},
    "tar with ./ and folders": {"set/1": b"one"},
    "tar that ends with a zip": {"inner.zip": zip_bytes()},
    "zip with folders": {"set/1": b"one"},
}


@pytest.mark.parametrize("name", GOOD)
def test_unpacks_by_content(tmp_path, name):
    archive = tmp_path / "archive.dat"
    archive.write_bytes(GOOD[name])
    target = tmp_path / "new" / "set v1"
    seen = []

    def progress(done, total):
        assert not target.exists()
        seen.append((done, total))

    assert unpack(archive, target, progress=progress) == target

    expected = EXPECTED.get(name, FILES)
    assert tree(target) == expected
    assert left_in(target.parent) == ["set v1"]
    total = sum(map(len, expected.values()))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_files_are_neither_executable_nor_setuid(tmp_path):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(tar_bytes())

    unpack(archive, tmp_path / "out")

    for path in (tmp_path / "out").rglob("*.png"):
        assert path.stat().st_mode & 0o7777 & ~0o644 == 0


def test_existing_folder_is_returned(tmp_path):
    (tmp_path / "out").mkdir()

    assert unpack(tmp_path / "no archive", tmp_path / "out") == tmp_path / "out"


def device(name, kind):
    return tar_bytes(entries=[(tar_entry(name, kind), None)])


def broken_tail(name):
    """A tar archive whose second header has a wrong checksum; tarfile takes it for the end."""
    content = bytearray(tar_bytes({"first": b"1", name: b"2"}, mode="w"))
    content[1024 + 150] ^= 1
    return bytes(content)


def lying_zip(size):
    """A zip archive that declares another size than the 5 bytes that its member has."""
    content = bytearray(zip_bytes({"five": b"12345"}, method=zipfile.ZIP_STORED))
    directory = content.index(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<I", size)
    return bytes(content)


def negative_tar():
    """A tar archive with a member of -512 bytes: the next header would be this one again."""
    header = bytearray(tar_entry("n").tobuf())
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(10240)


def sparse_tar():
    return tar_bytes(
        entries=[
            (tar_entry("s", size=0, pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}), b"")
        ],
        format=tarfile.PAX_FORMAT,
    )


def header_bomb():
    """An extended header that declares a gigabyte, which tarfile would read into memory."""
    return tar_entry("x", tarfile.XHDTYPE, size=2**30).tobuf() + bytes(4096)


HOSTILE = {
    "tar ..": (tar_bytes(entries=[(tar_entry("set/../../x"), b"")]), "`..`"),
    "tar absolute": (tar_bytes(entries=[(tar_entry("/absolute/x"), b"")]), "absolute"),
    "tar symlink": (tar_bytes(entries=[(tar_entry("l", tarfile.SYMTYPE, "/etc"), None)]), "link"),
    "tar hardlink": (
        tar_bytes(entries=[(tar_entry("l", tarfile.LNKTYPE, "set/a/1.png"), None)]),
        "link",
    ),
    "tar fifo": (device("p", tarfile.FIFOTYPE), "device"),
    "tar device": (device("d", tarfile.CHRTYPE), "device"),
    "tar unknown type": (device("u", b"Z"), "device"),
    "tar sparse": (sparse_tar(), "sparse"),
    "tar old sparse": (device("s", tarfile.GNUTYPE_SPARSE), "refused: sparse"),
    "tar duplicate": (tar_bytes(entries=[(tar_entry("set/a/1.png"), b"")]), "occurs twice"),
    "tar duplicate, other spelling": (
        tar_bytes(entries=[(tar_entry("./set//a/./1.png"), b"")]),
        "occurs twice",
    ),
    "tar below a file": (tar_bytes(entries=[(tar_entry("set/a/1.png/x"), b"")]), "below the file"),
    "tar backslash": (tar_bytes(entries=[(tar_entry("set\\x"), b"")]), "backslash"),
    "tar nameless": (tar_bytes(entries=[(tar_entry("./."), b"")]), "without a name"),
    "tar 10 GB declared": (
        tar_entry("big", size=10**10).tobuf() + bytes(8192),
        "bytes in all",
    ),
    "tar long header": (header_bomb(), "extended header"),
    "tar negative size": (negative_tar(), "negative size of 'n'"),
    "tar broken second header": (broken_tail("second"), "corrupt"),
    "tar cut in a member": (tar_bytes(mode="w")[:2200], "corrupt"),
    "tar cut at a header": (tar_bytes({"a": b"1"}, mode="w")[:1024], "corrupt"),
    "tgz cut": (tar_bytes()[:-9], "corrupt"),
    "tgz cut early": (tar_bytes()[:15], "corrupt"),
    "tgz flipped checksum": (tar_bytes()[:-8] + b"1234" + tar_bytes()[-4:], "corrupt"),
    "zip ..": (zip_bytes({"../x": b""}), "`..`"),
    "zip absolute": (zip_bytes({"/x": b""}), "absolute"),
    "zip symlink": (zip_bytes(entries=[(zip_entry("l", 0o120777), "/etc/passwd")]), "link"),
    "zip device": (zip_bytes(entries=[(zip_entry("d", 0o020666), "")]), "device"),
    "zip backslash": (zip_bytes({"set\\..\\x": b""}), "backslash"),
    "zip below a file": (zip_bytes({"a": b"", "a/b": b""}), "below the file"),
    "zip declares too little": (lying_zip(4), "CRC"),
    "zip declares too much": (lying_zip(6), "5 bytes of 6"),
    "zip cut": (zip_bytes()[:-30], "neither"),
    "zip flipped content": (
        zip_bytes(method=zipfile.ZIP_STORED).replace(b"one", b"two", 1),
        "CRC",
    ),
    "empty": (b"", "neither"),
    "html": (b"<html>404</html>" * 1000, "neither"),
}


def refusal(archive, target):
    """Unpack, expect a refusal that names the archive and leaves nothing, and return its text."""
    with pytest.raises(ArtefactError) as caught:
        unpack(archive, target)
    assert str(archive) in caught.value.where
    assert caught.value.fix
    assert caught.value.exit_code == 7
    return caught.value.what


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_or_broken_archive_leaves_nothing(tmp_path, name):
    content, reason = HOSTILE[name]
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)

    text = refusal(archive, folder / "out")

    assert reason in text
    assert "\n" not in text
    assert left_in(folder) == []
    assert left_in(tmp_path) == ["archive", "inner"]


def test_members_are_checked_before_anything_is_written(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("wrote a member")

    archive = tmp_path / "a.tgz"
    archive.write_bytes(tar_bytes(entries=[(tar_entry("../x"), b"")]))
    monkeypatch.setattr(download, "_copy", fail)

    refusal(archive, tmp_path / "out")  # the bad member comes after three good ones


def test_duplicate_in_zip_is_refused(tmp_path):
    archive = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.write_bytes(zip_bytes(entries=[(zip_entry("set/a/1.png", 0o100644), "x")]))

    assert "'set/a/1.png'" in refusal(archive, tmp_path / "out")


def test_encrypted_zip_is_refused(tmp_path):
    content = bytearray(zip_bytes({"secret": b"x"}))
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)

    assert "encrypted" in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_control_characters_in_a_name_are_escaped(tmp_path):
    (tmp_path / "a").write_bytes(zip_bytes({"../\x1b[31m": b""}))

    assert "\x1b" not in refusal(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_bomb_is_refused_by_ratio(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(download, "_RATIO_ALLOWANCE", 0)
    monkeypatch.setattr(download, "_MAX_RATIO", 100)
    (tmp_path / "good").write_bytes(pack())
    (tmp_path / "bomb").write_bytes(pack({"zeros": bytes(3_000_000)}))

    unpack(tmp_path / "good", tmp_path / "out")
    text = refusal(tmp_path / "bomb", tmp_path / "out2")

    assert "'zeros'" in text
    assert "bytes in all" in text


def test_zeros_after_the_end_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MAX_PADDING", 2**20)
    (tmp_path / "a").write_bytes(tar_bytes(mode="w") + bytes(2**21))

    assert "after the end" in refusal(tmp_path / "a", tmp_path / "out")


def test_number_of_members_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(tar_bytes())
    monkeypatch.setattr(download, "_MAX_MEMBERS", 2)

    assert "more than 2 members" in refusal(tmp_path / "a", tmp_path / "out")

    monkeypatch.setattr(download, "_MAX_MEMBERS", 3)
    unpack(tmp_path / "a", tmp_path / "out")


def test_too_little_space_is_said_before_writing(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(tar_bytes())
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=10))

    with pytest.raises(StorageError, match="not enough disk space") as caught:
        unpack(tmp_path / "a", tmp_path / "out")

    assert str(tmp_path) in caught.value.where
    assert left_in(tmp_path) == ["a"]


def test_missing_archive_is_named(tmp_path):
    with pytest.raises(StorageError) as caught:
        unpack(tmp_path / "nowhere.tgz", tmp_path / "out")

    assert str(tmp_path / "nowhere.tgz") in caught.value.where
    assert left_in(tmp_path) == []


def test_interruption_leaves_nothing(tmp_path):
    (tmp_path / "a").write_bytes(tar_bytes())

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a", tmp_path / "out", progress=interrupt)

    assert left_in(tmp_path) == ["a"]


UNPACK = """
import os, sys, time
from pathlib import Path
from runner.data import download
archive, target, action = sys.argv[1:]
def progress(done, total):
    if action == "kill":
        os.kill(os.getpid(), 9)
    with Path(target + ".log").open("a") as log:
        log.write("x")
    time.sleep(0.2)
download.unpack(Path(archive), Path(target), progress=progress)
"""


def test_two_processes_unpack_once(tmp_path):
    archive, target = tmp_path / "a.tgz", tmp_path / "out"
    archive.write_bytes(tar_bytes())

    processes = [start(UNPACK, archive, target, "log") for _ in range(2)]

    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert tree(target) == FILES
    assert (tmp_path / "out.log").read_text() == "x" * len(FILES)
    assert left_in(tmp_path) == ["a.tgz", "out", "out.log"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    archive, target = tmp_path / "a.tgz", tmp_path / "out"
    archive.write_bytes(tar_bytes())
    process = start(UNPACK, archive, target, "kill")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert left_in(tmp_path) == ["a.tgz", f"out.tmp-{process.pid}"]

    unpack(archive, target)

    assert tree(target) == FILES
    assert left_in(tmp_path) == ["a.tgz", "out"]


# The lock


def test_lock_excludes_and_is_freed(tmp_path):
    path = tmp_path / "new" / "thing.lock"
    order = []
    started = threading.Event()

    def second():
        started.set()
        with locked(path):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        started.wait()
        time.sleep(0.1)
        order.append("first")
    thread.join(timeout=10)

    assert order == ["first", "second"]
    assert path.exists()


def test_lock_is_freed_by_an_exception_which_passes(tmp_path):
    with pytest.raises(OSError, match="mine"), locked(tmp_path / "lock"):
        raise OSError("mine")

    with locked(tmp_path / "lock"):
        pass


def test_lock_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StorageError) as caught, locked(tmp_path):
        pass

    assert str(tmp_path) in caught.value.where
