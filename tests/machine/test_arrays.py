"""Arrays in files of anybody: nothing is allocated that the file does not have."""

import io
import resource
import zipfile

import numpy as np
import pytest

from runner.machine.arrays import read_npz


def header(shape, dtype="<f4"):
    content = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, description)
    return content.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
    whole = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.asfortranarray(np.random.default_rng(0).random((4, 5), dtype=np.float32)),
        "c": np.zeros((0, 3)),
        "d": np.float64(3),
    }
    save(tmp_path / "x.npz", **whole)
    found = read_npz(tmp_path / "x.npz", ("a", "b", "c", "d"))
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header((2**40, 1000)), "claims 4,398,046,511,104,000 bytes"),
        (header((4,), "<U100000000"), "claims 1,600,000,000 bytes"),
        (header((3,)) + bytes(11), "expected 12 bytes got 11"),
        (header((3,), "|O") + bytes(24), "Object arrays cannot be loaded"),
        (header((2**70,)), "claims"),
        (b"", "not an archive of arrays|magic|EOF"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "."),
        (b"\x93NUMPY\x09\x00", "version"),
    ],
)
def test_sizes_that_are_not_there(tmp_path, content, reason):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=reason):
        read_npz(archive(tmp_path / "x.npz", a=content), ("a",))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_sizes_in_the_directory_of_the_archive(tmp_path):
    path = archive(tmp_path / "x.npz", a=header((2**32 - 200,), "|u1") + bytes(100))
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02") + 24
    content[at : at + 4] = b"\xf0\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"claims [\d,]+ bytes in [\d,]+"):
        read_npz(path, ("a",))


def test_other_files(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="not an archive of arrays"):
        read_npz(tmp_path / "x.npz", ("a",))
    np.savez(tmp_path / "y.npz", a=1)
    with pytest.raises(ValueError, match=r"not an archive of arrays.*b\.npy"):
        read_npz(tmp_path / "y.npz", ("a", "b"))
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("a.npy", header((2**20,)) + bytes(2**22))
    with pytest.raises(ValueError, match="not stored or compressed with deflate"):
        read_npz(tmp_path / "z.npz", ("a",))
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz", ("a",))
