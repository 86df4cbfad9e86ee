"""Count the votes of a preference study (PITI, table 2); `piti.evaluation.preference.study` creates its page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from piti.core.errors import option
from piti.core.files import whole_file
from piti.core.seeding import generator_for
from piti.evaluation.intervals import wilson
from piti.evaluation.preference.votes import Key, StudyError, Vote, Votes, read_study

_FEW_RATERS = 5
_SUSPECT = 0.01  # p of the share of sides below which raters are reported


@dataclass(frozen=True)
class Rater:
    """Answers of one rater."""

    name: str
    id: str
    file: str
    votes: int
    """Pairs answered, each once."""
    rate: float | None
    """Share of A, as in `Preference`; None if nothing was counted."""
    repeats: int
    consistent: int
    """Number of repeated pairs, and of those with the same answer."""
    left: int
    decided: int
    """Number of answers for the left image, and for either, including repeats."""
    seconds: float
    """Median time per answer."""


@dataclass(frozen=True)
class Preference:
    """Preference for A over B. Repeated pairs count once, by their first answer."""

    rate: float
    low: float
    high: float
    interval: str
    """Description of `low` and `high`."""
    votes: int
    """Answers in `rate`."""
    wins_a: int
    wins_b: int
    ties: int
    ties_are: str
    """Description of how `rate` counts no preference."""
    pairs: int
    """Pairs with an answer in `rate`."""
    pairs_in_study: int
    raters: int
    wilson: tuple[float, float]
    bootstrap: tuple[float, float] | None
    """Over raters and pairs; None for one rater."""
    p_value: float
    """p-value of the sign test: A and B are equally preferred."""
    p_value_of: str
    """Description of the sign test's units."""
    consistency: float | None
    """Share of repeated pairs with the same answer, over all raters; None without repeats."""
    left: float | None
    """Share of the decided answers for the left image."""
    a: str
    b: str
    question: str
    study: str
    per_rater: tuple[Rater, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON types)."""
        return asdict(self)

    def write(self, path: Path, overwrite: bool = False) -> None:
        """Write JSON atomically. Raises OutputError."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        with whole_file(path, overwrite, option("json")) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def rows(self) -> list[dict[str, str]]:
        """Rows of a table of the results."""
        repeats = sum(rater.repeats for rater in self.per_rater)
        values = {
            "question": self.question,
            "A": self.a,
            "B": self.b,
            "A preferred": f"{self.rate:.1%}  [{self.low:.1%}, {self.high:.1%}]  95% interval, {self.interval}",
            "votes": f"{self.wins_a} for A, {self.wins_b} for B, {self.ties} without preference ({self.ties_are})",
            "raters, pairs": f"{self.raters}, {self.pairs} of {self.pairs_in_study}",
            "sign test": f"p = {self.p_value:.3g}, two-sided, {self.p_value_of}",
            "consistency": f"{_share(self.consistency)} of {repeats} repeated pairs",
            "left picture": _share(self.left),
        }
        return [{"": what, "value": value} for what, value in values.items()]

    def rater_rows(self) -> list[dict[str, str]]:
        """A table with a row for each rater."""
        return [
            {
                "rater": rater.name,
                "pairs": str(rater.votes),
                "A preferred": _share(rater.rate),
                "consistent": f"{rater.consistent} of {rater.repeats}" if rater.repeats else "-",
                "left": _share(rater.left / rater.decided if rater.decided else None),
                "seconds": f"{rater.seconds:.1f}",
            }
            for rater in self.per_rater
        ]

    def __str__(self) -> str:
        return (
            f"A is preferred over B in {self.rate:.1%} of {self.votes} votes, "
            f"95% interval {self.low:.1%} to {self.high:.1%} ({self.interval}), p = {self.p_value:.3g}"
        )


