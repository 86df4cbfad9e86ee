"""Low-rank adapters on a model (LoRA; Hu et al. 2021, arXiv 2106.09685): on its UNet, and on the encoder of a student,
optionally with biases and normalisations; saved with the base model's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from piti.checkpoints.weights import WEIGHTS_FILE, read_weights
from piti.core.errors import UserError
from piti.core.files import file_hash
from piti.core.json_files import read_json
from piti.core.spec import Spec
from piti.models.translator import Translator

ADAPTER_FILE = "adapter.safetensors"
ADAPTER_CONFIG = "adapter.json"
_ATTENTION = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0", "add_q_proj", "to_add_out")
_RESIDUAL = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


class LoraSpec(Spec):
    """Adapters W + (alpha / rank) B A on the UNet's layers."""

    rank: int = Field(default=16, ge=1)
    """Rank of the matrices B A."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters' output, times rank; null: the rank itself."""
    convolutions: bool = False
    """Also adapt the residual blocks, not only attention."""
    encoder: bool = False
    """Also adapt all layers of the encoder, if it is the adapted model's and not trained itself: for students, since
    guidance is distilled into their weights."""
    offsets: bool = False
    """Also train biases, and the scales and shifts of normalisations, of the adapted networks: a few numbers per
    channel, without a rank (as BitFit, Zaken et al. 2021, arXiv 2106.10199)."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class AdapterConfig(Spec):
    """Configuration of an adapter's folder."""

    prior: str
    """The model whose UNet is adapted: a bundled name, a folder, a training run, or a hub id."""
    sha256: str
    """Hash of that model's weights file."""
    lora: LoraSpec
    own_encoder: bool = True
    """Whether the folder has its own encoder; else the base model's is used, as for a distilled student."""


def inject(translator: Translator, spec: LoraSpec) -> None:
    """Insert peft adapters into a translator's UNet, and its encoder if the spec says so. Initially they add nothing.

    Raises UserError if peft is not installed, or if there is no layer to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("low-rank adapters need peft; install it with pip install 'piti[lora]'") from None
    targets = [*_ATTENTION, *(_RESIDUAL if spec.convolutions else ())]
    names = [name for name, layer in translator.unet.named_modules() if name.endswith(tuple(f".{t}" for t in targets))]
    if not names:
        raise UserError("lora: this UNet has no attention; set lora.convolutions: true")
    adapted: list[tuple[nn.Module, list[str]]] = [(translator.unet, names)]
    if spec.encoder and isinstance(translator.encoder, nn.Module):
        kinds = (nn.Linear, nn.Conv2d)
        layers = [name for name, layer in translator.encoder.named_modules() if isinstance(layer, kinds)]
        adapted.append((translator.encoder, layers))
    for network, layers in adapted:
        config = LoraConfig(r=spec.rank, lora_alpha=spec.scale * spec.rank, target_modules=layers)  # pyright: ignore[reportArgumentType]
        inject_adapter_in_model(config, network)


_BENEATH = ".base_layer."


def _offsets(translator: Translator, spec: LoraSpec) -> dict[str, nn.Parameter]:
    """The biases and normalisations trained with the adapters, by their names without adapters."""
    adapted = ("unet.", "encoder.") if spec.encoder else ("unet.",)
    named = translator.named_parameters() if spec.offsets else ()
    return {
        name.replace(_BENEATH, "."): one
        for name, one in named
        if name.startswith(adapted) and one.ndim == 1 and ".lora_" not in name
    }


def approach(translator: Translator, target: Mapping[str, Tensor], spec: LoraSpec) -> None:
    """Initialise the adapters to the best approximation of other weights that their rank allows: the first singular
    vectors of each layer's difference (Eckart & Young 1936). Offsets are set to the others'; frozen weights are
    unchanged.

    target: a translator's weights of the same shapes, by name.
    """
    for name, layer in translator.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        own = layer.get_parameter("base_layer.weight")
        difference = (target[f"{name}.weight"].to(own) - own.detach()).float().flatten(1)  # [out, in · k²]
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
        rank = min(spec.rank, len(values))
        root = (values[:rank] / spec.scale).sqrt()  # each factor gets the square root of the singular values
        up, down = (layer.get_parameter(f"lora_{one}.default.weight").data for one in "BA")
        up[:, :rank] = (left[:, :rank] * root).view(-1, rank, *up.shape[2:])
        down[:rank] = (root[:, None] * right[:rank]).view(rank, *down.shape[1:])
    for name, own in _offsets(translator, spec).items():
        own.data = target[name].to(own)


def adapter_parameters(translator: Translator, spec: LoraSpec) -> list[nn.Parameter]:
    """The adapters' parameters, and the offsets trained with them."""
    adapters = [p for name, p in translator.named_parameters() if ".lora_" in name]
    return [*adapters, *_offsets(translator, spec).values()]


