"""Numbers that depend on batch and sequence length, kept exactly. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

Term = tuple[int, int]
Point = tuple[int, int]

POINTS: tuple[Point, ...] = tuple((batch, seq) for batch in (2, 3) for seq in (2, 3, 4))
CHECK: Point = (5, 7)
_NONE: Mapping[Term, Fraction] = MappingProxyType({})


@dataclass(frozen=True)
class Polynomial:
    """Sum of `coefficient * batch**i * seq**j`, i to 1 and j to 2.

    Attributes:
        terms: coefficient by (i, j); none of them is 0.
    """

    terms: Mapping[Term, Fraction] = field(default_factory=lambda: _NONE)

    def __call__(self, batch: int, seq: int) -> int:
        """Its value."""
        return int(sum(c * batch**i * seq**j for (i, j), c in self.terms.items()))

    def __add__(self, other: "Polynomial") -> "Polynomial":
        """The sum of two."""
        keys = {*self.terms, *other.terms}
        found = {key: self.terms.get(key, 0) + other.terms.get(key, 0) for key in sorted(keys)}
        return Polynomial({key: Fraction(c) for key, c in found.items() if c})

    def scaled(self, factor: int) -> "Polynomial":
        """Every coefficient times a factor."""
        return Polynomial({key: factor * c for key, c in self.terms.items()})

    def __bool__(self) -> bool:
        """Tell if it is more than 0."""
        return bool(self.terms)

    def __str__(self) -> str:
        """Such as `84934656 batch seq + 18432 batch seq^2`; `0` for nothing."""
        return " + ".join(_term(*key, c) for key, c in sorted(self.terms.items())) or "0"


def total(polynomials: Iterable[Polynomial]) -> Polynomial:
    """The sum of all."""
    return sum(polynomials, Polynomial())


def constant(value: int) -> Polynomial:
    """One that depends on nothing."""
    return Polynomial({(0, 0): Fraction(value)} if value else {})


def fit(value: Callable[[Point], int]) -> Polynomial | None:
    """The polynomial with the given values at `POINTS`; None if it is another at `CHECK`.

    Two batch sizes and three lengths determine the six coefficients: quadratics in the length by
    finite differences, and a line in the batch through each of their coefficients.
    """
    low, high = (_quadratic(*(value((batch, seq)) for seq in (2, 3, 4))) for batch in (2, 3))
    terms: dict[Term, Fraction] = {}
    for power, (at_2, at_3) in enumerate(zip(low, high, strict=True)):
        terms |= {(0, power): at_2 - 2 * (at_3 - at_2), (1, power): at_3 - at_2}
    found = Polynomial({key: c for key, c in sorted(terms.items()) if c})
    return found if found(*CHECK) == value(CHECK) else None


def _quadratic(at_2: int, at_3: int, at_4: int) -> tuple[Fraction, Fraction, Fraction]:
    """Coefficients of x**0, x**1 and x**2 through the values at 2, 3 and 4."""
    square = Fraction(at_4 - 2 * at_3 + at_2, 2)
    linear = at_3 - at_2 - 5 * square
    return at_2 - 2 * linear - 4 * square, linear, square


def _term(batch_power: int, seq_power: int, coefficient: Fraction) -> str:
    powers = [("batch", batch_power), ("seq", seq_power)]
    names = [name if power == 1 else f"{name}^{power}" for name, power in powers if power]
    return " ".join([str(coefficient), *names])