def count_votes(
    files: Sequence[Path], key: Path | None = None, ties_half: bool = True, draws: int = 4000, seed: int = 0
) -> Preference:
    """The preference for A over B in the votes of one study, with its interval.

    files: votes files or folders of them, optionally with the key, which otherwise is `key` or beside them. ties_half:
    count no preference as half a vote for each, instead of ignoring it. draws, seed: of the bootstrap. The interval is
    Wilson's for one rater; for several it is a bootstrap over raters and pairs, unless all votes agree, in which case
    that has no width. Raises StudyError (files of other studies, of one rater, changed or damaged; no votes).
    """
    found, by_file = read_study(files, key)
    votes = list(by_file.values())
    scores = _scores(votes, found, ties_half)  # [R, P]
    rated = _rated(scores, draws, seed)
    wins_a, wins_b, ties = _counts(votes, found)
    p_value, p_value_of = _tested(votes, found)
    raters = tuple(_rater(path, one, row) for (path, one), row in zip(by_file.items(), scores, strict=True))
    return Preference(
        **rated._asdict(),
        wins_a=wins_a,
        wins_b=wins_b,
        ties=ties,
        ties_are="each half a vote for both" if ties_half else "left out",
        pairs_in_study=len(found.pairs),
        raters=len(votes),
        p_value=p_value,
        p_value_of=p_value_of,
        consistency=_ratio(sum(r.consistent for r in raters), sum(r.repeats for r in raters)),
        left=_ratio(sum(r.left for r in raters), sum(r.decided for r in raters)),
        a=found.a,
        b=found.b,
        question=found.question,
        study=found.study,
        per_rater=raters,
        notes=tuple(_notes(raters, found)),
    )


class _Rated(NamedTuple):
    """Fields of `Preference` that follow from the scores alone."""

    rate: float
    low: float
    high: float
    interval: str
    votes: int
    pairs: int
    wilson: tuple[float, float]
    bootstrap: tuple[float, float] | None


def _rated(scores: Float[Tensor, "R P"], draws: int, seed: int) -> _Rated:
    """The rate and its intervals. Raises StudyError if there is no score."""
    counted = int((~scores.isnan()).sum())
    if not counted:
        raise StudyError("no vote states a preference, and such votes are ignored; count them as halves")
    total, pairs = float(scores.nansum()), int((~scores.isnan()).any(dim=0).sum())
    by_votes = wilson(total, counted)
    by_draws = _bootstrap(scores, draws, seed) if len(scores) > 1 else None
    ends, interval = by_votes, "Wilson's, over votes"
    if by_draws is not None and by_draws[0] < by_draws[1]:
        ends, interval = by_draws, "bootstrap over raters and pairs"
    return _Rated(total / counted, *ends, interval, counted, pairs, by_votes, by_draws)


def sign_test(wins_a: int, wins_b: int) -> float:
    """Two-sided exact p-value that A and B win equally often; 1 if neither ever wins."""
    count = wins_a + wins_b
    ways = tail = 1
    for k in range(min(wins_a, wins_b)):
        ways = ways * (count - k) // (k + 1)  # number of ways to choose k + 1 of them
        tail += ways
    return min(1.0, 2 * tail / 2**count)


