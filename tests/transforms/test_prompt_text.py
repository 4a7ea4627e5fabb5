"""From words to targets and query vectors."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import InputError
from scripts.request import decode_request
from scripts.text import EmbeddingBank, PromptParser, Terminology, UnknownPromptError
from scripts.transforms.prompt_text import EncodePrompts, EncodePromptsd


@pytest.fixture(scope="module")
def parser() -> PromptParser:
    return PromptParser()


@pytest.fixture(scope="module")
def bank() -> EmbeddingBank:
    sentences = sorted({target.sentence for target in Terminology.load().targets()})
    return EmbeddingBank(sentences, torch.randn(len(sentences), 6), "test")


def test_targets_and_vectors_in_the_order_asked(parser: PromptParser, bank: EmbeddingBank) -> None:
    request, queries = EncodePrompts(parser, bank, "MRI")(["brain-stem", "right thalamus", "thalami"])
    assert [target.name for target in request.targets] == ["Brain-stem", "Right thalamus", "Left thalamus"]
    assert torch.equal(queries, bank.lookup(["brain-stem", "right thalamus", "left thalamus"]))


def test_one_string_is_one_prompt(parser: PromptParser, bank: EmbeddingBank) -> None:
    request, _ = EncodePrompts(parser, bank, "MRI")("hippocampi and thalami")
    assert len(request.targets) == 4
    assert request.text == ("hippocampi and thalami",)


def test_explicit_modality_wins_and_two_are_refused(parser: PromptParser, bank: EmbeddingBank) -> None:
    encode = EncodePrompts(parser, bank, "MRI")
    assert encode("the liver on this CT")[0].modality == "CT"
    assert encode("liver", modality="CT")[0].modality == "CT"
    with pytest.raises(InputError, match="one image has one modality"):
        encode(["liver on CT", "left thalamus"])


def test_untrained_structures_are_refused_by_name(parser: PromptParser, bank: EmbeddingBank) -> None:
    encode = EncodePrompts(parser, bank, "MRI", trained=["Left thalamus"])
    assert encode.parse("left thalamus").targets[0].name == "Left thalamus"
    with pytest.raises(InputError, match="not trained for Right thalamus; they know: Left thalamus"):
        encode.parse("thalami")
    assert EncodePrompts(parser, bank, "MRI", trained=["Left thalamus"], allow_untrained=True).parse("thalami")


def test_unknown_words_keep_their_suggestions(parser: PromptParser, bank: EmbeddingBank) -> None:
    with pytest.raises(UnknownPromptError) as caught:
        EncodePrompts(parser, bank, "MRI")(["left thalamus", "hippocampal tail"])
    assert "Left hippocampus" in caught.value.suggestions


def test_missing_vector_is_a_clear_error(parser: PromptParser) -> None:
    with pytest.raises(InputError, match="no vector for"):
        EncodePrompts(parser, EmbeddingBank(["x"], torch.zeros(1, 6), "test"), "MRI")("left thalamus")


def test_dictionary_replaces_words_by_request_and_queries(parser: PromptParser, bank: EmbeddingBank) -> None:
    case = {"image": "a.nii", "text": "left thalamus"}
    out = EncodePromptsd(parser, bank, "MRI")(case)
    assert set(out) == {"image", "request", "queries"}
    assert out["queries"].shape == (1, 6)
    assert decode_request(out["request"]).targets[0].name == "Left thalamus"
    assert case == {"image": "a.nii", "text": "left thalamus"}
