"""Tiny pipelines of other families, built from diffusers' own classes with seeds, as folders on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from piti.checkpoints.priors import import_prior
from piti.pipelines.pipeline import PITIPipeline

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 12
STABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FLOYD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
ATTENDS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SIMPLE: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "class_embeddings_concat": False,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim_type": "text_proj",
    "encoder_hid_dim": 8,
    "cross_attention_dim": 32,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
SECOND_STAGE: dict[str, Any] = {
    "class_embed_type": "timestep",
    "layers_per_block": (1, 2),
    "mid_block_scale_factor": 1 / 0.7071,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 16,
}
"""The switches of DeepFloyd IF's second stage, as diffusers' converter sets them."""


@dataclass(frozen=True)
class Imported:
    """A pipeline of diffusers, its folder, and the model that was imported from that."""

    theirs: Any
    folder: Path
    model: Path
    ours: Any
    """`PITIPipeline`; none for an upsampler alone."""


def imported(build: Callable[..., Any], folder: Path, **settings: Any) -> Imported:
    """A pipeline that `build` makes below `folder`, imported."""
    theirs, model = build(folder, **settings), folder / "model"
    import_prior(folder / "diffusers", model)
    alone = build is floyd_upsampler
    ours = None if alone else PITIPipeline.from_pretrained(model)
    if ours is not None:
        ours.set_progress_bar_config(disable=True)
    return Imported(theirs, folder / "diffusers", model, ours)


def unet(**settings: Any) -> UNet2DConditionModel:
    """A UNet of two levels."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1}
    sizes |= {"norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 4}
    return UNet2DConditionModel(**(sizes | settings)).eval()


def autoencoder(**settings: Any) -> AutoencoderKL:
    """2 px to one."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.18215}
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        **(sizes | settings),
    ).eval()


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    """Letters as tokens, in CLIP's files."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "!", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=CONTEXT)


def t5_tokenizer() -> Any:
    """Letters as tokens, a token that ends a text, and one that fills it up."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "</s>", "<unk>", *LETTERS]
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=CONTEXT
    )


def clip(width: int, projected: bool = False) -> Any:
    """CLIP's text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(3 + projected)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=8,
        bos_token_id=53,
        eos_token_id=54,
        pad_token_id=54,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width: int = 8) -> Any:
    """T5's encoder."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(5)
    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_ff=16, d_kv=4, num_layers=2, num_heads=2)).eval()


def stable_diffusion(folder: Path, prediction: str = "epsilon", width: int = 16, **settings: Any) -> Any:
    """A pipeline of Stable Diffusion 1 or 2; saved below `folder`."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(width),
        tokenizer=clip_tokenizer(folder / "letters"),
        unet=unet(in_channels=4, out_channels=4, cross_attention_dim=width, **ATTENDS, **settings),
        scheduler=DDIMScheduler(**STABLE, prediction_type=prediction),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    return _saved(pipe, folder)


def sdxl(folder: Path) -> Any:
    """A pipeline of SDXL; saved below `folder`."""
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip(16),
        text_encoder_2=clip(8, projected=True),
        tokenizer=clip_tokenizer(folder / "letters"),
        tokenizer_2=clip_tokenizer(folder / "letters", pad="!"),
        unet=unet(
            in_channels=4,
            out_channels=4,
            cross_attention_dim=24,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            **ATTENDS,
        ),
        scheduler=DDIMScheduler(**STABLE),
        add_watermarker=False,
    )
    return _saved(pipe, folder)


def floyd(folder: Path, **settings: Any) -> Any:
    """A pipeline of DeepFloyd IF's first stage; saved below `folder`."""
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline

    pipe = IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet(in_channels=3, out_channels=6, **SIMPLE, **settings),
        scheduler=DDPMScheduler(**FLOYD),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return _saved(pipe, folder)


def floyd_upsampler(folder: Path, **settings: Any) -> Any:
    """A pipeline of DeepFloyd IF's second stage, which enlarges 4 times; saved below `folder`."""
    from diffusers.pipelines.deepfloyd_if.pipeline_if_superresolution import IFSuperResolutionPipeline

    pipe = IFSuperResolutionPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet(in_channels=6, out_channels=6, **SIMPLE, **SECOND_STAGE, **settings),
        scheduler=DDPMScheduler(**FLOYD),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return _saved(pipe, folder)


def pixart(folder: Path, sigma: bool = False, **settings: Any) -> Any:
    """A pipeline of PixArt-α, or of PixArt-Σ; saved below `folder`."""
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline

    torch.manual_seed(6)
    sizes: dict[str, Any] = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    transformer = PixArtTransformer2DModel(**(sizes | {"cross_attention_dim": 16, "caption_channels": 8} | settings))
    pipe = (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=1000),
    )
    return _saved(pipe, folder)


def gemma_tokenizer() -> Any:
    """Letters as tokens, and one that begins a text; none ends it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS]
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def gemma() -> Any:
    """Gemma 2, with a window shorter than a text."""
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(7)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 4}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16}
    return Gemma2Model(Gemma2Config(vocab_size=32, **sizes, **heads)).eval()


def deep_autoencoder() -> AutoencoderDC:
    """2 px to one, of 4 channels."""
    torch.manual_seed(8)
    sizes: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_block_types": ("ResBlock", "EfficientViTBlock"), f"{part}_block_out_channels": (8, 8)}
        sizes |= {f"{part}_layers_per_block": (1, 1), f"{part}_qkv_multiscales": ((), (5,))}
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **sizes).eval()


def sana(folder: Path, euler: bool = False, **settings: Any) -> Any:
    """A pipeline of Sana; saved below `folder`. euler: its scheduler is named as a flow's by Euler's method."""
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    torch.manual_seed(9)
    sizes: dict[str, Any] = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4}
    crossed: dict[str, Any] = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8}
    more: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "caption_channels": 8}
    transformer = SanaTransformer2DModel(**(sizes | crossed | more | settings))
    flow = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=deep_autoencoder(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if euler else flow,  # pyright: ignore[reportArgumentType]
    )
    return _saved(pipe, folder)


def stable_diffusion_3(folder: Path, t5_too: bool = True, **settings: Any) -> Any:
    """A pipeline of Stable Diffusion 3, with or without its largest text encoder; saved below `folder`."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    torch.manual_seed(10)
    sizes: dict[str, Any] = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    sizes |= {"in_channels": 4, "out_channels": 4, "caption_projection_dim": 16, "pooled_projection_dim": 16}
    sizes |= {"joint_attention_dim": 40, "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    parts: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    if t5_too:
        parts = {"text_encoder_3": t5(40), "tokenizer_3": t5_tokenizer()}
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**(sizes | settings)).eval(),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(16, projected=True),
        tokenizer=clip_tokenizer(folder / "letters"),
        text_encoder_2=clip(8, projected=True),
        tokenizer_2=clip_tokenizer(folder / "letters", pad="!"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
    )
    return _saved(pipe, folder)


def flux(folder: Path, **settings: Any) -> Any:
    """A pipeline of FLUX.1-dev, whose noise levels follow the image's size; saved below `folder`. 3 double blocks and 2
    single ones."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    torch.manual_seed(11)
    sizes: dict[str, Any] = {"num_layers": 3, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    sizes |= {"in_channels": 16, "joint_attention_dim": 40, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)}
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(guidance_embeds=True, **(sizes | settings)).eval(),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(folder / "letters"),
        text_encoder_2=t5(40),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    return _saved(pipe, folder)


def _saved(pipe: Any, folder: Path) -> Any:
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "diffusers")
    return pipe
