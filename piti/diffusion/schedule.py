"""Noise schedules: their tables, respacing, and the algebra between x₀, ε, v and x_t.

Papers: DDPM (Ho et al. 2020, arXiv 2006.11239), improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672),
progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), DDIM (Song et al. 2020, arXiv 2010.02502),
latent diffusion (Rombach et al. 2022, arXiv 2112.10752), Imagen (Saharia et al. 2022, arXiv 2205.11487),
rectified flow (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206).

Symbols: α = √ᾱ_t, σ = √(1−ᾱ_t), x_t = α x₀ + σ ε. Images are [B, C, H, W] in [−1, 1]; t is int64 [B].

A rectified flow's z_t = (1−s) x₀ + s ε is this process at another scale: x_t = z_t/√((1−s)² + s²), so that
s = σ/(α+σ) and z_t = x_t/(α+σ). Samplers, guidance and inversion know x_t alone; a network trained as a flow gets z_t
(see `piti.models.flow`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import Spec

Images = Float[Tensor, "b c h w"]
Timesteps = Int[Tensor, " b"]
PerSample = Float[Tensor, "b 1 1 1"]


class Estimate(NamedTuple):
    """A model's output for a noisy batch."""

    eps: Float[Tensor, "b c h w"]  # the noise in x_t
    variance: Float[Tensor, "b c h w"] | None  # raw output, −1 … 1 between the variance's two bounds
    x0: Float[Tensor, "b c h w"] | None = None  # x̂₀ if the model predicts it, exact also where ε hardly determines it


Denoise = Callable[[Tensor, Tensor], Estimate]  # (x_t [B, C, H, W], t [B]) -> Estimate


class ThresholdSpec(Spec):
    """Dynamic thresholding of x̂₀ (Saharia et al. 2022, section 2.3)."""

    ratio: float = Field(default=0.995, gt=0, le=1)
    """Quantile of |x̂₀| over a sample that gives its bound s, at least 1; x̂₀ is clipped to ±s and divided by s."""
    largest: float = Field(default=1.0, ge=1)
    """Upper limit of s."""


BetasName = Literal["squaredcos_cap_v2", "linear", "scaled_linear", "flow"]
PredictionName = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
BETAS: tuple[str, ...] = get_args(BetasName)
PREDICTIONS: tuple[str, ...] = get_args(PredictionName)
"""Values of `ScheduleSpec`, under diffusers' names; "flow" and "flow_prediction" are those of a rectified flow."""


class ScheduleSpec(Spec):
    """A model's noise schedule, its prediction type, and the bounds on x̂₀ in sampling."""

    betas: BetasName = "squaredcos_cap_v2"
    """The β schedule, by diffusers' names; "flow": that of a rectified flow."""
    steps: int = Field(default=1000, ge=2, le=100_000)
    """Training timesteps T; samplers use fewer."""
    prediction: PredictionName = "v_prediction"
    """The prediction type: the noise, the velocity, the image, or a flow's direction ε − x₀."""
    shift: float = Field(default=1.0, gt=0, le=100)
    """For "flow": timestep shift towards high noise, for large images (Esser et al. 2024, section 5.3.2); 1: none."""
    beta_range: tuple[float, float] | None = None
    """β of the first and the last step, for "linear" and "scaled_linear" (linear in √β); none: DDPM's, scaled to T."""
    clip: bool = True
    """Clip x̂₀ to [-1, 1]; false for latents, which have no bounds, and for flows."""
    threshold: ThresholdSpec | None = None
    """Dynamic thresholding, instead of clipping."""
    to_clean: bool = True
    """The last step of "ddim" ends at x̂₀; false: at ᾱ of step 0, with residual noise."""

    @property
    def flow_shift(self) -> float | None:
        """The shift of a flow; None for other processes."""
        return self.shift if self.betas == "flow" else None

    @model_validator(mode="before")
    @classmethod
    def _flow_is_not_clipped(cls, values: Any) -> Any:
        return {"clip": False} | values if isinstance(values, dict) and values.get("betas") == "flow" else values

    @field_validator("beta_range")
    @classmethod
    def _omit_default_range(cls, value: tuple[float, float] | None, info: Any) -> tuple[float, float] | None:
        """Replace DDPM's own range by None, which is the same schedule. info: pydantic's ValidationInfo."""
        steps = info.data.get("steps", 1000)
        return None if info.data.get("betas") == "linear" and value == (0.1 / steps, 20 / steps) else value

    @model_validator(mode="after")
    def _check_flow(self) -> ScheduleSpec:
        if (self.betas == "flow") != (self.prediction == "flow_prediction"):
            raise UserError(
                f"betas = '{self.betas}' with prediction = '{self.prediction}': a flow needs both; set both to "
                "'flow' and 'flow_prediction', or neither"
            )
        if self.shift != 1 and self.betas != "flow":
            raise UserError(f"'shift' has no effect with betas = '{self.betas}'; leave it out")
        if self.betas == "flow" and (self.clip or self.threshold is not None or not self.to_clean):
            raise UserError(
                "a flow is neither clipped nor thresholded, and ends at the image: leave 'clip', 'threshold' and "
                "'to_clean' out, or set clip to false, threshold to null and to_clean to true"
            )
        return self

    @model_validator(mode="after")
    def _check_betas(self) -> ScheduleSpec:
        if self.beta_range is not None and self.betas in ("squaredcos_cap_v2", "flow"):
            raise UserError(f"'beta_range' has no effect with betas = '{self.betas}'; leave it out")
        if self.beta_range is None and self.betas == "scaled_linear":
            raise UserError("betas = 'scaled_linear' needs 'beta_range', such as [0.00085, 0.012]")
        if self.beta_range is not None and not 0 < self.beta_range[0] <= self.beta_range[1] < 1:
            raise UserError(f"'beta_range' {list(self.beta_range)}: give 0 < first ≤ last < 1")
        if self.betas == "linear" and self.beta_range is None and self.steps <= 20:
            raise UserError(
                f"steps = {self.steps} with betas = 'linear': β would reach 1; "
                "use at least 21 steps, or 'squaredcos_cap_v2'"
            )
        return self


