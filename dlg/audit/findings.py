"""What the rows of an audit say: a verdict for each defence, and how it compares with the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from dlg.audit.cell_result import CellResult, Scores
from dlg.participant import defenses
from dlg.results.metrics import RECOVERED

# From this PSNR in dB something may be recognised in a picture. Of 200 digits, noise in place of the digit has 7 to
# 15 dB, and a black picture 6 to 16 dB.
VISIBLE_PSNR = 15.0
# The same for SSIM. Noise in place of the digit has at most 0.03. A black picture has 0.03 to 0.59, so that some black
# pictures count as a leak in part. This errs on the side of a warning.
VISIBLE_SSIM = 0.2

# Every verdict, and how the report says it.
VERDICTS = {"leaks": "leaks", "partly": "leaks in part", "stopped": "not recovered", "failed": "could not be run"}

# The sweep of Zhu et al. (2019), section 5. What they give as the noise's variance is taken for its standard deviation.
# Up to this standard deviation, noise does not stop their attack.
_HARMLESS_NOISE = 1e-4
# From this standard deviation on, noise stops it. In between, they recover images with artefacts.
_SUFFICIENT_NOISE = 1e-2
# Up to this fraction, pruning does not stop it.
_HARMLESS_PRUNING = 0.2


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one defence on one network, over all batch sizes and seeds.

    Attributes
    ----------
    network, defense : str
    verdict : str
        A key of `VERDICTS`. The worst cell decides, since one leaked picture
        is a leak.
    images, recovered, labels_right : int
        The number of images, of recovered images, and of images whose label
        was found.
    best_psnr, mean_psnr : float or None
        In dB, infinite where images are equal. These numbers and those below
        are None where every cell failed.
    mean_ssim, relative_error, cosine, epsilon : float or None
        Means over the cells. ε is the same in all.
    attacks : tuple of str
        The attacks that came closest.
    rows : tuple of CellResult
        The cells, including those that failed.
    """

    network: str
    defense: str
    verdict: str
    images: int
    recovered: int
    labels_right: int
    best_psnr: float | None
    mean_psnr: float | None
    mean_ssim: float | None
    relative_error: float | None
    cosine: float | None
    epsilon: float | None
    attacks: tuple[str, ...]
    rows: tuple[CellResult, ...]

    @classmethod
    def of(cls, rows: Sequence[CellResult]) -> Finding:
        """Sum up the rows of one defence on one network."""
        scores = [row.scores for row in rows if row.scores is not None]
        return cls(
            network=rows[0].cell.network,
            defense=rows[0].cell.defense,
            verdict=verdict(scores),
            images=sum(each.images for each in scores),
            recovered=sum(each.images_recovered for each in scores),
            labels_right=sum(each.labels_right for each in scores),
            best_psnr=max((each.best_psnr for each in scores), default=None),
            mean_psnr=_mean(each.mean_psnr for each in scores),
            mean_ssim=_mean(each.mean_ssim for each in scores),
            relative_error=_mean(each.relative_error for each in scores),
            cosine=_mean(each.cosine for each in scores),
            epsilon=_mean(each.epsilon for each in scores),
            attacks=tuple(dict.fromkeys(each.attack for each in scores)),
            rows=tuple(rows),
        )


