"""Import of published weights through the command: what is written, what is refused, and that the overlay runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner, Result

from scripts.cli import app
from scripts.networks import MaskHead, MedalS, PlainUNet, QueryDecoder
from scripts.published.reference_network import PublishedNetwork
from scripts.text import EmbeddingBank, Terminology
from scripts.text.published_encoder import PublishedEncoder
from scripts.weights import load_weights

State = dict[str, torch.Tensor]
OUTPUTS = {
    "medal_s_coarse.pt",
    "medal_s_fine.pt",
    "medal_s_text_embeddings.safetensors",
    "published_import.json",
    "published_import.txt",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["import-weights", *map(str, arguments)])


def refused(result: Result, message: str) -> str:
    """The one line of an error, which says ``message``."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    return line


def ours(makers: Any, fusion: bool = True) -> MedalS:
    """A network of the small sizes, as the overlay builds it."""
    sizes = makers.sizes
    return MedalS(
        PlainUNet(2, sizes.features, sizes.strides),
        QueryDecoder(sum(sizes.features), sizes.width, sizes.layers, sizes.heads, sizes.feedforward),
        MaskHead(sizes.width, sizes.hidden, sizes.features[0], fusion=fusion),
    ).eval()


@pytest.fixture(scope="session")
def overlay(makers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return makers.overlay(tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="session")
def imported(release: Path, overlay: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder written by an import of the whole release."""
    folder = tmp_path_factory.mktemp("bundle") / "models"
    result = run(release, "--overlay", overlay, "-o", folder)
    assert result.exit_code == 0, result.output
    assert "logits differ by at most" in result.stdout
    return folder


@pytest.fixture
def network_file(tmp_path: Path, makers: Any) -> Callable[[Callable[[State], object]], Path]:
    """Writes a coarse network's state dict after a change."""

    def write(change: Callable[[State], object] = dict) -> Path:
        torch.save(change(makers.network(1)), tmp_path / "coarse.pth")
        return tmp_path / "coarse.pth"

    return write


def test_a_release_becomes_the_files_of_the_overlay(imported: Path, release: Path, makers: Any) -> None:
    assert {file.name for file in imported.iterdir()} == OUTPUTS
    prompts = (torch.rand(1, 2, 16, 8, 8) > 0.5).float()
    image, queries = torch.randn(1, 1, 16, 8, 8), torch.randn(1, 2, makers.sizes.width)
    for seed, file in ((1, "medal_s_coarse.pt"), (2, "medal_s_fine.pt")):
        published = PublishedNetwork(makers.sizes).eval()
        published.load_state_dict(makers.network(seed), strict=False)
        network = ours(makers)
        load_weights(network, imported / file)
        with torch.inference_mode():
            torch.testing.assert_close(
                network(image, queries, prompts), published(image, queries, prompts), atol=1e-4, rtol=1e-4
            )


def test_the_report_accounts_for_every_tensor(imported: Path, release: Path) -> None:
    report = json.loads((imported / "published_import.json").read_text())
    coarse, fine = report["networks"]
    source = next(release.glob("*224_224_128*"))
    assert coarse["source"] == source.name
    assert coarse["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert coarse["output_sha256"] == hashlib.sha256((imported / "medal_s_coarse.pt").read_bytes()).hexdigest()
    assert coarse["layout"] == "Medal S"
    assert (coarse["step"], fine["step"]) == (358600, 341300)
    dropped = coarse["dropped_aliases"] + coarse["dropped_training_heads"]
    assert coarse["source_tensors"] == coarse["output_tensors"] + dropped
    assert coarse["dropped_entries"] == ["step", "optimizer_state_dict"]
    assert 0 < coarse["renamed"] <= coarse["output_tensors"]
    for network in (coarse, fine):
        assert network["check"]["largest_difference"] < 1e-3 * network["check"]["standard_deviation"]
    text = (imported / "published_import.txt").read_text()
    for word in (coarse["source_sha256"], coarse["output_sha256"], "optimizer_state_dict", "training heads"):
        assert word in text
    assert str(release.parent) not in text + json.dumps(report)


def test_the_bank_has_a_vector_for_every_target(imported: Path, release: Path) -> None:
    bank = EmbeddingBank.load(imported / "medal_s_text_embeddings.safetensors")
    targets = Terminology.load().targets()
    assert bank.lookup(targets).shape == (len(targets), 16)
    encoder = PublishedEncoder(release / "BioLORD-2023-C", release / "text_encoder.pth", local_files_only=True)
    assert bank.encoder_identity == encoder.identity
    torch.testing.assert_close(bank.lookup("left kidney", "PET"), encoder(["left kidney"], 3), atol=2e-2, rtol=1e-2)


def test_the_overlay_runs_with_what_was_imported(
    imported: Path, overlay: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(bundle_dir / name)
    (tmp_path / "models").symlink_to(imported)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(0, 90, (20, 20, 20)), np.eye(4)), tmp_path / "ct.nii.gz")
    workflow = ConfigWorkflow(
        config_file=[str(bundle_dir / "configs" / "inference.json"), str(overlay)],
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path),
        image=str(tmp_path / "ct.nii.gz"),
        prompts=["liver"],
        modality="CT",
        output_dir=str(tmp_path / "out"),
        progress=False,
        device="cpu",
    )
    workflow.initialize()
    workflow.run()
    state = torch.load(imported / "medal_s_fine.pt", weights_only=True)
    loaded = workflow.parser.get_parsed_content("network")["fine"].state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert (tmp_path / "out" / "ct_seg.nii.gz").is_file()


def test_nothing_is_overwritten_unasked_and_the_same_import_gives_the_same_bytes(
    network_file: Callable[..., Path], overlay: Path, tmp_path: Path
) -> None:
    arguments = ("--coarse", network_file(), "--overlay", overlay, "-o", tmp_path / "out")
    assert run(*arguments).exit_code == 0
    first = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert first.keys() == {"medal_s_coarse.pt", "published_import.json", "published_import.txt"}
    refused(run(*arguments), "would be overwritten; allow it with --force")
    assert run(*arguments, "--force").exit_code == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == first


def test_files_imported_one_after_another_share_a_report(
    release: Path, overlay: Path, network_file: Callable[..., Path], tmp_path: Path
) -> None:
    to = ("--overlay", overlay, "-o", tmp_path / "out")
    assert run("--fine", next(release.glob("*192_192_192*")), *to).exit_code == 0
    assert run("--coarse", network_file(), *to).exit_code == 0
    report = json.loads((tmp_path / "out" / "published_import.json").read_text())
    assert [network["output"] for network in report["networks"]] == ["medal_s_coarse.pt", "medal_s_fine.pt"]
    (tmp_path / "out" / "medal_s_fine.pt").write_bytes(b"another")
    assert run("--coarse", network_file(), *to, "--force").exit_code == 0
    report = json.loads((tmp_path / "out" / "published_import.json").read_text())
    assert [network["output"] for network in report["networks"]] == ["medal_s_coarse.pt"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, network_file: Callable[..., Path], overlay: Path, tmp_path: Path) -> None:
    result = run("--coarse", network_file(), "--overlay", overlay, "-o", tmp_path, "--dtype", dtype, "--json")
    (network,) = json.loads(result.stdout)["networks"]
    assert (network["source_dtypes"], network["output_dtypes"]) == (["float32"], [dtype])
    assert 0 < network["check"]["largest_difference"] < 0.2 * network["check"]["standard_deviation"]
    state = torch.load(tmp_path / "medal_s_coarse.pt", weights_only=True)
    assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtype}"}


