"""Files of gradients: what was saved comes back, and damaged or hostile files are refused."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import paddle
import pytest

from dlg.participant import gradient_file as gradients_module
from dlg.errors import InputError, quoted
from dlg.participant.gradient_file import load, save

ONE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def several():
    """Names that no file can have, every dtype, and memory layouts other than NumPy's default."""
    rng = np.random.default_rng(0)
    return {
        "linear_0.w_0": rng.normal(size=(30, 10)).astype(np.float32),
        "../../etc/passwd": rng.normal(size=(3,)).astype(np.float16),
        "": rng.normal(size=(2, 2)),
        "gradient_0": np.array(1.5, np.float32),
        "metadata": rng.normal(size=(4, 5)).astype(np.float32).T,
        "größe\0\n\ud800": rng.normal(size=(2, 1)).astype(">f4"),
    }


@pytest.fixture
def file(tmp_path):
    return tmp_path / "step.npz"


def entries_of(file):
    """What an archive holds, by name, unpacked."""
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_entries(file, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def packed(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def rewrite(file, **changed):
    """Save ONE, and change its metadata. A key that is None is left out."""
    save(file, ONE, 2, (1, 28, 28))
    entries = entries_of(file)
    metadata = json.loads(np.load(io.BytesIO(entries["metadata.npy"])).tobytes())
    metadata = {key: value for key, value in (metadata | changed).items() if value is not None}
    write_entries(file, entries | {"metadata.npy": packed(np.frombuffer(json.dumps(metadata).encode(), np.uint8))})


def refused(file):
    """The message with which a file is refused. It must be one line and name the file."""
    with pytest.raises(InputError) as refusal:
        load(file)
    message = str(refusal.value)
    assert quoted(str(file)) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_what_was_saved_comes_back_to_the_bit(several, file):
    save(file, several, 4, [3, 32, 32])
    loaded = load(file)
    assert list(loaded.gradients) == list(several)
    for name, gradient in several.items():
        back = loaded.gradients[name]
        assert (back.shape, back.dtype) == (gradient.shape, gradient.dtype.newbyteorder("="))
        assert (back == gradient).all()
        back *= 2  # they can be written to
    assert (loaded.batch_size, loaded.feature_shape) == (4, (3, 32, 32))
    assert loaded.versions["paddlepaddle"] == paddle.__version__
    assert loaded.versions["numpy"] == np.__version__
    assert "python" in loaded.versions


def test_sizes_may_be_numpy_integers(file):
    save(str(file), ONE, np.int64(2), np.array([1, 28, 28]))
    assert load(str(file)).feature_shape == (1, 28, 28)


def test_the_same_gradients_make_the_same_file(several, file):
    save(file, several, 4, (1, 28, 28))
    first = file.read_bytes()
    save(file, several, 4, (1, 28, 28))
    assert file.read_bytes() == first


def test_the_file_is_an_npz_without_pickles(several, file):
    save(file, several, 4, (1, 28, 28))
    with np.load(file, allow_pickle=False) as archive:
        assert sorted(archive) == sorted(["metadata", *(f"gradient_{index}" for index in range(len(several)))])
        metadata = json.loads(archive["metadata"].tobytes().decode())
        assert [one["name"] for one in metadata["gradients"]] == list(several)
        assert (archive["gradient_0"] == several["linear_0.w_0"]).all()


def test_an_array_in_another_order_or_byte_order_is_read_as_well(file):
    save(file, ONE, 2, (1, 28, 28))
    for other in (np.asfortranarray(ONE["w"]), ONE["w"].astype(">f4")):
        write_entries(file, entries_of(file) | {"gradient_0.npy": packed(other)})
        assert (load(file).gradients["w"] == ONE["w"]).all()
        assert load(file).gradients["w"].dtype == np.dtype("float32")


def test_a_file_is_replaced_whole_or_not_at_all(file, monkeypatch):
    save(file, ONE, 2, (1, 28, 28))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(file, ONE, 3, (1, 28, 28))
    assert load(file).batch_size == 2
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(
    ("gradients", "batch_size", "feature_shape", "said"),
    [
        ({}, 2, (1,), "there is no gradient"),
        ({"w": np.array([1.0, np.nan])}, 2, (1,), "the gradient of 'w' holds NaN or infinity"),
        ({"w": np.array([1.0, -np.inf])}, 2, (1,), "the gradient of 'w' holds NaN or infinity"),
        ({"w": np.array([1, 2])}, 2, (1,), "the gradient of 'w' is 'int64', expected one of float16, float32"),
        ({"w": np.array([None, 2.0])}, 2, (1,), "the gradient of 'w' is 'object'"),
        ({"w": np.zeros((2, 0))}, 2, (1,), r"the gradient of 'w' is shaped \[2, 0\]"),
        ({3: np.ones(2)}, 2, (1,), "a gradient is described by"),
        (ONE, 0, (1,), "batch_size is 0, expected an integer of at least 1"),
        (ONE, -2, (1,), "batch_size is -2"),
        (ONE, True, (1,), "batch_size is True"),
        (ONE, 2.0, (1,), "batch_size is 2.0"),
        (ONE, "2", (1,), "batch_size is '2'"),
        (ONE, 10**12, (1,), "batch_size 1000000000000 of samples"),
        (ONE, 2, (1, -28), r"feature_shape is \[1, -28\]"),
        (ONE, 2, (1, 28.5), r"feature_shape is \[1, 28.5\]"),
        (ONE, 2, (1,) * 33, "feature_shape is"),
        (ONE, 2, (10**6, 10**6), "which no attack recovers"),
    ],
)
def test_what_is_no_step_is_not_saved(gradients, batch_size, feature_shape, said, file):
    with pytest.raises(InputError, match=said) as refusal:
        save(file, gradients, batch_size, feature_shape)
    assert quoted(str(file)) in str(refusal.value)
    assert not os.listdir(file.parent)


@pytest.mark.parametrize("name", ["missing/step.npz", "folder", "file/step.npz", "n" * 300, "nul\0"])
def test_a_path_that_cannot_be_written_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(InputError, match="cannot save gradients to"):
        save(tmp_path / name, ONE, 2, (1,))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_neither_replaced_nor_waited_for(file):
    os.mkfifo(file)
    with pytest.raises(InputError, match="no regular file"):
        save(file, ONE, 2, (1,))
    assert "no regular file" in refused(file)
    assert not file.is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "it is empty"), (b"not a zip", "it is truncated or no .npz file"), (packed(ONE["w"]), "no .npz file")],
)
def test_a_file_of_another_kind_is_refused(content, said, file):
    file.write_bytes(content)
    assert said in refused(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.npz")
    assert "no regular file" in refused(tmp_path)


def test_an_npz_of_another_program_is_refused(file):
    np.savez(file, w=ONE["w"])
    assert "it has no entry 'metadata'" in refused(file)
    np.savez(file, metadata=np.frombuffer(b"{}", np.uint8), gradient_0=ONE["w"])
    assert "its metadata is of another kind" in refused(file)


@pytest.mark.parametrize("text", [b"", b"[]", b"nonsense", b'"\xff"', b"[" * 100_000, b"NaN", b'{"format": "dlg'])
def test_metadata_that_is_no_object_is_refused(text, file):
    save(file, ONE, 2, (1,))
    write_entries(file, entries_of(file) | {"metadata.npy": packed(np.frombuffer(text, np.uint8))})
    refused(file)


def described(**changed):
    return [{"name": "w", "shape": [2, 3], "dtype": "float32"} | changed]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": "another"}, "its metadata is of another kind"),
        ({"format_version": 2}, "its format version is 2, this project reads 1"),
        ({"format_version": None}, "its format version is None"),
        ({"batch_size": None}, "batch_size is None"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 10**400}, "is a batch of more than"),
        ({"batch_size": 1e3}, "batch_size is 1000.0"),
        ({"feature_shape": None}, "feature_shape is None"),
        ({"feature_shape": "28"}, "feature_shape is '28'"),
        ({"feature_shape": [10**9] * 100_000}, "feature_shape is [1000000000,"),
        ({"gradients": None}, "there is no gradient"),
        ({"gradients": []}, "there is no gradient"),
        ({"gradients": ["w"]}, "a gradient is described by 'w'"),
        ({"gradients": described() + described(name="v")}, "it holds 1 gradients, its metadata names 2"),
        ({"gradients": described() + described()}, "two gradients have one name"),
        ({"gradients": described(name=7)}, "a gradient is described by"),
        ({"gradients": described(dtype="object")}, "the gradient of 'w' is 'object', expected one of float16"),
        ({"gradients": described(dtype=["f4"])}, "the gradient of 'w' is ['f4'], expected one of float16"),
        ({"gradients": described(shape=[2, -3])}, "the gradient of 'w' is shaped [2, -3]"),
        ({"gradients": described(shape=[2, True])}, "the gradient of 'w' is shaped [2, True]"),
        ({"gradients": described(shape=[1] * 33)}, "the gradient of 'w' is shaped [1, 1,"),
        ({"gradients": described(shape=[2**62, 2**62])}, "the gradients take"),
        ({"gradients": described(shape=[3, 2])}, "shaped (2, 3), the metadata says float32 shaped (3, 2)"),
        ({"gradients": described(dtype="float16", shape=[2, 6])}, "the metadata says float16 shaped (2, 6)"),
        ({"gradients": described(shape=[2, 300])}, "which does not fit the gradient of 'w'"),
        ({"versions": None}, "its versions are None"),
        ({"versions": {"numpy": 2}}, "its versions are {'numpy': 2}"),
    ],
)
def test_metadata_that_says_what_cannot_be_is_refused(changed, said, file):
    rewrite(file, **changed)
    assert said in refused(file)


