"""The published encoder's file, read strictly: tiny random MPNet and BERT in the published layout, and bad files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, MPNetConfig, PretrainedConfig

from scripts.text import EmbeddingBank, Terminology
from scripts.text.published_encoder import PublishedEncoder, load_published_encoder

WORDS = ["[CLS]", "[SEP]", "left", "right", "kidney", "liver", "hippo", "##campus", "the"]
VOCABULARY = {
    "mpnet": ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>", *WORDS],
    "bert": ["[PAD]", "[UNK]", "[MASK]", *WORDS],
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SENTENCES = {
    "left hippocampus": ["left", "hippo", "##campus"],
    "the liver": ["the", "liver"],
    "the right kidney the left kidney": ["the", "right", "kidney", "the", "left", "kidney"],
}
State = dict[str, torch.Tensor]


def config(family: str, positions: int = 300) -> PretrainedConfig:
    kind = {"mpnet": MPNetConfig, "bert": BertConfig}[family]
    return kind(vocab_size=len(VOCABULARY[family]), max_position_embeddings=positions, **SIZES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each family a folder with configuration and tokenizer alone, as if downloaded without weights."""
    found = {}
    for family, tokenizer in (("mpnet", "MPNetTokenizer"), ("bert", "BertTokenizer")):
        folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
        config(family).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY[family]))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer, "do_lower_case": True}))
        found[family] = folder
    return found


def published_state(family: str, seed: int = 0, positions: int = 300) -> State:
    """A random encoder under the published names."""
    torch.manual_seed(seed)
    tower = AutoModel.from_config(config(family, positions))
    state = {f"text_tower.biolord.{name}": tensor for name, tensor in tower.state_dict().items()}
    for layer in (0, 2):
        state[f"projection_layer.{layer}.weight"] = torch.randn(16, 16) / 4
        state[f"projection_layer.{layer}.bias"] = torch.randn(16)
    return state | {"modality_embed.weight": torch.randn(5, 16)}


