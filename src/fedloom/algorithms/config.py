"""The settings of each algorithm page; one class per row of `fedloom.algorithms.table`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedloom.settings import Strict

Spaces = Literal["any", "linear", "factors", "one"]
"""Which spaces a page takes: any, those whose terms are vectors (`linear`), only the trained numbers themselves
(`factors`), or it brings its own (`one`)."""

Weighting = Literal["any", "uniform", "dataset"]


class AlgorithmSettings(Strict):
    """What every page says of itself."""

    spaces: ClassVar[Spaces] = "factors"
    weighted: ClassVar[Weighting] = "any"
    """Whether `aggregate.weighting` counts (any), or the page has one way: clients alike, or by rows held."""
    server: ClassVar[bool] = False
    """Whether `aggregate.server_optimizer` counts."""
    descents: ClassVar[Literal["one", "several"]] = "one"
    """Whether what a client sends comes of one training, which a simulated attacker may change."""
    guarded: ClassVar[bool] = False
    """Whether `aggregate.rule` counts."""
    steady: ClassVar[bool] = True
    """Whether a reply holds the same numbers in every round, as far as the space lets it."""
    drifts: ClassVar[bool] = False
    """Whether the shared model is its start moved along directions everybody knows, and only scalars are sent."""


class FedAvgConfig(AlgorithmSettings):
    """Federated averaging (McMahan et al. 2017); other server optimisers, spaces and rules make it many others."""

    spaces: ClassVar[Spaces] = "any"
    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    name: Literal["fedavg"] = "fedavg"
    keep_inner: bool = Field(
        False, description="Clients keep their optimiser's state between rounds (as DiLoCo's workers do)."
    )


class FedProxConfig(AlgorithmSettings):
    """FedProx: clients are pulled back towards where the round began (Li et al. 2020)."""

    spaces: ClassVar[Spaces] = "any"
    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, ge=0, description="Strength of mu/2 |w - x|^2; the paper tries 0.001 to 1.")


class ScaffoldConfig(AlgorithmSettings):
    """SCAFFOLD: control variates take client drift out of the gradients (Karimireddy et al. 2020)."""

    weighted: ClassVar[Weighting] = "uniform"
    name: Literal["scaffold"] = "scaffold"
    option: Literal["gradient", "I", "II"] = Field(
        "gradient",
        description="How c_i is renewed. II: from the weights, plain SGD only. I: gradient at x, one more pass. "
        "gradient: mean raw gradient of the steps taken; equals II for plain SGD and works with any optimiser.",
    )
    server_lr: float = Field(1.0, gt=0, description="Server learning rate.")


class FedNovaConfig(AlgorithmSettings):
    """FedNova: clients that take more steps do not count for more (Wang et al. 2020)."""

    weighted: ClassVar[Weighting] = "dataset"
    name: Literal["fednova"] = "fednova"
    mu: float = Field(0.0, ge=0, description="Proximal term as in fedprox; not together with client momentum.")
    server_momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of the normalised update.")


class FedSwaConfig(AlgorithmSettings):
    """Server-side averaging of the shared model over rounds (Caldarola et al. 2022); never fed back."""

    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    spaces: ClassVar[Spaces] = "linear"
    name: Literal["fedswa"] = "fedswa"
    start: float = Field(0.75, ge=0, lt=1, description="Share of the rounds after which averaging starts.")
    every: int = Field(1, ge=1, description="Rounds between models that enter the average.")
    cycle: float | None = Field(
        None, gt=0, description="Lower end of a learning-rate cycle of `every` rounds; null: no cycle."
    )


class LookaheadConfig(AlgorithmSettings):
    """FedSWA of Liu et al. 2025: falling rates inside a round, and a server that looks further."""

    weighted: ClassVar[Weighting] = "uniform"
    name: Literal["lookahead"] = "lookahead"
    alpha: float = Field(1.5, gt=0, description="How far the server goes towards the mean; above 1 beyond it.")
    rho: float = Field(0.1, gt=0, le=1, description="Share of the learning rate left at the end of a round.")


class FedBuffConfig(AlgorithmSettings):
    """FedBuff: asynchronous rounds with a buffer (Nguyen et al. 2022); clients have `clients.NAME.speed`."""

    name: Literal["fedbuff"] = "fedbuff"
    weighted_updates: bool = Field(False, description="Updates also count by aggregate.weighting; not in the paper.")
    buffer: int = Field(10, ge=1, description="Updates that make a new server version.")
    exponent: float = Field(0.5, ge=0, description="An update s versions old counts (1 + s)^-exponent.")
    server_lr: float = Field(1.0, gt=0, description="Server learning rate.")
    max_staleness: int | None = Field(None, ge=0, description="Older updates do not count; null: all do.")


class DittoConfig(AlgorithmSettings):
    """Ditto: a model of its own for every client, near the shared one (Li et al. 2021)."""

    spaces: ClassVar[Spaces] = "linear"
    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    name: Literal["ditto"] = "ditto"
    lam: float = Field(0.1, ge=0, description="Pull of the private model towards the shared one.")


class PFedMeConfig(AlgorithmSettings):
    """pFedMe: personal models by Moreau envelopes (Dinh et al. 2020)."""

    weighted: ClassVar[Weighting] = "uniform"
    descents: ClassVar[Literal["one", "several"]] = "several"
    name: Literal["pfedme"] = "pfedme"
    lam: float = Field(15.0, gt=0, description="Pull of the personal model towards the client's own shared one.")
    rounds: int = Field(20, ge=1, description="Local rounds, one batch each; in place of local.steps.")
    steps: int = Field(5, ge=1, description="Steps on that batch.")
    lr: float = Field(0.005, gt=0, description="Rate of the client's shared weights; lr lam is at most 1.")
    personal_lr: float | None = Field(None, gt=0, description="Rate of the personal steps; null: local.lr.")
    beta: float = Field(1.0, gt=0, description="How far the server goes towards the mean.")


class FedPerConfig(AlgorithmSettings):
    """FedPer: named tensors stay with each client, the rest is averaged (Arivazhagan et al. 2019)."""

    server: ClassVar[bool] = True
    name: Literal["fedper"] = "fedper"
    private: list[str] = Field(min_length=1, description="Shell patterns of the tensors that stay, such as *.B.")


class FedRepConfig(AlgorithmSettings):
    """FedRep: private tensors are trained first, then the shared ones (Collins et al. 2021)."""

    server: ClassVar[bool] = True
    descents: ClassVar[Literal["one", "several"]] = "several"
    name: Literal["fedrep"] = "fedrep"
    private: list[str] = Field(min_length=1, description="Shell patterns of the tensors that stay, such as *.B.")
    head_steps: int = Field(8, ge=1, description="Steps on the private tensors; in place of local.steps.")
    body_steps: int = Field(2, ge=1, description="Steps on the shared tensors.")


class DualConfig(AlgorithmSettings):
    """Two adapters in every forward pass: a shared one, and one of each client's own."""

    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    spaces: ClassVar[Spaces] = "linear"
    name: Literal["dual"] = "dual"


