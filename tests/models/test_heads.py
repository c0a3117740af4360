"""Classifiers against transformers' own models, text by text and written out by hand."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from fedloom.errors import UserError
from fedloom.models.heads import Classifier, HeadSpec, is_decoder, start
from fedloom.models.identity import kin
from fedloom.models.load import NANO, load_model, load_skeleton
from models import tiny_classifiers as small

POOLINGS = ["cls", "mean", "last"]
CASES = [
    (family, pooling)
    for family in small.FAMILIES
    for pooling in POOLINGS
    if not (family in small.DECODERS and pooling == "cls")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: small.saved(tmp_path_factory.mktemp(name), name) for name in small.FAMILIES}


def head_of(model, size=1.0):
    """The head's parameters, made large enough to matter."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=source))
    return {name: p.detach() for name, p in model.head.named_parameters()}


# -- against models by hand


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_each_text_as_by_itself_in_a_plain_model(folders, family, pooling, kind):
    model = small.loaded(folders[family], HeadSpec(3, pooling, kind)).module
    head, by_hand = head_of(model), small.plain(folders[family])
    with torch.no_grad():
        found = model(*small.batch(small.TEXTS))
        wider = model(*small.batch(small.TEXTS, pad=17, more=5))
    wanted = torch.stack([small.logits(head, small.pooled(by_hand, text, pooling)) for text in small.TEXTS])
    assert found.shape == (4, 3)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.allclose(wider, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std(0).min() > 0.01  # the texts differ


@pytest.mark.parametrize("family", ["bert", "llama", "roberta"])
def test_transformers_own_classifier(folders, family, tmp_path):
    """BERT: pooler and linear head; RoBERTa: first token, no pooler, dense layer; Llama: last token."""
    folder = small.saved(tmp_path, family, transformers.AutoModelForSequenceClassification, num_labels=3)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    spec = HeadSpec(3, "auto" if family == "llama" else "cls", "mlp" if family == "roberta" else "linear")
    model = small.loaded(folder, spec).module
    names = {
        "bert": {"out.weight": "classifier.weight", "out.bias": "classifier.bias"},
        "llama": {"out.weight": "score.weight"},
        "roberta": {
            "dense.weight": "classifier.dense.weight", "dense.bias": "classifier.dense.bias",
            "out.weight": "classifier.out_proj.weight", "out.bias": "classifier.out_proj.bias",
        },
    }[family]  # fmt: skip
    weights = theirs.state_dict()
    model.head.load_state_dict(
        {k: weights[names[k]] if k in names else torch.zeros(3) for k in model.head.state_dict()}
    )
    pad = theirs.config.pad_token_id
    ids, mask = small.batch(small.TEXTS, pad)
    with torch.no_grad():
        assert torch.allclose(model(ids, mask), theirs(ids, attention_mask=mask).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_real_encoder(pooling):
    folder = small.minilm()
    model = small.loaded(folder, HeadSpec(2, pooling)).module
    head, by_hand = head_of(model, 0.1), small.plain(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    texts = tokenizer(["a thrilling film", "it is dull, and far too long for what it says", "so so"])["input_ids"]
    with torch.no_grad():
        found = model(*small.batch(texts))
    wanted = torch.stack([small.logits(head, small.pooled(by_hand, text, pooling)) for text in texts])
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert model.pooling == pooling


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert", "llama"])
def test_one_text_in_a_row_without_a_mask(folders, family):
    model = small.loaded(folders[family], HeadSpec(2, "mean")).module
    for text in small.TEXTS:
        positions = torch.arange(len(text))[None] + model.first_position
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([text]), positions)
            wanted = small.plain(folders[family])(torch.tensor([text])).last_hidden_state[0]
        assert hidden.shape == (len(text), 32)
        assert torch.allclose(hidden, wanted, rtol=1e-4, atol=1e-5)


def test_a_row_longer_than_the_models_own_texts():
    """BERT keeps token types for one longest text only; a stream of several is longer."""
    folder = small.minilm()
    model = small.loaded(folder, HeadSpec(2)).module
    with torch.no_grad():
        hidden = model.hidden(torch.full((1, 600), 1000), (torch.arange(600) % 300)[None])
    assert hidden.shape == (600, 384)


def test_where_positions_begin(folders):
    first = {family: small.loaded(folders[family], HeadSpec(2)).module.first_position for family in small.FAMILIES}
    assert first.pop("roberta") == 2
    assert set(first.values()) == {0}
    base = small.loaded(folders["roberta"], HeadSpec(2))
    assert base.max_positions == 64  # of 66 in the table
    longest = torch.full((1, 64), 9)
    assert base.module(longest, torch.ones_like(longest)).isfinite().all()


def test_no_positions_no_shared_row(folders):
    model = small.loaded(folders["bert"], HeadSpec(2)).module
    model._takes = model._takes - {"position_ids"}
    with pytest.raises(RuntimeError, match="takes no positions"):
        model.hidden(torch.tensor([[5, 6]]), torch.tensor([[0, 1]]))


# -- pooling


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_text_is_pooled_from_its_own_tokens(folders, pooling):
    model = small.loaded(folders["bert"], HeadSpec(2, pooling)).module
    source = torch.Generator().manual_seed(2)
    hidden = torch.randn(40, 32, generator=source).requires_grad_()
    spans = [(0, 3), (3, 4), (9, 25), (30, 38)]
    together = model.pool(hidden, spans)
    for i, (a, b) in enumerate(spans):
        alone = model.pool(hidden[a:b].detach().clone(), [(0, b - a)])
        assert torch.equal(together[i], alone[0])  # to the bit: also the pooler never sees fewer rows than a few
    together[2].sum().backward()
    touched = hidden.grad.abs().sum(1).nonzero().flatten().tolist()
    assert set(touched) <= set(range(9, 25))
    assert touched


def test_pooled_numbers_are_float32_at_least(folders):
    model = small.loaded(folders["bert"], HeadSpec(2), dtype="bfloat16").module
    assert model.backbone.dtype == torch.bfloat16
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert model.pool(torch.ones(3, 32, dtype=torch.bfloat16), [(0, 3)]).dtype == torch.float32
    assert model(*small.batch(small.TEXTS)).dtype == torch.float32
    assert model.double()(*small.batch(small.TEXTS)).dtype == torch.float64


def test_auto_looks_at_the_kind_of_model(folders):
    found = {family: small.loaded(folders[family], HeadSpec(2)).module.pooling for family in small.FAMILIES}
    assert found == {**dict.fromkeys(small.ENCODERS, "mean"), **dict.fromkeys(small.DECODERS, "last")}
    assert is_decoder(transformers.BertConfig(is_decoder=True))
    assert load_model(tiny.config(NANO), head=HeadSpec(2)).module.pooling == "last"


@pytest.mark.parametrize("make", [small.loaded, small.skeleton])
def test_a_decoders_first_token_says_nothing(folders, make):
    for family in small.DECODERS:
        with pytest.raises(UserError, match=r"pooling=cls: a \w+ is a decoder, whose first token sees nothing"):
            make(folders[family], HeadSpec(2, "cls"))


def test_a_model_that_looks_back_only_in_truth(folders, monkeypatch):
    """Whatever its configuration says: the first token is tried."""
    monkeypatch.setattr("fedloom.models.heads.is_decoder", lambda config: False)
    with pytest.raises(UserError, match=r"first token of .* sees nothing"):
        small.loaded(folders["llama"], HeadSpec(2, "cls"))


@pytest.mark.parametrize("make", [small.loaded, small.skeleton])
def test_models_of_two_halves_are_refused(tmp_path, make):
    settings = transformers.T5Config(vocab_size=tiny.VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.AutoModel.from_config(settings).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="needs an encoder or a decoder, and a t5 is both"):
        make(tmp_path, HeadSpec(2))


@pytest.mark.parametrize("mask", [[[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]]])
def test_filling_before_or_inside_a_text(folders, mask):
    model = small.loaded(folders["bert"], HeadSpec(2)).module
    with pytest.raises(ValueError, match="texts must stand at the beginning"):
        model(torch.tensor([[5, 6, 7]]), torch.tensor(mask))


# -- poolers and weights in the files


@pytest.mark.parametrize("family", small.POOLERS)
def test_a_pooler_stays_only_where_it_is_used(folders, family):
    for pooling in POOLINGS:
        for make in (small.loaded, small.skeleton):
            model = make(folders[family], HeadSpec(2, pooling)).module
            assert (model.backbone.pooler is not None) == (pooling == "cls")
            assert model.pooler


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pooler_that_is_not_in_the_files_is_no_random_numbers(tmp_path, family):
    folder = small.saved(tmp_path, family)
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, metadata={"format": "pt"})
    model = small.loaded(folder, HeadSpec(2, "cls")).module
    head, by_hand = head_of(model), small.plain(folder)
    assert model.backbone.pooler is None
    with torch.no_grad():
        found = model(*small.batch(small.TEXTS))
    wanted = [small.logits(head, small.pooled(by_hand, text, "cls", pooler=False)) for text in small.TEXTS]
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_other_weights_that_are_missing(tmp_path):
    folder = small.saved(tmp_path, "bert")
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "layer.1." not in k}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"16 tensors are not in its files .*files hold all of its layers"):
        small.loaded(folder, HeadSpec(2))


