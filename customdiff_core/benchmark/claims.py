"""The paper's claims as sentences, each with what must be measured for it to hold, and a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from customdiff_core import tables
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.history import LOWER_IS_BETTER, METRICS
from customdiff_core.benchmark.summary import Evidence, Figure

Verdict = Literal["holds", "does not hold", "cannot be told at this n", "not measured", "too short to tell"]
HOLDS, FAILS, OPEN, MISSING, SHORT = (
    "holds",
    "does not hold",
    "cannot be told at this n",
    "not measured",
    "too short to tell",
)


@dataclass(frozen=True)
class Wanted:
    """One difference of two rows, and the side of zero on which the claim wants it."""

    metric: str
    row: str
    against: str
    lower: bool = False

    def verdict(self, found: Figure | None, strict: Figure | None = None) -> Verdict:
        """What the interval says; against the claim, what a stricter one does."""
        if found is None:
            return MISSING
        if not found.says:
            return OPEN
        against = strict or found
        low, high = (-found.high, -against.low) if self.lower else (found.low, against.high)
        return HOLDS if low > 0 else FAILS if high < 0 else OPEN


@dataclass(frozen=True)
class Claim:
    """A sentence that holds when every one of its differences lies on the right side."""

    name: str
    sentence: str
    tests: tuple[Wanted, ...]


def _better(metric: str, row: str, *others: str) -> tuple[Wanted, ...]:
    return tuple(Wanted(metric, row, other, metric in LOWER_IS_BETTER) for other in others)


_OTHERS = ("textual-inversion-together", "dreambooth-together", "fine-tune-all-together", "sequential", "merged")
CLAIMS = (
    Claim(
        "words",
        "Custom Diffusion follows the words of a prompt better than Textual Inversion.",
        _better("text_alignment", "custom-diffusion", "textual-inversion"),
    ),
    Claim(
        "words-together",
        "With several concepts in a picture too: trained jointly or merged, it follows the words better than tokens trained apart.",
        (
            *_better("text_alignment", "joint", "textual-inversion-together"),
            *_better("text_alignment", "merged", "textual-inversion-together"),
        ),
    ),
    Claim(
        "forgetting",
        "Custom Diffusion keeps the category better than DreamBooth: its KID is lower.",
        _better("kid", "custom-diffusion", "dreambooth"),
    ),
    Claim(
        "all-weights",
        "Keys and values alone give a better likeness than training the whole network.",
        _better("image_alignment_training", "custom-diffusion", "fine-tune-all"),
    ),
    Claim(
        "joint-best",
        "Of the ways to several concepts, joint training is the best in text alignment and in image alignment.",
        (
            *_better("text_alignment", "joint", *_OTHERS),
            *_better("image_alignment_training", "joint", *_OTHERS),
        ),
    ),
    Claim(
        "sequential-first",
        "Sequential training is weaker than joint training on the concept that it was taught first.",
        (Wanted("image_alignment_1", "sequential", "joint", lower=True),),
    ),
    Claim(
        "regularization",
        "Regularization images keep the category: KID is lower with them than without.",
        _better("kid", "custom-diffusion", "unregularized"),
    ),
    Claim(
        "share",
        "Custom Diffusion trains a smaller share of the network than DreamBooth.",
        (Wanted("trained_share", "custom-diffusion", "dreambooth", lower=True),),
    ),
)


def judged(evidence: Evidence, *, verdicts: bool) -> list[tables.Row]:
    """One row a difference of a claim: its interval, the paper's difference, its verdict and that of the whole claim.

    A claim of several differences holds when all of them do (an intersection-union test: no correction for their number is
    needed), and does not when one does not: that one of m is wrong by chance is likelier, so that each is then judged by an
    interval with a m-th of the error (Bonferroni).
    """
    found: list[tables.Row] = []
    for claim in CLAIMS:
        count = len(claim.tests)
        figures = [evidence.difference(test.metric, test.row, test.against) for test in claim.tests]
        strict = figures
        if count > 1:
            strict = [evidence.difference(test.metric, test.row, test.against, tests=count) for test in claim.tests]
        each: list[Verdict] = [test.verdict(*found) for test, *found in zip(claim.tests, figures, strict, strict=True)]
        whole = overall(each) if verdicts else SHORT
        for test, figure, verdict in zip(claim.tests, figures, each, strict=True):
            found.append(
                {
                    "claim": claim.name,
                    "sentence": claim.sentence,
                    "verdict": whole,
                    "metric": test.metric,
                    "title": METRICS.get(test.metric, "Share of weights trained"),
                    "row": test.row,
                    "against": test.against,
                    "test": verdict if verdicts else SHORT,
                    "paper": published_difference(test, evidence.beside),
                    **(vars(figure) if figure else dict.fromkeys(Figure.__dataclass_fields__, float("nan"))),
                }
            )
    return found


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim by those of its differences."""
    for decisive in (FAILS, MISSING, OPEN):
        if decisive in verdicts:
            return decisive
    return HOLDS


def published_difference(test: Wanted, source: rows.Source) -> float:
    """The same difference of published figures; NaN where there are none."""
    return rows.get(test.row).figure(source, test.metric) - rows.get(test.against).figure(source, test.metric)