def flow_noise(steps: int, shift: float) -> Float[Tensor, " T"]:
    """The share s of noise in z_t = (1−s) x₀ + s ε, float64: from almost 0 to 1."""
    return shifted(torch.arange(1, steps + 1, dtype=torch.float64) / steps, shift)


def shifted(u: Tensor, shift: float) -> Tensor:
    """Shift uniform times of a flow, above 0 and up to 1, towards high noise."""
    # Esser et al., eq. 23: s = shift u/(1 + (shift − 1) u)
    return shift * u / (1 + (shift - 1) * u)


def make_alphas_cumprod(spec: ScheduleSpec) -> Float[Tensor, " T"]:
    """ᾱ_t of a spec, float64."""
    if spec.betas != "flow":
        return torch.cumprod(1 - make_betas(spec), dim=0)
    s = flow_noise(spec.steps, spec.shift).clamp(max=1 - _LEAST_SIGNAL)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


_LEAST_SIGNAL = 1e-6  # signal of a flow's last step, otherwise 0: x̂₀ from ε divides by it, in float64


def make_betas(spec: ScheduleSpec) -> Float[Tensor, " T"]:
    """β_t of a spec, float64."""
    T = spec.steps
    if spec.betas == "flow":
        return _betas_of(make_alphas_cumprod(spec))
    if spec.betas == "scaled_linear" and spec.beta_range is not None:
        first, last = spec.beta_range
        return torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64).square()
    if spec.betas == "linear":
        # DDPM, section 4: from 1e-4 to 0.02 at 1000 steps, scaled to T
        first, last = spec.beta_range or (0.1 / T, 20 / T)
        return torch.linspace(first, last, T, dtype=torch.float64)
    # improved DDPM, eq. 17: ᾱ = cos²((t/T + 0.008)/1.008 · π/2), β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999)
    time = torch.arange(T + 1, dtype=torch.float64) / T
    alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


