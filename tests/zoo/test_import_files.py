"""Checkpoint files that are damaged, something else or hostile: refused in one line, with nothing run or written."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scripts.errors import InputError
from scripts.fine_tuning import start_from
from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder
from scripts.published.checkpoint_file import open_checkpoint
from scripts.published.importing import Request, import_weights


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that a hostile checkpoint would make."""
    return tmp_path / "executed"


Hostile = Callable[[Path, Path, dict[str, torch.Tensor]], object]


def shell(trace: Path) -> Call:
    return Call(os.system, f"touch {trace}")


def save_beside_the_weights(file: Path, trace: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model_state_dict": state, "optimizer_state_dict": shell(trace)}, file)


def save_among_the_weights(file: Path, trace: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "evil": Call(eval, f"open({str(trace)!r}, 'w')")}, file)


def save_without_zip(file: Path, trace: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "evil": shell(trace)}, file, _use_new_zipfile_serialization=False)


def save_bare_pickle(file: Path, trace: Path, _: dict[str, torch.Tensor]) -> None:
    file.write_bytes(pickle.dumps(shell(trace), protocol=2))


def save_as_numpy_scalar(file: Path, trace: Path, state: dict[str, torch.Tensor]) -> None:
    """The names that are let through for learning rates, with another function as their argument."""
    scalar = Call(np.float64(1).__reduce__()[0], np.dtype("f8"), shell(trace))
    torch.save({"model_state_dict": state, "lr": scalar}, file)


HOSTILE: dict[str, tuple[Hostile, str]] = {
    "beside the weights": (save_beside_the_weights, r"would call (posix|nt)\.system"),
    "among the weights": (save_among_the_weights, r"would call (builtins\.)?eval"),
    "without zip": (save_without_zip, r"would call (posix|nt)\.system"),
    "a bare pickle": (save_bare_pickle, r"would call (posix|nt)\.system"),
    "inside a scalar": (save_as_numpy_scalar, r"would call (posix|nt)\.system"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("role", ["weights", "text_encoder"])
@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_in_a_file_is_run(case: str, role: str, trace: Path, makers: Any, tmp_path: Path) -> None:
    save, message = HOSTILE[case]
    save(tmp_path / "evil.pth", trace, makers.network(1) if role == "weights" else makers.text_encoder())
    request = Request(
        files={role: tmp_path / "evil.pth"},
        overlay=str(makers.overlay(tmp_path)),
        output=tmp_path / "out",
        language_model=str(makers.language_model(tmp_path / "model")),
    )
    with pytest.raises(InputError, match=f"^evil.pth.*({message})") as caught:
        import_weights(request)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    assert not list((tmp_path / "out").iterdir())


def rewrite(file: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], compression: int = 0) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def escape(members: dict[str, bytes]) -> dict[str, bytes]:
    return members | {"../../escaped.txt": b"hello"}


def save_script(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "damaged, cut short or no checkpoint"),
    "text": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "damaged, cut short or no checkpoint",
    ),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-2000]), "damaged or cut short"),
    "leaves the folder": (lambda file: rewrite(file, escape), r"entry '\.\./\.\./escaped.txt' outside of itself"),
    "absolute": (lambda file: rewrite(file, lambda m: m | {"/etc/x": b""}), "outside of itself"),
    "compressed": (lambda file: rewrite(file, dict, zipfile.ZIP_DEFLATED), "is compressed"),
    "NPZ": (lambda file: np.savez(file.open("wb"), a=np.zeros(3)), r"no checkpoint of PyTorch: it holds a\.npy"),
    "NPZ of objects": (lambda file: np.savez(file.open("wb"), a=np.array([{}])), "no checkpoint of PyTorch"),
    "TorchScript": (save_script, "is compressed|damaged, cut short or no checkpoint|would call"),
    "storage missing": (
        lambda file: rewrite(file, lambda m: {k: v for k, v in m.items() if not k.endswith("/data/0")}),
        "damaged, cut short or no checkpoint",
    ),
    "pickle damaged": (
        lambda file: rewrite(file, lambda m: {k: v[:50] if k.endswith(".pkl") else v for k, v in m.items()}),
        "damaged, cut short or no checkpoint",
    ),
    "safetensors cut short": (
        lambda file: (save_file({"a": torch.zeros(9)}, file), file.write_bytes(file.read_bytes()[:-8])),
        "no readable safetensors file",
    ),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "no checkpoint"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_refused(case: str, makers: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(makers.checkpoint(makers.network(1)), file)
    change, message = BAD_FILES[case]
    change(file)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_safetensors_and_the_older_format_are_read(makers: Any, tmp_path: Path) -> None:
    state = makers.network(1)
    plain = {name: tensor.clone() for name, tensor in state.items() if "all_modules" not in name}
    save_file(plain, tmp_path / "model.safetensors")
    torch.save(makers.checkpoint(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file, wanted in (("model.safetensors", plain), ("old.pth", state)):
        read = open_checkpoint(tmp_path / file).state
        assert read.keys() == wanted.keys()
        assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_a_run_starts_from_a_released_checkpoint(release: Path, makers: Any) -> None:
    """Its optimizer's NumPy numbers do not keep a fine-tuning from reading the weights."""
    sizes = makers.sizes
    network = MedalS(
        PlainUNet(2, sizes.features, sizes.strides),
        QueryDecoder(sum(sizes.features), sizes.width, sizes.layers, sizes.heads, sizes.feedforward),
        MaskHead(sizes.width, sizes.hidden, sizes.features[0]),
    )
    start_from(network, next(release.glob("*224_224_128*")))
    assert torch.equal(network.mask_head.embedding[0].weight, makers.network(1)["mask_embed_proj.0.weight"])
