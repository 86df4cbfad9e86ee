"""Configurations as published, including null options, and folders of them without weights.

The UNets and schedules of Stable Diffusion 1.5 and 2.1 and of SDXL are those of their public folders. Of DeepFloyd IF
the switches and layers are those of diffusers' converter (`scripts/convert_if.py`), the widths of IF-I-XL those of its
public description; the others' widths are such that their sizes are the published ones (400M, 900M, 450M, 1.2B).
FLUX.1-dev's are the defaults of diffusers' classes, with `guidance_embeds` and `use_dynamic_shifting`.
PixArt's and Sana's are those of diffusers' converters (`scripts/convert_pixart_alpha_to_diffusers.py`, of Σ, and
`scripts/convert_sana_to_diffusers.py`), with the switches of the class that they name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.priors import tiny

_PLAIN: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
}
_LATENT = _PLAIN | {"in_channels": 4, "out_channels": 4}
_FOUR_LEVELS: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_NULLS: dict[str, Any] = {
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "encoder_hid_dim": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": None,
}
_IF = _PLAIN | {
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "class_embed_type": None,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "upcast_attention": False,
    "use_linear_projection": False,
}
_IF_II = _IF | {
    "in_channels": 6,
    "layers_per_block": [2, 2, 3, 5, 5],
    "down_block_types": [*["ResnetDownsampleBlock2D"] * 2, *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, *["ResnetUpsampleBlock2D"] * 2],
    "class_embed_type": "timestep",
    "mid_block_scale_factor": 1 / 0.7071,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "resnet_skip_time_act": True,
    "sample_size": 256,
    "time_embedding_act_fn": "gelu",
}
_PIXART: dict[str, Any] = {
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 64,
    "upcast_attention": False,
    "use_linear_projection": False,
}
_PIXART_SCHEDULE: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "thresholding": False,
    "trained_betas": None,
}
_SANA: dict[str, Any] = {
    "_class_name": "SanaTransformer2DModel",
    "attention_bias": False,
    "attention_head_dim": 32,
    "caption_channels": 2304,
    "cross_attention_dim": 1152,
    "cross_attention_head_dim": 72,
    "dropout": 0.0,
    "in_channels": 32,
    "interpolation_scale": None,
    "mlp_ratio": 2.5,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "num_layers": 28,
    "out_channels": 32,
    "patch_size": 1,
    "sample_size": 16,
}
_FLOW: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_schedule": "linear",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "use_flow_sigmas": True,
}
_SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
_SD3_LATENTS = {"latent_channels": 16, "shift_factor": 0.0609, "use_post_quant_conv": False, "use_quant_conv": False}
_SD3_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
_FLUX_FLOW: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
_FLUX_LATENTS = _SD3_LATENTS | {"shift_factor": 0.1159}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_STABLE = _BETAS | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
_COSINE: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
}


def _stage_1(width: int) -> dict[str, Any]:
    widths = [width * k for k in (1, 2, 3, 4)]
    return _IF | {"block_out_channels": widths, "cross_attention_dim": widths[-1]}


def _stage_2(widths: list[int]) -> dict[str, Any]:
    return _IF_II | {"block_out_channels": widths, "cross_attention_dim": widths[-1], "time_embedding_dim": widths[-1]}


def _learned(largest: float) -> dict[str, Any]:
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": largest}
    return _COSINE | threshold | {"variance_type": "learned_range"}


@dataclass(frozen=True)
class Published:
    """A model's configurations; text encoders have their own widths and one layer."""

    pipeline: str
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    says: str
    """What importing calls it."""
    parameters: int
    """Of the UNet or transformer: exact for latents' models; of DeepFloyd IF what is rounded to the published sizes."""
    width: int = 768
    """Of its first text encoder."""
    scaling_factor: float | None = 0.18215
    """Of its latents, none where the file says nothing."""
    latents: dict[str, Any] | None = None
    """What else its autoencoder's file says that others' do not."""

    def folder(self, root: Path) -> Path:
        """A folder of diffusers without weights."""
        network = "transformer" if self.pipeline.startswith(("PixArt", "Sana", "StableDiffusion3", "Flux")) else "unet"
        parts = {network: ["diffusers", self.unet["_class_name"]], "scheduler": ["diffusers", "DDPMScheduler"]}
        _written(root / network / "config.json", self.unet)
        _written(root / "scheduler/scheduler_config.json", self.scheduler)
        if self.pipeline.startswith(("IF", "PixArt")):
            parts |= _t5(root)
        elif self.pipeline.startswith("Sana"):
            parts |= _gemma(root)
        elif self.pipeline.startswith("StableDiffusion3"):
            parts |= _clip(root, "", self.width, projected=True) | _clip(root, "_2", 1280) | _t5(root, "_3")
        elif self.pipeline.startswith("Flux"):
            parts |= _clip(root, "", self.width) | _t5(root, "_2")
        else:
            parts |= _clip(root, "", self.width)
        if self.pipeline.startswith("Sana"):
            parts |= _deep_vae(root)
        elif not self.pipeline.startswith("IF"):
            parts |= _vae(root, self.scaling_factor, self.latents)
        if self.pipeline == "StableDiffusionXLPipeline":
            parts |= _clip(root, "_2", 1280)
        if self.pipeline == "IFSuperResolutionPipeline":
            parts["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
            _written(root / "image_noising_scheduler/scheduler_config.json", _COSINE)
        return _written(root / "model_index.json", {"_class_name": self.pipeline} | parts).parent


MODELS = {
    "sd15": Published(
        "StableDiffusionPipeline",
        _LATENT
        | _FOUR_LEVELS
        | _NULLS
        | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64, "use_linear_projection": False},
        _STABLE | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon", "skip_prk_steps": True},
        "Stable Diffusion, predicts noise, 512 px, tokens of 768",
        859_520_964,
    ),
    "sd21": Published(
        "StableDiffusionPipeline",
        _LATENT
        | _FOUR_LEVELS
        | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96}
        | {"use_linear_projection": True, "upcast_attention": True},
        _STABLE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "skip_prk_steps": True},
        "Stable Diffusion, predicts v, 768 px, tokens of 1024",
        865_910_724,
        width=1024,
        scaling_factor=None,
    ),
    "sdxl-lora": Published(
        "StableDiffusionXLPipeline",
        _LATENT
        | _NULLS
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "attention_type": "default",
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
            "dropout": 0.0,
            "encoder_hid_dim_type": None,
            "num_attention_heads": None,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            "use_linear_projection": True,
        },
        _STABLE
        | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"}
        | {"interpolation_type": "linear", "sample_max_value": 1.0, "use_karras_sigmas": False},
        "SDXL, predicts noise, 1024 px, tokens of 2048",
        2_567_463_684,
        scaling_factor=0.13025,
    ),
    "pixart-alpha": Published(
        "PixArtAlphaPipeline",
        _PIXART,
        _PIXART_SCHEDULE,
        "PixArt-α, predicts noise and its variance, 512 px, tokens of 4096",
        610_856_096,
    ),
    "pixart-sigma": Published(
        "PixArtSigmaPipeline",
        _PIXART | {"interpolation_scale": 2, "sample_size": 128, "use_additional_conditions": False},
        _PIXART_SCHEDULE,
        "PixArt-Σ, predicts noise and its variance, 1024 px, tokens of 4096",
        610_856_096,
        scaling_factor=0.13025,
    ),
    "sana": Published(
        "SanaPipeline",
        _SANA,
        _FLOW,
        "Sana, predicts a flow, 512 px, tokens of 2304",
        591_747_872,
    ),
    "sana-1600m": Published(
        "SanaPipeline",
        _SANA
        | {"cross_attention_dim": 2240, "cross_attention_head_dim": 112, "num_attention_heads": 70}
        | {"num_cross_attention_heads": 20, "num_layers": 20, "sample_size": 32},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        "Sana, predicts a flow, 1024 px, tokens of 2304",
        1_604_462_752,
    ),
    "sd3-medium": Published(
        "StableDiffusion3Pipeline",
        _SD3,
        _SD3_FLOW,
        "Stable Diffusion 3, predicts a flow, 1024 px, tokens of 4096",
        2_028_328_000,
        scaling_factor=1.5305,
        latents=_SD3_LATENTS,
    ),
    "sd35-medium": Published(
        "StableDiffusion3Pipeline",
        _SD3 | {"dual_attention_layers": list(range(13)), "pos_embed_max_size": 384, "qk_norm": "rms_norm"},
        _SD3_FLOW,
        "Stable Diffusion 3, predicts a flow, 1024 px, tokens of 4096",
        2_243_171_520,
        scaling_factor=1.5305,
        latents=_SD3_LATENTS,
    ),
    "sd35-large": Published(
        "StableDiffusion3Pipeline",
        _SD3
        | {"caption_projection_dim": 2432, "dual_attention_layers": [], "num_attention_heads": 38, "num_layers": 38}
        | {"qk_norm": "rms_norm"},
        _SD3_FLOW,
        "Stable Diffusion 3, predicts a flow, 1024 px, tokens of 4096",
        8_056_627_520,
        scaling_factor=1.5305,
        latents=_SD3_LATENTS,
    ),
    "flux1-dev": Published(
        "FluxPipeline",
        _FLUX,
        _FLUX_FLOW,
        "FLUX.1, predicts a flow, 1024 px, tokens of 4096",
        11_901_408_320,
        scaling_factor=0.3611,
        latents=_FLUX_LATENTS,
    ),
    "if-i-m": Published(
        "IFPipeline",
        _stage_1(192),
        _learned(1.5),
        "DeepFloyd IF stage I, predicts noise and its variance, 64 px, tokens of 4096",
        371_605_830,
    ),
    "if-i-l": Published(
        "IFPipeline",
        _stage_1(320),
        _learned(1.5),
        "DeepFloyd IF stage I, predicts noise and its variance, 64 px, tokens of 4096",
        935_365_830,
    ),
    "deepfloyd-if": Published(
        "IFPipeline",
        _stage_1(704),
        _learned(1.5),
        "DeepFloyd IF stage I, predicts noise and its variance, 64 px, tokens of 4096",
        4_304_695_110,
    ),
    "if-ii-m": Published(
        "IFSuperResolutionPipeline",
        _stage_2([160, 320, 480, 640, 640]),
        _learned(1.0),
        "DeepFloyd IF stage II, predicts noise and its variance, 256 px, tokens of 4096",
        451_632_838,
    ),
    "if-ii-l": Published(
        "IFSuperResolutionPipeline",
        _stage_2([160, 320, 640, 960, 1280]),
        _learned(1.0),
        "DeepFloyd IF stage II, predicts noise and its variance, 256 px, tokens of 4096",
        1_200_876_550,
    ),
}
"""By the recipe that adapts it, where there is one."""


