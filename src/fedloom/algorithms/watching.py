"""The figures of pages that average what their clients send as vectors: how far clients drift, what averaging loses."""

from dataclasses import dataclass, field

from torch import Tensor

from fedloom.contracts import Federation, Rule, Term
from fedloom.params import Layout
from fedloom.spaces import terms
from fedloom.spaces.measure import Measured, Sketch


@dataclass
class Watch:
    """One round's. With a layout, whole vectors are seen as the products of their LoRA pairs; else as they are."""

    layout: Layout | None = None
    sketch: Sketch = field(default_factory=Sketch)

    def rule(self, rule: Rule) -> Measured:
        """The rule, watched."""
        return Measured(rule, self.form, self.sketch)

    def form(self, term: Term) -> Term:
        """What was sent, free of gauge."""
        return terms.of(term, self.layout) if self.layout is not None and isinstance(term, Tensor) else term

    def note(self, fed: Federation, before: Tensor, after: Tensor | None = None) -> None:
        """Tell the round's figures: clients that began at `before`, and what their mean became."""
        fed.note(drift=self.sketch.drift(self.form(before)))
        if after is not None and self.layout is not None:
            fed.note(aggregation_error=self.sketch.error(self.form(after)))
