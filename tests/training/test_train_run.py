"""Training through the bundle's own command and configs: it learns, it checkpoints, it resumes exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow


@pytest.fixture(scope="module")
def finished(train: Callable[..., ConfigWorkflow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(output)
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def test_a_run_leaves_weights_checkpoints_and_curves(finished: Path):
    names = {file.name for file in (finished / "checkpoints").iterdir()}
    assert names == {"checkpoint_iteration=3.pt", "checkpoint_iteration=6.pt"}
    assert list(finished.glob("events.out.tfevents.*"))
    state = weights(finished)
    assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())
    assert not any(name.startswith("level_embeddings") for name in state)


def test_weights_load_strictly_where_they_will_run(finished: Path, bundle_dir: Path, small: dict[str, Any]):
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle_dir / "configs" / "small_network.json"))
    parser.update({key: small[key] for key in ("features", "strides", "query_dim")})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(weights(finished), strict=True)


def test_the_same_seed_gives_the_same_weights(train: Callable[..., ConfigWorkflow], finished: Path, tmp_path: Path):
    train(tmp_path)
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=0)


def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    train: Callable[..., ConfigWorkflow], finished: Path, tmp_path: Path
):
    """Start again from the checkpoint at step 3 alone: steps 4 to 6 give the very same weights."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(finished / "checkpoints" / "checkpoint_iteration=3.pt", tmp_path / "checkpoints")
    workflow = train(tmp_path)
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 6
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=0)


def test_training_learns(train: Callable[..., ConfigWorkflow], tmp_path: Path):
    """A box in a head, found by its name after a few dozen steps in heads that were held out."""
    workflow = train(
        tmp_path,
        label_values={"Left hippocampus": [17]},
        features=[8, 16, 24],
        strides=[1, 2, 2],
        segment_steps=[80],
        segment_warmup=[5],
        segment_lr=[0.006],
        val_interval=80,
        **{"train#patch": "@validate#patch"},
    )
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    assert evaluator.state.metrics["val_mean_dice"] > 0.75


def test_the_second_stage_starts_from_the_first_stages_weights(
    train: Callable[..., ConfigWorkflow], finished: Path, tmp_path: Path
):
    """With a vanishing learning rate they are all but unchanged; with other weights that cannot be."""
    train(
        tmp_path,
        overlays=("brain_refine",),
        initial_weights=str(finished / "model.pt"),
        segment_lr=[1e-9],
    )
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=1e-3)


def test_missing_data_is_one_clear_error(train: Callable[..., ConfigWorkflow], tmp_path: Path):
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, data_dir=str(tmp_path / "nothing_here"))
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert any("set data_dir to the folder of the label maps" in message for message in chain)


def test_image_and_label_pairs_train_too(bundle_dir: Path, label_maps: Path, small: dict[str, Any], tmp_path: Path):
    """train.json without the brain overlay: NIfTI pairs from a case list."""
    import json

    rng = np.random.default_rng(0)
    cases = []
    for index in range(2):
        label = np.asarray(nib.load(label_maps / f"head_{index}.nii.gz").dataobj) == 17
        image = 100 * label + rng.normal(0, 5, label.shape)
        affine = np.diag([-1.0, -1.0, 1.5, 1.0])
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / f"image_{index}.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), tmp_path / f"label_{index}.nii.gz")
        cases.append({"image": f"image_{index}.nii.gz", "label": f"label_{index}.nii.gz"})
    (tmp_path / "cases.json").write_text(
        json.dumps({"labels": {"Liver": 1}, "training": cases, "validation": cases[:1]})
    )
    workflow = ConfigWorkflow(
        config_file=[str(bundle_dir / "configs" / f"{name}.json") for name in ("train", "small_network")],
        workflow_type="train",
        run_id="training",
        bundle_root=str(bundle_dir),
        data_list=str(tmp_path / "cases.json"),
        output_dir=str(tmp_path / "out"),
        spacing=[2.0, 2.0, 2.0],
        batch_size=2,
        **{key: small[key] for key in small if key not in ("label_values", "tissues", "held_out")},
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "out" / "model.pt").is_file()
