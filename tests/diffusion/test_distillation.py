"""Targets of a student: one of its steps arrives where the teacher's steps do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.diffusion.distillation import CLEAN, StudentGrid, StudentSpec
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import initial_noise, sample
from piti.diffusion.schedule import Estimate, NoiseSchedule, ScheduleSpec

MEAN, DEVIATION = 0.2, 0.3


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(ScheduleSpec(steps=200, prediction="epsilon"))


def best_x0(schedule: NoiseSchedule, x_t: Tensor, t: Tensor) -> Tensor:
    """E[x₀ | x_t] of images whose pixels are normal: the best that any network could say."""
    squared = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    alpha, variance = squared.sqrt(), 1 - squared
    gain = alpha * DEVIATION**2 / (squared * DEVIATION**2 + variance)
    return MEAN + gain * (x_t - alpha * MEAN)


def test_the_grid_parts_the_teacher_s_timesteps_among_the_student_s(schedule: NoiseSchedule) -> None:
    grid = StudentGrid.of(schedule, steps=4, substeps=5)
    assert grid.walks.shape == (4, 5)
    assert list(grid.timesteps) == sorted(set(grid.timesteps))
    assert len(set(grid.walks.flatten().tolist())) == 20
    assert (grid.walks[:, 1:] < grid.walks[:, :-1]).all()
    assert (grid.walks[1:, -1] > grid.walks[:-1, 0]).all()
    assert grid.ends(torch.arange(4)).tolist() == [CLEAN, *grid.timesteps[:-1]]
    with pytest.raises(UserError, match="steps of this schedule of 200"):
        StudentGrid.of(schedule, steps=60, substeps=5)


def test_reached_inverts_moved(schedule: NoiseSchedule) -> None:
    grid = StudentGrid.of(schedule, steps=4, substeps=2)
    x_t, x0 = torch.randn(4, 3, 4, 4).double(), torch.rand(4, 3, 4, 4).double()
    t, s = torch.tensor(grid.timesteps), grid.ends(torch.arange(4))
    x_s = grid.ddim_step(x_t, x0, t, s)
    assert torch.equal(x_s[0], x0[0])
    assert torch.allclose(grid.x0_of_step(x_s, x_t, t, s), x0, atol=1e-9)


def test_targets_lie_on_the_images_device_while_steps_stay_on_the_cpu(schedule: NoiseSchedule) -> None:
    grid = StudentGrid.of(schedule, steps=4, substeps=2)
    x_t = torch.empty(4, 3, 2, 2, device="meta")  # as on a GPU: other devices' tensors do not mix with it
    target = grid.target(lambda x, t: x, x_t, torch.arange(4))
    assert target.device.type == "meta"


def test_a_perfect_student_ends_where_its_teacher_ends(schedule: NoiseSchedule) -> None:
    """Sampled as models are sampled, by "ddim" at the student's timesteps."""
    grid = StudentGrid.of(schedule, steps=3, substeps=4)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    x_T = initial_noise((2, 3, 4, 4), generators).double()

    def teacher(x_t: Tensor, t: Tensor) -> Tensor:
        return best_x0(schedule, x_t, t)

    def student(x_t: Tensor, t: Tensor) -> Estimate:
        k = torch.tensor([grid.timesteps.index(int(now)) for now in t])
        x0 = grid.target(teacher, x_t, k)
        return Estimate(x_t, None, x0)

    def slow(x_t: Tensor, t: Tensor) -> Estimate:
        return Estimate(x_t, None, teacher(x_t, t))

    short = sample(student, x_T, schedule, "ddim", grid.timesteps, generators)
    long = sample(slow, x_T, schedule, "ddim", sorted(grid.walks.flatten().tolist()), generators)
    assert torch.allclose(short, long, atol=1e-9)
    assert (short - x_T).abs().mean() > 0.3


def test_the_weight_is_the_truncated_snr(schedule: NoiseSchedule) -> None:
    grid = StudentGrid.of(schedule, steps=4, substeps=2)
    weight = grid.weight(torch.arange(4))
    assert weight[-1] == 1
    assert weight[0] == pytest.approx(float(schedule.signal_to_noise[grid.timesteps[0]]))


@pytest.mark.parametrize("timesteps", [(), (3, 3), (9, 2), (-1, 5)])
def test_a_student_s_timesteps_ascend(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="timesteps"):
        StudentSpec.parse({"timesteps": timesteps, "w": 1.0}, "student_spec")


def test_a_rule_is_a_students_own() -> None:
    """Files that know no rule mean the usual one; before, a student of plain guidance said that it was normalised."""
    plain = Guidance(kind="plain", w=2.0)
    student = StudentSpec.parse({"timesteps": None, "guidance": plain.to_dict()}, "student_spec")
    student.check(20, "ddim", plain)
    with pytest.raises(UserError, match=r"with the guidance plain, 0 to 1, which .*, got normalized, 0 to 1"):
        student.check(20, "ddim", Guidance(w=2.0))
    old = StudentSpec.parse({"timesteps": None, "w": 2.0}, "student_spec")
    assert old.guidance == Guidance(w=2.0)
    with pytest.raises(SpecError, match="guidance"):
        StudentSpec.parse({"timesteps": None, "w": -2.0}, "student_spec")
