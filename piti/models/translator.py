"""The translator: an encoder and a UNet that predict an image's noise, given a condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import Spec
from piti.diffusion.distillation import StudentSpec
from piti.diffusion.schedule import ScheduleSpec
from piti.models.any_encoder import AnyEncoderSpec, built_encoder, encoder_spec_of
from piti.models.casting import NetworkMixin
from piti.models.encoders import AlignedEncoderSpec, EncoderSpec, Tokens
from piti.models.flow import FlowInput, grown_shift
from piti.models.foreign import channels_of, foreign_network, is_transformer, transformer_kind
from piti.models.noised import NoisedSmallImage, NoisedSpec
from piti.models.pixel_head import PixelHead, PixelHeadSpec
from piti.models.preconditioning import DetailPreconditioning
from piti.models.space import SpaceSpec
from piti.models.text import TextEncoderSpec
from piti.models.translator_sizes import check_detail, check_sizes, check_space
from piti.models.unet import UNetSpec, build_unet
from piti.models.wiring import Wiring

MAX_SIDE = 65_536
"""Pixels of a side that any network is built for."""
MAX_SHIFT = 100.0
"""Of a flow's noise levels; see `ScheduleSpec.shift`."""


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
    student_spec: dict[str, Any] | None = None
    flow_shift: float | None = Field(default=None, gt=0, le=MAX_SHIFT)
    shift_growth: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    embedded_guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Prediction(NamedTuple):
    """Output of a translator for a noisy image."""

    output: Float[Tensor, "b c h w"]
    """Noise, velocity or image, by the prediction type of the noise schedule."""
    variance: Float[Tensor, "b c h w"] | None
    """Interpolation between the bounds of the log-variance, in [-1, 1] (v of Nichol & Dhariwal 2021, eq. 15)."""


NetworkStep = Callable[[Tensor, Tensor, Tokens], Tensor]
"""(seen [B, S, H, W], t, tokens) -> output and variance [B, C|2C, H, W], C the channels of x_t; see
`Translator.step`."""