def test_metadata_that_is_rewritten_to_the_same_is_read(file):
    rewrite(file)
    assert load(file).batch_size == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"../../evil.npy": packed(ONE["w"])}, "it holds an entry '../../evil.npy'"),
        ({"/tmp/evil": b"x"}, "it holds an entry '/tmp/evil'"),
        ({"gradient_2.npy": packed(ONE["w"])}, "it holds an entry 'gradient_2.npy'"),
        ({"gradient_01.npy": packed(ONE["w"])}, "it holds an entry 'gradient_01.npy'"),
        ({"gradient_0": packed(ONE["w"])}, "it holds an entry 'gradient_0'"),
        ({"gradient_1.npy": packed(ONE["w"])}, "it holds 2 gradients, its metadata names 1"),
        ({"gradient_0.npy": b""}, "unpacks to 0 bytes, which does not fit the gradient of 'w'"),
        ({"gradient_0.npy": b"\x93NUMPY" + bytes(60)}, "expected (1, 0)"),
        ({"gradient_0.npy": b"x" * 152}, "it is damaged; give a file that gradient_file.save wrote"),
        ({"gradient_0.npy": packed(ONE["w"] * np.nan)}, "the gradient of 'w' holds NaN or infinity"),
        ({"gradient_0.npy": packed(ONE["w"].astype("i4"))}, "is int32 shaped (2, 3), the metadata says float32"),
        ({"gradient_0.npy": packed(ONE["w"]) + b"more"}, "does not end after the 24 bytes"),
        ({"gradient_0.npy": packed(ONE["w"])[:-1]}, "does not end after the 24 bytes"),
        ({"metadata.npy": packed(np.zeros((2, 2), np.uint8))}, "its metadata is uint8 shaped (2, 2)"),
        ({"metadata.npy": packed(np.zeros(2, "f4"))}, "its metadata is float32 shaped (2,)"),
    ],
)
def test_an_archive_that_holds_something_else_is_refused(changed, said, file):
    save(file, ONE, 2, (1,))
    write_entries(file, entries_of(file) | changed)
    assert said in refused(file)


