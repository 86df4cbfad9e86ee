"""Recipes: everything needed to repeat a run, in one YAML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from piti.baselines.base import baseline_spec
from piti.checkpoints.lora import LoraSpec
from piti.core.errors import UserError, text_of
from piti.core.spec import Spec, SpecError
from piti.data.degrade import DegradationSpec
from piti.data.generated import GeneratedSpec
from piti.data.pairs import FolderSpec
from piti.diffusion.distillation import StudentGrid
from piti.diffusion.losses import adversarial_named
from piti.diffusion.samplers import sampling_timesteps
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.models.discriminator import DiscriminatorSpec
from piti.models.perceptual import PerceptualSpec
from piti.training.known import KnownSpec
from piti.training.losses import DiffusionLossSpec, DistillationSpec, LossSpec
from piti.training.model_spec import ModelSpec
from piti.training.outputs import CheckpointSpec, PreviewSpec, TrackerOptions
from piti.training.recipe_unread import unread
from piti.training.stages import GENERATOR, LORA, NETWORKS, OptimizerSpec, Stage


class RecipeError(SpecError):
    """A recipe cannot be read or does not fit the run that it is to continue."""


class Recipe(Spec):
    """A run: condition, networks, noise schedule, data, stages, and how they are trained."""

    name: str
    """Of the run, whose folder is `runs/NAME` where no other is given."""
    seed: int = Field(default=0, ge=0)
    """Decides all that is random in the run."""
    condition: dict[str, Any] = Field(default_factory=lambda: {"kind": "mask"})
    """A condition's configuration: `kind`, and what that kind needs. A mask without `classes` takes
    `classes.json` from the data's root."""
    baseline: dict[str, Any] | None = None
    """A baseline instead of a translator: `kind` (pix2pixhd, spade, oasis) and its settings. Of `model` the
    `image_size` alone is its own; `ema: 0` keeps no average."""
    model: ModelSpec = ModelSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    data: FolderSpec = FolderSpec()
    init: str | None = None
    """A model to begin from: a bundled one, a folder, a training run. Every weight must fit."""
    prior: str | None = None
    """A model, named likewise, whose UNet is taken and whose encoder is not: adaptation (PITI, section 3.3)."""
    lora: LoraSpec = LoraSpec()
    """The adapters of stages that train `lora`; they are saved beside the name of the `prior`, or of the `init`."""
    base: str | None = None
    """For an upsampler: the model whose images it is to enlarge; the run's model is then both together."""
    generated: GeneratedSpec | None = None
    """For an upsampler: small images that a base made, mixed into training."""
    known: KnownSpec = KnownSpec()
    """For a translator that inpaints (`model.inpaint`): what it is shown of the image in training."""
    degradation: DegradationSpec | None = DegradationSpec()
    """For an upsampler: how its small images are degraded in training; null: shrunk and nothing else."""
    perceptual: PerceptualSpec = PerceptualSpec()
    """The frozen network behind a stage's `perceptual` loss."""
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
    """The network behind a stage's `adversarial` loss."""
    distillation: DistillationSpec | None = None
    """Instead of eq. 3: the model that `init` names, of many guided steps, becomes one of few (`piti distill`)."""
    stages: tuple[Stage, ...] = (Stage(),)
    batch: int = Field(default=32, ge=1)
    """Images of one process in one backward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Backward passes to one optimiser step."""
    condition_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of conditions replaced by the null condition, for classifier-free guidance, where a stage does not say
    another. The paper does not state it; 0.2 is the released code's, in the stages that drop any."""
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the running average of the weights."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of products under autocast; the rest, and all with `no`, is float32. `auto`: bf16 where it is faster, else no."""
    checkpointing: bool = False
    """Compute the UNet's activations anew in the backward pass instead of keeping them: slower, in less memory."""
    compile: bool = False
    """Compile the blocks that the network repeats by `torch.compile`: the first steps take a minute or more longer."""
    latent_cache: Path | None = None
    """For latents: a folder that keeps them by the contents of the crops, so that each crop is encoded once."""
    latent_cache_gib: float = Field(default=50.0, gt=0)
    """The most that it may take, as each process counts it: random crops seldom come again, and would fill a disk."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that load data, for each one that trains; none: one a core but for the training's own, 1 to 8."""
    log_every: int = Field(default=50, ge=1)
    """Steps between two lines of metrics."""
    tensorboard: bool = False
    """Write metrics and previews for TensorBoard too (needs the extra `track`)."""
    trackers: TrackerOptions = Field(default_factory=dict)
    """Show metrics and previews in experiment trackers too, by accelerate's names: a list, such as `[wandb]`, or with
    what a tracker's `init` takes, and the project: `{wandb: {project: streets, mode: offline}}`."""
    preview: PreviewSpec = PreviewSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        """YAML reads a bare `no` as false; "fp32" is what the flag says."""
        return "no" if value is False or value == "fp32" else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if not self.stages:
            raise ValueError("'stages' is empty; give at least one")
        if self.model.space.latent and self.prior is None and self.init is None:
            raise ValueError("'model.space' of latents needs a 'prior' or an 'init', whose autoencoder makes them")
        if self.latent_cache is not None and not self.model.space.latent:
            raise ValueError("'latent_cache' is for models that work on latents; leave it out")
        if self.init is not None and self.prior is not None:
            raise ValueError("'init' and 'prior' are both given; a run begins from one of them: remove the other")
        self._check_baseline()
        for key, why in unread(self):
            raise ValueError(f"'{key}' {why}; leave it out")
        self._check_sizes()
        if self.generated is not None and self.model.low_res is None:
            raise ValueError("'generated' is for upsamplers; set model.low_res, or remove it")
        if self.known != KnownSpec() and not self.model.inpaint:
            raise ValueError("'known' is for translators that inpaint; set model.inpaint: true, or remove it")
        if self.model.detail is not None and self.schedule.prediction != "sample":
            raise ValueError("'model.detail' is for upsamplers that predict the image: set schedule.prediction: sample")
        if self.loss.weighting == "detail" and self.model.detail is None:
            raise ValueError("loss.weighting: detail is for an upsampler with 'model.detail'; set it, or take uniform")
        if self.loss.timesteps != "even":
            self._check_timesteps()
        sampling_timesteps(NoiseSchedule(self.schedule), self.preview.sampler, self.preview.steps)
        if self.distillation is not None:
            self._check_distillation(self.distillation)
        self._check_stages()
        return self

    def _check_timesteps(self) -> None:
        """Draws by the losses are of eq. 3 at all timesteps, on every sample."""
        ranged = any(stage.from_noise or stage.diffusion != DiffusionLossSpec() for stage in self.stages)
        others = {"generated": self.generated, "distillation": self.distillation}
        taken = [name for name, given in others.items() if given] + ["from_noise or diffusion of a stage"] * ranged
        if taken:
            raise ValueError(
                f"loss.timesteps: {self.loss.timesteps} draws among all timesteps by eq. 3, and {', '.join(taken)} "
                "set them otherwise; take even, or leave that out"
            )

    def _check_distillation(self, spec: DistillationSpec) -> None:
        """A student is its teacher's network, and learns from it alone."""
        if self.init is None or self.prior is not None:
            raise ValueError("'distillation' begins from its teacher, a model named in 'init'; name it there")
        if self.baseline is not None or self.model.low_res is not None or self.model.space.latent:
            raise ValueError("'distillation' is for the base of a cascade that works on pixels")
        if spec.steps is None and not spec.guidance.w:
            raise ValueError(
                "'distillation' with 'steps' 0 or none is of the guidance alone, and its w is 0; give another"
            )
        if spec.steps is None and spec.substeps != DistillationSpec().substeps:
            raise ValueError("'distillation.substeps' has no meaning where 'steps' is 0 or none; leave it out")
        if spec.steps is not None and not self.schedule.to_clean:
            raise ValueError("'distillation' ends at the image itself: set schedule.to_clean: true")
        if self.condition_dropout or any(stage.condition_dropout for stage in self.stages):
            raise ValueError("a distilled model has its guidance in its weights: set condition_dropout: 0")
        for stage in self.stages:
            if stage.from_noise or stage.pixel or stage.perceptual:
                raise ValueError(
                    f"stage '{stage.name}': a student is compared with its teacher alone; leave 'from_noise', 'pixel' "
                    "and 'perceptual' out"
                )
        try:
            StudentGrid.of(NoiseSchedule(self.schedule), spec.steps, spec.substeps)
        except UserError as error:
            raise ValueError(
                f"'distillation' takes {spec.steps} × {spec.substeps} steps of the teacher ({text_of(error)}); "
                "set fewer 'steps' or 'substeps'"
            ) from None

    def _check_baseline(self) -> None:
        """What belongs to a baseline alone is there with it alone; what it has no use for, see `unread`."""
        for stage in self.stages:
            if (GENERATOR in stage.trains) != (self.baseline is not None) or (self.baseline and len(stage.trains) > 1):
                trains = f"[{GENERATOR}]" if self.baseline else f"some of {', '.join((*NETWORKS, LORA))}"
                whose = "a baseline" if self.baseline else "a translator"
                raise ValueError(f"stage '{stage.name}': 'trains' of {whose} is {trains}")
        if self.baseline is None:
            return
        baseline_spec(self.baseline)
        if self.model != ModelSpec(image_size=self.model.image_size):
            raise ValueError("'model' of a baseline is its 'image_size' alone; its networks are set in 'baseline'")
        if self.condition.get("kind") in ("text", "none"):
            raise ValueError(f"condition: {self.condition['kind']} is no picture, and a baseline reads one")

    def _check_sizes(self) -> None:
        model, size = self.model, self.data.size
        if self.baseline is not None:
            if not size == self.data.condition_side == model.image_size:
                raise ValueError(
                    f"'data.size' {size}, the conditions' {self.data.condition_side} and 'model.image_size' "
                    f"{model.image_size} of a baseline are one; make them equal"
                )
            return
        if not model.takes_tokens and model.scale is not None:
            step = math.lcm(model.patch_size * model.unet.reduction, model.scale)
            if size % step or size > model.image_size:
                raise ValueError(
                    f"'data.size' {size}: crops for this upsampler are multiples of {step} up to {model.image_size}"
                )
        elif size != model.image_size:
            raise ValueError(f"'data.size' {size} is not 'model.image_size' {model.image_size}; make them equal")
        if model.encoder is not None and self.data.condition_side != model.encoder.size:
            raise ValueError(
                f"conditions of {self.data.condition_side} px ('data.condition_size', or else 'data.size') do not fit "
                f"'model.encoder.size' {model.encoder.size}; make them equal"
            )
        kind = self.condition.get("kind")
        if (kind == "text") != (model.text is not None):
            raise ValueError("condition: {kind: text} goes with 'model.text', the text encoder; give both, or neither")
        if (kind == "none") != (not model.takes_tokens and model.aligned is None):
            raise ValueError("condition: {kind: none} goes with 'model.encoder' null; give both, or neither")
        if model.aligned is not None and (self.data.condition_side != size or size % model.aligned.stride):
            raise ValueError(
                f"crops of {size} px with conditions of {self.data.condition_side} px: 'model.aligned' needs both "
                f"equal, and multiples of {model.aligned.stride}"
            )

    def _check_ranges(self, stage: Stage) -> None:
        """A loss that acts at none of the samples' timesteps would do nothing, without a word."""
        T = self.schedule.steps
        for name in ("diffusion", "pixel", "consistency", "perceptual", "adversarial"):
            loss = getattr(stage, name)
            if loss is not None and loss.weight and not stage.share_of(loss, T, self.visited):
                seen = ", ".join(map(str, self.visited or (T - 1,)))
                raise ValueError(
                    f"stage '{stage.name}': '{name}.noise' {list(loss.noise)} holds none of the samples' timesteps, "
                    f"{seen} of {T}; widen it"
                )

    def _check_image_losses(self, stage: Stage) -> None:
        if self.model.space.latent and (stage.perceptual or stage.adversarial or stage.pixel):
            raise ValueError(
                f"stage '{stage.name}': 'perceptual', 'adversarial' and 'pixel' look at pixels, and this model makes "
                "latents; leave them out"
            )
        for name in ("perceptual", "adversarial"):
            loss = getattr(stage, name)
            if loss is None:
                continue
            self._check_side(name)
            if name == "adversarial" and self.discriminator.conditional and self.model.low_res is None:
                raise ValueError("a base has no small image for its adversary: set discriminator.conditional: false")
            if self.batch * stage.share_of(loss, self.schedule.steps, self.visited) < 1:
                raise ValueError(
                    f"stage '{stage.name}': '{name}.noise' {list(loss.noise)} would leave out whole batches of "
                    f"{self.batch}; widen it, or raise 'batch'"
                )

    def _check_upsampling(self, stage: Stage) -> None:
        """What belongs to upsamplers alone."""
        if stage.consistency is not None and self.model.low_res is None:
            raise ValueError(f"stage '{stage.name}': 'consistency' is for upsamplers; set model.low_res, or remove it")
        if stage.consistency is not None and self.degradation is not None and self.generated is None:
            raise ValueError(
                f"stage '{stage.name}': 'consistency' holds images to clean small ones; set degradation: null, or "
                "'generated'"
            )
        adversarial = stage.adversarial
        if self.generated is None or adversarial is None:
            return
        usual = adversarial_named(adversarial.kind).gradient_penalty
        if usual if adversarial.gradient_penalty is None else adversarial.gradient_penalty:
            raise ValueError(
                f"stage '{stage.name}': the gradient penalty mixes each image with its photograph, and 'generated' "
                "ones have none; set adversarial.gradient_penalty: 0, or take r1"
            )
        if adversarial.noise[1] < 1:
            raise ValueError(
                f"stage '{stage.name}': 'generated' images are made of noise alone; 'adversarial.noise' must reach 1"
            )

    def _check_side(self, name: str) -> None:
        key = "perceptual" if name == "perceptual" else "discriminator"
        network = self.perceptual if name == "perceptual" else self.discriminator
        if self.data.size < network.min_side:
            raise ValueError(
                f"'data.size' {self.data.size} is less than the {network.min_side} px that the '{key}' network needs; "
                "take larger samples, or fewer of its layers"
            )

    def _check_stages(self) -> None:
        for stage in self.stages:
            self._check_ranges(stage)
            self._check_image_losses(stage)
            self._check_upsampling(stage)
            if "encoder" in stage.trains and not self.model.takes_tokens and stage.trains != NETWORKS:
                raise ValueError(f"stage '{stage.name}' trains an encoder, which the model does not have")
        if self.adapts:
            self._check_lora()
        elif self.lora != LoraSpec():
            raise ValueError("'lora' is set, but no stage trains it: put lora in a stage's 'trains' instead of unet")
        trained: set[str] = set()
        adversarial = ""
        for stage in self.stages:
            frozen = trained.difference(stage.trains)
            if frozen:
                raise ValueError(
                    f"stage '{stage.name}' freezes {', '.join(sorted(frozen))}, which an earlier stage trained; its "
                    "running average would be lost. Put the stage first, or train it in a run of its own"
                )
            trained.update(stage.trains)
            if adversarial and stage.adversarial is None:
                raise ValueError(
                    f"stage '{stage.name}' has no adversary, but '{adversarial}' before it has; its discriminator "
                    "would be lost. Put the stage first, or train it in a run of its own"
                )
            adversarial = stage.name if stage.adversarial else ""

    def _check_lora(self) -> None:
        whole = next((stage.name for stage in self.stages if "unet" in stage.trains), None)
        if whole is not None:
            raise ValueError(
                f"stage '{whole}' trains the UNet whole and another adapts it; take 'unet' or 'lora', not both"
            )
        if self.prior is None and self.distillation is None:
            raise ValueError("'lora' adapts a prior's UNet: name it in 'prior'; or a model that is distilled")
        if self.lora.encoder and (self.prior is not None or "encoder" in self.trained):
            raise ValueError(
                "lora.encoder adapts the encoder of a model that is distilled, and it is not trained itself; leave it "
                "out, or 'encoder' of the stages' 'trains'"
            )

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained too."""
        return self.baseline is not None or any(stage.adversarial for stage in self.stages)

    @property
    def adapts(self) -> bool:
        """Whether a stage trains low-rank adapters."""
        return any(LORA in stage.trains for stage in self.stages)

    @property
    def trained(self) -> tuple[str, ...]:
        """What some stage trains, by the names of `Stage.trains`."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.trains))

    @property
    def visited(self) -> tuple[int, ...] | None:
        """The timesteps that a student of few steps is trained at, each as often; none: samples have any."""
        spec = self.distillation
        if spec is None or spec.steps is None:
            return None
        return StudentGrid.of(NoiseSchedule(self.schedule), spec.steps, spec.substeps).timesteps

    @property
    def one_step(self) -> bool:
        """Whether what the last stage leaves knows the last timestep alone."""
        return self.stages[-1].from_noise == 1

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stages_left(self, step: int) -> list[tuple[Stage, int]]:
        """The stages from the one that made optimiser step `step`, each with how many of its steps are done."""
        left, before = [], 0
        for stage in self.stages:
            done = max(0, step - before)
            before += stage.steps
            if step <= before:
                left.append((stage, min(done, stage.steps)))
        return left