def test_half_precision_stays_as_it_is_published(
    network_file: Callable[..., Path], overlay: Path, tmp_path: Path
) -> None:
    file = network_file(lambda state: {name: tensor.half() for name, tensor in state.items()})
    result = run("--coarse", file, "--overlay", overlay, "-o", tmp_path / "out", "--json")
    (network,) = json.loads(result.stdout)["networks"]
    assert network["output_dtypes"] == ["float16"]
    assert network["check"]["largest_difference"] < 1e-3 * network["check"]["standard_deviation"]


FIRST = "backbone.encoder.stages.0.0.convs.0.conv.weight"
ALIAS = "backbone.encoder.stages.0.0.convs.0.all_modules.0.weight"
HEAD = "mid_mask_embed_proj.0.0.weight"


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def having(**tensors: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state[name])}


BAD_LAYOUTS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (without("fusion_conv.convs.0.norm.bias"), "looks like Medal S, but it lacks fusion_conv.convs.0.norm"),
    "extra": (having(seg_layers__weight=torch.zeros(1)), "has unknown seg_layers.weight"),
    "another shape": (
        changed("mask_embed_proj.2.bias", lambda t: t[:3]),
        "another shape in mask_embed_proj.2.bias (3,)",
    ),
    "alias disagrees": (changed(ALIAS, lambda t: t + 1), "should be one tensor but hold different values"),
    "alias of nothing": (having(fusion_conv__convs__7__all_modules__0__bias=torch.zeros(1)), "has unknown fusion_conv"),
    "with and without module": (having(**{f"module.{FIRST}": torch.zeros(1)}), "is there twice"),
    "not finite": (changed(FIRST, lambda t: t / 0), f"{FIRST} holds numbers that are not finite"),
    "half of the heads": (without(HEAD), f"lacks {HEAD}"),
    "integers": (changed("mask_embed_proj.0.bias", lambda t: t.int()), "holds torch.int32, wanted floating point"),
    "SAT-Pro": (having(backbone__encoder__stages__0__0__convs__2__conv__bias=torch.zeros(1)), "SAT-Pro, UNET-L"),
    "UNET-H": (having(query_proj__0__weight=torch.zeros(1)), "it is SAT's UNET-H"),
    "SwinUNETR": (having(backbone__swinViT__norm=torch.zeros(1)), "its backbone is a SwinUNETR"),
    "U-Mamba": (having(backbone__mamba_layer__norm=torch.zeros(1)), "its backbone is a U-Mamba"),
    "text encoder": (having(text_tower__biolord__x=torch.zeros(1)), "it is a text encoder, not a network"),
    "ours": (lambda _: {"mask_head.fusion.conv.bias": torch.zeros(1)}, "it is converted, use it as weights"),
    "any other": (lambda _: {"fc.weight": torch.zeros(1)}, "is no published network: wanted"),
    "no prompts": (
        lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("fusion_conv")},
        "is neither Medal S nor SAT",
    ),
    "no state dict": (lambda _: {"model_state_dict": [1]}, "holds no state dict"),
    "a list": (lambda _: [torch.zeros(1)], "wanted a state dict (names to tensors), got list"),
    "sparse": (changed("fusion_conv.convs.0.norm.bias", lambda t: t.to_sparse()), "is no dense tensor"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_another_layout_is_refused_and_nothing_written(
    case: str, network_file: Callable[..., Path], overlay: Path, tmp_path: Path
) -> None:
    change, message = BAD_LAYOUTS[case]
    line = refused(run("--coarse", network_file(change), "--overlay", overlay, "-o", tmp_path / "out"), message)
    assert "coarse.pth" in line
    assert not list((tmp_path / "out").iterdir())


def test_numbers_too_large_for_half_precision(network_file: Callable[..., Path], overlay: Path, tmp_path: Path) -> None:
    file = network_file(changed("mask_embed_proj.0.bias", lambda t: t + 1e6))
    arguments = ("--coarse", file, "--overlay", overlay, "-o", tmp_path / "out", "--dtype")
    refused(run(*arguments, "float16"), "numbers too large for float16; choose --dtype bfloat16")
    assert not list((tmp_path / "out").iterdir())


def test_one_bad_file_and_none_of_the_others_is_written(
    release: Path, overlay: Path, makers: Any, tmp_path: Path
) -> None:
    torch.save(without(FIRST)(makers.network(2)), tmp_path / "fine.pth")
    result = run(release, "--fine", tmp_path / "fine.pth", "--overlay", overlay, "-o", tmp_path / "out")
    refused(result, "fine.pth is no published network")
    assert not list((tmp_path / "out").iterdir())


def test_files_are_not_mixed_up(release: Path, overlay: Path, tmp_path: Path) -> None:
    coarse, fine = next(release.glob("*224_224_128*")), next(release.glob("*192_192_192*"))
    to = ("--overlay", overlay, "-o", tmp_path / "out")
    refused(run("--coarse", fine, "--fine", coarse, *to), "exchange them")
    refused(run("--coarse", release / "text_encoder.pth", *to), "it is a text encoder, not a network")
    refused(run("--text-encoder", coarse, "--language-model", release / "BioLORD-2023-C", *to), "is no text encoder")
    refused(run("--coarse", coarse, "--fine", coarse, *to), "exchange them")
    refused(run(*to), "nothing to import")
    refused(run(tmp_path, *to), "has no files nano_UNet_CVPR2025")
    refused(run(tmp_path / "typo", *to), "no folder")
    refused(run("--coarse", tmp_path / "typo.pth", *to), "no checkpoint")
    refused(run(release, "--overlay", "single_stage", "-o", tmp_path / "out"), "belongs to no published weights")
    assert not list((tmp_path / "out").iterdir())


def test_hashes_are_checked(network_file: Callable[..., Path], overlay: Path, tmp_path: Path) -> None:
    file = network_file()
    hashed = hashlib.sha256(file.read_bytes()).hexdigest()
    arguments = ("--coarse", file, "--overlay", overlay, "-o", tmp_path / "out", "--sha256")
    refused(run(*arguments, f"coarse.pth={'0' * 64}"), f"coarse.pth has SHA-256 {hashed}, wanted 000")
    refused(run(*arguments, f"other.pth={hashed}"), "was given for other.pth, but the files are coarse.pth")
    refused(run(*arguments, "coarse.pth=12"), "has to be 64 hexadecimal digits")
    refused(run(*arguments, hashed), "--sha256 wants FILE=HASH")
    assert run(*arguments, f"coarse.pth={hashed.upper()}").exit_code == 0


@pytest.mark.parametrize("channels", [3, 1])
def test_sat_nano_becomes_a_text_only_network(channels: int, makers: Any, tmp_path: Path) -> None:
    state = makers.network(5, in_channels=channels, fusion=False)
    torch.save(makers.checkpoint(state), tmp_path / "nano_cvpr25_v0.pth")
    torch.save({"model_state_dict": makers.text_encoder(modalities=4)}, tmp_path / "text_encoder_cvpr25_v0.pth")
    makers.language_model(tmp_path / "BioLORD-2023-C")
    sat = makers.overlay(tmp_path, "sat")
    refused(run(tmp_path, "--overlay", sat, "-o", tmp_path / "out"), "another shape in modality_embed.weight (4, 16)")
    file = tmp_path / "nano_cvpr25_v0.pth"
    assert run("--coarse", file, "--overlay", sat, "-o", tmp_path / "out").exit_code == 0
    published = PublishedNetwork(makers.sizes, channels, fusion=False).eval()
    published.load_state_dict(state, strict=False)
    network = ours(makers, fusion=False)
    load_weights(network, tmp_path / "out" / "sat_nano.pt")
    image, queries = torch.randn(1, 1, 16, 8, 8), torch.randn(1, 2, makers.sizes.width)
    prompts = torch.ones(1, 2, 16, 8, 8)  # not read
    with torch.inference_mode():
        torch.testing.assert_close(
            network(image, queries, prompts), published(image, queries, prompts), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(network.answer(network.features(image), queries), network(image, queries))


def test_the_overlay_and_the_layout_have_to_agree(
    network_file: Callable[..., Path], overlay: Path, makers: Any, tmp_path: Path
) -> None:
    sat = makers.overlay(tmp_path, "sat")
    refused(run("--coarse", network_file(), "--overlay", sat, "-o", tmp_path / "out"), "choose the overlay of Medal S")
    refused(run("--fine", network_file(), "--overlay", sat, "-o", tmp_path / "out"), "overlay sat has no fine_weights")
    torch.save(makers.network(5, in_channels=3, fusion=False), tmp_path / "nano.pth")
    result = run("--coarse", tmp_path / "nano.pth", "--overlay", overlay, "-o", tmp_path / "out")
    refused(result, "choose the overlay of SAT")


@pytest.mark.slow
def test_the_full_layout_gives_the_published_codes_logits(shared: Path, tmp_path: Path) -> None:
    """All 300 names and true shapes, filled by the golden data's rule; the file written answers as the golden data."""
    import zlib

    state: State = {}
    for entry in json.loads((shared / "golden" / "state_dict_keys.json").read_text())["entries"]:
        name, shape = entry["name"], entry["shape"]
        if entry["alias_of"]:
            state[f"module.{name}"] = state[f"module.{entry['alias_of']}"]
            continue
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            x *= np.float32(np.sqrt((2 if len(shape) > 2 else 1) / np.prod(shape[1:])))
        else:
            x = np.float32(name.endswith("weight")) + np.float32(0.1) * x
        state[f"module.{name}"] = torch.from_numpy(x)
    torch.save({"model_state_dict": state}, tmp_path / "coarse.pth")
    del state
    result = run("--coarse", tmp_path / "coarse.pth", "-o", tmp_path, "--json")
    (tmp_path / "coarse.pth").unlink()
    (network,) = json.loads(result.stdout)["networks"]
    assert (network["source_tensors"], network["dropped_aliases"], network["dropped_training_heads"]) == (300, 92, 12)
    assert network["parameters"] == 109_414_272
    assert network["check"]["largest_difference"] < 1e-3
    full = MedalS().eval()
    load_weights(full, tmp_path / "medal_s_coarse.pt")
    (tmp_path / "medal_s_coarse.pt").unlink()
    with np.load(shared / "golden" / "net_inputs_n3.npz") as data:
        inputs = {key: torch.from_numpy(data[key].astype(np.float32)) for key in data}
    with torch.inference_mode(), np.load(shared / "golden" / "net_expected_n3_given.npz") as expected:
        logits = full(inputs["image"], inputs["queries"], inputs["s_p"])
        assert float((logits - torch.from_numpy(expected["logits"])).abs().max()) < 1e-3