def test_a_pooler_of_an_unknown_make(folders, monkeypatch):
    monkeypatch.setattr(Classifier, "_pooler", lambda self, pooler, rows: 2 * pooler(rows[:, None]))
    with pytest.raises(UserError, match="its pooler works in a way that is not known; use pooling=mean"):
        small.loaded(folders["bert"], HeadSpec(2, "cls"))


def test_positions_of_an_unknown_make(folders, monkeypatch):
    monkeypatch.setattr("fedloom.models.heads._first_position", lambda backbone: 1)
    with pytest.raises(UserError, match="counts positions in a way that is not known"):
        small.loaded(folders["bert"], HeadSpec(2))


# -- the head's start, skeletons


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_head_starts_at_keyed_numbers(folders, kind):
    before = tiny.randomness()
    first = small.loaded(folders["bert"], HeadSpec(3, kind=kind, seed=5)).module.head.state_dict()
    again = small.loaded(folders["distilbert"], HeadSpec(3, "last", kind, seed=5)).module.head.state_dict()
    other = small.loaded(folders["bert"], HeadSpec(3, kind=kind, seed=6)).module.head.state_dict()
    assert tiny.randomness() == before
    assert first.keys() == again.keys()
    for name, numbers in first.items():
        assert torch.equal(numbers, again[name])
        assert torch.equal(numbers, start(HeadSpec(3, kind=kind, seed=5), name, tuple(numbers.shape)))
        if name.endswith("bias"):
            assert not numbers.any()
        else:
            assert not torch.equal(numbers, other[name])
            assert 0.5 < numbers.std() / (0.02 if name.startswith("out") else 32**-0.5) < 2


