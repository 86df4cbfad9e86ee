"""The translator: an encoder and a UNet that predict the noise in an image from a condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.models.casting import NetworkMixin
from piti.models.encoders import AlignedEncoder, AlignedEncoderSpec, ConditionEncoder, EncoderSpec, Tokens
from piti.models.language import LanguageEncoder, LanguageSpec
from piti.models.noised import NoisedSmallImage, NoisedSpec
from piti.models.pixel_head import PixelHead, PixelHeadSpec
from piti.models.space import SpaceSpec
from piti.models.text import TextEncoder, TextEncoderSpec
from piti.models.unet import UNetSpec, build_unet
from piti.models.wiring import Wiring

AnyEncoderSpec = EncoderSpec | TextEncoderSpec | AlignedEncoderSpec | LanguageSpec
AnyEncoder = ConditionEncoder | TextEncoder | AlignedEncoder | LanguageEncoder

MAX_SIDE = 65_536
"""Pixels of a side that any network is built for."""


class TranslatorSpec(Spec):
    """The arguments of a `Translator`, as its config.json holds them."""

    encoder_spec: EncoderSpec | None = None
    unet_spec: UNetSpec | None = None
    image_size: int = Field(default=64, ge=1, le=MAX_SIDE)
    patch_size: int = Field(default=1, ge=1, le=MAX_SIDE)
    low_res: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    learned_variance: bool = True
    detail: float | None = Field(default=None, gt=0)
    steps: int = Field(default=1000, ge=2, le=100_000)
    text_spec: TextEncoderSpec | None = None
    inpaint: bool = False
    aligned_spec: AlignedEncoderSpec | None = None
    head_spec: PixelHeadSpec | None = None
    one_step: bool = False
    unet_config: dict[str, Any] | None = None
    language_spec: dict[str, Any] | None = None
    space_spec: dict[str, Any] | None = None
    noised_spec: dict[str, Any] | None = None


class Prediction(NamedTuple):
    """What a translator says of a noisy image."""

    output: Float[Tensor, "b c h w"]
    """Noise or velocity, as the noise schedule that it was trained with says."""
    variance: Float[Tensor, "b c h w"] | None
    """Where the variance lies between its bounds, as v in [-1, 1] of Nichol & Dhariwal 2021, eq. 15."""


NetworkStep = Callable[[Tensor, Tensor, Tokens], Tensor]
"""(seen [B, C, H, W], t, tokens) -> output and variance [B, 3|6, H, W]; see `Translator.step`."""


class DetailPreconditioning(nn.Module):
    """Preconditioning for an upsampler: the image is known up to what its small image lacks.

    Karras et al. 2022 (arXiv 2206.00364, eq. 7 and table 1), applied to the residual r = x₀ − L between the image
    and its enlarged small image, of standard deviation std: with s = σ_t/α_t the UNet sees c_in (x_t/α_t − L) and
    L, and x̂₀ = L + c_skip (x_t/α_t − L) + c_out F. So its input and its target F have unit variance at any t, and
    noise and details need not pass through its first level, which for a patch of p² pixels is too narrow for them.
    """

    log_noise: Tensor

    def __init__(self, std: float, steps: int) -> None:
        super().__init__()
        self.std = std
        self.register_buffer("log_noise", torch.full((steps,), math.nan))  # log s_t; see `set_noise`

    def set_noise(self, alphas_cumprod: Float[Tensor, " t"]) -> None:
        """Take the levels of a noise schedule, ᾱ_t. They are saved with the weights."""
        self.log_noise.copy_((0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()).to(self.log_noise))

    def distance(self, x_t: Tensor, large: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t/α_t − L [B, 3, H, W], and s_t [B, 1, 1, 1], in float32."""
        log_noise = self.log_noise.to(t.device).float()  # offloading may keep it elsewhere
        s = log_noise[t.reshape(-1).expand(len(x_t))].exp().view(-1, 1, 1, 1)
        return x_t * (1 + s.square()).sqrt() - large, s  # 1/α = √(1 + s²)

    def forward(self, x_t: Tensor, large: Tensor, t: Tensor) -> Tensor:
        """What the UNet sees of x_t, [B, 3, H, W]."""
        y, s = self.distance(x_t, large, t)
        return (y / (s.square() + self.std**2).sqrt()).to(x_t.dtype)

    def image(self, out: Tensor, x_t: Tensor, large: Tensor, t: Tensor) -> Tensor:
        """x̂₀ [B, 3, H, W] of the UNet's output F."""
        y, s = self.distance(x_t, large, t)
        total = s.square() + self.std**2
        return large + (self.std**2 / total) * y + s * self.std / total.sqrt() * out


