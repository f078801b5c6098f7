"""What the rows of an audit say: what leaked under each defence, and how that compares with the paper's findings."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dlg import defenses
from dlg.attack.verdict import EXPLAINED
from dlg.audit.cell_result import CellResult
from dlg.results.metrics import RECOVERED

# From this PSNR in dB something may be recognised in a picture. Of 200 digits, noise in place of the digit has 7 to
# 15 dB, and a black picture 6 to 16 dB.
VISIBLE_PSNR = 15.0
# The same for SSIM. Noise in place of the digit has at most 0.03. A black picture has 0.03 to 0.59, so that some black
# pictures count as a leak in part. This errs on the side of a warning.
VISIBLE_SSIM = 0.2

# On fewer seeds than this, no defence is said to stop the leak. Of 5 seeds without a leak, the rate of leaks is up to
# 43 %, by Wilson's interval at 95 %.
LEAST_SEEDS = 5

# Up to this share of the batch's numbers may be determined by gradients that are said to hide it. Where they determine
# more, that the attack found another batch is the attack's shortcoming.
_HIDDEN_RANK = 0.5

# The attack, a key of `dlg.audit.attacks.ATTACKS`, without which nothing is said to be hidden.
STRONGEST = "auto"

# What decided where the pixels that a gradient depends on came back, and the others are open.
SEEN_PIXELS = "PSNR of the pixels that a gradient depends on"

# What may have leaked, and how the report says it, the worst for the participant first. Only the last two say that the
# attack worked and that the pictures stayed hidden. After an attack that failed, nothing is known.
LEAKS = {
    "leaks": "leaks",
    "partly": "leaks in part",
    "unknown": "the attack failed: nothing is known",
    "not_run": "could not be run",
    "not_recovered": "not recovered",
    "stops": "stops these attacks",
}

# The sweep of Zhu et al. (2019), section 5. What they give as the noise's variance is taken for its standard deviation.
# Up to this standard deviation, noise does not stop their attack.
_HARMLESS_NOISE = 1e-4
# From this standard deviation on, noise stops it. In between, they recover images with artefacts.
_SUFFICIENT_NOISE = 1e-2
# Up to this fraction, pruning does not stop it.
_HARMLESS_PRUNING = 0.2


@dataclasses.dataclass(frozen=True)
class Leak:
    """What leaked in some cells.

    Attributes
    ----------
    kind : str
        A key of `LEAKS`.
    decided_by : str
        What decided so: "PSNR", "SSIM", "the attack's verdict", "another batch"
        with a reason, "an error", `SEEN_PIXELS`, or "PSNR and SSIM". "oracle's" before it says
        that the attacker took another answer, and that only the oracle's shows it.
    """

    kind: str
    decided_by: str

    @property
    def is_seen(self) -> bool:
        """Whether something leaked that can be seen in a picture."""
        return self.kind in ("leaks", "partly")


def leak_of(rows: Iterable[CellResult]) -> Leak:
    """What leaked in some cells. The worst cell decides, and in it the best picture: one leaked picture is a leak.

    A cell whose attack failed, or whose strongest attack could not be run, is
    worse than one whose pictures the attack did not recover: nothing is known of
    it. So is a cell that could not be run. What
    only the oracle's choice of the attack shows counts too: an attacker may look
    at the answers of all attacks, and would know a picture.
    """
    rows = list(rows)
    scores = [row.scores for row in rows if row.scores is not None]
    best_psnr = max((each.best_psnr for each in scores), default=-math.inf)
    oracle_psnr = max((each.oracle_best_psnr for each in scores), default=-math.inf)
    for psnr, kind in ((RECOVERED, "leaks"), (VISIBLE_PSNR, "partly")):
        if best_psnr >= psnr:
            return Leak(kind, "PSNR")
        if oracle_psnr >= psnr:
            return Leak(kind, "oracle's PSNR")
    if any(each.best_ssim is not None and each.best_ssim >= VISIBLE_SSIM for each in scores):
        return Leak("partly", "SSIM")
    if any(each.oracle_best_ssim is not None and each.oracle_best_ssim >= VISIBLE_SSIM for each in scores):
        return Leak("partly", "oracle's SSIM")
    if any(each.seen_psnr is not None and each.seen_psnr >= VISIBLE_PSNR for each in scores):
        # Every second pixel of a picture shows it, though the mean over all pixels does not.
        return Leak("partly", SEEN_PIXELS)
    if not all(each.is_explained for each in scores):
        return Leak("unknown", "the attack's verdict")
    if any(STRONGEST not in each.attacks for each in scores):
        return Leak("unknown", "an error: the strongest attack could not be run")
    if any(each.verdict == EXPLAINED for each in scores):
        # Other pictures match, and none near them does, so the network takes batches that are far apart for the same.
        # That says of no defence that it hides pictures.
        return Leak("unknown", "another batch, which the attack took for the true one")
    if any(each.rank is None for each in scores):
        return Leak("unknown", "another batch, and how much of the true one the gradients determine is not known")
    if any(each.rank is not None and each.rank > _HIDDEN_RANK * each.size for each in scores):
        return Leak("unknown", "another batch, though the gradients determine most of the true one")
    if len(scores) < len(rows) or not rows:
        return Leak("not_run", "an error")
    return Leak("not_recovered", "PSNR and SSIM")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one defence on one network, over all batch sizes and seeds.

    Attributes
    ----------
    network, defense : str
    leak : Leak
    seeds : int
        How many seeds were run of each batch size, the least number.
    images, recovered, oracle_recovered, labels_right : int
        The number of images, of recovered images, of those that the oracle's
        choice recovers, and of images whose label was found.
    best_psnr, mean_psnr, oracle_mean_psnr : float or None
        In dB, infinite where images are equal. These numbers and those below
        are None where no cell could be run.
    best_ssim, mean_ssim, relative_error, cosine, epsilon : float or None
        The means are over the cells. ε is the same in all.
    attacks : tuple of str
        The attacks whose answers an attacker takes.
    verdicts : dict of str to int
        How often each verdict was given on them; see `dlg.dlg.Reconstruction`.
    rows : tuple of CellResult
        The cells, including those that could not be run.
    """

    network: str
    defense: str
    leak: Leak
    seeds: int
    images: int
    recovered: int
    oracle_recovered: int
    labels_right: int
    best_psnr: float | None
    mean_psnr: float | None
    oracle_mean_psnr: float | None
    best_ssim: float | None
    mean_ssim: float | None
    relative_error: float | None
    cosine: float | None
    epsilon: float | None
    attacks: tuple[str, ...]
    verdicts: dict[str, int]
    rows: tuple[CellResult, ...]

    @classmethod
    def of(cls, rows: Sequence[CellResult]) -> Finding:
        """Sum up the rows of one defence on one network."""
        scores = [row.scores for row in rows if row.scores is not None]
        return cls(
            network=rows[0].cell.network,
            defense=rows[0].cell.defense,
            leak=leak_of(rows),
            seeds=_least_seeds(rows),
            images=sum(each.images for each in scores),
            recovered=sum(each.images_recovered for each in scores),
            oracle_recovered=sum(each.oracle_images_recovered for each in scores),
            labels_right=sum(each.labels_right for each in scores),
            best_psnr=max((each.best_psnr for each in scores), default=None),
            mean_psnr=_mean(each.mean_psnr for each in scores),
            oracle_mean_psnr=_mean(each.oracle_mean_psnr for each in scores),
            best_ssim=max((each.best_ssim for each in scores if each.best_ssim is not None), default=None),
            mean_ssim=_mean(each.mean_ssim for each in scores),
            relative_error=_mean(each.relative_error for each in scores),
            cosine=_mean(each.cosine for each in scores),
            epsilon=_mean(each.epsilon for each in scores),
            attacks=tuple(dict.fromkeys(each.attack for each in scores)),
            verdicts=dict(collections.Counter(each.verdict for each in scores)),
            rows=tuple(rows),
        )

    @property
    def errors(self) -> tuple[str, ...]:
        """Why cells could not be run, one for each of them."""
        return tuple(row.error for row in self.rows if row.error is not None)


