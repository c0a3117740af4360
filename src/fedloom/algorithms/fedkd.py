"""FedKD-LoRA: the server distils what its clients averaged, with a teacher that stays with it.

Notation: x shared weights (the student), y a client's weights after local training, n its examples; x, y are [P].
Each round the clients train x as in FedAvg, and x' = Σ n_i y_i / Σ n_i. Then, on public rows, the server's own worker
trains the teacher alone and x' and the teacher together (`fedloom.objectives.distillation`); what the student has
become is the next x. Clients see the student only: the teacher lives in the worker's memory, and no message has a place
for it.
Source: the public code FedKDLoRA, whose losses come of Wu et al. 2022, Communication-efficient federated learning via
knowledge distillation, https://arxiv.org/abs/2108.13323 (there the teachers are the clients').
"""

from dataclasses import dataclass

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fedavg import FedAvg, State
from fedloom.algorithms.fitting import vectors
from fedloom.contracts import Carry, Client, ClientFailed, Federation, Lessons, Message, Needs
from fedloom.params import Params


@dataclass(frozen=True)
class Student(Message):
    """To the server's own worker."""

    x: Params
    carry: Carry


@dataclass(frozen=True)
class Taught(Message):
    """From the worker: the student alone."""

    y: Params
    student_loss: float
    """Cross-entropy on the public rows while it was taught."""
    teacher_loss: float
    steps: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class FedKd(FedAvg):
    """FedAvg whose server distils the average."""

    lessons: Lessons

    @property
    def needs(self) -> Needs:
        """The worker and its rows; a guard looks at single replies."""
        return Needs(single_replies=self.guard is not None, home=True, public_rows=True)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server: the average, then the distillation."""
        assert fed.home is not None  # declared in `needs`
        met = super().round(s, fed)
        down = Student(met.x, met.carry)
        got = fed.collect(self.distil, lambda _: down, [fed.home], Mean(uniform=True), vectors(y=met.x))
        fed.note(student_loss=got.value.student_loss, teacher_loss=got.value.teacher_loss)
        return State(got.value.y, met.carry, met.memory)

    async def distil(self, down: Student, client: Client) -> Taught:
        """The server's own worker: teach, and keep what the teacher has learned itself."""
        state = client.state
        run = await client.distil(
            down.x, self.lessons, carry=down.carry, teacher=state.get(TEACHER), teacher_base=state.get(BASE)
        )
        if run.student_loss is None or run.teacher_loss is None:
            raise ClientFailed("nothing was distilled: algorithm.epochs leaves no step")
        state[TEACHER], state[BASE] = run.teacher, run.teacher_base
        return Taught(run.y, run.student_loss, run.teacher_loss, run.steps, run.skipped)


TEACHER, BASE = "teacher", "teacher base"
"""Entries of the worker's memory: what the teacher has learned [Q], and which model it was before."""
