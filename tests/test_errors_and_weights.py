"""One clear line for what a user can mend; strict weights."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.data.datasets import SeededDataset
from scripts.errors import InputError, find_user_error, install_excepthook
from scripts.weights import WeightsLoader, load_weights, read_plain


def wrapped() -> RuntimeError:
    try:
        try:
            raise InputError("the file\nis broken")
        except InputError as e:
            raise RuntimeError("applying transform") from e
    except RuntimeError as e:
        return e


def test_error_is_found_through_the_chain() -> None:
    assert isinstance(find_user_error(wrapped()), InputError)
    assert find_user_error(RuntimeError("other")) is None
    assert find_user_error(ValueError("not ours")) is None
    assert find_user_error(None) is None


def test_every_value_error_of_this_package_is_for_the_user() -> None:
    with pytest.raises(ValueError, match="list of cases is empty") as caught:
        SeededDataset([], transform=dict, length=1)
    assert find_user_error(caught.value) is caught.value
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("not a number")
    assert find_user_error(caught.value) is None


def test_hook_prints_one_line_and_passes_others_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed_on = []
    monkeypatch.setattr(sys, "excepthook", lambda *details: passed_on.append(details))
    install_excepthook()
    install_excepthook()
    error, other = wrapped(), RuntimeError("a bug")
    sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == "error: the file is broken\n"
    assert not passed_on
    sys.excepthook(RuntimeError, other, None)
    assert passed_on == [(RuntimeError, other, None)]
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.strip().startswith("error: interrupted")
    assert len(passed_on) == 1


def test_engine_keeps_quiet_about_errors_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    install_excepthook()
    engine = logging.getLogger("ignite.engine.engine.SupervisedEvaluator")
    for error in (wrapped(), RuntimeError("a bug")):
        try:
            raise error
        except RuntimeError as e:
            engine.error("terminating due to exception: %s", e)
    assert [record.getMessage() for record in caplog.records] == ["terminating due to exception: a bug"]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    source, other = network(), network()
    torch.save({k: v.half() for k, v in source.state_dict().items()}, tmp_path / "model.pt")
    load_weights(other, tmp_path / "model.pt")
    assert other[0].weight.dtype == torch.float32
    assert torch.allclose(other[1].weight, source[1].weight, atol=1e-3)


def test_weights_are_loaded_once(tmp_path: Path) -> None:
    """A served evaluator starts for every request; its weights stay."""
    net = network()
    torch.save(net.state_dict(), tmp_path / "model.pt")
    loader = WeightsLoader(net, tmp_path / "model.pt")
    loader()
    (tmp_path / "model.pt").unlink()
    loader()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "1.bias"}, "it lacks 1.bias"),
        (lambda s: {**s, "2.weight": torch.zeros(1)}, "it has unknown 2.weight"),
        (lambda s: {**s, "0.bias": torch.zeros(7)}, r"another shape in 0.bias \(7,\) for \(4,\)"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "0.bias, 1.weight and 1 more"),
        (lambda s: [1, 2], "wanted a state dict"),
        (lambda s: {"epoch": 3, **s}, "wanted a state dict"),
    ],
)
def test_other_layouts_are_refused_with_the_keys(tmp_path: Path, change, message: str) -> None:
    torch.save(change(network().state_dict()), tmp_path / "model.pt")
    with pytest.raises(InputError, match=message):
        load_weights(network(), tmp_path / "model.pt")


class Malicious:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_weights_execute_nothing(tmp_path: Path) -> None:
    torch.save({"a": Malicious(tmp_path / "executed")}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a file of plain weights"):
        load_weights(network(), tmp_path / "model.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 2, device="meta")}, "no dense tensor"),
        ({"weight": torch.zeros(1).expand(10**13)}, "no dense tensor"),
        ({"weight": torch.eye(2).to_sparse()}, "no dense tensor"),
        ({1: torch.zeros(2)}, "wanted a state dict"),
    ],
    ids=["without content", "one number said to be many", "sparse", "numbers for names"],
)
def test_odd_but_harmless_files_are_refused_in_one_line(tmp_path: Path, state: dict, message: str) -> None:
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=message) as refused:
        load_weights(network(), tmp_path / "odd.pt", part="fine")
    assert "\n" not in str(refused.value)


def test_many_threads_read_a_published_checkpoint(tmp_path: Path) -> None:
    """Its optimizer holds NumPy's numbers, for which torch has one list of stand-ins."""
    torch.save({"weight": torch.zeros(2), "lr": np.float64(0.1)}, tmp_path / "published.pth")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: read_plain(tmp_path / "published.pth")["weight"].tolist(), range(100)))
    assert read == [[0.0, 0.0]] * 100