def _betas_of(alphas_cumprod: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    return 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


class NoiseSchedule:
    """The tables of a diffusion process and the formulas that use them.

    Tables are float64 on the CPU, with one entry per step. Formulas use their inputs' precision (at least float32) and
    device. `timesteps` maps this schedule's steps to training timesteps: 0 … T−1, unless `respaced`.
    """

    def __init__(self, spec: ScheduleSpec) -> None:
        betas, alphas_cumprod = make_betas(spec), make_alphas_cumprod(spec)
        self.final = 1.0 if spec.to_clean else float(alphas_cumprod[0])  # ᾱ at which "ddim" ends
        self._build(spec, betas, alphas_cumprod, torch.arange(spec.steps))

    def _build(self, spec: ScheduleSpec, betas: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> None:
        self.spec = spec
        self.timesteps = timesteps
        self.betas = betas
        self.alphas_cumprod = alphas_cumprod
        self.alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        self.alphas_cumprod_next = torch.cat([alphas_cumprod[1:], alphas_cumprod.new_zeros(1)])
        self.sqrt_alphas_cumprod = alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - alphas_cumprod).sqrt()
        self.log_one_minus_alphas_cumprod = (1 - alphas_cumprod).log()
        self.sqrt_recip_alphas_cumprod = (1 / alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / alphas_cumprod - 1).sqrt()

        # DDPM, eq. 6-7: q(x_{t−1} | x_t, x₀)
        prev, now = self.alphas_cumprod_prev, alphas_cumprod
        self.posterior_variance = betas * (1 - prev) / (1 - now)
        self.posterior_mean_coef1 = betas * prev.sqrt() / (1 - now)
        self.posterior_mean_coef2 = (1 - prev) * (1 - betas).sqrt() / (1 - now)
        # the first variance is 0 and has no logarithm: as in the released code, the second one replaces it
        self.posterior_log_variance_clipped = torch.cat(
            [self.posterior_variance[1:2] if len(betas) > 1 else betas, self.posterior_variance[1:]]
        ).log()
        self.log_betas = betas.log()
        self.signal_to_noise = alphas_cumprod / (1 - alphas_cumprod)
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """The number of steps: T, or those kept by `respaced`."""
        return len(self.betas)

    def respaced(self, timesteps: Sequence[int]) -> NoiseSchedule:
        """The process that visits only `timesteps` of this one (improved DDPM, eq. 19).

        timesteps: distinct steps of this schedule, in any order. Raises UserError for none, or for one
        outside 0 … len(self) − 1.
        """
        kept = sorted({int(t) for t in timesteps})
        if not kept or kept[0] < 0 or kept[-1] >= len(self):
            raise UserError(f"expected at least one timestep, of 0 … {len(self) - 1}, got {kept}")
        alphas_cumprod = self.alphas_cumprod[kept]
        spaced = NoiseSchedule.__new__(NoiseSchedule)
        spaced.final = self.final
        spaced._build(self.spec, _betas_of(alphas_cumprod), alphas_cumprod, self.timesteps[kept])
        return spaced

    def at(self, table: str, t: Timesteps, like: Tensor) -> PerSample:
        """Entries `t` of a table, e.g. "betas", on `like`'s device, in its precision but at least float32.

        `t` may be on the CPU, so that samplers can read it without synchronising.
        """
        if t.device not in self._tables:
            # Apple's GPUs have no float64
            dtype = torch.float32 if t.device.type == "mps" else torch.float64
            tables = {name: v for name, v in vars(self).items() if isinstance(v, Tensor) and v.is_floating_point()}
            self._tables[t.device] = {name: v.to(t.device, dtype) for name, v in tables.items()}
        values = self._tables[t.device][table][t]
        dtype = torch.promote_types(like.dtype, torch.float32)
        return values.to(like.device, dtype, non_blocking=True).view(-1, 1, 1, 1)

    # The forward process

    def q_sample(self, x0: Images, t: Timesteps, noise: Images) -> Images:
        """x₀ with the noise of step t, [B, C, H, W]."""
        # DDPM, eq. 4: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε
        return self.at("sqrt_alphas_cumprod", t, x0) * x0 + self.at("sqrt_one_minus_alphas_cumprod", t, x0) * noise

    def posterior_mean(self, x0: Images, x_t: Images, t: Timesteps) -> Images:
        """Mean of q(x_{t−1} | x_t, x₀), [B, C, H, W]."""
        # DDPM, eq. 7: μ̃ = √ᾱ_{t−1} β_t/(1−ᾱ_t) x₀ + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t) x_t
        return self.at("posterior_mean_coef1", t, x0) * x0 + self.at("posterior_mean_coef2", t, x_t) * x_t

    def log_variance(self, values: Images, t: Timesteps) -> Images:
        """Log-variance of a reverse step from a model's raw `values`, −1 … 1 for its two bounds."""
        # improved DDPM, eq. 15: log Σ = ν log β_t + (1 − ν) log β̃_t
        lower = self.at("posterior_log_variance_clipped", t, values)
        upper = self.at("log_betas", t, values)
        share = (values + 1) / 2
        return share * upper + (1 - share) * lower

    def snr(self, t: Timesteps) -> Float[Tensor, " b"]:
        """Signal-to-noise ratio ᾱ_t/(1−ᾱ_t), float32 [B]."""
        return self.at("signal_to_noise", t, t).flatten()

    # Conversions between x₀, ε, v and a flow's direction

    def predict_x0(self, x_t: Images, t: Timesteps, eps: Images) -> Images:
        """x̂₀ from an estimate of the noise, not clipped."""
        # DDPM, eq. 15 (PITI, above eq. 4): x̂₀ = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t
        recip = self.at("sqrt_recip_alphas_cumprod", t, eps)
        return recip * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, eps) * eps

    def eps_from_x0(self, x_t: Images, t: Timesteps, x0: Images) -> Images:
        """The noise that turns x₀ into x_t: the inverse of `predict_x0`."""
        recip = self.at("sqrt_recip_alphas_cumprod", t, x0)
        return (recip * x_t - x0) / self.at("sqrt_recipm1_alphas_cumprod", t, x0)

    def v_from(self, x0: Images, noise: Images, t: Timesteps) -> Images:
        """The velocity, the output of a "v_prediction" model."""
        # Salimans & Ho, section 4 and appendix D: v = α ε − σ x₀
        return self.at("sqrt_alphas_cumprod", t, x0) * noise - self.at("sqrt_one_minus_alphas_cumprod", t, x0) * x0

    def eps_from_v(self, x_t: Images, t: Timesteps, v: Images) -> Images:
        """The noise that corresponds to a velocity."""
        # Salimans & Ho, appendix D: ε = α v + σ x_t
        return self.at("sqrt_alphas_cumprod", t, v) * v + self.at("sqrt_one_minus_alphas_cumprod", t, v) * x_t

    def x0_from_v(self, x_t: Images, t: Timesteps, v: Images) -> Images:
        """The image that corresponds to a velocity; without a division, so it is accurate at every t."""
        # Salimans & Ho, appendix D: x₀ = α x_t − σ v
        return self.at("sqrt_alphas_cumprod", t, v) * x_t - self.at("sqrt_one_minus_alphas_cumprod", t, v) * v

    def eps_from_flow(self, x_t: Images, t: Timesteps, flow: Images) -> Images:
        """The noise that corresponds to a flow's direction ε − x₀."""
        alpha, sigma = self.at("sqrt_alphas_cumprod", t, flow), self.at("sqrt_one_minus_alphas_cumprod", t, flow)
        # z = (1−s) x₀ + s ε, so ε = z + (1−s)(ε − x₀); z = x_t/(α+σ), 1−s = α/(α+σ)
        return (x_t + alpha * flow) / (alpha + sigma)

    def x0_from_flow(self, x_t: Images, t: Timesteps, flow: Images) -> Images:
        """The image that corresponds to a flow's direction; accurate at every t."""
        alpha, sigma = self.at("sqrt_alphas_cumprod", t, flow), self.at("sqrt_one_minus_alphas_cumprod", t, flow)
        # x₀ = z − s (ε − x₀), s = σ/(α+σ)
        return (x_t - sigma * flow) / (alpha + sigma)

    # Conversions of a model's output, by its prediction type

    def target(self, x0: Images, noise: Images, t: Timesteps) -> Images:
        """The model's training target: the noise, the velocity, the image, or a flow's direction."""
        match self.spec.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return self.v_from(x0, noise, t)
            case "sample":
                return x0
            case "flow_prediction":
                return noise - x0  # Esser et al., eq. 10 and section 3.1

    def to_epsilon(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """A model's output as noise, in float64 (float32 where the device has no float64).

        x̂₀ divides ε by √ᾱ_t, which is 5e-5 at the last cosine step: there, a float32 ε of a v-model causes an error of
        2e-3 in x̂₀.
        """
        output, x_t = output.to(self._exact(output)), x_t.to(self._exact(x_t))
        match self.spec.prediction:
            case "epsilon":
                return output
            case "v_prediction":
                return self.eps_from_v(x_t, t, output)
            case "sample":
                return self.eps_from_x0(x_t, t, output)
            case "flow_prediction":
                return self.eps_from_flow(x_t, t, output)

    def to_x0(self, output: Images, x_t: Images, t: Timesteps) -> Images:
        """A model's output as x̂₀, not clipped; differentiable, for losses on x̂₀ (PITI, eq. 4-5)."""
        match self.spec.prediction:
            case "epsilon":
                return self.predict_x0(x_t, t, output)
            case "v_prediction":
                return self.x0_from_v(x_t, t, output)
            case "sample":
                return output
            case "flow_prediction":
                return self.x0_from_flow(x_t, t, output)

    # Bounds of x̂₀ in sampling

    def bounded(self, x0: Images) -> Images:
        """x̂₀ within the bounds of this schedule: clipped, thresholded, or unchanged."""
        if self.spec.threshold is not None:
            return thresholded(x0, self.spec.threshold)
        return x0.clamp(-1, 1) if self.spec.clip else x0

    @property
    def has_bounds(self) -> bool:
        """Whether x̂₀ has bounds in sampling."""
        return self.spec.clip or self.spec.threshold is not None

    def finished(self, images: Images) -> Images:
        """The result of sampling: clipped to [−1, 1] if there are bounds."""
        return images.clamp(-1, 1) if self.has_bounds else images

    @staticmethod
    def _exact(like: Tensor) -> torch.dtype:
        return torch.float32 if like.device.type == "mps" else torch.float64


def thresholded(x0: Images, spec: ThresholdSpec) -> Images:
    """x̂₀ clipped to the bound s of each sample, and divided by it (Saharia et al. 2022, section 2.3)."""
    flat = x0.float().flatten(1).abs()  # torch.quantile requires float32
    bound = torch.quantile(flat, spec.ratio, dim=1).clamp(1, spec.largest).to(x0).view(-1, 1, 1, 1)
    return x0.clamp(-bound, bound) / bound
