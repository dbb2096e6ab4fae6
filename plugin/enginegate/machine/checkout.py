"""Which commit of the project this is, as git and the environment of a CI job tell."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginegate.files import parse_json, read_text
from enginegate.machine.processes import git


@dataclass(frozen=True)
class Checkout:
    """The commit that a project's files are of.

    Attributes:
        commit: its whole hash; empty outside git.
        branch: its name; empty where none is known.
        changed: whether files that git knows differ from it; baselines do not count.
        base: the commit that was measured beside; empty where it was none.
        commits_url: what the address of a commit begins with; empty where no CI job tells it.
    """

    commit: str = ""
    branch: str = ""
    changed: bool = False
    base: str = ""
    commits_url: str = ""


def checkout_of(
    rootpath: Path, baselines: Path, against: str, environment: Mapping[str, str]
) -> Checkout:
    """What is checked out in a folder, and the commit of the revision `against`, if it is one."""
    found = Checkout(
        commit=_said(rootpath, "rev-parse", "HEAD"),
        branch=_said(rootpath, "branch", "--show-current"),
        changed=is_changed(rootpath, baselines, untracked=False),
        base=_base(rootpath, against),
    )
    return _in_gitlab(_in_github(found, environment), environment)


def is_changed(rootpath: Path, baselines: Path, *, untracked: bool) -> bool:
    """Tell if files below a folder differ from its commit, with those git does not know or without.

    Baselines, which a refresh writes, do not count.
    """
    inside = baselines.is_relative_to(rootpath)
    apart = (f":(exclude){baselines.relative_to(rootpath)}",) if inside else ()
    which = "normal" if untracked else "no"
    asked = ("status", "--porcelain", f"--untracked-files={which}", "--", ".")
    return bool(_said(rootpath, *asked, *apart))


def _said(rootpath: Path, *arguments: str) -> str:
    """The answer of git; empty where it fails."""
    found = git(rootpath, *arguments)
    return "" if found.returncode else found.stdout.strip()


def _base(rootpath: Path, against: str) -> str:
    if not against or Path(against).is_dir():  # of saved engines
        return ""
    return _said(rootpath, "rev-parse", "--verify", f"{against}^{{commit}}")


def _in_github(found: Checkout, environment: Mapping[str, str]) -> Checkout:
    """With what a job of GitHub knows, which checks a merge out and tells the branch's commit."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_SHA")
    server, repository, sha = (environment.get(name, "") for name in names)
    if not (found.commit and found.commit == sha):
        return found
    asked = _event(environment).get("pull_request") or {}
    return replace(
        found,
        commit=str((asked.get("head") or {}).get("sha") or sha),
        branch=environment.get("GITHUB_HEAD_REF") or environment.get("GITHUB_REF_NAME", ""),
        commits_url=f"{server}/{repository}/commit/" if server and repository else "",
    )


def _event(environment: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = parse_json(read_text(Path(environment["GITHUB_EVENT_PATH"])), halves=True)
    except (KeyError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_gitlab(found: Checkout, environment: Mapping[str, str]) -> Checkout:
    """With what a job of GitLab knows, which checks a commit out and no branch."""
    project, sha = (environment.get(name, "") for name in ("CI_PROJECT_URL", "CI_COMMIT_SHA"))
    if not (found.commit and found.commit == sha):
        return found
    names = ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "CI_COMMIT_REF_NAME")
    branch = next(filter(None, map(environment.get, names)), found.branch)
    return replace(found, branch=branch, commits_url=f"{project}/-/commit/" if project else "")


def this_checkout(rootpath: Path, baselines: Path, against: str) -> Checkout:
    """What this process judges."""
    return checkout_of(rootpath, baselines, against, os.environ)
