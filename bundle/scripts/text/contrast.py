"""Contrast between sentences: a loss that joins those of one concept, and how well concepts are told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .term_pairs import Term


class InfoNCE(nn.Module):
    """Symmetric cross entropy of finding each first sentence's partner among all second ones, and the reverse.

    Args:
        temperature: of the softmax over cosines.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, ignore: Tensor | None = None) -> Tensor:
        """A number.

        Args:
            queries: float ``[2 B, L]``: B first sentences, then their partners.
            ignore: bool ``[B, B]``, pairs that are no contrast; the diagonal is False.
        """
        first, second = F.normalize(queries.float(), dim=-1).chunk(2)
        similarity = first @ second.T / self.temperature
        if ignore is not None:
            similarity = similarity.masked_fill(ignore, float("-inf"))
        same = torch.arange(len(first), device=queries.device)
        return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


@torch.no_grad()
def separation(embed: Callable[[Sequence[str], Sequence[int]], Tensor], terms: Sequence[Term]) -> dict[str, float]:
    """How well sentences tell concepts apart.

    Args:
        embed: from N sentences and the places of their terms to queries ``[N, L]``.
        terms: see ``collect_terms``.

    Returns:
        ``found``: share of the synonyms and definitions that are nearest, of all names, to a name of their own;
        ``found_held_out``: the same for those not learned from, where there are any; ``twin_cosine``: mean cosine of
        the names of two sides, where there are any.
    """
    names = F.normalize(embed([term.sentences[0] for term in terms], range(len(terms))).float(), dim=-1)
    result = {}
    for key, lists in (
        ("found", [term.sentences[1:] for term in terms]),
        ("found_held_out", [term.held_out for term in terms]),
    ):
        texts = [text for own in lists for text in own]
        places = [place for place, own in enumerate(lists) for _ in own]
        if texts:
            nearest = (F.normalize(embed(texts, places).float(), dim=-1) @ names.T).argmax(dim=1).tolist()
            right = [text in (*terms[n].sentences, *terms[n].held_out) for text, n in zip(texts, nearest, strict=True)]
            result[key] = sum(right) / len(right)
    sides = [(place, term.twin) for place, term in enumerate(terms) if term.twin is not None and place < term.twin]
    if sides:
        left, right_ = (names[list(side)] for side in zip(*sides, strict=True))
        result["twin_cosine"] = float((left * right_).sum(-1).mean())
    return result