def _written(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def _clip(root: Path, after: str, width: int, projected: bool = False) -> dict[str, list[str]]:
    tiny.clip_tokenizer(root / "letters").save_pretrained(root / f"tokenizer{after}")
    kind = "CLIPTextModelWithProjection" if after or projected else "CLIPTextModel"
    config = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": width // 64, "num_hidden_layers": 1}
    more = {"max_position_embeddings": 77, "projection_dim": width, "vocab_size": 64, "model_type": "clip_text_model"}
    _written(root / f"text_encoder{after}/config.json", {"architectures": [kind]} | config | more)
    return {f"text_encoder{after}": ["transformers", kind], f"tokenizer{after}": ["transformers", "CLIPTokenizer"]}


def _t5(root: Path, after: str = "") -> dict[str, list[str]]:
    tiny.t5_tokenizer().save_pretrained(root / f"tokenizer{after}")
    config = {"d_ff": 16, "d_kv": 64, "d_model": 4096, "num_heads": 1, "num_layers": 1, "vocab_size": 64}
    more = {
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "model_type": "t5",
        "torch_dtype": "float32",
    }
    _written(root / f"text_encoder{after}/config.json", {"architectures": ["T5EncoderModel"]} | config | more)
    return {
        f"text_encoder{after}": ["transformers", "T5EncoderModel"],
        f"tokenizer{after}": ["transformers", "T5Tokenizer"],
    }


def _vae(root: Path, scaling_factor: float | None, more: dict[str, Any] | None) -> dict[str, list[str]]:
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    scale = {"scaling_factor": scaling_factor} if scaling_factor else {}
    _written(root / "vae/config.json", config | scale | (more or {}))
    return {"vae": ["diffusers", "AutoencoderKL"]}


def _gemma(root: Path) -> dict[str, list[str]]:
    tiny.gemma_tokenizer().save_pretrained(root / "tokenizer")
    config = {"head_dim": 4, "hidden_size": 2304, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 64}
    more = {"num_hidden_layers": 1, "num_key_value_heads": 1, "model_type": "gemma2", "torch_dtype": "bfloat16"}
    _written(root / "text_encoder/config.json", {"architectures": ["Gemma2Model"]} | config | more)
    return {"text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "GemmaTokenizerFast"]}


def _deep_vae(root: Path) -> dict[str, list[str]]:
    widths = [128, 256, 512, 512, 1024, 1024]
    config = {"_class_name": "AutoencoderDC", "latent_channels": 32, "scaling_factor": 0.41407}
    parts = {f"{part}_block_out_channels": widths for part in ("encoder", "decoder")}
    _written(root / "vae/config.json", config | parts)
    return {"vae": ["diffusers", "AutoencoderDC"]}
