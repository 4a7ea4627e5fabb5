"""The optimiser step and its guards, what a run keeps on disk, and what it shows: through tiny runs in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.data.datasets import ResumableSampler, SeededDataset
from scripts.errors import find_user_error
from scripts.handlers import (
    BestWeights,
    NonFiniteError,
    NonFiniteGuard,
    OptimiserStep,
    WeightAverage,
    mlflow_handler,
)


def causes(error: BaseException | None) -> list[str]:
    """Messages of an exception and everything behind it."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__ or error.__context__
    return found


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- the step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("withheld", [0.0, 1.0])
def test_micro_batches_make_the_step_of_one_batch(
    train: Callable[..., Any], losses: Callable[[Path], dict[int, float]], tmp_path: Path, withheld: float
):
    """Micro-batches have different numbers of queries, since a structure that no head has is asked for or not: the mean
    of their losses would be another number than the whole batch's."""
    changes = {
        "label_values": {"Left hippocampus": [17], "Brain-stem": [53], "3rd ventricle": [14]},
        "train#queries#transform#absent": 1.0,
        "segment_steps": [4],
        "max_queries": 64,
        "val_interval": 4,
        "inferer#enabled": False,
        "train#prompts#p_withhold": withheld,
    }
    train(tmp_path / "whole", batch_size=3, **changes)
    train(tmp_path / "parts", batch_size=1, accumulation=3, **changes)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert list(whole) == [1, 2, 3, 4]
    for step in whole:
        assert parts[step] == pytest.approx(whole[step], rel=2e-5), step


def test_float16_scales_the_loss_and_the_scale_is_saved(
    train: Callable[..., Any], checkpoint: Callable[[Path, int], dict[str, Any]], tmp_path: Path
):
    train(tmp_path, precision="$torch.float16", segment_steps=[3])
    content = checkpoint(tmp_path, 3)
    assert content["step"]["scale"] > 1
    step = OptimiserStep("cpu", torch.float16)
    step.load_state_dict({**content["step"], "scale": 512.0})
    assert step.state_dict()["scale"] == 512.0
    assert OptimiserStep("cpu", torch.bfloat16).state_dict() == {}


@given(steps=st.integers(1, 6), share=st.integers(1, 3), world=st.integers(1, 4), done=st.integers(0, 6))
def test_processes_share_the_samples_of_every_step(steps: int, share: int, world: int, done: int):
    size, done = share * world, min(done, steps)
    samplers = [ResumableSampler(steps * size, done * size, size, rank, world) for rank in range(world)]
    parts = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(part) for part in parts] == [(steps - done) * share] * world
    for step in range(done, steps):
        taken = [index for part in parts for index in part[(step - done) * share :][:share]]
        assert taken == list(range(step * size, (step + 1) * size))


