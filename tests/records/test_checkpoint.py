"""Checkpoints: what comes back is what was written, whatever happened to the newest of them."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import ArtefactError, StorageError, TrainingError
from runner.machine import files
from runner.records.checkpoint import newest, write
from runner.records.run_folder import VERSION

ID = "0123456789abcdef"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def some_tensors(seed=0):
    """As of a small network: another memory layout, counters, values without a dimension."""
    rng = torch.Generator().manual_seed(seed)
    weight, moving = (torch.randn(4, 3, 2, 2, generator=rng) for _ in range(2))
    return {
        "model": {
            "conv.weight": weight.to(memory_format=torch.channels_last),
            "bn.num_batches_tracked": torch.tensor(seed),
            "bn.bias": torch.randn(4, generator=rng),
        },
        "optimizer": {
            "0.step": torch.tensor(float(seed)),
            "0.exp_avg": moving.to(memory_format=torch.channels_last),
        },
    }


def commit(folder, done, **more):
    write(folder, ID, done, some_tensors(done), {"meter": {"losses": [done / 3]}, **more})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def two(folder):
    """A folder with the checkpoints of steps 4 and 8."""
    for done in (4, 8):
        commit(folder, done)
    return folder


def path_of(folder, done):
    return folder / f"step-{done:09d}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_is(found, done):
    assert found.done == found.state["done"] == done
    assert found.state["meter"] == {"losses": [done / 3]}
    expected = some_tensors(done)
    assert found.tensors.keys() == expected.keys()
    for group, members in expected.items():
        assert found.tensors[group].keys() == members.keys()
        for name, tensor in members.items():
            other = found.tensors[group][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(other, tensor), name


def rewrite(path, change):
    """Change the state of a checkpoint and make its manifest right again."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    relist(path, "state.json", json.dumps(state).encode())


def relist(path, name, content, *, at=None):
    """Put a file into a checkpoint, or ``at`` another place, and list it in the manifest."""
    (at or path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][name] = entry
    (path / "manifest.json").write_text(json.dumps(manifest))


# ── There and back ─────────────────────────────────────────────────────────────────────────────


def test_nothing_was_written_yet(folder):
    assert newest(folder, ID) is None
    folder.mkdir()
    assert newest(folder, ID) is None


def test_what_is_written_comes_back(folder):
    commit(folder, 4, logs={"metrics.jsonl": [120, "ab"]})
    found = newest(folder, ID)
    assert_is(found, 4)
    assert found.state["logs"] == {"metrics.jsonl": [120, "ab"]}
    assert found.refused == ()
    assert names(path_of(folder, 4)) == sorted(FILES)
    assert not torch.equal(found.tensors["model"]["conv.weight"],
                           some_tensors(5)["model"]["conv.weight"])  # fmt: skip


def test_tensors_of_any_layout_that_share_memory_come_back(folder):
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "base": base,
        "view": base.view(6, 4),
        "transposed": base.transpose(0, 2),
        "strided": base[:, ::2, 1:],
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "parameter": torch.nn.Parameter(base[0]),
    }
    write(folder, ID, 1, {"model": tensors}, {})
    found = newest(folder, ID).tensors["model"]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.detach()), name
    assert not any(tensor.requires_grad for tensor in found.values())


def test_what_training_does_afterwards_changes_no_checkpoint(folder):
    tensors = some_tensors(4)
    write(folder, ID, 4, tensors, {"meter": {"losses": [4 / 3]}})
    for members in tensors.values():
        for tensor in members.values():
            tensor.zero_()
    assert_is(newest(folder, ID), 4)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
          torch.bool]  # fmt: skip