def _bootstrap(scores: Float[Tensor, "R P"], draws: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of the mean score, with both raters and pairs resampled (pigeonhole bootstrap, Owen
    2007).

    scores: NaN where a rater did not answer a pair. Draws without any vote are skipped.
    """
    generator = generator_for(seed, "preference")
    there = (~scores.isnan()).double()
    raters = _drawn(draws, scores.shape[0], generator)  # [D, R]
    pairs = _drawn(draws, scores.shape[1], generator)  # [D, P]
    wins = ((raters @ scores.nan_to_num()) * pairs).sum(dim=1)
    counts = ((raters @ there) * pairs).sum(dim=1)
    rates = (wins / counts)[counts > 0]
    if not len(rates):
        return 0.0, 1.0
    low, high = rates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _drawn(draws: int, count: int, generator: torch.Generator) -> Float[Tensor, "D N"]:
    """How often each of `count` items occurs in `count` draws with replacement."""
    picks = torch.randint(count, (draws, count), generator=generator)
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, picks, torch.ones(draws, count).double())


def _firsts(votes: Votes) -> list[Vote]:
    return [vote for vote in votes.votes if not vote.repeat]


def _scores(votes: Sequence[Votes], key: Key, ties_half: bool) -> Float[Tensor, "R P"]:
    """1 if a rater chose A, 0 for B, 0.5 (or NaN) for no preference, NaN for no answer."""
    column = {pair.id: index for index, pair in enumerate(key.pairs)}
    ours = {pair.a for pair in key.pairs}
    scores = torch.full((len(votes), len(column)), math.nan, dtype=torch.float64)
    for row, one in enumerate(votes):
        for vote in _firsts(one):
            tie = 0.5 if ties_half else math.nan
            scores[row, column[vote.pair]] = tie if vote.chosen is None else float(vote.chosen in ours)
    return scores


def _counts(votes: Sequence[Votes], key: Key) -> tuple[int, int, int]:
    """Votes for A, for B, and for neither."""
    scores = _scores(votes, key, ties_half=True)
    return int((scores == 1).sum()), int((scores == 0).sum()), int((scores == 0.5).sum())


def _tested(votes: Sequence[Votes], key: Key) -> tuple[float, str]:
    """The sign test over independent units, and a description of these."""
    if len(votes) == 1:
        wins_a, wins_b, _ = _counts(votes, key)
        return sign_test(wins_a, wins_b), "over votes that have a preference"
    margin = (_scores(votes, key, ties_half=True) - 0.5).nan_to_num().sum(dim=0)  # [P]
    wins_a, wins_b = int((margin > 0).sum()), int((margin < 0).sum())
    return sign_test(wins_a, wins_b), f"over pairs, each by its majority ({wins_a} for A, {wins_b} for B)"


def _rater(path: Path, votes: Votes, scores: Float[Tensor, " P"]) -> Rater:
    firsts = {vote.pair: vote.chosen for vote in _firsts(votes)}
    repeats = [vote for vote in votes.votes if vote.repeat]
    decided = [vote for vote in votes.votes if vote.chosen is not None]
    rate = float(scores.nanmean())
    return Rater(
        name=votes.label,
        id=votes.rater,
        file=str(path),
        votes=len(firsts),
        rate=None if math.isnan(rate) else rate,
        repeats=len(repeats),
        consistent=sum(vote.chosen == firsts[vote.pair] for vote in repeats),
        left=sum(vote.chosen == vote.left for vote in decided),
        decided=len(decided),
        seconds=float(torch.tensor([vote.seconds for vote in votes.votes], dtype=torch.float64).quantile(0.5)),
    )


def _notes(raters: Sequence[Rater], key: Key) -> list[str]:
    """Notes on the reliability of the rate."""
    found = []
    if len(raters) == 1:
        found.append("one rater: the interval is about this rater's preference, not that of others")
    elif len(raters) < _FEW_RATERS:
        found.append(f"{len(raters)} raters: the interval is rough; ask at least {_FEW_RATERS}")
    names = [rater.name for rater in raters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found.append(f"{', '.join(twice)}: several files have this name; make sure that they are from different people")
    for rater in raters:
        if rater.votes < len(key.pairs):
            found.append(f"{rater.name} answered {rater.votes} of {len(key.pairs)} pairs")
        if rater.repeats > 1 and 2 * rater.consistent < rater.repeats:
            found.append(
                f"{rater.name} gave the same answer again for {rater.consistent} of {rater.repeats} repeated pairs, "
                "fewer than by chance"
            )
        if sign_test(rater.left, rater.decided - rater.left) < _SUSPECT:
            found.append(f"{rater.name} chose the left picture {rater.left} of {rater.decided} times")
    return found


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