def test_a_step_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="steps of 3 for process 0 of 2"):
        ResumableSampler(6, step_size=3, world_size=2)


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_its_samples(
    configure: Callable[..., Any],
    train: Callable[..., Any],
    checkpoint: Callable[[Path, int], dict[str, Any]],
    tmp_path: Path,
    what: str,
):
    """At the fifth step of six; the state before it is kept, and a new start makes the step again."""
    workflow = configure(tmp_path, batch_size=2, val_interval=6, ckpt_interval=3)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    network = workflow.parser.get_parsed_content("network")
    loss = trainer.loss_function

    def spoiled(logits: Any, targets: Any) -> torch.Tensor:
        value = loss(logits, targets)
        if trainer.state.iteration == 5 and what == "loss":
            value = value * float("nan")
        elif trainer.state.iteration == 5:
            value.register_hook(lambda gradient: gradient * float("inf"))
        before.update({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return value

    before: dict[str, torch.Tensor] = {}
    trainer.loss_function = spoiled
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    message = next(text for text in causes(caught.value) if text.startswith("training: the "))
    assert "in step 5, of samples 8 (case number " in message
    assert "9 (case number " in message
    assert files(tmp_path / "checkpoints") == ["checkpoint_iteration=3.pt", "checkpoint_iteration=4.pt"]
    kept = checkpoint(tmp_path, 4)
    assert kept["trainer"]["iteration"] == 4
    for name, tensor in before.items():
        assert torch.isfinite(tensor).all()
        torch.testing.assert_close(kept["network"][name], tensor, rtol=0, atol=0)
    assert not (tmp_path / "model.pt").exists()
    resumed = train(tmp_path, batch_size=2, val_interval=6, ckpt_interval=3)
    assert resumed.parser.get_parsed_content("train#trainer").state.iteration == 6


def test_the_error_is_one_of_ours():
    dataset = SeededDataset([{"dataset": "CT_Lung", "name": "case_7"}], lambda case: case, length=40)
    state = SimpleNamespace(output={"loss": torch.tensor(float("inf"))}, iteration=1)
    with pytest.raises(NonFiniteError) as caught:
        NonFiniteGuard(dataset, 20)(SimpleNamespace(state=state))  # type: ignore[arg-type]
    assert find_user_error(caught.value) is caught.value
    assert "0 (case CT_Lung/case_7)" in str(caught.value)
    assert "and 4 more" in str(caught.value)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_and_the_best_weights_are_kept(train: Callable[..., Any], tmp_path: Path):
    train(tmp_path, segment_steps=[7], ckpt_interval=2, keep_last=3, val_interval=2, keep_best=2)
    names = {f"checkpoint_iteration={step}.pt" for step in (4, 6, 7)}
    assert set(files(tmp_path / "checkpoints")) == names
    assert 1 <= len(files(tmp_path / "best")) <= 2
    train(tmp_path, segment_steps=[9], steps=9, ckpt_interval=2, keep_last=3, val_interval=2, keep_best=2)
    names = {f"checkpoint_iteration={step}.pt" for step in (7, 8, 9)}
    assert set(files(tmp_path / "checkpoints")) == names  # those of the run before count


def test_best_weights_go_by_score_and_survive_a_new_start(tmp_path: Path):
    network = torch.nn.Linear(2, 2)
    for step, score in enumerate([0.2, 0.5, float("nan"), 0.4, 0.3, 0.4], start=1):
        state = SimpleNamespace(key_metric_name="dice", metrics={"dice": score}, epoch=step)
        BestWeights(network, tmp_path, keep=2)(SimpleNamespace(state=state))  # type: ignore[arg-type]
    assert files(tmp_path) == ["best_metric=0.40000_step=4.pt", "best_metric=0.50000_step=2.pt"]


def test_a_checkpoint_of_another_network_is_refused(train: Callable[..., Any], tmp_path: Path):
    train(tmp_path, segment_steps=[3])
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, query_dim=32)
    assert any("does not fit the network of this config" in text for text in causes(caught.value))


def test_the_moving_average_is_what_is_exported(
    train: Callable[..., Any], checkpoint: Callable[[Path, int], dict[str, Any]], tmp_path: Path
):
    train(tmp_path, ema_decay=0.5)
    content = checkpoint(tmp_path, 6)
    assert int(content["ema"]["n_averaged"]) == 6
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    name = "mask_head.embedding.0.weight"
    torch.testing.assert_close(exported[name], content["ema"][f"module.{name}"].half())
    assert not torch.equal(content["ema"][f"module.{name}"], content["network"][name])


def test_the_average_follows_its_definition():
    network = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, decay=0.75)
    expected = None
    for value in (1.0, 3.0, -2.0):
        torch.nn.init.constant_(network.weight, value)
        average(None)  # type: ignore[arg-type]
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    assert average.network.weight.item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        WeightAverage(network, decay=2)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_validation_leaves_pictures(train: Callable[..., Any], tmp_path: Path):
    train(tmp_path)
    assert files(tmp_path / "previews") == ["step_000003.png", "step_000006.png", "truth.png"]
    with Image.open(tmp_path / "previews" / "truth.png") as picture:
        assert min(picture.size) > 200


def test_a_run_that_no_longer_gains_stops_early(train: Callable[..., Any], tmp_path: Path):
    """With a vanishing rate no validation is better than the first."""
    workflow = train(
        tmp_path, segment_steps=[40], segment_lr=[1e-12], val_interval=2, ckpt_interval=2, early_stop_patience=2
    )
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 6
    assert (tmp_path / "model.pt").is_file()


def test_mlflow_gets_losses_and_metrics(train: Callable[..., Any], tmp_path: Path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    train(tmp_path / "run_7", segment_steps=[3], tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "medal_s")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run_7"
    assert [entry.step for entry in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3]
    assert 0 <= run.data.metrics["val_mean_dice"] <= 1


def test_mlflow_that_is_not_installed_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mlflow is not installed"):
        mlflow_handler("sqlite:///x.db", "out", training=True)