def findings(rows: Iterable[CellResult]) -> list[Finding]:
    """One finding for each network and defence, in the order of the rows.

    A defence is said to stop the attacks where no picture leaked on
    `LEAST_SEEDS` seeds or more of each batch size, the attacks found other
    pictures that explain the gradients, and pictures of each of these batch
    sizes do leak without a defence.
    """
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for row in rows:
        groups.setdefault((row.cell.network, row.cell.defense), []).append(row)
    found = [Finding.of(group) for group in groups.values()]
    return [_stopping(each) if _stops(each, found) else each for each in found]


def is_comparable(finding: Finding, found: Iterable[Finding]) -> bool:
    """Whether a picture leaked without a defence, at each batch size of a finding."""
    undefended = {
        row.cell.batch_size
        for each in found
        if (each.network, each.defense) == (finding.network, "none")
        for row in each.rows
        if leak_of([row]).kind == "leaks"
    }
    return {row.cell.batch_size for row in finding.rows} <= undefended


def _stops(finding: Finding, found: Sequence[Finding]) -> bool:
    hidden = finding.leak.kind == "not_recovered" and finding.seeds >= LEAST_SEEDS
    return hidden and is_comparable(finding, found)


def _stopping(finding: Finding) -> Finding:
    return dataclasses.replace(finding, leak=dataclasses.replace(finding.leak, kind="stops"))


