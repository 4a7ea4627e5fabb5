"""The challenge's NPZ files: geometry, prompts, and pickles that try something."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.data.npz_reader import npz_prompts, write_segs
from scripts.data.plain_pickle import load_plain
from scripts.errors import InputError
from scripts.transforms.reading import LoadVolume, image_name

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
SPACING = np.array([1.5, 0.5, 3.0])
PROMPTS = {"2": "Spleen in abdominal CT", "1": "Liver in abdominal CT", "instance_label": 0}


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **{"imgs": IMAGES, "spacing": SPACING, **arrays})
    return path


def save_pickle(path: Path, content: bytes, header: str = "'|O'", shape: str = "()") -> Path:
    """A file whose ``text_prompts`` holds these bytes as its pickle."""
    save(path)
    array = io.BytesIO()
    text = f"{{'descr': {header}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(118 - 1) + "\n"
    array.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("text_prompts.npy", array.getvalue())
    return path


def test_a_challenge_file_lies_as_scanners_store(tmp_path: Path) -> None:
    """Array z, y, x; spacing in H, W, D; grey values as they are."""
    image = LoadVolume()(save(tmp_path / "CT_a_1.npz"))
    assert image.shape == (1, 6, 5, 4)
    assert np.array_equal(image[0].numpy(), IMAGES.transpose(2, 1, 0))
    assert np.array_equal(image.affine, np.diag([-0.5, -1.5, 3, 1]))
    assert nib.aff2axcodes(image.affine.numpy()) == ("L", "P", "S")
    assert image.meta["stored_dtype"] == "uint8"
    assert not image.meta["trusted_spacing"]
    assert image_name(tmp_path / "CT_a_1.npz") == "CT_a_1"


def test_direction_and_origin_are_used(tmp_path: Path) -> None:
    """ITK's conventions: rows of the matrix, LPS, spacing in x, y, z."""
    direction = np.array([0.0, 0, 1, 1, 0, 0, 0, 1, 0])
    image = LoadVolume()(save(tmp_path / "a.npz", direction=direction, origin=np.array([1.0, 2, 3])))
    assert np.allclose(image.affine, [[0, 0, -3, -1], [-1.5, 0, 0, -2], [0, 0.5, 0, 3], [0, 0, 0, 1]])
    assert image.meta["trusted_spacing"]


