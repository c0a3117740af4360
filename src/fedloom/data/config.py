"""Where the text comes from, how it becomes tokens, and who holds which rows."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.settings import Strict


class ColumnsConfig(Strict):
    """Names of the columns in the source; None: the default name or a common alias, reported when used."""

    instruction: str | None = Field(None, description="The question or task.")
    input: str | None = Field(None, description="What the instruction is about, where there is something.")
    output: str | None = Field(None, description="The answer, which is learned.")
    category: str | None = Field(None, description="What kind of row it is; used by most partition methods.")
    client: str | None = Field(None, description="Who a row belongs to; used by `partition.method: natural`.")
    messages: str | None = Field(
        None, description="A list of {role, content} turns, in place of instruction and output."
    )
    label: str | None = Field(None, description="objective classify: the class. kto: whether the answer is good.")
    chosen: str | None = Field(
        None, description="objective dpo: the better answer; a text, messages, or a transcript of Human and Assistant."
    )
    rejected: str | None = Field(None, description="objective dpo: the worse answer.")


class PlaygroundConfig(Strict):
    """Settings of the embedded source `playground`."""

    skills: Literal["quickstart", "held", "base"] | list[str] = Field(
        "quickstart", description="A named group of skills, or skills by name."
    )
    rows: int = Field(400, ge=1, description="Training rows per skill.")
    test_rows: int = Field(40, ge=0, description="Test rows per skill.")
    validation_rows: int = Field(0, ge=0, description="Validation rows per skill.")


class DataConfig(Strict):
    """The text to tune on."""

    source: str = Field(
        "playground",
        description="playground; a file or folder (.json .jsonl .csv .tsv .parquet, also .gz); "
        "a named set of `fedloom list sources`; or a Hugging Face dataset id.",
    )
    root: str | None = Field(
        None, description="Folder that holds local copies: a named set is looked for here before the hub."
    )
    subset: str | None = Field(None, description="Configuration name of a Hugging Face dataset.")
    split: str = Field("train", description="Split of the source to read.")
    columns: ColumnsConfig = ColumnsConfig()
    template: str = Field(
        "auto",
        description="auto (the named set's own, else chat if the tokenizer has a template, else alpaca), alpaca, "
        "vicuna, chat, plain, or your own text with {instruction} {input}.",
    )
    system: str | None = Field(None, description="System text for templates that have a place for it.")
    max_length: int = Field(512, ge=2, description="Tokens of prompt and answer together.")
    overlong: Literal["drop", "cut"] = Field(
        "drop", description="What happens to longer examples: left out, or the prompt cut from the left."
    )
    loss_on: Literal["answer", "all"] = Field(
        "answer",
        description="objective sft: which tokens are learned: the answers' (every assistant turn's), or all but the "
        "beginning-of-text token.",
    )
    validation: float = Field(0.0, ge=0, lt=1, description="Share of rows set aside for validation.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of rows set aside for testing.")
    test_split: str | None = Field(
        None,
        description="A split of the source that holds the test rows, dealt as the training rows are; in place of test.",
    )
    limit: int | None = Field(None, ge=1, description="Use only so many rows, drawn from the seed.")
    public: float = Field(
        0.0, ge=0, lt=1, description="Share of training rows that belong to nobody: the server may use them."
    )
    public_source: str | None = Field(
        None, description="A file of the server's own, or another source, with rows that belong to nobody."
    )
    playground: PlaygroundConfig = PlaygroundConfig()


class _Split(Strict):
    clients: int = Field(10, ge=1, description="How many clients the rows are dealt to.")


class IidConfig(_Split):
    """Rows are shuffled and dealt out evenly."""

    method: Literal["iid"] = "iid"


class DirichletConfig(_Split):
    """Each category is dealt out by proportions from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335)."""

    method: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.5, gt=0, description="Small: few categories per client; large: nearly iid.")
    min_size: int = Field(1, ge=1, description="Rows every client has at least.")


class CategoryConfig(_Split):
    """Whole categories go to clients in turn (FederatedScope's meta split)."""

    method: Literal["category"] = "category"
    per_client: int = Field(
        1,
        ge=1,
        description="Categories a client holds; with 2 and as many clients as categories, a ring: "
        "each category is shared by two neighbours.",
    )


class ShardsConfig(_Split):
    """Rows sorted by category are cut into shards, dealt at random (McMahan et al. 2017)."""

    method: Literal["shards"] = "shards"
    per_client: int = Field(2, ge=1, description="Shards a client gets.")


class QuantityConfig(_Split):
    """Client sizes follow Dirichlet(alpha); content is iid (Li et al. 2022, arXiv 2102.02079)."""

    method: Literal["quantity"] = "quantity"
    alpha: float = Field(0.5, gt=0, description="Small: very unequal sizes.")
    min_size: int = Field(1, ge=1, description="Rows every client has at least.")


class NaturalConfig(Strict):
    """Each value of the client column, or each file of the folder, is a client."""

    method: Literal["natural"] = "natural"
    clients: int | None = Field(None, ge=1, description="Take only the first so many clients, in order of their names.")
    min_size: int = Field(1, ge=1, description="Clients with fewer rows are left out, and counted.")


PartitionConfig = Annotated[
    IidConfig | DirichletConfig | CategoryConfig | ShardsConfig | QuantityConfig | NaturalConfig,
    Field(discriminator="method"),
]
