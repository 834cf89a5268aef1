"""``python -m dssm_helpers.course``: one entry for each command. The Makefile calls this.

Each command imports what it needs itself, so the environment check answers where nothing is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..settings import DATASETS

Options = argparse.Namespace


def notebooks(options: Options) -> int:
    """execute in place from empty artifacts, refresh the README"""
    from . import machine, runner

    status = runner.run("ml-100k", in_place=True, only=options.only)
    if status == 0 and not options.only:  # a part of the notebooks measures a part of the figures
        machine.record_yardstick()
        runner.refresh_readme()
    return status


def run(options: Options) -> int:
    """execute copies of the notebooks"""
    from .runner import run

    return run(options.dataset, only=options.only)


def readme(_: Options) -> None:
    """refill the README's generated parts from the last results"""
    from .runner import refresh_readme

    refresh_readme()


def solved(_: Options) -> int:
    """copies with the solutions filled in, in artifacts/solved/"""
    from .runner import build

    return build("solved")


def nbgrader(_: Options) -> int:
    """a source tree for nbgrader, in artifacts/nbgrader/"""
    from .runner import build

    return build("nbgrader")


def own(options: Options) -> int:
    """from files of your own to a served recommender"""
    from .own import main

    return main(options.rest)


def wheel(_: Options) -> None:
    """the course as a wheel, with all that notebooks read, in dist/"""
    from .kit import build_wheel

    print(build_wheel())


def offline_kit(_: Options) -> None:
    """wheels, notebooks and data, to install without a network"""
    from .kit import offline_kit

    offline_kit()


def book(_: Options) -> None:
    """a static site of the notebooks, in artifacts/book/"""
    from .book import build_book

    print(f"{build_book()}/index.html")


def check_machine(_: Options) -> int:
    """what is here, what is missing, how long each notebook will take"""
    from .machine import check_machine

    return check_machine()


def matrix(options: Options) -> int:
    """tests and notebooks with other versions, each in an environment of its own"""
    from .matrix import matrix

    return matrix(options.entries)


def environment(_: Options) -> None:
    """the check of packages and tools alone"""
    from .environment import check_environment

    print(check_environment())


def progress(_: Options) -> None:
    """which exercises are done"""
    from .progress import progress

    print(progress().to_string())


def publish(options: Options) -> None:
    """write the course's address everywhere; without OWNER/NAME take it out"""
    from .publish import publish
    from .runner import ROOT

    print(f"{len(publish(ROOT, options.repo))} files changed: address {options.repo or 'none'}")


def lock(_: Options) -> None:
    """requirements.lock anew: all packages, with the hashes of their files"""
    from .supply import lock

    lock()


def audit(_: Options) -> int:
    """known vulnerabilities of what requirements.lock holds"""
    from .supply import audit

    return audit()


COMMANDS: tuple[Callable[[Options], int | None], ...] = (
    run, notebooks, readme, solved, nbgrader, own, wheel, offline_kit, book, check_machine, environment, progress,
    publish, lock, audit, matrix,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run one command; its exit status, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m dssm_helpers.course", description=__doc__)
    commands, parsers = parser.add_subparsers(required=True), {}
    for command in COMMANDS:
        name = command.__name__.replace("_", "-")
        # `own` has a parser of its own, with a help of its own.
        parsers[name] = commands.add_parser(name, help=command.__doc__, add_help=command is not own)
        parsers[name].set_defaults(command=command)
    for name in ("run", "notebooks"):
        parsers[name].add_argument("--only", nargs="*", metavar="NN", help="two-digit numbers, for example 00 04")
    parsers["run"].add_argument("--dataset", choices=DATASETS, default="ml-100k")
    parsers["matrix"].add_argument("entries", metavar="ENTRY", nargs="*", help="for example 3.12-pinned 3.11-lowest")
    parsers["publish"].add_argument("repo", metavar="OWNER/NAME", nargs="?", default="")
    options, options.rest = parser.parse_known_args(arguments)
    if options.rest and options.command is not own:
        parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("\nInterrupted. What was finished is kept; the same command does the rest.", file=sys.stderr)
        return 130
