"""What a server tells its clients of a recipe, and what both must find equal before they work together."""

import hashlib

from fedloom.algorithms.config import FedKdConfig
from fedloom.assembly import Parts
from fedloom.config import Config, dump
from fedloom.config.offsite import check_made
from fedloom.contracts import ClientId
from fedloom.data.config import DataConfig, NaturalConfig
from fedloom.errors import UserError
from fedloom.models.offsite_config import AlignConfig
from fedloom.objectives.config import ClassifyConfig
from fedloom.runtime.config import CheckpointConfig, RunConfig, RuntimeConfig
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.letters import Ready
from fedloom.runtime.sampling_config import UniformConfig
from fedloom.version import __version__

OWN = "each client's own"
"""Stands in a sent recipe for the data, and for the folder of an emulator."""
OWNERS = "its owner's"
"""And for what is the server's: public rows, a teacher, a model that clients have an emulator of."""
WORDS = {
    "fedloom": "its fedloom is version {theirs}, the server's is {ours}; install the same everywhere",
    "layout": "its adapter has another layout ({theirs}, here {ours}): its model.name is another model",
    "frame": "its base model is not that of the others ({theirs}, theirs {ours}); put the same files everywhere",
    "base": "its base model's weights are not those of the others ({theirs}, theirs {ours}); put the same files "
    "everywhere",
    "template": "it writes rows by the template {theirs}, here it is {ours}; set data.template, or put the same "
    "tokenizer everywhere",
}


def sendable(config: Config, clients: dict[str, ClientId], cohort: int) -> str:
    """The recipe as clients get it: without the names of others, paths of the server, and what only a server does."""
    known = {str(number): number for number in clients.values()} | clients
    overrides = {str(known.get(key, key)): value for key, value in config.clients.items()}
    changes = {
        "run": RunConfig(), "checkpoint": CheckpointConfig(), "runtime": RuntimeConfig(window=config.runtime.window),
        "deploy": DeployConfig(), "partition": NaturalConfig(), "clients": overrides,
        "data": config.data.model_copy(
            update={"source": OWN, "root": None, "subset": None, "split": "train", "limit": None,
                    "playground": DataConfig().playground,
                    "public_source": None if config.data.public_source is None else OWNERS}
        ),
        "federation": config.federation.model_copy(
            update={"holdout": 0, "sampling": UniformConfig(), "cohort": cohort}
        ),
        "evaluate": config.evaluate.model_copy(update={"global_source": None, "forgetting": False}),
    }  # fmt: skip
    if isinstance(config.algorithm, FedKdConfig):
        teacher = config.algorithm.teacher.model_copy(update={"name": OWNERS, "revision": None})
        changes["algorithm"] = config.algorithm.model_copy(update={"teacher": teacher})
    if config.offsite is not None:  # clients open the emulator alone
        changes["model"] = config.model.model_copy(update={"name": OWNERS, "revision": None})
        changes["offsite"] = config.offsite.model_copy(update={"align": AlignConfig(), "emulator": OWN})
    return dump(config.model_copy(update=changes))


def fingerprint(text: str) -> str:
    """Of a sent recipe."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def traits(parts: Parts) -> dict[str, str]:
    """What must be equal everywhere; a server without weights knows no base."""
    found = {"fedloom": __version__, "layout": parts.adapted.layout.fingerprint, "template": parts.data.template_name}
    if not parts.base.skeleton:
        found["frame"] = parts.base_frame
    return found | {"base": parts.base_kin} if parts.base_kin else found


class Agreement:
    """What is equal everywhere; the first client that joins settles what the server cannot know."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = dict(known)

    def __call__(self, name: str, ready: Ready) -> str | None:
        """Why a client does not fit; None: it does. Only one that fits settles anything."""
        for trait, words in WORDS.items():
            theirs = ready.traits.get(trait, "unknown")
            key = _key(trait, theirs)
            if theirs != self.known.get(key, theirs) or theirs == "unknown":
                return words.format(theirs=theirs, ours=self.known.get(key, "settled by nobody yet"))
        self.known |= {_key(trait, ready.traits[trait]): ready.traits[trait] for trait in WORDS}
        return None


def _key(trait: str, value: str) -> str:
    """Weights can be compared where they are held in one format; `frame` is the same in all."""
    return trait + (value[value.index("@") :] if "@" in value else "") if trait == "base" else trait


def check(config: Config) -> None:
    """What a deployment cannot do.

    Raises:
        UserError: the recipe asks for it.
    """
    check_made(config, deployed=True)
    if config.attack.name != "none":
        raise UserError(f"attack.name={config.attack.name} is for simulations; take the section out")
    if config.algorithm.name == "centralized":
        raise UserError("algorithm=centralized needs all rows in one place, and here they stay where they are")
    if isinstance(config.objective, ClassifyConfig) and config.objective.labels is None:
        raise UserError(
            "objective.labels is not set, and in a deployment nobody sees all rows to find the classes in them; name "
            "them in the order of the head's outputs, such as objective.labels=[negative, positive]"
        )
    if config.deploy.clients is None:
        raise UserError(
            "how many clients take part? Set deploy.clients, such as deploy.clients=3: the first round begins when so "
            "many have joined"
        )
    if isinstance(config.federation.cohort, int) and config.federation.cohort < config.federation.min_replies:
        raise UserError(
            f"federation.cohort={config.federation.cohort} is less than federation.min_replies="
            f"{config.federation.min_replies}"
        )
    if config.federation.min_replies > config.deploy.clients:
        raise UserError(
            f"federation.min_replies={config.federation.min_replies}, but the run begins with deploy.clients="
            f"{config.deploy.clients}; raise that, or lower the replies"
        )
