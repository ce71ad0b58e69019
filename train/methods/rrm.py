"""RRM, robust representation matching: Vaishnavi et al. 2022, USENIX Security."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.train.methods.method import Method, Needs, Step
from zoo.train.teachers.features import Features
from zoo.train.teachers.teacher import Teacher


class Rrm(Method):
    """lambda CE(S(x), y) + L_R(g_S(x), g_T(x)) on clean images: eq. 5. g are penultimate features, L_R is 1 - cosine or
    the l2 distance.

    Where the widths of the features differ, a linear layer maps those of one side to the width of the other (Table 7).
    The paper inserts it before the head of that net. Here it is beside the net and not part of the resulting model: the
    student's is trained with it, and its head may use what the layer drops; the teacher's is a fixed random projection
    with orthonormal rows or columns. If trained, it could make the loss zero by mapping everything to one point. A
    dynamic net always has the layer, that of its largest sub-net: narrower ones use its leading channels.
    """

    name: Literal["rrm"] = "rrm"
    lam: float = Field(
        5e-3, gt=0, le=1000, description="lambda, the weight of the hard labels; the paper has 5e-5 for l2"
    )
    distance: Literal["cosine", "l2"] = "cosine"
    side: Literal["larger", "student", "teacher"] = Field("larger", description="where the linear layer is")
    student_layer: str | None = Field(None, description="the module whose output is g_S; default: before the head")
    teacher_layer: str | None = Field(None, description="the module whose output is g_T; default: before the head")
    takes_teacher: ClassVar[bool] = True

    @classmethod
    def trains_subnets(cls) -> bool:
        return True

    @property
    def attacks(self) -> bool:
        return False

    @property
    def needs(self) -> Needs:
        return Needs(features=True)

    def parts(
        self, net: nn.Module, teacher: Teacher | None, *, compile: bool, seed: int, dynamic: bool = False
    ) -> nn.Module:
        assert teacher is not None
        return Matching(self, net, teacher, seed, dynamic=dynamic)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        assert isinstance(step.parts, Matching)
        assert step.answer is not None
        assert step.answer.features is not None
        with step.parts.features.recording(step.hooked):
            logits = step.forward(step.batch.x).float()
        distance = step.parts(step.parts.features.taken(), step.answer.features)
        return self.lam * F.cross_entropy(logits, step.batch.y) + distance


class Matching(nn.Module):
    """The hook on the student's features, the linear layer, and L_R.

    Raises:
        UsageError: student or teacher has no layer of the name in the method's settings, or never calls it.
    """

    def __init__(self, method: Rrm, net: nn.Module, teacher: Teacher, seed: int, *, dynamic: bool = False) -> None:
        super().__init__()
        self.distance = method.distance
        teacher.watch(method.teacher_layer)
        self.features = Features(net, method.student_layer, whose="student")
        device = next(net.parameters()).device
        size = teacher.model.spec.image_size
        image = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        c_t = self._width(teacher.model, teacher.features, image)
        c_s = self._width(net, self.features, image)
        side = method.side if method.side != "larger" else "student" if c_s > c_t else "teacher"
        generator = torch.Generator().manual_seed(seed)
        self.student: nn.Module = nn.Identity()
        self.teacher: nn.Module = nn.Identity()
        if c_s == c_t and not dynamic:
            return
        if side == "student":
            self.student = nn.Linear(c_s, c_t, device=device)
            with torch.no_grad():
                self.student.weight.copy_(torch.empty(c_t, c_s).normal_(0, c_s**-0.5, generator=generator))
                self.student.bias.zero_()
        else:
            self.teacher = nn.Linear(c_t, c_s, bias=False, device=device).requires_grad_(False)
            random = torch.empty(max(c_s, c_t), min(c_s, c_t)).normal_(generator=generator)
            basis = torch.linalg.qr(random).Q  # orthonormal columns
            with torch.no_grad():
                self.teacher.weight.copy_(basis if c_s > c_t else basis.T)

    @staticmethod
    def _width(model: nn.Module, features: Features | None, image: Tensor) -> int:
        assert features is not None
        training = model.training
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), features.recording():
            model.eval()(image)
        model.train(training)
        return features.taken().shape[1]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """L_R from the features [N, C_S] and [N, C_T], a mean over the batch. C_S may be smaller than the net's, in a
        sub-net of it."""
        if isinstance(self.student, nn.Linear):
            student = F.linear(student, self.student.weight[:, : student.shape[1]], self.student.bias)
        g_s, g_t = student.float(), self.teacher(teacher)[:, : student.shape[1]].float()
        if self.distance == "cosine":
            return (1 - F.cosine_similarity(g_s, g_t)).mean()
        return torch.linalg.vector_norm(g_s - g_t, dim=1).mean()
