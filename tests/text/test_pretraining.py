"""Contrastive pre-training: batches, loss, the real config on a tiny language model, resuming, the published layout."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow
from transformers import BertConfig, BertModel

from scripts.networks import TextProjection
from scripts.text import EmbeddingBank, Terminology
from scripts.text.contrast import InfoNCE
from scripts.text.pretraining import TrainableEncoder, new_encoder
from scripts.text.projection_pretraining import pretrain_projection
from scripts.text.published_encoder import load_published_encoder
from scripts.text.term_pairs import TermBatches, collect_terms
from scripts.text.text_encoder import TextEncoder

TERMS = collect_terms(held_out=0.2)
QUICK: dict[str, Any] = {"steps": 12, "warmup": 2, "batch_size": 24, "val_interval": 100, "ckpt_interval": 5}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of width 16 whose vocabulary has every word of the terminology."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(Terminology.load().all_sentences()))
    vocabulary = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *sorted(set(words))]
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=300, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


def pretrain(bundle_dir: Path, model: Path, output: Path, **changes: Any) -> ConfigWorkflow:
    options = {**QUICK, "language_model": str(model), "local_files_only": True, "output_dir": str(output), **changes}
    workflow = ConfigWorkflow(
        config_file=str(bundle_dir / "configs" / "pretrain_text.json"),
        workflow_type="train",
        run_id="training",
        logging_file=False,
        bundle_root=str(bundle_dir),
        device="$torch.device('cpu')",
        **options,
    )
    workflow.initialize()
    workflow.run()
    return workflow


@given(st.integers(0, 10_000), st.integers(2, 60))
def test_a_batch_has_two_sentences_of_each_concept_and_both_sides(index: int, size: int) -> None:
    batches = TermBatches(TERMS, size)
    batch = batches[index]
    count = len(batch["sentences"]) // 2
    assert size <= count <= size + 1
    names = {text: {n for n, term in enumerate(TERMS) if text in term.sentences} for text in batch["sentences"]}
    first, second = batch["sentences"][:count], batch["sentences"][count:]
    owners = [names[a] & names[b] for a, b in zip(first, second, strict=True)]
    assert all(owners)
    assert all(a != b or len(TERMS[min(own)].sentences) == 1 for a, b, own in zip(first, second, owners, strict=True))
    assert torch.equal(batch["modality"][:count], batch["modality"][count:])
    chosen = {min(own) for own in owners if len(own) == 1}
    assert all(TERMS[place].twin in set().union(*owners) for place in chosen if TERMS[place].twin is not None)
    assert batch["sentences"] == batches[index]["sentences"]  # the same every time


def test_what_may_mean_the_other_concept_is_no_contrast() -> None:
    """A sentence of two concepts: neither is punished for being near it."""
    (ambiguous,) = [text for text, n in _counts().items() if n > 1][:1]
    places = [place for place, term in enumerate(TERMS) if ambiguous in term.sentences]
    terms = [TERMS[place].__class__(TERMS[place].concept, (0,), (ambiguous,)) for place in places]
    batch = TermBatches(terms, None)[0]
    assert batch["ignore"].sum() == len(places) * (len(places) - 1)
    assert InfoNCE()(torch.randn(2 * len(places), 4), batch["ignore"]) == 0


def _counts() -> dict[str, int]:
    counts: dict[str, int] = {}
    for term in TERMS:
        for text in term.sentences:
            counts[text] = counts.get(text, 0) + 1
    return counts


def test_sentences_are_learned_or_held_out_and_definitions_join() -> None:
    plain, mine = collect_terms(describe=False), collect_terms(definitions={"Liver": ["The largest gland"]})
    by_name = {term.concept.name: term for term in mine}
    assert "the largest gland" in by_name["Liver"].sentences
    assert "hippocampus on the left side, brain" in by_name["Left hippocampus"].sentences
    for term, bare in zip(TERMS, plain, strict=True):
        assert not set(term.sentences) & set(term.held_out)
        assert term.sentences[0] == bare.sentences[0]
        assert set(bare.sentences) <= {*term.sentences, *term.held_out}
    share = sum(len(term.held_out) for term in TERMS) / sum(len(term.held_out) + len(term.sentences) for term in TERMS)
    assert 0.1 < share < 0.25
    with pytest.raises(ValueError, match="definitions of flux capacitor: not in the terminology"):
        collect_terms(definitions={"Flux capacitor": ["x"]})
    with pytest.raises(ValueError, match="batch of 1 concepts has nothing to contrast"):
        TermBatches(TERMS, 1)


def test_loss_is_the_cross_entropy_of_finding_the_partner() -> None:
    queries = torch.randn(6, 5, dtype=torch.float64)
    unit = (queries / queries.norm(dim=1, keepdim=True)).float().numpy()
    similarity = unit[:3] @ unit[3:].T / 0.2
    rows, columns = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (similarity, similarity.T))
    expected = -(np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean()) / 2
    assert InfoNCE(0.2)(queries).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("train_tower", [False, True])
def test_a_run_writes_the_published_layout(
    train_tower: bool, bundle_dir: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """What is read back gives the trained vectors, by the published rule; a frozen tower stays as it was."""
    workflow = pretrain(bundle_dir, tiny_bert, tmp_path, train_tower=train_tower)
    file = tmp_path / "text_encoder.pth"
    encoder = load_published_encoder(tiny_bert, file, local_files_only=True)
    sentences, modality = ["left kidney", "the left kidney", "liver"], [0, 1, 3]
    network = workflow.parser.get_parsed_content("network")
    torch.testing.assert_close(encoder(sentences, modality), network(sentences, torch.tensor(modality)))
    fresh = new_encoder(tiny_bert, local_files_only=True)
    assert not torch.equal(encoder(sentences, modality), fresh(sentences, modality))
    same = all(torch.equal(a, b) for a, b in zip(_tower(encoder), _tower(fresh), strict=True))
    assert same is not train_tower
    onward = TrainableEncoder(new_encoder(tiny_bert, file, local_files_only=True))
    torch.testing.assert_close(onward(sentences, torch.tensor(modality)), encoder(sentences, modality))


def _tower(encoder: TextEncoder) -> list[torch.Tensor]:
    assert encoder.text_tower is not None
    return list(encoder.text_tower.state_dict().values())


def test_it_learns_and_a_run_that_was_stopped_goes_on_exactly(
    bundle_dir: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """The same weights from one run of 12 steps and from one that was stopped after its checkpoint of step 10."""
    whole = pretrain(bundle_dir, tiny_bert, tmp_path / "whole", batch_size=64, lr=0.01)
    metrics = whole.parser.get_parsed_content("trainer").state.metrics
    begin = pretrain(bundle_dir, tiny_bert, tmp_path / "begin", steps=1, lr=0.0)
    before = begin.parser.get_parsed_content("trainer").state.metrics
    assert metrics["found"] > before["found"]
    assert 0 <= metrics["found_held_out"] <= 1
    checkpoints = tmp_path / "again" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "checkpoints" / "checkpoint_iteration=10.pt", checkpoints)
    pretrain(bundle_dir, tiny_bert, tmp_path / "again", batch_size=64, lr=0.01)
    one, two = (torch.load(tmp_path / run / "text_encoder.pth")["model_state_dict"] for run in ("whole", "again"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0)


def test_a_networks_own_projection_learns_the_sides(bundle_dir: Path) -> None:
    bank = EmbeddingBank.load(bundle_dir / "models" / "text_embeddings.safetensors")

    def trained() -> tuple[TextProjection, dict[str, float]]:
        torch.manual_seed(0)
        projection = TextProjection(bank.width, 64)
        return projection, pretrain_projection(projection, bank, steps=40)

    torch.manual_seed(0)
    fresh = pretrain_projection(TextProjection(bank.width, 64), bank, steps=1, lr=0.0)
    projection, found = trained()
    assert found["twin_cosine"] < 0.8 < fresh["twin_cosine"]
    assert found["found"] > fresh["found"]
    again, _ = trained()
    for one, two in zip(projection.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_cannot_be_trained_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"^text pre-training: no file absent.pth"):
        new_encoder(tiny_bert, "absent.pth")
    with pytest.raises(ValueError, match=r"^text pre-training: wanted an encoder with projection"):
        TrainableEncoder(TextEncoder(tiny_bert, local_files_only=True))