def test_sample_files(shared: Path) -> None:
    for path in (shared / "data" / "ct_lesion_npz").glob("*.npz"):
        image = LoadVolume()(path)
        with np.load(path) as content:
            assert np.array_equal(image[0].numpy(), content["imgs"].transpose(2, 1, 0))
            assert np.allclose(nib.affines.voxel_sizes(image.affine.numpy()), content["spacing"])
        with pytest.raises(InputError, match="no text_prompts"):
            npz_prompts(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_prompts_as_numpy_pickles_them(tmp_path: Path, protocol: int) -> None:
    array = np.array(PROMPTS | {"instance_label": np.int64(1)}, dtype=object)
    assert npz_prompts(save_pickle(tmp_path / "a.npz", pickle.dumps(array, protocol=protocol))) == (
        {1: "Liver in abdominal CT", 2: "Spleen in abdominal CT"},
        True,
    )


def test_prompts_of_savez(tmp_path: Path) -> None:
    expected = ({1: "Liver in abdominal CT", 2: "Spleen in abdominal CT"}, False)
    assert npz_prompts(save(tmp_path / "a.npz", text_prompts=PROMPTS)) == expected
    assert npz_prompts(save(tmp_path / "b.npz", text_prompts=np.array([PROMPTS], object))) == expected
    with_numbers = {1: "Liver", np.str_("2"): np.str_("Spleen")}
    assert npz_prompts(save(tmp_path / "c.npz", text_prompts=with_numbers))[0] == {1: "Liver", 2: "Spleen"}


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def malicious(witness: Path) -> dict[str, bytes]:
    """Pickles that would leave a file, or misuse what is admitted."""
    touch = f"touch {witness}"
    code = f"open({str(witness)!r}, 'w')"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    return {
        "os.system": pickle.dumps({"1": Call(os.system, touch)}),
        "subprocess": pickle.dumps(Call(subprocess.check_output, ["touch", str(witness)])),
        "eval": pickle.dumps([Call(builtins.eval, code)]),
        "exec in an array": pickle.dumps(np.array([{"1": Call(builtins.exec, code)}], object)),
        "getattr": pickle.dumps(Call(getattr, {}, "pop")),
        "numpy.load": pickle.dumps(Call(np.load, str(witness))),
        "numpy.save": pickle.dumps(Call(np.save, str(witness), 1)),
        "fromfile": pickle.dumps(Call(np.fromfile, "/etc/hostname")),
        "a huge array": pickle.dumps(Call(np.ndarray, (2**40,), "u1")),
        "instruction INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "instruction OBJ": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "instruction NEWOBJ": opcodes(b"cnumpy\nndarray\n)\x81"),
        "instruction EXT1": opcodes(b"\x82\x01"),
        "persistent id": opcodes(b"Pthing\n"),
        "attribute of an admitted name": b"\x80\x04\x8c\x16numpy.core.multiarray\x8c\x10scalar.__class__\x93.",
        "state for an admitted name": opcodes(reconstruct, b"N}U\x08__code__K\x01s\x86b"),
        "state for a type": opcodes(b"cnumpy\nndarray\n}U\x01aK\x01sb"),
        "a function of its own": pickle.dumps(Call(ran)),
        # NumPy itself would take the bytes for pointers.
        "object dtype flags": opcodes(
            reconstruct, b"(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01tcnumpy\ndtype\nU\x02O8\x85R\x89U\x08AAAAAAAAtb"
        ),
        "scalar of objects": opcodes(b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02O8\x85RU\x08AAAAAAAA\x86R"),
        "structured scalar": opcodes(b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x05O8,O8\x85RU\x04AAAA\x86R"),
        "endless references": opcodes(b"]q\x00", *(b"]q%c(" % (i + 1) + b"h%c" % i * 9 + b"e" for i in range(12))),
        "itself": opcodes(b"]q\x00h\x00a"),
        "bytes": pickle.dumps({"1": b"bytes"}),
        "a set": pickle.dumps({1, 2}),
        "path": pickle.dumps(witness),
        "too long": pickle.dumps({"1": "x" * (17 * 2**20)}),
        "truncated": pickle.dumps(np.array(PROMPTS, object))[:-20],
        "nothing": b"",
        "random": bytes(range(256)),
        "dtype alone": pickle.dumps(np.dtype("f8")),
    }


def ran() -> None:
    """Called by a pickle, if it could."""
    pytest.fail("a pickle ran code")


CASES = sorted(malicious(Path("x")))


@pytest.mark.parametrize("case", CASES)
def test_malicious_pickles_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    witness = tmp_path / "witness"
    path = save_pickle(tmp_path / "a.npz", malicious(witness)[case])
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("ran"))
    with pytest.raises(InputError, match="text_prompts") as caught:
        npz_prompts(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not witness.exists()
    # What was refused leaves no trace: sound prompts are still understood.
    assert npz_prompts(save(tmp_path / "b.npz", text_prompts=PROMPTS))[0] == {1: PROMPTS["1"], 2: PROMPTS["2"]}
    assert LoadVolume()(path).shape == (1, 6, 5, 4)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_plain(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        json.dumps(load_plain(content), default=pytest.fail)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_plain_data_comes_back(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value


@given(code=st.sampled_from(["u1", "<i4", ">i4", "f8", "?", "U3"]), values=st.lists(st.integers(0, 1), max_size=4))
def test_arrays_become_lists(code: str, values: list[int]) -> None:
    array = np.array(values, dtype=code)
    assert load_plain(pickle.dumps([array, *array], protocol=4)) == [array.tolist(), *array.tolist()]


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda p: p.write_text("no archive") and p, "not an NPZ file"),
    "truncated": (lambda p: p.write_bytes(save(p).read_bytes()[:300]) and p, "not an NPZ file"),
    "no imgs": (lambda p: np.savez(p, data=IMAGES) or p, "no imgs in it"),
    "no spacing": (lambda p: np.savez(p, imgs=IMAGES) or p, "no spacing in it"),
    "float imgs": (lambda p: save(p, imgs=IMAGES / 255), "imgs is float64, wanted uint8"),
    "object imgs": (lambda p: save(p, imgs=np.array([Path("x")], object)), "imgs is object, wanted uint8"),
    "2-D": (lambda p: save(p, imgs=IMAGES[0]), r"imgs has shape \(5, 6\)"),
    "4-D": (lambda p: save(p, imgs=IMAGES[..., None]), "three axes"),
    "empty": (lambda p: save(p, imgs=IMAGES[:0]), "three axes"),
    "two spacings": (lambda p: save(p, spacing=SPACING[:2]), "spacing has shape"),
    "text spacing": (lambda p: save(p, spacing=np.array(["1", "2", "3"])), "wanted 3 numbers"),
    "zero spacing": (lambda p: save(p, spacing=SPACING * 0), "voxel size"),
    "nan spacing": (lambda p: save(p, spacing=SPACING * np.nan), "voxel size"),
    "flat direction": (lambda p: save(p, direction=np.ones(9)), "singular"),
    "short direction": (lambda p: save(p, direction=np.ones(4)), "direction has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_unsound_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = make(tmp_path / "a.npz")
    with pytest.raises(InputError, match=message) as caught:
        LoadVolume()(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Liver", "no dictionary"),
        ({}, "a sentence for each"),
        ({"instance_label": 1}, "a sentence for each"),
        ({"1": "Liver", "instance_label": 2}, "0 or 1"),
        ({"liver": "Liver"}, "must be label values"),
        ({"0": "Liver"}, "must be label values"),
        ({"1": 3}, "a sentence for each"),
        ({"1": " "}, "a sentence for each"),
    ],
)
def test_prompts_in_another_form_are_refused(tmp_path: Path, prompts: object, message: str) -> None:
    array = np.empty((), object)
    array[()] = prompts
    with pytest.raises(InputError, match=message):
        npz_prompts(save(tmp_path / "a.npz", text_prompts=array))
    with pytest.raises(InputError, match="one dictionary"):
        npz_prompts(save(tmp_path / "b.npz", text_prompts=np.array([1, 2])))


@given(values=st.lists(st.integers(0, 70_000), min_size=24, max_size=24))
def test_segs_are_in_the_order_of_the_file(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "segs.npz"
    segs = np.array(values).reshape(2, 3, 4)
    write_segs(path, segs.transpose(2, 1, 0))
    with np.load(path) as content:
        assert content.files == ["segs"]
        assert np.array_equal(content["segs"], segs)
        assert content["segs"].dtype == np.min_scalar_type(max(values))
