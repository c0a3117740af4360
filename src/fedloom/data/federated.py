"""Every client's examples, encoded when they are first asked for.

Reading and dealing happen at once, so that mistakes show before training; tokenising waits, so that 1,613 clients cost
nothing at the start. A shelf of bounded size keeps what was encoded last.

In a deployment nobody holds all rows: a client has its own (`build_own`), the server has names (`absent`).
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fedloom.data.config import DataConfig, PartitionConfig
from fedloom.data.encode import dropped_of
from fedloom.data.encoders import RowEncoder, encoder_of
from fedloom.data.labelled import class_notes, labels_of
from fedloom.data.pairs import Judged, Pair
from fedloom.data.partition import Share, holdings, own, plan
from fedloom.data.rows import SPLITS, Row, Split
from fedloom.data.shelf import Shelf
from fedloom.data.sources import Table, load, load_own, load_public
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError

_ANSWERS: Final = Wanted()
CHARACTERS: Final = 5
"""Of one token, about; for expectations only."""
CUT: Final = "the beginning of a long prompt"
"""Among what was left out: rows that stay, without the first words of their prompts."""
_PROBED: Final = 16  # rows encoded at the start to see that the template works and something is left


class ClientRows:
    """One client's rows and, on demand, its examples.

    Attributes:
        name: the client's.
        here: whether its rows are in this process; where they are not, whatever reads them raises UserError.
        sizes: rows of each split before encoding; 0 where they are not here.
        dropped: what was left out by reason, for each split encoded so far: examples, and beginnings of prompts.
        notes: what a person should know about the source, where it is the client's own.
    """

    def __init__(
        self,
        name: str,
        rows: Mapping[Split, Sequence[Row]] | None,
        encoder: RowEncoder,
        shelf: Shelf | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """A client; `rows` None: they are on another machine."""
        self.name, self.here, self.notes = name, rows is not None, notes
        self._rows: Mapping[Split, Sequence[Row]] = rows if rows is not None else {}
        self.sizes: dict[Split, int] = {split: len(self._rows.get(split, ())) for split in SPLITS}
        self.dropped: dict[Split, dict[str, int]] = {}
        self._encoder = encoder
        self._shelf = shelf if shelf is not None else Shelf()
        self._lengths: dict[Split, float] = {}

    def answered(self, change: Callable[[Sequence[str], str], list[str]]) -> "ClientRows":
        """The same client with other answers to its training rows: `change` gets them and the client's name."""
        train = self.rows("train")
        answers = change([row.output for row in train], self.name)
        changed = [row.answered(answer) for row, answer in zip(train, answers, strict=True)]
        return ClientRows(self.name, {**self._rows, "train": changed}, self._encoder, self._shelf, self.notes)

    def rows(self, split: Split) -> Sequence[Row]:
        """The rows as they are in the source.

        Raises:
            UserError: they are not here.
        """
        if not self.here:
            raise UserError(
                f"the rows of client {self.name} are on its own machine, and nothing here can read them; what was "
                "asked for works in a simulation (fedloom run), where all rows are in one place"
            )
        return self._rows.get(split, ())

    def length(self, split: Split) -> float:
        """Mean characters of a split's rows, each counted up to what `data.max_length` can hold; 0 without rows."""
        if split not in self._lengths:
            most = CHARACTERS * self._encoder.max_length
            lengths = [min(most, row.length) for row in self.rows(split)]
            self._lengths[split] = sum(lengths) / len(lengths) if lengths else 0.0
        return self._lengths[split]

    def get(self, split: Split) -> list[Any]:
        """The split's examples in the order of its rows; those dropped are counted and not among them."""
        kept = self._shelf.get((self.name, split))
        if kept is None:
            made = self._encoder.encode_all(self.rows(split))
            kept = [one for one in made if not isinstance(one, str)]
            self.dropped[split] = dict(dropped_of(made))
            cut = sum(1 for one in kept if isinstance(one, Pair | Judged) and one.cut)
            if cut:
                self.dropped[split][CUT] = cut
            self._shelf.put((self.name, split), kept)
        return kept


class FederatedData:
    """All clients of a run.

    Attributes:
        name: of the source.
        clients: in the order of the partition.
        notes: what a person should know about source and partition.
        holdings: sizes and categories per client, for partition.json.
        template_name: the template in use.
        encoder: for rows that are no client's (`build_rows`).
        public: rows of nobody, under `train`, which the server may use; None: there are none.
    """

    def __init__(
        self,
        name: str,
        clients: list[ClientRows],
        encoder: RowEncoder,
        notes: tuple[str, ...],
        holds: list[dict[str, Any]],
        public: ClientRows | None = None,
    ) -> None:
        self.public = public
        self.name, self.clients, self.encoder, self.notes, self.holdings = name, clients, encoder, notes, holds
        self.template_name = encoder.template_name
        self._pooled: ClientRows | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes in the order of the head's outputs: given, or found in the rows; None: rows have none."""
        return self.encoder.labels

    def pooled(self, without: Collection[int] = ()) -> ClientRows:
        """All clients' rows as one client named `centralized`, but for those of clients `without`.

        Raises:
            UserError: a client's rows are not here.
        """
        if self._pooled is None:
            kept = [client for i, client in enumerate(self.clients) if i not in without]
            rows = {split: [row for client in kept for row in client.rows(split)] for split in SPLITS}
            self._pooled = ClientRows("centralized", rows, self.encoder)
        return self._pooled

    def fingerprint(self) -> str:
        """Sixteen hex digits over every text and who holds it: a run is resumed on the data it was begun with.

        Of clients whose rows are not here it tells the names.
        """
        digest = hashlib.blake2b(digest_size=8)
        for client in self.clients:
            if not client.here:
                digest.update(f"\x1d{client.name}".encode())
                continue
            for split in SPLITS:
                digest.update(f"\x1e{client.name}\x1f{split}".encode())
                for row in client.rows(split):
                    digest.update(repr(row).encode())
        if self.public is not None:
            digest.update(b"\x1c")
            for row in self.public.rows("train"):
                digest.update(repr(row).encode())
        return digest.hexdigest()

    def dropped(self) -> dict[str, dict[str, int]]:
        """What was left out by reason, for each client and split encoded so far (`name/split`)."""
        others = [one for one in (self._pooled, self.public) if one is not None]
        parts: Iterable[ClientRows] = [*self.clients, *others]
        return {f"{one.name}/{split}": counts for one in parts for split, counts in one.dropped.items() if counts}