@torch.no_grad()
def expected(family: str, state: State, sentence: str, modality: int) -> torch.Tensor:
    """The published rule written out for one sentence: no padding, no batch, none of our code."""
    tower = AutoModel.from_config(config(family)).eval()
    prefix = "text_tower.biolord."
    tower.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    ids = [VOCABULARY[family].index(piece) for piece in ("[CLS]", *SENTENCES[sentence], "[SEP]")]
    pooled = tower(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    hidden = pooled @ state["projection_layer.0.weight"].T + state["projection_layer.0.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    query = hidden @ state["projection_layer.2.weight"].T + state["projection_layer.2.bias"]
    return query + state["modality_embed.weight"][modality]


def parallel(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[State], dict]] = {
    "bare": dict,
    "module": parallel,
    "wrapped": lambda state: {"step": 100, "model_state_dict": parallel(state), "optimizer_state_dict": {"a": [1]}},
    "state_dict": lambda state: {"state_dict": state},
    "with unused entries": lambda state: {
        **state,
        "text_tower.biolord.embeddings.position_ids": torch.arange(300)[None],
        "atlas_tower.first.weight": torch.zeros(2),
        "temperature": torch.tensor(0.07),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["mpnet", "bert"])
def test_vectors_follow_the_published_rule(family: str, form: str, folders: dict[str, Path], tmp_path: Path) -> None:
    state = published_state(family)
    torch.save(FORMS[form](state), tmp_path / "text_encoder.pth")
    encoder = load_published_encoder(folders[family], tmp_path / "text_encoder.pth", local_files_only=True)
    queries = encoder(list(SENTENCES), modality=[0, 3, 4])
    for query, sentence, modality in zip(queries, SENTENCES, (0, 3, 4), strict=True):
        torch.testing.assert_close(query, expected(family, state, sentence, modality), atol=1e-5, rtol=0)


def test_half_precision_weights_are_widened(folders: dict[str, Path], tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in published_state("mpnet").items()}
    torch.save(state, tmp_path / "half.pth")
    query = load_published_encoder(folders["mpnet"], tmp_path / "half.pth")(["the liver"], modality=1)[0]
    wide = {name: tensor.float() for name, tensor in state.items()}
    torch.testing.assert_close(query, expected("mpnet", wide, "the liver", 1), atol=1e-5, rtol=0)


def test_names_and_shapes_are_those_of_the_layout(shared: Path) -> None:
    layout = json.loads((shared / "golden" / "text_encoder_layout.json").read_text())
    wanted = {entry["name"]: entry["shape"] for entry in layout["text_tower_entries_expected_unverified"]}
    with torch.device("meta"):
        tower = AutoModel.from_config(MPNetConfig(vocab_size=30527, max_position_embeddings=514))
    assert {f"text_tower.biolord.{name}": list(t.shape) for name, t in tower.state_dict().items()} == wanted


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A published file that fits the tiny MPNet."""
    torch.save(published_state("mpnet"), tmp_path / "text_encoder.pth")
    return tmp_path / "text_encoder.pth"


def test_one_process_loads_once_and_late(folders: dict[str, Path], head: Path) -> None:
    encoder = load_published_encoder(folders["mpnet"], head)
    assert not encoder.loaded
    encoder(["the liver"])
    tower = encoder.text_tower
    again = load_published_encoder(str(folders["mpnet"]), str(head))
    assert again is encoder
    again(["the kidney"])
    assert again.text_tower is tower
    torch.save(published_state("mpnet", seed=1), head)
    assert load_published_encoder(folders["mpnet"], head) is not encoder


def test_loading_draws_no_random_numbers(folders: dict[str, Path], head: Path) -> None:
    before = torch.random.get_rng_state()
    PublishedEncoder(folders["mpnet"], head).load()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bank_of_another_head_is_refused(folders: dict[str, Path], head: Path, tmp_path: Path) -> None:
    encoder = load_published_encoder(folders["mpnet"], head)
    assert encoder.identity.startswith("tiny-mpnet+")
    EmbeddingBank.build(["the liver"], encoder).save(tmp_path / "bank.safetensors")
    torch.save(published_state("mpnet", seed=1), tmp_path / "other.pth")
    other = load_published_encoder(folders["mpnet"], tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"vectors are of 'tiny-mpnet\+.*build a bank with that encoder"):
        EmbeddingBank.load(tmp_path / "bank.safetensors", encoder=other)
    assert not other.loaded
    renamed = PublishedEncoder(folders["mpnet"], tmp_path / "other.pth", identity=encoder.identity)
    with pytest.raises(ValueError, match=r"is not the bank's"):
        EmbeddingBank.load(tmp_path / "bank.safetensors", encoder=renamed).lookup("left kidney", "CT")


def test_bank_gives_the_encoders_vectors(folders: dict[str, Path], head: Path, tmp_path: Path) -> None:
    EmbeddingBank.build(["liver"], PublishedEncoder(folders["mpnet"], head)).save(tmp_path / "bank.safetensors")
    encoder = PublishedEncoder(folders["mpnet"], head)
    bank = EmbeddingBank.load(tmp_path / "bank.safetensors", encoder=encoder)
    known = bank.lookup(Terminology.load().target("Liver", "MRI"))
    assert not encoder.loaded
    torch.testing.assert_close(known, encoder(["liver"], modality=1), atol=1e-2, rtol=1e-2)
    live = bank.lookup("The left kidney", "PET")
    torch.testing.assert_close(live, encoder(["the left kidney"], modality=3), atol=2e-3, rtol=1e-3)


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


BAD_LAYOUTS: dict[str, tuple[Callable[[], object], str]] = {
    "no head": (lambda: without(published_state("mpnet"), "projection"), r"lacks projection_layer\.0.*and 1 more"),
    "no tower": (lambda: without(published_state("mpnet"), "text_tower"), r"lacks text_tower\.biolord\.embeddings"),
    "another family": (lambda: published_state("bert"), r"lacks .*; it has unknown text_tower\.biolord"),
    "another size": (
        lambda: published_state("mpnet", positions=40),
        r"another shape in \S*position_embeddings.weight \(40, 16\) for \(300, 16\)",
    ),
    "one too many": (lambda: published_state("mpnet") | {"decoder.w": torch.zeros(1)}, "has unknown decoder.w"),
    "no state dict": (lambda: [torch.zeros(1)], "holds no state dict"),
    "numbers": (lambda: {"weight": 1.0}, "holds no state dict"),
    "nothing": (dict, "holds no state dict"),
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_file_that_does_not_fit_is_refused_by_entry(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    make, message = BAD_LAYOUTS[case]
    torch.save(make(), tmp_path / "text_encoder.pth")
    encoder = load_published_encoder(folders["mpnet"], tmp_path / "text_encoder.pth")
    with pytest.raises(ValueError, match=f"^text encoder: text_encoder.pth .*{message}") as caught:
        encoder(["the liver"])
    assert "\n" not in str(caught.value)
    assert not encoder.loaded


class Intruder:
    """An object whose unpickling makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("plain", [False, True])
def test_a_file_with_code_is_refused_and_not_run(plain: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    trace, file = tmp_path / "was_run", tmp_path / "text_encoder.pth"
    content = {"model_state_dict": Intruder(trace)}
    if plain:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="is refused: it holds something other than plain tensors") as caught:
        load_published_encoder(folders["mpnet"], file).load()
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(content))  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_said_to_be_cut(share: float, folders: dict[str, Path], head: Path) -> None:
    content = head.read_bytes()
    head.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"^text encoder: text_encoder.pth is .*(cut short|refused)"):
        load_published_encoder(folders["mpnet"], head).load()


def test_missing_parts_are_named(folders: dict[str, Path], head: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*absent.pth"):
        load_published_encoder(folders["mpnet"], tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"^text encoder: cannot load .*give a folder or hub name"):
        load_published_encoder(tmp_path / "absent", head, local_files_only=True).load()
    bare = tmp_path / "without_tokenizer"
    AutoConfig.from_pretrained(folders["mpnet"]).save_pretrained(bare)
    with pytest.raises(ValueError, match=r"^text encoder: .*(tokenizer|no token \[CLS\])"):
        load_published_encoder(bare, head, local_files_only=True)(["the liver"])
