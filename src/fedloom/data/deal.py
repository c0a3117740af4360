"""The ways to deal rows to clients; each takes rows (or rows by category) and returns one list of rows per client.

All draws come from the generator given; nothing depends on hashing or on what ran before. Sources: Dirichlet over
categories, Hsu et al. 2019 (arXiv 1909.06335); shards, McMahan et al. 2017 (arXiv 1602.05629); quantity skew, Li et al.
2022 (arXiv 2102.02079).
"""

import heapq
import random
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeVar

from fedloom.errors import UserError

K = TypeVar("K", bound=Hashable)
Held = list[list[int]]

_DRAWS: Final = 20  # draws of proportions before rows are moved to reach the smallest size


def iid(rows: Sequence[int], clients: int, draw: random.Random) -> Held:
    """Shuffled and dealt out like cards: sizes differ by at most one."""
    order = draw.sample(rows, len(rows))
    return [order[i::clients] for i in range(clients)]


def quantity(
    rows: Sequence[int], clients: int, alpha: float, min_size: int, draw: random.Random
) -> tuple[Held, list[str]]:
    """Sizes follow Dirichlet(alpha), content does not."""
    return dirichlet({"": list(rows)}, clients, alpha, min_size, draw, method="quantity")


def dirichlet(
    groups: Mapping[str, Sequence[int]],
    clients: int,
    alpha: float,
    min_size: int,
    draw: random.Random,
    method: str = "dirichlet",
) -> tuple[Held, list[str]]:
    """Each category is cut by proportions from Dirichlet(alpha).

    Proportions are drawn until every client has `min_size` rows, at most 20 times; then the draw that came nearest is
    repaired: the largest client gives rows to the smallest until all have enough. So it always ends.

    Raises:
        UserError: there are fewer than clients * min_size rows.
    """
    total = sum(len(group) for group in groups.values())
    if total < clients * min_size:
        raise UserError(
            f"partition.min_size={min_size} for {clients} clients needs {clients * min_size} rows, and there "
            f"are {total}; take fewer clients or a smaller min_size"
        )
    best: Held = []
    for _ in range(_DRAWS):
        held: Held = [[] for _ in range(clients)]
        for group in groups.values():
            order = draw.sample(group, len(group))
            for client, part in enumerate(_cut(order, _proportions(clients, alpha, draw))):
                held[client] += part
        if not best or min(map(len, held)) > min(map(len, best)):
            best = held
        if min(map(len, best)) >= min_size:
            return best, []
    moved = _level(best, min_size, draw)
    note = f"{method}: {moved} of {total} rows moved from the largest clients so that all have min_size={min_size}"
    return best, [note]