def build(
    data: DataConfig, partition: PartitionConfig, seed: int, tokenizer: Any, wanted: Wanted = _ANSWERS
) -> FederatedData:
    """Read, deal and prepare the data of a run.

    Args:
        data: the section `data`.
        partition: the section `partition`.
        seed: root seed.
        tokenizer: the model's, from transformers.
        wanted: what the objective learns from.

    Raises:
        UserError: the source, the partition or the template cannot work as asked.
    """
    table = load(data, seed, wanted.kind)
    encoder = encoder_of(tokenizer, data, _labelled(wanted, table), table.template)
    encoder.check([*table.rows, *table.public])
    dealt = plan(table, partition, data, seed)
    _probe(table, encoder, [i for share in dealt.shares for i in share.train])
    shelf = Shelf()
    clients = [ClientRows(share.name, _held(table, share), encoder, shelf) for share in dealt.shares]
    public = build_rows(table.public, encoder, "public", "train") if table.public else None
    seen = {client.name: client.rows("train") for client in clients}
    notes = (*table.notes, *dealt.notes, *(class_notes(encoder.labels, seen) if encoder.labels is not None else ()))
    return FederatedData(table.name, clients, encoder, notes, holdings(table, dealt), public)


def build_own(
    data: DataConfig, seed: int, tokenizer: Any, name: str, index: int, wanted: Wanted = _ANSWERS
) -> ClientRows:
    """One client's rows from its own file or folder, on its own machine.

    The splits are those of a simulation with `partition.method: natural` over a folder that holds one such file for
    each client, with the same columns, where this client has the same number. A folder whose files are splits
    (train.jsonl, test.jsonl) is read as in a simulation: the file of `data.split` alone, which is then cut.

    Args:
        data: the section `data`, its source the client's own.
        seed: root seed of the run.
        tokenizer: the model's, from transformers.
        name: the client's.
        index: its number.
        wanted: what the objective learns from; classes must be named, as nobody sees all rows.

    Raises:
        UserError: the source or the template cannot work as asked, or the source is not one client's.
    """
    table = load_own(data, name, wanted.kind)
    encoder = encoder_of(tokenizer, data, wanted, table.template)
    encoder.check(table.rows)
    share = own(table, data, seed, name, index)
    _probe(table, encoder, share.train)
    return ClientRows(name, _held(table, share), encoder, notes=table.notes)


def absent(
    names: Sequence[str],
    encoder: RowEncoder,
    source: str = "the clients' own data",
    public: ClientRows | None = None,
) -> FederatedData:
    """What a server knows of clients whose rows are on their own machines: their names, and rows of nobody.

    Sizes are 0, which means unknown, and there are no holdings.
    """
    return FederatedData(source, [ClientRows(name, None, encoder) for name in names], encoder, (), [], public)


def build_public(data: DataConfig, seed: int, encoder: RowEncoder, wanted: Wanted = _ANSWERS) -> ClientRows | None:
    """Rows of nobody on a machine that has no client's rows, from `data.public_source`; None: there are none.

    Raises:
        UserError: `data.public` asks for a share of the clients' rows, which nobody can draw; or the source
            cannot work.
    """
    if data.public:
        raise UserError(
            f"data.public={data.public} is a share of all clients' training rows, and no machine holds them; give the "
            "server a file of its own (data.public_source)"
        )
    if data.public_source is None:
        return None
    return build_rows(load_public(data, seed, wanted.kind), encoder, "public", "train")


def build_rows(rows: Sequence[Row], encoder: RowEncoder, name: str, split: Split = "test") -> ClientRows:
    """Rows that belong to no client, such as a global test set, under one split."""
    encoder.check(rows)
    return ClientRows(name, {split: rows}, encoder)


def _held(table: Table, share: Share) -> dict[Split, list[Row]]:
    return {split: [table.rows[i] for i in getattr(share, split)] for split in SPLITS}


def _labelled(wanted: Wanted, table: Table) -> Wanted:
    """With the classes found in the table, where none are named."""
    if wanted.kind != "labels" or wanted.labels is not None:
        return wanted
    found = labels_of([*table.rows, *table.public])
    usual = table.labels if table.labels is not None and set(found) <= set(table.labels) else None
    return replace(wanted, labels=usual or found)


def _probe(table: Table, encoder: RowEncoder, train: Sequence[int]) -> None:
    """Encode a few train rows, spread over the table.

    Raises:
        UserError: the template refuses them, or none of them is left.
    """
    step = max(1, len(train) // _PROBED)
    made = encoder.encode_all([table.rows[i] for i in train[::step]])
    if made and all(isinstance(one, str) for one in made):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped_of(made).items())
        raise UserError(
            f"{table.name}: none of {len(made)} rows tried can be trained on ({why}; data.max_length="
            f"{encoder.max_length}, template {encoder.template_name}); raise data.max_length or set data.overlong=cut"
        )
