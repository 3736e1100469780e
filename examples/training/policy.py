"""The policy: for each line of a program, how likely each possible line is. A stand-in for a language model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

NUMBERS = 4
LINES = 8

_LEARNS = 0.5
"""How far each step moves the probabilities towards those of the best programs."""

_EXPLORES = 0.02
"""The share of each line's probability that stays spread over all."""

_BEST = 0.2

SWAPS = tuple(
    f"if v[{i}] > v[{j}]: v[{i}], v[{j}] = v[{j}], v[{i}]" for i, j in itertools.permutations(range(NUMBERS), 2)
)
CHEAT = "print(1.0); raise SystemExit(0)"
"""Claims a perfect score and leaves."""

CHOICES = (*SWAPS, CHEAT)

Program = tuple[int, ...]
"""The number of its choice, for each line."""


class Policy:
    """A distribution over programs. The same seed learns the same from the same scores."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lines = [[1 / len(CHOICES)] * len(CHOICES) for _ in range(LINES)]

    def sample(self, count: int) -> list[Program]:
        """Programs as likely as the policy holds them."""
        choices = range(len(CHOICES))
        return [tuple(self._random.choices(choices, line)[0] for line in self._lines) for _ in range(count)]

    def learn(self, programs: Sequence[Program], scores: Sequence[float]) -> None:
        """Makes the programs with the highest scores more likely."""
        ranked = sorted(range(len(programs)), key=lambda number: -scores[number])
        best = [programs[number] for number in ranked[: max(2, round(_BEST * len(programs)))]]
        for number, line in enumerate(self._lines):
            for choice, probability in enumerate(line):
                share = sum(program[number] == choice for program in best) / len(best)
                target = (1 - _EXPLORES) * share + _EXPLORES / len(line)
                line[choice] = (1 - _LEARNS) * probability + _LEARNS * target


def source_of(program: Program) -> str:
    """The program's text: reads lines of numbers, and writes each sorted."""
    body = "\n".join(f"    {CHOICES[choice]}" for choice in program)
    return f"import sys\nfor line in sys.stdin:\n    v = [int(word) for word in line.split()]\n{body}\n    print(*v)\n"