class Translator(NetworkMixin, ConfigMixin):
    """Predicts noise (or velocity, or the image) and variance from x_t, t and a condition (PITI, section 3.1).

    encoder_spec, unet_spec: fields of `EncoderSpec` and `UNetSpec`; `config.json` holds them. A UNet whose
    `token_width` is none takes no condition: there is no encoder, and its tokens are empty. text_spec: fields of
    `TextEncoderSpec` instead of encoder_spec's, for a prior.
    image_size: side of the images in pixels.
    patch_size: pixels are folded into channels before the UNet and unfolded after it; 1 for GLIDE. Latents are for
    FLUX.1, by 2.
    low_res: side of the small image that an upsampler also sees; none for a base translator.
    learned_variance: whether the UNet also predicts the variance.
    detail: an upsampler that predicts the image ("sample") may be preconditioned for what its small image lacks,
    of this standard deviation in [-1, 1]; see `DetailPreconditioning`. steps: of its noise schedule.
    inpaint: the UNet also sees which pixels are known, and what they are, as GLIDE's inpainting nets do.
    aligned_spec: fields of `AlignedEncoderSpec` instead of encoder_spec's, for a UNet without `token_width`: the
    condition reaches it through its skip connections alone. head_spec: fields of `PixelHeadSpec`, how pixels are made
    of the UNet's features; none: by one pixel shuffle. one_step: it was trained at the last timestep alone, so that
    one step from noise is all that it knows.
    unet_config: a UNet of diffusers, or a transformer of PixArt, Sana, Stable Diffusion 3 or FLUX.1, by its own
    configuration, instead of unet_spec; how it takes tokens follows from that, see `Wiring`. language_spec: fields of
    `LanguageSpec` instead of encoder_spec's, for a prior with text encoders of transformers. space_spec: fields of
    `SpaceSpec`, where x_t are latents and no pixels; image_size stays in pixels. noised_spec: fields of `NoisedSpec`,
    for an upsampler that sees its small image noised.
    student_spec: fields of `StudentSpec`, of a base that was distilled. flow_shift: of the rectified flow that it
    learned, see `FlowInput`; none: it learned another process. It is for images of `image_size`; shift_growth: of its
    logarithm by one token of a larger image, see `grown_shift`. embedded_guidance: the guidance scale that a
    guidance-distilled network takes as an input, see `TransformerWiring.guidance`.

    Saved and loaded by `save_pretrained` and `from_pretrained`.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    one_pass = False
    """Whether images are generated in one pass, without a noise schedule; see `BaselineNetwork`."""

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
        student_spec: Mapping[str, Any] | None = None,
        flow_shift: float | None = None,
        shift_growth: float = 0.0,
        embedded_guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.student = None if student_spec is None else StudentSpec.parse(student_spec, "student_spec")
        self.space_spec = SpaceSpec.parse(space_spec or {}, "space_spec")
        head = None if head_spec is None else PixelHeadSpec.parse(head_spec, "head_spec")
        folds = unet_config is not None and transformer_kind(unet_config) == "flux"
        check_space(self.space_spec, image_size, patch_size, low_res, inpaint, folds)
        check_detail(detail, low_res, inpaint or flow_shift is not None)
        self.patch_size, self.image_size, self.low_res = patch_size, image_size, low_res
        self.learned_variance, self.inpaint, self.one_step = learned_variance, inpaint, one_step
        self.preconditioning = None if detail is None else DetailPreconditioning(detail, steps)
        self.noised = None if noised_spec is None else NoisedSmallImage(NoisedSpec.parse(noised_spec, "noised_spec"))
        self.flow = None if flow_shift is None else FlowInput(steps, flow_shift)
        self.shift_growth = shift_growth
        points, side = self.space_spec.channels, image_size // self.space_spec.factor
        seen, made = points + (4 if inpaint else 0) + (0 if low_res is None else 3), points * (1 + learned_variance)
        folded = _Folded(side // patch_size, seen * patch_size**2, made * patch_size**2)
        self.unet = folded.unet(unet_spec, unet_config, head)
        self.wiring = Wiring.of(self.unet.config, embedded_guidance)
        encoder = encoder_spec_of(self.wiring, encoder_spec, text_spec, aligned_spec, language_spec)
        check_sizes(image_size, patch_size, low_res, encoder, head)
        if self.wiring.leveled != (self.noised is not None):
            raise UserError("'noised_spec' goes with a UNet that takes a noise level ('class_embed_type': timestep)")
        self.head: PixelHead | None = None
        if head is not None:
            maps = encoder.channels if isinstance(encoder, AlignedEncoderSpec) else ()
            self.head = PixelHead(head, self.unet.config["block_out_channels"][0], made, seen, maps)
        self.encoder = built_encoder(encoder, self.wiring, folded.side)

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
    def reduction(self) -> int:
        """Pixels along a side to one position of the UNet's lowest level, or to one token of a transformer."""
        return self.space_spec.factor * self.patch_size * self.wiring.reduction

    @property
    def granularity(self) -> int:
        """Sides of images must be multiples of this, for the UNet and the encoder."""
        unet = self.reduction
        spec, side = self.reads, self.low_res or self.image_size
        if isinstance(spec, AlignedEncoderSpec):
            return math.lcm(unet, spec.stride)
        if not isinstance(spec, EncoderSpec):
            return unet
        small = spec.stride * side // math.gcd(spec.stride * side, spec.size)  # pixels that `size` and `side` share
        return math.lcm(unet, small * self.scale)

    @property
    def takes_tokens(self) -> bool:
        """Whether its UNet uses a condition's tokens."""
        return self.wiring.sequence is not None

    @property
    def compiles(self) -> bool:
        """Whether engines can compute its steps: only for UNets of `UNetSpec`."""
        return self.config.get("unet_config") is None

    @property
    def role(self) -> str:
        """Its role in a model: "base" or "upsampler"."""
        return "base" if self.low_res is None else "upsampler"

    @property
    def scale(self) -> int:
        """Upsampling factor; 1 for a base translator."""
        return 1 if self.low_res is None else self.image_size // self.low_res

    def check_schedule(self, schedule: ScheduleSpec) -> None:
        """Raise UserError unless the schedule and the network are the same flow, or neither is a flow."""
        own = None if self.flow is None else (self.flow.steps, self.flow.shift)
        given = None if schedule.flow_shift is None else (schedule.steps, schedule.flow_shift)
        if own != given:
            said = ["no flow" if one is None else f"a flow of {one[0]} steps, shift {one[1]:g}" for one in (own, given)]
            raise UserError(
                f"the {self.role} learned {said[0]}, and its scheduler is of {said[1]}; take the one that belongs to it"
            )

    def shift_ratio(self, height: int, width: int) -> float:
        """How many times its own shift a flow's noise levels take for images of this size in pixels; see `grown_shift`.

        Raises UserError for a size at which the shift would be above `MAX_SHIFT`.
        """
        if self.flow is None or self.shift_growth == 0:
            return 1.0
        own, other = (area / self.reduction**2 for area in (self.image_size**2, height * width))
        shift = grown_shift(self.flow.shift, self.shift_growth, own, other)
        if shift > MAX_SHIFT:
            raise UserError(
                f"images of {height} x {width}: the shift of this model's noise levels grows with the image, and would "
                f"be {shift:.3g}, above {MAX_SHIFT:g}; make smaller ones"
            )
        return shift / self.flow.shift

    def set_attention_slice(self, slice_size: str | int | list[int] | None) -> None:
        """The UNet's attention in slices, as `enable_attention_slicing` of a pipeline asks: less memory, more time. A
        transformer's stays as it is, as in diffusers."""
        if not is_transformer(self.unet.config):
            self.unet.set_attention_slice(slice_size)  # pyright: ignore[reportArgumentType]

    def encode(self, condition: Shaped[Tensor, "b c h w"]) -> Tokens:
        """The condition's tokens; they do not depend on t, so encode once per image."""
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
        z_t, time = (x_t, t) if self.flow is None else self.flow(x_t, t)
        seen, large = self.join_low_res(z_t, low_res, t, known)  # [B, S, H, W]
        out = (step or self.step)(seen, time, tokens)
        output, variance = out.chunk(2, dim=1) if self.learned_variance else (out, None)
        if self.preconditioning is not None and large is not None:
            output = self.preconditioning.image(output, x_t, large, t)
        return Prediction(output, variance)

    def step(self, seen: Tensor, t: Tensor, tokens: Tokens) -> Float[Tensor, "b o h w"]:
        """The UNet, and the head where there is one, at one timestep: what costs time in sampling.

        seen: what `join_low_res` puts together, [B, S, H, W]: S is 3, or 4 of latents; 4 more to inpaint, and 3 more
        for the small image of an upsampler.
        """
        x = F.pixel_unshuffle(seen, self.patch_size)  # [B, S·p², H/p, W/p]
        size = (seen.shape[-2] * self.space_spec.factor, seen.shape[-1] * self.space_spec.factor)
        level = None if self.noised is None else self.noised.spec.level
        given = self.wiring.arguments(tokens, size, level)
        out = self.unet(x, timestep=t.expand(len(x)), **given, return_dict=False)[0]  # [B, 2C·p² | F, H/p, W/p]
        return self.unfolded(out, seen, tokens)

    def unfolded(self, features: Tensor, seen: Tensor, tokens: Tokens) -> Float[Tensor, "b o h w"]:
        """The UNet's output per pixel, by its head if it has one."""
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
        longest = self.wiring.longest
        if longest is not None and max(x_t.shape[-2:]) > longest:
            raise UserError(
                f"images of {height} x {width}: the transformer has positions for sides of up to {longest * factor}; "
                "make smaller ones"
            )
        if tokens.residuals is None:
            return
        reduced = factor * self.patch_size * 2 ** self.wiring.aligned[0][1]
        tall, wide = (reduced * side for side in tokens.residuals[0].shape[-2:])
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


class _Folded(NamedTuple):
    """What a UNet sees and makes, patches folded into channels."""

    side: int
    """Of a square image's folded form."""
    seen: int
    made: int
    """Channels."""

    def unet(
        self, fields: Mapping[str, Any] | None, config: Mapping[str, Any] | None, head: PixelHeadSpec | None
    ) -> Any:
        """The UNet of a `UNetSpec`'s fields, or the network of diffusers' own configuration. head: makes the pixels in
        its place.

        Raises UserError for a configuration that has other channels or is not given alone.
        """
        if config is None:
            spec = UNetSpec.parse(fields or {}, "unet_spec")
            made = self.made if head is None else spec.channels[0]
            return build_unet(spec, self.side, in_channels=self.seen, out_channels=made)
        if fields or head is not None:
            raise UserError("'unet_config' is given: leave 'unet_spec' and 'head_spec' out")
        if (own := channels_of(config)) != (self.seen, self.made):
            raise UserError(
                f"the UNet sees {own[0]} channels and makes {own[1]}; images of this model ask for {self.seen} and "
                f"{self.made}"
            )
        return foreign_network(config)