def test_pickled_objects_are_refused_and_never_made(file, tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    save(file, ONE, 2, (1,))
    for name in ("gradient_0.npy", "metadata.npy"):
        pickled = packed(np.array([Harmful()], object))
        write_entries(file, entries_of(file) | {name: pickled})
        assert "pickled objects" in refused(file)
    assert not (tmp_path / "harm").exists()


def test_two_entries_of_one_name_are_refused(file):
    save(file, ONE, 2, (1,))
    entries = entries_of(file)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("gradient_0.npy", entries["gradient_0.npy"])
    assert "two entries of one name" in refused(file)


def peak_while(refusing, file):
    tracemalloc.start()
    try:
        message = refusing(file)
        return message, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_unopened(compression, file):
    save(file, ONE, 2, (1,))
    write_entries(file, entries_of(file) | {"gradient_0.npy": packed(ONE["w"]) + bytes(2**25)}, compression)
    message, peak = peak_while(refused, file)
    assert "is not compressed as gradient_file.save does it" in message
    assert peak < 2**22


@pytest.mark.parametrize("entry", ["gradient_0.npy", "metadata.npy"])
@pytest.mark.parametrize("honest", [True, False])
def test_what_would_unpack_to_more_than_it_should_is_not_unpacked(entry, honest, file):
    save(file, ONE, 2, (1,))
    entries = entries_of(file)
    bomb = entries[entry] + bytes(2**26)
    write_entries(file, entries | {entry: bomb})
    if not honest:
        # Both headers state the expected size, and the packed content is a thousand times as large.
        content = file.read_bytes()
        stated = struct.pack("<I", len(bomb))
        assert content.count(stated) == 2
        file.write_bytes(content.replace(stated, struct.pack("<I", len(entries[entry]))))
    message, peak = peak_while(refused, file)
    assert peak < 2**22
    if honest:
        assert "unpacks to" in message


def test_gradients_larger_than_the_limit_are_refused_before_they_are_unpacked(file, monkeypatch):
    large = {"a": np.zeros(2**21, np.float32), "b": np.zeros(2**21, np.float32)}
    save(file, large, 2, (1,))
    assert file.stat().st_size < 2**15
    monkeypatch.setattr(gradients_module, "LARGEST_GRADIENTS", 2**24 - 1)
    message, peak = peak_while(refused, file)
    assert "the gradients take 16777216 bytes, more than the 16777215" in message
    assert peak < 2**22
    monkeypatch.setattr(gradients_module, "LARGEST_GRADIENTS", 2**24)
    assert load(file).gradients["b"].shape == (2**21,)


def test_an_encrypted_entry_is_refused(file):
    save(file, ONE, 2, (1,))
    content = bytearray(file.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + flags] |= 1
            position = content.find(signature, position + 1)
    file.write_bytes(content)
    assert "encrypted" in refused(file)


def same_or_refused(file, saved):
    """Whether a damaged file is refused. If it is not, it must hold what was saved."""
    try:
        loaded = load(file)
    except InputError:
        refused(file)
        return True
    assert list(loaded.gradients) == list(saved)
    assert all((loaded.gradients[name] == gradient).all() for name, gradient in saved.items())
    assert (loaded.batch_size, loaded.feature_shape) == (4, (1, 28, 28))
    return False


def test_a_truncated_file_is_always_refused(several, file):
    save(file, several, 4, (1, 28, 28))
    content = file.read_bytes()
    lengths = [*range(0, len(content), 50), *range(len(content) - 50, len(content))]
    for length in lengths:
        file.write_bytes(content[:length])
        assert same_or_refused(file, several), length


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy's, about headers that Python 2 wrote
@pytest.mark.parametrize("stored", [False, True])
def test_flipped_bytes_are_refused_or_do_not_matter(stored, several, file):
    save(file, several, 4, (1, 28, 28))
    if stored:
        write_entries(file, entries_of(file), zipfile.ZIP_STORED)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(600):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[position] ^= rng.integers(1, 256)
        file.write_bytes(damaged)
        refusals += same_or_refused(file, several)
    # Most of the file is numbers under a checksum.
    assert refusals > 400


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_that_has_a_right_checksum_is_refused_or_a_file_of_its_own(several, file):
    save(file, several, 4, (1, 28, 28))
    entries = entries_of(file)
    rng = np.random.default_rng(1)
    refusals = 0
    for _ in range(300):
        name = rng.choice(["metadata.npy", "gradient_0.npy"])
        damaged = bytearray(entries[name])
        # The headers and the metadata. A change of the numbers themselves gives another valid file.
        for position in rng.integers(0, min(len(damaged), 128 if name != "metadata.npy" else 1000), 2):
            damaged[position] = rng.integers(0, 256)
        write_entries(file, entries | {name: bytes(damaged)})
        try:
            loaded = load(file)
        except InputError:
            refusals += 1
        else:
            assert len(loaded.gradients) == len(several)
            assert all(np.isfinite(gradient).all() for gradient in loaded.gradients.values())
    assert refusals > 50


def test_a_batch_out_of_all_proportion_to_its_gradients_is_refused(file):
    few = {"w": np.ones((784, 10), "float32"), "b": np.ones(10, "float32")}
    save(file, few, 1000, [1, 28, 28])
    assert load(file).batch_size == 1000
    with pytest.raises(InputError, match="batch_size is 1000000, expected at most 1337 for gradients of 7850 numbers"):
        save(file, few, 1_000_000, [1, 28, 28])