@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_a_skeleton_has_the_same_names_and_shapes(folders, family, pooling):
    spec = HeadSpec(3, pooling, "mlp")
    real, bones = small.loaded(folders[family], spec), small.skeleton(folders[family], spec)
    facts = [[(n, tuple(t.shape)) for n, t in base.module.state_dict().items()] for base in (real, bones)]
    assert facts[0] == facts[1]
    assert bones.skeleton
    assert all(p.is_meta for p in bones.module.parameters())
    assert (real.parameters, real.max_positions) == (bones.parameters, bones.max_positions)
    assert bones.module.pooling == real.module.pooling
    assert bones.module.first_position == real.module.first_position


def test_evaluation_mode_and_no_dropout(folders):
    model = small.loaded(folders["bert"], HeadSpec(2)).module
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    ids = small.batch(small.TEXTS)
    with torch.no_grad():
        assert torch.equal(model(*ids), model.train()(*ids))


def test_what_a_head_cannot_be():
    with pytest.raises(ValueError, match="at least one class"):
        HeadSpec(0)
    with pytest.raises(ValueError, match="3 labels do not name 2 classes"):
        HeadSpec(2, labels=("a", "b", "c"))


def test_the_same_base_on_every_machine(folders):
    spec = HeadSpec(2, seed=3)
    assert kin(small.loaded(folders["bert"], spec).module) == kin(small.loaded(folders["bert"], spec).module)


def test_a_causal_model_is_still_asked_for_without_a_head(folders):
    with pytest.raises(UserError):
        load_model(tiny.config(folders["distilbert"]))
    assert load_skeleton(tiny.config(NANO)).module.lm_head is not None