class Translator(NetworkMixin, ConfigMixin):
    """Predicts noise (or velocity) and variance from x_t, t and a condition (PITI, section 3.1).

    encoder_spec, unet_spec: fields of `EncoderSpec` and `UNetSpec`; `config.json` holds them. A UNet whose
    `token_width` is none takes no condition: there is no encoder, and its tokens are empty. text_spec: fields of
    `TextEncoderSpec` instead of encoder_spec's, for a prior.
    image_size: side of the images in pixels.
    patch_size: pixels are folded into channels before the UNet and unfolded after it; 1 for GLIDE.
    low_res: side of the small image that an upsampler also sees; none for a base translator.
    learned_variance: whether the UNet also predicts the variance.
    detail: an upsampler that predicts the image ("sample") may be preconditioned for what its small image lacks,
    of this standard deviation in [-1, 1]; see `DetailPreconditioning`. steps: of its noise schedule.
    inpaint: the UNet also sees which pixels are known, and what they are, as GLIDE's inpainting nets do.
    aligned_spec: fields of `AlignedEncoderSpec` instead of encoder_spec's, for a UNet without `token_width`: the
    condition reaches it through its skip connections alone. head_spec: fields of `PixelHeadSpec`, how pixels are made
    of the UNet's features; none: by one pixel shuffle. one_step: it was trained at the last timestep alone, so that
    one step from noise is all that it knows.
    unet_config: a UNet of diffusers by its own configuration, instead of unet_spec; how it takes tokens follows from
    that, see `Wiring`. language_spec: fields of `LanguageSpec` instead of encoder_spec's, for a prior with text
    encoders of transformers. space_spec: fields of `SpaceSpec`, where x_t are latents and no pixels; image_size stays
    in pixels. noised_spec: fields of `NoisedSpec`, for an upsampler that sees its small image noised.

    Saved and loaded by `save_pretrained` and `from_pretrained`.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    one_pass = False
    """Whether images are made in one pass, without a noise schedule; see `BaselineNetwork`."""

    @register_to_config
    def __init__(
        self,
        encoder_spec: Mapping[str, Any] | None = None,
        unet_spec: Mapping[str, Any] | None = None,
        image_size: int = 64,
        patch_size: int = 1,
        low_res: int | None = None,
        learned_variance: bool = True,
        detail: float | None = None,
        steps: int = 1000,
        text_spec: Mapping[str, Any] | None = None,
        inpaint: bool = False,
        aligned_spec: Mapping[str, Any] | None = None,
        head_spec: Mapping[str, Any] | None = None,
        one_step: bool = False,
        unet_config: Mapping[str, Any] | None = None,
        language_spec: Mapping[str, Any] | None = None,
        space_spec: Mapping[str, Any] | None = None,
        noised_spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.space_spec = SpaceSpec.parse(space_spec or {}, "space_spec")
        head = None if head_spec is None else PixelHeadSpec.parse(head_spec, "head_spec")
        _check_space(self.space_spec, image_size, patch_size, low_res, inpaint)
        _check_detail(detail, low_res, inpaint)
        self.patch_size, self.image_size, self.low_res = patch_size, image_size, low_res
        self.learned_variance, self.inpaint, self.one_step = learned_variance, inpaint, one_step
        self.preconditioning = None if detail is None else DetailPreconditioning(detail, steps)
        self.noised = None if noised_spec is None else NoisedSmallImage(NoisedSpec.parse(noised_spec, "noised_spec"))
        sample_size, points = image_size // self.space_spec.factor // patch_size, self.space_spec.channels
        pixels = patch_size**2
        seen, made = points + (4 if inpaint else 0) + (0 if low_res is None else 3), points * (1 + learned_variance)
        if unet_config is None:
            unet = UNetSpec.parse(unet_spec or {}, "unet_spec")
            out_channels = made * pixels if head is None else unet.channels[0]
            self.unet = build_unet(unet, sample_size, in_channels=seen * pixels, out_channels=out_channels)
        else:
            _check_foreign(unet_config, unet_spec, seen * pixels, made * pixels, head)
            self.unet = UNet2DConditionModel(**plain_config(unet_config))
        self.wiring = Wiring.of(self.unet.config)
        encoder = _encoder_for(self.wiring, encoder_spec, text_spec, aligned_spec, language_spec)
        _check_sizes(image_size, patch_size, low_res, encoder, head)
        if self.wiring.leveled != (self.noised is not None):
            raise UserError("'noised_spec' goes with a UNet that takes a noise level ('class_embed_type': timestep)")
        self.head: PixelHead | None = None
        if head is not None:
            maps = encoder.channels if isinstance(encoder, AlignedEncoderSpec) else ()
            self.head = PixelHead(head, self.unet.config["block_out_channels"][0], made, seen, maps)
        self.encoder = _built(encoder, self.wiring, sample_size)

    @property
    def condition_side(self) -> int | None:
        """The side in pixels of what its encoder reads for a square image; none where it reads no picture."""
        spec = self.reads
        return spec.size if isinstance(spec, EncoderSpec | AlignedEncoderSpec) else None

    @property
    def reads(self) -> AnyEncoderSpec | None:
        """What its encoder reads, none without one: by this its kind is told, which a compiled encoder has too."""
        return None if self.encoder is None else self.encoder.spec

    @property
    def granularity(self) -> int:
        """The sides of an image are multiples of this: of what the UNet needs, and what the encoder does."""
        unet = self.space_spec.factor * self.patch_size * self.wiring.reduction
        spec, side = self.reads, self.low_res or self.image_size
        if isinstance(spec, AlignedEncoderSpec):
            return math.lcm(unet, spec.stride)
        if not isinstance(spec, EncoderSpec):
            return unet
        small = spec.stride * side // math.gcd(spec.stride * side, spec.size)  # pixels that `size` and `side` share
        return math.lcm(unet, small * self.scale)

    @property
    def takes_tokens(self) -> bool:
        """Whether its UNet attends to a condition's tokens."""
        return self.wiring.sequence is not None

    @property
    def compiles(self) -> bool:
        """Whether engines compute its steps: those of a UNet of `UNetSpec`, not of another family."""
        return self.config.get("unet_config") is None

    @property
    def role(self) -> str:
        """What it is in a model: "base" or "upsampler"."""
        return "base" if self.low_res is None else "upsampler"

    @property
    def scale(self) -> int:
        """By how much an upsampler enlarges; 1 for a base translator."""
        return 1 if self.low_res is None else self.image_size // self.low_res

    def set_attention_slice(self, slice_size: str | int | list[int] | None) -> None:
        """The UNet's attention in slices, as `enable_attention_slicing` of a pipeline asks: less memory, more time."""
        self.unet.set_attention_slice(slice_size)  # pyright: ignore[reportArgumentType]

    def encode(self, condition: Shaped[Tensor, "b c h w"]) -> Tokens:
        """The condition's tokens; once an image is enough, they do not depend on t."""
        if self.encoder is None:
            return Tokens(condition.new_empty(len(condition), 0), condition.new_empty(len(condition), 0, 0))
        return self.encoder(condition)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Tensor,
        condition: Tokens | Shaped[Tensor, "b k hc wc"],
        low_res: Float[Tensor, "b 3 hl wl"] | None = None,
        known: Float[Tensor, "b 4 h w"] | None = None,
        step: NetworkStep | None = None,
    ) -> Prediction:
        """x_t: noisy images in [-1, 1] plus noise, or latents; t: timesteps [B] or a scalar; condition: its tokens, or
        the condition itself, which is then encoded; low_res: small images in [-1, 1], for an upsampler; with a
        `noised_spec` as `noised` makes them of those, in x_t's size.
        known: for an `inpaint` translator, an image in [-1, 1] and a mask that is 1 where it is known and 0
        elsewhere; none: nothing is. step: computes the networks in place of `self.step`.
        """
        tokens = condition if isinstance(condition, Tokens) else self.encode(condition)
        self._check_sides(x_t, tokens)
        seen, large = self.join_low_res(x_t, low_res, t, known)  # [B, 3|6|7|10, H, W]
        out = (step or self.step)(seen, t, tokens)
        output, variance = out.chunk(2, dim=1) if self.learned_variance else (out, None)
        if self.preconditioning is not None and large is not None:
            output = self.preconditioning.image(output, x_t, large, t)
        return Prediction(output, variance)

    def step(self, seen: Tensor, t: Tensor, tokens: Tokens) -> Float[Tensor, "b o h w"]:
        """The UNet, and the head where there is one, at one timestep: what costs time in sampling.

        seen: what `join_low_res` puts together, [B, 3|6|7|10, H, W].
        """
        x = F.pixel_unshuffle(seen, self.patch_size)  # [B, C·p², H/p, W/p]
        size = (seen.shape[-2] * self.space_spec.factor, seen.shape[-1] * self.space_spec.factor)
        level = None if self.noised is None else self.noised.spec.level
        given = self.wiring.arguments(tokens, size, level)
        out = self.unet(x, t, **given, return_dict=False)[0]  # [B, 6·p² | F, H/p, W/p]
        return self.unfolded(out, seen, tokens)

    def unfolded(self, features: Tensor, seen: Tensor, tokens: Tokens) -> Float[Tensor, "b o h w"]:
        """The UNet's output at every pixel: by its head, where it has one."""
        if self.head is None:
            return F.pixel_shuffle(features, self.patch_size)
        return self.head(features, seen, tokens.maps or ())

    def _check_sides(self, x_t: Tensor, tokens: Tokens) -> None:
        """Raises UserError where images are of no size that the UNet works at, or not of their condition's shape."""
        factor = self.space_spec.factor
        height, width = (side * factor for side in x_t.shape[-2:])
        if height % self.granularity or width % self.granularity:
            raise UserError(
                f"images of {height} x {width}: this translator's sides are multiples of {self.granularity}; pad them"
            )
        if tokens.residuals is None:
            return
        tall, wide = (factor * self.patch_size * side for side in tokens.residuals[0].shape[-2:])
        if (tall, wide) != (height, width):
            raise UserError(
                f"images of {height} x {width}: their condition lies over {tall} x {wide}; resize one of the two"
            )

    def join_low_res(
        self, x_t: Tensor, low_res: Tensor | None, t: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the UNet sees: x_t, for inpainting what is known and where, and for an upsampler the small image
        enlarged bilinearly, also on its own.
        """
        if (low_res is None) != (self.low_res is None):
            have, want = ("none", "a small image") if low_res is None else ("one", "no small image")
            raise UserError(f"this translator expects {want} as 'low_res', got {have}")
        given = self._known(x_t, known)
        if low_res is None:
            return (torch.cat([x_t, *given], dim=1) if given else x_t), None
        scale = self.scale if self.noised is None else 1
        if x_t.shape[-2:] != (low_res.shape[-2] * scale, low_res.shape[-1] * scale):
            raise UserError(
                f"this upsampler enlarges {scale} times: a small image of {list(low_res.shape[-2:])} does not "
                f"become one of {list(x_t.shape[-2:])}"
            )
        large = low_res.to(x_t.dtype)
        if self.noised is None:
            large = F.interpolate(low_res, x_t.shape[-2:], mode="bilinear", align_corners=False).to(x_t.dtype)
        seen = x_t if self.preconditioning is None else self.preconditioning(x_t, large, t)
        return torch.cat([seen, *given, large], dim=1), large

    def _known(self, x_t: Tensor, known: Tensor | None) -> list[Tensor]:
        """The known image, 0 elsewhere [B, 3, H, W], and where it is known [B, 1, H, W]; nothing without `inpaint`."""
        if not self.inpaint:
            if known is not None:
                raise UserError("this translator does not inpaint: it expects no 'known'; load one that does")
            return []
        if known is None:
            known = x_t.new_zeros(len(x_t), 4, *x_t.shape[-2:])
        image, mask = known.to(x_t.dtype).split((3, 1), dim=1)
        return [image * mask, mask]


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a configuration of diffusers, without what it says of itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _check_space(space: SpaceSpec, image_size: int, patch_size: int, low_res: int | None, inpaint: bool) -> None:
    """Raises UserError for a patch that does not fit, and for what has no meaning in latents."""
    if patch_size < 1 or image_size % patch_size:
        raise UserError(f"'image_size' {image_size} is not a multiple of 'patch_size' {patch_size}")
    if not space.latent:
        return
    for name, given in (("low_res", low_res is not None), ("patch_size", patch_size != 1), ("inpaint", inpaint)):
        if given:
            raise UserError(f"'{name}' is for networks that work on pixels; this one works on latents: leave it out")
    if image_size % space.factor:
        raise UserError(f"'image_size' {image_size} is not a multiple of 'space_spec.factor' {space.factor}")


def _check_foreign(
    config: Mapping[str, Any], spec: Mapping[str, Any] | None, seen: int, made: int, head: PixelHeadSpec | None
) -> None:
    """Raises UserError unless a UNet's configuration has the channels that it is to have, and is given alone."""
    if spec or head is not None:
        raise UserError("'unet_config' is given: leave 'unet_spec' and 'head_spec' out")
    if (config["in_channels"], config["out_channels"]) != (seen, made):
        raise UserError(
            f"the UNet sees {config['in_channels']} channels and makes {config['out_channels']}; images of this model "
            f"ask for {seen} and {made}"
        )


def _encoder_for(
    unet: Wiring,
    fields: Mapping[str, Any] | None,
    text: Mapping[str, Any] | None,
    aligned: Mapping[str, Any] | None,
    language: Mapping[str, Any] | None,
) -> AnyEncoderSpec | None:
    """The encoder's spec, none where the UNet takes no condition. Raises UserError unless the two fit."""
    given = {"encoder_spec": fields, "text_spec": text, "aligned_spec": aligned, "language_spec": language}
    named = [f"'{name}'" for name, value in given.items() if value]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} are given; a translator has one encoder: remove the others")
    if unet.sequence is None:
        if fields or text or language:
            raise UserError("an encoder is given, but the UNet's 'token_width' is null; leave one of them out")
        return AlignedEncoderSpec.parse(aligned, "aligned_spec") if aligned else None
    if aligned:
        raise UserError("'aligned_spec' has no tokens, but the UNet's 'token_width' is set; make it null")
    if language:
        return LanguageSpec.parse(language, "language_spec")
    encoder = TextEncoderSpec.parse(text, "text_spec") if text else EncoderSpec.parse(fields or {}, "encoder_spec")
    _check_widths(encoder, unet)
    return encoder


