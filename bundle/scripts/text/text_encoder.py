"""Frozen sentence encoder: a transformers language model, mean pooling, optional projection and modality embedding.

Without projection it is a stock sentence encoder (all-MiniLM-L6-v2 for the shipped weights); with projection and
modality embedding it follows the published Medal S text tower (SAT's recipe, on BioLORD-2023-C), whose weights
``published_encoder.py`` reads.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("native", "written")
_LOADING = threading.RLock()  # a server's first requests may come at once: one of them loads, the others wait


def mean_pool(token_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Average token states over the tokens whose mask is set.

    Args:
        token_states: float [N, T, L].
        attention_mask: [N, T], 1 for a real token.

    Returns:
        [N, L]; the divisor is at least 1e-9, so that an all-masked row gives zeros.
    """
    mask = attention_mask.unsqueeze(-1).to(token_states.dtype)
    return (token_states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


class TextHead(nn.Module):
    """What the published wrapper adds to the language model: a projection and one vector per modality.

    Args:
        width: L, of the language model's states and of the queries.
        project: whether to apply Linear-GELU-Linear to the pooled state.
        num_modalities: rows of the modality embedding; 0 for none.
    """

    def __init__(self, width: int = 768, project: bool = True, num_modalities: int = 5) -> None:
        super().__init__()
        self.projection_layer: nn.Module = nn.Identity()
        if project:
            self.projection_layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.modality_embed = nn.Embedding(num_modalities, width) if num_modalities else None

    def forward(self, token_states: Tensor, attention_mask: Tensor, modality: Tensor | int | None = None) -> Tensor:
        """Pool, project and add the modality.

        Args:
            token_states: float [N, T, L].
            attention_mask: [N, T].
            modality: index (one for all texts) or int64 [N]; None adds nothing.

        Returns:
            queries [N, L].
        """
        queries = self.projection_layer(mean_pool(token_states, attention_mask))
        if modality is None or self.modality_embed is None:
            return queries
        index = torch.as_tensor(modality, dtype=torch.long, device=queries.device)
        return queries + self.modality_embed(index)


class TextEncoder(nn.Module):
    """Sentences to query vectors, frozen, with the language model loaded when first needed.

    Args:
        model: folder or hub name of a transformers model with safetensors weights.
        project: whether a projection follows the pooling (published encoder: True).
        num_modalities: rows of the modality embedding, 0 for none (published encoder: 5).
        special_tokens: ``native`` uses the tokenizer as it comes; ``written`` is the published tokenisation, with
            [CLS] and [SEP] written around the word pieces, padding id 0 and the mask set where the id is above 0.
        max_length: longest token sequence, special tokens included.
        identity: name under which vectors of this encoder are kept; the model's own name when None.
        local_files_only: never reach for the network.
        batch_size: sentences encoded at a time.

    Raises:
        ValueError: unknown ``special_tokens``; later, on first use, a model that cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        project: bool = False,
        num_modalities: int = 0,
        special_tokens: str = "native",
        max_length: int = 256,
        identity: str | None = None,
        local_files_only: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if special_tokens not in SPECIAL_TOKENS:
            raise ValueError(f"text encoder: special_tokens is one of {SPECIAL_TOKENS}, got {special_tokens!r}")
        self.model_name = str(model)
        self.project = project
        self.num_modalities = num_modalities
        self.special_tokens = special_tokens
        self.max_length = max_length
        self.identity = identity or Path(self.model_name).name
        self.local_files_only = local_files_only
        self.batch_size = batch_size
        self.tokenizer: Any = None
        self.text_tower: nn.Module | None = None
        self.head: TextHead | None = None

    @property
    def loaded(self) -> bool:
        """Whether the language model is in memory."""
        return self.text_tower is not None

    def load(self) -> TextEncoder:
        """Load tokenizer and language model once; later calls return at once."""
        with _LOADING:
            if not self.loaded:
                logger.info("loading text encoder %s", self.identity)
                self.tokenizer = self._read_tokenizer()
                with torch.random.fork_rng(devices=[]):  # initial values, soon overwritten, must not cost the run draws
                    tower, head = self._read_modules()
                self.head = head.requires_grad_(False).eval()
                self.text_tower = tower.requires_grad_(False).eval()  # last, as this is what makes it count as loaded
        return self

    def load_head(self, state_dict: Mapping[str, Tensor]) -> TextEncoder:
        """Load the published wrapper's entries (``projection_layer.*``, ``modality_embed.*``; ``module.`` allowed)."""
        self.load()
        assert self.head is not None
        entries = {re.sub(r"^module\.", "", key): value for key, value in state_dict.items()}
        wanted = self.head.state_dict()
        if missing := sorted(set(wanted) - set(entries)):
            raise ValueError(f"text encoder: the state dict lacks {', '.join(missing)}")
        self.head.load_state_dict({key: entries[key] for key in wanted})
        return self

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)

    def tokenize(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both int64 [N, T], by the rule chosen with ``special_tokens``."""
        self.load()
        if self.special_tokens == "native":
            batch = self.tokenizer(
                list(sentences), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            return batch["input_ids"], batch["attention_mask"]
        first, last = self._marker("[CLS]"), self._marker("[SEP]")
        rows = []
        for sentence in sentences:
            pieces = self.tokenizer(sentence, add_special_tokens=False)["input_ids"]
            rows.append([first, *pieces[: self.max_length - 2], last])
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids, (ids > 0).long()

    @torch.inference_mode()
    def forward(self, sentences: Sequence[str], modality: Tensor | Sequence[int] | int | None = None) -> Tensor:
        """Encode sentences; identical ones are encoded once.

        Args:
            sentences: N texts, taken as they are (see ``normalise_sentence`` for the banks' form).
            modality: index for all, or one per sentence; only used with a modality embedding.

        Returns:
            float32 [N, L] on the encoder's device.
        """
        self.load()
        assert self.head is not None
        if not sentences:
            raise ValueError("text encoder: at least one sentence is wanted, got an empty list")
        unique = list(dict.fromkeys(sentences))
        starts = range(0, len(unique), self.batch_size)
        pooled = torch.cat([self._pool(unique[start : start + self.batch_size]) for start in starts])
        place = {sentence: index for index, sentence in enumerate(unique)}
        queries = self.head.projection_layer(pooled)[[place[sentence] for sentence in sentences]]
        if modality is None or self.head.modality_embed is None:
            return queries
        index = torch.as_tensor(modality, dtype=torch.long, device=queries.device)
        return queries + self.head.modality_embed(index)

    def _read_tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # heavy, and never needed while the bank suffices

        try:
            return AutoTokenizer.from_pretrained(self.model_name, **self._source_options())
        except Exception as error:  # whatever a file of the folder causes: its reader raises bare exceptions too
            raise self._unusable(error, "its tokenizer") from error

    def _read_modules(self) -> tuple[nn.Module, TextHead]:
        from transformers import AutoModel

        try:
            tower = AutoModel.from_pretrained(self.model_name, use_safetensors=True, **self._source_options()).float()
        except (OSError, ValueError) as error:
            raise self._unusable(error, "safetensors weights") from error
        return tower, TextHead(int(tower.config.hidden_size), self.project, self.num_modalities)

    def _source_options(self) -> dict[str, Any]:
        return {"local_files_only": self.local_files_only, "trust_remote_code": False}

    def _unusable(self, error: Exception, wanted: str) -> ValueError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ValueError(
            f"text encoder: cannot load {self.model_name!r} ({reason}); "
            f"give a folder or hub name of a transformers model with {wanted}"
        )

    def _pool(self, sentences: Sequence[str]) -> Tensor:
        assert self.text_tower is not None
        device = next(self.text_tower.parameters()).device
        ids, mask = (tensor.to(device) for tensor in self.tokenize(sentences))
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)

    def _marker(self, token: str) -> int:
        marker = self.tokenizer.convert_tokens_to_ids(token)
        if marker is None or marker == self.tokenizer.unk_token_id:
            raise ValueError(f"text encoder: {self.model_name!r} has no token {token}; use special_tokens='native'")
        return int(marker)
