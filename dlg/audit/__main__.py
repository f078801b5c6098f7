"""Attack gradients under each defence, and report which defence stops the leak and how far it changes the gradient."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dlg.audit import PROGRAM
from dlg.start_up import REFUSED, imports_of

with imports_of(PROGRAM) if __name__ == "__main__" else nullcontext():
    from dlg import defenses
    from dlg.audit.gate import GATES
    from dlg.audit.grid import DEFAULT_GRID, MOST_ITERATIONS, QUICK_GRID, THOROUGH_GRID
    from dlg.audit.subject import subjects_of
    from dlg.errors import InputError, error_line, one_line, quoted
    from dlg.options import OneLineParser, argument_type, file_path, folder_path, integer_between, seconds
    from dlg.output import forgiving_streams
    from dlg.participant.networks import NETWORKS

# The packages that only the audit needs, by the names they are imported by.
PACKAGES = ("dp_accounting", "jinja2", "joblib", "matplotlib")
# The most processes that the user may ask for. Each takes up to 1 GiB, so that these take up to 256 GiB.
MOST_JOBS = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code. What it refuses is one line on standard error."""
    with forgiving_streams() as output:
        args = parse_args(argv)
        try:
            code = import_audit()(args)
        except (InputError, OSError, MemoryError) as error:
            sys.stderr.write(error_line(PROGRAM, str(error) or "there is not enough memory; take fewer --jobs"))
            return REFUSED
        output.flush()
        if output.error:
            lost = f"standard output: {output.error.strerror}; the results are in {quoted(str(args.result_dir))}"
            sys.stderr.write(error_line(PROGRAM, lost))
            return code or REFUSED
        return code


def import_audit() -> Callable[[argparse.Namespace], int]:
    """Import what runs the audit, and with it the audit's packages.

    Raises
    ------
    InputError
        Where a package is missing, or cannot be imported. Some read variables
        of the environment while they are imported, and refuse what is there.
    """
    require_packages()
    try:
        from dlg.audit.run import audit
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            f"a package of the audit cannot be imported ({one_line(error)}); look at the variables of the environment"
            " that it reads, or install it anew"
        ) from None
    return audit


def require_packages() -> None:
    """Check that the packages of the audit are installed.

    Raises
    ------
    InputError
        Where one is missing.
    """
    missing = [name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the audit needs {', '.join(missing)}; install it in the project's folder with: pip install"
            " '.[audit]', or: pip install -r requirements.txt"
        )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what it does not say of the grid is as in the default or the quick grid."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    _add_grid_options(parser.add_argument_group("grid"))
    _add_running_options(parser.add_argument_group("running"))
    args = parser.parse_args(argv)
    default_grid = QUICK_GRID if args.quick else THOROUGH_GRID if args.thorough else DEFAULT_GRID
    for field in dataclasses.fields(default_grid):
        if getattr(args, field.name) is None:
            setattr(args, field.name, getattr(default_grid, field.name))
    args.defenses = [defenses.parse(spec).spec for spec in args.defenses]
    try:
        subjects_of(args.networks, args.weights)
    except ValueError as error:
        parser.error(str(error))
    return args


def _add_grid_options(group: Any) -> None:
    group.add_argument(
        "--networks",
        nargs="+",
        metavar="NETWORK",
        help=f"networks to attack: {', '.join(NETWORKS)}, or FILE.py:NAME for one of your own"
        f" (default: {_listed(DEFAULT_GRID.networks)})",
    )
    group.add_argument(
        "--weights",
        type=argument_type(file_path),
        metavar="FILE",
        help="a file of paddle.save with the weights of the one network that is attacked (default: each seed draws its"
        " own)",
    )
    group.add_argument(
        "--batch_sizes",
        nargs="+",
        type=argument_type(integer_between(1)),
        metavar="N",
        help=f"batch sizes to attack (default: {_listed(DEFAULT_GRID.batch_sizes)})",
    )
    group.add_argument(
        "--defenses",
        nargs="+",
        type=argument_type(lambda spec: defenses.parse(spec).spec),
        metavar="SPEC",
        help=f"defenses to try: {defenses.SPELLINGS} (default: {_listed(DEFAULT_GRID.defenses)})",
    )
    group.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        metavar="N",
        help="number of seeds, each with its own batch, weights and noise"
        f" (default: {DEFAULT_GRID.seeds}, with --thorough {THOROUGH_GRID.seeds}, with --quick {QUICK_GRID.seeds})",
    )
    group.add_argument(
        "--data",
        nargs="+",
        default=["bundled"],
        metavar="SOURCE",
        help="where the samples come from, as for mnist_example.py, or an .npz file with the arrays features and labels"
        " (default: bundled)",
    )
    group.add_argument(
        "--feature_shape",
        nargs="+",
        type=argument_type(integer_between(1)),
        metavar="N",
        help="the shape of one sample, as the networks take it (default: that of the data)",
    )
    group.add_argument(
        "--iterations",
        type=argument_type(integer_between(1, MOST_ITERATIONS)),
        metavar="N",
        help="most iterations of the cosine attack; the auto attack does a fifth of them"
        f" (default: {DEFAULT_GRID.iterations}, with --quick {QUICK_GRID.iterations})",
    )
    group.add_argument(
        "--time_limit",
        type=argument_type(seconds),
        metavar="SECONDS",
        help="most seconds for the attacks on a cell, which end with what they have (default: none)",
    )
    group.add_argument(
        "--bound",
        action="store_true",
        help="say for each cell with Gaussian noise how closely any unbiased attack could know the pictures",
    )
    group.add_argument(
        "--compare",
        action="store_true",
        default=None,
        help="run the attack without telling it the defence too, and that of Zhu et al., and show all three in a table"
        " (default: with --thorough alone)",
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="use a smaller grid where the options above are not given")
    size.add_argument(
        "--thorough", action="store_true", help="use more seeds where the options above are not given, and --compare"
    )


def _add_running_options(group: Any) -> None:
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "--jobs",
        type=argument_type(integer_between(1, MOST_JOBS)),
        metavar="N",
        help="number of processes (default: the number of cores, but 4 at most)",
    )
    place.add_argument(
        "--dask", metavar="ADDRESS", help="run on a Dask cluster; ADDRESS is its scheduler's, tcp://HOST:PORT"
    )
    group.add_argument(
        "--result_dir",
        type=argument_type(folder_path),
        default=Path("./audit_results"),
        metavar="DIR",
        help="where results go; created if missing (default: ./audit_results)",
    )
    group.add_argument("--resume", action="store_true", help="go on with the audit that result_dir holds")
    group.add_argument(
        "--fail_on",
        choices=GATES,
        help="exit with code 3 where a picture leaked (leak), or leaked at least in part (part), or nothing is known of"
        " a cell (undetermined), and name the worst cell (default: exit with 0 whatever leaked)",
    )


def _listed(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