def category(
    groups: Mapping[str, Sequence[int]], clients: int, per_client: int, draw: random.Random
) -> tuple[Held, list[str]]:
    """Whole categories, in order of appearance.

    With C categories, N clients and m = `per_client`:
    C >= N m: category j goes to client j mod N, whole, so that some clients hold more than m where C > N m.
    C < N m: client i holds the m categories from its place in the ring of categories on, the place being i mod C
    (N >= C) or floor(i C / N) (N < C). A category held by several is divided evenly among them. N = C, m = 2 is the
    ring: client i holds i and i + 1, every category is halved.

    Raises:
        UserError: fewer than `per_client` categories.
    """
    names = list(groups)
    count = len(names)
    if per_client > count:
        raise UserError(f"partition.per_client={per_client} categories cannot be held: the rows have {count}")
    holders: list[list[int]] = [[] for _ in names]
    if count >= clients * per_client:
        for j in range(count):
            holders[j].append(j % clients)
    else:
        for i in range(clients):
            start = i % count if clients >= count else i * count // clients
            for k in range(per_client):
                holders[(start + k) % count].append(i)
    held: Held = [[] for _ in range(clients)]
    for name, owners in zip(names, holders, strict=True):
        order = draw.sample(groups[name], len(groups[name]))
        for place, client in enumerate(owners):
            held[client] += order[place :: len(owners)]
    most = -(-count // clients)
    over = count > clients * per_client
    note = f"category: {count} categories for {clients} clients, up to {most} each (partition.per_client={per_client})"
    return held, [note] if over else []


def shards(groups: Mapping[str, Sequence[int]], clients: int, per_client: int, draw: random.Random) -> Held:
    """Rows sorted by category, cut into clients * per_client equal shards, dealt at random.

    Raises:
        UserError: fewer rows than shards.
    """
    order = [row for name in sorted(groups) for row in draw.sample(groups[name], len(groups[name]))]
    count = clients * per_client
    if len(order) < count:
        raise UserError(
            f"{clients} clients with partition.per_client={per_client} shards need {count} rows, and there are "
            f"{len(order)}; take fewer of either"
        )
    cuts = [i * len(order) // count for i in range(count + 1)]
    dealt = draw.sample(range(count), count)
    mine = [dealt[i * per_client : (i + 1) * per_client] for i in range(clients)]
    return [[row for s in own for row in order[cuts[s] : cuts[s + 1]]] for own in mine]


def quotas(
    weights: Mapping[K, int],
    total: int,
    most: Mapping[K, int] | None,
    draw: random.Random,
    held: Mapping[K, int] | None = None,
) -> dict[K, int]:
    """`total` divided in proportion to the weights, by largest remainder.

    Args:
        weights: positive whole numbers.
        total: what is divided.
        most: no more than this for each; what cannot be placed is left over.
        draw: decides between equal remainders, after `held`.
        held: what each has so far; among equal remainders the one with less comes first.
    """
    whole = sum(weights.values())
    parts = {key: total * weight // whole for key, weight in weights.items()}
    limit = {key: total if most is None else most[key] for key in weights}
    parts = {key: min(part, limit[key]) for key, part in parts.items()}
    remainder = {key: total * weight % whole for key, weight in weights.items()}
    ties = draw.sample(range(len(weights)), len(weights))
    has = held or {}
    order = sorted(zip(weights, ties, strict=True), key=lambda kt: (-remainder[kt[0]], has.get(kt[0], 0), kt[1]))
    left = total - sum(parts.values())
    while left > 0 and any(parts[key] < limit[key] for key in weights):
        for key, _ in order:
            if left > 0 and parts[key] < limit[key]:
                parts[key] += 1
                left -= 1
    return parts


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts site-2 before site-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _proportions(count: int, alpha: float, draw: random.Random) -> list[float]:
    """One draw from Dirichlet(alpha, ..., alpha)."""
    weights = [draw.gammavariate(alpha, 1.0) for _ in range(count)]
    total = sum(weights)
    if total == 0.0:  # a very small alpha underflows everywhere; its limit is all for one
        lucky = draw.randrange(count)
        return [float(i == lucky) for i in range(count)]
    return [weight / total for weight in weights]


def _cut(rows: Sequence[int], proportions: Sequence[float]) -> Held:
    ends = [min(len(rows), int(share * len(rows))) for share in accumulate(proportions)]
    ends[-1] = len(rows)
    return [list(rows[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _level(held: Held, min_size: int, draw: random.Random) -> int:
    """Move rows in place from the largest clients to those below `min_size`; returns how many were moved."""
    for rows in held:
        draw.shuffle(rows)
    moved = 0
    largest = [(-len(rows), i) for i, rows in enumerate(held)]
    heapq.heapify(largest)
    for needy in held:
        while len(needy) < min_size:
            size, giver = heapq.heappop(largest)
            if -size != len(held[giver]):  # was itself filled up in the meantime
                heapq.heappush(largest, (-len(held[giver]), giver))
                continue
            needy.append(held[giver].pop())
            heapq.heappush(largest, (size + 1, giver))
            moved += 1
    return moved
