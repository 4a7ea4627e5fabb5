"""The text encoder: head against golden values, both tokenisations on a tiny random BERT, loading on demand."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

from scripts.text import TextEncoder, TextHead
from scripts.text.text_encoder import mean_pool

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "kidney", "liver", "hippo", "##campus", "the"]


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A golden weight, from its name and shape alone."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) == 2:
        return torch.from_numpy(values * np.float32(np.sqrt(1 / shape[1])))
    return torch.from_numpy(values * np.float32(0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny randomly initialised BERT with its tokenizer, as a transformers folder."""
    target = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(target)
    (target / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab=str(target / "vocab.txt")).save_pretrained(target)
    return target


def test_head_matches_the_published_values(shared: Path) -> None:
    golden = np.load(shared / "golden" / "text_head.npz")
    head = TextHead(width=768, project=True, num_modalities=5)
    head.load_state_dict({name: filled(name, tuple(tensor.shape)) for name, tensor in head.state_dict().items()})
    states, mask = torch.from_numpy(golden["token_states"]), torch.from_numpy(golden["attention_mask"])
    modality = torch.from_numpy(golden["modality"])
    with torch.no_grad():
        pooled = mean_pool(states, mask)
        each, one = head(states, mask, modality), head(states, mask, int(modality[0]))
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    np.testing.assert_allclose(each, golden["query"], atol=1e-5)
    np.testing.assert_allclose(one, golden["query_single_modality"], atol=1e-5)


def test_head_has_the_published_entries(shared: Path) -> None:
    layout = json.loads((shared / "golden" / "text_encoder_layout.json").read_text())
    wanted = {entry["name"]: entry["shape"] for entry in layout["wrapper_entries"]}
    assert {name: list(tensor.shape) for name, tensor in TextHead().state_dict().items()} == wanted


def test_all_masked_tokens_pool_to_zero() -> None:
    assert torch.equal(mean_pool(torch.ones(1, 3, 4), torch.zeros(1, 3)), torch.zeros(1, 4))


def test_encodes_on_demand_and_stays_frozen(folder: Path) -> None:
    encoder = TextEncoder(folder, local_files_only=True)
    assert not encoder.loaded
    queries = encoder(["left kidney", "liver", "left kidney"])
    assert encoder.loaded
    assert queries.shape == (3, 16)
    assert queries.dtype == torch.float32
    assert torch.equal(queries[0], queries[2])
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().training


def test_requests_that_come_at_once_load_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = AutoModel.from_pretrained
    monkeypatch.setattr(
        AutoModel, "from_pretrained", lambda *args, **kwargs: reads.append(args) or read(*args, **kwargs)
    )
    encoder = TextEncoder(folder, local_files_only=True)
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(lambda _: encoder(["liver"]), range(4)))
    assert len(reads) == 1
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    assert torch.equal(torch.random.get_rng_state(), state)  # a run's own draws stay as they were


def test_padding_does_not_change_a_vector(folder: Path) -> None:
    encoder = TextEncoder(folder, local_files_only=True)
    alone = encoder(["liver"])
    together = encoder(["liver", "the left kidney the right kidney"])
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=0)


def test_written_tokens_follow_the_published_rule(folder: Path) -> None:
    encoder = TextEncoder(folder, special_tokens="written", local_files_only=True, max_length=5)
    ids, mask = encoder.tokenize(["left hippocampus", "liver", "the left kidney the right kidney"])
    first, last = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
    pieces = [VOCABULARY.index(piece) for piece in ("left", "hippo", "##campus")]
    assert ids[0].tolist() == [first, *pieces, last]
    assert ids[1].tolist() == [first, VOCABULARY.index("liver"), last, 0, 0]
    assert ids[2].tolist()[-1] == last  # cut to five ids, [SEP] last
    assert torch.equal(mask, (ids > 0).long())


def test_projection_and_modality(folder: Path) -> None:
    encoder = TextEncoder(folder, project=True, num_modalities=5, local_files_only=True).load()
    weights = {f"module.{name}": torch.randn_like(tensor) for name, tensor in encoder.head.state_dict().items()}
    encoder.load_head(weights)
    difference = encoder(["liver"], modality=1) - encoder(["liver"], modality=0)
    embedding = weights["module.modality_embed.weight"]
    torch.testing.assert_close(difference[0], embedding[1] - embedding[0], atol=1e-4, rtol=0)
    mixed = encoder(["liver", "kidney"], modality=[0, 3])
    torch.testing.assert_close(mixed[0], encoder(["liver"], modality=0)[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="lacks modality_embed"):
        encoder.load_head({key: value for key, value in weights.items() if "modality" not in key})


def test_complaints(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="special_tokens is one of"):
        TextEncoder(folder, special_tokens="other")
    with pytest.raises(ValueError, match="cannot load"):
        TextEncoder(tmp_path / "absent", local_files_only=True)(["liver"])
    with pytest.raises(ValueError, match="at least one sentence"):
        TextEncoder(folder, local_files_only=True)([])