@st.composite
def any_tensor(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensor = (torch.randn(shape, generator=rng, dtype=torch.float64) * 100).to(dtype)
    if len(shape) == 4 and draw(st.booleans()):
        tensor = tensor.to(memory_format=torch.channels_last)
    elif draw(st.booleans()):
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor


keys = st.text("abcXYZ_.0123456789é", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    tensors=st.dictionaries(
        st.sampled_from(["model", "optimizer", "other"]), st.dictionaries(keys, any_tensor())
    ),
    state=st.dictionaries(keys.map("k{}".format), values, max_size=4),
    done=st.integers(0, 10**12),
)
def test_anything_comes_back(tmp_path_factory, tensors, state, done):
    folder = tmp_path_factory.mktemp("any")
    write(folder, ID, done, tensors, state)
    found = newest(folder, ID)
    assert found.done == done
    assert {key: found.state[key] for key in state} == state
    assert found.tensors.keys() == tensors.keys()
    for group, members in tensors.items():
        assert found.tensors[group].keys() == members.keys()
        for name, tensor in members.items():
            other = found.tensors[group][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(other, tensor)
    shutil.rmtree(folder)


# ── Generations ────────────────────────────────────────────────────────────────────────────────


def test_two_generations_are_kept(folder):
    for done in (3, 7, 20, 1000):
        commit(folder, done)
        assert_is(newest(folder, ID), done)
    assert names(folder) == ["step-000000020", "step-000001000"]


def test_newest_is_by_number_and_not_by_name(folder):
    for done in (999_999_999, 1_000_000_000, 2_000_000_000):
        commit(folder, done)
    assert_is(newest(folder, ID), 2_000_000_000)
    assert names(folder) == ["step-1000000000", "step-2000000000"]


def test_a_step_is_written_once_more(two):
    (path_of(two, 8) / "state.json").write_bytes(b"damaged")
    assert_is(newest(two, ID), 4)
    commit(two, 8)
    assert_is(newest(two, ID), 8)
    assert names(two) == ["step-000000004", "step-000000008"]


def test_a_step_that_was_to_be_replaced_is_used_until_it_is(two):
    """A writer was killed between taking the old one's name and giving it to the new one."""
    old = two / "step-000000008-old"
    path_of(two, 8).rename(old)
    assert_is(newest(two, ID), 8)
    empty(old / "state.json")
    assert newest(two, ID).refused[0].startswith("step-000000008-old: state.json")
    commit(two, 8)
    assert_is(newest(two, ID), 8)
    assert names(two) == ["step-000000004", "step-000000008"]


def test_what_killed_writers_left_is_passed_over_and_swept(two):
    for name in ("step-000000012.tmp-123", "step-000000001.tmp-9-old"):
        shutil.copytree(path_of(two, 4), two / name)
    assert_is(newest(two, ID), 8)
    commit(two, 12)
    assert names(two) == ["step-000000008", "step-000000012"]


# ── Damage ─────────────────────────────────────────────────────────────────────────────────────


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path):
    path.write_bytes(path.read_bytes() + b" x")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = [cut_short, empty, flip_a_bit, append, make_a_folder, Path.unlink]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_older_one_is_used(two, name, damage):
    damage(path_of(two, 8) / name)
    found = newest(two, ID)
    assert_is(found, 4)
    (reason,) = found.refused
    assert reason.startswith("step-000000008: ")
    assert name in reason
    assert_is(newest(two, ID), 4)  # reading mends and removes nothing
    assert names(two) == ["step-000000004", "step-000000008"]


def test_no_flipped_bit_goes_unnoticed(two):
    for name in FILES:
        path = path_of(two, 8) / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            path.write_bytes(content)
            assert newest(two, ID).done == 4, (name, place)
        path.write_bytes(whole)
    assert newest(two, ID).done == 8  # negative control


def test_with_all_of_them_damaged_every_reason_is_told(two):
    cut_short(path_of(two, 8) / "model.safetensors")
    flip_a_bit(path_of(two, 4) / "optimizer.safetensors")
    with pytest.raises(ArtefactError) as caught:
        newest(two, ID)
    assert caught.value.exit_code == 7
    what, *reasons = caught.value.what.splitlines()
    assert what == "no checkpoint can be used:"
    assert [reason.split(":")[0] for reason in reasons] == ["  step-000000008", "  step-000000004"]
    assert "model.safetensors has" in reasons[0]
    assert "bytes instead of" in reasons[0]
    assert "the SHA-256 of optimizer.safetensors is not the one in manifest.json" in reasons[1]
    assert caught.value.where == str(two)
    assert "force=true" in caught.value.fix


@pytest.mark.parametrize(
    "manifest",
    [
        "[]", "null", "3", "{}", '{"files": null}', '{"files": {"state.json": 3}}', '{"files": 3}',
        '{"files": {"state.json": {}}}', '{"files": {"state.json": {"bytes": "many"}}}',
        '{"files": {}}', '{"files": {"": {"bytes": 1, "sha256": ""}}}', "\x00",
        '{"files": {"..": {"bytes": 1, "sha256": ""}}}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(two, manifest):
    (path_of(two, 8) / "manifest.json").write_text(manifest)
    assert_is(newest(two, ID), 4)


def test_a_state_that_is_none_is_refused(two):
    for content in (b"[]", b"null", b"3", b"{}", b"\xff", b'{"record_version": %d}' % VERSION):
        relist(path_of(two, 8), "state.json", content)
        assert_is(newest(two, ID), 4)


def test_tensors_that_are_none_are_refused(two):
    """Their SHA-256 is right: the file was written so."""
    for content in (b"", b"\x80\x05}", bytes(8), b"\xff" * 100):
        relist(path_of(two, 8), "model.safetensors", content)
        found = newest(two, ID)
        assert_is(found, 4)
        assert found.refused


# ── Of something else ──────────────────────────────────────────────────────────────────────────


def test_another_record_version_is_refused_with_both(two):
    rewrite(path_of(two, 8), lambda state: None)
    assert_is(newest(two, ID), 8)  # negative control: rewriting alone is no reason
    rewrite(path_of(two, 8), lambda state: state.update(record_version=VERSION + 1))
    found = newest(two, ID)
    assert_is(found, 4)
    assert found.refused == (
        f"step-000000008: its record version is {VERSION + 1}; this program reads {VERSION}",
    )


def test_another_run_is_refused_with_both(two):
    rewrite(path_of(two, 8), lambda state: state.update(identity="f" * 16))
    found = newest(two, ID)
    assert_is(found, 4)
    assert found.refused == (f"step-000000008: it belongs to run {'f' * 16}, not to {ID}",)
    with pytest.raises(ArtefactError, match=f"it belongs to run {ID}, not to {'e' * 16}"):
        newest(two, "e" * 16)


@pytest.mark.parametrize("name", ["../more.safetensors", "{absolute}", "sub/more.safetensors",
                                  "./more.safetensors"])  # fmt: skip
def test_a_manifest_cannot_reach_elsewhere(two, tmp_path, name):
    path = path_of(two, 8)
    (path / "sub").mkdir()
    name = name.format(absolute=tmp_path / "more.safetensors")
    content = (path / "model.safetensors").read_bytes()
    relist(path, name, content, at=path / name)
    found = newest(two, ID)
    assert_is(found, 4)
    assert found.refused == (
        f"step-000000008: the manifest names a file outside the checkpoint: {name}",
    )  # fmt: skip


def test_a_file_of_its_own_may_be_listed(two):
    """Negative control of the test above."""
    path = path_of(two, 8)
    relist(path, "more.safetensors", (path / "model.safetensors").read_bytes())
    found = newest(two, ID)
    assert (found.done, found.refused) == (8, ())
    assert found.tensors["more"].keys() == found.tensors["model"].keys()


# ── What is not written ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_a_tensor_that_is_not_finite_is_not_written(two, bad, dtype, group):
    before = contents(two)
    tensors = some_tensors(12)
    tensors[group]["broken"] = torch.tensor([1.0, bad, 2.0], dtype=dtype)
    with pytest.raises(TrainingError) as caught:
        write(two, ID, 12, tensors, {})
    assert caught.value.what == f"broken of the {group} is not finite after step 12"
    assert caught.value.exit_code == 5
    assert "optim.lr" in caught.value.fix
    assert contents(two) == before
    tensors[group]["broken"] = torch.tensor([1.0, 3.0, 2.0], dtype=dtype)  # negative control
    write(two, ID, 12, tensors, {})
    assert newest(two, ID).done == 12


def test_a_state_that_json_does_not_have_is_not_written(two):
    before = contents(two)
    with pytest.raises(ValueError, match="JSON"):
        write(two, ID, 12, some_tensors(), {"loss": float("nan")})
    assert contents(two) == before


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_older_ones(two, monkeypatch, number):
    """At each of the four files of a checkpoint."""
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    before = contents(two)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"needs [\d.]+ MB, free [\d.]+ MB") as caught:
            commit(two, 12)
    assert caught.value.exit_code == 4
    assert "No space left on device" in caught.value.what
    assert "step-000000012" in caught.value.where
    assert contents(two) == before
    assert_is(newest(two, ID), 8)
    commit(two, 12)  # with space again
    assert_is(newest(two, ID), 12)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        commit(tmp_path / "file" / "checkpoints", 1)
    assert str(tmp_path / "file" / "checkpoints") in caught.value.where


def test_a_name_that_cannot_be_given_leaves_the_older_ones(two, monkeypatch):
    def stuck(self, target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    before = contents(two)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stuck)
        with pytest.raises(StorageError, match="busy"):
            commit(two, 12)
    assert contents(two) == before


# ── Killed at any instant ──────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """Stands for the end of the process: from here on nothing reaches the disk."""


def killed_at(number, patch):
    """Let the ``number``-th and every later change of the disk not take place."""
    calls = []

    def watched(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **more):
            calls.append(name)
            if len(calls) >= number:
                raise Killed
            return original(*arguments, **more)

        patch.setattr(owner, name, call)

    watched(os, "fsync")
    watched(os, "open")
    watched(files.shutil, "rmtree")
    for name in ("rename", "unlink", "mkdir"):
        watched(Path, name)
    return calls


@pytest.mark.parametrize("target", [12, 8], ids=["a new step", "a step that was there"])
def test_killed_at_any_instant_there_is_a_whole_checkpoint(two, tmp_path, target):
    seen = []
    for number in range(1, 100):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(two, folder)
        with pytest.MonkeyPatch.context() as patch:
            calls = killed_at(number, patch)
            try:
                commit(folder, target)
                is_killed = False
            except Killed:
                is_killed = True
        found = newest(folder, ID)
        assert found.refused == ()
        assert_is(found, found.done)
        seen.append(found.done)
        commit(folder, 16)  # the next attempt finds nothing in its way
        assert_is(newest(folder, ID), 16)
        assert [name for name in names(folder) if ".tmp" in name] == []
        if not is_killed:
            break
    assert len(calls) == number - 1 > 10
    assert seen[0] == 8
    assert seen[-1] == target
    assert seen == sorted(seen)
    assert set(seen) == {8, target}  # never the one before