class HetLoraConfig(AlgorithmSettings):
    """HetLoRA: clients of different ranks that prune themselves (Cho et al. 2024)."""

    spaces: ClassVar[Spaces] = "one"
    weighted: ClassVar[Weighting] = "uniform"
    name: Literal["hetlora"] = "hetlora"
    gamma: float = Field(0.99, gt=0, le=1, description="Slots from gamma r on are penalised; pruned if they shrank.")
    lam: float = Field(0.01, ge=0, description="Strength of that penalty.")
    least_rank: int = Field(1, ge=1, description="No client prunes below this.")


class LoraA2Config(AlgorithmSettings):
    """LoRA-A²: A and B in turns, and only the rank slots that matter (Koo et al. 2025)."""

    spaces: ClassVar[Spaces] = "one"
    steady: ClassVar[bool] = False
    descents: ClassVar[Literal["one", "several"]] = "several"
    name: Literal["lora_a2"] = "lora_a2"
    rank: int = Field(4, ge=1, description="Slots each client trains, per adapted module on average.")
    ratio: float = Field(5.0, gt=0, description="Learning rate of B over that of A.")


class TeacherConfig(Strict):
    """The large model a student learns from; it stays with the server, and every weight of it is trained."""

    name: str = Field(
        description="As model.name; also a folder that fedloom pretrain-teacher wrote. It must share the model's "
        "tokenizer."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hugging Face model id.")
    layers: list[int] | None = Field(None, description="Keep only these of its layers; null: all.")


class FedBiotConfig(AlgorithmSettings):
    """FedBiOT: clients tune the ends of an emulator, the server lets its middle follow the model (Wu et al. 2024)."""

    server: ClassVar[bool] = True
    name: Literal["fedbiot"] = "fedbiot"
    lam: float = Field(
        0.001, ge=0, description="Weight of the squared distance of clients' products B A from those they began with."
    )
    prealign_steps: int = Field(
        100, ge=0, description="The server's steps before the first round, on public rows (data.public)."
    )
    align_steps: int = Field(20, ge=0, description="And after every round; 0 in both places: the emulator stays.")
    kd_weight: float = Field(
        0.1, ge=0, description="Weight of KL(owner || emulator) per token beside the distance of their blocks."
    )
    lr: float = Field(1e-3, gt=0, description="Of the server's AdamW; falls in a line to 0 in each alignment.")
    batch_size: int = Field(16, ge=1, description="Public rows of a step.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Larger gradients are scaled down to it; null: off.")

    @property
    def aligns(self) -> bool:
        """Whether the server has anything to learn."""
        return bool(self.prealign_steps or self.align_steps)


class FedKdConfig(AlgorithmSettings):
    """FedKD-LoRA: the server distils the clients' average with a teacher, on public rows (data.public)."""

    spaces: ClassVar[Spaces] = "linear"
    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    name: Literal["fedkd"] = "fedkd"
    teacher: TeacherConfig
    pretrain_epochs: float = Field(
        1.0, ge=0, description="Passes of the teacher alone before the first round; 0 for one that was trained before."
    )
    teacher_epochs: float = Field(1.0, ge=0, description="Passes of the teacher alone in every round.")
    epochs: float = Field(1.0, gt=0, description="Passes of teacher and student together in every round.")
    lr: float = Field(5e-5, gt=0, description="Of the server's AdamW; falls in a line to 0 in each of these.")
    batch_size: int = Field(32, ge=1, description="Public rows of a step.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Larger gradients of either model are scaled down to it; null: off."
    )
    kl: Literal["proper", "raw_logits"] = Field(
        "proper",
        description="proper: KL divergence of softmax(logits / temperature). raw_logits: the published code's sum "
        "exp(s) (s - t) on logits as they are, which is no divergence; to compare with.",
    )
    temperature: float = Field(2.0, gt=0, description="Softens both models' words; the divergence counts T^2 times.")
    alpha: float | None = Field(
        None, ge=0, le=1, description="(1 - alpha) CE + alpha T^2 KL; null: CE + T^2 KL, as published."
    )
    direction: Literal["reverse", "forward"] = Field(
        "reverse", description="reverse: KL(own || partner), as published. forward: KL(partner || own), as Hinton's."
    )
    mutual: bool = Field(True, description="The teacher learns from the student too; false: it is only followed.")
    normalised: bool = Field(True, description="Divide what is taught by CE_s + CE_t + epsilon, as published.")
    epsilon: float = Field(1.0, gt=0, description="Of that divisor.")
    attention: float = Field(
        0.0, ge=0, description="Weight of the distance of attention maps (published: 1); needs model.attention=eager."
    )

    @model_validator(mode="after")
    def _as_published(self) -> Self:
        """What the published loss has no place for."""
        free = ("temperature", "alpha", "direction", "mutual", "normalised")
        changed = [key for key in free if getattr(self, key) != type(self).model_fields[key].default]
        if self.kl == "raw_logits" and changed:
            raise ValueError(f"kl=raw_logits is the published loss as it is; leave {', '.join(changed)} out")
        return self


Directions = Literal["gaussian", "rademacher"]
"""How random directions are distributed: normal, or +1 and -1."""


class ZerothSettings(AlgorithmSettings):
    """What pages share whose clients learn from losses alone, without gradients."""

    epsilon: float = Field(1e-3, gt=0, description="How far a probe goes along a direction, in units of weights.")
    limit: float | None = Field(
        None, gt=0, description="A step whose two losses differ by more is left out and counted; null: none is."
    )
    noise: Directions = Field("gaussian", description="Distribution of the random directions.")


class FedMezoConfig(ZerothSettings):
    """FedMeZO: clients walk by differences of losses, with the memory of inference (Ling et al. 2024)."""

    spaces: ClassVar[Spaces] = "any"
    server: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    name: Literal["fedmezo"] = "fedmezo"
    directions: int = Field(1, ge=1, description="Directions of a step, over which the mean is taken.")
    weight_decay: float = Field(0.0, ge=0, description="As lambda in w - lr (g z + lambda w); not on biases and norms.")
    rate: Literal["frozen", "random", "round_wise", "five_round", "model_diff"] = Field(
        "frozen",
        description="Of each client. frozen: local.lr. random: within `spread` of it. round_wise, five_round: by its "
        "loss (mean of its last five) against the others'. model_diff: by how far its model ended from the mean, which "
        "costs a second download.",
    )
    spread: float = Field(5e-6, ge=0, description="C: how far a client's rate may lie from local.lr; below it.")


class FedKSeedConfig(ZerothSettings):
    """FedKSeed: the model moves along a pool of directions; rounds cost kilobytes (Qin et al. 2024)."""

    drifts: ClassVar[bool] = True
    steady: ClassVar[bool] = False
    name: Literal["fedkseed"] = "fedkseed"
    epsilon: float = Field(5e-4, gt=0, description="How far a probe goes along a direction, in units of weights.")
    pool: int = Field(4096, ge=2, le=1 << 20, description="Directions there are; 4 bytes of traffic each.")
    pro: bool = Field(
        False, description="FedKSeed-Pro: directions along which losses change more are drawn more often."
    )
    corrected: bool = Field(False, description="Pro: a step counts 1 / (pool p); not in the paper.")
    draws: Literal["client", "server"] = Field(
        "client",
        description="Pro: client: clients are sent the chances, 4 more bytes for each direction. server: it draws for "
        "them and sends 2 bytes for each step.",
    )
    amplitude_limit: float = Field(1000.0, gt=0, description="Pro: a steeper slope counts as this steep.")


class DeComFlConfig(ZerothSettings):
    """DeComFL: slopes along common directions, and replays for who was away (Li et al. 2024)."""

    weighted: ClassVar[Weighting] = "uniform"
    drifts: ClassVar[bool] = True
    name: Literal["decomfl"] = "decomfl"
    steps: int = Field(1, ge=1, description="Local steps; in place of local.steps.")
    directions: int = Field(1, ge=1, description="Directions of a step, over which the mean is taken.")
    forward: bool = Field(False, description="One-sided differences: one forward pass per direction, and a bias.")
    log: int | None = Field(
        4096,
        ge=2,
        description="Rounds after which directions come again; 4 bytes per step, direction and round are "
        "kept by everybody. null: never, as in the paper.",
    )


class FerretConfig(AlgorithmSettings):
    """Ferret: gradients at home, coordinates along random bases on the wire (Shu et al. 2024)."""

    drifts: ClassVar[bool] = True
    name: Literal["ferret"] = "ferret"
    bases: int = Field(4096, ge=2, le=1 << 20, description="Coordinates of an update; 4 bytes of traffic each.")
    server_lr: float = Field(
        1.0, gt=0, description="How far the shared model follows; lower where bases are few and updates noisy."
    )
    unbiased: bool = Field(
        True, description="Divide by the bases' variance, as the paper; false: a third of each update, as its code."
    )
    noise: Literal["uniform", "gaussian", "rademacher"] = Field(
        "uniform", description="Distribution of the bases; uniform is the paper's truncated normal."
    )
    log: int | None = Field(
        64,
        ge=1,
        description="Rounds after which bases come again; 4 bytes for each base and round are kept by everybody. "
        "null: never.",
    )


class LocalOnlyConfig(AlgorithmSettings):
    """Baseline: every client trains alone, nothing is shared."""

    weighted: ClassVar[Weighting] = "uniform"
    name: Literal["local"] = "local"
    keep_inner: bool = Field(
        False, description="Clients keep their optimiser's state between rounds, and what AdaLoRA's budget remembers."
    )


class CentralizedConfig(AlgorithmSettings):
    """Baseline: all rows in one place, as many examples a round as the cohort would see together."""

    weighted: ClassVar[Weighting] = "uniform"
    name: Literal["centralized"] = "centralized"


AlgorithmConfig = Annotated[
    FedAvgConfig
    | FedProxConfig
    | ScaffoldConfig
    | FedNovaConfig
    | FedSwaConfig
    | LookaheadConfig
    | FedBuffConfig
    | DittoConfig
    | PFedMeConfig
    | FedPerConfig
    | FedRepConfig
    | DualConfig
    | HetLoraConfig
    | LoraA2Config
    | FedKdConfig
    | FedBiotConfig
    | FedMezoConfig
    | FedKSeedConfig
    | DeComFlConfig
    | FerretConfig
    | LocalOnlyConfig
    | CentralizedConfig,
    Field(discriminator="name"),
]