def matrices(translator: Translator) -> list[nn.Parameter]:
    """Weights of the UNet's linear layers and convolutions without adapters, which autocast uses in half precision."""
    layers = (module for name, module in translator.unet.named_modules() if ".lora_" not in name)
    kinds = (nn.Linear, nn.Conv2d)
    return [layer.get_parameter("weight") for layer in layers if isinstance(layer, kinds)]


def keep_half(translator: Translator, dtype: torch.dtype) -> None:
    """Keep the frozen weights in half precision. Results under autocast to the same dtype are bit-identical, since it
    casts these weights before every product."""
    for parameter in matrices(translator):
        parameter.data = parameter.data.to(dtype)


@dataclass(frozen=True)
class Adapted:
    """A translator with adapters, saved as its adapters, the name of its prior, and its own encoder if it has one."""

    translator: Translator
    config: AdapterConfig

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write `config.json`, `adapter.json` and `adapter.safetensors`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.translator.save_config(folder)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(self.config.to_dict(), indent=1), encoding="utf-8")
        state, own = self.translator.state_dict(), self.config.own_encoder
        kept = {name: x for name, x in state.items() if ".lora_" in name or (own and not name.startswith("unet."))}
        kept |= {name: offset.detach() for name, offset in _offsets(self.translator, self.config.lora).items()}
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, folder / ADAPTER_FILE)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read an adapter's configuration. Raises JsonError or SpecError, which name the file."""
    path = folder / ADAPTER_CONFIG
    return AdapterConfig.parse(read_json(path), str(path))


def merged(
    prior: Mapping[str, Tensor], adapter: Mapping[str, Tensor], spec: LoraSpec, own_encoder: bool = True
) -> dict[str, Tensor]:
    """A whole translator's weights: the encoder of its own that lies with the adapter, or else the prior's, and the
    prior's UNet, with the adapters added in.

    Raises UserError if an adapter does not fit its layer.
    """
    weights = {name: tensor for name, tensor in prior.items() if not (own_encoder and name.startswith("encoder."))}
    whole = {name: tensor for name, tensor in adapter.items() if ".lora_" not in name}
    for name, tensor in whole.items():
        if name in weights and weights[name].shape != tensor.shape:
            raise UserError(f"{name} of the adapter does not fit the base model; give the one it was trained on")
    weights |= whole
    for name in adapter:
        if not name.endswith(_A):
            continue
        layer = name.removesuffix(_A)
        down, up = adapter[name], adapter.get(layer + _B)
        weight = weights.get(f"{layer}.weight")
        if weight is None or up is None or (len(weight), *weight.shape[1:]) != (len(up), *down.shape[1:]):
            raise UserError(f"the adapter of {layer} does not fit the base model; give the one it was trained on")
        weights[f"{layer}.weight"] = weight.float() + spec.scale * product(up, down)  # not rounded to the prior's
    return weights


def product(up: Float[Tensor, "out r *one"], down: Float[Tensor, "r *in"]) -> Float[Tensor, "out *in"]:
    """B A, also of convolutions, where B is 1 × 1."""
    return (up.flatten(1).float() @ down.flatten(1).float()).view(len(up), *down.shape[1:])


def load_adapted(
    folder: Path, config: AdapterConfig, arguments: Mapping[str, Any], prior: Path, torch_dtype: torch.dtype
) -> Translator:
    """A translator whose UNet is a prior's with the adapter of `folder` added in.

    config: of the adapter; arguments: of its `Translator`; prior: the folder of the prior's network. Raises UserError
    if its weights are not those that were adapted.
    """
    if file_hash(prior / WEIGHTS_FILE) != config.sha256:
        raise UserError(
            f"{prior}: its weights have changed since {folder} was trained on them; restore the original prior "
            f"('prior' in {folder / ADAPTER_CONFIG})"
        )
    translator = Translator(**arguments)
    adapter = read_weights(folder / ADAPTER_FILE)
    translator.load_state_dict(merged(read_weights(prior / WEIGHTS_FILE), adapter, config.lora, config.own_encoder))
    for parameter in translator.parameters():
        parameter.data = parameter.data.to(torch_dtype)
    return translator
