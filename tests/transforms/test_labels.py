"""Queries of a patch: which targets, in which words, with which mask, and the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from scripts.transforms.labels import SampleQueries, SampleQueriesd

SENTENCES = {
    value: [f"name {value}", f"synonym {value}", f"other word {value}"] for value in (3, 5, 7, 9, 11, 13, 15, 17)
}


def embed(sentences: list[str]) -> torch.Tensor:
    """A stand-in encoder whose vector says which sentence it was given."""
    return torch.tensor([[float(s.split()[-1]), float(len(s))] for s in sentences])


@pytest.fixture
def labels() -> torch.Tensor:
    """Values 3, 5, 7, 9, 11 and 13 are present, 15 and 17 are not."""
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    for index, value in enumerate((3, 5, 7, 9, 11, 13)):
        labels[0, index] = value
    return labels


def sampler(seed: int = 0, **kwargs) -> SampleQueries:
    transform = SampleQueries(embed, **kwargs)
    transform.set_random_state(seed=seed)
    return transform


def real(result: dict) -> list[int]:
    return result["query_values"][result["query_mask"] == 1].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_every_slot_holds_its_own_mask_and_vector(labels, seed):
    result = sampler(seed, max_queries=16)(labels, SENTENCES)
    for slot, value in enumerate(result["query_values"].tolist()):
        if result["query_mask"][slot]:
            assert torch.equal(result["masks"][slot].bool(), labels[0] == value)
            assert result["queries"][slot, 0] == value
        else:
            assert value == 0
            assert result["masks"][slot].sum() == 0
            assert result["queries"][slot].abs().sum() == 0


@pytest.mark.parametrize("seed", range(8))
def test_present_targets_are_all_asked_for_and_absent_ones_at_most_a_third(labels, seed):
    asked = set(real(sampler(seed, max_queries=16)(labels, SENTENCES)))
    assert {3, 5, 7, 9, 11, 13} <= asked
    assert len(asked - {3, 5, 7, 9, 11, 13}) <= 2


def test_absent_targets_do_occur(labels):
    transform = sampler(max_queries=16)
    assert any(set(real(transform(labels, SENTENCES))) & {15, 17} for _ in range(10))


def test_fewer_slots_than_targets_take_a_random_choice(labels):
    transform = sampler(max_queries=4)
    choices = [tuple(sorted(real(transform(labels, SENTENCES)))) for _ in range(20)]
    assert all(len(choice) == 4 for choice in choices)
    assert len(set(choices)) > 5


def test_spare_slots_take_further_synonyms_of_the_same_targets(labels):
    result = sampler(max_queries=12, absent=0)(labels, SENTENCES)
    vectors = [tuple(v) for v in result["queries"][result["query_mask"] == 1].tolist()]
    assert len(vectors) == 12
    assert len(set(vectors)) == 12


def test_words_vary_but_validation_uses_the_canonical_name(labels):
    transform = sampler(max_queries=8, absent=0)
    lengths = {v for _ in range(10) for v in transform(labels, SENTENCES)["queries"][:6, 1].tolist()}
    assert len(lengths) > 1
    result = sampler(max_queries=8, canonical=True)(labels, SENTENCES)
    assert real(result) == list(SENTENCES)
    assert result["queries"][:, 1].tolist() == [float(len(words[0])) for words in SENTENCES.values()]


def test_an_empty_patch_asks_for_nothing():
    result = sampler(max_queries=4)(torch.zeros(1, 4, 4, 4, dtype=torch.int16), SENTENCES)
    assert result["query_mask"].sum() == 0
    assert result["queries"].shape == (4, 2)


def test_dictionary_form_repeats_with_its_seed_and_drops_the_table(labels):
    def run(seed):
        transform = SampleQueriesd("label", SampleQueries(embed, max_queries=6))
        transform.set_random_state(seed=seed)
        data = {"label": labels, "sentences": SENTENCES}
        result = transform(data)
        assert set(data) == {"label", "sentences"}
        assert "sentences" not in result
        return result

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first["queries"], again["queries"])
    assert not torch.equal(first["queries"], other["queries"])
    assert first["label"].shape == (6, 8, 8, 8)


def test_a_patch_without_targets_can_be_asked_for_absent_ones():
    nothing = torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    asked = [real(sampler(seed, max_queries=1, absent_if_empty=1)(nothing, SENTENCES)) for seed in range(8)]
    assert all(len(values) == 1 for values in asked)
    assert len({values[0] for values in asked}) > 3
