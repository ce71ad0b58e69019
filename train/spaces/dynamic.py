"""A space of sub-nets: their genes, costs and static architectures.

A sub-net is a row of genes, each the index of a choice. Genes of blocks beyond the depth have no effect and are 0 in
the canonical form, so each sub-net has one encoding. Most functions take many sub-nets at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo.specs import Spec
from zoo.specs.base import Conv
from zoo.system.errors import UsageError, nearest

Genes = np.ndarray  # int64 [n, G]
Values = Mapping[str, float]
Tables = list[tuple[list[int], np.ndarray]]  # for each section its genes, and a value for all their choices


@dataclass(frozen=True)
class Gene:
    """The choices of one property in ascending order; the largest net has the last.

    A gene of block ``block`` has an effect only if the depth of its stage, the gene ``STAGE.depth``, is larger.
    """

    name: str  # such as "stage2.depth", "stage2.block1.expand"
    choices: tuple[float, ...]
    stage: str | None = None
    block: int | None = None


@dataclass(frozen=True)
class Section:
    """A part of the net whose cost depends on a few genes; nets that are not deep enough lack the part of a block."""

    genes: tuple[str, ...]
    stage: str | None = None
    block: int | None = None


@dataclass(frozen=True, eq=False)
class Space:
    """A search space.

    Args:
        sections: one for each of ``spec.sections()`` of the deepest net, in their order.
        architecture: maps the values of all genes, by name, to the static spec of the sub-net.
    """

    name: str
    genes: tuple[Gene, ...]
    sections: tuple[Section, ...]
    architecture: Callable[[Values], Spec]

    # -- sub-nets ----------------------------------------------------------------------------------------------

    @cached_property
    def choices(self) -> np.ndarray:
        """The number of choices of every gene, int64 [G]."""
        return np.array([len(gene.choices) for gene in self.genes])

    @property
    def largest(self) -> Genes:
        """The sub-net with the last choice of every gene, int64 [1, G]."""
        return self.choices[None] - 1

    @property
    def smallest(self) -> Genes:
        """The sub-net with the first choice of every gene, int64 [1, G]."""
        return np.zeros_like(self.largest)

    def size(self) -> int:
        """The number of different sub-nets."""
        own = math.prod(len(gene.choices) for gene in self.genes if gene.stage is None)
        for stage in dict.fromkeys(gene.stage for gene in self.genes if gene.stage is not None):
            of_stage = [gene for gene in self.genes if gene.stage == stage]
            depths = self.genes[self._index[f"{stage}.depth"]].choices
            always = math.prod(len(gene.choices) for gene in of_stage if gene.block is None)
            blocks = [(gene.block, len(gene.choices)) for gene in of_stage if gene.block is not None]
            # ``always`` contains the choices of the depth, each of which has other blocks.
            opened = sum(math.prod(n for block, n in blocks if block < depth) for depth in depths)
            own *= always // len(depths) * opened
        return own

    def sample(self, n: int, rng: np.random.Generator) -> Genes:
        """``n`` sub-nets with uniformly drawn genes."""
        return self.canonical(rng.integers(self.choices, size=(n, len(self.genes))))

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float = 0.1) -> Genes:
        """``genes`` [n, G] with each gene redrawn with probability ``rate``."""
        drawn = rng.integers(self.choices, size=genes.shape)
        return self.canonical(np.where(rng.random(genes.shape) < rate, drawn, genes))

    def canonical(self, genes: Genes) -> Genes:
        """``genes`` [n, G] with 0 for genes without effect."""
        return np.where(self.active(genes), genes, 0)

    def active(self, genes: Genes) -> np.ndarray:
        """Which genes have an effect, bool [n, G]."""
        return self._within_depth(genes, [(gene.stage, gene.block) for gene in self.genes])

    def _within_depth(self, genes: Genes, places: Sequence[tuple[str | None, int | None]]) -> np.ndarray:
        """Whether each sub-net has the block at each of ``places`` (stage, block), bool [n, places]."""
        there = np.ones((len(genes), len(places)), bool)
        for column, (stage, block) in enumerate(places):
            if block is not None:
                gene = self._index[f"{stage}.depth"]
                there[:, column] = np.array(self.genes[gene].choices)[genes[:, gene]] > block
        return there

    # -- conversions -------------------------------------------------------------------------------------------

    def values(self, genes: Genes) -> dict[str, float]:
        """The values of the genes [G] of one sub-net, by name, without genes that have no effect.

        Raises:
            UsageError: the number of genes is wrong, or one is out of range.
        """
        row = np.asarray(genes)
        if row.shape != (len(self.genes),):
            raise UsageError(f"space {self.name} has {len(self.genes)} genes, not an array of shape {list(row.shape)}")
        for gene, choice in zip(self.genes, row.tolist(), strict=True):
            if not 0 <= choice < len(gene.choices):
                raise UsageError(
                    f"gene '{gene.name}' of space {self.name} is {choice}: it must be 0 to {len(gene.choices) - 1}"
                )
        active = self.active(row[None])[0]
        return {
            gene.name: gene.choices[choice]
            for gene, choice, counts in zip(self.genes, row.tolist(), active.tolist(), strict=True)
            if counts
        }

    def genes_of(self, values: Values) -> Genes:
        """The genes [G] with these values; genes without effect may be omitted.

        Raises:
            UsageError: a value is not a choice of its gene, or a gene with an effect has no value.
        """
        unknown = next((name for name in values if name not in self._index), None)
        if unknown is not None:
            raise UsageError(f"space {self.name} has no gene '{unknown}'{nearest(unknown, self._index)}")
        row = np.zeros(len(self.genes), np.int64)
        for index, gene in enumerate(self.genes):
            if gene.name in values:
                if values[gene.name] not in gene.choices:
                    raise UsageError(
                        f"gene '{gene.name}' of space {self.name} cannot be {values[gene.name]:g} "
                        f"(choices: {', '.join(f'{choice:g}' for choice in gene.choices)})"
                    )
                row[index] = gene.choices.index(values[gene.name])
        counts = self.active(row[None])[0]
        for gene, needed in zip(self.genes, counts, strict=True):
            if needed and gene.name not in values:
                raise UsageError(f"gene '{gene.name}' of space {self.name} has no value")
        return self.canonical(row[None])[0]

    def spec(self, genes: Genes) -> Spec:
        """The static architecture of the sub-net ``genes`` [G]; errors as for :meth:`values`."""
        return self.architecture(self.values(genes))

    def encode(self, genes: Genes) -> np.ndarray:
        """One-hot genes, float32 [n, sum of choices]; genes without effect are all zero."""
        hot = [np.eye(n, dtype=np.float32)[genes[:, gene]] for gene, n in enumerate(self.choices)]
        active = self.active(genes)
        return np.concatenate([part * active[:, gene, None] for gene, part in enumerate(hot)], 1)

    # -- cost --------------------------------------------------------------------------------------------------

    def macs(self, genes: Genes) -> np.ndarray:
        """Multiply-accumulates of each sub-net for one image, int64 [n], from a table for each section."""
        return self.summed(self._macs, genes)

    def summed(self, tables: Tables, genes: Genes) -> np.ndarray:
        """The sum of ``tables`` over the sections of each sub-net, [n]."""
        there = self._within_depth(genes, [(section.stage, section.block) for section in self.sections])
        parts = np.zeros(there.shape, tables[0][1].dtype)
        for column, (indices, table) in enumerate(tables):
            parts[:, column] = table[tuple(genes[:, index] for index in indices)]
        return (parts * there).sum(1)

    def tables(self, price: Callable[[Sequence[Conv]], float]) -> Tables:
        """For each section its genes, and the price of its convolutions for all their choices."""
        deepest = {gene.name: gene.choices[-1] for gene in self.genes}
        tables = []
        for place, section in enumerate(self.sections):
            indices = [self._index[name] for name in section.genes]
            shape = [len(self.genes[index].choices) for index in indices]
            prices = []
            for choice in np.ndindex(*shape):
                chosen = [self.genes[index].choices[k] for index, k in zip(indices, choice, strict=True)]
                values = {**deepest, **dict(zip(section.genes, chosen, strict=True))}
                prices.append(price(list(self.architecture(values).sections())[place]))
            tables.append((indices, np.array(prices).reshape(shape)))
        return tables

    @cached_property
    def _macs(self) -> Tables:
        return self.tables(lambda convs: sum(conv.macs for conv in convs))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {gene.name: index for index, gene in enumerate(self.genes)}