def _check_widths(encoder: EncoderSpec | TextEncoderSpec, unet: Wiring) -> None:
    """Raises UserError unless an encoder's tokens are as wide as the UNet's."""
    if encoder.token_width != unet.sequence:
        raise UserError(
            f"the encoder's 'width' {encoder.token_width} is not the UNet's 'token_width' {unet.sequence}; make them "
            "equal"
        )
    if unet.pooled is not None and encoder.pooled_width != unet.pooled_width:
        raise UserError(
            f"the encoder's pooled token has width {encoder.pooled_width}, the UNet takes {unet.pooled_width}; make "
            "them equal"
        )


def _built(encoder: AnyEncoderSpec | None, unet: Wiring, sample_size: int) -> AnyEncoder | None:
    """The encoder of a spec, for a UNet whose first level has this side."""
    if encoder is None:
        return None
    if isinstance(encoder, TextEncoderSpec):
        return TextEncoder(encoder)
    if isinstance(encoder, LanguageSpec):
        return LanguageEncoder(encoder)
    if isinstance(encoder, AlignedEncoderSpec):
        return AlignedEncoder(encoder, list(unet.skips), sample_size)
    return ConditionEncoder(encoder, list(unet.skips), sample_size)


def _check_sizes(
    image_size: int,
    patch_size: int,
    low_res: int | None,
    encoder: AnyEncoderSpec | None,
    head: PixelHeadSpec | None,
) -> None:
    """Raises UserError unless the sizes of a translator's parts go together."""
    if head is not None and 2 ** len(head.channels) != patch_size:
        raise UserError(
            f"'head_spec' has {len(head.channels)} 'channels' and 'patch_size' is {patch_size}; each of them "
            "doubles the sides, so give log2(patch_size) of them"
        )
    if low_res is not None and (low_res < 1 or image_size % low_res or image_size == low_res):
        raise UserError(
            f"'low_res' {low_res} does not chain with 'image_size' {image_size}; give {image_size} / 2, / 4 …"
        )
    if isinstance(encoder, AlignedEncoderSpec) and encoder.size != image_size:
        raise UserError(
            f"'aligned_spec.size' {encoder.size} is not 'image_size' {image_size}; an aligned condition has "
            "the image's own size: make them equal"
        )


def _check_detail(detail: float | None, low_res: int | None, inpaint: bool) -> None:
    """Raises UserError where the preconditioning has no meaning."""
    if detail is not None and (low_res is None or detail <= 0):
        raise UserError(f"'detail' {detail} is for upsamplers and above 0; set 'low_res', or leave it out")
    if detail is not None and inpaint:
        raise UserError("'detail' and 'inpaint' do not go together; leave one of them out")