def findings(rows: Iterable[CellResult]) -> list[Finding]:
    """One finding for each network and defence, in the order of the rows."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for row in rows:
        groups.setdefault((row.cell.network, row.cell.defense), []).append(row)
    return [Finding.of(group) for group in groups.values()]


def verdict(scores: Sequence[Scores]) -> str:
    """The verdict on some cells, a key of `VERDICTS`. The worst cell decides."""
    if not scores:
        return "failed"
    best_psnr = max(each.best_psnr for each in scores)
    if best_psnr >= RECOVERED:
        return "leaks"
    similar = any(each.mean_ssim is not None and each.mean_ssim >= VISIBLE_SSIM for each in scores)
    return "partly" if similar or best_psnr >= VISIBLE_PSNR else "stopped"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclasses.dataclass(frozen=True)
class DefenseSummary:
    """One defence over all networks.

    Attributes
    ----------
    defense : str
    leaks_on : tuple of str
        The networks whose pictures leak.
    leaks_everywhere : bool
        Whether these are all networks.
    least_error, most_error : float or None
        The range of the gradient's relative error over the networks.
    """

    defense: str
    leaks_on: tuple[str, ...]
    leaks_everywhere: bool
    least_error: float | None
    most_error: float | None

    @classmethod
    def of(cls, defense: str, found: Iterable[Finding]) -> DefenseSummary:
        """Sum up the findings of a defence."""
        group = [finding for finding in found if finding.defense == defense]
        errors = [finding.relative_error for finding in group if finding.relative_error is not None]
        return cls(
            defense=defense,
            leaks_on=tuple(finding.network for finding in group if finding.verdict == "leaks"),
            leaks_everywhere=all(finding.verdict == "leaks" for finding in group),
            least_error=min(errors, default=None),
            most_error=max(errors, default=None),
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an audit says as a whole.

    Attributes
    ----------
    undefended : tuple of Finding
        Each network without a defence.
    leaking : tuple of DefenseSummary
        The defences under which a picture leaked on some network.
    partly : tuple of DefenseSummary
        Those under which no picture leaked, and one may be recognised.
    stopped : tuple of DefenseSummary
        Those that stopped the attack on every network.
    failed_cells : int
    labels_right, images : int
        How many labels were found under all defences together, and of how many
        images.
    """

    undefended: tuple[Finding, ...]
    leaking: tuple[DefenseSummary, ...]
    partly: tuple[DefenseSummary, ...]
    stopped: tuple[DefenseSummary, ...]
    failed_cells: int
    labels_right: int
    images: int

    @classmethod
    def of(cls, found: Sequence[Finding]) -> Summary:
        """Sum up all findings."""
        defended = [finding for finding in found if finding.defense != "none"]
        # The verdict of each defence, of its worst network; a defence that could be run nowhere has none.
        worst = {
            name: _worst([finding.verdict for finding in defended if finding.defense == name])
            for name in dict.fromkeys(finding.defense for finding in defended)
        }

        def summaries(verdict: str) -> tuple[DefenseSummary, ...]:
            return tuple(DefenseSummary.of(name, found) for name in worst if worst[name] == verdict)

        return cls(
            undefended=tuple(each for each in found if each.defense == "none" and each.verdict != "failed"),
            leaking=summaries("leaks"),
            partly=summaries("partly"),
            stopped=summaries("stopped"),
            failed_cells=sum(row.error is not None for finding in found for row in finding.rows),
            labels_right=sum(finding.labels_right for finding in defended),
            images=sum(finding.images for finding in defended),
        )


def _worst(verdicts: Sequence[str]) -> str:
    """The worst of some verdicts for the participant, networks that could not be run aside."""
    return next(verdict for verdict in VERDICTS if verdict in verdicts)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What section 5 of Zhu et al. (2019) says of a defence, beside what was found here.

    Attributes
    ----------
    name : str
        The defence in words.
    theirs : str
        What they say of it, in a few words.
    stops : bool
        Whether it stops their attack.
    finding : Finding
        What was found here.
    """

    name: str
    theirs: str
    stops: bool
    finding: Finding

    @property
    def agrees(self) -> bool:
        """Whether pictures leak here where theirs did, and do not leak here where theirs did not."""
        return self.finding.verdict != "failed" and self.stops == (self.finding.verdict == "stopped")


def claims(found: Iterable[Finding]) -> list[Claim]:
    """What the paper says of the defences that were tried, for LeNet, which is the paper's network."""
    result = []
    for finding in found:
        theirs = _their_claim(defenses.parse(finding.defense))
        if finding.network == "lenet" and theirs is not None:
            result.append(Claim(*theirs, finding))
    return result


def _their_claim(defense: defenses.Defense) -> tuple[str, str, bool] | None:
    """What they say of a defence, if anything: its name, their words summed up, and whether it stops their attack."""
    match defense.kind, defense.amount:
        case ("gaussian" | "laplacian") as kind, float(sigma):
            return f"{kind.title()} noise, {sigma:g}", *_their_claim_on_noise(sigma)
        case ("fp16" | "bf16") as kind, _:
            return f"half precision, {kind}", "does not stop it", False
        case "int8", _:
            return "8-bit integers", "stops it, but costs accuracy", True
        case "prune", float(fraction) if fraction <= _HARMLESS_PRUNING:
            return f"pruning, {100 * fraction:g} %", "does not stop it; artefacts at 20 %", False
        case "prune", float(fraction):
            return f"pruning, {100 * fraction:g} %", "stops it", True
    return None


def _their_claim_on_noise(sigma: float) -> tuple[str, bool]:
    if sigma <= _HARMLESS_NOISE:
        return "does not stop it", False
    if sigma < _SUFFICIENT_NOISE:
        return "recovered with artefacts", False
    return "stops it", True
