"""``python -m dssm_helpers.course``: one entry for each command. The Makefile calls this."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..settings import DATASETS
from . import book, kit, machine, own, runner
from .environment import check_environment
from .progress import progress
from .publish import publish

Options = argparse.Namespace


def notebooks(options: Options) -> int:
    """execute in place from empty artifacts, refresh the README"""
    status = runner.run("ml-100k", in_place=True, only=options.only)
    if status == 0 and not options.only:  # a part of the notebooks measures a part of the figures
        machine.record_yardstick()
        runner.refresh_readme()
    return status


def run(options: Options) -> int:
    """execute copies of the notebooks"""
    return runner.run(options.dataset, only=options.only)


def readme(_: Options) -> None:
    """refill the README's generated parts from the last results"""
    runner.refresh_readme()


def solved(_: Options) -> int:
    """copies with the solutions filled in, in artifacts/solved/"""
    return runner.build("solved")


def nbgrader(_: Options) -> int:
    """a source tree for nbgrader, in artifacts/nbgrader/"""
    return runner.build("nbgrader")


def own_data(options: Options) -> int:
    """from files of your own to a served recommender"""
    return own.main(options)


def wheel(_: Options) -> None:
    """the course as a wheel, with all that notebooks read, in dist/"""
    print(kit.build_wheel())


def offline_kit(_: Options) -> None:
    """wheels, notebooks and data, to install without a network"""
    kit.offline_kit()


def build_book(_: Options) -> None:
    """a static site of the notebooks, in artifacts/book/"""
    print(f"{book.build_book()}/index.html")


def check_machine(_: Options) -> int:
    """what is here, what is missing, how long each notebook will take"""
    return machine.check_machine()


def environment(_: Options) -> None:
    """the check of packages and tools alone"""
    print(check_environment())


def show_progress(_: Options) -> None:
    """which exercises are done"""
    print(progress().to_string())


def publish_at(options: Options) -> None:
    """write the course's address everywhere; without OWNER/NAME take it out"""
    changed = publish(runner.ROOT, options.repo)
    print(f"{len(changed)} files changed: address {options.repo or 'none'}")


COMMANDS: dict[str, Callable[[Options], int | None]] = {
    "run": run,
    "notebooks": notebooks,
    "readme": readme,
    "solved": solved,
    "nbgrader": nbgrader,
    "own": own_data,
    "wheel": wheel,
    "offline-kit": offline_kit,
    "book": build_book,
    "check-machine": check_machine,
    "environment": environment,
    "progress": show_progress,
    "publish": publish_at,
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dssm_helpers.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=command.__doc__) for name, command in COMMANDS.items()}
    for name in ("run", "notebooks"):
        parsers[name].add_argument("--only", nargs="*", metavar="NN", help="two-digit numbers, for example 00 04")
    parsers["run"].add_argument("--dataset", choices=DATASETS, default="ml-100k")
    own.add_arguments(parsers["own"])
    parsers["publish"].add_argument("repo", metavar="OWNER/NAME", nargs="?", default="")
    options = parser.parse_args(arguments)
    return COMMANDS[options.command](options) or 0