def _least_seeds(rows: Iterable[CellResult]) -> int:
    """The least number of seeds that a batch size has scores of."""
    seeds: dict[int, set[int]] = {}
    for row in rows:
        found = seeds.setdefault(row.cell.batch_size, set())
        if row.scores is not None:
            found.add(row.cell.seed)
    return min(map(len, seeds.values()))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclasses.dataclass(frozen=True)
class DefenseSummary:
    """One defence on the networks where it did worst.

    Attributes
    ----------
    defense : str
    kind : str
        What leaked there, a key of `LEAKS`.
    networks : tuple of str
        These networks. All that is said below is of these alone.
    everywhere : bool
        Whether these are all networks of the audit.
    least_error, most_error : float or None
        The range of the gradient's relative error.
    seeds : int
        On how many seeds of each batch size, the least number.
    recovered, labels_right, images : int
        How many images and labels were found, and of how many images.
    """

    defense: str
    kind: str
    networks: tuple[str, ...]
    everywhere: bool
    least_error: float | None
    most_error: float | None
    seeds: int
    recovered: int
    labels_right: int
    images: int

    @classmethod
    def of(cls, group: Sequence[Finding], networks: Sequence[str]) -> DefenseSummary:
        """Sum up the findings of a defence, in an audit of these networks."""
        kinds = [finding.leak.kind for finding in group]
        worst = next(kind for kind in LEAKS if kind in kinds)
        named = [finding for finding in group if finding.leak.kind == worst]
        errors = [finding.relative_error for finding in named if finding.relative_error is not None]
        return cls(
            defense=group[0].defense,
            kind=worst,
            networks=tuple(finding.network for finding in named),
            everywhere=len(named) == len(networks),
            least_error=min(errors, default=None),
            most_error=max(errors, default=None),
            seeds=min(finding.seeds for finding in named),
            recovered=sum(finding.recovered for finding in named),
            labels_right=sum(finding.labels_right for finding in named),
            images=sum(finding.images for finding in named),
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an audit says as a whole.

    Attributes
    ----------
    undefended : tuple of Finding
        Each network without a defence.
    defenses : mapping of str to tuple of DefenseSummary
        The defences by what leaked on the network where they did worst, a key of
        `LEAKS`, in the order there.
    not_comparable : tuple of str
        The networks of which, at some batch size, no undefended picture was
        recovered. What was not recovered under a defence there need not be the
        defence's merit.
    cheapest : DefenseSummary or None
        The defence that stops the attacks and moves the gradient least.
    failed_cells : int
        How many cells could not be run.
    labels_right, images : int
        How many labels were found under all defences together, and of how many
        images.
    """

    undefended: tuple[Finding, ...]
    defenses: Mapping[str, tuple[DefenseSummary, ...]]
    not_comparable: tuple[str, ...]
    cheapest: DefenseSummary | None
    failed_cells: int
    labels_right: int
    images: int

    @classmethod
    def of(cls, found: Sequence[Finding]) -> Summary:
        """Sum up all findings."""
        defended = [finding for finding in found if finding.defense != "none"]
        undefended = [finding for finding in found if finding.defense == "none"]
        networks = list(dict.fromkeys(finding.network for finding in found))
        summaries = [
            DefenseSummary.of([finding for finding in defended if finding.defense == name], networks)
            for name in dict.fromkeys(finding.defense for finding in defended)
        ]
        return cls(
            undefended=tuple(undefended),
            defenses={kind: tuple(each for each in summaries if each.kind == kind) for kind in LEAKS},
            not_comparable=tuple(
                dict.fromkeys(finding.network for finding in defended if not is_comparable(finding, found))
            ),
            cheapest=min(
                (each for each in summaries if each.kind == "stops" and each.most_error is not None),
                key=lambda each: each.most_error or 0.0,
                default=None,
            ),
            failed_cells=sum(len(finding.errors) for finding in found),
            labels_right=sum(finding.labels_right for finding in defended),
            images=sum(finding.images for finding in defended),
        )


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
    def agrees(self) -> bool | None:
        """Whether pictures leak here where theirs did, and do not leak where theirs did not. None: it is not known."""
        return None if self.finding.leak.kind in ("unknown", "not_run") else self.stops != self.finding.leak.is_seen


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
